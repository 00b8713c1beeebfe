"""CIRR, release rc2: composed retrieval among real-life images (Liu et al., ICCV 2021).

Annotations in ``captions/cap.rc2.<split>.json`` and ``image_splits/split.rc2.<split>.json``. Images in any of
three layouts: below ``img_raw`` (official), beside the annotation folder (CLIP4Cir, SEARLE), or in NLVR2's
``images`` (TransAgg).
"""

from __future__ import annotations

import os

from dassl_prompts.composed.triplets import Query, RetrievalTask, Triplet, TripletDataset, extend_cfg  # noqa: F401
from dassl_prompts.engine import register_dataset

#: images of a split by which its folder is recognised; any of them is enough
MARKERS = 20
SPLITS = {"train": "train", "val": "val", "test": "test1", "test1": "test1"}


@register_dataset
class CIRR(TripletDataset):
    """``tasks("val")`` has targets; ``tasks("test")`` (test1) is scored by the server only."""

    folders = ("cirr", "cirr_dataset/cirr", "CIRR/cirr", "cirr_dataset", "CIRR", ".")
    marker = "image_splits"

    def read_triplets(self) -> list[Triplet]:
        paths = self.image_paths("train")
        return [
            Triplet(paths[entry["reference"]], entry["caption"], paths[entry["target_hard"]])
            for entry in self.read("captions", "cap.rc2.train.json")
        ]

    def image_paths(self, split: str) -> dict[str, str]:
        """Image name -> path of all images of a split ("train", "val", "test1"; val's names and folder are
        called dev).

        Raises:
            NoImages: no layout has any of the split's first images.
        """
        relative = {
            name: os.path.normpath(path) for name, path in self.read("image_splits", f"split.rc2.{split}.json").items()
        }
        folders = self.image_folders("img_raw", "..", ".", "images", "nlvr2/images", "NLVR2/images")
        folder = self.find_images(folders, list(relative.values())[:MARKERS], f"the images of split {split}")
        return {name: os.path.join(folder, path) for name, path in relative.items()}

    def tasks(self, split: str = "val") -> list[RetrievalTask]:
        if split not in SPLITS:
            raise ValueError(f"CIRR has no split {split!r}; choose one of {', '.join(SPLITS)}")
        split = SPLITS[split]
        return [self.task(split, self.image_paths(split))]

    def task(self, split: str, gallery: dict[str, str]) -> RetrievalTask:
        """The task of a split ("val" or "test1") on a gallery of given paths."""
        entries = self.read("captions", f"cap.rc2.{split}.json")
        return RetrievalTask(
            f"CIRR {split}", "cirr", gallery, [read_query(entry) for entry in entries], remove_reference=True
        )


def read_query(entry: dict) -> Query:
    """An entry of a caption file; ``target_soft`` is not used (spec: 42 val items contradict
    ``target_hard``)."""
    members = tuple(name for name in entry["img_set"]["members"] if name != entry["reference"])
    return Query(str(entry["pairid"]), entry["reference"], (entry["caption"],), entry.get("target_hard"), members)
