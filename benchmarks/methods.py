"""Training step and evaluation of the prompt-learning methods against the computation of the official
repositories.

    python benchmarks/methods.py [--device cuda --prec amp] [--write]     --write renews
    docs/benchmarks/methods.md

Both sides share random weights, prompts, images and classes. "Official" runs open_clip's own blocks as the
official code
does: every class at 77 positions, class features again for every batch, CoCoOp one image after the other,
PromptKD's teacher text for every batch. The last column compares the numbers that both produce.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.models import load_clip
from dassl_prompts.models.prompted import Prompts, normalize
from dassl_prompts.trainers.cocoop import CoCoOpModel
from dassl_prompts.trainers.coop import CoOpModel
from dassl_prompts.trainers.ivlp import IVLPModel
from dassl_prompts.trainers.maple import MaPLeModel
from dassl_prompts.trainers.promptkd import PromptKDModel, distillation_loss
from dassl_prompts.trainers.promptsrc import PromptSRCModel, consistency_losses

DOC = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "methods.md"
NOUNS = (
    "accordion anchor ant barrel bass beaver binocular bonsai brain buddha butterfly camera cannon "
    "car_side cellphone chair "
    "chandelier cougar_body crab crayfish crocodile_head cup dalmatian dollar_bill dolphin dragonfly "
    "electric_guitar "
    "elephant emu euphonium ewer ferry flamingo_head garfield gerenuk gramophone grand_piano hawksbill "
    "headphone hedgehog "
    "helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop llama lobster"
).split()


class Official:
    """The forward pass of the official repositories on an open_clip model."""

    def __init__(self, model):
        self.model = model

    @staticmethod
    def blocks(transformer, x: Tensor, overwrite: Callable[[int, Tensor], Tensor], mask=None) -> Tensor:
        batch_first = getattr(transformer, "batch_first", True)
        for i, block in enumerate(transformer.resblocks):
            x = overwrite(i, x)
            y = x if batch_first else x.transpose(0, 1)
            y = block(y, attn_mask=mask)
            x = y if batch_first else y.transpose(0, 1)
        return x

    def text(self, tokens: Tensor, ctx=None, deep=()) -> Tensor:
        """Normalised ``[C, E]`` at 77 positions."""
        m = self.model
        x = m.token_embedding(tokens)
        if ctx is not None:
            x = torch.cat([x[:, :1], ctx.expand(len(x), *ctx.shape[-2:]), x[:, 1 + ctx.shape[-2] :]], dim=1)
        x = x + m.positional_embedding

        def overwrite(i, x):
            if 1 <= i <= len(deep):
                d = deep[i - 1]
                return torch.cat(
                    [x[:, :1], d.to(x.dtype).expand(len(x), *d.shape), x[:, 1 + len(d) :]], dim=1
                )
            return x

        x = self.blocks(m.transformer, x, overwrite, m.attn_mask.to(x.dtype))
        return normalize(m.ln_final(x)[torch.arange(len(x)), tokens.argmax(-1)] @ m.text_projection)

    def image(self, images: Tensor, visual=None, deep=(), normalised=True) -> Tensor:
        """Normalised ``[B, E]`` with visual tokens at the end."""
        v = self.model.visual
        x = v.conv1(images).flatten(2).transpose(1, 2)
        x = (
            torch.cat([v.class_embedding.expand(len(x), 1, -1).to(x.dtype), x], dim=1)
            + v.positional_embedding
        )
        if visual is not None:
            x = torch.cat([x, visual.expand(len(x), *visual.shape)], dim=1)

        def overwrite(i, x):
            if 1 <= i <= len(deep):
                d = deep[i - 1]
                return torch.cat([x[:, : -len(d)], d.to(x.dtype).expand(len(x), *d.shape)], dim=1)
            return x

        x = v.ln_post(self.blocks(v.transformer, v.ln_pre(x), overwrite)[:, 0]) @ v.proj
        return normalize(x) if normalised else x


class Case:
    """One method: its model, both training losses, both evaluations.

    Args:
        name: row title. net: our model. official: the same towers the official way. teacher: PromptKD's,
        likewise.
    """

    def __init__(self, name: str, net, official: Official, teacher: Official | None = None):
        self.name, self.net, self.official, self.teacher = name, net, official, teacher
        self.tokens = net.class_prompts.tokens

    # -- features the official way ---------------------------------------------------------------------------

    def official_text(self, prompts: Prompts) -> Tensor:
        if self.teacher:
            taught = self.net.teacher.emit()
            with torch.no_grad():
                return self.teacher.text(self.tokens, taught.text, taught.text_deep)
        return self.official.text(self.tokens, prompts.text, prompts.text_deep)

    def official_image(self, images: Tensor, prompts: Prompts) -> Tensor:
        if self.teacher:
            raw = self.official.image(images, prompts.vision, prompts.vision_deep, normalised=False)
            return normalize(self.net.VPT_image_trans(raw))
        return self.official.image(images, prompts.vision, prompts.vision_deep)

    def official_logits(self, images: Tensor) -> Tensor:
        net = self.net
        if not isinstance(net, CoCoOpModel):
            prompts = net.emit()
            return net.logits(self.official_image(images, prompts), self.official_text(prompts))
        rows = []
        for feature in self.official.image(images):
            ctx = net.condition(feature[None]).text[0, 0]
            rows.append(net.logits(feature[None], self.official.text(self.tokens, ctx)))
        return torch.cat(rows)

    # -- losses ----------------------------------------------------------------------------------------------

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Our training step's loss."""
        net = self.net
        if self.teacher:
            return 1000 * distillation_loss(
                net(images), net.teacher_logits(net.teacher_image_features(images))
            )
        if not isinstance(net, PromptSRCModel):
            return F.cross_entropy(net(images), labels)
        prompts = net.emit()
        return self.regulated(
            net.encode_images(images, prompts),
            net.encode_classes(prompts),
            net.frozen_image_features(images),
            labels,
        )

    def regulated(self, image, text, frozen, labels) -> Tensor:
        """PromptSRC's objective from features."""
        d_text, d_image, kl = consistency_losses(image, text, frozen, self.net.text_target, self.net.scale)
        return F.cross_entropy(self.net.logits(image, text), labels) + 25 * d_text + 10 * d_image + kl

    def official_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The same loss the official way."""
        net, prompts = self.net, self.net.emit()
        if self.teacher:
            taught = net.teacher.emit()
            with torch.no_grad():
                features = self.teacher.image(images, taught.vision, taught.vision_deep)
            text = self.official_text(prompts)
            z_t = net.teacher.logits(features, text)
            return 1000 * distillation_loss(net.logits(self.official_image(images, prompts), text), z_t)
        if not isinstance(net, PromptSRCModel):
            return F.cross_entropy(self.official_logits(images), labels)
        with torch.no_grad():
            frozen = self.official.image(images)
        return self.regulated(
            self.official_image(images, prompts), self.official_text(prompts), frozen, labels
        )


class Clock:
    """Seconds of a call: the least of several, after the comparison has warmed it up."""

    def __init__(self, device: torch.device, repeats: int):
        self.device, self.repeats = device, repeats

    def __call__(self, fn: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(self.repeats):
            self.wait()
            start = time.perf_counter()
            fn()
            self.wait()
            best = min(best, time.perf_counter() - start)
        return best

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def build(args, folder: Path, name: str, file: str):
    """A random open_clip model and the package's CLIP with the same weights."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(name, force_quick_gelu=True).eval().requires_grad_(False)
    torch.save(model.state_dict(), folder / file)
    return Official(model.to(args.device)), load_clip(
        str(folder / file), precision=args.precision, device=args.device
    )


