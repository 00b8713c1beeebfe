"""Finding runs: every folder with a results.json, and what was left half-written."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dassl_prompts.configs.own_data import OWN, called
from dassl_prompts.engine.places import BACKBONE, FREE_PLACES, LAYOUT, plain_name
from dassl_prompts.engine.reading import DamagedFile, read_json

RESULTS = "results.json"
#: settings that do not change a result, or that every run of a group has its own value of
FREE = {
    *FREE_PLACES,
    "VERBOSE",
    "SEED",
    "VERSION",
    "USE_CUDA",
    "DATASET.SUBSAMPLE_CLASSES",
    "DATASET.NUM_SHOTS",  # runs are grouped by the shots of their job; a distillation takes all images
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.MAX_CORRUPT",
    "FEATURES.MAX_GB",
    "TRAIN.LOG_TO",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.RESUME_FREQ",
    "TRAIN.CHECKPOINT_FULL",
    "TEST.PER_CLASS_RESULT",
    "TEST.COMPUTE_CMAT",
    "TEST.NO_TEST",
    "TEST.EVALUATOR",
    "TRAINER.DPC.TASK",
}
#: what the notes call the digests; all others are of the data
DIGEST_NAMES = {"backbone": "weights of the backbone"}
SEED_FOLDER = re.compile(r"seed\d+")
CLASS_SETS = ("base", "new")


def method_of_folder(path: str) -> str:
    """``.../dtd/shots_16/CoOp/vit_b16/seed1`` -> ``CoOp/vit_b16, 16 shots``; other paths as they are."""
    match = LAYOUT.search(path.strip("'"))
    return "{trainer}/{cfg}, {shots} shots".format(**match.groupdict()) if match else path


@dataclass(frozen=True)
class Run:
    """A finished training or evaluation run.

    Attributes:
        folder: where it lies. results: its results.json. layout: parts of the folder's name where it has the
        usual form.
    """

    folder: Path
    results: dict
    layout: dict[str, str | None]

    @property
    def trainer(self) -> str:
        return self.results["trainer"]

    @property
    def seed(self) -> int:
        return self.results["seed"]

    @property
    def backbone(self) -> str:
        """Its name; of a file without the place."""
        return plain_name(self.results.get("backbone", ""))

    @property
    def classes(self) -> str:
        """all, base or new; union where pictures of base and new classes were scored against all classes."""
        if self.setting("TEST.EVALUATOR") == "Union":
            return "union"
        return self.results.get("classes", "all")

    @property
    def shots(self) -> int:
        """Of the job; a distillation run has DATASET.NUM_SHOTS 0 in a folder of 16 shots."""
        return int(self.layout.get("shots") or self.results.get("shots", -1))

    @property
    def cfg(self) -> str:
        """Name of the recipe, with the tag: the folder above the seed's, or below the method's."""
        above = [
            folder.parent.name for folder in (self.folder, *self.folder.parents) if SEED_FOLDER.fullmatch(folder.name)
        ]
        names = (
            self.layout.get("cfg"),
            *above,
            self.folder.name if self.folder.parent.name == self.trainer else "",
        )
        return next(filter(None, names), self.folder.parent.name)

    @cached_property
    def config(self) -> dict[str, str]:
        """Settings that decide the result, and the digests of data and weights; another run's folder stands for
        its method, not its seed or dataset."""
        kept = {k: v for k, v in self.results.get("config", {}).items() if k not in FREE}
        kept = {k: self.without_place(k, v) for k, v in kept.items()}
        return {**kept, **{DIGEST_NAMES.get(k, f"DATASET: {k}"): v for k, v in self.results.get("digests", {}).items()}}

    def without_place(self, key: str, value: str) -> str:
        """A config value as what it names: another run's folder by its method, a file by its content."""
        if key.endswith("DIR"):
            return method_of_folder(value)
        if key == BACKBONE:
            return repr(self.backbone)
        return self.results.get("contents", {}).get(key, value)

    def setting(self, key: str) -> str:
        """A config value as plain text, "" if there is none."""
        return self.results.get("config", {}).get(key, "").strip("'\"")

    @property
    def dataset(self) -> str:
        """What is tested: the dataset's registered name, for FDRD with the domain; own pictures by their folder's or list's."""
        name = self.results["dataset"]
        if name in OWN:
            return called(name, self.setting("DATASET.ROOT"))
        domain = self.setting("DATASET.FDRD_DOMAIN") if name == "FDRD" else ""
        return f"{name} {domain}".strip()

    @property
    def source(self) -> str:
        """The dataset's configuration file that the model was trained on, as far as folder names say."""
        taught = LAYOUT.search(self.setting("TRAINER.PROMPTKD.TEACHER_DIR")) if self.trainer == "PromptKD" else None
        return (taught or self.layout)["dataset"] if taught or self.layout else ""

    @property
    def is_target(self) -> bool:
        """Whether this is a test on another dataset than the one trained on."""
        return bool(self.layout) and (self.layout["target"] or self.layout["dataset"]) != self.source

    @property
    def protocol(self) -> str:
        """base2new, transfer, accuracy, retrieval or composed: which table the run belongs to."""
        metrics = self.metrics
        if any(name.startswith("i2t_r") for values in metrics.values() for name in values):
            return "retrieval"
        if any(name.startswith("R@") for values in metrics.values() for name in values):
            return "composed"
        if self.layout.get("protocol") in ("transfer", "base2new"):
            return self.layout["protocol"]
        return "base2new" if self.classes in (*CLASS_SETS, "union") else "accuracy"

    @cached_property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Results by split, ``{"test": {"accuracy": 54.1, ...}}``, without what is no finite number."""
        found = {}
        for split, values in self.results.items():
            if isinstance(values, dict) and split not in ("config", "train"):
                numbers = {k: float(v) for k, v in values.items() if is_number(v)}
                if numbers:
                    found[split] = numbers
        return found

    @property
    def accuracy(self) -> float | None:
        return self.metrics.get("test", {}).get("accuracy")


@dataclass(frozen=True)
class Unfinished:
    """A run folder without a finished result, and why."""

    folder: Path
    why: str


def run_folders(root: Path) -> Iterator[tuple[Path, bool]]:
    """Folders below ``root`` that look like runs, by name, and whether they have a results.json."""
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        has_results = RESULTS in files
        if has_results or "console.txt" in files or any(name.startswith("log.txt") for name in files):
            yield Path(folder), has_results


def is_number(value: object) -> bool:
    """Whether a result is a finite number; JSON's integers have no bound, and true is none."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


