"""Rows of frozen towers on disk, found again by what they are computed from and by nothing else.

A store is a folder. A kind of row (tower, precision, transform, machine) has a sub-folder named by the digest of all that, a view
of the pictures (the plain one, or those of an epoch) a folder in it, and every append is one file there whose name is the digest of
its content. Files are written beside their names and moved there whole, are never changed, and are read through memory maps: a
killed writer leaves nothing that is read, two writers leave two whole files, a damaged file is named, removed and computed again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from dassl_prompts.engine.files import UNFINISHED, atomic_path, new_array, write_json
from dassl_prompts.engine.reading import DamagedFile, read_npy

#: of files and keys; another number reads nothing of what is there
FORMAT = 1
#: bytes of a row's key
KEY = 16
#: the value of FEATURES.DIR that keeps nothing, and the environment variable that says where "" is
OFF, PLACE = "off", "DASSL_PROMPTS_FEATURES"
#: share of FEATURES.MAX_GB that is left when the least recently used files are removed
KEPT_SHARE = 0.9


def digest_of(*parts: str | bytes) -> bytes:
    """Digest of parts in order, :data:`KEY` bytes; their borders count."""
    found = hashlib.blake2b(digest_size=KEY)
    for part in parts:
        part = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        found.update(len(part).to_bytes(8, "big") + part)
    return found.digest()


def folder_of(value: str) -> Path | None:
    """The folder that ``FEATURES.DIR`` names; "" is the environment's, else the user's cache folder. None: keep nothing."""
    value = value or os.environ.get(PLACE, "")
    if value == OFF:
        return None
    if value:
        return Path(value).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dassl_prompts" / "features"


class Store:
    """Rows ``[R]`` (fp32) of one kind by (view, key).

    Args:
        root: folder of all kinds.
        parts: everything that a row depends on besides picture and view.
        width: R.
        limit: bytes that the files of all kinds may take; the least recently used go first.

    Whatever goes wrong with the disk is told once and ends the keeping, never the run.
    """

    def __init__(self, root: Path, parts: Mapping[str, object], width: int, limit: float):
        self.root, self.width, self.limit = root, width, limit
        self.parts = {"format": FORMAT, "width": width, **parts}
        text = "\n".join(f"{name}={self.parts[name]!r}" for name in sorted(self.parts))
        self.folder = root / digest_of(text).hex()
        self.writable = True
        self._whole: set[str] = set()  # files whose digests were compared

    def load(self, view: str) -> dict[bytes, np.ndarray]:
        """All rows of a view, as memory maps by their key."""
        found: dict[bytes, np.ndarray] = {}
        for path in whole_files(self.folder / view):
            array = self._read(path)
            if array is not None:
                found.update(zip(map(bytes, array[:, :KEY]), array[:, KEY:].view(np.float32)))
        return found

    def add(self, view: str, keys: Sequence[bytes], rows: np.ndarray) -> None:
        """Keep ``rows [n, R]`` under their keys."""
        if not self.writable or not len(keys):
            return
        records = np.empty((len(keys), KEY + 4 * self.width), np.uint8)
        records[:, :KEY] = np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY)
        records[:, KEY:] = np.ascontiguousarray(rows, np.float32).view(np.uint8)
        path = self.folder / view / f"{content_digest(records)}.npy"
        try:
            if not (self.folder / "kind.json").exists():  # for people who look
                write_json({name: str(value) for name, value in self.parts.items()}, self.folder / "kind.json")
            write_records(path, records)
            make_room(self.root, self.limit)
        except OSError as error:
            self.writable = False
            print(f"FEATURES.DIR {self.root}: {error}; this run keeps no more features")

    def _read(self, path: Path) -> np.ndarray | None:
        array = read_records(path, KEY + 4 * self.width, compare=str(path) not in self._whole)
        if array is not None:
            self._whole.add(str(path))
        return array


# -- files -----------------------------------------------------------------------------------------------------


def content_digest(records: np.ndarray) -> str:
    """Digest of an array's bytes and shape, in hexadecimal digits."""
    found = hashlib.blake2b(repr(records.shape).encode(), digest_size=KEY)
    found.update(np.ascontiguousarray(records))
    return found.hexdigest()


def write_records(path: Path, records: np.ndarray) -> None:
    """An array of bytes as a file, whole or not at all.

    Raises:
        OSError: no room, no permission.
    """
    with atomic_path(path) as temporary:
        array = new_array(temporary, records.shape, np.uint8)
        array[:] = records
        array.flush()
        del array


def read_records(path: Path, width: int, compare: bool = True) -> np.ndarray | None:
    """The bytes ``[n, width]`` of a file whose name ends with their digest, and note that it was used.

    None for a file that is gone or damaged; a damaged one is named and removed.
    """
    try:
        array = read_npy(path, (None, width), np.uint8, mmap=True)
        if compare and content_digest(array) != path.stem.rpartition("-")[2]:
            raise DamagedFile(f"{path} is damaged: its content does not fit its digest")
        with suppress(OSError):  # a folder of somebody else's
            os.utime(path)
        return array
    except FileNotFoundError:  # another run made room
        return None
    except DamagedFile as error:
        print(f"{error}; computing its features again")
        with suppress(OSError):
            path.unlink()
    except OSError as error:
        print(f"{error}; computing its features again")
    return None


def whole_files(folder: Path) -> list[Path]:
    """The finished files of a folder, sorted."""
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        return sorted(Path(entry.path) for entry in entries if entry.name.endswith(".npy") and entry.name[0] != ".")
    return []


def make_room(root: Path, limit: float) -> None:
    """Remove the least recently used files below ``root`` where all of them take more than ``limit`` bytes."""
    files = []
    for parent, _, names in os.walk(root):
        for name in names:
            if name.endswith(".npy") and not name.endswith(UNFINISHED):
                with suppress(FileNotFoundError):
                    status = os.stat(os.path.join(parent, name))
                    files.append((status.st_mtime_ns, status.st_size, os.path.join(parent, name)))
    size = sum(entry[1] for entry in files)
    if size <= limit:
        return
    for _, held, path in sorted(files):
        if size <= KEPT_SHARE * limit:
            break
        with suppress(FileNotFoundError):
            os.unlink(path)
        size -= held
