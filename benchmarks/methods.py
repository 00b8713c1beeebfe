"""Training step and evaluation of the prompt-learning methods against the computation of the official repositories.

    python -m benchmarks.methods [--device cuda --prec amp --batch 32] [--write]

--write renews the section of the device in docs/benchmarks/methods.md.

Both sides share random weights, prompts, images and classes. "Official" runs open_clip's own blocks as the official
code does: every class at 77 positions, class features again for every batch, CoCoOp one image after the other, PromptKD's
teacher text for every batch. The column "difference" compares the numbers that both produce.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Clock, add_flags, autocast
from benchmarks.official import Official
from benchmarks.pages import DOCS, conditions, device_name, write_section
from dassl_prompts.classification.prompted import Prompts, normalize
from dassl_prompts.models import load_clip
from dassl_prompts.trainers.cocoop import CoCoOpModel
from dassl_prompts.trainers.coop import CoOpModel
from dassl_prompts.trainers.ivlp import IVLPModel
from dassl_prompts.trainers.maple import MaPLeModel
from dassl_prompts.trainers.promptkd.trainer import PromptKDModel, distillation_loss
from dassl_prompts.trainers.promptsrc import PromptSRCModel, consistency_losses

DOC = DOCS / "methods.md"
NOUNS = (
    "accordion anchor ant barrel bass beaver binocular bonsai brain buddha butterfly camera cannon "
    "car_side cellphone chair "
    "chandelier cougar_body crab crayfish crocodile_head cup dalmatian dollar_bill dolphin dragonfly "
    "electric_guitar "
    "elephant emu euphonium ewer ferry flamingo_head garfield gerenuk gramophone grand_piano hawksbill "
    "headphone hedgehog "
    "helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop llama lobster"
).split()


METHODS = ("CoOp", "CoCoOp", "IVLP", "MaPLe", "PromptSRC", "PromptKD")


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
        features = self.official.image(images)
        return torch.cat([net.logits(f[None], t) for f, t in zip(features, self.official_texts(features), strict=True)])

    def official_texts(self, features: Tensor) -> Tensor:
        """CoCoOp's class features ``[B, C, E]``, one image after the other."""
        contexts = (self.net.condition(feature[None]).text[0, 0] for feature in features)
        return torch.stack([self.official.text(self.tokens, ctx) for ctx in contexts])

    # -- losses ----------------------------------------------------------------------------------------------

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Our training step's loss."""
        net = self.net
        if self.teacher:
            return 1000 * distillation_loss(net(images), net.teacher_logits(net.teacher_image_features(images)))
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
        return self.regulated(self.official_image(images, prompts), self.official_text(prompts), frozen, labels)


