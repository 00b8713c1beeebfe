"""Small file helpers: atomic writes, full disks, sealed notes, folders.

Everything that is written goes through :func:`atomic_path` or :func:`atomic_folder`, so that a killed run leaves either the old
file or the new one, never half of one, and the next one that writes to the folder removes what it left behind.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl_prompts.engine.reading import DamagedFile, read_json

if TYPE_CHECKING:
    import numpy as np

#: ends the names of files and folders while they are written: ``.<name>.<8 letters>.unfinished``
UNFINISHED = ".unfinished"
#: what the operating system says when there is no room: disk, quota, largest file
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: of a sealed note, under which the digest of the rest stands
SEAL = "digest"


class DiskFullError(OSError):
    """There is no room for a file; the message names it."""


def without_room(error: BaseException | None) -> OSError | None:
    """The error of a full disk among ``error`` and those that it came from; libraries wrap it in errors of their own."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in NO_ROOM:
            return one
        told = next((code for code in NO_ROOM if os.strerror(code) in str(one)), None)
        if told is not None:  # of a library that only keeps the words
            return OSError(told, os.strerror(told))
        waiting += [one.__cause__, one.__context__]
    return None


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Name ``path`` where there is no room to write it.

    Raises:
        DiskFullError: no room.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        full = without_room(error)
        if full is None:
            raise
        why = f"cannot write {path}: {full.strerror}; make room and run the same command again"
        raise DiskFullError(full.errno, why) from error


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    Raises:
        OSError: the folder of ``path`` cannot be written.
        DiskFullError: no room; what was at ``path`` is still there.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unfinished(path, _new_file) as temporary:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private; the result is an ordinary file
            os.replace(temporary, path)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``, which becomes ``path``; where that is there meanwhile, it stays.

    Raises:
        OSError, DiskFullError: as :func:`atomic_path`.
    """
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with _unfinished(path, _new_folder) as temporary:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            try:
                temporary.rename(path)
            except OSError:
                if not path.is_dir():
                    raise


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


# -- what killed processes leave -----------------------------------------------------------------------------


@contextmanager
def _unfinished(path: Path, make: Callable[[Path], Path]) -> Iterator[Path]:
    """A temporary file or folder that this process holds a lock on, as the sign that somebody is still writing it."""
    remove_leftovers(path.parent)
    temporary = make(path)
    handle = _hold(temporary)
    while handle is None or not temporary.exists():  # another process took it for a leftover before it was locked
        temporary = make(path)
        handle = _hold(temporary)
    try:
        yield temporary
    finally:
        _remove(temporary)
        if handle >= 0:
            os.close(handle)


def _new_file(path: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    os.close(handle)
    return Path(name)


def _new_folder(path: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED))


def _hold(path: Path) -> int | None:
    """Open and lock a file or folder: its descriptor, None where somebody else has or removed it, -1 where locks tell nothing."""
    try:
        import fcntl
    except ImportError:  # Windows, where an open file cannot be renamed either
        return -1
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        return None if isinstance(error, BlockingIOError) else -1
    return handle


def remove_leftovers(folder: str | os.PathLike) -> list[Path]:
    """Remove the unfinished files and folders in ``folder`` whose process is gone; returns them.

    A process holds a lock on what it writes, which is gone when the process is, also after SIGKILL.
    """
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if entry.name[0] == "." and entry.name.endswith(UNFINISHED)]
    removed = []
    for path in found:
        with suppress(PermissionError):
            handle = _hold(path)
            if handle is not None and handle >= 0:
                _remove(path)
                removed.append(path)
                os.close(handle)
    return removed


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def require_writable(folder: str | os.PathLike, what: str = "output folder", hint: str = "") -> None:
    """Check that ``folder`` can be written or created, without creating anything.

    Raises:
        FileExistsError: a part of the path is a file; names folder, file and ``hint``.
        PermissionError: no permission; names the same.
    """
    hint = f"; {hint}" if hint else ""
    existing = Path(folder).absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise FileExistsError(f"cannot write to the {what} {folder}: {existing} is not a folder{hint}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot write to the {what} {folder}: no permission to write in {existing}{hint}")


def require_file_writable(path: str | os.PathLike, flag: str) -> None:
    """Check that the file named by a command's ``flag`` can be written, without creating anything.

    Raises:
        IsADirectoryError: it is a folder; names ``flag``.
        FileExistsError, PermissionError: its folder is none, or cannot be written.
    """
    if os.path.isdir(path):
        raise IsADirectoryError(f"{flag} {path} is a folder: give the name of a file")
    require_writable(Path(path).parent, f"folder of {flag}", f"give another file with {flag}")


def mkdir_if_missing(dirname: str | os.PathLike) -> None:
    """Create ``dirname`` and its parents unless they exist."""
    os.makedirs(dirname, exist_ok=True)


def check_isfile(fpath: str | os.PathLike) -> bool:
    """Whether ``fpath`` is a file; warns when it is not."""
    isfile = os.path.isfile(fpath)
    if not isfile:
        warnings.warn(f'No file found at "{fpath}"')
    return isfile


def write_text(text: str, path: str | os.PathLike) -> None:
    """Write a text file in UTF-8, atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def write_json(obj: Any, fpath: str | os.PathLike) -> None:
    """Write ``obj`` as indented JSON, atomically."""
    write_text(json.dumps(obj, indent=4, separators=(",", ": ")), fpath)


