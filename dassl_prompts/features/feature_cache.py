"""Image features on disk: encoded once, found again by a fingerprint of images, weights and transform.

A cache is one ``.npy`` file, read through a memory map, and a manifest with its digest, which is compared before the features are
used. Writing goes on where an interrupted run stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dassl_prompts.engine.files import new_array, read_sealed, require_writable, write_sealed
from dassl_prompts.engine.reading import DamagedFile, read_npy
from dassl_prompts.images import ImageReadError, check_orientation, read_image, split_member

FORMAT = 2
#: bytes that are read at a time where all are
PART = 1 << 24
#: how often an unfinished cache notes how far it is
BATCHES_PER_NOTE = 64
DTYPES = {"fp16": np.float16, "fp32": np.float32}


class ImageList(Dataset):
    """Transformed images of a list of paths; an unreadable one becomes its error message where that is
    wanted."""

    def __init__(
        self,
        paths: Sequence[str],
        transform: Callable,
        skip_unreadable: bool = False,
        orientation: str = "stored",
    ):
        self.paths, self.transform, self.skip_unreadable = paths, transform, skip_unreadable
        self.orientation = check_orientation(orientation)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return self.transform(read_image(self.paths[index], self.orientation))
        except ImageReadError as error:
            if not self.skip_unreadable:
                raise
            return str(error)


def image_batches(images: Dataset, batch_size: int, workers: int = 0) -> Iterator[list]:
    """Batches as plain lists, in order; a run draws the same random numbers whether they are read or found in a cache."""
    own = torch.Generator()
    yield from DataLoader(images, batch_size=batch_size, num_workers=workers, collate_fn=list, generator=own)


def images_digest(paths: Sequence[str]) -> str:
    """Digest of names, sizes and modification times, in order; members of an archive count with their
    archive."""
    digest, seen = hashlib.sha256(), {}
    for path in paths:
        file, member = split_member(path)
        if file not in seen:
            status = os.stat(file)
            seen[file] = f"{status.st_size}.{status.st_mtime_ns}"
        name = member or os.path.basename(file)
        digest.update(f"{name}\t{seen[file]}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


@dataclass
class FeatureCache:
    """Features of a list of images, shape [N, *shape].

    Attributes:
        path: ``<path>.npy`` and ``<path>.json``. fingerprint: everything that the features depend on.
        unreadable: indices of images that could not be read; their rows are zero. digest: of the features, once they are
            complete.
    """

    path: Path
    fingerprint: str
    unreadable: list[int] = field(default_factory=list)

    digest: str = ""

    @property
    def array(self) -> np.ndarray:
        return read_npy(f"{self.path}.npy", mmap=True)

    def is_complete(self, shape: Sequence[int], dtype: str = "fp16") -> bool:
        """Whether the features are there and whole; what is damaged is told, and encoded anew by :meth:`fill`.

        Args:
            shape: of all of them, [N, ...]. dtype: "fp16" or "fp32".
        """
        manifest = self._manifest(".json")
        if manifest is None:
            return False
        try:
            array = read_npy(f"{self.path}.npy", shape, DTYPES[dtype], mmap=True)
            if rows_digest(array).hexdigest() != manifest["features"]:
                raise DamagedFile(f"{self.path}.npy is damaged: its content does not fit its digest")
        except FileNotFoundError:
            return False
        except DamagedFile as error:
            print(f"{error}; encoding the images again")
            return False
        self.unreadable, self.digest = manifest["unreadable"], manifest["features"]
        return True

    def fill(
        self,
        images: ImageList,
        encode: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        dtype: str = "fp16",
        batch_size: int = 64,
        workers: int = 0,
        title: str = "",
        device="cpu",
    ) -> None:
        """Encode what is missing.

        Args:
            encode: ``[B, 3, S, S] -> [B, *shape]``. dtype: "fp16" or "fp32".
            title: of the progress bar.

        Raises:
            ImageReadError: an image is unreadable, unless ``images`` skips such.
            DiskFullError, OSError: no room, no permission; names the file or folder.
            ValueError: a feature is not finite.
        """
        from tqdm import tqdm

        array, done, unreadable, digest = self._open_partial((len(images), *shape), DTYPES[dtype])
        rest = ImageList(images.paths[done:], images.transform, images.skip_unreadable, images.orientation)
        with tqdm(total=len(images), initial=done, desc=title, unit="img", disable=not title) as bar:
            for batch in image_batches(rest, batch_size, workers):
                good = [i for i, item in enumerate(batch) if not isinstance(item, str)]
                unreadable += [done + i for i in range(len(batch)) if i not in set(good)]
                if good:
                    features = encode(torch.stack([batch[i] for i in good]).to(device)).float().cpu().numpy()
                    self._check(features, dtype)
                    array[[done + i for i in good]] = features.astype(DTYPES[dtype])
                digest.update(np.ascontiguousarray(array[done : done + len(batch)]))
                done += len(batch)
                bar.update(len(batch))
                if done % (batch_size * BATCHES_PER_NOTE) < batch_size:
                    array.flush()
                    held = {"done": done, "unreadable": unreadable, "features": digest.hexdigest()}
                    self._write_manifest(".partial.json", held)
        array.flush()
        del array
        os.replace(f"{self.path}.partial.npy", f"{self.path}.npy")
        self.unreadable, self.digest = unreadable, digest.hexdigest()
        self._write_manifest(".json", {"unreadable": unreadable, "features": self.digest})
        Path(f"{self.path}.partial.json").unlink(missing_ok=True)

    def _check(self, features: np.ndarray, dtype: str) -> None:
        if not np.isfinite(features).all():
            raise ValueError("an image feature is not finite: the backbone's weights are damaged")
        if dtype == "fp16" and np.abs(features).max() > np.finfo(np.float16).max:
            raise ValueError("image features exceed the range of fp16: set CIR.CACHE_DTYPE fp32")

    def _open_partial(self, shape: tuple[int, ...], dtype) -> tuple[np.ndarray, int, list[int], Any]:
        """The file to write to, the number of rows that it holds already, their unreadable ones and running digest."""
        partial = f"{self.path}.partial.npy"
        manifest = self._manifest(".partial.json")
        if manifest is not None and os.path.exists(partial):
            try:
                digest = rows_digest(read_npy(partial, shape, dtype, mmap=True), manifest["done"])
                if digest.hexdigest() == manifest["features"]:
                    array = np.lib.format.open_memmap(partial, mode="r+")
                    return array, manifest["done"], manifest["unreadable"], digest
            except DamagedFile as error:
                print(f"{error}; encoding the images again")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{self.path}.partial.json").unlink(missing_ok=True)
        for suffix in (".npy", ".json"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        return new_array(partial, shape, dtype), 0, [], rows_digest(np.empty(0))

    def _manifest(self, suffix: str) -> dict | None:
        """A manifest of this fingerprint, else None."""
        path = f"{self.path}{suffix}"
        try:
            content = read_sealed(path) if os.path.exists(path) else {}
        except DamagedFile as error:
            print(f"{error}; encoding the images again")
            return None
        matches = content.get("format") == FORMAT and content.get("fingerprint") == self.fingerprint
        return content if matches else None

    def _write_manifest(self, suffix: str, values: dict) -> None:
        write_sealed({"format": FORMAT, "fingerprint": self.fingerprint, **values}, f"{self.path}{suffix}")


def rows_digest(array: np.ndarray, rows: int | None = None):
    """A running digest of the first ``rows`` of an array (None: all), read in parts."""
    digest = hashlib.blake2b(digest_size=16)
    rows = len(array) if rows is None else rows
    step = max(1, PART // max(1, array[:1].nbytes))
    for start in range(0, rows, step):
        digest.update(np.ascontiguousarray(array[start : min(rows, start + step)]))
    return digest


def fingerprint(**parts) -> str:
    """Digest of everything that features depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def cached_features(
    folder: str | Path,
    name: str,
    paths: Sequence[str],
    encode: Callable[[Tensor], Tensor],
    transform: Callable,
    *,
    weights: str,
    shape: Sequence[int],
    precision: str = "fp32",
    dtype: str = "fp16",
    skip_unreadable: bool = False,
    orientation: str = "stored",
    batch_size: int = 64,
    workers: int = 0,
    device="cpu",
) -> FeatureCache:
    """Features of images, from ``folder`` if they were encoded before with the same images, weights and
    transform.

    Args:
        name: of the files, next to the fingerprint, for people who clean up.
        weights: digest of the encoder's weights. precision: in which it computes. shape: of one image's features.
        orientation: how pictures are turned, see :func:`~dassl_prompts.images.read_image`.

    Raises:
        FileNotFoundError, ImageReadError, OSError, ValueError: as :meth:`FeatureCache.fill`; also for a
            cache of a lenient run that lacks images.
    """
    key = fingerprint(
        images=images_digest(paths),
        weights=weights,
        precision=precision,
        transform=repr(transform),
        dtype=dtype,
        shape=list(shape),
        **({} if orientation == "stored" else {"orientation": orientation}),  # older caches know no other
    )
    cache = FeatureCache(Path(folder) / f"{name}-{key[:16]}", key)
    whole = (len(paths), *shape)
    if not cache.is_complete(whole, dtype):
        with exclusive(cache.path):  # runs that share the folder wait for whoever encodes
            if not cache.is_complete(whole, dtype):
                images = ImageList(paths, transform, skip_unreadable, orientation)
                cache.fill(images, encode, shape, dtype, batch_size, workers, title=f"encoding {name}", device=device)
    if cache.unreadable and not skip_unreadable:
        raise ImageReadError(
            f"{cache.path}.npy lacks {len(cache.unreadable)} images that an earlier run could not read and left out, such "
            f"as {paths[cache.unreadable[0]]}; fetch them again or, if they are whole, delete this file"
        )
    return cache


@contextmanager
def exclusive(
    path: Path, what: str = "cache folder", hint: str = "choose another one with CIR.CACHE_DIR"
) -> Iterator[None]:
    """Keep other processes out of the block while it runs; without POSIX locks there is no waiting.

    Args:
        path: a file in the folder that is kept. what, hint: for the message where it cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    require_writable(path.parent, what, hint)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
