"""Training images on both engines: augmentation independent of the workers, corrupt files counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dassl_prompts.engine.builtin.loading import DatasetWrapper
from dassl_prompts.engine.builtin.randaugment import RandAugment
from dassl_prompts.engine.images import ImageReadError
from dassl_prompts.engine.randomness import own_stream


class PromptDatasetWrapper(DatasetWrapper):
    """``DatasetWrapper`` for :class:`~dassl_prompts.engine.PromptTrainer`.

    With ``DATALOADER.SEED_ITEMS`` a training image is augmented from a stream of its own, given by the epoch
    and its index, so that results are the same for every ``NUM_WORKERS``. With ``DATALOADER.MAX_CORRUPT``
    above zero an unreadable training image is replaced by the next readable one of its class; the item's
    ``corrupt`` then names the file, and the trainer counts them. Evaluation never replaces an image.
    """

    #: set by the trainer before every epoch
    epoch_seed: int | None = None

    def __init__(self, cfg, data_source: Sequence, transform=None, is_train: bool = False):
        super().__init__(cfg, data_source, transform=with_own_randaugment(transform), is_train=is_train)
        self.replaces = is_train and cfg.DATALOADER.MAX_CORRUPT > 0

    def __getitem__(self, idx: int) -> dict[str, Any]:
        if self.epoch_seed is None or not self.is_train:
            return self.read(idx)
        with own_stream(self.epoch_seed + idx):
            return self.read(idx)

    def read(self, idx: int) -> dict[str, Any]:
        """The item, augmented from the global generators as they are."""
        if not self.replaces:
            return super().read(idx)
        broken: list[str] = []
        for candidate in self._same_class(idx):
            try:
                item = super().read(candidate)
            except ImageReadError:
                broken.append(self.data_source[candidate].impath)
            else:
                # one string per item, whatever their number: batches are collated item by item
                return {**item, "corrupt": "\n".join(broken)}
        name = self.data_source[idx].classname
        raise ImageReadError(f"class {name!r}: none of its training images can be read: {', '.join(broken[:5])}")

    def _same_class(self, idx: int) -> Iterator[int]:
        label, count = self.data_source[idx].label, len(self.data_source)
        yield idx
        for step in range(1, count):
            other = (idx + step) % count
            if self.data_source[other].label == label:
                yield other


def whole_pass_loader(cfg, dm):
    """The training images of a data manager, augmented, each exactly once and in order; none is dropped."""
    from torch.utils.data import DataLoader

    from dassl_prompts.engine.backend import build_transform

    return DataLoader(
        PromptDatasetWrapper(cfg, dm.dataset.train_x, transform=build_transform(cfg, is_train=True), is_train=True),
        batch_size=cfg.DATALOADER.TRAIN_X.BATCH_SIZE,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def with_own_randaugment(transform: Any) -> Any:
    """A transform with our RandAugment in the place of Dassl's own, which is the same until numpy 1.24 and fails from there on."""
    if isinstance(transform, (list, tuple)):
        return [with_own_randaugment(one) for one in transform]
    steps = getattr(transform, "transforms", ())
    if not any(is_dassls(step) for step in steps):
        return transform
    return type(transform)([RandAugment(step.n, step.m) if is_dassls(step) else step for step in steps])


def is_dassls(step: Any) -> bool:
    return type(step).__module__.startswith("dassl.") and type(step).__name__ == RandAugment.__name__


def draw_apart(loader: Any) -> None:
    """Give an evaluation loader (and its sampler) a generator of its own.

    A loader without one draws a seed from torch's global generator on every pass, and the next epoch of the training has
    another order. A generator that is there already stays; what has none, such as a list of batches or None, is left alone.
    """
    own = torch.Generator()
    for part in (loader, getattr(loader, "sampler", None)):
        if getattr(part, "generator", own) is None:
            part.generator = own


def count_corrupt(batch: Any, seen: set[str], limit: int) -> None:
    """Note the unreadable files that ``batch`` reports (its ``corrupt`` entry is taken out).

    Raises:
        ImageReadError: more than ``limit`` different files so far; names them.
    """
    if not isinstance(batch, dict):
        return
    reported = {path for paths in batch.pop("corrupt", ()) for path in paths.split("\n") if path}
    for path in sorted(reported - seen):
        seen.add(path)
        print(f"Skipping unreadable training image {path} ({len(seen)} of at most {limit})")
    if len(seen) > limit:
        raise ImageReadError(
            f"{len(seen)} training images cannot be read, "
            f"DATALOADER.MAX_CORRUPT allows {limit}: {', '.join(sorted(seen))}"
        )


def check_labels(dataset) -> None:
    """Check that the labels of a classification dataset are 0 .. C-1, so that class names and logits agree.

    Raises:
        ValueError: labels without training images, or val/test labels that training does not have; names
            them.
    """
    known = {item.label for item in dataset.train_x}
    gaps = sorted(set(range(dataset.num_classes)) - known)
    if gaps:
        raise ValueError(
            f"{type(dataset).__name__}: no training image has label {_some(gaps)}; labels must be 0 .. C-1 "
            "without gaps, "
            "else class names and logits do not match"
        )
    for part in ("val", "test"):
        unknown = sorted({item.label for item in getattr(dataset, part) or ()} - known)
        if unknown:
            raise ValueError(
                f"{type(dataset).__name__}: {part} images have label {_some(unknown)}, which training has not"
            )


def _some(labels: list[int]) -> str:
    return ", ".join(map(str, labels[:5])) + (f" (and {len(labels) - 5} more)" if len(labels) > 5 else "")
