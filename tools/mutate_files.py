"""Mutate valid files of every kind that the package reads, and count what its readers make of them.

``python tools/mutate_files.py --examples 2000`` writes a small valid file of every kind, changes it that many times in all (bytes,
lengths, numbers, whole parts, other files' openings, pickled calls of a harmless ``os.mkdir``) and reads each. Hypothesis draws
the changes from a fixed seed. The table counts per kind:

- refused: an error that a command ends with in a line that names the file (faulty records are listed below it);
- accepted, same: read as the valid file (a byte that means nothing, or a cache that heals);
- accepted, other: read as something else. Of kinds with a digest (marked *) there may be none;
- tracebacks: any other exception, or a message without the file's name;
- executed: the marker's folder was made.

Exit codes: 0 as it should be, 1 a traceback, something executed, or another result in spite of a digest; --keep keeps those files.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from file_kinds import KINDS, Kind
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from tabulate import tabulate

from dassl_prompts.engine.ending import describe

#: what numbers and texts of a file are replaced by
TOKENS = b"""0 -1 1e999 NaN -Infinity null true [] {} "" "a" [[1]] \\ud800" ' " !!python/none &a .. ../x""".split()
TOKENS += [b"9" * 30, b"1" * 5000, b"[" * 200, b"\xff\xfe", b"\xef\xbb\xbf", b"\0", b"\n", b"\t", b" "]
#: openings of other kinds of file
OPENINGS = [b"PK\x03\x04", b"\x93NUMPY\x01\0", b"\x89PNG\r\n\x1a\n", b"<!DOCTYPE html>", b"\x80\x04.", b"\xfd7zXZ\0"]
TOKEN = re.compile(rb"-?\d+(?:\.\d+)?|\"[^\"\n]*\"|[\[\]{}:,]|[A-Za-z_]+")
OUTCOMES = ("refused", "accepted, same", "accepted, other", "tracebacks", "executed")


# -- changes -------------------------------------------------------------------------------------------------


def pickled_call(marker: Path) -> bytes:
    """The opcodes of a harmless call: a folder is made where the pickle is run."""
    return b"cos\nmkdir\n(V" + str(marker).encode() + b"\ntR"


@st.composite
def changes(draw: Callable, content: bytes, call: bytes) -> bytes:
    """One to three changes of ``content``."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        end = min(len(content), at + draw(st.integers(1, 40)))
        what = draw(
            st.sampled_from(
                ["flip", "set", "cut", "drop", "twice", "token", "token", "insert", "number", "open", "call"]
            )
        )
        match what:
            case "flip" if content:
                content = content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :]
            case "set":
                content = content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[end:]
            case "cut":
                content = content[:at]
            case "drop":
                content = content[:at] + content[end:]
            case "twice":
                content = content[:end] + content[at:end] + content[end:]
            case "token":
                found = list(TOKEN.finditer(content[: 1 << 16]))
                if found:
                    one = draw(st.sampled_from(found))
                    content = content[: one.start()] + draw(st.sampled_from(TOKENS)) + content[one.end() :]
            case "insert":
                content = content[:at] + draw(st.sampled_from(TOKENS)) + content[at:]
            case "number":
                size = draw(st.sampled_from([1, 2, 4, 8]))
                number = draw(st.sampled_from([0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1])) % 256**size
                content = content[:at] + number.to_bytes(size, "little") + content[at + size :]
            case "open":
                content = draw(st.sampled_from(OPENINGS)) + content[draw(st.integers(0, 12)) :]
            case "call":
                content = content[:at] + call + content[at:]
    return content


def content_of(value: Any) -> Any:
    """A value as something that can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().contiguous().view(-1).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return {str(key): content_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [content_of(item) for item in value]
    return content_of(vars(value)) if hasattr(value, "__dict__") and not isinstance(value, type) else repr(value)


def outcome(kind: Kind, path: Path, expected: Any) -> tuple[str, str]:
    """One of :data:`OUTCOMES` and, of tracebacks, what it was."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = kind.read(path)
    except (Exception, KeyboardInterrupt) as error:
        described = describe(error) or describe_of_prepare(error)
        line = described[1] if described else ""
        if described and path.name in line.partition("\n")[0]:
            return "refused", line
        return "tracebacks", f"{type(error).__name__}: {error}"
    return ("accepted, same", "") if content_of(found) == expected else ("accepted, other", repr(found)[:200])


def describe_of_prepare(error: BaseException) -> tuple[int, str] | None:
    from dassl_prompts.prepare.errors import PrepareError

    return (error.exit_code, f"error: {error}") if isinstance(error, PrepareError) else None


def run_kind(kind: Kind, examples: int, start: int, keep: Path | None = None) -> tuple[Counter, list[str]]:
    """Outcomes of ``examples`` changes of one kind of file, and a line for each that may not be."""
    counts: Counter = Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory() as work:
        folder, marker = Path(work), Path(work) / "executed"
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            path = kind.make(folder)
            whole = path.read_bytes()
            expected = content_of(kind.read(path))
        pristine = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}

        @seed(start)
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(changes(whole, pickled_call(marker)))
        def read_changed(content: bytes) -> None:
            for p, before in pristine.items():  # what an earlier change healed, removed or renamed
                p.parent.mkdir(parents=True, exist_ok=True)
                p.write_bytes(before)
            path.write_bytes(content)
            what, why = outcome(kind, path, expected)
            if marker.exists():
                what = "executed"
                marker.rmdir()
            counts[what] += 1
            if what in ("tracebacks", "executed") or (what == "accepted, other" and kind.digest):
                faults.append(f"{kind.name}: {what}: {why[:300]}")
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{re.sub('[^a-z]+', '-', kind.name.lower())}{len(faults)}-{path.name}").write_bytes(
                        content
                    )

        read_changed()
    return counts, faults


def run(examples: int, start: int = 0, keep: Path | None = None, kinds: list[Kind] = KINDS) -> tuple[str, list[str]]:
    """The table over all kinds and the faults."""
    rows, faults = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind in kinds:
            counts, found = run_kind(kind, -(-examples // len(kinds)), start, keep)
            rows.append(
                [kind.name + (" *" if kind.digest else ""), counts.total(), *(counts[name] for name in OUTCOMES)]
            )
            faults += found
    rows.append(["all", *(sum(column) for column in list(zip(*rows))[1:])])
    return tabulate(rows, ["kind of file", "mutations", *OUTCOMES], tablefmt="github", disable_numparse=True), faults


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--examples", type=int, default=2000, help="mutations in all (default 2000)")
    p.add_argument("--seed", type=int, default=0, help="of the changes (default 0)")
    p.add_argument("--only", default="", metavar="TEXT", help="kinds whose name holds TEXT")
    p.add_argument("--keep", type=Path, metavar="DIR", help="keep the files that make a fault")
    args = p.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    kinds = [kind for kind in KINDS if args.only in kind.name]
    table, faults = run(args.examples, args.seed, args.keep, kinds)
    print(table)
    for fault in sorted(set(faults)):
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
