"""What per-image prompts cost: text token-passes, wall clock of evaluation and training, share of k-means.

    python -m benchmarks.attriprompt [--device cuda --prec amp] [--images 4] [--write]     --write renews docs/benchmarks/attriprompt.md

Random weights of ViT-B/16, the first 50 class names of Caltech101, and whatever else the tables name. A *token-pass* is one
token through the text tower: 12 d^2 multiply-adds in each block. Token-passes are counted from the matrix products with weights
that are carried out while the model runs, so a token of which only keys and values are computed counts as 2/12 of a block.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode
from yacs.config import CfgNode

from benchmarks.measure import Clock, add_flags, autocast
from benchmarks.methods import NOUNS
from benchmarks.pages import DOCS, conditions, device_name, write_section
from dassl_prompts.classification.prompted import normalize
from dassl_prompts.models import build_clip
from dassl_prompts.trainers.attriprompt.pool import Retrieval
from dassl_prompts.trainers.attriprompt.trainer import AttriPromptModel, extend_cfg

DOC = DOCS / "attriprompt.md"
VIT_B16 = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
#: name -> switches of the text pass
PATHS = {
    "77 tokens": {"SHARE_PREFIX": False, "TRIM": False, "MEMO": False},
    "trimmed": {"SHARE_PREFIX": False, "TRIM": True, "MEMO": False},
    "shared prefix": {"SHARE_PREFIX": True, "TRIM": True, "MEMO": False},
}


def make(clip, switches: dict | None = None, classes=NOUNS, **changes) -> AttriPromptModel:
    """A model with the default options but for ``changes`` (``CLUSTER__K=8``) and switches of the text pass."""
    cfg = CfgNode()
    extend_cfg(cfg)
    node = cfg.TRAINER.ATTRIPROMPT
    node.TEXT.update(switches or {})
    for key, value in changes.items():
        group, _, leaf = key.partition("__")
        node[group][leaf] = value
    torch.manual_seed(0)
    return AttriPromptModel(clip, list(classes), node).to(clip.logit_scale.device).eval()


class Timer:
    """Seconds of a function after a warm-up: processor time on a CPU (other processes do not count), wall clock on a GPU."""

    def __init__(self, args):
        self.clock, self.prec = Clock(args.device, args.repeats), args.prec

    def __call__(self, function: Callable[[], object]) -> float:
        with self.autocast():
            function()
            wall, processor = self.clock.both(function)
        return processor if self.clock.device.type == "cpu" else wall

    def autocast(self):
        return autocast(self.clock.device, self.prec)


def token_passes(model, function: Callable[[], object]) -> float:
    """Token-passes of the text tower during ``function``; the products of attention, which have no weights, are left out."""
    text = model.clip.text
    with FlopCounterMode(display=False) as counter:
        function()
    counts = counter.get_flop_counts()["Global"]
    products = sum(counts.get(op, 0) for op in (torch.ops.aten.mm, torch.ops.aten.addmm))
    return products / 2 / (12 * text.width**2 * text.layers)


def passes_table(clip, batch: int) -> list[dict]:
    """Token-passes per image for 50 classes and several numbers of slots; every image has retrieved something else.

    A training step counts both directions: with frozen weights the backward pass of a token costs what its forward pass does.
    """
    rows = []
    for clusters, length in ((2, 2), (4, 2), (4, 4), (17, 1), (4, 8)):
        model = make(clip, PATHS["shared prefix"], CLUSTER__K=clusters, POOL__LENGTH=length)
        retrieval = random_retrieval(model, batch)
        trimmed = len(model.class_prompts) * model.class_prompts.length
        model.text_target  # computed once per run, not in every step
        with torch.no_grad():
            evaluation = token_passes(model, lambda: model.encode(retrieval)) / batch
        step = token_passes(model, lambda: text_step(model, retrieval)) / batch
        rows.append(
            {
                "slots": clusters * length,
                "77 positions": 77 * len(model.class_prompts),
                "trimmed to the longest": trimmed,
                "evaluation, counted": f"{evaluation:.1f}",
                "fewer than trimmed": f"{trimmed / evaluation:.1f}x",
                "training step: trimmed": 2 * trimmed,
                "training step, counted": f"{step:.1f}",
                "fewer than trimmed ": f"{2 * trimmed / step:.1f}x",
            }
        )
    return rows


def passes_note(clip) -> str:
    """What the table counts, and why it cannot get better."""
    prompts = make(clip, PATHS["shared prefix"]).class_prompts
    own, trimmed = int((prompts.eot + 1 - prompts.n_prefix).sum()), len(prompts) * prompts.length
    middle = own * (clip.text.layers - 2) / clip.text.layers
    return (
        f"A token-pass is one token through all {clip.text.layers} blocks; computed parts of a block count by their multiply-adds "
        "(keys and values alone are 2/12), attention's own products are left out. *Trimmed* is the plain path cut to the longest "
        f"end token, padding included: {len(prompts)} texts of {prompts.length} positions at {prompts.n_ctx} slots. The counted "
        f"path skips padding. Its {own} tokens of class names, full stops and end tokens differ from image to image behind the "
        f"first block, and all blocks but the first and last need them whole: {middle:.1f} token-passes, so that skipping "
        f"and sharing tokens cannot save more than {trimmed / middle:.1f}x at {prompts.n_ctx} slots while every image retrieves "
        "something else. The more slots, the larger the gain: they are shared by all classes, and of slots that the next block "
        "overwrites only keys and values are computed. Images that retrieve the same tuple cost nothing on top (`TEXT.MEMO`)."
    )


def random_retrieval(model, batch: int) -> Retrieval:
    index = torch.randint(model.pool.size, (batch, model.depth, model.slots))
    return Retrieval(index.to(model.clip.logit_scale.device), None)


def text_step(model, retrieval: Retrieval) -> None:
    """Forward and backward pass of the text side."""
    model.pool.prompts.grad = None
    (model.encode(retrieval) - model.text_target).abs().mean().backward()


def training_step(model, view, labels) -> torch.Tensor:
    """Loss and gradient of class-level cross-entropy plus the regulariser on given views."""
    model.pool.prompts.grad = None
    text = model.encode(model.retrieve(view))
    logits = model.logits(view.feature, text)
    loss = F.cross_entropy(logits, labels) + 25 * (text - model.text_target).abs().mean()
    loss.backward()
    return model.pool.prompts.grad


def time_table(clip, images, timer: Timer) -> list[dict]:
    """Text side of evaluation and of a training step on the three paths, and how far their results are apart."""
    rows, reference = [], None
    labels = torch.arange(len(images), device=images.device) * 7
    for name, switches in PATHS.items():
        model = make(clip, switches)
        with timer.autocast():
            view = model.look(images)
            retrieval = model.retrieve(view)
            with torch.no_grad():
                evaluation = timer(lambda: model.encode(retrieval))
                text = model.encode(retrieval)
            step = timer(lambda: training_step(model, view, labels))
            gradient = training_step(model, view, labels)
        reference = reference or (text, gradient, evaluation, step)
        rows.append(
            {
                "text path": name,
                "evaluation, s": f"{evaluation:.3f}",
                "gain": f"{reference[2] / evaluation:.1f}x",
                "training step, s": f"{step:.3f}",
                "gain ": f"{reference[3] / step:.1f}x",
                "features differ by": f"{(text - reference[0]).abs().max():.0e}",
                "gradients differ by (relative)": f"{(gradient - reference[1]).norm() / reference[1].norm():.0e}",
            }
        )
    return rows


@torch.no_grad()
def cluster_table(clip, batch: int, timer: Timer) -> list[dict]:
    """What the attribute queries add to a pass of the image tower."""
    device = clip.logit_scale.device
    images = torch.randn(batch, 3, clip.image_size, clip.image_size, device=device)
    queries = make(clip).attributes
    with timer.autocast():
        _, outputs = queries.outputs(images)
    tower = timer(lambda: normalize(clip.encode_image(images)))
    kmeans = timer(lambda: queries.centroids(outputs))
    both = timer(lambda: queries.queries(outputs))
    return [
        {
            "batch": batch,
            "image tower, s": f"{tower:.3f}",
            "k-means of 12 layers, s": f"{kmeans:.3f}",
            "share": f"{100 * kmeans / tower:.1f} %",
            "with the frozen head, s": f"{both:.3f}",
        }
    ]


def report(args) -> str:
    from tabulate import tabulate

    device = torch.device(args.device)
    timer = Timer(args)
    clip = build_clip(VIT_B16, seed=0).to(device)
    images = torch.randn(args.images, 3, clip.image_size, clip.image_size, device=device)
    tables = [
        (f"Token-passes per image, 50 classes, batches of {args.batch} images", passes_table(clip, args.batch)),
        (f"Text side of {args.images} images x 50 classes, 8 slots", time_table(clip, images, timer)),
        ("k-means (4 clusters, 10 iterations) beside the image tower", cluster_table(clip, args.batch, timer)),
    ]
    clock = "wall clock" if device.type == "cuda" else "CPU seconds of the process"
    parts = [
        f"Written by `python -m benchmarks.attriprompt --device {args.device} --prec {args.prec} --images {args.images} --batch {args.batch} "
        f"--repeats {args.repeats} --write`: {conditions(args.device, torch.get_num_threads())}; "
        f"{clock}, best of {args.repeats}. ViT-B/16 with random weights, first 50 class names of Caltech101, template "
        '"a photo of a {}.".\n',
    ]
    for title, rows in tables:
        parts.append(f"### {title}\n\n{tabulate(rows, headers='keys', tablefmt='github', disable_numparse=True)}\n")
    parts.insert(2, passes_note(clip) + "\n")
    return "\n".join(parts)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--images", type=int, default=2, help="images of the text benchmark (default 2)")
    p.add_argument("--batch", type=int, default=32, help="images of the k-means benchmark (default 32)")
    p.add_argument("--repeats", type=int, default=2)
    add_flags(p, DOC.name)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    text = report(args)
    print(text)
    if args.write:
        write_section(DOC, "AttriPrompt: cost of prompts per image", device_name(args.device, args.prec), text)


if __name__ == "__main__":
    main()
