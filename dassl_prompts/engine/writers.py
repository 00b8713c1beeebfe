"""Where the scalars of a run go besides its log: tensorboard, a CSV, Weights & Biases; ``TRAIN.LOG_TO`` names them."""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Protocol

CSV_FILE = "scalars.csv"


class Writer(Protocol):
    """What :class:`torch.utils.tensorboard.SummaryWriter` offers of itself here."""

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None: ...

    def close(self) -> None: ...


class CsvWriter:
    """``scalars.csv``: step, tag, value; a resumed run goes on in its file."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        path = folder / CSV_FILE
        new = not path.exists()
        self.file = open(path, "a", encoding="utf-8", newline="", buffering=1)
        self.rows = csv.writer(self.file, lineterminator="\n")
        if new:
            self.rows.writerow(("step", "tag", "value"))

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        self.rows.writerow(("" if step is None else step, tag, repr(float(value))))

    def close(self) -> None:
        self.file.close()


class WandbWriter:
    """A run of Weights & Biases named after the output folder; its own variables (``WANDB_PROJECT``, ``WANDB_MODE offline``, ...) apply."""

    def __init__(self, folder: Path, config: dict[str, Any]):
        import wandb

        project = os.environ.get("WANDB_PROJECT", "dassl-prompts")
        self.run = wandb.init(project=project, name="/".join(folder.parts[-5:]), dir=folder, config=config)
        self.steps: dict[str, None] = {}

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        # epochs and batches count apart, so that each family of tags has an axis of its own
        axis = f"{tag.partition('/')[0]}/step"
        if axis not in self.steps:
            self.steps[axis] = None
            self.run.define_metric(axis, hidden=True)
            self.run.define_metric(f"{tag.partition('/')[0]}/*", step_metric=axis)
        self.run.log({tag: float(value), axis: step or 0})

    def close(self) -> None:
        self.run.finish()


def tensorboard(folder: Path, config: dict[str, Any]) -> Writer:
    """Tensorboard's files in ``folder/tensorboard``."""
    from torch.utils.tensorboard import SummaryWriter

    print(f"Initialize tensorboard (log_dir={folder / 'tensorboard'})")
    return SummaryWriter(log_dir=str(folder / "tensorboard"))


#: name in TRAIN.LOG_TO -> how to open it, and the package that it needs
KINDS: dict[str, tuple[Callable[[Path, dict[str, Any]], Writer], str]] = {
    "tensorboard": (tensorboard, "tensorboard"),
    "csv": (CsvWriter, ""),
    "wandb": (WandbWriter, "wandb"),
}
DEFAULT = ("tensorboard",)


def check_kinds(names: Iterable[str]) -> None:
    """
    Raises:
        ValueError: an unknown name, or a package that was asked for is missing; tensorboard is only used where it is installed.
    """
    for name in names:
        if name not in KINDS:
            raise ValueError(f"TRAIN.LOG_TO has {name!r}; choose among {', '.join(KINDS)}")
        package = KINDS[name][1]
        if package and name not in DEFAULT and importlib.util.find_spec(package) is None:
            raise ValueError(f"TRAIN.LOG_TO {name} needs the package {package}: pip install {package}")


class Writers:
    """Several writers as one.

    Args:
        names: of :data:`KINDS`. folder: of the run. config: its settings, flat.
    """

    def __init__(self, names: Iterable[str], folder: str | os.PathLike, config: dict[str, Any]):
        names = list(dict.fromkeys(names))
        check_kinds(names)
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        there = [n for n in names if not KINDS[n][1] or importlib.util.find_spec(KINDS[n][1]) is not None]
        self.writers = [KINDS[name][0](folder, config) for name in there]

    def add_scalar(self, tag: str, value: float, step: int | None = None) -> None:
        for writer in self.writers:
            writer.add_scalar(tag, value, step)

    def close(self) -> None:
        for writer in self.writers:
            writer.close()
