"""Hard negatives for contrastive training: which classes confuse a model, and an image for each of them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import Tensor

from dassl_prompts.engine import Datum
from dassl_prompts.engine.randomness import own_stream, start_stream, view_seed
from dassl_prompts.engine.reading import read_json
from dassl_prompts.features.frozen import FrozenViews, epoch_view


def hard_negatives(
    scores: Tensor,
    labels: Sequence[int],
    k: int,
    *,
    cap: str = "k-1",
    dedup: bool = True,
    min_fill: int = 0,
    fill_range: tuple[int, int] | None = None,
    rng: random.Random | None = None,
) -> list[list[int]]:
    """Classes that a frozen model confuses with each anchor's class (DPC's negative sampler).

    Args:
        scores: ``[B, C]`` similarities of the anchors to all classes.
        labels: the anchors' classes.
        k: how many of the highest-scored classes are candidates, at most C.
        cap: ``"k-1"`` keeps at most k-1 negatives (paper); ``"k"`` keeps all k when the true class is not among them
            (released code).
        dedup: drop a class that is an anchor's class or already a negative of the step.
        min_fill: draw random classes for an anchor with fewer negatives than this (released code: 2).
        fill_range: first and last class that may be drawn; default all classes.
        rng: source of the random draws; needed when ``min_fill`` is positive.

    Returns:
        For each anchor its negatives, most confusing first.
    """
    n_classes = scores.shape[1]
    if not 1 <= k <= n_classes:
        raise ValueError(f"k must lie between 1 and the number of classes ({n_classes}), got {k}")
    if cap not in ("k-1", "k"):
        raise ValueError(f"cap must be 'k-1' or 'k', got {cap!r}")
    ranked = scores.float().cpu().argsort(dim=1, descending=True, stable=True)[:, :k].tolist()
    used = set(labels)
    groups = []
    for candidates, label in zip(ranked, labels):
        negatives = [c for c in candidates if c != label][: k if cap == "k" else k - 1]
        if dedup:
            negatives = [c for c in negatives if c not in used]
        used.update(negatives)
        if len(negatives) < min_fill:
            negatives += _fill(
                min_fill - len(negatives), label, negatives, used, fill_range or (0, n_classes - 1), dedup, rng
            )
            used.update(negatives)
        groups.append(negatives)
    return groups


def _fill(missing, label, negatives, used, fill_range, dedup, rng) -> list[int]:
    """Up to ``missing`` random classes; as many tries as there are classes in the range, as in the released code."""
    first, last = fill_range
    drawn: list[int] = []
    for _ in range(last - first + 1):
        if len(drawn) == missing:
            break
        c = rng.randint(first, last)
        if c == label or c in drawn or c in negatives or (dedup and c in used):
            continue
        drawn.append(c)
    return drawn


_items = None


def _start_worker(dataset):
    global _items
    _items = dataset
    torch.set_num_threads(1)


def _load(index: int, seed: int):
    return load_seeded(_items, [index], [seed])[0].numpy()


def load_seeded(dataset, indices: Sequence[int], seeds: Sequence[int]) -> list[Tensor]:
    """``dataset[i]["img"]``, each with its augmentation drawn from its seed alone; the caller's random state is untouched."""
    images = []
    with own_stream(0):  # the state is kept once for all of them
        for index, seed in zip(indices, seeds):
            start_stream(seed)
            images.append(dataset[index]["img"])
    return images


class ImagePool:
    """Loads images of a dataset by index, in worker processes when there are any.

    Each image carries its own seed, so the result does not depend on the number of workers.
    """

    def __init__(self, dataset, num_workers: int = 0):
        self.dataset = dataset
        self._executor = None
        if num_workers > 0:
            self._executor = ProcessPoolExecutor(
                num_workers, mp_context=mp.get_context("fork"), initializer=_start_worker, initargs=(dataset,)
            )

    def submit(self, indices: Sequence[int], seeds: Sequence[int]) -> Callable[[], Tensor]:
        """Start loading; calling the returned function waits and gives ``[n, 3, H, W]``."""
        if self._executor is None:
            return lambda: torch.stack(load_seeded(self.dataset, indices, seeds))
        jobs: list[Future] = [self._executor.submit(_load, i, s) for i, s in zip(indices, seeds)]
        return lambda: torch.stack([torch.from_numpy(job.result()) for job in jobs])

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
            self._executor = None


class RowPool:
    """:class:`ImagePool` where the image tower is frozen: rows ``[n, R]`` of its features, most of which the anchors left."""

    def __init__(self, dataset, views: FrozenViews):
        self.dataset, self.views = dataset, views

    def submit(self, indices: Sequence[int], seeds: Sequence[int]) -> Callable[[], Tensor]:
        """As :meth:`ImagePool.submit`; image i has the seed of its epoch plus i."""
        wanted = list(zip(indices, seeds))
        return lambda: self.views.rows(self.dataset, epoch_view(seeds[0] - indices[0]), wanted)[0]

    def close(self) -> None:
        self.views.flush()


