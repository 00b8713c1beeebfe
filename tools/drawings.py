"""The rendered drawings as training data: which words fit which drawing, balanced sampling, ink on a ground, augmentation."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from clip_training import MEAN, STD, jitter, random_affine
from icon_sets import EMOJI, FLAGS, unframed

#: Words that a mirrored drawing may contradict.
DIRECTED = frozenset(
    "left right leftwards rightwards facing east west clockwise counterclockwise anticlockwise flag letter number text clock "
    "forward backward back next previous rewind undo redo reply question numeric abc".split()
)
OTHERS, CATEGORIES, PARTS = 6, 3, 8  # most words of a kind that are kept per drawing
#: Templates around a name. The first ones are short, so that most captions are; the rest follow the prompt ensembles in use.
SHORT = ("{}", "{}", "a {}", "{} icon", "the {}", "{} symbol", "{} drawing")
LONG = (
    "a photo of a {}.", "a photo of a {}.", "a picture of a {}.", "an icon of a {}.", "a drawing of a {}.", "a sketch of a {}.",
    "a bad photo of the {}.", "a photo of the large {}.", "a photo of the small {}.", "itap of a {}.", "art of the {}.",
    "an image of a {}", "clip art of a {}.", "a symbol of a {}.", "a cartoon {}.", "a {} in a video game.", "a origami {}.",
    "a photo of a {}, a type of icon.", "a photo of a {}, a kind of drawing.", "a photo of my {}.", "a rendering of a {}.",
)  # fmt: skip
#: Templates for the looks of a drawing: one colour, coloured, emoji, flag.
LOOKS = {
    "ink": (
        "a line icon of a {}.",
        "a black and white icon of a {}.",
        "a silhouette of a {}.",
        "a monochrome drawing of a {}.",
    ),
    "colour": ("a colourful icon of a {}.", "a coloured drawing of a {}.", "a flat illustration of a {}."),
    "emoji": ("an emoji of a {}.", "a photo of a {}, a type of emoji.", "{} emoji", "a colourful emoji of a {}."),
    "flag": ("{}", "a picture of the {}."),
}


class DataError(ValueError):
    """The rendered drawings are missing or damaged."""


def parts_of(name: str, known: dict[str, int]) -> list[int]:
    """Known shorter names inside a name: a drawing of a "wolf head" is no counter-example to "wolf" or "head"."""
    words = name.split()
    spans = ((i, j) for i in range(len(words)) for j in range(i + 1, len(words) + 1) if j - i < len(words))
    return [known[s] for i, j in spans if (s := " ".join(words[i:j])) in known][:PARTS]


def table(rows: list[list[int]], width: int) -> torch.Tensor:
    """[N,width] of ids, padded with -1."""
    return torch.tensor([(r[:width] + [-1] * width)[:width] for r in rows])


def read_tables(folder: Path, ink: int) -> dict:
    """What :class:`Drawings` needs of ``drawings.json``, kept in ``tables.pt``, since reading the words takes a minute.

    Args:
        ink: how many of the rows, the first ones, are one-colour drawings.
    """
    path, source = folder / "tables.pt", folder / "drawings.json"
    if path.exists() and path.stat().st_mtime > source.stat().st_mtime:
        return torch.load(path, weights_only=True)
    tables = make_tables(json.loads(source.read_text(encoding="utf-8"))["drawings"], ink)
    temporary = path.with_suffix(f".part{os.getpid()}")
    torch.save(tables, temporary)
    os.replace(temporary, path)
    return tables


def make_tables(rows: list[dict], ink: int) -> dict:
    """The tables of all drawings, see :class:`Drawings`; `set_aside` [N] marks one drawing in a hundred, by a hash."""
    named = [(r["name"], unframed(r["name"]), *r["others"][:OTHERS], *r["categories"][:CATEGORIES]) for r in rows]
    sentences = sorted({s for words in named for s in words if s})
    known = {s: i for i, s in enumerate(sentences)}
    parts = {name: parts_of(name, known) for name in {r["name"] for r in rows}}
    count, kinds = Counter(r["name"] for r in rows), list(LOOKS)
    looks = [
        "emoji" if r["set"] in EMOJI else "flag" if r["set"] in FLAGS else "colour" if i >= ink else "ink"
        for i, r in enumerate(rows)
    ]
    kept = {"others": OTHERS, "categories": CATEGORIES}
    own = [table([[known[r["name"]], known[unframed(r["name"])]] for r in rows], 2)]
    own += [table([[known[s] for s in r[key] if s in known] for r in rows], width) for key, width in kept.items()]
    return {
        "sentences": sentences,
        "own": torch.cat(own, 1),
        "parts": table([parts[r["name"]] for r in rows], PARTS),
        "count": torch.tensor([count[r["name"]] for r in rows]),
        "may_flip": torch.tensor([not DIRECTED & set(r["name"].split()) for r in rows]),
        "looks": torch.tensor([kinds.index(look) for look in looks]),
        "set_aside": torch.tensor([hashlib.sha256(f"{r['set']}:{r['icon']}".encode()).digest()[0] < 3 for r in rows]),
    }


class Drawings:
    """All drawings of ``DIR/drawings`` and their words.

    Attributes:
        sentences: every name, alias, keyword and theme; ids below index it.
        own: [N,K] ids of the sentences that fit a drawing, -1 where there are fewer: name, name without frame, others, themes.
        parts: [N,P] ids that neither fit nor contradict it.
        train, val: indices; one drawing in a hundred is for validation.
        weight: [N] sampling weight, 1 over the square root of the drawings of that name; coloured ones count `colour_weight`.
        looks: [N] index into LOOKS.
    """

    def __init__(self, folder: Path, colour_weight: float = 3.0):
        try:
            self.ink, self.colour = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ink", "colour"))
            tables = read_tables(folder, len(self.ink))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{folder}: {error}; make it with tools/build_drawings.py") from error
        if len(tables["own"]) != len(self):
            raise DataError(f"{folder}: {len(tables['own'])} rows, {len(self)} drawings; delete it and build it again")
        self.sentences, self.own, self.parts, self.looks = (tables[k] for k in ("sentences", "own", "parts", "looks"))
        self.may_flip, chosen = tables["may_flip"], tables["set_aside"]
        colour = torch.arange(len(self)) >= len(self.ink)
        self.weight = tables["count"].float() ** -0.5 * torch.where(colour, colour_weight, 1.0)
        self.train, self.val = (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]

    def __len__(self) -> int:
        return len(self.ink) + len(self.colour)

    def batches(self, size: int, generator):
        """Endless index batches [size], drawn by weight from the training drawings."""
        weight = self.weight[self.train]
        while True:
            order = torch.multinomial(weight, min(len(weight) // 2, 200 * size), replacement=True, generator=generator)
            for i in range(0, len(order) - size + 1, size):
                yield self.train[order[i : i + size]]

    def choose_words(self, index, generator):
        """[B] sentence id per drawing: mostly the name, else an alias or keyword, else a theme."""
        own = self.own[index]
        b, k = own.shape
        weight = torch.tensor([0.55, 0.15] + [0.25 / 2] * OTHERS + [0.12 / 1.5] * CATEGORIES).expand(b, k) * (own >= 0)
        return own.gather(1, torch.multinomial(weight, 1, generator=generator))[:, 0]

    # -- pictures ------------------------------------------------------------------------------------------

    def split(self, index):
        """(positions and rows of the one-colour drawings, positions and rows of the coloured ones) in a batch."""
        ink = index < len(self.ink)
        return ink.nonzero()[:, 0], index[ink], (~ink).nonzero()[:, 0], index[~ink] - len(self.ink)

    def plain(self, index):
        """[B,3,64,64] normalised: black on white, coloured ones on white."""
        at_ink, ink, at_colour, colour = self.split(index)
        images = torch.ones(len(index), 3, *self.ink.shape[1:])
        images[at_ink] = 1 - torch.from_numpy(self.ink[ink.numpy()]).float()[:, None] / 255
        rgba = torch.from_numpy(self.colour[colour.numpy()]).float().permute(0, 3, 1, 2) / 255
        images[at_colour] = 1 + rgba[:, 3:] * (rgba[:, :3] - 1)
        return (images - MEAN) / STD

    def augmented(self, index, generator):
        """[B,3,64,64] normalised: random affine map, an unsteady hand, line weight, ink and ground, colour, sharpness."""
        at_ink, ink, at_colour, colour = self.split(index)
        theta = random_affine(len(index), self.may_flip[index], generator, (0.8, 1.3))
        images = torch.empty(len(index), 3, *self.ink.shape[1:])
        if len(at_ink):
            opacity = torch.from_numpy(self.ink[ink.numpy()]).float()[:, None] / 255
            grid = F.affine_grid(theta[at_ink], list(opacity.shape), align_corners=False)
            grid = grid + unsteady_hand(len(at_ink), opacity.shape[-1], generator)
            opacity = line_weight(F.grid_sample(opacity, grid, align_corners=False), generator)
            pen, ground = ink_and_ground(len(at_ink), generator)
            images[at_ink] = ground + opacity * (pen - ground)
        if len(at_colour):
            rgba = torch.from_numpy(self.colour[colour.numpy()]).float().permute(0, 3, 1, 2) / 255
            rgba[:, :3] *= rgba[:, 3:]
            grid = F.affine_grid(theta[at_colour], list(rgba.shape), align_corners=False)
            rgba = F.grid_sample(rgba, grid, align_corners=False)
            images[at_colour] = rgba[:, :3] + (1 - rgba[:, 3:]) * grounds(len(at_colour), generator)
        return jitter(images, generator)


def unsteady_hand(b: int, size: int, generator):
    """[b,size,size,2] smooth displacements of a few percent of the picture; none for half of the drawings."""
    amount = (torch.rand(b, 1, 1, 1, generator=generator) * 2 - 1).clamp(min=0) * 0.06
    knots = amount * torch.randn(b, 2, 5, 5, generator=generator)
    return F.interpolate(knots, size=(size, size), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def line_weight(opacity, generator):
    """Thickens or thins the lines of a third of the drawings [B,1,S,S]."""
    b = len(opacity)
    amount = (torch.rand(b, 1, 1, 1, generator=generator) * 6 - 3).clamp(-2, 3)
    thick, thin = (amount - 2).clamp(0, 1), (-amount - 1).clamp(0, 1) * 0.5
    changed = ((thick + thin) > 0).flatten().nonzero()[:, 0]
    part, up, down = opacity[changed], thick[changed], thin[changed]
    wide, narrow = F.max_pool2d(part, 3, 1, 1), -F.max_pool2d(-part, 3, 1, 1)
    opacity = opacity.clone()
    opacity[changed] = part + up * (wide - part) + down * (narrow - part)
    return opacity


def grounds(b: int, generator):
    """[b,3,1,1]: two thirds white, the rest light, a few dark."""
    colour, dice = torch.rand(b, 3, 1, 1, generator=generator), torch.rand(b, 1, 1, 1, generator=generator)
    light, dark = 0.7 + 0.3 * colour, 0.4 * colour
    return torch.where(dice < 0.65, torch.ones_like(colour), torch.where(dice < 0.88, light, dark))


def ink_and_ground(b: int, generator):
    """Two colours [b,3,1,1] that stand out from each other: dark on white in most cases, some light on dark."""
    pen = torch.rand(b, 3, 1, 1, generator=generator)
    dice = torch.rand(b, 1, 1, 1, generator=generator)
    ground = grounds(b, generator)
    grey = pen.mean(1, keepdim=True)
    dark = torch.where(dice < 0.5, 0.25 * grey, pen - (grey - 0.3).clamp(min=0))
    light = 1 - 0.35 * pen
    return torch.where(ground.mean(1, keepdim=True) > 0.5, dark.clamp(0, 1), light), ground
