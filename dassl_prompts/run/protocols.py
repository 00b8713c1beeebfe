"""The evaluation protocols of the CoOp line of work, and which recipe each method uses in them.

A protocol turns a :class:`Job` into steps and, once they are finished, into table rows. Folder names follow CoOp's scripts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path

from dassl_prompts.run.steps import Step

XD_TARGETS = (
    "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft", "sun397", "dtd", "eurosat",
    "ucf101",
)  # fmt: skip
DG_TARGETS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
EMOJI_STYLES = ("emoji_noto", "emoji_twemoji", "emoji_openmoji")

#: default configuration file per trainer and protocol; "*" serves every other protocol
RECIPES: dict[str, dict[str, str]] = {
    "ZeroshotCLIP": {"*": "vit_b16"},
    "ZeroshotCLIP2": {"*": "vit_b16"},
    "CoOp": {"base2new": "vit_b16_ctxv1", "xd": "vit_b16_ep50_ctxv1", "dg": "vit_b16_ep50_ctxv1", "*": "vit_b16"},
    "CoCoOp": {"*": "vit_b16_c4_ep10_batch1_ctxv1"},
    "IVLP": {"*": "vit_b16_c2_ep5_batch4_2+2ctx"},
    "MaPLe": {"xd": "vit_b16_c2_ep5_batch4_2ctx_cross_datasets", "dg": "vit_b16_c2_ep5_batch4_2ctx_cross_datasets",
              "*": "vit_b16_c2_ep5_batch4_2ctx"},
    "PromptSRC": {"xd": "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets", "dg": "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets",
                  "fewshot": "vit_b16_c2_ep50_batch4_4+4ctx_few_shot", "*": "vit_b16_c2_ep20_batch4_4+4ctx"},
    "PromptKD": {"xd": "vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets", "*": "vit_b16_c2_ep20_batch8_4+4ctx"},
    "AttriPrompt": {"*": "vit_b16_ep20_batch4"},
    "DPC_CoOp": {"*": "vit_b16_ep20"},
    "DPC_MaPLe": {"*": "vit_b16_ep20"},
    "DPC_PromptSRC": {"*": "vit_b16_ep20"},
    "DPC_PromptKD": {"*": "vit_b16_ep20"},
    "DPC_IVLP": {"*": "vit_b16_ep20"},
}  # fmt: skip
#: the recipe with which a backbone is trained as stage 1 of DPC (specs/dpc.md 4.9)
STAGE1_RECIPES = {
    "CoOp": "vit_b16_ep20_lr35",
    "MaPLe": "vit_b16_c2_ep20_batch32_2ctx",
    "PromptSRC": "vit_b16_c2_ep20_batch32_4+4ctx",
    "PromptKD": "vit_b16_c2_ep20_batch32_4+4ctx",
    "IVLP": "vit_b16_c2_ep5_batch4_2+2ctx",
}


@dataclass(frozen=True)
class Job:
    """A method on a dataset with one seed.

    Attributes:
        trainer: registered name. dataset: name of a file in configs/datasets. cfg: name of a file in
        configs/trainers/<trainer>; "" = the protocol's recipe. root: folder of the datasets. output: root of the output tree.
        tag: appended to the folder name of the configuration, to keep variants apart. opts: KEY VALUE pairs.
    """

    trainer: str
    dataset: str
    seed: int
    shots: int = 16
    cfg: str = ""
    root: str = "data"
    output: Path = Path("output")
    tag: str = ""
    opts: tuple[str, ...] = field(default=())

    def recipe(self, protocol: str) -> Job:
        """This job with its configuration file chosen."""
        if self.cfg:
            return self
        if self.dataset.startswith("emoji"):
            return replace(self, cfg="emoji_tiny")
        table = RECIPES.get(self.trainer)
        if table is None:
            raise ValueError(f"no default recipe for trainer {self.trainer}: give --cfg (known: {', '.join(RECIPES)})")
        return replace(self, cfg=table.get(protocol, table["*"]))

    @property
    def folder(self) -> Path:
        """``<dataset>/shots_<n>/<trainer>/<cfg>/seed<s>``."""
        name = f"{self.cfg}_{self.tag}" if self.tag else self.cfg
        return Path(self.dataset) / f"shots_{self.shots}" / self.trainer / name / f"seed{self.seed}"

    def args(self, *extra: str, dataset: str = "") -> tuple[str, ...]:
        return (
            "--root", self.root, "--seed", str(self.seed), "--trainer", self.trainer,
            "--dataset-config-file", config_file("datasets", dataset or self.dataset),
            "--config-file", config_file("trainers", self.trainer, self.cfg),
            *extra,
        )  # fmt: skip


def config_file(*parts: str) -> str:
    """Path of a shipped YAML file, or of a user's own.

    Raises:
        ValueError: listing what there is.
    """
    own = Path(parts[-1])
    if own.suffix == ".yaml" and own.is_file():
        return str(own)
    folder = Path(str(resources.files("dassl_prompts.configs"))).joinpath(*parts[:-1])
    path = folder / f"{parts[-1]}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.yaml")) if folder.is_dir() else []
        raise ValueError(f"no configuration {path}; known: {', '.join(known) or 'none'}")
    return str(path)


def train_step(job: Job, title: str, output: Path, *opts: str) -> Step:
    return Step(title, output, job.args("DATASET.NUM_SHOTS", str(job.shots), *job.opts, *opts))


def eval_step(job: Job, title: str, output: Path, model_dir: Path | None, *opts: str, dataset: str = "") -> Step:
    load = ("--model-dir", str(model_dir)) if model_dir else ()
    args = job.args(*load, "--eval-only", "DATASET.NUM_SHOTS", str(job.shots), *job.opts, *opts, dataset=dataset)
    return Step(title, output, args)


def subsample(which: str) -> tuple[str, str]:
    return "DATASET.SUBSAMPLE_CLASSES", which


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
    return [
        *prerequisites(job),
        train_step(job, f"{name}: train and test base classes", base, *subsample("base"), *teacher_opts(job)),
        eval_step(job, f"{name}: test new classes", new, base, *subsample("new"), *teacher_opts(job)),
    ]


def stage1(job: Job) -> Job:
    """The backbone's job that a DPC job builds on."""
    trainer = job.trainer.removeprefix("DPC_")
    emoji = job.dataset.startswith("emoji")
    return replace(job, trainer=trainer, cfg="emoji_tiny" if emoji else STAGE1_RECIPES[trainer], tag="", opts=())


