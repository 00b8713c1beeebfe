"""CIRCO: composed retrieval with several right answers per query (Baldrati et al., ICCV 2023). No training split.

``annotations/{val,test}.json``; the gallery is COCO's unlabeled set of 2017, as ``image_info_unlabeled2017.json`` lists it.
Annotations are CC BY-NC 4.0.
"""

from __future__ import annotations

import os

from dassl_prompts.composed.triplets import NoImages, Query, RetrievalTask, TripletDataset, extend_cfg  # noqa: F401
from dassl_prompts.engine import read_json, register_dataset

#: images of the gallery by which their folder is recognised; any of them is enough
MARKERS = 20
SPLITS = ("val", "test")
INFO = "image_info_unlabeled2017.json"


@register_dataset
class CIRCO(TripletDataset):
    """``tasks("val")`` has targets; ``tasks("test")`` is scored by the server only. The reference stays in the gallery
    (published protocol); images are named by their COCO number."""

    folders = ("circo", "CIRCO", "circo_dataset", ".")
    marker = "annotations/val.json"

    def listed(self) -> dict[str, str]:
        """COCO number -> file name of the gallery, in the order of COCO's list.

        Raises:
            NoImages: COCO's list is nowhere, and ``images_optional`` is not set; with it, the images that the
                annotations name are returned.
        """
        places = ("COCO2017_unlabeled/annotations", "annotations", "coco/annotations")
        folders = self.image_folders(*places)
        try:
            path = os.path.join(self.find(folders, INFO, "COCO's list of images"), INFO)
        except FileNotFoundError as error:
            if not self.images_optional:
                raise NoImages(str(error)) from None
            return {name: f"{name.zfill(12)}.jpg" for name in self.named()}
        try:
            return {str(image["id"]): image["file_name"] for image in read_json(path)["images"]}
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is not COCO's list of images (no {error} in it)") from error

    def named(self) -> list[str]:
        """The images that the annotations name, in ascending order."""
        entries = [entry for split in SPLITS for entry in self.entries(split)]
        ids = {number for e in entries for number in (e["reference_img_id"], *e.get("gt_img_ids", []))}
        return [str(number) for number in sorted(ids)]

    def entries(self, split: str) -> list[dict]:
        return self.read("annotations", f"{split}.json")

    def image_paths(self) -> dict[str, str]:
        """COCO number -> path of all images of the gallery.

        Raises:
            NoImages: the list or the images are missing.
        """
        listed = self.listed()
        places = (
            "COCO2017_unlabeled/unlabeled2017",
            "unlabeled2017",
            "coco/unlabeled2017",
            "coco/images/unlabeled2017",
        )
        files = list(listed.values())
        folder = self.find_images(self.image_folders(*places), files[:MARKERS], "the images")
        return {name: os.path.join(folder, file) for name, file in listed.items()}

    def tasks(self, split: str = "val") -> list[RetrievalTask]:
        if split not in SPLITS:
            raise ValueError(f"CIRCO has no split {split!r}; choose one of {', '.join(SPLITS)}")
        return [self.task(split, self.image_paths())]

    def task(self, split: str, gallery: dict[str, str]) -> RetrievalTask:
        """The task of a split ("val" or "test") on a gallery of given paths."""
        queries = [read_query(entry) for entry in self.entries(split)]
        return RetrievalTask(f"CIRCO {split}", "circo", gallery, queries, remove_reference=False)


def read_query(entry: dict) -> Query:
    """An entry of an annotation file; ``shared_concept`` is not asked, as in the published protocol."""
    target = entry.get("target_img_id")
    return Query(
        str(entry["id"]),
        str(entry["reference_img_id"]),
        (entry["relative_caption"],),
        None if target is None else str(target),
        targets=tuple(map(str, entry.get("gt_img_ids", []))),
        aspects=tuple(entry.get("semantic_aspects", [])),
    )
