"""The evaluation protocols of the CoOp line of work, and which recipe each method uses in them.

A protocol turns a :class:`Job` into steps and, once they are finished, into table rows. Folder names follow CoOp's scripts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from dassl_prompts.run.distillation import distill_base2new, distill_targets, distilled_dir, teacher_opts
from dassl_prompts.run.job import STAGE1_RECIPES, Job, eval_step, subsample, train_step
from dassl_prompts.run.steps import Step

XD_TARGETS = (
    "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd", "eurosat",
    "ucf101",
)  # fmt: skip
DG_TARGETS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
EMOJI_STYLES = ("emoji_noto", "emoji_twemoji", "emoji_openmoji")


# -- base-to-new ------------------------------------------------------------------------------------------------------


def harmonic_mean(a: float, b: float) -> float:
    return 0.0 if a + b == 0 else 2 * a * b / (a + b)


def is_zero_shot(job: Job) -> bool:
    return job.trainer.startswith("Zeroshot")


def base2new(job: Job) -> list[Step]:
    """Train on base classes, test on base and, separately, on new classes."""
    job = job.recipe("base2new")
    root = job.output / "base2new"
    base, new = root / "train_base" / job.folder, root / "test_new" / job.folder
    name = f"{job.trainer} on {job.dataset}, seed {job.seed}"
    if is_zero_shot(job):
        base = root / "test_base" / job.folder
        return [
            eval_step(job, f"{name}: test base classes", base, None, *subsample("base")),
            eval_step(job, f"{name}: test new classes", new, None, *subsample("new")),
        ]
    if job.trainer.startswith("DPC_"):
        return dpc_base2new(job, name, base, new)
    if job.trainer == "PromptKD":
        return distill_base2new(job, name)
    return [
        train_step(job, f"{name}: train and test base classes", base, *subsample("base")),
        eval_step(job, f"{name}: test new classes", new, base, *subsample("new")),
    ]


def stage1(job: Job) -> Job:
    """The backbone's job that a DPC job builds on."""
    trainer = job.trainer.removeprefix("DPC_")
    emoji = job.dataset.startswith("emoji")
    return replace(job, trainer=trainer, cfg="emoji_tiny" if emoji else STAGE1_RECIPES[trainer], tag="", opts=())


def dpc_base2new(job: Job, name: str, base: Path, new: Path) -> list[Step]:
    """Stage 1 (shared with the plain backbone), stage 2, both evaluations of both."""
    backbone = stage1(job)
    first = base2new(backbone)
    trained = distilled_dir(backbone) if backbone.trainer == "PromptKD" else first[-2].output
    ckpt = ("TRAINER.DPC.CKPT_DIR", str(trained))
    opts = teacher_opts(backbone)
    return [
        *first,
        train_step(job, f"{name}: stage 2 and test base classes", base, *subsample("base"), *ckpt, *opts),
        eval_step(job, f"{name}: test new classes", new, base, *subsample("new"), *ckpt, *opts),
    ]


def base2new_rows(job: Job) -> list[dict]:
    """Base, New and H of every method of the job, in percent."""
    steps = base2new(job)
    rows = []
    for trained, tested in zip(steps[-4::2], steps[-3::2]) if job.trainer.startswith("DPC_") else [steps[-2:]]:
        base, new = accuracy(trained), accuracy(tested)
        rows.append({"method": trained.results()["trainer"], "Base": base, "New": new, "HM": harmonic_mean(base, new)})
    if len(rows) == 2:
        rows.append({"method": "difference", **{k: rows[1][k] - rows[0][k] for k in ("Base", "New", "HM")}})
    return rows


def accuracy(step: Step) -> float:
    return step.results()["test"]["accuracy"]


# -- few-shot, cross-dataset, domain generalisation -----------------------------------------------------------------


def fewshot(job: Job) -> list[Step]:
    """Train on all classes, test on all classes."""
    job = job.recipe("fewshot")
    output = job.output / "fewshot" / job.folder
    name = f"{job.trainer} on {job.dataset}, {job.shots} shots, seed {job.seed}"
    if is_zero_shot(job):
        return [eval_step(job, f"{name}: test", output, None)]
    if job.trainer == "PromptKD":
        raise ValueError("PromptKD distils on unlabelled images, it has no few-shot protocol: choose base2new or xd")
    return [train_step(job, f"{name}: train and test", output)]


def transfer(protocol: str, job: Job, targets: tuple[str, ...]) -> list[Step]:
    """Train on the source with all classes, test on every target without training."""
    job = job.recipe(protocol)
    if job.trainer == "PromptKD":
        return distill_targets(protocol, job, targets)
    source = job.output / protocol / "train" / job.folder
    name = f"{job.trainer}, trained on {job.dataset}, seed {job.seed}"
    train = [eval_step(job, f"{name}: test the source", source, None)] if is_zero_shot(job) else [
        train_step(job, f"{name}: train and test the source", source)
    ]
    model = None if is_zero_shot(job) else source
    tests = [
        eval_step(job, f"{name}: test {target}", job.output / protocol / "test" / target / job.folder, model, dataset=target)
        for target in targets
    ]
    return [*train, *tests]


def xd_targets(job: Job) -> tuple[str, ...]:
    return EMOJI_STYLES if job.dataset.startswith("emoji") else XD_TARGETS


def dg_targets(job: Job) -> tuple[str, ...]:
    return EMOJI_STYLES if job.dataset.startswith("emoji") else DG_TARGETS


def xd(job: Job) -> list[Step]:
    """Cross-dataset transfer: ImageNet to the ten other sets (the emoji set: to the other artists)."""
    return transfer("xd", job, xd_targets(job))


def dg(job: Job) -> list[Step]:
    """Domain generalisation: ImageNet to its four variants (the emoji set: to the other artists)."""
    return transfer("dg", job, dg_targets(job))


def fewshot_rows(job: Job) -> list[dict]:
    return [{"method": job.trainer, "dataset": job.dataset, "shots": job.shots, "accuracy": accuracy(fewshot(job)[-1])}]


def transfer_rows(steps: list[Step], targets: tuple[str, ...], job: Job) -> list[dict]:
    """One row: the source (PromptKD has no student for it), every target, and the mean over targets."""
    values = [accuracy(step) for step in steps[-len(targets) :]]
    source = {} if job.trainer == "PromptKD" else {f"{job.dataset} (source)": accuracy(steps[0])}
    return [{"method": job.trainer, **source, **dict(zip(targets, values)), "mean of targets": sum(values) / len(values)}]


def xd_rows(job: Job) -> list[dict]:
    return transfer_rows(xd(job), xd_targets(job), job)


def dg_rows(job: Job) -> list[dict]:
    return transfer_rows(dg(job), dg_targets(job), job)


@dataclass(frozen=True)
class Protocol:
    """How to run a job and how to read it."""

    steps: Callable[[Job], list[Step]]
    rows: Callable[[Job], list[dict]]
    help: str


PROTOCOLS = {
    "base2new": Protocol(base2new, base2new_rows, "train on base classes, test base and new classes"),
    "fewshot": Protocol(fewshot, fewshot_rows, "train and test on all classes"),
    "xd": Protocol(xd, xd_rows, "train on the source, test on ten other datasets"),
    "dg": Protocol(dg, dg_rows, "train on the source, test on shifted versions of it"),
}
