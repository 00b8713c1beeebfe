"""A run's output folder: who may write to it, and its results.json."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dassl_prompts.engine.files import UNFINISHED, require_writable, write_json
from dassl_prompts.engine.places import plain_name
from dassl_prompts.engine.reading import DamagedFile, read_json

RESULTS = "results.json"
LOCK = "run.lock"
#: entries of results.json that say which run the folder belongs to
IDENTITY = ("trainer", "dataset", "classes", "shots", "seed", "backbone")


class FolderInUse(FileExistsError):
    """Another process writes to the output folder."""


#: folders that this process holds, by their real path
_held: dict[str, RunFolder] = {}


class RunFolder:
    """The output folder of one trainer.

    Args:
        path: the folder; made when something is written.
        identity: values of :data:`IDENTITY` for this run.

    Raises:
        OSError: the folder cannot be written; names it.
    """

    def __init__(self, path: str | os.PathLike, identity: dict[str, Any]):
        self.path = Path(path)
        self.identity = identity
        require_writable(path, hint="choose another one with --output-dir")

    # -- lock -------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other runs out of the folder while the block runs; may be nested.

        The lock belongs to the process: it is gone when the process is, also after SIGKILL, and is not
        inherited by loader workers.

        Raises:
            FolderInUse: another run has it; names its process and host.
        """
        key = os.path.realpath(self.path)
        if _held.get(key) is self:
            yield
            return
        if key in _held:
            raise FolderInUse(
                f"another trainer of this process writes to {self.path}: give each run its own --output-dir"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        handle = _acquire(self.path / LOCK)
        _held[key] = self
        self._remove_leftovers()
        try:
            yield
        finally:
            del _held[key]
            (self.path / LOCK).unlink(missing_ok=True)
            os.close(handle)

    def _remove_leftovers(self) -> None:
        """Remove temporary files of writes that were cut off by SIGKILL; nobody else writes here now."""
        for pattern in (f"{folder}.*{end}" for folder in ("", "*/") for end in (UNFINISHED, ".tmp")):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)

    # -- results ----------------------------------------------------------------------------------------

    def results(self) -> dict[str, Any]:
        """Content of results.json; empty if there is none."""
        path = self.path / RESULTS
        return read_json(path, dict) if path.exists() else {}

    def check_owner(self) -> None:
        """Check that results.json, if there is one, belongs to this run.

        Raises:
            ValueError: another method, dataset, class subset, seed ... wrote it; names the differences.
        """
        written = self.results()
        different = [
            f"{key} {written[key]!r} there, {self.identity[key]!r} now"
            for key in IDENTITY
            if key in written and key in self.identity and _plain(written[key]) != _plain(self.identity[key])
        ]
        if different:
            raise ValueError(
                f"{self.path} holds the results of another run ({'; '.join(different)}): choose another --output-dir"
            )

    def write(self, values: dict[str, Any]) -> None:
        """Merge ``values`` into results.json (dictionaries entry by entry), atomically."""
        merged = self.results()
        for key, value in {**self.identity, **values}.items():
            if isinstance(value, dict) and isinstance(merged.get(key), dict):
                merged[key] = {**merged[key], **value}
            else:
                merged[key] = value
        write_json(merged, self.path / RESULTS)


def in_use(folder: Path) -> bool:
    """Whether another process holds the lock of a run folder."""
    path = folder / LOCK
    if not path.exists():
        return False
    try:
        import fcntl
    except ImportError:  # Windows: the file's existence is the lock
        return True
    try:
        with open(path, "r+b") as handle:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return True
    except FileNotFoundError:
        return False
    return False


def _plain(value: Any) -> Any:
    """A value of the identity; a backbone's file may move."""
    return plain_name(value) if isinstance(value, str) else value


def _acquire(path: Path) -> int:
    """Open and lock ``path``; the returned descriptor holds the lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _acquire_exclusive(path)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(handle)
            raise _in_use(path) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            print(f"{path.parent} cannot be locked ({error.strerror}): make sure that no other run writes there")
        # the holder may have removed the file between our open and our lock
        if path.exists() and os.path.samestat(os.fstat(handle), os.stat(path)):
            break
        os.close(handle)
    os.ftruncate(handle, 0)
    os.write(handle, _owner().encode())
    return handle


def _acquire_exclusive(path: Path) -> int:
    """Without POSIX locks: the file's existence is the lock, a file whose process is gone is taken over."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        owner = _read_owner(path)
        if owner.get("host") != socket.gethostname() or _alive(owner.get("pid", -1)):
            raise _in_use(path) from None
        path.unlink(missing_ok=True)
        return _acquire_exclusive(path)
    os.write(handle, _owner().encode())
    return handle


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:  # it exists and belongs to somebody else
        return True
    return True


def _owner() -> str:
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname()})


def _read_owner(path: Path) -> dict:
    try:
        return read_json(path, dict)
    except (OSError, DamagedFile):
        return {}


def _in_use(path: Path) -> FolderInUse:
    owner = _read_owner(path)
    who = f"process {owner['pid']} on {owner['host']}" if {"pid", "host"} <= owner.keys() else "another process"
    return FolderInUse(f"{path.parent} is in use by {who}: wait for it, stop it, or choose another --output-dir")
