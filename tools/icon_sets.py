"""Which drawings of the npm package `@iconify/json` the open backbones learn from, and the words for each.

A *set* is one JSON file of the package: drawings with names by one artist, under one licence. This file holds the choice
(licences, sets held out, sets of logos) and turns names such as ``material-symbols:wolf-head-outline-rounded`` into words
("wolf head"). Nothing here draws; see ``build_drawings.py``.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

LICENCES = ("MIT", "Apache-2.0", "CC-BY-4.0", "CC-BY-3.0", "CC0-1.0", "ISC")
#: A family is every set by one artist; a family that is held out is held out whole.
HELD_OUT = {
    "fluent": (
        "fluent",
        "fluent-color",
        "fluent-mdl2",
        "fluent-emoji",
        "fluent-emoji-flat",
        "fluent-emoji-high-contrast",
    ),
    "icon-park": ("icon-park", "icon-park-outline", "icon-park-solid", "icon-park-twotone"),
}
#: Names in these are brands, programming languages or currencies: noise for a vocabulary of things.
LOGO_CATEGORIES = ("Logos", "Programming")
LOGOS = (
    "fa-brands", "fa6-brands", "fa7-brands", "bxl", "cib", "devicon", "devicon-line", "devicon-original", "devicon-plain",
    "nonicons", "codicon", "streamline-logos",
)  # fmt: skip
#: Animated or drawn by strokes that grow: a still picture of them is empty.
ANIMATED = ("line-md", "svg-spinners", "eos-icons")
#: Flags are named by ISO codes, which emojibase's annotation maps to countries.
FLAGS = ("cif", "flag", "flagpack", "circle-flags")
EMOJI = ("noto", "noto-v1", "twemoji", "emojione", "emojione-monotone", "fxemoji", "streamline-emojis")

#: Words at the end (or for `ic` at the beginning) of a name that name a drawing style; "light" or "sharp" may also be
#: part of the thing, so a word counts only in sets where it ends at least one name in twelve.
STYLE_WORDS = frozenset(
    "outline outlined outlines filled fill line linear lines bold duotone twotone two tone thin light solid sharp rounded "
    "round broken regular stroke duo flat remix mini small sm xs lg md large alt expressive variant flex color baseline "
    "24px 20px 16px 32px 12px 12 16 20 24 28 32 48 square circle".split()
)
#: Frames are things of their own in some sets: taken off only by chance, by `unframed`.
FRAMES = frozenset({"square", "circle", "box", "alt"})
#: Before a number, these make it a part of the meaning.
COUNTED = frozenset(
    "number letter numeric digit keycap looks counter exposure heading h filter timer roman forward replay rotate dice "
    "speed level plus minus rating step hexagon pentagon octagon circle square rows columns battery".split()
)
#: Words that name no thing in tags and categories.
EMPTY_CATEGORIES = frozenset(
    "other others objects content interface interfaces ui essential general abstract base edit status action actions system "
    "misc various newicons parts it life components operate".split()
)


class SetError(ValueError):
    """The package lacks a set, or a set cannot be read."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """One drawing of a set and the words for it.

    Attributes:
        set: prefix of the set, "game-icons".
        icon: name in the set, "wolf-head".
        name: words of the name without style, "wolf head".
        others: further words for the same thing: aliases, CLDR keywords.
        categories: themes that the set files it under, "animal".
    """

    set: str
    icon: str
    name: str
    others: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()


def family_of(prefix: str) -> str | None:
    """Held-out family that the set belongs to, or None."""
    return next((family for family, sets in HELD_OUT.items() if prefix in sets), None)


def read_set(folder: Path, prefix: str) -> dict:
    """The set's JSON in the unpacked package. Raises SetError that names the file."""
    path = Path(folder) / "json" / f"{prefix}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise SetError(f"{path}: {error}; fetch the package again with tools/build_drawings.py") from error


def chosen_sets(folder: Path) -> dict[str, dict]:
    """Training sets by prefix: an allowed licence, not held out, no logos, something drawn."""
    chosen = {}
    for path in sorted((Path(folder) / "json").glob("*.json")):
        data = read_set(folder, path.stem)
        info, prefix = data["info"], data["prefix"]
        logos = prefix in LOGOS or info.get("category") in LOGO_CATEGORIES
        allowed = info["license"].get("spdx") in LICENCES
        if allowed and data["icons"] and not logos and prefix not in ANIMATED and not family_of(prefix):
            chosen[prefix] = data
    if not chosen:
        raise SetError(f"{folder}/json holds no set: it should be the unpacked npm package @iconify/json")
    return chosen


# ---- names to words --------------------------------------------------------------------------------------


def style_words_of(names: list[str]) -> frozenset[str]:
    """Style words of a set: those of STYLE_WORDS that end at least one name in twelve."""
    ends = Counter(word for name in names for word in set(name.split("-")[-2:]))
    return frozenset(w for w in STYLE_WORDS - FRAMES if ends[w] >= max(5, len(names) / 12))