def build(args, folder: Path, name: str, file: str):
    """A random open_clip model and the package's CLIP with the same weights."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(name, force_quick_gelu=True).eval().requires_grad_(False)
    torch.save(model.state_dict(), folder / file)
    clip = load_clip(str(folder / file), precision=args.precision, device=args.device, activation="quickgelu")
    return Official(model.to(args.device)), clip


def class_names(count: int) -> list[str]:
    return (NOUNS * (1 + count // len(NOUNS)))[:count]


class Bench:
    """Builds the models once and measures the methods one after the other."""

    def __init__(self, args, folder: Path):
        self.args, self.folder, self.device = args, folder, torch.device(args.device)
        self.clock = Clock(self.device, args.repeats)
        self.official, self.clip = build(args, folder, "ViT-B-16", "student.pt")
        self.images = torch.randn(args.batch, 3, 224, 224, device=self.device)
        self.test = torch.randn(args.test_batches, args.test_batch, 3, 224, 224, device=self.device)

    def case(self, method: str, classes: int) -> Case:
        names, clip = class_names(classes), self.clip
        torch.manual_seed(1)
        if method == "PromptKD":
            large, large_clip = build(self.args, self.folder, "ViT-L-14", "teacher.pt")
            net = PromptKDModel(clip, names, IVLPModel(large_clip, names, 4, 4, 9, 9), 4, 9)
            return Case("PromptKD (4, depth 9; ViT-L/14)", net.to(self.device), self.official, large)
        name, make = {
            "CoOp": ("CoOp (16 tokens)", lambda: CoOpModel(clip, names, 16)),
            "CoCoOp": ("CoCoOp (4 tokens)", lambda: CoCoOpModel(clip, names, 4, "a photo of a")),
            "IVLP": ("IVLP (2+2, depth 9)", lambda: IVLPModel(clip, names, 2, 2, 9, 9)),
            "MaPLe": ("MaPLe (2, depth 9)", lambda: MaPLeModel(clip, names, 2, "a photo of a", 9)),
            "PromptSRC": ("PromptSRC (4+4, depth 9)", lambda: PromptSRCModel(clip, names, 4, 4, 9, 9)),
        }[method]
        return Case(name, make().to(self.device), self.official)

    def rows(self, method: str) -> list[dict]:
        case = self.case(method, self.args.classes)
        rows = [self.training_step(case)]
        if case.teacher is None:
            rows.append(self.text_side(case))
        rows.append(self.evaluation(case))
        if method == "CoCoOp":  # text for every image: the gain grows with the classes
            rows += [self.evaluation(self.case(method, count)) for count in self.args.more_classes]
        return rows

    def autocast(self):
        return autocast(self.device, self.args.prec)

    def image_tower(self) -> dict:
        """The frozen image tower alone on a training batch: what no method can go below."""

        def forward():
            with torch.no_grad(), self.autocast():
                return self.clip.encode_image(self.images)

        forward()
        seconds, memory = self.clock(forward), self.peak(forward)
        return {
            "method": "frozen image tower alone",
            "what": f"batch {self.args.batch}",
            "ours (s)": f"{seconds:.4f}",
            "images/s": f"{self.args.batch / seconds:.1f}",
            **memory,
        }

    def peak(self, fn: Callable[[], object]) -> dict:
        """Peak memory of a call on a GPU; the CPU has no such counter."""
        if self.device.type != "cuda":
            return {}
        torch.cuda.reset_peak_memory_stats()
        fn()
        return {"memory (MiB)": f"{torch.cuda.max_memory_allocated() / 2**20:.0f}"}

    def training_step(self, case: Case) -> dict:
        labels = torch.randint(self.args.classes, (self.args.batch,), device=self.device)

        def step(loss):
            with self.autocast():
                value = loss(self.images, labels)
            return gradients(value, case.net)

        case.net.train()
        row = self.compare(
            case,
            f"training step, batch {self.args.batch}",
            lambda: step(case.official_loss),
            lambda: step(case.loss),
            relative,
        )
        learned = sum(p.numel() for p in case.net.prompt_parameters())
        return {
            **row,
            "images/s": f"{self.args.batch / float(row['ours (s)']):.1f}",
            "learned parameters": f"{learned:,}",
            **self.peak(lambda: step(case.loss)),
        }

    def text_side(self, case: Case) -> dict:
        """Class features and their gradient to the prompts; CoCoOp's for every image of a training batch."""
        net = case.net
        leaves = [p for name, p in net.named_parameters() if p.requires_grad and is_text(name)]
        per_image = isinstance(net, CoCoOpModel)
        count = (self.args.batch, self.args.classes) if per_image else (self.args.classes,)
        weights = torch.randn(*count, net.clip.embed_dim, device=self.device)
        features = normalize(torch.randn(self.args.batch, net.clip.embed_dim, device=self.device))

        def text(encode):
            with self.autocast():
                value = (encode().float() * weights).sum()
            return torch.cat([g.flatten() for g in torch.autograd.grad(value, leaves)])

        ours = lambda: net.encode_classes(net.condition(features) if per_image else net.emit())
        official = lambda: case.official_texts(features) if per_image else case.official_text(net.emit())
        return self.compare(case, "text side, forward + backward", lambda: text(official), lambda: text(ours), relative)

    def evaluation(self, case: Case) -> dict:
        """A small test set: our class matrix is computed once in it, the official one for every batch."""
        net = case.net.eval()

        def evaluate(logits):
            net.train(False)  # forgets the class matrix
            with torch.no_grad(), self.autocast():
                return torch.stack([logits(images) for images in self.test])

        what = f"evaluation, {len(net.classnames)} classes, {self.args.test_batches} batches of {self.args.test_batch}"
        return self.compare(case, what, lambda: evaluate(case.official_logits), lambda: evaluate(net), largest)

    def compare(self, case: Case, what: str, official: Callable, ours: Callable, difference: Callable) -> dict:
        """Seconds of both after one comparing call each, and how far apart the results are."""
        apart = difference(official(), ours())
        slow, fast = self.clock(official), self.clock(ours)
        return {
            "method": case.name,
            "what": what,
            "official (s)": f"{slow:.4f}",
            "ours (s)": f"{fast:.4f}",
            "faster": f"{slow / fast:.1f}x",
            "difference": f"{apart:.1e}",
        }


def gradients(loss: Tensor, net) -> Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, net.prompt_parameters())])


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm())


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def is_text(name: str) -> bool:
    """Parameters that enter the text tower."""
    return not name.startswith(("clip.", "image_encoder.")) and "proj" not in name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--more-classes", type=int, nargs="*", default=[100, 200], help="for CoCoOp's evaluation")
    parser.add_argument("--batch", type=int, default=4, help="training images per step")
    parser.add_argument("--test-batch", type=int, default=8, help="images of a test batch")
    parser.add_argument("--test-batches", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    add_flags(parser, DOC.name)
    args = parser.parse_args()
    from dassl_prompts.models import resolve_precision

    torch.set_num_threads(args.threads)
    args.prec = args.precision = resolve_precision(args.prec, torch.device(args.device))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        rows = [bench.image_tower()]
        for method in args.methods:
            done = bench.rows(method)
            print(table(done), flush=True)
            rows += done
    if args.write:
        write_section(
            DOC,
            "Prompt-learning methods: training step and evaluation",
            device_name(args.device, args.prec),
            page(args, rows),
        )


def table(rows: Sequence[dict]) -> str:
    from tabulate import tabulate

    columns = (
        "method",
        "what",
        "official (s)",
        "ours (s)",
        "faster",
        "difference",
        "images/s",
        "memory (MiB)",
        "learned parameters",
    )
    used = [column for column in columns if any(column in row for row in rows)]
    return tabulate(
        [[row.get(c, "") for c in used] for row in rows], headers=used, tablefmt="github", disable_numparse=True
    )


def page(args, rows: Sequence[dict]) -> str:
    options = (
        f"--device {args.device} --prec {args.prec} --methods {' '.join(args.methods)} --classes {args.classes} --more-classes {' '.join(map(str, args.more_classes))} "
        f"--batch {args.batch} --test-batch {args.test_batch} --test-batches {args.test_batches} --repeats {args.repeats} --threads {args.threads}"
    )
    return f"""Written by `python -m benchmarks.methods {options} --write`.
Random ViT-B/16 (teacher ViT-L/14) weights, {args.classes} classes where no other number is given, 224 px, least of {args.repeats}
timed calls after a first one. *Official*: 77 positions per class, class features again for every batch, CoCoOp image by
image, PromptKD's teacher text for every batch. *Difference*: of the gradients (relative L2); in evaluation
of the logits (largest absolute one).

{conditions(args.device, args.threads)}.

{table(rows)}"""


if __name__ == "__main__":
    main()
