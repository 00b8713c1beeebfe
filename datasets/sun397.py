from __future__ import annotations

import os
import random

from dassl_prompts.classification.dataset import SplitDataset
from dassl_prompts.classification.splits import Splits, split_trainval
from dassl_prompts.engine import Datum, register_dataset


@register_dataset
class SUN397(SplitDataset):
    """SUN397, partition 01: the words of a scene reversed, so that "indoor" or "outdoor" comes first."""

    dataset_dir = "sun397"
    image_dir = "SUN397"
    split_file = "split_zhou_SUN397.json"

    def make_split(self, rng: random.Random) -> Splits:
        labels = {line.lstrip("/"): i for i, line in enumerate(self.read_lines("ClassName.txt"))}
        trainval = self.read_list("Training_01.txt", labels)
        return Splits(*split_trainval(trainval, rng), self.read_list("Testing_01.txt", labels))

    def read_list(self, name: str, labels: dict[str, int]) -> list[Datum]:
        """Lines ``/a/apartment_building/outdoor/sun_x.jpg``; the first folder is only an initial."""
        items = []
        for line in self.read_lines(name):
            image = line.lstrip("/")
            scene = os.path.dirname(image)
            classname = " ".join(scene.split("/")[:0:-1])
            impath = os.path.join(self.image_dir, image)
            items.append(Datum(impath=impath, label=labels[scene], classname=classname))
        return items
