from __future__ import annotations

import os
import random

from dassl_prompts.classification.dataset import SplitDataset
from dassl_prompts.classification.splits import Splits, split_trainval
from dassl_prompts.engine import Datum, register_dataset


@register_dataset
class StanfordCars(SplitDataset):
    """Stanford Cars: 196 models, the year moved to the front ("2012 Audi A5 Coupe")."""

    dataset_dir = "stanford_cars"
    split_file = "split_zhou_StanfordCars.json"

    def make_split(self, rng: random.Random) -> Splits:
        trainval = self.read_list("cars_train", os.path.join("devkit", "cars_train_annos.mat"))
        test = self.read_list("cars_test", "cars_test_annos_withlabels.mat")
        return Splits(*split_trainval(trainval, rng), test)

    def read_list(self, folder: str, annotations: str) -> list[Datum]:
        names = self.read_mat(os.path.join("devkit", "cars_meta.mat"))["class_names"][0]
        items = []
        for entry in self.read_mat(annotations)["annotations"][0]:
            label = int(entry["class"][0, 0]) - 1
            model, _, year = names[label][0].rpartition(" ")
            impath = os.path.join(self.dataset_dir, folder, entry["fname"][0])
            items.append(Datum(impath=impath, label=label, classname=f"{year} {model}"))
        return items
