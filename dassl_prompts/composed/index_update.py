"""Writing an index: what has changed since the last time is encoded, everything else is taken over.

A file is known by the digest of its content; path, size and time spare reading it. What is encoded is kept in parts until the index
is whole, so that an interrupted run goes on where it was. The files of an index carry the number of its generation and are written
whole beside those of the former one; the manifest comes last, then what no manifest names is removed.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from dassl_prompts.composed.index import ImageIndex, import_faiss
from dassl_prompts.composed.index_files import IN_PARTS, NOWHERE, PARTS, Former, Parts, remove_others, write
from dassl_prompts.composed.index_table import FORMAT, MANIFEST, Row, Table, check_starts
from dassl_prompts.features.feature_cache import exclusive, fingerprint, image_batches
from dassl_prompts.features.store import digest_of
from dassl_prompts.images import ImageReadError, check_orientation, read_bytes, read_image, split_member

#: nanoseconds in which a file may be written twice and have one time
SAME_TIME = 2 * 10**9


@dataclass
class Update:
    """What an update did: numbers of files that were ``encoded``, ``kept`` and ``removed``, paths of ``unreadable`` ones."""

    encoded: int = 0
    kept: int = 0
    removed: int = 0
    unreadable: list[str] = field(default_factory=list)


class Pending(Dataset):
    """Files that are not known by path, size and time: (size, time, digest, transformed image), for one that vanished None.

    In place of the image stands None where ``known`` has its content, and the error's message where it is not readable.
    """

    def __init__(self, paths: Sequence[str], transform: Callable, orientation: str, known: Mapping[bytes, int]):
        self.paths, self.transform, self.known = paths, transform, known
        self.orientation = check_orientation(orientation)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, int, bytes, Tensor | str | None] | None:
        path = self.paths[index]
        try:
            size, mtime = stamp(path)
            digest = digest_of(read_bytes(path))  # after the time: a change in between is seen next time
            if digest in self.known:
                return size, mtime, digest, None
            return size, mtime, digest, self.transform(read_image(path, self.orientation))
        except ImageReadError as error:
            return size, mtime, digest, str(error)
        except FileNotFoundError:
            return None


def stamp(path: str) -> tuple[int, int]:
    """Size and time of the file that holds a picture; time -1 where a change could follow that has the same."""
    status = os.stat(split_member(path)[0])
    return status.st_size, status.st_mtime_ns if time.time_ns() - status.st_mtime_ns > SAME_TIME else -1


def update_index(
    folder: str | Path,
    files: Mapping[str, Sequence[str]],
    encode: Callable[[Tensor], Tensor],
    transform: Callable,
    *,
    weights: str,
    width: int,
    model: dict,
    faiss: str = "",
    orientation: str = "camera",
    batch_size: int = 64,
    workers: int = 0,
    device="cpu",
) -> tuple[ImageIndex, Update]:
    """Make an index, or bring one up to date: files that are not in it are encoded, those that are gone leave it.

    Args:
        files: names of images by the start of their root, see :func:`~dassl_prompts.composed.index_table.start_of`.
        encode: images [B, 3, S, S] -> features [B, d]. weights: their digest.
        model: what ``search ask`` has to know to ask the index. faiss: factory string such as "HNSW32"; "" = exact search.
        orientation: how pictures are turned, see :func:`~dassl_prompts.images.read_image`.

    Raises:
        ValueError: no image can be read, a root lies in another one, or a feature is not finite.
        ImportError: FAISS is asked for and not installed. OSError: no room, no permission.
    """
    folder, starts = Path(folder), list(files)
    check_starts(starts)
    if faiss:
        import_faiss()
    settings = {"weights": weights, "transform": repr(transform), "orientation": orientation, "width": width}
    manifest = {"format": FORMAT, "starts": starts, "model": model, "settings": settings, "faiss": faiss}
    with exclusive(folder / MANIFEST, "folder of the index", "give another one with --index"):
        former = Former.of(folder, settings)
        parts = Parts(folder / f"{PARTS}{fingerprint(**settings)[:16]}", width)
        work = Work(former, parts, starts)
        work.look(files)
        work.encode(encode, transform, orientation, batch_size, workers, device)
        rows, sources = work.in_order()
        if not any(row.readable for row in rows):
            example = starts[rows[0].root] + os.fsdecode(rows[0].name) if rows else starts[0]
            raise ValueError(f"none of the {len(rows)} images can be read, such as {example}")
        same = all(former.manifest.get(key) == value for key, value in manifest.items())
        if not (same and rows == former.rows and former.is_whole(folder, ("copies", "faiss"))):
            write(folder, {**manifest, "next": work.number}, Table.of(starts, rows), sources, former, parts)
        index = ImageIndex.open(folder)
        remove_others(folder, {MANIFEST, *index.manifest["files"].values()})
    table = index.table
    work.done.unreadable = [table.path(row) for row in table.unreadable.tolist()]
    return index, work.done


class Work:
    """The rows of the index that is being made, each with where its features are: a former row, or one of these two."""

    def __init__(self, former: Former, parts: Parts, starts: list[str]):
        self.former, self.parts, self.starts, self.done = former, parts, starts, Update()
        self.number = former.manifest["next"] if former.rows else 0
        self.rows: list[tuple[Row, int]] = []
        self.pending: list[tuple[int, bytes]] = []

    def look(self, files: Mapping[str, Sequence[str]]) -> None:
        """Take over the files whose path, size and time are known; the others wait."""
        stamps: dict[str, tuple[int, int]] = {}
        found = 0
        for root, start in enumerate(self.starts):
            for name in map(os.fsencode, files[start]):
                number = self.former.at.get((start, name))
                found += number is not None
                if number is None or not self.is_unchanged(number, split_member(start + os.fsdecode(name))[0], stamps):
                    self.pending.append((root, name))
                else:
                    self.rows.append((self.former.rows[number]._replace(root=root), number))
        self.done.kept, self.done.removed = len(self.rows), len(self.former.rows) - found

    def is_unchanged(self, number: int, file: str, stamps: dict[str, tuple[int, int]]) -> bool:
        """Whether a former row needs no look at its file; ``stamps`` are those of the files that were looked at."""
        if file not in stamps:
            try:
                stamps[file] = stamp(file)
            except FileNotFoundError:  # since it was listed
                return False
        row = self.former.rows[number]
        return (row.size, row.mtime) == stamps[file] and row.mtime >= 0 and self.former.usable(number)

    def encode(self, encode, transform, orientation: str, batch_size: int, workers: int, device) -> None:
        """Read the files that wait, and encode those whose content is new."""
        if not self.pending:
            return
        from tqdm import tqdm

        rows = self.former.rows
        known = dict.fromkeys(self.parts.rows, IN_PARTS)
        known |= {row.digest: number for number, row in enumerate(rows) if self.former.usable(number)}
        paths = [self.starts[root] + os.fsdecode(name) for root, name in self.pending]
        waiting = iter(self.pending)
        with tqdm(total=len(paths), desc="images", unit="img", disable=None) as bar:
            for batch in image_batches(Pending(paths, transform, orientation, known), batch_size, workers):
                new = [item for item in batch if item and isinstance(item[3], Tensor)]
                if new:
                    pixels = torch.stack([item[3] for item in new]).to(device)
                    features = F.normalize(encode(pixels).float(), dim=-1).cpu().numpy()
                    if not np.isfinite(features).all():
                        raise ValueError("an image feature is not finite: the backbone's weights are damaged")
                    self.parts.add([item[2] for item in new], features.astype(np.float16))
                    known.update((item[2], IN_PARTS) for item in new)  # of copies that follow
                self.done.encoded += len(new)
                for place, item in zip(itertools.islice(waiting, len(batch)), batch):
                    if item is not None:
                        self.take(*place, *item, known)
                bar.update(len(batch))
        self.parts.flush()

    def take(
        self, root: int, name: bytes, size: int, mtime: int, digest: bytes, image, known: Mapping[bytes, int]
    ) -> None:
        """A row for a file that was read."""
        source = NOWHERE if isinstance(image, str) else known[digest] if image is None else IN_PARTS
        former = self.former.rows[source] if source >= 0 else None
        readable = former.readable if former else source == IN_PARTS
        here = self.former.at.get((self.starts[root], name)) if former else None
        if here is not None and self.former.rows[here].digest == digest:  # only the time is another
            source, number = here, self.former.rows[here].number
        else:
            number, self.number = self.number, self.number + 1
        self.done.kept += former is not None
        self.rows.append((Row(root, name, size, mtime, digest, readable, number), source))

    def in_order(self) -> tuple[list[Row], np.ndarray]:
        """The rows by root and name, and the places of their features [N]."""
        self.rows.sort()
        return [row for row, _ in self.rows], np.array([source for _, source in self.rows], np.int64)
