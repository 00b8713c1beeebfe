"""The files of an index: names in one block of bytes with their places in another, so that a million of them open at once; the
manifest that binds what belongs together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dassl_prompts.engine.files import read_sealed
from dassl_prompts.engine.reading import reading, require
from dassl_prompts.images import (
    IMAGE_SUFFIXES,
    MEMBER_SEPARATOR,
    is_image_name,
    open_archive,
    suffix_of,
    walk_images,
)

MANIFEST = "index.json"
FORMAT = 3
AGAIN = "index the images again"
#: columns of the places
END, ROOT, SIZE, MTIME, DIGEST, READABLE, NUMBER = 0, 1, 2, 3, slice(4, 6), 6, 7
COLUMNS = 8


class Row(NamedTuple):
    """A file of an index.

    Attributes:
        root: number of its root. name: below it, in bytes. size, mtime: of the file (of the archive that holds it), -1 where
            a later change could have the same. digest: 16 bytes, of its content. readable: whether it is a picture. number:
            of its features, never given twice in an index.
    """

    root: int
    name: bytes
    size: int
    mtime: int
    digest: bytes
    readable: bool
    number: int


def start_of(root: str) -> str:
    """What stands in front of the names of a root: its absolute path with a separator, ``archive.zip::`` for an archive."""
    root = os.path.abspath(root)
    return root + MEMBER_SEPARATOR if os.path.isfile(root) else os.path.join(root, "")


def place_of(start: str) -> str:
    """The folder or archive of :func:`start_of`."""
    return start.removesuffix(MEMBER_SEPARATOR).rstrip(os.sep) or os.sep


def list_root(root: str, left_out: Counter | None = None) -> list[str]:
    """Names of all images below a folder, or in a zip archive; ``left_out`` counts the suffixes of all other files.

    Raises:
        FileNotFoundError: neither, or no image in it.
    """
    left_out = Counter() if left_out is None else left_out
    if os.path.isdir(root):
        names = [os.path.relpath(path, root) for path in walk_images(root, left_out)]
    elif os.path.isfile(root):
        members = [name for name in open_archive(root).namelist() if not name.endswith("/")]
        names = [name for name in members if is_image_name(name)]
        left_out.update(suffix_of(name) for name in members if not is_image_name(name))
    else:
        raise FileNotFoundError(f"there is no folder {root}")
    if not names:
        raise FileNotFoundError(f"{root} has no images ({', '.join(IMAGE_SUFFIXES)})")
    return names


def check_starts(starts: Sequence[str]) -> None:
    """Raise ValueError where a root lies in another one, whose pictures would stand in the index twice."""
    real = {start: Path(os.path.realpath(place_of(start))) for start in starts}
    for start, place in real.items():
        for other, parent in real.items():
            if start != other and (place == parent or parent in place.parents):
                raise ValueError(
                    f"{place_of(start)} lies in {place_of(other)}, whose sub-folders are indexed too: leave one of them out"
                )


@dataclass(frozen=True)
class Table:
    """Names and places of N files, by root and then by name.

    Attributes:
        starts: of the roots, see :func:`start_of`. names: uint8, all names one after the other. places: int64 [N, 8]:
            the columns above, where the name ends in ``names`` and what :class:`Row` has.
    """

    starts: Sequence[str]
    names: np.ndarray
    places: np.ndarray

    @classmethod
    def of(cls, starts: Sequence[str], rows: Iterable[Row]) -> Table:
        """A table in memory of rows that are in order."""
        rows = list(rows)
        places = np.empty((len(rows), COLUMNS), np.int64)
        places[:, DIGEST] = np.frombuffer(b"".join(row.digest for row in rows), np.int64).reshape(-1, 2)
        for column, values in (
            (END, np.cumsum([len(row.name) for row in rows], dtype=np.int64)),
            (ROOT, [row.root for row in rows]),
            (SIZE, [row.size for row in rows]),
            (MTIME, [row.mtime for row in rows]),
            (READABLE, [row.readable for row in rows]),
            (NUMBER, [row.number for row in rows]),
        ):
            places[:, column] = values
        return cls(list(starts), np.frombuffer(b"".join(row.name for row in rows), np.uint8), places)

    def __len__(self) -> int:
        return len(self.places)

    def __iter__(self) -> Iterator[Row]:
        names, start = self.names.tobytes(), 0
        digests = np.ascontiguousarray(self.places[:, DIGEST]).tobytes()
        for number, place in enumerate(self.places.tolist()):
            digest = digests[16 * number : 16 * (number + 1)]
            yield Row(
                place[ROOT], names[start : place[END]], place[SIZE], place[MTIME], digest, bool(place[6]), place[NUMBER]
            )
            start = place[END]

    def name(self, row: int) -> str:
        """Of a file, below its root."""
        return os.fsdecode(self._bytes(row))

    def path(self, row: int) -> str:
        """Absolute, ``archive.zip::member`` in an archive."""
        return f"{self.starts[self.places[row, ROOT]]}{self.name(row)}"

    def shown(self, row: int) -> str:
        """The path that people see: below the root, with the root's name in front where there are several."""
        return f"{self._labels[self.places[row, ROOT]]}{self.name(row)}"

    def find(self, path: str) -> int | None:
        """The row of an absolute path, None where the index does not hold it."""
        return self._find(path, self.starts)

    def find_shown(self, path: str) -> int | None:
        """The row of what :meth:`shown` gives, None for anything else."""
        return self._find(path, self._labels)

    @cached_property
    def unreadable(self) -> np.ndarray:
        """Numbers of the rows of files that are no pictures, ascending."""
        return np.flatnonzero(self.places[:, READABLE] == 0)

    @cached_property
    def _labels(self) -> list[str]:
        if len(self.starts) == 1:
            return [""]
        labels: list[str] = []
        for number, start in enumerate(self.starts, 1):
            label = f"{os.path.basename(place_of(start))}/"
            labels.append(label if label not in labels else f"{number}-{label}")
        return labels

    def _bytes(self, row: int) -> bytes:
        start = self.places[row - 1, END] if row else 0
        return self.names[start : self.places[row, END]].tobytes()

    def _find(self, path: str, starts: Sequence[str]) -> int | None:
        for root, start in enumerate(starts):
            if not path.startswith(start):
                continue
            try:
                wanted = os.fsencode(path[len(start) :])
            except UnicodeEncodeError:
                return None
            low, end = np.searchsorted(self.places[:, ROOT], (root, root + 1)).tolist()
            high = end
            while low < high:
                middle = (low + high) // 2
                low, high = (middle + 1, high) if self._bytes(middle) < wanted else (low, middle)
            if low < end and self._bytes(low) == wanted:
                return low
        return None


def read_manifest(folder: Path) -> dict:
    """The manifest of an index.

    Raises:
        FileNotFoundError: there is none. DamagedFile: it is damaged, or of another version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not an index ({path} is missing): make one with `search index`")
    with reading(path, "a whole index", AGAIN):
        manifest = read_sealed(path)
        require(manifest.get("format") == FORMAT, "it was written by another version")
    return manifest