@dataclass
class Step:
    """The pairs of one step: for each anchor itself and then its negatives.

    Attributes:
        labels: ``[N]`` classes of the pairs. rows: ``[N]`` the image of each pair among the step's ``[U]`` images, anchors
        first. anchors: the pairs that show an anchor. drawn: the class of each image after the anchors.
    """

    labels: list[int]
    rows: list[int]
    anchors: list[int]
    drawn: list[int]


def lay_out(labels: Sequence[int], negatives: Sequence[Sequence[int]], share_images: bool) -> Step:
    """The pairs of a step.

    Args:
        labels: classes of the B anchors. negatives: those of each. share_images: a class has one image in the step, which is the
            first anchor's where it is an anchor's class; otherwise every negative has one of its own.
    """
    step = Step([], [], [], [])
    row = {label: anchor for anchor, label in reversed(list(enumerate(labels)))} if share_images else {}
    for anchor, (label, group) in enumerate(zip(labels, negatives)):
        step.anchors.append(len(step.labels))
        step.labels += [label, *group]
        step.rows.append(anchor)
        for c in group:
            if not share_images or c not in row:
                row[c] = len(labels) + len(step.drawn)
                step.drawn.append(c)
            step.rows.append(row[c])
    return step


class MinedLoader:
    """Wraps the training loader: batches of B anchors come out as N >= B aligned (image, class) pairs of U <= N images.

    The miner is frozen, so a batch can be mined and its negatives loaded while the step before it still trains: one batch of
    look-ahead hides the loading.

    Args:
        loader: the few-shot training loader; batches carry ``img``, ``label`` and ``index``.
        mine: ``(images, labels, rng) -> (negatives per anchor, extra entries for the batch)``.
        by_class: for every class the indices of its training images.
        pool: where negatives' images come from.
        seed: of the run; each (epoch, batch) draws from a stream of its own, each (epoch, image) has its view: resuming changes nothing.
        share_images: see :func:`lay_out`.
    """

    def __init__(
        self, loader, mine, by_class: Sequence[Sequence[int]], pool: ImagePool, seed: int, share_images: bool = False
    ):
        self.loader, self.mine, self.by_class, self.pool, self.seed = loader, mine, by_class, pool, seed
        self.share_images = share_images
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name):
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[dict]:
        waiting = None
        for number, batch in enumerate(self.loader):
            started = self._start(number, batch)
            if waiting is not None:
                yield waiting()
            waiting = started
        if waiting is not None:
            yield waiting()

    def _start(self, number: int, batch: dict) -> Callable[[], dict]:
        rng = random.Random(f"{self.seed}/{self.epoch}/{number}")
        labels = batch["label"].tolist()
        negatives, extra = self.mine(batch["img"], labels, rng)
        step = lay_out(labels, negatives, self.share_images)
        indices = [rng.choice(self.by_class[c]) for c in step.drawn]
        start = view_seed(self.seed, self.epoch)  # an image has one view in an epoch, as anchor and as negative
        seeds = [start + i for i in indices]
        images = self.pool.submit(indices, seeds) if indices else None

        def finish() -> dict:
            return {
                **extra,
                "img": batch["img"] if images is None else torch.cat([batch["img"], images()]),
                "rows": torch.tensor(step.rows),
                "label": torch.tensor(step.labels),
                "anchors": torch.tensor(step.anchors),
                "negative_index": indices,
            }

        return finish


def read_official_json(path: str, dataset) -> list:
    """Training items of the dataset's classes from the released annotation format ``SPLE_<Dataset>.json``.

    ``{"train": [{class name: [label, [relative path, ...]]}], ...}``; only names and paths are used. The paths are relative to
    an unnamed folder: of the folders above the training images, the one under which the files exist.

    Raises:
        ValueError: the file has another form, lacks a class, lists a validation or test image, or its images are not there.
    """
    try:
        table = read_json(path)["train"][0]
        paths = {name.replace("_", " ").lower(): entry[1] for name, entry in table.items()}
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            f'{path} is not an SPLE file ({{"train": [{{class: [label, [paths]]}}]}}): {error!r}'
        ) from error
    held_out = {os.path.abspath(d.impath) for d in [*(dataset.val or []), *(dataset.test or [])]}
    roots = dict.fromkeys(parent for d in dataset.train_x[:50] for parent in Path(os.path.abspath(d.impath)).parents)
    items = []
    for label, name in enumerate(dataset.classnames):
        found = paths.get(name.replace("_", " ").lower())
        if not found:
            raise ValueError(f"{path} has no images for class {name!r}")
        root = next((r for r in roots if (r / found[0]).is_file()), None)
        if root is None:
            raise ValueError(f"{path}: {found[0]} exists under none of the folders above {dataset.train_x[0].impath}")
        for relative in found:
            full = os.path.abspath(root / relative)
            if full in held_out:
                raise ValueError(f"{path}: {relative} is a validation or test image and may not be trained on")
            items.append(Datum(impath=full, label=label, classname=name))
    return items
