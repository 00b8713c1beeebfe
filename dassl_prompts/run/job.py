"""A job (method, dataset, seed) and how it becomes the command lines of single runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dassl_prompts.configs.own_data import config_name, data_name, is_own
from dassl_prompts.configs.recipes import (
    RECIPES,
    config_file,
    data_flags,
    dataset_options,
    embedded_recipe,
    stage1_recipe,
)
from dassl_prompts.engine.config import read_yaml_file
from dassl_prompts.run.steps import Step

__all__ = ["RECIPES", "Job", "config_file", "eval_step", "stage1_recipe", "subsample", "train_step"]

#: whether the tests say which half of the classes a picture is from
TASKS = ("known", "unknown")
#: keys that tell the runs of a protocol apart, and what to use instead
RESERVED = {
    "DATASET.NAME": "--dataset",
    "DATASET.ROOT": "--root",
    "DATASET.NUM_SHOTS": "--shots",
    "SEED": "--seed",
    "DATASET.SUBSAMPLE_CLASSES": "another protocol",
    "OUTPUT_DIR": "--output",
    "TRAINER.NAME": "--trainer",
    "RESUME": "the same command again: it goes on where a run stopped",
}


@dataclass(frozen=True)
class Job:
    """A method on a dataset with one seed.

    Raises:
        ValueError: options are not KEY VALUE pairs, or name a key that the protocol sets.

    Attributes:
        trainer: registered name. dataset: name of a file in configs/datasets, a YAML file of one's own, ``folder:PATH`` or
        ``csv:PATH``. cfg: name of a file in
        configs/trainers/<trainer>; "" = the protocol's recipe. root: folder of the datasets. output: root of
        the output tree. tag: appended to the folder name of the configuration, to keep variants apart. opts:
        KEY VALUE pairs of this method's runs. common: KEY VALUE pairs of every run, also of a first stage or
        a teacher that other jobs share. epochs: of this method and of its first stage, not of a teacher;
        0 = as the recipes say. task: "unknown" also tests base and new classes together. targets: what xd and dg test on; () = as
        the protocol says. template: hand-written prompt of the dataset. class_names: YAML file that renames classes of own data.
        imports: modules to import first, that register more. resources: of its runs, see :class:`Step`.
    """

    trainer: str
    dataset: str
    seed: int
    shots: int = 16
    cfg: str = ""
    root: str = "data"
    output: Path = Path("output")
    tag: str = ""
    opts: tuple[str, ...] = ()
    common: tuple[str, ...] = ()
    epochs: int = 0
    task: str = "known"
    targets: tuple[str, ...] = ()
    template: str = ""
    class_names: str = ""
    imports: tuple[str, ...] = ()
    resources: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        for dataset in (self.dataset, *self.targets):
            data_name(dataset)  # refuses a wrong prefix
        if self.class_names and not is_own(self.dataset):
            raise ValueError(f"--class-names renames classes of own data (folder:, csv:), not of {self.dataset}")
        if self.template and self.template.count("{}") != 1:
            raise ValueError(
                f'--template {self.template!r} has to hold {{}} once for the class name, as in "a photo of a {{}}."'
            )
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; choose one of {', '.join(TASKS)}")
        if self.epochs and "OPTIM.MAX_EPOCH" in (*self.opts[::2], *self.common[::2]):
            raise ValueError("OPTIM.MAX_EPOCH contradicts epochs, which sets it for both stages: give one of them")
        for opts in (self.opts, self.common):
            if len(opts) % 2:
                raise ValueError(f"options come as KEY VALUE pairs, but {opts[-1]!r} has no value: {' '.join(opts)}")
            for key in set(opts[::2]) & RESERVED.keys():
                raise ValueError(f"{key} is set by the protocol: use {RESERVED[key]}")

    def recipe(self, protocol: str) -> Job:
        """This job with its configuration file chosen."""
        if self.cfg:
            return self
        if embedded := embedded_recipe(self.dataset):
            return replace(self, cfg=embedded)
        table = RECIPES.get(self.trainer)
        if table is None:
            raise ValueError(f"no default recipe for trainer {self.trainer}: give --cfg (known: {', '.join(RECIPES)})")
        return replace(self, cfg=table.get(protocol, table["*"]))

    @property
    def data_name(self) -> str:
        """The dataset in folders and titles."""
        return data_name(self.dataset)

    @property
    def folder(self) -> Path:
        """``<dataset>/shots_<n>/<trainer>/<cfg>/seed<s>``."""
        cfg = Path(self.cfg).stem if self.cfg.endswith(".yaml") else self.cfg
        name = "_".join(filter(None, (cfg, f"epochs{self.epochs}" if self.epochs else "", self.tag)))
        return Path(self.data_name) / f"shots_{self.shots}" / self.trainer / name / f"seed{self.seed}"

    def args(self, *opts: str, flags: tuple[str, ...] = (), dataset: str = "") -> tuple[str, ...]:
        """The command line: ``flags`` stand before every KEY VALUE pair, behind which argparse reads none."""
        return (
            *(word for module in self.imports for word in ("--import", module)),
            "--seed",
            str(self.seed),
            "--trainer",
            self.trainer,
            *data_flags(dataset or self.dataset, self.root),
            "--config-file",
            config_file("trainers", self.trainer, self.cfg),
            *flags,
            *(self.own_options if dataset in ("", self.dataset) else ()),
            *self.dataset_options,
            *shortened(self),
            *opts,
        )

    @property
    def own_options(self) -> tuple[str, ...]:
        """What the user says of this dataset's words."""
        given = {"DATASET.TEMPLATE": self.template, "DATASET.CLASS_NAMES_FILE": self.class_names}
        return tuple(word for pair in given.items() if pair[1] for word in pair)

    @property
    def dataset_options(self) -> tuple[str, ...]:
        """What the authors set for this dataset; a configuration file of the user's own speaks for itself.

        DPC's second stage takes the shapes of its backbone's prompts from it, and keeps its own objective.
        """
        if self.cfg.endswith(".yaml"):
            return ()
        opts = dataset_options(self.trainer.removeprefix("DPC_"), config_name(self.dataset), self.shots)
        if not self.trainer.startswith("DPC_"):
            return opts
        shapes = [pair for pair in zip(opts[::2], opts[1::2]) if pair[0].endswith(("N_CTX", "PROMPT_DEPTH"))]
        return tuple(word for pair in shapes for word in pair)


