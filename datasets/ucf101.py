from __future__ import annotations

import os
import random
import re

from dassl_prompts.classification.dataset import SplitDataset
from dassl_prompts.classification.splits import Splits, split_trainval
from dassl_prompts.engine import Datum, register_dataset


@register_dataset
class UCF101(SplitDataset):
    """UCF101 as the middle frame of each video, lists 01: 101 actions, CamelCase split at its capitals."""

    dataset_dir = "ucf101"
    image_dir = "UCF-101-midframes"
    split_file = "split_zhou_UCF101.json"

    def make_split(self, rng: random.Random) -> Splits:
        numbered = (line.split(" ") for line in self.read_lines("ucfTrainTestlist", "classInd.txt"))
        labels = {action: int(number) - 1 for number, action in numbered}
        trainval = self.read_list("trainlist01.txt", labels)
        return Splits(*split_trainval(trainval, rng), self.read_list("testlist01.txt", labels))

    def read_list(self, name: str, labels: dict[str, int]) -> list[Datum]:
        """Lines ``ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi [number]``; the frame has the video's name."""
        items = []
        for line in self.read_lines("ucfTrainTestlist", name):
            action, video = line.split(" ")[0].split("/")
            classname = "_".join(re.findall("[A-Z][^A-Z]*", action))
            frame = os.path.join(self.image_dir, classname, video.replace(".avi", ".jpg"))
            items.append(Datum(impath=frame, label=labels[action], classname=classname))
        return items