# -- arrays and notes whose damage is seen -------------------------------------------------------------------


def new_array(path: str | os.PathLike, shape: tuple[int, ...], dtype: Any) -> np.memmap:
    """A new ``.npy`` file to be filled through a memory map, whose room on the disk is taken first.

    A map of a file with holes ends the process by a signal (SIGBUS) when the disk is full.

    Raises:
        DiskFullError: no room; nothing stays.
    """
    import numpy as np

    with writing(path):
        try:
            array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
            take_room(path, array.offset + array.nbytes)
        except OSError:
            Path(path).unlink(missing_ok=True)
            raise
    return array


def take_room(path: str | os.PathLike, size: int) -> None:
    """Give the existing file ``path`` ``size`` bytes of its own on the disk; what it holds stays.

    Raises:
        OSError: no room.
    """
    with open(path, "r+b") as file:
        if hasattr(os, "posix_fallocate"):
            with suppress(InterruptedError):
                os.posix_fallocate(file.fileno(), 0, max(1, size))
            return
        held = os.path.getsize(path)
        while chunk := file.read(1 << 20):  # macOS: what is written has its room
            file.seek(-len(chunk), os.SEEK_CUR)
            file.write(chunk)
        file.write(bytes(max(0, size - held)))
        os.fsync(file.fileno())


def file_digest(path: str | os.PathLike) -> str:
    """Digest of a file's content, in hexadecimal digits."""
    found = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def seal_of(values: dict[str, Any]) -> str:
    """Digest of what JSON makes of a dictionary."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def write_sealed(values: dict[str, Any], path: str | os.PathLike) -> None:
    """Write a JSON object with a digest of itself, atomically; :func:`read_sealed` notices any change of it."""
    write_json({**values, SEAL: seal_of(values)}, path)


def read_sealed(path: str | os.PathLike) -> dict[str, Any]:
    """What :func:`write_sealed` wrote.

    Raises:
        DamagedFile: no JSON object, without a digest, or one that was changed.
    """
    values = read_json(path, dict)
    seal = values.pop(SEAL, None)
    if seal is None:
        raise DamagedFile(f"{path} has no digest: it was written by an earlier version")
    if seal != seal_of(values):
        raise DamagedFile(f"{path} is damaged: its content does not fit its digest")
    return values


# -- folders -------------------------------------------------------------------------------------------------


def listdir_nohidden(path: str | os.PathLike, sort: bool = False) -> list[str]:
    """Names in a folder that do not start with a dot; in the order of the file system unless ``sort``."""
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items


def tolist_if_not(x: Any) -> list:
    """``x`` itself if it is a list, else ``[x]``."""
    return x if isinstance(x, list) else [x]
