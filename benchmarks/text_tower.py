"""The text tower's step, forward and backward: 77 positions per class, trimmed to EOT, and with the shared prefix.

    python -m benchmarks.text_tower [--device cuda --prec amp] [--classes 10 50 100 1000] [--class-wise 8] [--write]

One random context (CoOp, ViT-B/16's text tower, random weights) for all classes; the gradient is that of the context. The
With --class-wise every class has tokens of its own from that block on, as in TCP; their gradient is compared as well. The
77-token path runs open_clip's own blocks as the official repositories do. All three share the weights and are timed in one
process, in turns. Memory is the growth of the peak during one step, each path in a process of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measure import Clock, add_flags, autocast
from benchmarks.methods import NOUNS, Official
from benchmarks.pages import DOCS, conditions, device_name, write_section
from dassl_prompts.models.clip import CLIP

DOC = DOCS / "text_tower.md"
PATHS = ("77 tokens", "trimmed", "shared prefix")


class Step:
    """The three ways from a context to the features of all classes and to the context's gradient.

    Args:
        chunk: most classes per pass of the two unshared paths, which need too much memory for many classes at once. The
            gradients of the passes add up to the same gradient.
    """

    def __init__(self, device: str, prec: str, classes: int, n_ctx: int, chunk: int, class_wise: int = 0):
        from open_clip.model import CLIP as OpenClip

        torch.manual_seed(0)
        vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}  # not used
        text = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
        self.model = OpenClip(512, vision, text, quick_gelu=True).eval().requires_grad_(False).to(device)
        self.tower = CLIP(self.model).to(device).text
        self.device, self.prec, self.chunk = torch.device(device), prec, chunk
        names = [name.replace("_", " ") for name in (NOUNS * (1 + classes // len(NOUNS)))[:classes]]
        self.prompts = self.tower.class_prompts(names, n_ctx=n_ctx)
        self.ctx = torch.randn(n_ctx, 512, device=device).mul(0.02).requires_grad_()
        self.probe = torch.randn(classes, 512, device=device) / classes
        self.class_wise, self.own = class_wise, None
        if class_wise:
            self.own = torch.randn(classes, n_ctx, 512, device=device).mul(0.02).requires_grad_()

    def features(self, path: str, index: Tensor) -> Tensor:
        """``[C', E]`` of the classes in ``index``."""
        whole = len(index) == len(self.prompts)
        prompts = self.prompts if whole else self.prompts.select(index)
        deep = [None] * (self.class_wise - 1) + [self.own[index]] if self.class_wise else []
        if path != "77 tokens":
            return self.tower(prompts, self.ctx, deep, share_prefix=path == "shared prefix")
        m, n = self.model, len(self.ctx)
        replace = lambda i, x: torch.cat([x[:, :1], deep[-1], x[:, 1 + n :]], dim=1) if i == self.class_wise else x
        x = m.token_embedding(prompts.tokens)
        x = torch.cat([x[:, :1], self.ctx.expand(len(x), -1, -1), x[:, 1 + n :]], dim=1) + m.positional_embedding
        x = Official.blocks(m.transformer, x, replace if deep else lambda i, x: x, m.attn_mask.to(x.dtype))
        return (m.ln_final(x)[torch.arange(len(x)), prompts.eot] @ m.text_projection).float()

    def __call__(self, path: str) -> tuple[Tensor, Tensor]:
        """Features ``[C, E]`` and the gradient of the learned tokens for a fixed linear loss."""
        everything = torch.arange(len(self.prompts), device=self.device)
        out, leaves = [], [t for t in (self.ctx, self.own) if t is not None]
        for leaf in leaves:
            leaf.grad = None
        for index in everything.split(len(everything) if path == "shared prefix" else self.chunk):
            with autocast(self.device, self.prec):
                features = self.features(path, index)
            (features * self.probe[index]).sum().backward()
            out.append(features.detach())
        return torch.cat(out), torch.cat([leaf.grad.flatten() for leaf in leaves])


# -- memory -----------------------------------------------------------------------------------------------------------


def status_mb(key: str) -> float:
    """``VmRSS`` or ``VmHWM`` (its peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {key}: memory can be measured on Linux only")


def step_memory(step: Step, path: str) -> float:
    """Growth of the peak memory during one step, in MB, after a step of few classes that loads what is loaded once."""
    step.features(path, torch.arange(min(2, len(step.prompts)), device=step.device)).sum().backward()
    gc.collect()
    if step.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(path)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # else the step finds room in what building the model has freed, and nothing grows
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = status_mb("VmRSS")
    step(path)
    return status_mb("VmHWM") - before


def memory(args, path: str, classes: int) -> float:
    """:func:`step_memory` in a fresh process."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.text_tower",
        "--measure-memory",
        path,
        "--classes",
        str(classes),
        "--device",
        args.device,
        "--prec",
        args.prec,
        "--threads",
        str(args.threads),
        "--ctx",
        str(args.ctx),
        "--class-wise",
        str(args.class_wise),
        "--chunk",
        str(classes),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def memory_of_one_pass(args, path: str, classes: int) -> tuple[float, bool]:
    """MB of all classes in one pass, and whether that is a straight line through two smaller measurements."""
    if path == "shared prefix" or classes <= args.chunk:
        return memory(args, path, classes), False
    low, high = args.chunk // 2, args.chunk
    a, b = memory(args, path, low), memory(args, path, high)
    return b + (b - a) / (high - low) * (classes - high), True


# -- table ------------------------------------------------------------------------------------------------------------


def measure(args, classes: int) -> list[dict]:
    """One row per path."""
    step = Step(args.device, args.prec, classes, args.ctx, args.chunk, args.class_wise)
    results = {path: step(path) for path in PATHS}  # also warms up
    passes = -(-classes // args.chunk)
    repeats = max(1, args.repeats // passes)  # several passes even out a busy moment themselves
    seconds = turns({path: lambda path=path: step(path) for path in PATHS}, Clock(step.device, 1), repeats)  # noqa: F821  (deleted only after its last use)
    del step
    reference_features, reference_gradient = results["77 tokens"]
    rows, reference_mb = [], None
    for path in PATHS:
        features, gradient = results[path]
        mb, estimated = memory_of_one_pass(args, path, classes)
        reference_mb = reference_mb or mb
        rows.append(
            {
                "classes": classes,
                "path": path,
                **{
                    key: f"{seconds[path][i]:.3f} ({seconds['77 tokens'][i] / seconds[path][i]:.1f}x)"
                    for i, key in enumerate(("wall (s)", "processor (s)"))
                },
                "memory (MB)": f"{'~' * estimated}{mb:.0f}",
                "of 77": f"{mb / reference_mb:.3f}",
                "features": f"{float((features - reference_features).abs().max()):.1e}",
                "gradient": f"{float((gradient - reference_gradient).norm() / reference_gradient.norm()):.1e}",
            }
        )
    return rows


def turns(calls: dict[str, Callable[[], object]], clock: Clock, repeats: int) -> dict[str, tuple[float, float]]:
    """Least wall and least processor seconds of each call; they take turns so that a busy moment does not hit one alone.

    A training loop repeats one call, so each of several turns begins with a call that is not timed: what the other calls left
    behind (caches, memory given back to the system) is theirs.
    """
    best = {name: (float("inf"), float("inf")) for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            if repeats > 1:
                call()
            best[name] = tuple(map(min, best[name], clock.once(call)))
    return best


def page(args, rows: Sequence[dict]) -> str:
    from tabulate import tabulate

    own = f" --class-wise {args.class_wise}" if args.class_wise else ""
    options = f"--device {args.device} --prec {args.prec} --classes {' '.join(map(str, args.classes))} --ctx {args.ctx}{own} --threads {args.threads}"
    return (
        f"Written by `python -m benchmarks.text_tower {options} --repeats {args.repeats} --write`. ViT-B/16's text tower with\n"
        f"random weights, {args.ctx} context tokens, forward and backward; least of {args.repeats} repeats in turns, each after a call\n"
        f"that is not timed (one repeat without it where the classes take several passes). Class names are {len(NOUNS)} of Caltech101,\n"
        f"repeated. The unshared paths run in passes of at most {args.chunk} classes; their memory is that of a single\n"
        f"pass, where marked ~ on a straight line through the measurements at {args.chunk // 2} and {args.chunk} classes. *Features*:\n"
        "largest absolute difference to 77 tokens,\n"
        "not normalised. *Gradient*: relative L2 difference. Wall time counts only on an idle machine; processor time with\n"
        "--threads 1 compares the paths on a busy one.\n\n"
        f"{conditions(args.device, args.threads)}.\n\n"
        + tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)
        + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 50, 100, 1000])
    parser.add_argument("--ctx", type=int, default=16, help="context tokens")
    parser.add_argument(
        "--class-wise", type=int, default=0, metavar="BLOCK", help="tokens per class from this block on; 0: none"
    )
    parser.add_argument("--chunk", type=int, default=100, help="most classes per pass of the unshared paths")
    parser.add_argument("--repeats", type=int, default=3)
    add_flags(parser, DOC.name)
    parser.add_argument("--measure-memory", choices=PATHS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.measure_memory:
        step = Step(args.device, args.prec, args.classes[0], args.ctx, args.chunk, args.class_wise)
        print(json.dumps(step_memory(step, args.measure_memory)))
        return
    rows = []
    for classes in args.classes:
        rows += measure(args, classes)
        print(*(f"{key} {value}" for key, value in rows[-1].items()), sep=", ", flush=True)
    text = page(args, rows)
    print(text)
    if args.write:
        doc = DOC.with_name("text_tower_class_wise.md") if args.class_wise else DOC
        title = f"Text tower, tokens per class from block {args.class_wise} on: one training step"
        write_section(
            doc,
            title if args.class_wise else "Text tower: one training step",
            device_name(args.device, args.prec),
            text,
        )


if __name__ == "__main__":
    main()
