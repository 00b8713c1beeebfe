"""What would keep the runs of a plan from starting, found before the first one starts: keys, data, weights, folders."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

#: what a command has looked up already: all runs of a sweep share a few datasets and backbones
_known: dict[str, str] = {}
#: how many pictures the datasets among them have
_counts: dict[str, DataCounts] = {}
#: neither which images of a dataset are drawn nor which classes are used decides whether it is there
DRAW = ("DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES")


@dataclass(frozen=True)
class DataCounts:
    """Pictures of all classes: of training by class name (empty where there are none), in all, and of the test."""

    train: dict[str, int]
    all_train: int
    test: int


def problems(steps: Iterable, planned: Iterable) -> list[str]:
    """A line for every problem of ``steps``, with the run that has it first.

    Args:
        steps: that are to run. planned: all of the plan, whose folders will be there.
    """
    folders = {str(step.output.absolute()) for step in planned}
    found: dict[str, list[str]] = {}
    for step in steps:
        for problem in step.problems(folders):
            found.setdefault(problem, []).append(step.title)
    return [
        f"{titles[0]}{f' and {len(titles) - 1} more' if len(titles) > 1 else ''}: {problem}"
        for problem, titles in found.items()
    ]


def problems_of(config: Callable, folders: set[str]) -> list[str]:
    """What keeps one run from starting.

    Args:
        config: gives its configuration, or raises. folders: absolute paths of run folders that the plan makes.
    """
    from dassl_prompts.engine import TRAINER_REGISTRY, check_availability, check_transforms

    try:
        cfg = config()
        check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
        check_transforms(cfg.INPUT.TRANSFORMS)
    except (ValueError, OSError) as error:
        return [str(error)]
    name = cfg.MODEL.BACKBONE.NAME
    parts = [settings_problem(cfg), *missing_folders(cfg, folders)]
    if not any(part.startswith("DATASET.") for part in parts):  # which the dataset would only say again
        parts.append(data_problem(cfg))
    if name:
        from dassl_prompts.models.availability import weights_problem

        parts.append(look_up(f"weights {name}", lambda: weights_problem(name)))
    return [part for part in parts if part]


def settings_problem(cfg) -> str:
    """What the method says of its own keys; "" if it has nothing against them."""
    from dassl_prompts.engine import TRAINER_REGISTRY

    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    try:
        # as a trainer does first, before it has anything but the settings
        trainer.check_cfg(object.__new__(trainer), cfg)
    except (ValueError, AssertionError) as error:
        return str(error) or f"{cfg.TRAINER.NAME} refuses its settings, see its check_cfg"
    except AttributeError:  # a lab's own that looks at more than the settings; the run will tell
        pass
    return ""


def look_up(key: str, find: Callable[[], str]) -> str:
    """``find()``, once per command."""
    if key not in _known:
        _known[key] = find()
    return _known[key]


def missing_folders(cfg, folders: set[str]) -> list[str]:
    """Folders and files that the method reads, are not there and are not made by the plan either."""
    from dassl_prompts.engine.places import FREE_PLACES
    from dassl_prompts.engine.resume import flat_config, foreign_keys, text_values

    values = text_values(flat_config(cfg))
    foreign = foreign_keys(values, cfg.TRAINER.NAME)
    return [
        f"{key}: there is no {value}"
        for key, value in values.items()
        if value
        and key.endswith(("_DIR", "_FILE", "_JSON", "_WEIGHTS"))
        and key not in foreign
        and key not in FREE_PLACES
        and os.path.abspath(os.path.expanduser(value)) not in folders
        and not os.path.exists(os.path.expanduser(value))
    ]


def data_problem(cfg) -> str:
    """Why the dataset cannot be built; "" if it can."""
    key = data_key(cfg)
    return look_up(key, lambda: build_data(cfg, key))


def data_counts(cfg) -> DataCounts | None:
    """How many pictures the dataset has; None if it cannot be built or has no parts of that kind."""
    data_problem(cfg)
    return _counts.get(data_key(cfg))


def data_key(cfg) -> str:
    """What the configurations of one dataset have in common, however it is drawn from."""
    from dassl_prompts.engine.config import flatten

    return f"data {[p for p in flatten(cfg).items() if p[0].startswith(('DATASET.', 'CIR.')) and p[0] not in DRAW]}"


def build_data(cfg, key: str) -> str:
    """Build the dataset with all its images and classes, and write down neither a split nor a draw of shots; count them."""
    from dassl_prompts.classification.split_files import unkept
    from dassl_prompts.engine import build_dataset

    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASET.NUM_SHOTS = -1
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    cfg.freeze()
    try:
        with unkept(), contextlib.redirect_stdout(io.StringIO()):
            data = build_dataset(cfg)
    except (OSError, ValueError, KeyError) as error:
        return " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    train, test = getattr(data, "train_x", None), getattr(data, "test", None)
    if train and test:
        classes = Counter(item.classname for item in train if hasattr(item, "label"))
        _counts[key] = DataCounts(dict(classes) if len(classes) > 1 else {}, len(train), len(test))
    return ""
