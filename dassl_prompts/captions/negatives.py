"""Negative captions: another class name in the same sentence, or the same class with other attributes (DCAR,
FDRD).
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from dassl_prompts.captions.records import usable_negatives
from dassl_prompts.ranking.exact import topk

#: attribute words of closed vocabularies; a word is replaced by another of its row
ATTRIBUTES = (
    (
        "red",
        "orange",
        "yellow",
        "green",
        "blue",
        "purple",
        "pink",
        "brown",
        "black",
        "white",
        "gray",
        "grey",
        "silver",
        "golden",
    ),
    ("one", "two", "three", "four", "five", "six", "several", "many"),
    ("left", "right"),
    ("small", "large", "tiny", "huge"),
    ("top", "bottom"),
    ("front", "back"),
    ("indoor", "outdoor"),
    ("dark", "light", "bright"),
)

#: class -> classes to swap to, best first or weighted equally
SwapTable = Sequence[Sequence[int]]


@functools.cache
def name_pattern(name: str) -> re.Pattern:
    """Matches a class name as a whole word in any case, with spaces or underscores, and an article before it."""
    words = [re.escape(word) for word in re.split(r"[\s_]+", name.strip()) if word]
    return re.compile(r"(?<!\w)(?:(?P<article>an?)(?P<gap>\s+))?" + r"[\s_]+".join(words) + r"(?!\w)", re.IGNORECASE)


def swap_class(caption: str, name: str, other: str) -> str:
    """``caption`` with every occurrence of ``name`` replaced by ``other``, articles adapted.

    Returns the caption itself when the name does not occur in it as a whole word.
    """
    other = other.replace("_", " ")

    def replace(match: re.Match) -> str:
        article = match["article"]
        if not article:
            return other
        wanted = "an" if other[:1].lower() in "aeiou" else "a"
        return (wanted.capitalize() if article[0].isupper() else wanted) + match["gap"] + other

    return name_pattern(name).sub(replace, caption)


def swap_attribute(caption: str, rng: random.Random) -> str:
    """``caption`` with one attribute word replaced by another of its kind; the caption itself if it has none."""
    found = [
        (match, row) for row in ATTRIBUTES for match in re.finditer(rf"\b({'|'.join(row)})\b", caption, re.IGNORECASE)
    ]
    if not found:
        return caption
    match, row = rng.choice(found)
    other = rng.choice([word for word in row if word != match[0].lower()])
    if match[0][0].isupper():
        other = other.capitalize()
    return caption[: match.start()] + other + caption[match.end() :]


# -- which classes to swap to --------------------------------------------------------------------------------


def swap_table_uniform(n_classes: int) -> list[list[int]]:
    """Any other class."""
    return [[c for c in range(n_classes) if c != own] for own in range(n_classes)]


def swap_table_similar(features: Tensor, k: int = 10) -> list[list[int]]:
    """The ``k`` classes whose name features ``[C, E]`` (normalised) are most similar, most similar first."""
    k = min(k, len(features) - 1)
    return topk(features, features, k, exclude=torch.arange(len(features)))[1].tolist() if k else [[]] * len(features)


def swap_table_meta(classnames: Sequence[str], meta: Mapping[str, str], source: str = "meta table") -> list[list[int]]:
    """The other classes of the same meta-category.

    Raises:
        ValueError: a class has no meta-category, or is alone in it; names them and ``source``.
    """
    missing = [name for name in classnames if name not in meta]
    if missing:
        raise ValueError(f"{source} has no meta-category for {len(missing)} classes: {', '.join(missing[:5])}")
    table = [
        [j for j, other in enumerate(classnames) if j != i and meta[other] == meta[name]]
        for i, name in enumerate(classnames)
    ]
    alone = [name for name, others in zip(classnames, table) if not others]
    if alone:
        raise ValueError(f"{source}: {len(alone)} classes are alone in their meta-category: {', '.join(alone[:5])}")
    return table


# -- negatives of a caption ----------------------------------------------------------------------------------


class NegativeGenerator:
    """Makes K negatives per caption: class swaps first, then attribute negatives.

    Args:
        classnames: by label.
        swaps: for each label the labels that may stand in for it.
        captions, labels: the training captions; other captions of the same class are attribute negatives.
        n_negatives, n_attr: K, and how many of them are attribute negatives.
        attr: "caption" takes another caption of the class, "words" swaps an attribute word of a closed
            vocabulary.
        seed: every caption draws from a stream of its own, given by this and its index.
        fill: where one kind runs short, the other takes its place: a caption without its class name has no
            swap, a class of one image has no other caption.
    """

    def __init__(
        self,
        classnames: Sequence[str],
        swaps: SwapTable,
        captions: Sequence[str],
        labels: Sequence[int],
        n_negatives: int = 4,
        n_attr: int = 1,
        attr: str = "caption",
        seed: int = 0,
        fill: bool = True,
    ):
        if not 0 <= n_attr <= n_negatives:
            raise ValueError(f"N_ATTR is {n_attr}, but there are N_NEG {n_negatives} negatives in all")
        if attr not in ("caption", "words"):
            raise ValueError(f"attribute negatives are 'caption' or 'words', not {attr!r}")
        self.classnames, self.swaps, self.captions, self.labels = classnames, swaps, captions, labels
        self.n_negatives, self.n_attr, self.attr = n_negatives, n_attr, attr
        self.seed, self.fill = seed, fill
        self.of_class: dict[int, list[int]] = {}
        for index, label in enumerate(labels):
            self.of_class.setdefault(label, []).append(index)

    def __call__(self, index: int) -> list[tuple[str, int]]:
        """Up to K pairs (caption, label that it describes) for training caption ``index``; none equals the positive."""
        rng = random.Random(f"{self.seed}/{index}")
        caption = self.captions[index]
        n_swap = self.n_negatives - self.n_attr
        found = _collect(caption, self._swapped(index, rng), n_swap, {})
        found = _collect(caption, self._attributes(index, rng), len(found) + self.n_attr, found)
        if self.fill:
            for offers in (self._attributes, self._swapped):
                found = _collect(caption, offers(index, rng), self.n_negatives, found)
        return list(found.items())

    def _swapped(self, index: int, rng: random.Random):
        own = self.labels[index]
        for other in rng.sample(list(self.swaps[own]), len(self.swaps[own])):
            yield swap_class(self.captions[index], self.classnames[own], self.classnames[other]), other

    def _attributes(self, index: int, rng: random.Random):
        own = self.labels[index]
        if self.attr == "words":
            for _ in range(4 * self.n_negatives):
                yield swap_attribute(self.captions[index], rng), own
        others = [j for j in self.of_class[own] if j != index]
        for j in rng.sample(others, len(others)):
            yield self.captions[j], own


def _collect(caption: str, offers: Iterable[tuple[str, int]], limit: int, found: dict[str, int]) -> dict[str, int]:
    """Add offers to ``found`` (text -> label) until there are ``limit``, leaving out the positive."""
    found = dict(found)
    for text, described in offers:
        if len(found) >= limit:
            break
        if usable_negatives(caption, [text]):
            found.setdefault(text, described)
    return found


def given_negatives(
    caption: str, negatives: Sequence[str], own: int, classnames: Sequence[str]
) -> list[tuple[str, int]]:
    """Negatives of a file with the label that each describes: ``own`` where it names the own class as often as the caption,
    else the class whose name it has and the caption has not, else any other that it names, else ``own``.
    """
    pairs, own_name = [], name_pattern(classnames[own])
    times = len(own_name.findall(caption))
    in_caption = {c for c, name in enumerate(classnames) if name_pattern(name).search(caption)}
    for text in usable_negatives(caption, negatives):
        named = [c for c, name in enumerate(classnames) if c != own and name_pattern(name).search(text)]
        new = [c for c in named if c not in in_caption]
        if times and len(own_name.findall(text)) >= times:
            # "dark blue" for "blue" leaves the own name standing in it; other names belong to the attributes
            new = named = [c for c in new if own_name.search(classnames[c])]
        # "dark blue" also contains "blue": the longest name is meant
        pairs.append((text, max(new or named, key=lambda c: len(classnames[c]), default=own)))
    return pairs
