from __future__ import annotations

import os

from dassl_prompts.classification.dataset import ListedDataset
from dassl_prompts.classification.splits import Splits, list_folders
from dassl_prompts.engine import Datum, register_dataset


class ImageNetFolders(ListedDataset):
    """A folder of images per WordNet id; names from CoOp's ``classnames.txt`` (lines ``n01440764 tench``)."""

    def read_classnames(self) -> dict[str, str]:
        """WordNet id -> class name, in the order of the file."""
        pairs = (line.partition(" ") for line in self.read_lines("classnames.txt"))
        return {wnid: name for wnid, _, name in pairs}

    def list_wnids(self, root: str) -> list[Datum]:
        """The images of all folders in ``root``, numbered in sorted order."""
        classnames = self.read_classnames()
        folders = list_folders(self.require(root))
        unknown = [folder for folder in folders if folder not in classnames]
        if unknown:
            raise ValueError(
                f"{root}: {os.path.join(self.dataset_dir, 'classnames.txt')} does not name "
                f"{len(unknown)} of {len(folders)} folders, such as {unknown[0]!r}"
            )
        return self.list_classes(root, {folder: classnames[folder] for folder in folders})


@register_dataset
class ImageNet(ImageNetFolders):
    """ImageNet-1k: few-shot training images, evaluated on the validation set, which is also val (as in CoOp).

    Files are listed sorted. CoOp takes them in the order of the file system, so its draws differ between
    machines; a ``split_fewshot/shot_N-seed_S.pkl`` of CoOp's makes ours equal to it.
    """

    dataset_dir = "imagenet"
    image_dir = "images"

    def read_lists(self) -> Splits:
        train, test = (self.list_wnids(os.path.join(self.image_dir, part)) for part in ("train", "val"))
        return Splits(train, test, test)

    def draw(self, splits: Splits, shots: int, seed: int) -> Splits:
        drawn = super().draw(splits._replace(val=[]), shots, seed)  # val is the whole test set
        return drawn._replace(val=splits.val)


class ImageNetShift(ImageNetFolders):
    """A test set for models trained on ImageNet. train_x repeats it: Dassl takes class names from there."""

    evaluation_only = True

    def read_lists(self) -> Splits:
        data = self.list_wnids(self.image_dir)
        return Splits(data, [], data)
