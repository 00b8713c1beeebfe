"""Training batches of composed retrieval: triplets as images, or as rows of cached features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from dassl_prompts.composed.triplets import Triplet
from dassl_prompts.images import ImageReadError, check_orientation, read_image


class TripletImages(Dataset):
    """Triplets as images, for training without a cache; an unreadable one is replaced by the next, up to a
    limit."""

    def __init__(
        self,
        triplets: Sequence[Triplet],
        target_ids: Sequence[int],
        transform,
        replace: bool,
        orientation: str = "stored",
    ):
        self.triplets, self.target_ids, self.transform, self.replace = triplets, target_ids, transform, replace
        self.orientation = check_orientation(orientation)

    def __len__(self) -> int:
        return len(self.triplets)

    def __getitem__(self, index: int) -> dict:
        broken = []
        for step in range(len(self.triplets) if self.replace else 1):
            at = (index + step) % len(self.triplets)
            item = self.triplets[at]
            try:
                images = {
                    key: self.transform(read_image(path, self.orientation))
                    for key, path in (("reference", item.reference), ("target", item.target))
                }
            except ImageReadError as error:
                if not self.replace:
                    raise
                broken.append(error.path)
            else:
                return {
                    **images,
                    "caption": item.caption,
                    "target_id": self.target_ids[at],
                    "corrupt": "\n".join(broken),
                }
        raise ImageReadError(f"no training image can be read, such as {broken[0]}")


class CachedTriplets:
    """Shuffled batches of cached features; the last incomplete batch is left out if there is a complete one.

    Args:
        references: [R, n_image, d], targets: [T, d]; memory maps. rows: (reference row, target row, caption)
            per triplet.
    """

    def __init__(
        self,
        references: np.ndarray,
        targets: np.ndarray,
        rows: Sequence[tuple[int, int, str]],
        batch_size: int,
    ):
        self.references, self.targets, self.rows = references, targets, rows
        self.batch_size = min(batch_size, len(rows))

    def __len__(self) -> int:
        return len(self.rows) // self.batch_size

    def __iter__(self) -> Iterator[dict]:
        for batch in shuffled_batches(len(self.rows), self.batch_size):
            references, targets, captions = zip(*[self.rows[i] for i in batch])
            yield {
                "reference": torch.from_numpy(self.references[list(references)]),
                "target": torch.from_numpy(self.targets[list(targets)]),
                "caption": list(captions),
                "target_id": torch.tensor(targets),
            }


class ShuffledItems:
    """Shuffled batches ``{name: items of the batch}`` of a list (lists) or a tensor [N, ...] (tensors); the last incomplete
    batch is left out if there is a complete one."""

    def __init__(self, name: str, items: Sequence | torch.Tensor, batch_size: int):
        self.name, self.items, self.batch_size = name, items, min(batch_size, len(items))

    def __len__(self) -> int:
        return len(self.items) // self.batch_size

    def __iter__(self) -> Iterator[dict]:
        for batch in shuffled_batches(len(self.items), self.batch_size):
            tensor = isinstance(self.items, torch.Tensor)
            yield {self.name: self.items[batch] if tensor else [self.items[i] for i in batch]}


def shuffled_batches(count: int, batch_size: int) -> Iterator[list[int]]:
    """The numbers below ``count`` in random order, in full batches."""
    order = torch.randperm(count).tolist()
    for start in range(0, count // batch_size * batch_size, batch_size):
        yield order[start : start + batch_size]
