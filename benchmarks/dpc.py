"""DPC's second stage against a straightforward implementation of the released procedure.

    python -m benchmarks.dpc [--device cuda --prec amp] [--cases emoji-tiny:18 ViT-B/16:50] [--write]

"Released" does what the released code does in a step: class features of all base classes at 77 positions under P (miner) and under
P' (loss), a second image pass over the anchors, negatives read from the annotation file and decoded one by one in the main
thread, one for every pair. "Ours" is the trainer's own step, in which the pairs of a negative class share its image. Both see the
same anchors and negatives; the losses are compared. ViT-B/16 has random weights; images are the embedded emoji, scaled to the
backbone's size. What DPC adds to each backbone in parameters, memory and time at test is measured by benchmarks/dpc_cost.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks import dpc_cost
from benchmarks.measure import Clock, add_flags, peak_mb
from benchmarks.methods import Official
from benchmarks.pages import DOCS, conditions, device_name, write_section
from dassl_prompts.run.job import config_file

DOC = DOCS / "dpc.md"


def make_trainer(args, folder: Path, backbone: str, classes: int):
    """A DPC_CoOp trainer on the emoji data whose class list is repeated up to ``classes`` names, before its first step."""
    import open_clip

    import dassl_prompts
    from dassl_prompts.engine import build_trainer, get_cfg_default, merge_file, merge_opts, set_random_seed

    weights, size = backbone, 64
    if not backbone.startswith("emoji"):
        torch.manual_seed(0)
        model = open_clip.create_model(backbone.replace("/", "-"), force_quick_gelu=True)
        weights, size = str(folder / "random.pt"), model.visual.image_size[0]
        torch.save(model.state_dict(), weights)
    cfg = get_cfg_default()
    dassl_prompts.extend_cfg(cfg)
    merge_file(cfg, config_file("datasets", "emoji"))
    merge_file(cfg, config_file("trainers", "DPC_CoOp", "open_tiny"))
    merge_opts(
        cfg,
        [
            "TRAINER.NAME",
            "DPC_CoOp",
            "MODEL.BACKBONE.NAME",
            weights,
            "MODEL.BACKBONE.ACTIVATION",
            "quickgelu",
            "INPUT.SIZE",
            (size, size),
            "SEED",
            1,
            "DATASET.NUM_SHOTS",
            16,
            "OUTPUT_DIR",
            str(folder / "run"),
            "TRAINER.COOP.PREC",
            args.prec,
            "DATASET.SUBSAMPLE_CLASSES",
            "base",
            "DATALOADER.NUM_WORKERS",
            args.workers,
            "USE_CUDA",
            args.device == "cuda",
        ],
    )
    cfg.freeze()
    set_random_seed(1)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(cfg)
        names = trainer.dm.dataset.classnames
        if classes > len(names):  # more names to score; images stay those of the data
            longer = (names * (1 + classes // len(names)))[:classes]
            trainer.model = trainer.build_net(cfg, longer, trainer.model.clip).to(trainer.device)
            trainer._models.clear(), trainer._optims.clear(), trainer._scheds.clear()
            trainer.register_net()
            trainer.dm.dataset._classnames = names
        trainer.train_loader_x = loader = trainer.mined_loader()
        loader.by_class = [loader.by_class[i % len(names)] for i in range(max(classes, len(names)))]
        trainer.set_model_mode("train")
    trainer.num_batches, trainer.batch_idx = 10**9, 0
    return trainer


class Released:
    """The released step on the same trainer's weights and batch."""

    def __init__(self, trainer, folder: Path):
        self.trainer, self.official = trainer, Official(self.open_clip_model(trainer))
        dataset = trainer.dm.dataset
        table = {
            name: [i, [d.impath for d in dataset.train_x if d.label == i]] for i, name in enumerate(dataset.classnames)
        }
        self.json = folder / "SPLE.json"
        self.json.write_text(json.dumps({"train": [table]}))

    @staticmethod
    def open_clip_model(trainer):
        """The trainer's weights in open_clip's own module."""
        from dassl_prompts.models.clip import build_model, infer_config

        clip = trainer.model.clip
        state = {k.split(".", 1)[1]: v for k, v in clip.state_dict().items() if k.startswith("text.")}
        state |= {"visual." + k.split(".", 1)[1]: v for k, v in clip.state_dict().items() if k.startswith("vision.")}
        state["logit_scale"] = clip.logit_scale
        model = build_model(infer_config(state, "the trainer's backbone"))
        model.load_state_dict(state)
        return model.to(clip.logit_scale.device).eval().requires_grad_(False)

    def step(self, anchors: dict, batch: dict) -> torch.Tensor:
        """One update; returns the loss. ``batch`` is only asked which negatives were drawn."""
        trainer, model = self.trainer, self.trainer.model
        device, tokens = trainer.device, model.class_prompts.tokens
        with trainer.autocast():
            images = anchors["img"].to(device)
            with torch.no_grad():  # the miner, every step
                self.official.image(images) @ self.official.text(tokens, model.tuned.prompt_learner.ctx).t()
            shown, count = [], len(anchors["img"])
            for row in batch["rows"].tolist():  # one after the other, the file parsed for each anchor's group
                if row < count:
                    json.loads(self.json.read_text())
                    shown.append(anchors["img"][row])
                else:
                    shown.append(trainer.pool.dataset[batch["negative_index"][row - count]]["img"])
            everything = torch.stack(shown).to(device)
            labels = batch["label"].to(device)
            with torch.no_grad():
                image = self.official.image(everything)
            text = self.official.text(tokens, model.parallel.prompt_learner.ctx)[labels]
            scores = model.scale * image.float() @ text.float().t()
            target = torch.arange(len(labels), device=device)
            loss = 0.5 * (F.cross_entropy(scores, target) + F.cross_entropy(scores.t(), target))
        trainer.step(loss)
        return loss.detach()


