"""The base of the classification datasets: a split, its base or new classes, its few-shot draw."""

from __future__ import annotations

import os
import random
from collections import Counter

from dassl_prompts.classification.split_files import Splits, check_labels, kept_split, read_split, same_name
from dassl_prompts.classification.splits import (
    few_shot,
    list_folders,
    list_images,
    split_by_class,
    subsample_classes,
)
from dassl_prompts.engine import DatasetBase, Datum, add_defaults
from dassl_prompts.engine.digest import digests_of_lists
from dassl_prompts.engine.reading import read_lines, reading
from dassl_prompts.images import describe_left_out, missing_images, require_all, spelled_otherwise

DOCS = "docs/datasets.md lists where each dataset comes from"


def extend_cfg(cfg) -> None:
    """Keys that the classification datasets read."""
    defaults = {
        "SUBSAMPLE_CLASSES": "all",  # all, base or new classes
        "MAKE_SPLIT": -1,  # >= 0: seed of a random split of our own, not comparable with published numbers
        "TEMPLATE": "",  # hand-written prompt of this dataset, such as "a photo of a {}, a type of pet."
    }
    add_defaults(cfg, "DATASET", defaults)


class SplitDataset(DatasetBase):
    """A dataset in CoOp's layout; a subclass names its folders and files and can make a split of its own.

    ``DATASET.ROOT / dataset_dir`` holds the split file; the paths in it are relative to ``image_dir`` below.
    The few-shot draw comes before the base/new split, so both halves of a seed belong to one draw.

    Raises:
        FileNotFoundError: a folder, the split file or images are missing; says what to obtain.
        ValueError: the split file is damaged, or a configuration key has a wrong value.
    """

    #: folder below DATASET.ROOT; on an instance, the full path (as in CoOp)
    dataset_dir = ""
    #: image folder below dataset_dir; on an instance, the full path
    image_dir = ""
    #: CoOp's split file; None where the dataset's own lists define the split
    split_file: str | None = None
    #: nothing here may be trained on: train_x repeats the test images to carry the class names
    evaluation_only = False

    def __init__(self, cfg):
        self.locate(cfg.DATASET.ROOT, cfg.DATASET.get("MAKE_SPLIT", -1))
        splits = self.read_data()
        self.digests = digests_of_lists(splits, self.dataset_dir)
        splits = self.draw(splits, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        train, val, test = subsample_classes(*splits, subsample=cfg.DATASET.get("SUBSAMPLE_CLASSES", "all"))
        train, val, test = self.find_images(train, val, test)
        super().__init__(train_x=train, val=val or None, test=test)
        times = Counter(map(same_name, self.classnames))
        repeated = sorted({name for name in self.classnames if times[same_name(name)] > 1})
        if repeated:  # their text features are equal, so that one of them can never be predicted
            print(
                f"{sum(n > 1 for n in times.values())} class names stand for more than one class: {', '.join(repeated[:5])}"
            )

    def locate(self, root: str, make_split_seed: int = -1) -> None:
        """Find the dataset's folders below ``root``."""
        root = os.path.abspath(os.path.expanduser(root))
        self.make_split_seed = make_split_seed
        self.dataset_dir = self.require(os.path.join(root, type(self).dataset_dir))
        self.image_dir = self.dataset_dir
        if type(self).image_dir:
            self.image_dir = self.require(os.path.join(self.dataset_dir, type(self).image_dir))

    @classmethod
    def read_all(cls, root: str) -> Splits:
        """The full split below ``root`` without looking for its images, to examine a tree."""
        dataset = cls.__new__(cls)
        dataset.locate(root)
        return dataset.read_data()

    # -- what a dataset may define --------------------------------------------------------------------------

    def read_data(self) -> Splits:
        """The full split over all classes: CoOp's file, or on request one of our own."""
        name = type(self).__name__
        if self.make_split_seed >= 0:
            path = os.path.join(self.dataset_dir, f"split_own{self.make_split_seed}_{name}.json")
            splits = kept_split(path, self.image_dir, self.drawn)
        else:
            path = os.path.join(self.dataset_dir, self.split_file)
            self.require(
                path,
                "DATASET.MAKE_SPLIT 1 makes a random split instead, whose numbers cannot be compared "
                "with published ones",
            )
            print(f"Reading split from {path}")
            splits = read_split(path, self.image_dir)
        if splits.train:
            return splits
        self.evaluation_only = True
        print(f"{path} has no training images: a test set, to be scored only")
        return splits._replace(train=splits.test)

    def drawn(self) -> Splits:
        """A split of our own, its labels checked."""
        splits = self.make_split(random.Random(self.make_split_seed))
        check_labels(splits, f"{type(self).__name__} in {self.dataset_dir}")
        return splits

    def make_split(self, rng: random.Random) -> Splits:
        """A random split from the dataset's original files, in CoOp's proportions."""
        raise NotImplementedError

    def draw(self, splits: Splits, shots: int, seed: int) -> Splits:
        """The few-shot draw, kept in ``split_fewshot`` (a split of our own keeps its draws apart)."""
        if self.evaluation_only:
            if shots >= 1:
                print(f"{type(self).__name__} is a test set: DATASET.NUM_SHOTS {shots} draws nothing from it")
            return splits
        train, val = few_shot(splits.train, splits.val, shots, seed, self.image_dir, self.few_shot_folder())
        return Splits(train, val, splits.test)

    def few_shot_folder(self) -> str:
        """Where draws are kept."""
        folder = "split_fewshot" if self.make_split_seed < 0 else f"split_fewshot_own{self.make_split_seed}"
        return os.path.join(self.dataset_dir, folder)

    def find_images(self, *parts: list[Datum]) -> list[list[Datum]]:
        """``parts`` with their files' own spelling of the names.

        Raises:
            FileNotFoundError: images are missing; counts them and names the first.
        """
        used = list(dict.fromkeys(item.impath for part in parts for item in part))
        missing = missing_images(used)
        spelled = spelled_otherwise(missing, used)
        require_all(
            [path for path in missing if path not in spelled],
            len(used),
            type(self).__name__,
            f"Complete {self.image_dir}; {DOCS}.",
        )
        if not spelled:
            return list(parts)
        first = next(iter(spelled))
        print(f"{len(spelled):,} image files are spelled otherwise than in the split: {spelled[first]} for {first}")
        return [
            [Datum(spelled.get(item.impath, item.impath), item.label, item.domain, item.classname) for item in part]
            for part in parts
        ]

    # -- helpers for subclasses -----------------------------------------------------------------------------

    def require(self, path: str, otherwise: str = "") -> str:
        """``path``, or FileNotFoundError that says what to obtain."""
        if os.path.exists(path):
            return path
        name = type(self).__name__
        raise FileNotFoundError(
            f"{name}: {path} does not exist. Check DATASET.ROOT (--root), or run "
            f"`python -m dassl_prompts.prepare {name} --root ROOT`, which gets it or says where it is; "
            f"{DOCS}." + (f" {otherwise}." if otherwise else "")
        )

    def read_lines(self, *parts: str) -> list[str]:
        """The non-empty lines of a text file below the dataset folder, stripped."""
        path = self.require(os.path.join(self.dataset_dir, *parts))
        return [line.strip() for line in read_lines(path) if line.strip()]

    def read_mat(self, *parts: str) -> dict:
        """The variables of a Matlab file below the dataset folder."""
        from scipy.io import loadmat

        path = self.require(os.path.join(self.dataset_dir, *parts))
        with reading(path, "a readable Matlab file"):
            return loadmat(path)

    def list_classes(self, root: str, names: dict[str, str]) -> list[Datum]:
        """All images of the folders in ``names`` (folder -> class name); labels count in its order."""
        left_out: Counter = Counter()
        items = [
            Datum(impath=impath, label=label, classname=name)
            for label, (folder, name) in enumerate(names.items())
            for impath in list_images(self.require(os.path.join(root, folder)), left_out)
        ]
        if left_out:
            print(f"{root}: {describe_left_out(left_out)}")
        return items


class FolderDataset(SplitDataset):
    """A dataset that comes as one folder of images per class."""

    #: folders that are no class
    ignored: tuple[str, ...] = ()
    #: folder -> class name, where they differ
    renamed: dict[str, str] = {}

    def make_split(self, rng: random.Random) -> Splits:
        folders = [folder for folder in list_folders(self.image_dir) if folder not in self.ignored]
        names = {folder: self.renamed.get(folder, folder) for folder in folders}
        return split_by_class(self.list_classes(self.image_dir, names), rng)


class ListedDataset(SplitDataset):
    """A dataset whose own lists or folders are the split: there is no split file."""

    def read_data(self) -> Splits:
        name = type(self).__name__
        if self.make_split_seed >= 0:
            raise ValueError(f"DATASET.MAKE_SPLIT is {self.make_split_seed}, but the split of {name} is not random")
        splits = self.read_lists()
        check_labels(splits, f"{name} in {self.dataset_dir}")
        return splits

    def read_lists(self) -> Splits:
        raise NotImplementedError
