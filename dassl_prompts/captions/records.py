"""The records of an FDRD file: ``{image key: {file_name, class_name, file_path, positive, negative, ...}}``.

Two families exist in the wild (specs of arXiv 2508.04028's data): ``inter_*`` files with keys ``name.jpg``
and a placeholder for the path, and the flower / pets / plane files with keys without suffix, the authors'
absolute paths and, for the latter two, no class name. Both read into :class:`Record`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dassl_prompts.engine.reading import DamagedFile, parse_json

#: what stands for a path in files that carry none
PLACEHOLDERS = ("YOUR_IMAGE_PATH", "")


class FDRDError(ValueError):
    """An FDRD file cannot be used; the message names the file and the record."""


@dataclass(frozen=True)
class Record:
    """One image with its caption.

    Attributes:
        key: the record's name in the file, unique.
        caption: the positive caption, stripped. further: the other captions of an image that has several.
        negatives: the negative captions exactly as they stand in the file.
        class_name: as in the file; "" where the file family has none (the domain derives it from the key).
        file_name, file_path, number: as in the file, "" where missing.
        extra: further fields (``caption_id``, ``meta``, ``attributes``).
    """

    key: str
    caption: str
    negatives: tuple[str, ...] = ()
    class_name: str = ""
    file_name: str = ""
    file_path: str = ""
    number: str = ""
    extra: dict = field(default_factory=dict, compare=False)
    further: tuple[str, ...] = ()

    @property
    def captions(self) -> tuple[str, ...]:
        """All captions of the image, as often as they are given."""
        return (self.caption, *self.further)

    @property
    def has_path(self) -> bool:
        """Whether ``file_path`` is more than a placeholder."""
        return self.file_path.strip() not in PLACEHOLDERS


FIELDS = ("file_name", "class_name", "file_path", "positive", "negative", "number")


def read_records(path: str | os.PathLike) -> list[Record]:
    """All records of a file, in its order.

    Raises:
        FileNotFoundError: no such file.
        FDRDError: the file was emptied by the host, is no JSON object, or a record is unusable; names up to
            five of them.
    """
    records, problems = parse_records(load_object(path))
    if problems:
        shown = "".join(f"\n  {problem}" for problem in problems[:5])
        more = f"\n  ... and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise FDRDError(
            f"{path}: {len(problems)} unusable records:{shown}{more}\n`python -m dassl_prompts.fdrd check "
            f"{path}` lists all"
        )
    if not records:
        raise FDRDError(f"{path} holds no record")
    return records


def load_object(path: str | os.PathLike) -> list[tuple[str, object]]:
    """The file's JSON object as pairs, so that repeated keys are seen.

    Raises:
        FileNotFoundError, FDRDError: as in :func:`read_records`.
    """
    content = Path(path).read_bytes()
    if not content.strip():
        raise FDRDError(
            f"{path} is empty ({len(content)} bytes). Some FDRD uploads were emptied by a rename on the "
            "website (inter_caltech-101_train.json for one): their content is only in the git history of "
            "wyf202322/DCAR, commit 52a981c and before. Clone the repository in full and take the file "
            "from there (git show <commit>:<path>)"
        )
    try:
        pairs = parse_json(content, path, _Pairs)
    except DamagedFile as error:
        page = content[:20].lstrip().startswith((b"version", b"<"))
        hint = "is it a Git LFS pointer or an HTML page?" if page else "it may have been truncated by the download"
        raise FDRDError(f"{error}; {hint}") from error
    if not isinstance(pairs, _Pairs):
        raise FDRDError(f"{path} must hold one JSON object {{image key: record}}, not a {type(pairs).__name__}")
    return _from_coco(_plain(pairs), path) if {"images", "annotations"} <= {key for key, _ in pairs} else list(pairs)


def _from_coco(content: dict, path: str | os.PathLike) -> list[tuple[str, object]]:
    """COCO's caption files: images in one list, captions in another, joined by the image's id; one class for all."""
    try:
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[str, list] = {name: [] for name in names.values()}
        for annotation in content["annotations"]:
            captions[names[annotation["image_id"]]].append(annotation["caption"])
    except (KeyError, TypeError) as error:
        raise FDRDError(
            f"{path} looks like a caption file of COCO, but its images need id and file_name and its annotations "
            f"image_id (of an image in the file) and caption: {error!r}"
        ) from error
    return [
        (name, _Pairs({"file_name": name, "file_path": name, "class_name": "image", "positive": texts}.items()))
        for name, texts in captions.items()
    ]


class _Pairs(list):
    """A JSON object as its list of pairs."""


def _plain(value):
    if isinstance(value, _Pairs):
        return {key: _plain(item) for key, item in value}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def parse_records(pairs: Sequence[tuple[str, object]]) -> tuple[list[Record], list[str]]:
    """Records and, for those that cannot be used, one line each."""
    records, problems, seen = [], [], set()
    for key, value in pairs:
        problem = _problem(key, _plain(value), seen)
        seen.add(key)
        if problem:
            problems.append(f"record {key!r}: {problem}")
        else:
            records.append(_to_record(key, _plain(value)))
    return records, problems


def _problem(key: str, value, seen: set[str]) -> str:
    if key in seen:
        return "the key occurs twice"
    if not isinstance(value, dict):
        return f"expected an object, got {type(value).__name__}"
    caption, negatives = value.get("positive"), value.get("negative", [])
    captions = caption if isinstance(caption, list) and caption else [caption]
    if not all(isinstance(caption, str) for caption in captions):
        return "no caption (field positive)"
    if not all(caption.strip() for caption in captions):
        return "the caption is empty"
    if not isinstance(negatives, list) or not all(isinstance(n, str) for n in negatives):
        return "the field negative must be a list of strings"
    if not key.strip() and not value.get("file_name") and not value.get("file_path"):
        return "names no image"
    return ""


def _to_record(key: str, value: dict) -> Record:
    text = {name: str(value.get(name) or "") for name in ("class_name", "file_name", "file_path", "number")}
    extra = {name: item for name, item in value.items() if name not in FIELDS}
    given = value["positive"]
    caption, *further = (c.strip() for c in (given if isinstance(given, list) else [given]))
    negatives = tuple(value.get("negative", []))
    return Record(key, caption, negatives, extra=extra, further=tuple(further), **text)


def usable_negatives(caption: str, negatives: Sequence[str], further: Sequence[str] = ()) -> list[str]:
    """Negatives without those that equal a caption of the image, and without repetitions, in order."""
    same = {caption.strip(), *further}
    return list(dict.fromkeys(n.strip() for n in negatives if n.strip() and n.strip() not in same))
