"""A job (method, dataset, seed) and how it becomes the command lines of single runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from dassl_prompts.run.steps import Step

#: default configuration file per trainer and protocol; "*" serves every other protocol
RECIPES: dict[str, dict[str, str]] = {
    "ZeroshotCLIP": {"*": "vit_b16"},
    "ZeroshotCLIP2": {"*": "vit_b16"},
    "CoOp": {"base2new": "vit_b16_ctxv1", "xd": "vit_b16_ep50_ctxv1", "dg": "vit_b16_ep50_ctxv1", "*": "vit_b16"},
    "CoCoOp": {"*": "vit_b16_c4_ep10_batch1_ctxv1"},
    "IVLP": {"xd": "vit_b16_c2_ep2_batch4_2+2ctx_cross_datasets", "dg": "vit_b16_c2_ep2_batch4_2+2ctx_cross_datasets",
             "*": "vit_b16_c2_ep5_batch4_2+2ctx"},
    "MaPLe": {"xd": "vit_b16_c2_ep5_batch4_2ctx_cross_datasets", "dg": "vit_b16_c2_ep5_batch4_2ctx_cross_datasets",
              "*": "vit_b16_c2_ep5_batch4_2ctx"},
    "PromptSRC": {"xd": "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets", "dg": "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets",
                  "fewshot": "vit_b16_c2_ep50_batch4_4+4ctx_few_shot", "*": "vit_b16_c2_ep20_batch4_4+4ctx"},
    "PromptKD": {"xd": "vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets", "dg": "vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets",
                 "*": "vit_b16_c2_ep20_batch8_4+4ctx"},
    "AttriPrompt": {"xd": "vit_b16_ep5_batch4_cross_datasets", "dg": "vit_b16_ep5_batch4_cross_datasets",
                    "fewshot": "vit_b16_ep50_batch4_few_shot", "*": "vit_b16_ep20_batch4"},
    "DPC_CoOp": {"xd": "vit_b16_ep20_xd", "dg": "vit_b16_ep20_xd", "*": "vit_b16_ep20"},
    "DPC_MaPLe": {"xd": "vit_b16_ep20_xd", "dg": "vit_b16_ep20_xd", "*": "vit_b16_ep20"},
    "DPC_PromptSRC": {"xd": "vit_b16_ep20_xd", "dg": "vit_b16_ep20_xd", "*": "vit_b16_ep20"},
    "DPC_PromptKD": {"*": "vit_b16_ep20"},
    "DPC_IVLP": {"xd": "vit_b16_ep20_xd", "dg": "vit_b16_ep20_xd", "*": "vit_b16_ep20"},
}  # fmt: skip
#: the recipe with which a backbone is trained as stage 1 of DPC (specs/dpc.md 4.9); across datasets it is the backbone's own
STAGE1_RECIPES = {
    "CoOp": "vit_b16_ep20_lr35",
    "MaPLe": "vit_b16_c2_ep20_batch32_2ctx",
    "PromptSRC": "vit_b16_c2_ep20_batch32_4+4ctx",
    "PromptKD": "vit_b16_c2_ep20_batch32_4+4ctx",
    "IVLP": "vit_b16_c2_ep5_batch4_2+2ctx",
}
EMOJI_STAGE1_RECIPES = {"CoOp": "emoji_tiny_stage1"}
#: keys that tell the runs of a protocol apart, and what to use instead
RESERVED = {
    "DATASET.NAME": "--dataset", "DATASET.ROOT": "--root", "DATASET.NUM_SHOTS": "--shots", "SEED": "--seed",
    "DATASET.SUBSAMPLE_CLASSES": "another protocol", "OUTPUT_DIR": "--output", "TRAINER.NAME": "--trainer",
    "RESUME": "the same command again: it goes on where a run stopped",
}  # fmt: skip


def stage1_recipe(trainer: str, dataset: str, protocol: str = "base2new") -> str:
    """The recipe of a backbone that DPC builds on; ``protocol`` "transfer" is cross-dataset or domain generalisation.

    Raises:
        ValueError: no such backbone.
    """
    if dataset.startswith("emoji"):
        return EMOJI_STAGE1_RECIPES.get(trainer, "emoji_tiny")
    if trainer not in STAGE1_RECIPES:
        raise ValueError(f"DPC has no recipe for the backbone {trainer}; known: {', '.join(STAGE1_RECIPES)}")
    return RECIPES[trainer]["xd"] if protocol == "transfer" else STAGE1_RECIPES[trainer]


@dataclass(frozen=True)
class Job:
    """A method on a dataset with one seed.

    Raises:
        ValueError: options are not KEY VALUE pairs, or name a key that the protocol sets.

    Attributes:
        trainer: registered name. dataset: name of a file in configs/datasets. cfg: name of a file in
        configs/trainers/<trainer>; "" = the protocol's recipe. root: folder of the datasets. output: root of
        the output tree. tag: appended to the folder name of the configuration, to keep variants apart. opts:
        KEY VALUE pairs of this method's runs. common: KEY VALUE pairs of every run, also of a first stage or
        a teacher that other jobs share.
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

    def __post_init__(self):
        for opts in (self.opts, self.common):
            if len(opts) % 2:
                raise ValueError(
                    f"options come as KEY VALUE pairs, but {opts[-1]!r} has no value: {' '.join(opts)}"
                )
            for key in set(opts[::2]) & RESERVED.keys():
                raise ValueError(f"{key} is set by the protocol: use {RESERVED[key]}")

    def recipe(self, protocol: str) -> Job:
        """This job with its configuration file chosen."""
        if self.cfg:
            return self
        if self.dataset.startswith("emoji"):
            return replace(self, cfg="emoji_tiny")
        table = RECIPES.get(self.trainer)
        if table is None:
            raise ValueError(
                f"no default recipe for trainer {self.trainer}: give --cfg (known: {', '.join(RECIPES)})"
            )
        return replace(self, cfg=table.get(protocol, table["*"]))

    @property
    def folder(self) -> Path:
        """``<dataset>/shots_<n>/<trainer>/<cfg>/seed<s>``."""
        cfg = Path(self.cfg).stem if self.cfg.endswith(".yaml") else self.cfg
        name = f"{cfg}_{self.tag}" if self.tag else cfg
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


def train_step(job: Job, title: str, output: Path, *opts: str, dataset: str = "") -> Step:
    return Step(
        title,
        output,
        job.args("DATASET.NUM_SHOTS", str(job.shots), *opts, *job.common, *job.opts, dataset=dataset),
    )


def eval_step(
    job: Job, title: str, output: Path, model_dir: Path | None, *opts: str, dataset: str = ""
) -> Step:
    load = ("--model-dir", str(model_dir)) if model_dir else ()
    args = job.args(
        *load,
        "--eval-only",
        "DATASET.NUM_SHOTS",
        str(job.shots),
        *opts,
        *job.common,
        *job.opts,
        dataset=dataset,
    )
    return Step(title, output, args)


def subsample(which: str) -> tuple[str, str]:
    return "DATASET.SUBSAMPLE_CLASSES", which