def make_cases(args, folder: Path) -> list[Case]:
    official, clip = build(args, folder, "ViT-B-16", "student.pt")
    names = (NOUNS * (1 + args.classes // len(NOUNS)))[: args.classes]
    torch.manual_seed(1)
    nets = {
        "CoOp (16 tokens)": lambda: CoOpModel(clip, names, 16),
        "CoCoOp (4 tokens)": lambda: CoCoOpModel(clip, names, 4, "a photo of a"),
        "IVLP (2+2, depth 9)": lambda: IVLPModel(clip, names, 2, 2, 9, 9),
        "MaPLe (2, depth 9)": lambda: MaPLeModel(clip, names, 2, "a photo of a", 9),
        "PromptSRC (4+4, depth 9)": lambda: PromptSRCModel(clip, names, 4, 4, 9, 9),
    }
    cases = [Case(name, make().to(args.device), official) for name, make in nets.items()]
    if "PromptKD" in args.methods:
        large, large_clip = build(args, folder, "ViT-L-14", "teacher.pt")
        teacher = IVLPModel(large_clip, names, 4, 4, 9, 9)
        net = PromptKDModel(clip, names, teacher, 4, 9).to(args.device)
        cases.append(Case("PromptKD (4, depth 9; ViT-L/14)", net, official, large))
    return [case for case in cases if case.name.split(" ")[0] in args.methods]


def gradients(loss: Tensor, net) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.prompt_parameters())])


