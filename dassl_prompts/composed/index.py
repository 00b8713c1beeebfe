"""A searchable folder of images: features in a memory map, exact top-k in chunks, FAISS for very large
ones."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.engine.files import atomic_path, file_digest, read_sealed, write_sealed
from dassl_prompts.engine.reading import read_npy, reading, require
from dassl_prompts.features.feature_cache import cached_features, rows_digest
from dassl_prompts.images import IMAGE_SUFFIXES, walk_images
from dassl_prompts.ranking.exact import ordered_topk, topk

CHUNK = 65_536
MANIFEST = "index.json"
FORMAT = 2
AGAIN = "index the images again"
#: names of the files that an index consists of, also those of earlier versions
OWN_FILES = re.compile(
    r"(copies-|faiss-)?images-[0-9a-f]{16}(\.partial)?(\.npy|\.json)?|faiss\.index(\.tmp)?|copies\.npy"
)
#: FAISS returns this many times k candidates, which are then scored exactly
RERANK = 10


def chunked_topk(
    queries: Tensor, gallery: np.ndarray, k: int, chunk: int = CHUNK, left_out: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """Exact top-k by inner product over a gallery that need not fit into memory.

    Args:
        queries: [Q, d]; half precision is scored in fp32. gallery: [N, d] array or memory map of any float type.
        k: results per query, at most N.
        chunk: gallery rows in memory at a time (as fp32), so the memory is about chunk * (d + Q) * 4 bytes.
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
    for start in range(0, len(gallery), chunk):
        part = torch.from_numpy(np.array(gallery[start : start + chunk])).to(queries.dtype)
        part_scores = queries @ part.T
        here = left_out[np.searchsorted(left_out, start) : np.searchsorted(left_out, start + len(part))]
        part_scores[:, here - start] = -torch.inf
        new_scores, new_rows = ordered_topk(part_scores, min(k, len(part)))
        # earlier rows come first, and a stable sort keeps them first among equal scores
        scores, order = torch.cat([scores, new_scores], 1).sort(dim=1, descending=True, stable=True)
        rows = torch.cat([rows, new_rows + start], 1).gather(1, order)[:, :k]
        scores = scores[:, :k]
    return scores, rows.masked_fill(scores == -torch.inf, -1)


