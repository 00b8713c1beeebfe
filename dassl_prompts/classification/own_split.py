"""Own pictures with a split: the one they come with, or one drawn by a seed and written down."""

from __future__ import annotations

import os
import random
from pathlib import Path

from dassl_prompts.classification.own_lists import (
    Picture,
    check_classes,
    check_parts,
    class_order,
    listed,
    read_folder,
    read_list,
    renamed,
)
from dassl_prompts.classification.own_notes import check_pictures, notes_folder
from dassl_prompts.classification.split_files import PARTS, Splits, kept_split
from dassl_prompts.classification.splits import split_by_class
from dassl_prompts.engine import Datum
from dassl_prompts.engine.config import read_names

#: what a split that nobody asked for is drawn with
SEED = 1


class OwnSplit:
    """What ``DATASET.ROOT`` holds, checked, and split.

    Args:
        cfg: ``DATASET.ROOT`` is a folder or a CSV; ``DATASET.CLASS_NAMES_FILE``, ``DATASET.MAKE_SPLIT`` and
            ``DATASET.SAME_PICTURES`` apply. captions: the CSV has captions, and labels if it likes.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it cannot be trained or tested on; names what to mend.

    Attributes:
        place: the folder or CSV. root: folder that the pictures' paths count from. notes: folder of what is kept. names: folder or
        label -> class name, in the order of the labels. pictures: all of them, each with its part. seed: of the split, None
        where the data came with one.
    """

    def __init__(self, cfg, captions: bool = False):
        self.place = os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))
        if not os.path.exists(self.place):
            raise FileNotFoundError(f"own data: there is no folder and no list {self.place}")
        is_folder = os.path.isdir(self.place)
        if is_folder and captions:
            raise ValueError(
                f"{self.place} is a folder: captions are read from a CSV with the columns path and caption"
            )
        pictures = read_folder(self.place) if is_folder else read_list(self.place, captions)
        self.root = self.place if is_folder else os.path.commonpath([os.path.dirname(p.path) for p in pictures])
        self.notes = notes_folder(self.place)
        order = class_order(picture.classname for picture in pictures)
        source = cfg.DATASET.CLASS_NAMES_FILE
        self.names = renamed(order, read_names(source) if source else {}, source)
        if not captions:
            check_classes(self.names, self.place)
        content = check_pictures([picture.path for picture in pictures], self.root, self.notes, self.place)
        self.seed = None if any(picture.part for picture in pictures) else SEED
        if cfg.DATASET.MAKE_SPLIT >= 0:
            if self.seed is None:
                raise ValueError(
                    f"DATASET.MAKE_SPLIT is {cfg.DATASET.MAKE_SPLIT}, but {self.place} says itself what is train and test"
                )
            self.seed = cfg.DATASET.MAKE_SPLIT
        self.pictures = pictures if self.seed is None else self.drawn(pictures)
        if not cfg.DATASET.SAME_PICTURES:
            check_parts(self.pictures, content.__getitem__, self.place)

    @property
    def draws(self) -> Path:
        """Folder of the few-shot draws of this split."""
        return self.notes / ("split_fewshot" if self.seed is None else f"split_fewshot_seed{self.seed}")

    def drawn(self, pictures: list[Picture]) -> list[Picture]:
        """``pictures`` with the parts of the split that was drawn before, or is drawn now (see :func:`kept_split`).

        Raises:
            ValueError: a class is too small, or pictures came or went since the split was drawn.
        """
        path = self.notes / f"split_seed{self.seed}.json"
        items = self.data(dict.fromkeys(p.path for p in pictures), pictures)
        splits = kept_split(path, self.root, lambda: split_by_class(items, random.Random(self.seed)))
        parts = {item.impath: part for part, found in zip(PARTS, splits) for item in found}
        came = [picture.path for picture in pictures if picture.path not in parts]
        gone = [name for name in parts if name not in {picture.path for picture in pictures}]
        if came or gone:
            changes = [
                f"{len(names)} pictures {verb} ({listed(names)})"
                for names, verb in ((came, "came"), (gone, "went"))
                if names
            ]
            raise ValueError(
                f"{self.place}: since its split was drawn {' and '.join(changes)}: undo that, delete {path} to draw it anew, or "
                "keep it and draw another with DATASET.MAKE_SPLIT 2"
            )
        return [Picture(p.path, p.classname, parts[p.path], p.caption) for p in pictures]

    def data(self, paths, pictures: list[Picture]) -> list[Datum]:
        """An item per path; a picture with several captions is one."""
        label = {name: number for number, name in enumerate(self.names)}
        known = {picture.path: picture.classname for picture in pictures}
        return [Datum(impath=path, label=label[known[path]], classname=known[path]) for path in paths]

    def splits(self) -> Splits:
        """The three lists with class names."""
        label = {name: number for number, name in enumerate(self.names)}
        lists = {part: [] for part in PARTS}
        for picture in self.pictures:
            name = picture.classname
            lists[picture.part].append(Datum(impath=picture.path, label=label[name], classname=self.names[name]))
        return Splits(**lists)
