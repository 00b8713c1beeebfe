"""Pictures of one's own: a folder of class folders, or a CSV. ``DATASET.ROOT`` is the folder or the CSV itself."""

from __future__ import annotations

from dassl_prompts.captions.data import CaptionDatum
from dassl_prompts.classification.dataset import SplitDataset
from dassl_prompts.classification.own_split import OwnSplit
from dassl_prompts.classification.split_files import Splits, check_labels
from dassl_prompts.datasets.fdrd import FDRD, check_classes
from dassl_prompts.engine import DatasetBase, add_defaults, register_dataset
from dassl_prompts.engine.digest import digests_of_lists


def extend_cfg(cfg):
    defaults = {
        "CLASS_NAMES_FILE": "",  # YAML file "folder or label: class name" that renames classes of own data
        "SAME_PICTURES": False,  # own data may have equal files in train and test
    }
    add_defaults(cfg, "DATASET", defaults)


@register_dataset
class OwnPictures(SplitDataset):
    """Pictures of one's own by class.

    Raises:
        FileNotFoundError, ValueError: as :class:`~dassl_prompts.classification.own_split.OwnSplit` says.
    """

    def __init__(self, cfg):
        self.own = OwnSplit(cfg)
        super().__init__(cfg)

    def locate(self, root: str, make_split_seed: int = -1) -> None:
        self.make_split_seed = make_split_seed
        self.dataset_dir = self.image_dir = self.own.root

    @classmethod
    def read_all(cls, root: str) -> Splits:
        raise ValueError("own pictures are no benchmark's tree: run --dry-run checks them")

    def read_data(self) -> Splits:
        splits = self.own.splits()
        if not splits.train and splits.test:
            self.evaluation_only = True
            print(f"{self.own.place} has no training images: a test set, to be scored only")
            splits = splits._replace(train=splits.test)
        check_labels(splits, self.own.place)
        return splits

    def few_shot_folder(self):
        return self.own.draws


@register_dataset
class OwnCaptions(DatasetBase):
    """Captioned pictures of one's own; every item is a :class:`CaptionDatum`, one for each caption of a picture.

    Raises:
        FileNotFoundError, ValueError: as :class:`~dassl_prompts.classification.own_split.OwnSplit` says.
    """

    def __init__(self, cfg):
        if cfg.DATASET.get("SUBSAMPLE_CLASSES", "all") != "all":
            raise ValueError("retrieval has no base and new classes: leave DATASET.SUBSAMPLE_CLASSES at all")
        own = OwnSplit(cfg, captions=True)
        label = {name: number for number, name in enumerate(own.names)}
        items = {"train": [], "test": []}
        for p in own.pictures:
            item = CaptionDatum(
                p.path, label[p.classname], classname=own.names[p.classname], caption=p.caption, key=p.path
            )
            items["test" if p.part == "test" else "train"].append(item)  # as FDRD does: val is part of the training
        for part, found in items.items():
            if not found:
                raise ValueError(f"{own.place} has no {part} pictures")
        check_classes((*items["train"], *items["test"]))
        self.digests = digests_of_lists(items.values(), own.root)
        train = FDRD.draw(items["train"], cfg, own.root, str(own.draws))
        super().__init__(train_x=train, test=items["test"])
        # a test set may hold classes that training has none of; they need names all the same
        self._lab2cname = dict(enumerate(own.names.values()))
