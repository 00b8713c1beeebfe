"""Own pictures as a dataset: ``folder:/my/pictures``, ``csv:/my/labels.csv``, and how any dataset is called in folders and tables."""

from __future__ import annotations

import os
from pathlib import Path

#: how a dataset of one's own begins -> the configuration in configs/datasets that reads it
SCHEMES = {"folder": "own", "csv": "own", "captions": "own_captions"}
#: registered names of these datasets; their DATASET.ROOT is the folder or the list itself
OWN = ("OwnPictures", "OwnCaptions")


def split_scheme(dataset: str) -> tuple[str, str] | None:
    """``folder:~/x`` -> ``("folder", "/home/me/x")``; None for the name of a configuration.

    Raises:
        ValueError: nothing stands behind the colon, or a configuration's name has one.
    """
    scheme, colon, place = dataset.partition(":")
    if dataset.endswith(".yaml"):
        return None
    if not colon and os.sep in dataset:
        scheme = "csv" if dataset.lower().endswith((".csv", ".tsv", ".txt")) else "folder"
        raise ValueError(f"dataset {dataset!r}: a path of own pictures is given as {scheme}:{dataset}")
    if not colon:
        return None
    if scheme not in SCHEMES or not place:
        raise ValueError(
            f"dataset {dataset!r}: own data is given as {', '.join(f'{name}:PATH' for name in SCHEMES)}, other data by the "
            "name of a file in configs/datasets"
        )
    return scheme, os.path.abspath(os.path.expanduser(place))


def is_own(dataset: str) -> bool:
    """Whether ``dataset`` is a folder or a list of one's own."""
    return split_scheme(dataset) is not None


def data_name(dataset: str) -> str:
    """A dataset's name in folders and titles: that of the folder, the list or the YAML file."""
    own = split_scheme(dataset)
    if own:
        return place_name(own[1])
    return Path(dataset).stem if dataset.endswith(".yaml") else dataset


def place_name(place: str) -> str:
    """The name of own data that lies at ``place``: of a list without its suffix."""
    path = Path(place)
    return (path.stem if path.suffix.lower() in (".csv", ".tsv", ".txt") else path.name) or "pictures"


def config_name(dataset: str) -> str:
    """The name by which recipes know a dataset: of a YAML file without its place; "" for own data."""
    return "" if is_own(dataset) else data_name(dataset)


def called(name: str, place: str) -> str:
    """What a dataset with the registered ``name`` and ``DATASET.ROOT`` ``place`` is called: own data all have one name."""
    return place_name(place) if name in OWN else name


def with_captions(dataset: str) -> str:
    """The captions of a ``csv:`` list; other datasets as they are.

    Raises:
        ValueError: a ``folder:``, which has none.
    """
    own = split_scheme(dataset)
    if not own:
        return dataset
    if own[0] == "folder":
        raise ValueError(
            f"{dataset} has no captions: list them, csv:/my/captions.csv with the columns path and caption"
        )
    return f"captions:{own[1]}"
