"""FDRD: fine-grained captions for nine of CoOp's datasets (arXiv 2508.04028), and the same format on the
embedded emoji.

``DATASET.FDRD_DOMAIN`` names the domain. Its JSON files are looked for in ``ROOT/FDRD/{train,test}``, the
images in CoOp's folders below ``ROOT``. The gallery is all test images with their captions; train and val of
CoOp's split are one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from dassl_prompts.captions.data import CaptionDatum
from dassl_prompts.captions.records import FDRDError, Record, parse_records, read_records, usable_negatives
from dassl_prompts.classification.splits import few_shot
from dassl_prompts.emoji.archives import ASSETS
from dassl_prompts.engine import DatasetBase, add_defaults, register_dataset
from dassl_prompts.engine.digest import digests_of_lists
from dassl_prompts.fdrd.domains import CUSTOM, FOLDER, ImageFinder, find_file, get_domain
from dassl_prompts.images import check_images

EMOJI = "emoji"


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "DATASET",
        {
            "FDRD_DOMAIN": "",  # one of the nine, emoji, or custom
            "FDRD_TRAIN": "",  # JSON file instead of ROOT/FDRD/train/<file of the domain>
            "FDRD_TEST": "",
        },
    )


@register_dataset
class FDRD(DatasetBase):
    """Captioned images of one domain; every item is a :class:`CaptionDatum`, one for each caption of an image.

    Raises:
        ValueError: unknown domain (lists the nine), unusable file or record.
        FileNotFoundError: annotation file or images missing.
    """

    def __init__(self, cfg):
        name = cfg.DATASET.FDRD_DOMAIN
        if not name:
            raise ValueError(
                "DATASET.FDRD_DOMAIN is empty: name one of FDRD's domains, e.g. DATASET.FDRD_DOMAIN DTD, or emoji"
            )
        if cfg.DATASET.get("SUBSAMPLE_CLASSES", "all") != "all":
            raise ValueError("FDRD's protocol has no base and new classes: leave DATASET.SUBSAMPLE_CLASSES at all")
        if name.lower() == EMOJI:
            train, test, root, cache_dir = *emoji_pairs(), "", None
        else:
            train, test, root, cache_dir = self.read_domain(cfg, name)
        label = {cname: i for i, cname in enumerate(dict.fromkeys(item[1] for item in (*train, *test)))}
        train, test = ([d for item in part for d in to_data(*item, label[item[1]])] for part in (train, test))
        check_classes((*train, *test))
        check_images(
            [d.impath for d in (*train, *test)],
            f"FDRD {name}",
            "The images are those of CoOp's datasets; docs/datasets.md says where each comes from",
        )
        self.digests = digests_of_lists((train, test), root or ASSETS)
        train = self.draw(train, cfg, root, cache_dir)
        super().__init__(train_x=train, test=test)
        # a test set may hold classes that training has none of; they need names all the same
        self._lab2cname = {i: cname for cname, i in label.items()}

    @staticmethod
    def read_domain(cfg, name: str):
        """``(record, class, path)`` of train and test, image root and folder for few-shot draws."""
        domain, root = get_domain(name), cfg.DATASET.ROOT
        find = ImageFinder(domain, root)
        parts = []
        for split, given in (("train", cfg.DATASET.FDRD_TRAIN), ("test", cfg.DATASET.FDRD_TEST)):
            path = find_file(domain, split, root, given)
            print(f"Reading captions from {path}")
            try:
                parts.append([(r, domain.class_of(r), find(r)) for r in read_records(path)])
            except FDRDError as error:
                raise FDRDError(error if str(path) in str(error) else f"{path}: {error}") from error
        cache_dir = None if domain is CUSTOM else os.path.join(find.root, FOLDER, "split_fewshot", domain.name)
        return *parts, find.root, cache_dir

    @staticmethod
    def draw(train: list[CaptionDatum], cfg, root: str, cache_dir: str | None) -> list[CaptionDatum]:
        """``NUM_SHOTS`` images of every class with all their captions, kept per (domain, shots, seed)."""
        by_path: dict[str, list[CaptionDatum]] = {}
        for item in train:
            by_path.setdefault(item.impath, []).append(item)
        images = [pairs[0] for pairs in by_path.values()]
        drawn, _ = few_shot(images, [], cfg.DATASET.NUM_SHOTS, cfg.SEED, root or "/", cache_dir)
        return [pair for item in drawn for pair in by_path[item.impath]]


def to_data(record: Record, classname: str, impath: str, label: int) -> list[CaptionDatum]:
    """A pair of image and caption for every caption of a record."""
    negatives = usable_negatives(record.caption, record.negatives, record.further)
    return [
        CaptionDatum(impath, label, classname=classname, caption=caption, negatives=negatives, key=record.key)
        for caption in record.captions
    ]


def check_classes(items: Sequence[CaptionDatum]) -> None:
    """Refuse an image that is named under two classes.

    Raises:
        ValueError: names the image and the classes.
    """
    classes: dict[str, str] = {}
    for item in items:
        if classes.setdefault(item.impath, item.classname) != item.classname:
            raise ValueError(
                f"{item.impath} is captioned as {classes[item.impath]!r} and as {item.classname!r}: one class per image"
            )


def emoji_pairs() -> tuple[Sequence, Sequence]:
    """Train and test of the embedded emoji in the style that the embedded backbones have not seen."""
    from dassl_prompts.emoji.retrieval import emoji_fdrd

    parts = []
    for split in ("train", "test"):
        records, problems = parse_records(list(emoji_fdrd(split).items()))
        if problems:
            raise FDRDError(f"embedded emoji captions: {problems[0]}")
        parts.append([(r, r.class_name, r.file_path) for r in records])
    return parts[0], parts[1]
