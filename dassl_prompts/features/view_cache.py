"""Image features and attribute queries of fixed views on disk, for towers that never change.

A cache is a folder named by its fingerprint: model, transform, images and clustering. Anything else in any of them gives
another folder, so a stale cache is never read. It is written beside its final name and moved there when complete.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dassl_prompts.engine.files import atomic_folder, file_digest, new_array, read_sealed, write_sealed
from dassl_prompts.engine.reading import DamagedFile, read_npy, reading, require
from dassl_prompts.images import split_member

DTYPES = ("float32", "float16")


def model_digest(module: nn.Module) -> str:
    """Digest of all tensors of a module, names and types included."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(array.shape)}{array.dtype}".encode())
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def data_digest(items: Sequence) -> str:
    """Digest of a list of ``Datum``, in order: label, path, size and time of change of the file; no image is read."""
    digest = hashlib.blake2b(digest_size=16)
    known: dict[str, str] = {}
    for item in items:
        path = split_member(item.impath)[0]
        if path not in known:
            stat = os.stat(path)
            known[path] = f"{stat.st_size}:{stat.st_mtime_ns}"
        digest.update(f"{item.label}\t{item.impath}\t{known[path]}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def fingerprint(parts: dict[str, object]) -> str:
    """Name of the cache for everything that determines its content."""
    text = "\n".join(f"{key}={parts[key]!r}" for key in sorted(parts))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


class ViewCache:
    """Arrays ``features [V, N, E]`` (fp32) and ``queries [V, N, L, K, Q]`` of N images in V views, read through memory maps.

    Args:
        folder: a complete cache, see :meth:`create`.

    Raises:
        ValueError: a file is missing or damaged; says to delete the folder.
    """

    FILES = ("features.npy", "queries.npy", "labels.npy")
    MANIFEST = "digests.json"

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        with reading(self.folder, "a whole cache of views", "delete the folder"):
            digests = read_sealed(self.folder / self.MANIFEST)
            arrays = [read_npy(self.folder / name, mmap=True) for name in self.FILES]
            for name in self.FILES:
                require(file_digest(self.folder / name) == digests[name], f"{name} does not fit its digest")
            self.features, self.queries, self.labels = arrays
            agree = self.features.shape[:2] == self.queries.shape[:2] == (len(self.features), len(self.labels))
            require(agree, "its arrays disagree")

    @classmethod
    def create(
        cls, folder: str | os.PathLike, views: Sequence[Callable[[], Iterator]], images: int, dtype: str = "float32"
    ) -> ViewCache:
        """Fill and open the cache ``folder``, or open it when it is there and whole.

        Args:
            views: one function per view that yields ``(View, labels)`` batches in the order of the images.
            images: N.
            dtype: of the queries; "float16" halves the size and may change retrieval where two prompts are nearly tied.
        """
        folder = Path(folder)
        if folder.is_dir():
            try:
                return cls(folder)
            except (DamagedFile, FileNotFoundError) as error:
                print(f"{error}; making it again")
                shutil.rmtree(folder, ignore_errors=True)
        with atomic_folder(folder) as unfinished:  # where another run is faster, its content is the same
            cls._write(unfinished, views, images, dtype)
        return cls(folder)

    @classmethod
    def _write(cls, folder: Path, views, images: int, dtype: str) -> None:
        arrays = None
        for v, view in enumerate(views):
            start = 0
            for batch, labels in view():
                stop = start + len(labels)
                if arrays is None:
                    shapes = (
                        (len(views), images, *batch.feature.shape[1:]),
                        (len(views), images, *batch.queries.shape[1:]),
                        (images,),
                    )
                    types = (np.float32, np.dtype(dtype), np.int64)
                    arrays = [new_array(folder / name, s, kind) for name, kind, s in zip(cls.FILES, types, shapes)]
                arrays[0][v, start:stop] = batch.feature.float().cpu().numpy()
                arrays[1][v, start:stop] = batch.queries.float().cpu().numpy()
                arrays[2][start:stop] = labels.cpu().numpy()
                start = stop
            if start != images:
                raise ValueError(f"view {v + 1} gave {start} images instead of {images}")
        for array in arrays or ():
            array.flush()
        write_sealed({name: file_digest(folder / name) for name in cls.FILES if arrays}, folder / cls.MANIFEST)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor, view: Tensor) -> dict[str, Tensor]:
        """A loader's batch: images ``index [B]``, each in its ``view [B]``."""
        where = view.numpy(), index.numpy()
        return {
            "feature": torch.from_numpy(self.features[where]),
            "queries": torch.from_numpy(self.queries[where].astype(np.float32)),
            "label": torch.from_numpy(self.labels[where[1]]),
            "index": index,
        }


class CachedLoader:
    """Iterates over a cache as a data loader would over images.

    Args:
        cache: the views.
        batch_size: images per batch.
        shuffle: random order, and a random view for every image, from torch's global generator; else view 0 in order.
        drop_last: leave out an incomplete last batch.
    """

    def __init__(self, cache: ViewCache, batch_size: int, shuffle: bool = False, drop_last: bool = False):
        self.cache, self.batch_size, self.shuffle, self.drop_last = cache, batch_size, shuffle, drop_last

    def __len__(self) -> int:
        whole, rest = divmod(len(self.cache), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self):
        views, images = self.cache.features.shape[:2]
        order = torch.randperm(images) if self.shuffle else torch.arange(images)
        view = torch.randint(views, (images,)) if self.shuffle else torch.zeros(images, dtype=torch.int64)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            yield self.cache.batch(order[part], view[part])
