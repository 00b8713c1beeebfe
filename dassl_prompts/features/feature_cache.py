"""Image features on disk: encoded once, found again by a fingerprint of images, weights and transform.

A cache is one ``.npy`` file, read through a memory map, and a manifest. Writing goes on where an interrupted
run stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dassl_prompts.engine.files import read_json, require_writable, write_json
from dassl_prompts.images import ImageReadError, check_orientation, read_image, split_member

FORMAT = 1
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


def image_batches(images: ImageList, batch_size: int, workers: int = 0) -> Iterator[list[Tensor | str]]:
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
        unreadable: indices of images that could not be read; their rows are zero.
    """

    path: Path
    fingerprint: str
    unreadable: list[int] = field(default_factory=list)

    @property
    def array(self) -> np.ndarray:
        return np.load(f"{self.path}.npy", mmap_mode="r")

    def is_complete(self) -> bool:
        manifest = self._manifest(".json")
        if manifest is None or not os.path.exists(f"{self.path}.npy"):
            return False
        self.unreadable = manifest["unreadable"]
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
            OSError: no space, no permission; names the folder.
            ValueError: a feature is not finite.
        """
        from tqdm import tqdm

        array, done, unreadable = self._open_partial((len(images), *shape), DTYPES[dtype])
        rest = ImageList(images.paths[done:], images.transform, images.skip_unreadable, images.orientation)
        with tqdm(total=len(images), initial=done, desc=title, unit="img", disable=not title) as bar:
            for batch in image_batches(rest, batch_size, workers):
                good = [i for i, item in enumerate(batch) if not isinstance(item, str)]
                unreadable += [done + i for i in range(len(batch)) if i not in set(good)]
                if good:
                    features = encode(torch.stack([batch[i] for i in good]).to(device)).float().cpu().numpy()
                    self._check(features, dtype)
                    array[[done + i for i in good]] = features.astype(DTYPES[dtype])
                done += len(batch)
                bar.update(len(batch))
                if done % (batch_size * BATCHES_PER_NOTE) < batch_size:
                    array.flush()
                    self._write_manifest(".partial.json", {"done": done, "unreadable": unreadable})
        array.flush()
        del array
        os.replace(f"{self.path}.partial.npy", f"{self.path}.npy")
        self.unreadable = unreadable
        self._write_manifest(".json", {"unreadable": unreadable})
        Path(f"{self.path}.partial.json").unlink(missing_ok=True)

    def _check(self, features: np.ndarray, dtype: str) -> None:
        if not np.isfinite(features).all():
            raise ValueError("an image feature is not finite: the backbone's weights are damaged")
        if dtype == "fp16" and np.abs(features).max() > np.finfo(np.float16).max:
            raise ValueError("image features exceed the range of fp16: set CIR.CACHE_DTYPE fp32")

    def _open_partial(self, shape: tuple[int, ...], dtype) -> tuple[np.ndarray, int, list[int]]:
        """The file to write to, the number of rows that it holds already, and their unreadable ones."""
        partial = f"{self.path}.partial.npy"
        manifest = self._manifest(".partial.json")
        if manifest is not None and os.path.exists(partial):
            array = np.lib.format.open_memmap(partial, mode="r+")
            if array.shape == shape and array.dtype == dtype:
                return array, manifest["done"], manifest["unreadable"]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{self.path}.partial.json").unlink(missing_ok=True)
        for suffix in (".npy", ".json"):
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        return np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape), 0, []

    def _manifest(self, suffix: str) -> dict | None:
        """A manifest of this fingerprint, else None."""
        path = f"{self.path}{suffix}"
        content = read_json(path) if os.path.exists(path) else {}
        matches = content.get("format") == FORMAT and content.get("fingerprint") == self.fingerprint
        return content if matches else None

    def _write_manifest(self, suffix: str, values: dict) -> None:
        write_json({"format": FORMAT, "fingerprint": self.fingerprint, **values}, f"{self.path}{suffix}")


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
    if not cache.is_complete():
        with exclusive(cache.path):  # runs that share the folder wait for whoever encodes
            if not cache.is_complete():
                images = ImageList(paths, transform, skip_unreadable, orientation)
                cache.fill(images, encode, shape, dtype, batch_size, workers, title=f"encoding {name}", device=device)
    if cache.unreadable and not skip_unreadable:
        raise ImageReadError(
            f"{cache.path}.npy lacks {len(cache.unreadable)} images that an earlier run could not read and left out, such "
            f"as {paths[cache.unreadable[0]]}; fetch them again or, if they are whole, delete this file"
        )
    return cache


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep other processes out of the block while it runs; without POSIX locks there is no waiting."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    require_writable(path.parent, "cache folder", hint="choose another one with CIR.CACHE_DIR")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.parent / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
