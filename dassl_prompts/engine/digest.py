"""Digests of what a result rests on and the configuration does not hold: the data's lists and names.

results.json keeps them, so that a change of the data between two runs is seen. Lists are hashed, not pixels:
reading every image would cost more than many a run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

#: hexadecimal digits kept: chance never makes two lists agree in 64 bits, and nobody forges one
DIGITS = 16


def digest(lines: Iterable[str]) -> str:
    """Digest of lines of text, in order."""
    found = hashlib.sha256()
    for line in lines:
        found.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return found.hexdigest()[:DIGITS]


def digests_of_lists(parts: Iterable[Sequence], root: str | os.PathLike) -> dict[str, str]:
    """Of full lists (train, val, test, before a few-shot draw): what all seeds and class subsets share.

    Args:
        root: image paths count relative to it, so that the data may move.
    """
    parts = [list(part) for part in parts]
    names = {item.label: item.classname for part in parts for item in part}
    prefix = os.path.join(os.path.abspath(root), "") if root else ""
    lines = (
        f"{number}\t{item.impath.removeprefix(prefix)}\t{item.label}\t{getattr(item, 'caption', '')}"
        for number, part in enumerate(parts)
        for item in part
    )
    return {
        "class names": digest(f"{label}\t{name}" for label, name in sorted(names.items())),
        "image lists": digest(lines),
    }


def data_digests(dataset: Any, cfg) -> dict[str, str]:
    """The digests of a dataset: those that it states (``dataset.digests``), else of its test images.

    A dataset of somebody else's has only been seen after its few-shot draw: its training images differ from
    seed to seed, and class subsets have lists of their own.
    """
    stated = getattr(dataset, "digests", None)
    if stated is not None:
        return dict(stated)
    which = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
    found = digests_of_lists([dataset.test or ()], cfg.DATASET.ROOT)
    return {f"{name} ({which} classes, test)": value for name, value in found.items()}


def differences(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """``what: old -> new`` for the digests that both have and that differ."""
    return [f"{key}: {old[key]} -> {new[key]}" for key in old if key in new and old[key] != new[key]]
