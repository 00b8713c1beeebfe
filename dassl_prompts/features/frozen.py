"""Loaders whose batches hold what a frozen tower makes of the pictures, instead of pixels.

Rows are computed in chunks of one size, filled up with zeros, each by one thread: a matrix product rounds differently in other
sizes and on other numbers of threads. So a row is a function of its picture and view alone, whoever asked for it, and a run with a
store has the results of a run without to the bit. On a GPU kernels choose otherwise; there rows agree to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dassl_prompts.engine.builtin.loading import DatasetWrapper
from dassl_prompts.engine.loading import PromptDatasetWrapper
from dassl_prompts.engine.randomness import own_stream, start_stream
from dassl_prompts.features.pictures import picture_digests
from dassl_prompts.features.store import Store, digest_of

#: pictures per chunk, by kind of device
CHUNK = {"cpu": 32, "cuda": 128}
#: bytes of rows that are looked up, and where missing computed, before the first of their batches is given out; and of rows of
#: the present view that stay in memory
WINDOW, MEMORY = 64 << 20, 256 << 20


#: the view of evaluation
PLAIN = "plain"


def epoch_view(start: int) -> str:
    """Name of the views of an epoch whose image i is augmented from ``start + i``."""
    return f"{start:016x}"


class Encoder:
    """Pictures to rows, chunk by chunk.

    Args:
        encode: ``[CHUNK, 3, S, S] -> [CHUNK, R]``, each row from its picture alone.
        device: of the tower. side: S.
    """

    def __init__(self, encode: Callable[[Tensor], Tensor], device: torch.device | str, side: int):
        self.encode, self.device, self.side = encode, torch.device(device), side
        self.chunk = CHUNK.get(self.device.type, CHUNK["cuda"])

    @cached_property
    def width(self) -> int:
        """R."""
        with torch.no_grad():
            return self.encode(torch.zeros(1, 3, self.side, self.side, device=self.device)).shape[1]

    @property
    def row_bytes(self) -> int:
        return 4 * self.width

    def one(self, images: Tensor) -> Tensor:
        """Rows ``[n, R]`` (fp32, CPU) of at most a chunk of images."""
        full = images.new_zeros(self.chunk, *images.shape[1:])
        full[: len(images)] = images
        with torch.no_grad():  # of this thread
            return self.encode(full.to(self.device))[: len(images)].float().cpu()

    def __call__(self, batches: Iterator[Tensor]) -> list[Tensor]:
        """Rows of every batch. On a CPU as many chunks at a time as torch has threads, one thread each."""
        if self.device.type != "cpu":
            return [self.one(images) for images in batches]
        threads = torch.get_num_threads()
        if threads == 1:
            return [self.one(images) for images in batches]
        results: list[Tensor | Future] = []
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                for number, images in enumerate(batches):
                    if number >= threads:  # no more chunks in memory than are worked on
                        results[number - threads] = results[number - threads].result()
                    results.append(pool.submit(self.one, images))
                return [item.result() if isinstance(item, Future) else item for item in results]
        finally:
            torch.set_num_threads(threads)  # what the library of matrix products keeps is one number for all threads


class Requested(Dataset):
    """Items of a dataset wrapper in the views asked for; None is the plain one."""

    def __init__(self, wrapper: Dataset, wanted: Sequence[tuple[int, int | None]]):
        self.wrapper, self.wanted = wrapper, wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return self.__getitems__([number])[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """What a loader asks for; the caller's random state is kept once for all of them."""
        with own_stream(0):
            return [self._read(*self.wanted[number]) for number in numbers]

    def _read(self, index: int, seed: int | None) -> dict[str, Any]:
        if seed is not None:
            start_stream(seed)
        return self.wrapper.read(index)


