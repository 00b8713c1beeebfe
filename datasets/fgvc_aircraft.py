from __future__ import annotations

import os

from dassl_prompts.classification.dataset import ListedDataset
from dassl_prompts.classification.split_files import Splits
from dassl_prompts.engine import Datum, register_dataset


@register_dataset
class FGVCAircraft(ListedDataset):
    """FGVC-Aircraft: 100 variants in the order of ``variants.txt``, with the official lists."""

    dataset_dir = "fgvc_aircraft"
    image_dir = "images"

    def read_lists(self) -> Splits:
        labels = {name: i for i, name in enumerate(self.read_lines("variants.txt"))}
        return Splits(*(self.read_list(f"images_variant_{part}.txt", labels) for part in ("train", "val", "test")))

    def read_list(self, name: str, labels: dict[str, int]) -> list[Datum]:
        """Lines ``<image id> <variant>``; variants hold spaces and slashes."""
        items = []
        for line in self.read_lines(name):
            image, _, variant = line.partition(" ")
            if variant not in labels:
                raise ValueError(f"{os.path.join(self.dataset_dir, name)}: variants.txt does not list {variant!r}")
            impath = os.path.join(self.image_dir, image + ".jpg")
            items.append(Datum(impath=impath, label=labels[variant], classname=variant))
        return items
