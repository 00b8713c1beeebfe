"""CoOp's split files: read, also those that were made elsewhere, checked, written."""

from __future__ import annotations

import contextlib
import difflib
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import NamedTuple

from dassl_prompts.engine import Datum
from dassl_prompts.engine.files import write_json
from dassl_prompts.engine.reading import read_json

PARTS = ("train", "val", "test")


class Splits(NamedTuple):
    """Lists of Datum. ``val`` may be empty (ImageNet's variants have none)."""

    train: list[Datum]
    val: list[Datum]
    test: list[Datum]


#: whether splits that are drawn are written down
_kept: ContextVar[bool] = ContextVar("_kept", default=True)
#: what other programs call the three lists
OTHER_NAMES = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


def read_split(path: str | os.PathLike, image_root: str | os.PathLike) -> Splits:
    """Read a split file ``{"train": [[relative path, label, class name], ...], "val": ..., "test": ...}``.

    Files made elsewhere are read where their meaning is certain, and a line says how: backslashes, absolute paths
    inside the image folder, labels from 1, spellings of a class name that differ in case or underscores, no
    ``val``. An empty ``train`` is data to be tested on only.

    Args:
        path: the JSON file, such as CoOp's ``split_zhou_Caltech101.json``.
        image_root: the folder that its paths are relative to.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a JSON file, or its labels and class names contradict each other.
    """
    content, root = read_json(path), os.fspath(image_root)
    _check_lists(content, path)
    content = {part: content.get(part, []) for part in PARTS}
    for line in _make_ordinary(content, root):
        print(f"{path}: {line}")
    splits = Splits(*(to_data(content[part], root, f"{path}, {part}") for part in PARTS))
    check_labels(splits if splits.train else splits._replace(train=splits.test), path)
    return splits


def _check_lists(content: object, path: str | os.PathLike) -> None:
    keys = {key: content.get(key) for key in PARTS} if isinstance(content, dict) else {}
    needed = [key for key in PARTS if key != "val" or key in content] if keys else PARTS
    if keys and all(isinstance(keys[key], list) for key in needed):
        if "val" in content:
            return
        needed = []
    others = [key for key in content if key not in PARTS] if isinstance(content, dict) else []
    meant = {key: OTHER_NAMES.get(key.lower(), key.lower()) for key in others}
    near = [f"{key!r} is called {name!r} here" for key, name in meant.items() if name in PARTS and name not in content]
    if needed or near:
        hint = f": {', '.join(near)}" if near else ""
        raise ValueError(f"split file {path} must hold an object with the lists train, val and test{hint}")


def _make_ordinary(content: dict[str, list], root: str) -> Iterator[str]:
    """Change entries whose meaning is certain into the form that CoOp writes; yields what was changed.

    Entries of another shape are left for :func:`to_data` to refuse.
    """
    for part in PARTS:
        content[part] = [list(e) if isinstance(e, list) else e for e in content[part]]
    entries = [e for part in PARTS for e in content[part] if isinstance(e, list) and len(e) == 3]
    entries = [e for e in entries if isinstance(e[0], str) and type(e[1]) is int and isinstance(e[2], str)]
    folders = {folder.replace(os.sep, "/") + "/" for folder in (os.path.abspath(root), os.path.realpath(root))}
    turned = moved = 0
    for entry in entries:
        path = entry[0]
        if "\\" in path and not os.path.exists(os.path.join(root, path)):
            path, turned = path.replace("\\", "/"), turned + 1
        inside = next((folder for folder in folders if path.startswith(folder)), "")
        if inside:
            path, moved = path[len(inside) :], moved + 1
        if path.startswith("./") or "//" in path or "/./" in path:
            path = posixpath.normpath(path)
        entry[0] = path
    if turned:
        yield f"{turned:,} paths have backslashes, read as separators of folders"
    if moved:
        yield f"{moved:,} paths are absolute, read as relative to {root}"
    labels = {label for _, label, _ in entries}
    if labels and 0 not in labels and labels == set(range(1, len(labels) + 1)):
        for entry in entries:
            entry[1] -= 1
        yield f"labels count from 1 to {len(labels)}, read as 0 to {len(labels) - 1}"
    names: dict[int, str] = {}
    respelled = set()
    for entry in entries:
        name = names.setdefault(entry[1], entry[2])
        if name != entry[2] and same_name(name) == same_name(entry[2]):
            respelled.add(f"{entry[2]!r} as {name!r}")
            entry[2] = name
    if respelled:
        yield f"class names are spelled in several ways; read {', '.join(sorted(respelled)[:5])}"


def same_name(name: str) -> str:
    """A class name without what CLIP's tokens and prompts do not distinguish: case, outer blanks, underscores."""
    return name.replace("_", " ").strip().casefold()


