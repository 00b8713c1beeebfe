"""A searchable index of images: features in a memory map, exact top-k in chunks, FAISS for very large ones.

An index is a folder. Its manifest names the files that belong together; an update writes new ones beside them and the manifest
last, so that a killed one leaves the former index (``index_update.py``). Names, places and copies are compared with their digests
when an index is opened, features when they are read for the first time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dassl_prompts.composed.index_table import AGAIN, COLUMNS, MANIFEST, NUMBER, Table, read_manifest
from dassl_prompts.engine.files import file_digest
from dassl_prompts.engine.reading import DamagedFile, read_npy, reading, require
from dassl_prompts.features.feature_cache import rows_digest
from dassl_prompts.ranking.exact import ordered_topk, topk

CHUNK = 65_536
#: rows that are turned into fp32 at a time: as many as stay in a processor's cache
BLOCK = 4096
#: rows of features that have one digest, and are encoded again where it does not fit
CHECKED = 4096
#: FAISS returns this many times k candidates, which are then scored exactly
RERANK = 10


class CheckedRows:
    """Rows [N, d] of a memory map, compared with their digests when they are read for the first time.

    Args:
        array: [N, d]. digests: one for every :data:`CHECKED` rows. name: of the file, for messages.
    """

    def __init__(self, array: np.ndarray, digests: Sequence[str], name: str | os.PathLike):
        self.array, self.digests, self.name = array, digests, name
        self._whole = np.zeros(len(digests), bool)

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The rows of a slice without a step, or of numbers.

        Raises:
            DamagedFile: they are not what was written.
        """
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self))
            parts = range(start // CHECKED, -(-stop // CHECKED))
        else:
            parts = np.unique(rows // CHECKED).tolist()
        for part in parts:
            if not self.is_whole(part):
                raise DamagedFile(f"{self.name} is damaged: its content does not fit its digest; {AGAIN}")
        return self.array[rows]

    def is_whole(self, part: int) -> bool:
        """Whether the ``part``-th :data:`CHECKED` rows fit their digest."""
        if not self._whole[part]:
            found = rows_digest(self.array[part * CHECKED : (part + 1) * CHECKED]).hexdigest()
            self._whole[part] = found == self.digests[part]
        return bool(self._whole[part])


Rows = np.ndarray | CheckedRows


def chunked_topk(
    queries: Tensor, gallery: Rows, k: int, chunk: int = CHUNK, left_out: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Exact top-k by inner product over a gallery that need not fit into memory.

    Args:
        queries: [Q, d]; half precision is scored in fp32. gallery: [N, d] array, memory map or :class:`CheckedRows` of any float type.
        k: results per query, at most N.
        chunk: rows whose scores are in memory at a time, chunk * Q * 4 bytes; of their features no more than :data:`BLOCK`.
        left_out: ascending numbers of rows that take no part.

    Returns:
        scores [Q, k] and row numbers [Q, k]; equal scores by smaller row; -1 where no row is left.

    Raises:
        ValueError: k or chunk out of range.
    """
    if not 1 <= k <= len(gallery):
        raise ValueError(f"{k} results were asked for, the index holds {len(gallery)} images")
    if chunk < 1:
        raise ValueError(f"chunk is {chunk}; give a positive number of rows")
    queries = queries if queries.dtype == torch.float64 else queries.float()
    left_out = np.empty(0, np.int64) if left_out is None else left_out
    scores, rows = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    block = queries.new_empty(min(BLOCK, len(gallery)), queries.shape[1])
    for start in range(0, len(gallery), chunk):
        stop = min(start + chunk, len(gallery))
        blocks = []
        for first in range(start, stop, BLOCK):
            part = torch.from_numpy(np.array(gallery[first : min(first + BLOCK, stop)]))
            blocks.append(block[: len(part)].copy_(part) @ queries.T)
        part_scores = torch.cat(blocks).T.contiguous()
        here = left_out[np.searchsorted(left_out, start) : np.searchsorted(left_out, stop)]
        part_scores[:, here - start] = -torch.inf
        new_scores, new_rows = ordered_topk(part_scores, min(k, stop - start))
        # earlier rows come first, and a stable sort keeps them first among equal scores
        scores, order = torch.cat([scores, new_scores], 1).sort(dim=1, descending=True, stable=True)
        rows = torch.cat([rows, new_rows + start], 1).gather(1, order)[:, :k]
        scores = scores[:, :k]
    return scores, rows.masked_fill(scores == -torch.inf, -1)


@dataclass
class ImageIndex:
    """An index folder.

    Attributes:
        folder: of the index. manifest: ``starts`` of the roots, ``model`` (how it is asked), ``settings`` (how the features were
            made: ``weights``, ``transform``, ``orientation``, ``width``), ``faiss``, names and digests of the files.
        table: the files' names.
        features: [N, d], normalised, fp16; zero where a file is no picture. copies: [C, 2], rows with the features of an
            earlier row, and that row.
    """

    folder: Path
    manifest: dict
    table: Table
    features: CheckedRows
    copies: np.ndarray

    @classmethod
    def open(cls, folder: str | Path) -> ImageIndex:
        """An index that :func:`~dassl_prompts.composed.index_update.update_index` wrote.

        Raises:
            FileNotFoundError: there is none, or one of its files is missing.
            DamagedFile: a file of it is not what was written; names it.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        try:
            return cls.read(folder, manifest)
        except FileNotFoundError:
            if read_manifest(folder) == manifest:
                raise
            return cls.open(folder)  # another process has just finished an update

    @classmethod
    def read(cls, folder: Path, manifest: dict, parts: Sequence[str] = ()) -> ImageIndex:
        """The index of a manifest; of ``parts`` of it alone where they are given.

        Raises:
            FileNotFoundError, DamagedFile: as :meth:`open`.
        """
        files = {part: folder / name for part, name in manifest["files"].items() if part in parts or not parts}
        for part, file in files.items():
            if not file.is_file():
                raise FileNotFoundError(f"{folder} lacks its file {file.name}: {AGAIN}")
            if part not in ("features", "faiss"):  # these two when they are first needed
                with reading(file, "the file of this index", AGAIN):
                    require(file_digest(file) == manifest["digests"][part], "its content does not fit its digest")
        with reading(folder / MANIFEST, "a whole index", AGAIN):
            count, width = manifest["count"], manifest["settings"]["width"]
            places = read_npy(files["places"], (count, COLUMNS), np.int64, mmap=True)
            names = read_npy(files["names"], (None,), np.uint8, mmap=True)
            features = read_npy(files["features"], (count, width), np.float16, mmap=True)
            copies = read_npy(files["copies"], (None, 2), np.int64) if "copies" in files else np.empty((0, 2), np.int64)
        rows = CheckedRows(features, manifest["features"], files["features"])
        return cls(folder, manifest, Table(manifest["starts"], names, places), rows, copies)

    def __len__(self) -> int:
        """Pictures that can be found."""
        return len(self.table) - len(self.table.unreadable)

    def file(self, part: str) -> Path:
        """Where "features", "names", "places", "copies" or "faiss" lies."""
        return self.folder / self.manifest["files"][part]

    def search(self, queries: Tensor, k: int, exclude: Sequence[int] = ()) -> list[list[tuple[int, float]]]:
        """``(row, score)`` of the best ``k`` images for every query [Q, d], without the rows in ``exclude``.

        The higher score first, then the smaller row; either engine looks at images with equal features once, so that they
        share one score.
        """
        wanted = min(k + len(exclude), len(self.table))
        scores, rows = (
            self.search_faiss(queries, wanted)
            if self.manifest["faiss"]
            else chunked_topk(queries, self.features, wanted, left_out=self.single_out)
        )
        hidden = set(exclude)
        found = []
        for pair in zip(rows.tolist(), scores.tolist()):
            every = [(one, s) for r, s in zip(*pair) if r >= 0 for one in (r, *self.copies_of.get(r, ()))]
            every.sort(key=lambda row: (-row[1], row[0]))
            found.append([row for row in every if row[0] not in hidden][:k])
        return found

    @cached_property
    def single_out(self) -> np.ndarray:
        """Ascending numbers of the rows that are not compared with a query: copies, and files that are no pictures."""
        return np.union1d(self.copies[:, 0], self.table.unreadable)

    @cached_property
    def copies_of(self) -> dict[int, list[int]]:
        """The later rows with the features of a row."""
        copies: dict[int, list[int]] = {}
        for copy, original in self.copies.tolist():
            copies.setdefault(original, []).append(copy)
        return copies

    # -- FAISS -----------------------------------------------------------------------------------------------

    @cached_property
    def faiss_index(self):
        """FAISS's own index, of the numbers in the table.

        Raises:
            DamagedFile: the file is not what was written.
        """
        path = self.file("faiss")
        with reading(path, "an index of FAISS", AGAIN):
            require(file_digest(path) == self.manifest["digests"]["faiss"], "its content does not fit its digest")
            return import_faiss().read_index(str(path))

    @cached_property
    def rows_by_number(self) -> tuple[np.ndarray, np.ndarray]:
        """Ascending numbers of the rows that FAISS is asked for, and these rows."""
        return numbered(self.table, self.single_out)

    def search_faiss(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Approximate candidates, scored exactly; row -1 where FAISS found fewer than ``k``."""
        index = self.faiss_index
        found = index.search(queries.float().numpy(), min(k * RERANK, index.ntotal))[1]
        numbers, by_number = self.rows_by_number
        place = np.searchsorted(numbers, found).clip(max=len(numbers) - 1)
        # -1 where FAISS found nothing, or a file that is gone
        candidates = torch.from_numpy(np.where(numbers[place] == found, by_number[place], -1))
        rows = torch.unique(candidates[candidates >= 0])
        features = torch.from_numpy(np.array(self.features[rows.numpy()], dtype=np.float32))
        position = torch.searchsorted(rows, candidates.clamp_min(0)).masked_fill(candidates < 0, -1)
        scores, found = topk(queries, features, min(k, len(features)), candidates=position)
        return scores, rows[found.clamp_min(0)].masked_fill(found < 0, -1)


def numbered(table: Table, single_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending numbers of the features of a table, without those of some rows, and their rows."""
    rows = np.delete(np.arange(len(table)), single_out)
    numbers = table.places[rows, NUMBER]
    order = np.argsort(numbers, kind="stable")
    return numbers[order], rows[order]


def import_faiss():
    """The FAISS module.

    Raises:
        ImportError: it is not installed; says how to.
    """
    try:
        import faiss
    except ImportError as error:
        raise ImportError(
            "FAISS is not installed: pip install 'dassl-prompts[faiss]', or leave --faiss out for exact search"
        ) from error
    return faiss
