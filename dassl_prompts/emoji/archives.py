"""Annotation and archives of the embedded `emoji` data (built by tools/build_emoji.py, described in
docs/emoji.md).

A *concept* is one CLDR entry ("woman firefighter"); four artists (*styles*) drew every concept; people and
hands have up to five skin tones beside the default yellow. A *picture* is (concept, style, tone).
"""

import dataclasses
import functools
import hashlib
from pathlib import Path

from dassl_prompts.engine.reading import DamagedFile, parse_json, unpack_xz

ASSETS = Path(__file__).resolve().parent.parent / "assets" / "emoji"
VERSION = 1
STYLES = ("noto", "twemoji", "openmoji", "fluent")
HELD_OUT = "fluent"  # never shown to emoji-tiny and emoji-base
# Category word of the captions -> class name of the classification task. The class names are plain words
# after the CLDR subgroups and mostly not the category words: the backbones were trained on those for every
# concept, and with them a few labelled pictures have nothing to add to zero-shot.
CLASS_NAMES = {
    "happy face": "smiling face",
    "tired face": "neutral face",
    "worried face": "concerned face",
    "hand": "hand",
    "person": "person",
    "gesture": "person with a gesture",
    "worker": "person at work",
    "fantasy creature": "fantasy person",
    "active person": "person in action",
    "athlete": "person playing sport",
    "mammal": "mammal",
    "bird or reptile": "bird",
    "fish or insect": "sea animal or bug",
    "plant": "flower or plant",
    "fruit or vegetable": "fruit",
    "meal": "food",
    "dessert or drink": "sweet food or drink",
    "household item": "household",
    "landscape": "place",
    "building": "building",
    "vehicle": "vehicle",
    "clock": "time",
    "weather": "sky",
    "celebration": "celebration",
    "sport": "sport",
    "game": "game",
    "clothing": "clothing",
    "music": "sound",
    "electronic device": "computer or phone",
    "office supply": "office",
    "book or letter": "book or mail",
    "tool": "tool",
    "button or arrow": "arrow",
    "letter or number": "letter",
    "geometric shape": "shape",
}
STYLE_WORDS = {"noto": "shaded", "twemoji": "plain", "openmoji": "outlined", "fluent": "flat"}
RESTORE = (
    "restore it with `git checkout -- dassl_prompts/assets/emoji` or rebuild it with `python tools/build_emoji.py`"
)


class EmojiDataError(ValueError):
    """An archive of the embedded data is missing, damaged or of another version."""


@dataclasses.dataclass(frozen=True)
class Concept:
    """One CLDR entry. `tones` maps a skin tone word to the code points of the toned picture; `colours` a
    style to words.
    """

    id: str
    name: str
    tags: tuple
    group: str
    subgroup: str
    kind: str | None  # category word of the captions where the concept belongs to a class, or None
    family: str  # gender and direction variants share a family; a family never crosses a split
    split: str  # train, val or test
    gender: str | None
    hair: str | None
    facing: str | None
    tones: dict
    colours: dict

    @property
    def classname(self):
        """Name of the concept's class in the classification task, or None."""
        return CLASS_NAMES[self.kind] if self.kind else None


@dataclasses.dataclass(frozen=True)
class Picture:
    """One drawing; `tone` is None for the default one."""

    concept: Concept
    style: str
    tone: str | None = None

    @property
    def code(self):
        """Code points in lower case, without presentation selectors: '1f469-1f3fe-200d-1f692'."""
        return self.concept.tones[self.tone] if self.tone else self.concept.id

    @property
    def key(self):
        """Unique name such as 'fluent-1f469-1f3fe-200d-1f692'."""
        return f"{self.style}-{self.code}"

    @property
    def path(self):
        """'<archive>.zip::<member>' for dassl_prompts.images.read_image."""
        return picture_path(self.key)


def archive_path(style):
    return ASSETS / f"emoji-{style}-v{VERSION}.zip"


def picture_path(key):
    style, _, code = key.partition("-")
    return f"{archive_path(style)}::{code}.webp"


def is_twin(picture):
    """Whether an earlier picture of the style shows exactly the same drawing."""
    return picture.code in read_meta()["styles"][picture.style]["twins"]


@functools.lru_cache(maxsize=1)
def read_meta():
    """The meta file as a dict. Raises EmojiDataError with the command that restores it."""
    path = ASSETS / f"emoji-meta-v{VERSION}.json.xz"
    if not path.is_file():
        raise EmojiDataError(f"{path} is missing: {RESTORE}")
    try:
        meta = parse_json(unpack_xz(path), path)
    except DamagedFile as error:
        raise EmojiDataError(f"{path} is damaged ({error}): {RESTORE}") from error
    if meta.get("version") != VERSION:
        raise EmojiDataError(f"{path} has version {meta.get('version')}, this code reads version {VERSION}: {RESTORE}")
    return meta


@functools.cache
def check_archive(style):
    """Raise EmojiDataError unless the style's archive is there, whole and the one of the meta file."""
    if style not in STYLES:
        raise ValueError(f"unknown emoji style {style!r}: one of {', '.join(STYLES)}")
    path, entry = archive_path(style), read_meta()["styles"][style]
    if not path.is_file():
        raise EmojiDataError(f"{path} is missing: {RESTORE}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
        raise EmojiDataError(
            f"{path} is truncated, damaged or of another version (its sha256 is not {entry['sha256'][:12]}...): {RESTORE}"
        )
    return path


@functools.lru_cache(maxsize=1)
def concepts():
    """All concepts in CLDR order."""
    return tuple(
        Concept(
            kind=c["class"],
            tags=tuple(c["tags"]),
            **{k: v for k, v in c.items() if k not in ("class", "tags")},
        )
        for c in read_meta()["concepts"]
    )


def classnames():
    """Class names of the classification task, in the order of their labels (CLDR order)."""
    return list(dict.fromkeys(c.classname for c in concepts() if c.classname))


def pictures(style, splits=("train", "val", "test"), tones=True, twins=False):
    """Pictures of one style in CLDR order; toned ones right after the default one.

    A twin is pixel for pixel an earlier picture of its style (OpenMoji draws 'student' as 'man student');
    left out by default, so that every picture has one right answer.
    """
    check_archive(style)
    found = [
        Picture(c, style, tone) for c in concepts() if c.split in splits for tone in (None, *(c.tones if tones else ()))
    ]
    return found if twins else [p for p in found if not is_twin(p)]


# ---- words -----------------------------------------------------------------------------------------------


def category(concept):
    """Category word of the captions: the concept's kind, else its CLDR subgroup in words."""
    return concept.kind or concept.subgroup.replace("-", " ")


def description(picture):
    """'woman firefighter with dark skin tone'; gender, hair and direction are part of the concept's name."""
    return picture.concept.name + (f" with {picture.tone} skin tone" if picture.tone else "")


def join_words(words):
    return " and ".join(words)


def caption(picture, *, classname=None, what=None, colours=None, style=None):
    """One sentence with every attribute of the picture; the keywords replace single parts (for negatives).

    'a worker emoji: woman firefighter with dark skin tone, in red and pink, drawn in flat style.'
    """
    colours = picture.concept.colours[picture.style] if colours is None else colours
    kind = classname or category(picture.concept)
    parts = [f"{'an' if kind[0] in 'aeiou' else 'a'} {kind} emoji: {what or description(picture)}"]
    if colours:
        parts.append(f"in {join_words(colours)}")
    parts.append(f"drawn in {STYLE_WORDS[style or picture.style]} style")
    return ", ".join(parts) + "."