#: what the entries of results.json are; dict: of texts
SHAPE = {
    **dict.fromkeys(("trainer", "dataset", "classes", "backbone", "kind"), str),
    **dict.fromkeys(("seed", "shots"), int),
    **dict.fromkeys(("config", "digests", "contents"), dict),
}


def is_a(value: object, kind: type) -> bool:
    """Whether a value is of a kind of :data:`SHAPE`."""
    if kind is dict:
        return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
    return isinstance(value, kind) and not isinstance(value, bool)


def read_run(folder: Path, root: Path) -> Run | Unfinished:
    """The run in ``folder``, or what is wrong with it."""
    path = folder / RESULTS
    try:
        results = read_json(path)
    except DamagedFile as error:
        return Unfinished(folder, f"{RESULTS} is damaged ({error})")
    except OSError as error:
        return Unfinished(folder, f"{RESULTS} cannot be read ({error.strerror})")
    lacking = [key for key in ("trainer", "dataset", "seed") if not isinstance(results, dict) or key not in results]
    if lacking:
        return Unfinished(folder, f"{RESULTS} has no {lacking[0]!r}: not one of ours")
    odd = [key for key, kind in SHAPE.items() if key in results and not is_a(results[key], kind)]
    if odd:
        return Unfinished(folder, f"{RESULTS} is damaged ({odd[0]!r} is {str(results[odd[0]])[:40]!r})")
    if not results.get("finished"):
        return Unfinished(folder, "started, not finished")
    match = LAYOUT.search(os.path.relpath(folder, root.parent).replace(os.sep, "/"))
    run = Run(folder, results, match.groupdict() if match else {})
    return (
        run
        if run.metrics
        else Unfinished(folder, "finished without a result (TEST.NO_TEST, or a submission for a test server)")
    )


def find_runs(root: str | Path) -> tuple[list[Run], list[Unfinished]]:
    """All runs below ``root``.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    root = Path(root).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}")
    runs, unfinished = [], []
    for folder, has_results in run_folders(root):
        found = (
            read_run(folder, root) if has_results else Unfinished(folder, f"no {RESULTS}: ended before its first epoch")
        )
        (runs if isinstance(found, Run) else unfinished).append(found)
    return runs, unfinished
