"""Dassl's pickled few-shot draws, read without executing anything that is pickled in them."""

from __future__ import annotations

import os
import pickle

from dassl_prompts.engine import Datum


class _PickledDatum:
    """Inert stand-in for ``dassl.data.datasets.base_dataset.Datum``: holds attributes, runs nothing."""


class _DatumUnpickler(pickle.Unpickler):
    """Maps the one class that a few-shot cache holds to the stand-in and refuses every other global."""

    def find_class(self, module, name):
        if name == "Datum" and module.split(".")[-1] in ("base_dataset", "datasets"):
            return _PickledDatum
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is no part of a few-shot draw")


def read_dassl_cache(
    path: str | os.PathLike, train: dict[str, Datum], val: dict[str, Datum]
) -> tuple[list[Datum], list[Datum]]:
    """The items that a ``shot_N-seed_S.pkl`` of Dassl's names, in its order.

    The pickle holds absolute paths of the machine that wrote it. Each is matched by its longest trailing part that is
    a relative path of the split, so the dataset folder may have moved.

    Args:
        train, val: the split's items by relative path. Without val the file needs none (ImageNet).

    Raises:
        ValueError: the file is damaged or unsafe, or names an image or label that the split does not hold.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            content = _DatumUnpickler(file).load()
        drawn = {part: [vars(item) for item in content[part]] for part in (("train", "val") if val else ("train",))}
    # what a damaged or foreign pickle makes the unpickler raise
    except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, LookupError, ImportError) as error:
        raise ValueError(f"few-shot cache {path} cannot be read: {error!r}; delete it to draw again") from error
    return (
        [_find(attributes, train, f"{path}, train") for attributes in drawn["train"]],
        [_find(attributes, val, f"{path}, val") for attributes in drawn.get("val", [])],
    )


def _find(attributes: dict, known: dict[str, Datum], origin: str) -> Datum:
    impath = str(attributes.get("_impath", ""))
    parts = impath.replace("\\", "/").split("/")
    for start in range(len(parts)):
        item = known.get("/".join(parts[start:]))
        if item is not None:
            break
    else:
        raise ValueError(f"few-shot cache {origin}: {impath!r} is not in this split; delete the file to draw again")
    if item.label != attributes.get("_label"):
        raise ValueError(
            f"few-shot cache {origin}: {impath!r} has label {attributes.get('_label')} there and {item.label} in this "
            "split; delete the file to draw again"
        )
    return item
