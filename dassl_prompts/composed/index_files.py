"""The files of an index as an update meets and leaves them: what a former one holds, what is encoded, the next generation."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dassl_prompts.composed.index import CHECKED, CHUNK, CheckedRows, ImageIndex, import_faiss, numbered
from dassl_prompts.composed.index_table import DIGEST, MANIFEST, Row, Table, read_manifest
from dassl_prompts.engine.files import atomic_path, file_digest, new_array, remove_leftovers, write_sealed
from dassl_prompts.engine.reading import DamagedFile
from dassl_prompts.features.feature_cache import rows_digest
from dassl_prompts.features.store import KEY, content_digest, read_records, whole_files, write_records

#: names of the files that an index consists of, also those of earlier versions
OWN_FILES = re.compile(
    r"(features|names|places|copies)-\d+\.npy|faiss-\d+"
    r"|(copies-|faiss-)?images-[0-9a-f]{16}(\.partial)?(\.npy|\.json)?|faiss\.index(\.tmp)?|copies\.npy"
)
PARTS = "parts-"
#: files of a former index without which nothing of it is taken over
NEEDED = ("features", "names", "places")
#: images that are encoded between two writings of a part
PART_IMAGES = 4096
#: where features are that no former row has: in the parts, or nowhere because the file is no picture
IN_PARTS, NOWHERE = -1, -2
#: share of numbers in FAISS's index that are gone, from which it is built anew
GONE = 0.25


@dataclass
class Former:
    """What an earlier index holds: its ``rows``, which of them a file is (``at``, by start of the root and name), ``features``."""

    manifest: dict
    rows: list[Row] = field(default_factory=list)
    at: dict[tuple[str, bytes], int] = field(default_factory=dict)
    features: CheckedRows | None = None

    @classmethod
    def of(cls, folder: Path, settings: dict) -> Former:
        """That of ``folder``; nothing of it counts where ``settings`` are others. Damage is told."""
        manifest: dict = {}
        try:
            if (folder / MANIFEST).is_file():
                manifest = read_manifest(folder)
            if manifest.get("settings") != settings:
                return cls(manifest)
            index = ImageIndex.read(folder, manifest, NEEDED)
        except (DamagedFile, FileNotFoundError) as error:
            print(f"{error}, which is done now")
            return cls(manifest)
        rows = list(index.table)
        at = {(index.table.starts[row.root], row.name): number for number, row in enumerate(rows)}
        return cls(manifest, rows, at, index.features)

    def usable(self, number: int) -> bool:
        """Whether the features of a row are what was written."""
        return self.features.is_whole(number // CHECKED)

    def is_whole(self, folder: Path, parts: Sequence[str]) -> bool:
        """Whether files of the index are what was written."""
        digests = self.manifest.get("digests", {})
        files = {part: folder / self.manifest["files"][part] for part in parts if part in digests}
        return all(file.is_file() and file_digest(file) == digests[part] for part, file in files.items())


class Parts:
    """Features [d] in fp16 by the digest of a picture's content, kept on the disk until the index is whole."""

    def __init__(self, folder: Path, width: int):
        self.folder, self.width = folder, width
        self.rows: dict[bytes, np.ndarray] = {}
        self.waiting: dict[bytes, np.ndarray] = {}
        for path in whole_files(folder):
            self._take(read_records(path, KEY + 2 * width))

    def _take(self, records: np.ndarray | None) -> None:
        if records is not None:
            self.rows.update(zip(map(bytes, records[:, :KEY]), records[:, KEY:].view(np.float16)))

    def add(self, digests: Sequence[bytes], features: np.ndarray) -> None:
        self.waiting.update(zip(digests, features))
        if len(self.waiting) >= PART_IMAGES:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if not self.waiting:
            return
        records = np.empty((len(self.waiting), KEY + 2 * self.width), np.uint8)
        records[:, :KEY] = np.frombuffer(b"".join(self.waiting), np.uint8).reshape(-1, KEY)
        records[:, KEY:] = np.stack(list(self.waiting.values())).view(np.uint8)
        path = self.folder / f"{content_digest(records)}.npy"
        write_records(path, records)
        self.waiting = {}
        self._take(read_records(path, KEY + 2 * self.width, compare=False))


