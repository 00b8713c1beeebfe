"""FashionIQ: composed retrieval of fashion products (Wu et al., CVPR 2021).

``captions/cap.<category>.<split>.json``, ``image_splits/split.<category>.<split>.json``,
``images/<asin>.png`` or ``.jpg``, also in a folder per category (``images/dress/<asin>.jpg`` or ``dress/<asin>.jpg``). Each of the three categories has a gallery of its own; the reference stays
in it (published protocol).
"""

from __future__ import annotations

import os

from dassl_prompts.composed.triplets import ImageFolder, Query, RetrievalTask, Triplet, TripletDataset, extend_cfg  # noqa: F401
from dassl_prompts.engine import register_dataset

CATEGORIES = ("dress", "shirt", "toptee")
SPLITS = ("train", "val", "test")
CAPTION_ORDERS = ("and", "and_rev", "both_avg")


@register_dataset
class FashionIQ(TripletDataset):
    """One task per category; the test split has no public targets."""

    folders = ("fashioniq", "fashionIQ_dataset", "fashion-iq", "FashionIQ", ".")
    marker = "image_splits/split.dress.val.json"

    def __init__(self, cfg):
        super().__init__(cfg)
        unknown = [c for c in cfg.CIR.FIQ_CATEGORIES if c not in CATEGORIES]
        if unknown or not cfg.CIR.FIQ_CATEGORIES:
            raise ValueError(f"CIR.FIQ_CATEGORIES is {cfg.CIR.FIQ_CATEGORIES}; choose from {', '.join(CATEGORIES)}")
        choices = {
            "FIQ_GALLERY": ("original", "val_split"),
            "FIQ_CAPTION": CAPTION_ORDERS,
            "FIQ_EMPTY_CAPTION": ("keep", "drop"),
        }
        for key, allowed in choices.items():
            if cfg.CIR[key] not in allowed:
                raise ValueError(f"CIR.{key} is {cfg.CIR[key]!r}; choose one of {', '.join(allowed)}")

    def read_triplets(self) -> list[Triplet]:
        images = self.images()
        return [
            Triplet(images.path(entry["candidate"]), texts[0], images.path(entry["target"]))
            for category in self.cfg.CIR.FIQ_CATEGORIES
            for entry in self.read("captions", f"cap.{category}.train.json")
            for texts in [self.texts(entry["captions"])]
        ]

    def images(self) -> ImageFolder:
        folders = self.image_folders("images")
        apart = [
            folder for folder in self.image_folders(".") if any(os.path.isdir(f"{folder}/{c}") for c in CATEGORIES)
        ]
        if apart and not any(map(os.path.isdir, folders)):
            return ImageFolder(apart[0], CATEGORIES)
        return ImageFolder(self.find_images(folders, ["."], "the images"), CATEGORIES)

    def tasks(self, split: str = "val") -> list[RetrievalTask]:
        if split not in SPLITS:
            raise ValueError(f"FashionIQ has no split {split!r}; choose one of {', '.join(SPLITS)}")
        images = self.images()
        tasks = [self.task(category, split, images) for category in self.cfg.CIR.FIQ_CATEGORIES]
        return [task.without_missing() for task in tasks] if self.cfg.CIR.FIQ_LEAVE_OUT_MISSING else tasks

    def task(self, category: str, split: str, images: ImageFolder) -> RetrievalTask:
        """The task of one category with image paths from ``images``."""
        entries = self.read("captions", f"cap.{category}.{split}.json")
        names = self.read("image_splits", f"split.{category}.{split}.json")
        if self.cfg.CIR.FIQ_GALLERY == "val_split":
            used = {name for e in entries for name in (e["candidate"], e.get("target"))}
            names = [name for name in names if name in used]
        queries = [
            Query(f"{category}-{i}", e["candidate"], self.texts(e["captions"]), e.get("target"))
            for i, e in enumerate(entries)
        ]
        gallery = {name: images.path(name) for name in names}
        return RetrievalTask(
            f"FashionIQ {category} {split}", "fashioniq", gallery, queries, self.cfg.CIR.FIQ_REMOVE_REFERENCE
        )

    def half_empty(self, category: str, split: str) -> int:
        """Entries of which an annotator's caption is empty, which the joined text no longer shows."""
        entries = self.read("captions", f"cap.{category}.{split}.json")
        return sum(not all(map(clean, entry["captions"])) for entry in entries)

    def texts(self, captions: list[str]) -> tuple[str, ...]:
        return join_captions(captions, self.cfg.CIR.FIQ_CAPTION, self.cfg.CIR.FIQ_EMPTY_CAPTION)


def clean(caption: str) -> str:
    """One annotator's caption as CLIP4Cir and TransAgg clean it."""
    return caption.strip(".?, ")


def join_captions(captions: list[str], order: str = "and", empty: str = "keep") -> tuple[str, ...]:
    """The two annotators' captions as query texts, cleaned as CLIP4Cir and TransAgg do it.

    Args:
        order: "and": ``C1 and c2``; "and_rev": ``C2 and c1``; "both_avg": both, whose features the caller
            averages.
        empty: "keep" joins an empty caption too (a dangling "and"), "drop" leaves it out.
    """
    first, second = map(clean, captions)
    if empty == "drop" and not (first and second):
        return ((first or second).capitalize(),)
    forth, back = f"{first.capitalize()} and {second}", f"{second.capitalize()} and {first}"
    return {"and": (forth,), "and_rev": (back,), "both_avg": (forth, back)}[order]
