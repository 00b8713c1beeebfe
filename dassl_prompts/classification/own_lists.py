"""Pictures of one's own, as a folder of class folders or as a CSV: what they say, and what is wrong with them."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dassl_prompts.classification.split_files import OTHER_NAMES, PARTS, same_name
from dassl_prompts.classification.splits import list_folders
from dassl_prompts.engine.reading import csv_rows
from dassl_prompts.images import describe_left_out, is_image_name, walk_images

#: what a CSV's columns may be called, in any case
COLUMNS = {
    "path": ("path", "image", "image_path", "file", "filename", "file_name", "filepath"),
    "label": ("label", "class", "classname", "class_name", "category"),
    "split": ("split", "part", "set", "subset"),
    "caption": ("caption", "text"),
}
HEADER = "its first line has to name the columns, such as path,label or path,label,split"
#: how many problems a message names
SHOWN = 5


@dataclass(frozen=True)
class Picture:
    """A picture as its owner describes it.

    Attributes:
        path: of the file. classname: its folder or label. part: train, val, test, or "" where nothing is said. caption: "" where
        none is asked for.
    """

    path: str
    classname: str
    part: str = ""
    caption: str = ""


def part_of(word: str) -> str:
    """train, val or test for any of their names; "" for other words."""
    word = word.strip().lower()
    word = OTHER_NAMES.get(word, word)
    return word if word in PARTS else ""


def listed(lines: Sequence[str], between: str = ", ") -> str:
    """The first few of ``lines``, and how many there are besides."""
    more = len(lines) - SHOWN
    return between.join(lines[:SHOWN]) + (f" and {more} more" if more > 0 else "")


# -- folders -------------------------------------------------------------------------------------------------


def read_folder(root: str) -> list[Picture]:
    """The pictures below ``root/<class>``, or ``root/<train|val|test>/<class>``, at any depth; hidden files are left out.

    Raises:
        ValueError: there is no class folder, or parts and classes stand side by side.
    """
    folders, left_out = list_folders(root), Counter()
    parts = {folder: part_of(folder) for folder in folders if part_of(folder) and holds_classes(root, folder)}
    others = [folder for folder in folders if folder not in parts and any(pictures_below(root, folder))]
    if parts and others:
        raise ValueError(
            f"{root} has the parts {listed(sorted(parts))} beside {listed(others)}: keep the classes in the parts, or the parts out"
        )
    doubled = [folder for folder, part in parts.items() if list(parts.values()).count(part) > 1]
    if doubled:
        raise ValueError(f"{root} has one part under two names: {listed(sorted(doubled))}")
    if parts and "test" not in parts.values() and "val" in parts.values():
        print(f"{root} has no test: its val is the test set, as in ImageNet's experiments")
        parts = {folder: "test" if part == "val" else part for folder, part in parts.items()}
    pictures = []
    for folder, part in (parts or {"": ""}).items():
        base = os.path.join(root, folder) if folder else root
        for name in list_folders(base):
            pictures += [Picture(path, name, part) for path in pictures_below(base, name, left_out)]
    if not pictures:
        raise ValueError(f"{root} has no folders with pictures: a folder per class is needed, such as {root}/cat/1.jpg")
    if left_out:
        print(f"{root}: {describe_left_out(left_out)}")
    return pictures


def holds_classes(root: str, folder: str) -> bool:
    """Whether a folder called train, val or test is a part: it holds folders and no picture of its own."""
    with os.scandir(os.path.join(root, folder)) as entries:
        names = [(entry.name, entry.is_dir()) for entry in entries if entry.name[0] != "."]
    return any(is_dir for _, is_dir in names) and not any(is_image_name(name) for name, is_dir in names if not is_dir)


def pictures_below(root: str, folder: str, left_out: Counter | None = None) -> Iterator[str]:
    """The pictures below ``root/folder`` without hidden ones."""
    for path in walk_images(os.path.join(root, folder), left_out):
        if not any(name.startswith(".") for name in os.path.relpath(path, root).split(os.sep)):
            yield path


# -- CSV -----------------------------------------------------------------------------------------------------


def read_list(path: str, captions: bool = False) -> list[Picture]:
    """The pictures that a CSV names, a row each; paths count relative to the CSV's folder.

    Args:
        captions: rows need a caption instead of a label; a picture may then have several rows.

    Raises:
        ValueError: no header, a row that does not fit it, an empty label, an unknown split, a picture twice, or files that are
            not there; names the lines.
    """
    rows = csv_rows(path, ",;\t")
    _, header = next(rows, (1, []))
    columns = columns_of(header, path, ("path", "caption") if captions else ("path", "label"))
    pictures, problems = [], []
    for line, row in rows:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            problems.append(f"line {line} has {len(row)} cells instead of {len(header)}")
            continue
        cells = {name: row[at].strip() for name, at in columns.items()}
        empty = [name for name in columns if name in ("path", "label", "split") and not cells[name]]
        empty += ["caption"] if captions and not cells["caption"] else []
        if empty:
            problems.append(f"line {line} has no {empty[0]}")
            continue
        part = part_of(cells.get("split", ""))
        if "split" in cells and not part:
            problems.append(f"line {line} has the split {cells['split']!r}, not train, val or test")
            continue
        place = os.path.join(os.path.dirname(path), os.path.expanduser(cells["path"].replace("\\", "/")))
        caption = cells["caption"] if captions else ""
        pictures.append(Picture(os.path.normpath(place), cells.get("label", "image"), part, caption))
    if problems:
        raise ValueError(f"{path}: {len(problems)} lines cannot be used: {listed(problems)}. Mend or remove them")
    if not pictures:
        raise ValueError(f"{path} names no picture: a row each, below the header")
    missing = [picture.path for picture in pictures if not os.path.isfile(picture.path)]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} of {len(pictures)} pictures are not there: {listed(missing)}; paths are relative to "
            f"the folder of the list"
        )
    times = Counter(picture.path for picture in pictures)
    doubled = [name for name, count in times.items() if count > 1]
    if doubled and not captions:
        raise ValueError(
            f"{path} names {len(doubled)} pictures more than once: {listed(doubled)}. Keep one line of each"
        )
    return pictures


def columns_of(header: Sequence[str], path: str, needed: Iterable[str]) -> dict[str, int]:
    """Where the columns stand.

    Raises:
        ValueError: one of ``needed`` is missing, or stands twice.
    """
    names = [cell.strip().lower() for cell in header]
    found: dict[str, int] = {}
    for name, spellings in COLUMNS.items():
        places = [at for at, cell in enumerate(names) if cell in spellings]
        if len(places) > 1:
            raise ValueError(f"{path} has {len(places)} columns for {name}: {listed([header[at] for at in places])}")
        if places:
            found[name] = places[0]
    lacking = [name for name in needed if name not in found]
    if lacking:
        raise ValueError(f"{path} has no column {lacking[0]}: {HEADER}; it reads {', '.join(header)!r}")
    return found


# -- classes -------------------------------------------------------------------------------------------------


def class_order(names: Iterable[str]) -> list[str]:
    """Class names in the order of their labels: by number if all are numbers, else by alphabet."""
    found = sorted(set(names))
    return sorted(found, key=int) if all(name.isascii() and name.isdigit() for name in found) else found


def renamed(names: Sequence[str], new: dict[str, str], source: str) -> dict[str, str]:
    """Name of the class that every folder or label stands for.

    Raises:
        ValueError: ``new`` has a name that there is not.
    """
    for name in new:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise ValueError(
                f"{source} renames {name!r}, which is no class here" + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return {name: new.get(name, name) for name in names}


def check_classes(names: dict[str, str], place: str) -> None:
    """
    Args:
        names: folder or label -> class name.

    Raises:
        ValueError: one class, a name without letters, or names that differ in case and underscores alone.
    """
    if len(names) < 2:
        raise ValueError(
            f"{place} has one class, {next(iter(names))!r}: there is nothing to tell apart. Give two or more, a folder or a label each"
        )
    empty = [folder for folder, name in names.items() if not same_name(name)]
    if empty:
        raise ValueError(
            f"{place}: the class {empty[0]!r} has an empty name, which says nothing to a prompt: rename it, there or with "
            "--class-names"
        )
    seen: dict[str, str] = {}
    for folder, name in names.items():
        other = seen.setdefault(same_name(name), folder)
        if other != folder:
            raise ValueError(
                f"{place}: the classes {other!r} and {folder!r} have the names {names[other]!r} and {name!r}, which CLIP "
                "does not tell apart: join them, or rename one with --class-names"
            )


def check_parts(pictures: Sequence[Picture], content: Callable[[str], str], place: str) -> None:
    """Refuse a picture that stands in two parts.

    Args:
        content: digest of a picture's file.

    Raises:
        ValueError: names the pairs and what to do.
    """
    first: dict[str, Picture] = {}
    pairs = []
    for picture in pictures:
        other = first.setdefault(content(picture.path), picture)
        if other.part != picture.part:
            pairs.append(f"{picture.path} ({picture.part}) is {other.path} ({other.part})")
    if pairs:
        raise ValueError(
            f"{place}: {len(pairs)} pictures are in two parts of the split: {listed(pairs)}. Remove one of each, or accept results "
            "that are too good with DATASET.SAME_PICTURES True"
        )