class FrozenViews:
    """Rows of pictures under one transform, from memory, from a store, or computed.

    Args:
        encoder: makes them. workers: processes that read pictures. store: where they are kept; None: nowhere.
    """

    def __init__(self, encoder: Encoder, workers: int = 0, store: Store | None = None):
        self.encoder, self.workers, self.store = encoder, workers, store
        self.view: str | None = None
        self.held: dict[bytes, np.ndarray] = {}  # rows of the present view by key
        self._new: dict[bytes, Tensor] = {}  # those that the store does not have yet
        self._known: list[tuple[Sequence, list[bytes]]] = []  # lists of pictures with their digests

    def rows(
        self, wrapper: DatasetWrapper, view: str, wanted: Sequence[tuple[int, int | None]]
    ) -> tuple[Tensor, dict[tuple[int, int | None], dict[str, Any]]]:
        """Rows ``[n, R]`` of items, and the items that were read in the place of unreadable ones.

        Args:
            wrapper: the dataset. view: name of the group of views, ``PLAIN`` or :func:`epoch_view`. wanted: (index, seed of its view).

        Raises:
            ImageReadError: a picture that is needed cannot be read.
        """
        if view != self.view:
            self.flush()
            self.view, self.held = view, self.store.load(view) if self.store else {}
        digests = self._digests(wrapper.data_source)
        keys = {one: row_key(digests[one[0]], wrapper.data_source[one[0]].impath, one[1]) for one in wanted}
        missing = sorted((one for one, key in keys.items() if key not in self.held), key=lambda one: one[0])
        fresh, replaced = self._compute(wrapper, missing)
        for one, row in fresh.items():
            if one not in replaced:
                self.held[keys[one]] = row.numpy()
                if digests[one[0]] and torch.isfinite(row).all():
                    self._new[keys[one]] = row
        rows = torch.stack([fresh[one] if one in fresh else torch.tensor(self.held[keys[one]]) for one in wanted])
        if len(self.held) * rows[0].nbytes > MEMORY:
            self.flush()
            self.view = None
        return rows, replaced

    def flush(self) -> None:
        """Give the store what is new."""
        if self._new and self.store:
            self.store.add(self.view, list(self._new), torch.stack(list(self._new.values())).numpy())
        self._new = {}

    def _digests(self, items: Sequence) -> list[bytes]:
        """Of a list of ``Datum``; nothing is read where nothing is kept."""
        for known, digests in self._known:
            if known is items:
                return digests
        paths = [item.impath for item in items]
        digests = picture_digests(paths, self.store.root) if self.store else [b""] * len(paths)
        self._known.append((items, digests))
        return digests

    def _compute(self, wrapper, wanted) -> tuple[dict, dict]:
        rows: dict[tuple[int, int | None], Tensor] = {}
        replaced: dict[tuple[int, int | None], dict[str, Any]] = {}
        if not wanted:
            return rows, replaced
        chunk = self.encoder.chunk
        loader = DataLoader(
            Requested(wrapper, wanted),
            batch_size=chunk,
            num_workers=min(self.workers, -(-len(wanted) // chunk)),
            collate_fn=list,
            generator=torch.Generator(),  # reading must not move the run's random numbers
        )
        place = iter(wanted)

        def images() -> Iterator[Tensor]:
            for items in loader:
                for item in items:
                    one = next(place)
                    if item.get("corrupt"):
                        replaced[one] = {name: value for name, value in item.items() if name != "img"}
                yield torch.stack([item["img"] for item in items])

        return dict(zip(wanted, torch.cat(self.encoder(images())))), replaced


def row_key(digest: bytes, path: str, seed: int | None) -> bytes:
    """Key of a row: its picture's content, or where that is not known its place, and its view."""
    return digest_of(digest, "" if digest else path, "" if seed is None else str(seed))


class FrozenLoader:
    """A data loader's batches with rows ``[B, R]`` under ``img``; order and random numbers are the loader's.

    Args:
        loader: over a :class:`~dassl_prompts.engine.loading.PromptDatasetWrapper`, see :func:`why_not`.
        views: where rows come from.
    """

    def __init__(self, loader: DataLoader, views: FrozenViews):
        self.loader, self.views = loader, views

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        loader = self.loader
        indices = DataLoader(
            range(len(loader.dataset)), batch_sampler=loader.batch_sampler, collate_fn=list, generator=loader.generator
        )
        window: list[list[int]] = []
        for batch in indices:
            window.append(batch)
            if sum(map(len, window)) * self.views.encoder.row_bytes >= WINDOW:
                yield from self._filled(window)
                window = []
        yield from self._filled(window)
        self.views.flush()

    def _filled(self, window: list[list[int]]) -> Iterator[dict[str, Any]]:
        if not window:
            return
        wrapper = self.loader.dataset
        start = wrapper.epoch_seed if wrapper.is_train else None
        view = PLAIN if start is None else epoch_view(start)
        wanted = [[(index, None if start is None else start + index) for index in batch] for batch in window]
        rows, replaced = self.views.rows(wrapper, view, [one for batch in wanted for one in batch])
        rows = iter(rows)
        for batch in wanted:
            items = [replaced.get(one) or describe(wrapper, one[0]) for one in batch]
            yield self.loader.collate_fn([{**item, "img": next(rows)} for item in items])


def describe(wrapper: DatasetWrapper, index: int) -> dict[str, Any]:
    """What the wrapper's item says besides pixels."""
    item = wrapper.data_source[index]
    said = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
    return {**said, "corrupt": ""} if getattr(wrapper, "replaces", False) else said


def why_not(wrapper: Any) -> str:
    """Why the views of a dataset wrapper cannot be told by seed, epoch and picture; "" where they can."""
    if type(wrapper) not in (PromptDatasetWrapper, DatasetWrapper):
        return f"the data is read by {type(wrapper).__name__}"
    if wrapper.k_tfm > 1:
        return "DATALOADER.K_TRANSFORMS gives several views"
    if wrapper.return_img0:
        return "DATALOADER.RETURN_IMG0 asks for pixels"
    if wrapper.transform is None or isinstance(wrapper.transform, (list, tuple)):
        return "there is not one transform"
    if wrapper.is_train and not wrapper.cfg.DATALOADER.SEED_ITEMS:
        return "DATALOADER.SEED_ITEMS False draws views in the order of the batches"
    return ""


def says_all(transform: Any) -> bool:
    """Whether the ``repr`` of a transform tells what it does: torchvision's own, and classes with a ``__repr__`` of their own.

    >>> from torchvision import transforms as T
    >>> says_all(T.Compose([T.RandomHorizontalFlip(), T.ToTensor()])), says_all(T.Compose([T.Lambda(abs)]))
    (True, False)
    """
    kind = type(transform)
    if kind.__module__.startswith("torchvision.transforms."):
        return kind.__name__ != "Lambda" and all(map(says_all, getattr(transform, "transforms", ())))
    return any("__repr__" in vars(base) for base in kind.__mro__ if base.__module__ == kind.__module__)
