"""A made-up dataset and a tiny trainer for the engine's tests.

``python toy.py ROOT OUTPUT MOMENT ...`` trains once per moment in the same folder, each time killing itself
there.
"""

import os
import random
import signal
import sys

import torch
from torch import nn

from dassl_prompts.engine import (
    DatasetBase,
    Datum,
    PromptTrainer,
    build_lr_scheduler,
    build_optimizer,
    build_trainer,
    get_cfg_default,
    merge_opts,
    register_dataset,
    register_trainer,
    resume,
    set_random_seed,
)

CLASSES = ["bean", "leaf", "root"]


def make_images(root, per_class=6, size=10):
    """Write noisy images ``<class>/<number>.png`` in which one colour channel tells the class."""
    from PIL import Image

    draw = random.Random(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            pixels = [tuple(draw.randint(0, 90) + 160 * (c == label) for c in range(3)) for _ in range(size * size)]
            image = Image.new("RGB", (size, size))
            image.putdata([tuple(min(v, 255) for v in p) for p in pixels])
            image.save(root / name / f"{number}.png")
    return root


@register_dataset
class Toy(DatasetBase):
    def __init__(self, cfg):
        items = [
            Datum(impath=os.path.join(cfg.DATASET.ROOT, name, file), label=label, classname=name)
            for label, name in enumerate(CLASSES)
            for file in sorted(os.listdir(os.path.join(cfg.DATASET.ROOT, name)))
        ]
        train = [item for i, item in enumerate(items) if i % 3]
        held_out = items[::3]
        train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=train, val=held_out, test=held_out)


class ToyNet(nn.Module):
    """Frozen backbone with statistics of its own, a learned prompt, noise during training."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)).requires_grad_(False).eval()
        self.ctx = nn.Parameter(torch.randn(8, 3) * 0.1)
        self.register_buffer("token_prefix", torch.randn(3, 1, 4))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, images):
        features = self.backbone.eval()(images.mean(dim=(2, 3)))
        if self.training:
            self.mean.mul_(0.9).add_(features.mean(0), alpha=0.1)
            features = nn.functional.dropout(features - self.mean, 0.3)
        return features @ self.ctx


@register_trainer
class ToyTrainer(PromptTrainer):
    die_at = ""
    nan_at = None

    def build_model(self):
        self.model = ToyNet()
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model, self.optim, self.sched)
        self.history = []

    def forward_backward(self, batch):
        self.moment(f"batch {self.epoch} {self.batch_idx}")
        images, labels, _ = self.parse_batch_train(batch)
        loss = nn.functional.cross_entropy(self.model(images), labels)
        if (self.epoch, self.batch_idx) == self.nan_at:
            loss = loss * float("nan")
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        # draws from Python's generator too: a resumed run has to go on at the same place
        self.history.append(loss.item() + random.random())
        return {"loss": loss.item()}

    def after_epoch(self):
        super().after_epoch()
        self.moment(f"saved {self.epoch}")

    def save_resume_state(self):
        super().save_resume_state()
        self.moment(f"resumable {self.epoch}")

    def after_train(self):
        self.moment("trained")
        super().after_train()

    def extra_state(self):
        return {"history": self.history}

    def load_extra_state(self, state):
        self.history = list(state["history"])

    def moment(self, name):
        """A place where a test may end the run."""
        if name == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)


def toy_cfg(root, output, *opts):
    cfg = get_cfg_default()
    settings = {
        "DATASET.ROOT": str(root),
        "OUTPUT_DIR": str(output),
        "DATASET.NAME": "Toy",
        "TRAINER.NAME": "ToyTrainer",
        "SEED": 1,
        "USE_CUDA": False,
        "INPUT.SIZE": "(8, 8)",
        "INPUT.TRANSFORMS": "('random_resized_crop', 'random_flip', 'normalize')",
        "DATALOADER.NUM_WORKERS": 0,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "DATALOADER.TEST.BATCH_SIZE": 4,
        "OPTIM.NAME": "adam",
        "OPTIM.LR": 0.05,
        "OPTIM.MAX_EPOCH": 4,
        "OPTIM.LR_SCHEDULER": "cosine",
        "OPTIM.WARMUP_EPOCH": 1,
        "OPTIM.WARMUP_TYPE": "constant",
        "TRAIN.PRINT_FREQ": 1,
    }
    merge_opts(cfg, [str(part) for pair in settings.items() for part in pair])
    merge_opts(cfg, [str(part) for part in opts])
    cfg.freeze()
    return cfg


def toy_trainer(root, output, *opts):
    """A trainer as train.py makes it: seed first, then everything else."""
    cfg = toy_cfg(root, output, *opts)
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    return build_trainer(cfg)


def die_while_writing(moment):
    """Kill the process inside the n-th write of resume.pt, after half of the temporary file is there."""
    count, wanted, original = 0, int(moment.split()[1]), resume.write_tensors

    def write(state, path):
        nonlocal count
        count += 1
        if count == wanted:
            path.with_name(f".{path.name}.half.tmp").write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
        original(state, path)

    resume.write_tensors = write


def run_and_die(moment, root, output, opts):
    """Train in a process of its own that kills itself at ``moment``; returns its exit status."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    ToyTrainer.die_at = moment
    if moment.startswith("writing"):
        die_while_writing(moment)
    toy_trainer(root, output, *opts).train()
    os._exit(0)


if __name__ == "__main__":
    root, output, *moments = sys.argv[1:]
    for number, moment in enumerate(moments):
        status = run_and_die(moment, root, output, ["DATALOADER.NUM_WORKERS", number % 2])
        if status != signal.SIGKILL:
            sys.exit(f"{moment}: ended with status {status} instead of dying")
