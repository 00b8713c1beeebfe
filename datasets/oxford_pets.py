from __future__ import annotations

import os
import random

from dassl_prompts.classification.dataset import SplitDataset
from dassl_prompts.classification.splits import Splits, split_trainval
from dassl_prompts.engine import Datum, register_dataset


@register_dataset
class OxfordPets(SplitDataset):
    """Oxford-IIIT Pets: 37 breeds, lower-cased with underscores, numbered as in the official lists."""

    dataset_dir = "oxford_pets"
    image_dir = "images"
    split_file = "split_zhou_OxfordPets.json"

    def make_split(self, rng: random.Random) -> Splits:
        return Splits(*split_trainval(self.read_list("trainval.txt"), rng), self.read_list("test.txt"))

    def read_list(self, name: str) -> list[Datum]:
        """Lines ``Abyssinian_100 <class id from 1> <species> <breed id>``."""
        items = []
        for line in self.read_lines("annotations", name):
            image, label, *_ = line.split(" ")
            breed = image.rpartition("_")[0].lower()
            impath = os.path.join(self.image_dir, image + ".jpg")
            items.append(Datum(impath=impath, label=int(label) - 1, classname=breed))
        return items