def shortened(job: Job) -> tuple[str, ...]:
    """Options that give a run ``job.epochs`` epochs; PromptSRC's averaging window moves and narrows with them, in whole epochs."""
    if not job.epochs:
        return ()
    recipe = read_yaml_file(config_file("trainers", job.trainer, job.cfg))
    opts = ["OPTIM.MAX_EPOCH", str(job.epochs)]
    for key, value in recipe.get("TRAINER", {}).get("PROMPTSRC", {}).items():
        if key in ("GPA_MEAN", "GPA_STD"):
            opts += [f"TRAINER.PROMPTSRC.{key}", str(max(1, round(value * job.epochs / recipe["OPTIM"]["MAX_EPOCH"])))]
    return tuple(opts)


def train_step(job: Job, title: str, output: Path, *opts: str, dataset: str = "") -> Step:
    return Step(
        title,
        output,
        job.args("DATASET.NUM_SHOTS", str(job.shots), *opts, *job.common, *job.opts, dataset=dataset),
    )


def eval_step(job: Job, title: str, output: Path, model_dir: Path | None, *opts: str, dataset: str = "") -> Step:
    load = ("--model-dir", str(model_dir)) if model_dir else ()
    args = job.args(
        "DATASET.NUM_SHOTS",
        str(job.shots),
        *opts,
        *job.common,
        *job.opts,
        flags=(*load, "--eval-only"),
        dataset=dataset,
    )
    return Step(title, output, args)


def subsample(which: str) -> tuple[str, str]:
    return "DATASET.SUBSAMPLE_CLASSES", which