def dpc_base2new(job: Job, name: str, base: Path, new: Path) -> list[Step]:
    """Stage 1 (shared with the plain backbone), stage 2, both evaluations of both."""
    first = base2new(stage1(job))
    ckpt = ("TRAINER.DPC.CKPT_DIR", str(first[-2].output))
    opts = teacher_opts(stage1(job))
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


# -- PromptKD needs a teacher ----------------------------------------------------------------------------------------


def prerequisites(job: Job) -> list[Step]:
    return []


def teacher_opts(job: Job) -> tuple[str, ...]:
    return ()


# -- few-shot, cross-dataset, domain generalisation -----------------------------------------------------------------


def fewshot(job: Job) -> list[Step]:
    """Train on all classes, test on all classes."""
    job = job.recipe("fewshot")
    output = job.output / "fewshot" / job.folder
    name = f"{job.trainer} on {job.dataset}, {job.shots} shots, seed {job.seed}"
    if is_zero_shot(job):
        return [eval_step(job, f"{name}: test", output, None)]
    return [*prerequisites(job), train_step(job, f"{name}: train and test", output, *teacher_opts(job))]


def transfer(protocol: str, job: Job, targets: tuple[str, ...]) -> list[Step]:
    """Train on the source with all classes, test on every target without training."""
    job = job.recipe(protocol)
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
    """One row: the source, every target, and the mean over targets."""
    values = [accuracy(step) for step in steps]
    row = {"method": job.trainer, f"{job.dataset} (source)": values[0], **dict(zip(targets, values[1:]))}
    return [{**row, "mean of targets": sum(values[1:]) / len(values[1:])}]


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