def find_copies(features: np.ndarray) -> np.ndarray:
    """Rows of a memory map [N, d] that repeat an earlier row bit by bit: [C, 2], each with the first of its kind."""
    first: dict[bytes, int] = {}
    pairs = []
    for start in range(0, len(features), CHUNK):
        for number, row in enumerate(np.array(features[start : start + CHUNK]) + 0.0, start):  # -0.0 is 0.0
            original = first.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), number)
            if original != number:
                pairs.append((number, original))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def list_folder(folder: str | Path, left_out: Counter | None = None) -> list[str]:
    """Paths of all images below a folder, sorted; ``left_out`` counts the suffixes of all other files.

    Raises:
        FileNotFoundError: no folder, or no image in it.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"there is no folder {folder}")
    paths = sorted(walk_images(folder, left_out))
    if not paths:
        raise FileNotFoundError(f"{folder} has no images ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def remove_others(folder: Path, names: set[str]) -> None:
    """Remove the files of earlier indices of a folder: all that an index writes and that are not among ``names``."""
    for path in folder.iterdir():
        if path.name not in names and OWN_FILES.fullmatch(path.name):
            path.unlink(missing_ok=True)


@dataclass
class ImageIndex:
    """An index folder: manifest, features [N, d] (normalised, fp16) and, where it was asked for, a FAISS
    index.

    Attributes:
        folder: of the index. manifest: ``paths``, ``model`` (how the features were made), ``weights``,
            ``unreadable``, ``orientation``.
    """

    folder: Path
    manifest: dict

    @classmethod
    def build(
        cls,
        folder: str | Path,
        paths: Sequence[str],
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
    ) -> ImageIndex:
        """Encode the images (only if they or the weights changed) and write the index.

        Args:
            paths: images; unreadable ones are left out and listed. encode: images [B, 3, S, S] -> features
                [B, d].
            model: what :func:`open` has to know to ask the index. faiss: factory string such as "HNSW32"; ""
                = exact search. orientation: how pictures are turned, see :func:`~dassl_prompts.images.read_image`.

        Raises:
            ValueError: no image can be read. ImportError: FAISS is asked for and not installed.
        """
        folder = Path(folder)
        cache = cached_features(
            folder,
            "images",
            paths,
            lambda x: F.normalize(encode(x).float(), dim=-1),
            transform,
            weights=weights,
            shape=(width,),
            dtype="fp16",
            skip_unreadable=True,
            orientation=orientation,
            batch_size=batch_size,
            workers=workers,
            device=device,
        )
        if len(cache.unreadable) == len(paths):
            raise ValueError(f"none of the {len(paths)} images can be read, such as {paths[0]}")
        key = cache.path.name
        files = {
            "features": f"{key}.npy",
            "copies": f"copies-{key}.npy",
            **({"faiss": f"faiss-{key}"} if faiss else {}),
        }
        manifest = {
            "format": FORMAT,
            "paths": list(map(os.path.abspath, paths)),
            "unreadable": cache.unreadable,
            "model": model,
            "weights": weights,
            "files": files,
            "width": width,
            "faiss": faiss,
            "orientation": orientation,
        }
        index = cls(folder, manifest)
        with atomic_path(folder / files["copies"]) as temporary, open(temporary, "wb") as file:
            np.save(file, find_copies(index.features))
        if faiss:
            index.build_faiss(faiss)
        # the manifest is written last: until then an index that was there before is the one that answers
        others = [name for part, name in files.items() if part != "features"]
        manifest["digests"] = {files["features"]: cache.digest, **{name: file_digest(folder / name) for name in others}}
        write_sealed(manifest, folder / MANIFEST)
        remove_others(folder, {MANIFEST, f"{key}.json", *files.values()})
        return index

    @classmethod
    def open(cls, folder: str | Path) -> ImageIndex:
        """An index that :meth:`build` wrote.

        Raises:
            FileNotFoundError: there is none, or one of its files is missing.
            DamagedFile: a file of it is not what was written; names it.
        """
        path = Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{folder} is not an index ({path} is missing): make one with `search index`")
        with reading(path, "a whole index", AGAIN):
            index = cls(Path(folder), read_sealed(path))
            require(index.manifest.get("format") == FORMAT, "it was written by another version")
        for part, name in index.manifest["files"].items():
            file = index.folder / name
            if not file.is_file():
                raise FileNotFoundError(f"{folder} lacks its file {name}: {AGAIN}")
            with reading(file, "the file of this index", AGAIN):
                found = rows_digest(index.features).hexdigest() if part == "features" else file_digest(file)
                require(found == index.manifest["digests"][name], "its content does not fit its digest")
        return index

    def file(self, part: str) -> Path:
        """Where "features", "copies" or "faiss" lies."""
        return self.folder / self.manifest["files"][part]

    @property
    def features(self) -> np.ndarray:
        shape = (len(self.manifest["paths"]), self.manifest["width"])
        return read_npy(self.file("features"), shape, np.float16, mmap=True)

    @cached_property
    def copies(self) -> np.ndarray:
        """[C, 2]: rows with the features of an earlier row, and that row."""
        return read_npy(self.file("copies"), (None, 2), np.int64)

    def search(self, queries: Tensor, k: int, exclude: Sequence[str] = ()) -> list[list[tuple[str, float]]]:
        """``(path, score)`` of the best ``k`` images for every query [Q, d], without the paths in ``exclude``.

        The higher score first, then the smaller number in ``paths``; either engine looks at images with equal features
        once, so that they share one score.
        """
        paths, hidden = self.manifest["paths"], {os.path.abspath(path) for path in exclude}
        hidden |= {paths[i] for i in self.manifest["unreadable"]}
        wanted = min(k + sum(path in hidden for path in paths) if hidden else k, len(paths))
        scores, rows = (
            self.search_faiss(queries, wanted)
            if self.manifest["faiss"]
            else chunked_topk(queries, self.features, wanted, left_out=self.copies[:, 0])
        )
        copies: dict[int, list[int]] = {}
        for copy, original in self.copies.tolist():
            copies.setdefault(original, []).append(copy)
        found = []
        for pair in zip(rows.tolist(), scores.tolist()):
            every = [(one, s) for r, s in zip(*pair) if r >= 0 for one in (r, *copies.get(r, ()))]
            every.sort(key=lambda row: (-row[1], row[0]))
            found.append([(paths[r], s) for r, s in every if paths[r] not in hidden][:k])
        return found

    # -- FAISS -----------------------------------------------------------------------------------------------

    def build_faiss(self, factory: str) -> None:
        faiss = import_faiss()
        features = self.features
        try:
            index = faiss.index_factory(features.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as error:
            raise ValueError(f"FAISS does not know the index {factory!r}, use e.g. HNSW32 or IVF4096,Flat") from error
        if not index.is_trained:
            index.train(np.array(features[: 50 * CHUNK], dtype=np.float32))
        for rows in np.array_split(self.distinct, range(CHUNK, len(self.distinct), CHUNK)):
            index.add(np.array(features[rows], dtype=np.float32))
        with atomic_path(self.file("faiss")) as temporary:
            faiss.write_index(index, str(temporary))

    @property
    def distinct(self) -> np.ndarray:
        """Numbers of the rows that FAISS holds: all but the copies."""
        return np.delete(np.arange(len(self.manifest["paths"])), self.copies[:, 0])

    def search_faiss(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Approximate candidates, scored exactly; row -1 where FAISS found fewer than ``k``."""
        faiss = import_faiss()
        with reading(self.file("faiss"), "an index of FAISS", AGAIN):
            index = faiss.read_index(str(self.file("faiss")))
        found = index.search(queries.float().numpy(), min(k * RERANK, index.ntotal))[1]
        candidates = torch.from_numpy(np.where(found < 0, -1, self.distinct[found]))
        rows = torch.unique(candidates[candidates >= 0])
        features = torch.from_numpy(np.array(self.features[rows.numpy()], dtype=np.float32))
        position = torch.searchsorted(rows, candidates.clamp_min(0)).masked_fill(candidates < 0, -1)
        scores, found = topk(queries, features, min(k, len(features)), candidates=position)
        return scores, rows[found.clamp_min(0)].masked_fill(found < 0, -1)


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
