"""How a command ends when something goes wrong: one line on the error stream and an exit code that says of what kind it was."""

from __future__ import annotations

import errno
import pickle
import re
import sys
from collections.abc import Callable

from dassl_prompts.engine.files import DiskFullError, without_room

#: wrong input; no room on the disk (as `prepare` has it); memory or a process that reads was lost; Ctrl-C
WRONG, FULL, LOST, INTERRUPTED = 2, 6, 9, 130
#: what the user can mend by other input
MENDABLE = (ValueError, OSError, KeyError, ImportError, pickle.UnpicklingError)
SHARED_MEMORY = re.compile(r"shared memory|/torch_|Bus error", re.IGNORECASE)
LOST_PROCESS = re.compile(r"DataLoader worker \(pid\(?s?\)? [\d, ]+\) (is killed by signal|exited unexpectedly)")
OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|Cannot allocate memory", re.IGNORECASE)
FEWER = "give fewer processes (DATALOADER.NUM_WORKERS, --workers) or smaller batches"


def message(error: BaseException) -> str:
    """What to tell the user; of an error in a loader's process its own text, not the traceback that torch puts around it."""
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    if text.startswith("Caught ") and "Original Traceback" in text:
        text = text.rstrip().rpartition("\n")[2]
        return text.removeprefix(f"{type(error).__module__}.").removeprefix(f"{type(error).__qualname__}: ")
    return text or type(error).__name__


def describe(error: BaseException) -> tuple[int, str] | None:
    """Exit code and line of an error; None for one that is a fault of ours and keeps its traceback."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, "interrupted"
    text = message(error)
    full = without_room(error)
    if isinstance(error, RuntimeError) and (LOST_PROCESS.search(text) or full) and SHARED_MEMORY.search(text):
        return (
            LOST,
            f"error: the shared memory of the processes that read (/dev/shm) is full: make it larger, or {FEWER}",
        )
    if isinstance(error, RuntimeError) and LOST_PROCESS.search(text):
        return LOST, f"error: a process that reads was killed, most often for want of memory: {FEWER}"
    if full is not None:
        named = isinstance(error, DiskFullError) or bool(getattr(error, "filename", None))
        return FULL, f"error: {text if named else f'{full.strerror}; make room and run the same command again'}"
    lost = isinstance(error, OSError) and error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or lost or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(text)):
        return LOST, f"error: there is not enough memory ({text.splitlines()[0]}): {FEWER}"
    says = not isinstance(error, KeyError) or " " in text  # the others only name a key that some code expected
    return (WRONG, f"error: {text}") if isinstance(error, MENDABLE) and says else None


def tell(error: BaseException, interrupted: str = "interrupted") -> int:
    """Print the line of an error and return its exit code; a fault of ours is raised again, with its traceback.

    Args:
        interrupted: what to say after Ctrl-C.
    """
    described = describe(error)
    if described is None:
        raise error
    code, line = described
    print(interrupted if code == INTERRUPTED else line, file=sys.stderr)
    return code


def ending(work: Callable[[], int | None]) -> int:
    """Run a command's ``work``; its result, or the exit code of what went wrong, which is told in one line."""
    try:
        return work() or 0
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