def to_data(entries: list, image_root: str, origin: str) -> list[Datum]:
    """Items of ``[relative path, label, class name]`` entries.

    Raises:
        ValueError: an entry has another form; names ``origin``, its place and what it seems to mean.
    """
    data = []
    for i, entry in enumerate(entries):
        match entry:
            case [str(relative), int(label), str(classname)] if _is_label(label) and _is_inside(relative):
                data.append(Datum(impath=os.path.join(image_root, relative), label=label, classname=classname))
            case _:
                raise ValueError(
                    f"split file {origin}, entry {i}: expected [relative path, label >= 0, class name], "
                    f"got {entry!r}{_near_miss(entry, image_root)}"
                )
    return data


def _is_label(label: object) -> bool:
    return type(label) is int and label >= 0  # True is an int as well


def _near_miss(entry: object, image_root: str) -> str:
    """What an entry of a wrong form seems to mean."""
    match entry:
        case [str(path), int(), str()]:
            parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", "..")]
            tails = ("/".join(parts[i:]) for i in range(len(parts)))
            found = next((tail for tail in tails if os.path.isfile(os.path.join(image_root, tail))), None)
            return f"; paths are relative to {image_root}" + (f", which has {found!r}" if found else "")
        case [str(), str(label), str()] if label.strip().isdecimal():
            return f"; write the label as a number: {int(label)}"
        case [str(), str(classname), int(label)]:
            return f"; label and class name have changed places: {label}, {classname!r}"
    return ""


def _is_inside(relative: str) -> bool:
    """Whether a path from a file stays below the folder that it is joined to."""
    path = relative.replace("\\", "/")
    drive = len(path) > 1 and path[1] == ":" and path[0].isalpha()
    return bool(relative) and not posixpath.isabs(path) and not drive and ".." not in path.split("/")


def check_labels(splits: Splits, origin: str) -> None:
    """Refuse labels with gaps, labels with two names, and evaluation labels that training does not know.

    A gap would shift every class name behind it against the columns of the logits.

    Raises:
        ValueError: names ``origin`` and the first offending label.
    """
    for part in ("train", "test"):
        if not getattr(splits, part):
            raise ValueError(f"{origin}: no {part} images")
    names: dict[int, str] = {}
    for part, data in zip(PARTS, splits):
        for item in data:
            if names.setdefault(item.label, item.classname) != item.classname:
                raise ValueError(
                    f"{origin}: label {item.label} is called {names[item.label]!r} and, in {part}, {item.classname!r}"
                    + ("; spell them alike if they are one class" if _alike(names[item.label], item.classname) else "")
                )
    trained = {item.label for item in splits.train}
    empty = sorted(set(range(max(names) + 1)) - trained)
    if empty:
        named = ", ".join(f"{label} ({names[label]})" if label in names else str(label) for label in empty[:5])
        raise ValueError(f"{origin}: {len(empty)} of {max(names) + 1} labels have no training image: {named}")


def _alike(one: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, one.lower(), other.lower()).ratio() > 0.8


def kept_split(path: str | os.PathLike, image_root: str | os.PathLike, draw: Callable[[], Splits]) -> Splits:
    """The split in ``path``; where there is none, ``draw()``, which is written there, except within :func:`unkept`."""
    if not os.path.exists(path):
        splits = draw()
        if not _kept.get():
            return splits
        save_split(splits, path, image_root)
        counts = ", ".join(f"{len(part):,} {name}" for name, part in zip(PARTS, splits))
        print(f"Drew a split ({counts}): {path}")
    print(f"Reading split from {path}")
    return read_split(path, image_root)


@contextlib.contextmanager
def unkept() -> Iterator[None]:
    """Splits are drawn and not written down: for those who look at data that no run has worked on."""
    token = _kept.set(False)
    try:
        yield
    finally:
        _kept.reset(token)


def save_split(splits: Splits, path: str | os.PathLike, image_root: str | os.PathLike) -> None:
    """Write a split file that :func:`read_split` (and CoOp) reads; atomically."""
    content = {part: to_entries(data, image_root) for part, data in zip(PARTS, splits)}
    write_json(content, path)


def to_entries(data: Iterable[Datum], image_root: str | os.PathLike) -> list[list]:
    """``[relative path, label, class name]`` of every item."""
    root = os.path.join(os.fspath(image_root), "")
    return [[relative_path(item.impath, root), item.label, item.classname] for item in data]


def relative_path(impath: str, root: str) -> str:
    """``impath`` below ``root`` (which ends in a separator), with forward slashes."""
    # os.path.relpath costs 10 us, which is 13 s on ImageNet
    relative = impath[len(root) :] if impath.startswith(root) else os.path.relpath(impath, root)
    return relative.replace(os.sep, "/")