def write(folder: Path, manifest: dict, table: Table, sources: np.ndarray, former: Former, parts: Parts) -> None:
    """The files of the next generation, then the manifest that names them."""
    generation = former.manifest.get("generation", 0) + 1
    files = {part: f"{part}-{generation}.npy" for part in ("features", "names", "places", "copies")}
    files |= {"faiss": f"faiss-{generation}"} if manifest["faiss"] else {}
    width = manifest["settings"]["width"]
    with atomic_path(folder / files["features"]) as temporary:
        digests = write_features(temporary, table, width, sources, former, parts)
        copies = find_copies(np.load(temporary, mmap_mode="r"), table.unreadable)
        distinct = numbered(table, np.union1d(copies[:, 0], table.unreadable))
        if manifest["faiss"]:
            features = np.load(temporary, mmap_mode="r")
            with atomic_path(folder / files["faiss"]) as path:
                write_faiss(path, manifest["faiss"], features, *distinct, folder, former)
    for part, array in (("names", table.names), ("places", table.places), ("copies", copies)):
        with atomic_path(folder / files[part]) as temporary, open(temporary, "wb") as file:
            np.save(file, array)
    manifest |= {"generation": generation, "count": len(table), "files": files, "features": digests}
    manifest["digests"] = {part: file_digest(folder / name) for part, name in files.items() if part != "features"}
    write_sealed(manifest, folder / MANIFEST)


def write_features(
    path: Path, table: Table, width: int, sources: np.ndarray, former: Former, parts: Parts
) -> list[str]:
    """Gather the features of a table into a file; returns a digest of every :data:`CHECKED` rows."""
    array = new_array(path, (len(table), width), np.float16)
    digests = []
    contents = np.ascontiguousarray(table.places[:, DIGEST])
    for start in range(0, len(table), CHECKED):
        block = slice(start, min(start + CHECKED, len(table)))
        taken = sources[block]
        rows = np.zeros((len(taken), width), np.float16)
        if (taken >= 0).any():
            rows[taken >= 0] = former.features[taken[taken >= 0]]
        for place in np.flatnonzero(taken == IN_PARTS).tolist():
            rows[place] = parts.rows[contents[start + place].tobytes()]
        array[block] = rows
        digests.append(rows_digest(rows).hexdigest())
    array.flush()
    return digests


def find_copies(features: np.ndarray, unreadable: np.ndarray) -> np.ndarray:
    """Rows of a memory map [N, d] that repeat an earlier row bit by bit: [C, 2], each with the first of its kind.

    Args:
        unreadable: numbers of rows that stand for nothing.
    """
    first: dict[bytes, int] = {}
    pairs = []
    nothing = set(unreadable.tolist())
    for start in range(0, len(features), CHUNK):
        for number, row in enumerate(np.array(features[start : start + CHUNK]) + 0.0, start):  # -0.0 is 0.0
            original = first.setdefault(hashlib.blake2b(row.tobytes(), digest_size=16).digest(), number)
            if original != number and number not in nothing:
                pairs.append((number, original))
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def write_faiss(
    path: Path, factory: str, features: np.ndarray, numbers: np.ndarray, rows: np.ndarray, folder: Path, former: Former
) -> None:
    """FAISS's index of rows under their numbers: the former one with what it lacks, a new one where much of it is gone.

    Raises:
        ValueError: FAISS does not know the factory string.
    """
    faiss = import_faiss()
    index, held = None, np.empty(0, np.int64)
    if former.rows and former.manifest["faiss"] == factory and former.is_whole(folder, ("faiss",)):
        index = faiss.read_index(str(folder / former.manifest["files"]["faiss"]))
        held = faiss.vector_to_array(index.id_map)
    if index is None or len(np.setdiff1d(held, numbers)) > GONE * len(numbers):
        index, held = new_faiss(faiss, factory, features, rows), np.empty(0, np.int64)
    lacking = np.flatnonzero(~np.isin(numbers, held))
    for start in range(0, len(lacking), CHUNK):
        some = lacking[start : start + CHUNK]
        index.add_with_ids(np.array(features[rows[some]], dtype=np.float32), numbers[some])
    faiss.write_index(index, str(path))


def new_faiss(faiss, factory: str, features: np.ndarray, rows: np.ndarray):
    """An empty index that knows ids, trained where its kind is."""
    try:
        index = faiss.index_factory(features.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(f"FAISS does not know the index {factory!r}, use e.g. HNSW32 or IVF4096,Flat") from error
    if not index.is_trained:
        index.train(np.array(features[np.sort(rows[: 50 * CHUNK])], dtype=np.float32))
    return faiss.IndexIDMap2(index)


def remove_others(folder: Path, names: set[str]) -> None:
    """Remove what an index writes and no manifest names: files of earlier ones that are not among ``names``, parts."""
    remove_leftovers(folder)
    for path in folder.iterdir():
        if path.name.startswith(PARTS) and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name not in names and OWN_FILES.fullmatch(path.name):
            path.unlink(missing_ok=True)
