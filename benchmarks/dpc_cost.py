"""What DPC costs beside its backbone: parameters, memory of one training step, and pictures per second at test.

    python -m benchmarks.dpc_cost [--device cuda --prec amp] [--methods CoOp MaPLe] [--images 32] [--classes 50]

ViT-B/16 with random weights and the recipes' prompts (PromptKD's teacher: ViT-L/14). Both stages step on the same number of
images: stage 1 on a batch of them, stage 2 on groups of an anchor and seven negatives, mining included. Memory is the peak of
a process during one step, with weights, prompts and optimiser, after a step on two images; each step in a process of its own.
Stage 2 encodes the text of the step's classes only (PromptSRC's consistency terms need all), so it may need less than stage 1.
Pictures per second are those of one batch of the same number of images, class features kept as in a test: the backbone; DPC
told the task, which costs what the backbone costs; and DPC with the task unknown, which looks at a picture under both prompts
where the image tower is prompted. On a CPU they are pictures per processor second, times the threads: a busy machine does not change them.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.measure import Clock
from benchmarks.methods import NOUNS
from benchmarks.text_tower import status_mb

METHODS = ("CoOp", "IVLP", "MaPLe", "PromptSRC", "PromptKD")
GROUP = 8  # an anchor and its K - 1 negatives


def make_net(name: str, classes: int, device: str):
    """A backbone's model with the prompts of its DPC recipe (specs/dpc.md 4.9)."""
    from dassl_prompts.models import build_clip
    from dassl_prompts.trainers.coop import CoOpModel
    from dassl_prompts.trainers.ivlp import IVLPModel
    from dassl_prompts.trainers.maple import MaPLeModel
    from dassl_prompts.trainers.promptkd.trainer import PromptKDModel
    from dassl_prompts.trainers.promptsrc import PromptSRCModel

    clip = build_clip("ViT-B/16", seed=0, device=device)
    names = (NOUNS * (1 + classes // len(NOUNS)))[:classes]
    torch.manual_seed(0)
    if name == "CoOp":
        return CoOpModel(clip, names, 16)
    if name == "IVLP":
        return IVLPModel(clip, names, 2, 2, 9, 9)
    if name == "MaPLe":
        return MaPLeModel(clip, names, 2, "a photo of a", 9)
    if name == "PromptSRC":
        net = PromptSRCModel(clip, names, 4, 4, 9, 9)
        net._text_target = F.normalize(
            torch.randn(classes, clip.embed_dim, device=device), dim=1
        )  # spares its 60 passes
        return net
    teacher = IVLPModel(build_clip("ViT-L/14", seed=1, device=device), names, 4, 4, 9, 9)
    return PromptKDModel(clip, names, teacher, 4, 9)


class Stage:
    """One training step of a method's trainer, without data, files and constructor.

    Args:
        stage: 1 trains the backbone, 2 trains DPC on it.
    """

    def __init__(self, args, name: str, stage: int):
        import dassl_prompts
        from dassl_prompts.engine import TRAINER_REGISTRY, build_optimizer, get_cfg_default

        cfg, net = get_cfg_default(), make_net(name, args.classes, args.device)
        dassl_prompts.extend_cfg(cfg)
        cls = TRAINER_REGISTRY.get(name if stage == 1 else f"DPC_{name}")
        self.trainer = trainer = object.__new__(cls)
        trainer.cfg, trainer.device, trainer.teacher_cache = cfg, torch.device(args.device), None
        trainer.autocast_dtype = torch.bfloat16 if args.prec == "amp" else None
        if stage == 2:
            trainer.dpc, trainer.topk = cls.settings(cfg), GROUP
            made = type("Made", (cls.backbone,), {"build_net": classmethod(lambda *_: net)})
            net = type("OnMade", (cls,), {"backbone": made}).build_net(cfg, net.classnames, net.clip)
        trainer.model = net.to(args.device)
        net.checkpoint_module.train()
        self.stage = stage
        learned = [p for p in net.checkpoint_module.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in learned)
        self.optim = build_optimizer(learned, cfg.OPTIM)
        size = net.clip.image_size
        self.images = torch.randn(args.images, 3, size, size, device=args.device)
        self.labels = torch.arange(args.images, device=args.device) % args.classes

    def __call__(self, count: int) -> None:
        """A step on the first ``count`` images."""
        trainer, images, labels = self.trainer, self.images[:count], self.labels[:count]
        trainer.batch_index = None
        if self.stage == 2:
            anchors = len(range(0, count, GROUP))  # they come first among the images, their groups follow
            groups = torch.arange(anchors, count).split(GROUP - 1)
            rows = [row for anchor, group in enumerate(groups) for row in (anchor, *group.tolist())]
            trainer.rows = torch.tensor(rows, device=images.device)
            trainer.anchor_pairs = (trainer.rows < anchors).nonzero()[:, 0]
            _, extra = trainer.mine(images[:anchors], labels[trainer.anchor_pairs].tolist(), random.Random(0))
            trainer.anchor_features = extra.get("anchor_features")
        self.optim.zero_grad()
        with trainer.autocast():
            loss = trainer.loss(images, labels)["loss"]
        loss.backward()
        self.optim.step()


def measure(args, name: str, stage: int) -> dict[str, float]:
    """Learned parameters, and peak memory in MB."""
    step = Stage(args, name, stage)
    step(2)
    gc.collect()
    if args.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step(args.images)
        return {"parameters": step.parameters, "mb": torch.cuda.max_memory_allocated() / 2**20}
    ctypes.CDLL(None).malloc_trim(0)  # what building the model has freed is no memory of the step
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    step(args.images)
    return {"parameters": step.parameters, "mb": status_mb("VmHWM")}


@torch.no_grad()
def frames(args, name: str) -> dict[str, float]:
    """Pictures per second at test: of the backbone, and of DPC in every task."""
    step, clock = Stage(args, name, 2), Clock(args.device, args.repeats)
    model = step.trainer.model.eval()
    model.set_base_classes(model.classnames[: len(model.classnames) // 2])
    found = {}
    with step.trainer.autocast():
        for task in ("backbone", "base", "new", "union"):
            net = model.tuned if task == "backbone" else model
            model.task = task
            net(step.images[:1])  # class features are made once per test
            wall, processor = clock.both(lambda net=net: net(step.images))
            found[task] = args.images / (wall if args.device.startswith("cuda") else processor / args.threads)
    return found


def in_own_process(args, name: str, stage: str) -> dict[str, float]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.dpc_cost",
        "--measure",
        name,
        stage,
        "--device",
        args.device,
        "--prec",
        args.prec,
        "--images",
        str(args.images),
        "--classes",
        str(args.classes),
        "--threads",
        str(args.threads),
        "--repeats",
        str(args.repeats),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def rows(args) -> list[dict]:
    """One row per backbone."""
    out = []
    for name in args.methods:
        first, second, test = (in_own_process(args, name, what) for what in ("1", "2", "test"))
        out.append(
            {
                "backbone": name,
                "learned in stage 1": first["parameters"],
                "learned in stage 2 (P')": second["parameters"],
                "stored (P and P')": 2 * second["parameters"],
                "stage 1 (MB)": round(first["mb"]),
                "stage 2 (MB)": round(second["mb"]),
                "extra (MB)": round(second["mb"] - first["mb"]),
                "frames/s": f"{test['backbone']:.2f}",
                "+DPC, base": f"{test['base']:.2f}",
                "+DPC, new": f"{test['new']:.2f}",
                "+DPC, task unknown": f"{test['union']:.2f}",
            }
        )
        print(*(f"{key} {value}" for key, value in out[-1].items()), sep=", ", flush=True)
    return out


def add_arguments(p: argparse.ArgumentParser) -> None:
    """The options that benchmarks/dpc.py shares."""
    p.add_argument(
        "--methods", nargs="+", default=list(METHODS), choices=METHODS, help="backbones whose cost is measured"
    )
    p.add_argument("--images", type=int, default=32, help="images of a step whose memory is measured")
    p.add_argument("--classes", type=int, default=50, help="base classes of a step whose memory is measured")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--device", default="cpu")
    p.add_argument("--prec", default="fp32", choices=("fp32", "amp"))
    p.add_argument("--threads", type=int, default=os.cpu_count())
    add_arguments(p)
    p.add_argument("--repeats", type=int, default=2)
    p.add_argument("--measure", nargs=2, metavar=("METHOD", "STAGE"), help=argparse.SUPPRESS)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure:
        name, what = args.measure
        print(json.dumps(frames(args, name) if what == "test" else measure(args, name, int(what))))
        return
    from tabulate import tabulate

    print(tabulate(rows(args), headers="keys", tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
