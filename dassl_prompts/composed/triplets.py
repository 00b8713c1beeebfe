"""Composed image retrieval data: (reference image, caption, target image) triplets, queries and galleries.

A dataset for composed retrieval offers ``train_x`` (a list of :class:`Triplet`) and ``tasks(split)`` (a list
of :class:`RetrievalTask`, such as the three categories of FashionIQ). Annotations are read at once; images
are only looked for by the part that needs them, so a CIRR evaluation does not ask for the training images.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dassl_prompts.engine import add_defaults, read_json
from dassl_prompts.engine.digest import digest
from dassl_prompts.images import IMAGE_SUFFIXES, missing_images


def extend_cfg(cfg) -> None:
    """Keys that the composed-retrieval datasets read."""
    add_defaults(
        cfg,
        "CIR",
        {
            "EVAL": [],  # datasets to evaluate on, e.g. ["CIRR", "FashionIQ"]; empty = DATASET.NAME itself
            "SPLIT": "val",  # split to evaluate; "test" of CIRR has no targets and gives submission files
            "SHEET": 8,  # queries on the contact sheet that an evaluation writes; 0 = no sheet
            "IMAGE_ROOTS": [],  # further folders in which to look for image folders, e.g. that of NLVR2
            "MAX_MISSING": 0,  # training triplets that may lack an image and are left out; not in evaluation
            "TARGETPAD_RATIO": 1.25,  # sides' ratio after padding, before the centre crop; 0 = no padding
            "CACHE": True,  # keep features of frozen image towers on disk: nothing is encoded twice
            "CACHE_DIR": "",  # "" = OUTPUT_DIR/features; runs with the same backbone may share a folder
            "CACHE_DTYPE": "fp16",  # of cached token maps: fp16 rounds them (half the size), fp32 is exact
            "LAION_SET": "combined",  # template, llm or combined (both, concatenated)
            # evaluate without the gallery images, and the queries, whose files are missing; not comparable
            "FIQ_LEAVE_OUT_MISSING": False,
            "FIQ_CATEGORIES": ["dress", "shirt", "toptee"],
            "FIQ_GALLERY": "original",  # original, or val_split: references and targets only (easier, older work)
            "FIQ_REMOVE_REFERENCE": False,  # the published protocol keeps the reference in the gallery
            "FIQ_CAPTION": "and",  # and: "c1 and c2"; and_rev: "c2 and c1"; both_avg: mean of both features
            "FIQ_EMPTY_CAPTION": "keep",  # keep: a dangling "and" (official code); drop: the other one alone
        },
    )


@dataclass(frozen=True)
class Triplet:
    """One training example: paths of reference and target image, and the caption that leads from one to the
    other."""

    reference: str
    caption: str
    target: str

    # what the resume file's fingerprint of the training set reads from every kind of item
    @property
    def impath(self) -> str:
        return self.reference

    @property
    def label(self) -> str:
        return f"{self.caption}\t{os.path.basename(self.target)}"


@dataclass(frozen=True)
class Query:
    """One evaluation query.

    Attributes:
        id: identifier in submissions. reference, target: gallery names; target is None where it is not
            public.
        texts: wordings of the caption; query features of several are averaged.
        members: gallery names of the subset that the fine-grained metric ranks, without the reference.
        targets: all right answers, ``target`` among them, where the data names several (CIRCO).
        aspects: kinds of change that the caption asks for, where the data says (CIRCO).
    """

    id: str
    reference: str
    texts: tuple[str, ...]
    target: str | None
    members: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    aspects: tuple[str, ...] = ()

    @property
    def answers(self) -> tuple[str, ...]:
        """The right answers; empty where they are not public."""
        return self.targets or ((self.target,) if self.target else ())


@dataclass(frozen=True)
class RetrievalTask:
    """Queries against one gallery.

    Attributes:
        name: such as "dress". protocol: "cirr", "fashioniq" or "circo", which fixes the metrics. gallery: name
            -> path, in ranking order.
        remove_reference: the reference does not take part in its query's ranking. left_out: what is lacking
            against the published task; its numbers are then not comparable.
    """

    name: str
    protocol: str
    gallery: Mapping[str, str]
    queries: Sequence[Query]
    remove_reference: bool
    left_out: str = ""
    index: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "index", {name: i for i, name in enumerate(self.gallery)})
        for query in self.queries:
            for what, names in (
                ("reference", [query.reference]),
                ("target", [query.target] if query.target else []),
                ("target", query.targets),
                ("subset member", query.members),
            ):
                absent = [name for name in names if name not in self.index]
                if absent:
                    raise ValueError(f"{self.name}: {what} {absent[0]} of query {query.id} is not in the gallery")
            if query.targets and (query.target not in query.targets or len(set(query.targets)) < len(query.targets)):
                raise ValueError(
                    f"{self.name}: the targets of query {query.id} do not hold {query.target}, or one of them twice"
                )

    def check_images(self, hint: str = "") -> None:
        """As :func:`check_galleries`."""
        check_galleries([self], hint)

    def without_missing(self) -> RetrievalTask:
        """The task without the images that are missing and without the queries that need them; prints the counts.

        Raises:
            FileNotFoundError: nothing would be left to ask.
        """
        missing = set(missing_images(self.gallery.values()))
        if not missing:
            return self
        gallery = {name: path for name, path in self.gallery.items() if path not in missing}
        queries = [q for q in self.queries if all(name in gallery for name in (q.reference, *q.answers))]
        if not queries:
            check_galleries([self])
        left_out = (
            f"{len(self.queries) - len(queries):,} of {len(self.queries):,} queries and {len(missing):,} of "
            f"{len(self.gallery):,} gallery images"
        )
        print(f"{self.name}: left out {left_out}, whose files are missing: not comparable with any published number")
        return replace(self, gallery=gallery, queries=queries, left_out=left_out)


def check_galleries(tasks: Sequence[RetrievalTask], hint: str = "") -> None:
    """Find out about the images of all tasks before the first of them is encoded.

    Raises:
        FileNotFoundError: gallery images are missing; counts and first names of every task. Evaluation never
            skips one.
    """
    lacking = []
    for task in tasks:
        paths = list(task.gallery.values())
        if missing := missing_images(paths):
            lacking.append(
                f"{len(missing):,} of the {len(paths):,} images of the gallery of {task.name} are missing, such as "
                f"{', '.join(missing[:3])}."
            )
    if lacking:
        if tasks[0].protocol == "fashioniq":
            hint = f"{hint} CIR.FIQ_LEAVE_OUT_MISSING True evaluates without them; no number is comparable then."
        raise FileNotFoundError("\n".join([*lacking, *([hint.strip()] if hint else [])]))


class NoQueries(ValueError):
    """A dataset is for training only."""


class NoImages(FileNotFoundError):
    """The annotations are there, no folder with their images is."""


class TripletDataset:
    """Base of the composed-retrieval datasets.

    Subclasses define ``read_triplets()`` (all training triplets, or an empty list) and ``tasks(split)``.
    """

    #: Dassl's attributes of a dataset without classes
    classnames: Sequence[str] = ()
    lab2cname: Mapping[int, str] = {}
    num_classes = 0

    #: possible places of the annotations below DATASET.ROOT, and a file or folder that marks the right one
    folders: Sequence[str] = ()
    marker = ""
    #: whether annotations may be read without any image folder, as the integrity report does
    images_optional = False

    def __init__(self, cfg):
        self.cfg = cfg
        self.root = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        self.annotations = self.find(
            [os.path.join(self.root, folder) for folder in self.folders], self.marker, "the annotations"
        )

    def read_triplets(self) -> list[Triplet]:
        return []

    def captions(self) -> list[str]:
        """Descriptions of single images, for training on text alone.

        Raises:
            ValueError: this data has none.
        """
        raise ValueError(
            f"{type(self).__name__} has no descriptions of single images, only captions of changes: give a file with one "
            "caption per line as TRAINER.LINCIR.CAPTIONS"
        )

    def tasks(self, split: str) -> list[RetrievalTask]:
        """What to evaluate on ``split``.

        Raises:
            NoQueries: there is nothing to evaluate on.
        """
        raise NoQueries(f"{type(self).__name__} has no evaluation queries: set CIR.EVAL, e.g. \"['CIRR']\"")

    @cached_property
    def train_x(self) -> list[Triplet]:
        """Training triplets whose images exist.

        Raises:
            FileNotFoundError: more than ``CIR.MAX_MISSING`` triplets lack an image.
        """
        return present_triplets(self.read_triplets(), self.cfg.CIR.MAX_MISSING, type(self).__name__)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of the annotations, by image names, so that the images may move."""
        found = {}
        with suppress(FileNotFoundError):  # an evaluation needs no training annotations
            found["training triplets"] = digest(
                f"{stem(t.reference)}\t{t.caption}\t{stem(t.target)}" for t in self.read_triplets()
            )
        with suppress(NoQueries, FileNotFoundError):
            tasks = self.tasks(self.cfg.CIR.SPLIT)
            lines = [f"{t.name}\t{name}" for t in tasks for name in t.gallery]
            queries = [q for t in tasks for q in t.queries]
            lines += [f"{q.id}\t{q.reference}\t{q.texts}\t{q.target}\t{q.members}" for q in queries]
            lines += [f"{q.id}\t{q.targets}\t{q.aspects}" for q in queries if q.targets]
            found[f"queries of {type(self).__name__}"] = digest(lines)
        return found

    # -- helpers for subclasses ------------------------------------------------------------------------------

    def find(self, candidates: Iterable[str], marker: str, what: str) -> str:
        """The first of ``candidates`` that contains ``marker``.

        Raises:
            FileNotFoundError: none does; lists them.
        """
        tried = list(dict.fromkeys(candidates))
        for folder in tried:
            if os.path.exists(os.path.join(folder, marker)):
                return folder
        places = "".join(f"\n  {os.path.join(folder, marker)}" for folder in tried)
        raise FileNotFoundError(
            f"{type(self).__name__}: {what} are not below DATASET.ROOT (--root) {self.root}; looked for{places}\n"
            "docs/pvlf.md says where each part comes from; CIR.IMAGE_ROOTS adds places for images"
        )

    def find_images(self, candidates: Sequence[str], markers: Sequence[str], what: str) -> str:
        """The first image folder that has any of ``markers``: one missing image must not hide the others.

        Raises:
            NoImages: there is none and ``images_optional`` is not set; with it, the first candidate is
                returned.
        """
        for folder in candidates:
            if any(os.path.exists(os.path.join(folder, marker)) for marker in markers):
                return folder
        if self.images_optional:
            return candidates[0]
        try:
            return self.find(candidates, markers[0], what)
        except FileNotFoundError as error:
            raise NoImages(str(error)) from None

    def read(self, *parts: str) -> Any:
        """A JSON file below the annotations."""
        path = os.path.join(self.annotations, *parts)
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{type(self).__name__}: {path} does not exist; docs/pvlf.md says where it comes from"
            )
        return read_json(path)

    def image_folders(self, *names: str) -> list[str]:
        """``names`` below the annotations, the root and every entry of CIR.IMAGE_ROOTS, in this order."""
        extra = [os.path.abspath(os.path.expanduser(folder)) for folder in self.cfg.CIR.IMAGE_ROOTS]
        return [
            os.path.normpath(os.path.join(base, name))
            for base in (*extra, self.annotations, self.root)
            for name in names
        ]


