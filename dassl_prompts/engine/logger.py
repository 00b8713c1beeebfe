"""Log file: everything printed also goes to ``<output>/log.txt``, as in Dassl.

Unlike Dassl's logger the tee passes every attribute of the console on (``isatty``, ``fileno``, ``encoding``)
and never closes it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from dassl_prompts.engine.files import DiskFullError, require_writable, writing


class Tee:
    """A text stream that writes to the console and to a file; anything else is the console's.

    Args:
        console: the stream that stays open whatever happens here.
        path: log file, opened line-buffered so that a killed run keeps its last line.
        append: continue an existing file instead of making a new one.
    """

    def __init__(self, console: TextIO, path: str | os.PathLike, append: bool = False):
        self.console = console
        self.path = Path(path)
        self.muted = False
        self.file = open(path, "a" if append else "x", buffering=1, encoding="utf-8")

    def write(self, text: str) -> int:
        if not self.file.closed:
            try:
                with writing(self.path):
                    self.file.write(text)
            except DiskFullError:  # told once; what is printed from here on goes to the console alone
                self.close()
                raise
        return len(text) if self.muted else self.console.write(text)

    def flush(self) -> None:
        self.console.flush()
        if not self.file.closed:
            self.file.flush()

    def close(self) -> None:
        """Close the log file; the console stays open."""
        with suppress(OSError):  # the rest of a line for which there was no room
            self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["console"], name)


def setup_logger(output: str | os.PathLike | None = None, append: bool = False) -> None:
    """Send everything printed to ``output`` as well, and print the engine line.

    Args:
        output: a folder (``log.txt`` inside it) or a path ending in ``.txt`` or ``.log``; None does nothing.
            An existing file is kept and the new one gets the time in its name,
            ``log.txt-2024-01-31-12-00-00``.
        append: write to the end of an existing file instead, for resumed runs.

    Raises:
        OSError: the folder cannot be written; names it.
    """
    if not output:
        return
    path = Path(output)
    path = path if path.suffix in (".txt", ".log") else path / "log.txt"
    require_writable(path.parent, hint="choose another one with --output-dir")
    path.parent.mkdir(parents=True, exist_ok=True)
    close_logger()
    append = append and path.exists()
    sys.stdout = Tee(sys.stdout, path if append else _unused(path), append)
    from dassl_prompts.engine.seam import announce

    announce()


@contextmanager
def log_only() -> Iterator[None]:
    """What is printed meanwhile goes to the log file alone; to the screen where there is no log."""
    tee = sys.stdout if isinstance(sys.stdout, Tee) else None
    if tee:
        tee.muted = True
    try:
        yield
    finally:
        if tee:
            tee.muted = False


def close_logger() -> None:
    """Undo :func:`setup_logger`: close the log file and give ``sys.stdout`` back its console."""
    while isinstance(sys.stdout, Tee):
        sys.stdout.close()
        sys.stdout = sys.stdout.console


def _unused(path: Path) -> Path:
    if not path.exists():
        return path
    dated = path.with_name(path.name + time.strftime("-%Y-%m-%d-%H-%M-%S"))
    candidate, count = dated, 1
    while candidate.exists():
        count += 1
        candidate = dated.with_name(f"{dated.name}-{count}")
    return candidate
