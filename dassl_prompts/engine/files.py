"""Small file helpers: atomic writes, JSON, folders.

Everything the engine writes goes through :func:`atomic_path`, so that a killed run leaves either the old file
or the new one, never half of one.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on any error it is removed.

    Raises:
        OSError: the folder of ``path`` cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes files private; the result is an ordinary file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


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


def read_json(fpath: str | os.PathLike) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not valid JSON; names file and position.
    """
    content = Path(fpath).read_bytes()
    try:
        return json.loads(content)  # of bytes: UTF-8 with or without a byte-order mark, UTF-16 and -32
    except (ValueError, RecursionError) as error:  # not JSON, not Unicode, nested without end
        raise ValueError(f"{fpath} is not valid JSON: {error}") from error


def write_json(obj: Any, fpath: str | os.PathLike) -> None:
    """Write ``obj`` as indented JSON, atomically."""
    with atomic_path(fpath) as temporary:
        temporary.write_text(json.dumps(obj, indent=4, separators=(",", ": ")), encoding="utf-8")


def listdir_nohidden(path: str | os.PathLike, sort: bool = False) -> list[str]:
    """Names in a folder that do not start with a dot; in the order of the file system unless ``sort``."""
    items = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(items) if sort else items


def tolist_if_not(x: Any) -> list:
    """``x`` itself if it is a list, else ``[x]``."""
    return x if isinstance(x, list) else [x]