def stem(path: str) -> str:
    """Name of an image file without folder and suffix."""
    return os.path.splitext(os.path.basename(path))[0]


def present_triplets(triplets: list[Triplet], allowed: int, name: str) -> list[Triplet]:
    """The triplets whose two images exist; says how many were left out.

    Raises:
        FileNotFoundError: more than ``allowed`` would be left out.
    """
    missing = set(missing_images({path: None for t in triplets for path in (t.reference, t.target)}))
    kept = [t for t in triplets if t.reference not in missing and t.target not in missing]
    left_out = len(triplets) - len(kept)
    if left_out > allowed or (triplets and not kept):
        first = ", ".join(sorted(missing)[:3])
        raise FileNotFoundError(
            f"{name}: {left_out:,} of {len(triplets):,} training triplets lack an image ({len(missing):,} images are missing, "
            f"such as {first}). Complete the images, or allow it with CIR.MAX_MISSING {left_out}"
        )
    if left_out:
        print(f"{name}: left out {left_out:,} of {len(triplets):,} triplets, {len(missing):,} images are missing")
    return kept


class ImageFolder:
    """Paths of images that are known by a name without a suffix; the folder is listed once.

    Args:
        folder: of the images. parts: folders in it that hold images, too.
    """

    def __init__(self, folder: str, parts: Sequence[str] = ()):
        self.folder = folder
        names = [
            os.path.join(part, name)
            for part in ("", *parts)
            if os.path.isdir(os.path.join(folder, part))
            for name in sorted(os.listdir(os.path.join(folder, part)))
        ]
        stems = ((os.path.splitext(os.path.basename(name)), name) for name in names)
        # in the order of IMAGE_SUFFIXES, so that a .png wins over a .jpg of the same name
        found = [
            (IMAGE_SUFFIXES.index(suffix.lower()), stem, name)
            for (stem, suffix), name in stems
            if suffix.lower() in IMAGE_SUFFIXES
        ]
        self.names = {stem: name for _, stem, name in sorted(found, reverse=True)}

    def path(self, stem: str) -> str:
        """The image's path; where there is none, the path that it should have."""
        return os.path.join(self.folder, self.names.get(stem, stem + IMAGE_SUFFIXES[0]))