def clean_name(icon: str, styles: frozenset[str], prefixes: tuple[str, ...] = ()) -> str:
    """Words of an icon's name: 'wolf-head-outline-24' -> 'wolf head'; each word once, numbers that only count variants off."""
    words = [w for w in re.split(r"[-_:]+", icon.lower()) if w]
    while len(words) > 1 and words[0] in prefixes:
        words = words[1:]
    while len(words) > 1:
        last = words[-1]
        number = bool(re.fullmatch(r"\d+", last)) and words[-2] not in COUNTED
        if not (last in styles or number or (last == "alt")):
            break
        words = words[:-1]
    words = [re.sub(r"(?<=[a-z]{3})\d+$", "", w) for w in words]
    words = [w for i, w in enumerate(words) if w not in words[:i]]
    return " ".join(words[:6])


def clean_category(category: str) -> tuple[str, ...]:
    """Words of a theme: 'Food & Drink' -> ('food', 'drink'), 'ArtificialIntelligence' -> ('artificial intelligence',)."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", category).lower()
    parts = [p.strip() for p in re.split(r"[&/+,]| and ", spaced)]
    return tuple(p for p in parts if len(p) > 2 and p not in EMPTY_CATEGORIES)


def unframed(name: str) -> str:
    """The name without words for a frame around the thing: 'arrow left circle' -> 'arrow left'."""
    words = [w for w in name.split() if w not in FRAMES]
    return " ".join(words) or name


def aliases_of(data: dict) -> dict[str, list[str]]:
    """Other names per icon of a set; an alias that turns or mirrors the drawing names something else."""
    others = defaultdict(list)
    for alias, entry in data.get("aliases", {}).items():
        if set(entry) == {"parent"}:
            others[entry["parent"]].append(alias)
    return others


# ---- emoji and flags -------------------------------------------------------------------------------------


class Annotation:
    """CLDR names, keywords and subgroups of emojibase-data: (label, keywords, subgroup) by squeezed label or ISO code."""

    def __init__(self, entries: list[dict], messages: dict):
        subgroups = {s["order"]: s["message"] for s in messages["subgroups"]}
        self.by_label, self.countries = {}, {}
        for entry in entries:
            label, code = entry["label"], entry["hexcode"].split("-")
            subgroup = subgroups.get(entry.get("subgroup"), "")
            self.by_label[squeeze(label)] = (label, tuple(entry.get("tags", ())), subgroup)
            if label.startswith("flag: ") and len(code) == 2:
                iso = "".join(chr(int(c, 16) - 0x1F1E6 + ord("a")) for c in code)
                self.countries[iso] = label.removeprefix("flag: ")

    @classmethod
    def read(cls, folder: Path) -> Annotation:
        """From the unpacked npm package emojibase-data."""
        english = Path(folder) / "en"
        return cls(
            *(json.loads((english / f"{part}.json").read_text(encoding="utf-8")) for part in ("data", "messages"))
        )

    def emoji(self, prefix: str, icon: str) -> Drawing | None:
        """The drawing's words after CLDR; None where the name is unknown or another skin tone of a known one."""
        if "skin-tone" in icon:
            return None
        name = re.sub(r"-\d+$", "", icon)
        found = self.by_label.get(squeeze(name)) or self.by_label.get(squeeze(name.replace("flag-for-", "flag-")))
        if found is None:
            return None if prefix == "fxemoji" else Drawing(prefix, icon, name.replace("-", " "))
        label, tags, subgroup = found
        plain = re.sub(r"[^a-z0-9' -]", "", label.lower().replace("’", "'").replace("ñ", "n"))
        keywords = tuple(t for t in tags if t not in plain and re.fullmatch(r"[a-z '-]{2,24}", t))
        return Drawing(prefix, icon, plain, keywords, clean_category(subgroup.replace("-", " ")))

    def flag(self, prefix: str, icon: str) -> Drawing | None:
        """'circle-flags:fr' -> 'flag France'; None for codes without a country."""
        country = self.countries.get(re.sub(r"-(4x3|1x1)$", "", icon.lower()))
        if country is None:
            return None
        plain = re.sub(r"[^a-z0-9' -]", "", country.lower().replace("’", "'"))
        return Drawing(prefix, icon, f"flag {plain}", (f"{plain} flag", plain), ("flag", "country flag"))


def squeeze(label: str) -> str:
    """Letters and digits alone, so that 'face with tears' and 'facewithtears' meet."""
    return re.sub(r"[^a-z0-9]", "", label.lower())


def drawings_of(data: dict, annotation: Annotation) -> list[Drawing]:
    """All drawings of a set with their words."""
    prefix = data["prefix"]
    if prefix in EMOJI or prefix in FLAGS:
        read = annotation.emoji if prefix in EMOJI else annotation.flag
        return [drawing for icon in data["icons"] if (drawing := read(prefix, icon))]
    names = list(data["icons"])
    styles = style_words_of(names)
    starts = Counter(n.split("-")[0] for n in names)
    prefixes = tuple(w for w in STYLE_WORDS if starts[w] >= max(5, len(names) / 12))
    others, categories = aliases_of(data), defaultdict(list)
    for category, icons in data.get("categories", {}).items():
        for icon in icons:
            categories[icon].extend(clean_category(category))
    found = []
    for icon in names:
        name = clean_name(icon, styles, prefixes)
        synonyms = dict.fromkeys(clean_name(a, styles, prefixes) for a in others[icon])
        found.append(Drawing(prefix, icon, name, tuple(s for s in synonyms if s != name), tuple(categories[icon])))
    return [d for d in found if re.search(r"[a-z]{2}|^[a-z0-9]$", d.name)]