def measure(args, backbone: str, classes: int) -> dict:
    with tempfile.TemporaryDirectory() as name:
        trainer = make_trainer(args, Path(name), backbone, classes)
        released = Released(trainer, Path(name))
        loader = trainer.train_loader_x
        anchors = next(iter(loader.loader))
        batch = loader._start(0, anchors)()
        images, labels = trainer.parse_batch_train(batch)
        with trainer.autocast():
            loss = trainer.loss(images, labels)["loss"]
        difference = float((loss.detach() - same_images(released, batch)).abs())

        def ours():
            ready = loader._start(0, anchors)()  # mining and loading, in line
            trainer.forward_backward(ready)

        clock = Clock(torch.device(args.device), args.repeats)
        fast = clock(ours)
        slow = clock(lambda: released.step(anchors, batch))
        with torch.no_grad(), trainer.autocast():
            floor = clock(lambda: trainer.model.clip.encode_image(images))
        trainer.pool.close()
        return {
            "backbone": backbone,
            "base classes": len(trainer.model.classnames),
            "pairs per step": len(labels),
            "images per step": len(images),
            "image tower alone (s)": f"{floor:.3f}",
            "released (s)": f"{slow:.3f}",
            "ours (s)": f"{fast:.3f}",
            "faster": f"{slow / fast:.1f}x",
            "loss differs by": f"{difference:.1e}",
        }


@torch.no_grad()
def same_images(released: Released, batch: dict) -> torch.Tensor:
    """The released loss on exactly the images of ``batch``."""
    model, labels = released.trainer.model, batch["label"].to(released.trainer.device)
    with released.trainer.autocast():
        image = released.official.image(batch["img"].to(released.trainer.device))[batch["rows"]]
        text = released.official.text(model.class_prompts.tokens, model.parallel.prompt_learner.ctx)[labels]
    scores = model.scale * image.float() @ text.float().t()
    target = torch.arange(len(labels), device=scores.device)
    return 0.5 * (F.cross_entropy(scores, target) + F.cross_entropy(scores.t(), target))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument(
        "--cases",
        nargs="+",
        default=["emoji-tiny:18", "ViT-B/16:50", "ViT-B/16:199", "ViT-B/16:500"],
        help="BACKBONE:BASE_CLASSES",
    )
    p.add_argument("--workers", type=int, default=0, help="processes that load negatives")
    p.add_argument("--repeats", type=int, default=2)
    dpc_cost.add_arguments(p)
    add_flags(p, DOC.name)
    args = p.parse_args()
    from tabulate import tabulate

    torch.set_num_threads(args.threads)
    rows = []
    for case in args.cases:
        backbone, classes = case.rsplit(":", 1)
        rows.append(measure(args, backbone, int(classes)))
        print(tabulate(rows[-1:], headers="keys", tablefmt="github", disable_numparse=True), flush=True)
    text = (
        f"Written by `python -m benchmarks.dpc --device {args.device} --prec {args.prec} --cases {' '.join(args.cases)} "
        f"--repeats {args.repeats} --write`; 4 anchors, K = 8, least of "
        f"{args.repeats} repeats\nafter one warm-up, {conditions(args.device, args.threads)}, "
        f"peak memory of the process {peak_mb() / 1024:.1f} GiB.\nThe loading of negatives is in line in both columns "
        "(in a run it overlaps with the step before). The frozen image tower's\npass over the step's images is the floor of both; the "
        "released code passes its anchors twice.\n\n"
        + tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
        + f"\n\n### What stage 2 adds to a backbone\n\n{dpc_cost.__doc__.split(chr(10) * 2)[2].strip()}\n"
        f"{args.images} images, {args.classes} classes. The secondary source on the paper says for CoOp: 8K to 16K parameters, "
        "0.25 GB more.\n\n"
        + tabulate(dpc_cost.rows(args), headers="keys", tablefmt="github", disable_numparse=True)
        + "\n"
    )
    print(text)
    if args.write:
        write_section(DOC, "DPC: one step of stage 2, and what stage 2 adds", device_name(args.device, args.prec), text)


if __name__ == "__main__":
    main()