def compare(row: dict, official: float, ours: float, difference: float) -> dict:
    times = {"official (s)": f"{official:.4f}", "ours (s)": f"{ours:.4f}"}
    return {**row, **times, "faster": f"{official / ours:.1f}x", "difference": f"{difference:.1e}"}


def measure(case: Case, args, clock: Clock) -> list[dict]:
    """Rows of one method: training step, text side, evaluation batch."""
    net, device = case.net, torch.device(args.device)
    autocast = lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=args.prec == "amp")  # noqa: E731
    images = torch.randn(args.batch, 3, 224, 224, device=device)
    labels = torch.randint(args.classes, (args.batch,), device=device)

    def step(loss):
        with autocast():
            value = loss(images, labels)
        return gradients(value, net)

    net.train()
    a, b = step(case.official_loss), step(case.loss)
    what = {"method": case.name, "what": f"training step, batch {args.batch}"}
    seconds = clock(lambda: step(case.official_loss)), clock(lambda: step(case.loss))
    rows = [compare(what, *seconds, float((a - b).norm() / a.norm()))]

    if not isinstance(net, CoCoOpModel) and case.teacher is None:
        weights = torch.randn(args.classes, net.clip.embed_dim, device=device)

        def text(encode):
            with autocast():
                value = (encode(net.emit()).float() * weights).sum()
            text_leaves = [p for n, p in net.named_parameters() if p.requires_grad and is_text(n)]
            return torch.cat([g.flatten() for g in torch.autograd.grad(value, text_leaves)])

        a, b = text(case.official_text), text(net.encode_classes)
        rows.append(compare({"method": case.name, "what": "text side, forward + backward"},
                            clock(lambda: text(case.official_text)), clock(lambda: text(net.encode_classes)),
                            float((a - b).norm() / a.norm())))  # fmt: skip

    net.eval()
    images = torch.randn(args.test_batch, 3, 224, 224, device=device)

    def evaluate(logits):
        with torch.no_grad(), autocast():
            return logits(images)

    a, b = evaluate(case.official_logits), evaluate(net)
    rows.append(compare({"method": case.name, "what": f"evaluation, batch {args.test_batch}"},
                        clock(lambda: evaluate(case.official_logits)), clock(lambda: evaluate(net)),
                        float((a - b).abs().max())))  # fmt: skip
    return rows


def is_text(name: str) -> bool:
    """Parameters that enter the text tower."""
    return not name.startswith(("clip.", "image_encoder.")) and "proj" not in name


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prec", default="fp32", choices=("fp32", "amp"))
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--batch", type=int, default=4, help="training images per step")
    parser.add_argument("--test-batch", type=int, default=8, help="images of the evaluation batch")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--methods", nargs="+", default=["CoOp", "CoCoOp", "IVLP", "MaPLe", "PromptSRC", "PromptKD"]
    )
    parser.add_argument("--write", action="store_true", help=f"write the table to {DOC}")
    args = parser.parse_args()
    from tabulate import tabulate

    from dassl_prompts.models import resolve_precision

    torch.set_num_threads(args.threads)
    args.precision = resolve_precision(args.prec, torch.device(args.device))
    args.prec = args.precision
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in make_cases(args, Path(folder)):
            rows += measure(case, args, Clock(torch.device(args.device), args.repeats))
            print(tabulate(rows[-3:], headers="keys", tablefmt="github"), flush=True)
    where = (
        torch.cuda.get_device_name()
        if args.device.startswith("cuda")
        else f"{args.threads} threads, {platform.machine()}"
    )
    options = (
        f"--device {args.device} --prec {args.prec} --classes {args.classes} --batch {args.batch} "
        f"--test-batch {args.test_batch} --repeats {args.repeats} --threads {args.threads}"
    )
    text = f"""# Prompt-learning methods: training step and evaluation

Written by `python benchmarks/methods.py {options} --write`.
Random ViT-B/16 (teacher ViT-L/14) weights, {args.classes} classes, 224 px, least of {args.repeats} timed calls
after a first one. *Official*: 77 positions per class, class features again for every batch, CoCoOp image by
image, PromptKD's teacher text for every batch. *Difference*: of the gradients (relative L2); in evaluation
of the logits (largest absolute one).

{where}, {args.prec}, torch {torch.__version__}, load of the machine at the end {os.getloadavg()[0]:.1f}.

{tabulate(rows, headers="keys", tablefmt="github")}
"""
    print(text)
    if args.write:
        DOC.parent.mkdir(parents=True, exist_ok=True)
        DOC.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
