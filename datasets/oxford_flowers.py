from __future__ import annotations

import os
import random

from dassl_prompts.classification.dataset import SplitDataset
from dassl_prompts.classification.splits import Splits, split_by_class
from dassl_prompts.engine import Datum, register_dataset
from dassl_prompts.engine.reading import read_json


@register_dataset
class OxfordFlowers(SplitDataset):
    """Oxford Flowers-102: names from ``cat_to_name.json``, numbered as in the official labels."""

    dataset_dir = "oxford_flowers"
    image_dir = "jpg"
    split_file = "split_zhou_OxfordFlowers.json"

    def make_split(self, rng: random.Random) -> Splits:
        names = read_json(self.require(os.path.join(self.dataset_dir, "cat_to_name.json")), dict)
        labels = self.read_mat("imagelabels.mat")["labels"][0]
        items = []
        for i, label in enumerate(labels, start=1):
            impath = os.path.join(self.image_dir, f"image_{i:05d}.jpg")
            items.append(Datum(impath=impath, label=int(label) - 1, classname=names[str(label)]))
        return split_by_class(items, rng)
