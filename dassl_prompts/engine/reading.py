"""Reading files that anybody may have written, cut short or damaged: whatever is wrong ends with one line that names the file.

Every reader of JSON, YAML, CSV, text, pickles, weights, arrays and indices goes through :func:`reading`; libraries let any kind
of exception through on damaged files, and this is the one place that turns it into :class:`DamagedFile`.
"""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import lzma
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dassl_prompts.engine.builders import UnsafePickleError

if TYPE_CHECKING:
    import numpy as np

#: lists and objects that JSON may have inside each other; no file of the field has ten
MAX_DEPTH = 64
#: bytes that a byte of an .xz file may unpack to, beyond the first :data:`SMALL` (weights in half precision: 3), and the room
#: that its window may take
MAX_RATIO, SMALL, MAX_WINDOW = 64, 1 << 26, 1 << 28
#: kinds of numpy's dtypes that are plain data: bool, integers, floats, complex, bytes, text
PLAIN_KINDS = "biufcSU"
#: letters of a library's explanation that a message repeats
MAX_REASON = 300
_BRACKETS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[\]{}]', re.DOTALL)
_STEP = {"[": 1, "{": 1, "]": -1, "}": -1}
_KINDS = {dict: "object", list: "list", str: "text"}


class DamagedFile(ValueError):
    """A file is not what it has to be; the message is one line that names the file and, where it is known, the place."""


def reason(error: BaseException) -> str:
    """An exception's own words in one line of bounded length; its kind where it has none."""
    mark = getattr(error, "problem_mark", None)
    if mark is not None:  # of YAML, whose own text shows the lines around
        return f"{getattr(error, 'problem', '')} (line {mark.line + 1}, column {mark.column + 1})"
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"line {line} is not {error.encoding.upper()}: byte 0x{error.object[error.start]:02x} ({error.reason})"
    if isinstance(error, KeyError):
        return f"no {error.args[0]!r}" if error.args else "a key is missing"
    if isinstance(error, RecursionError):
        return "it is nested without end"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= MAX_REASON else f"{words[:MAX_REASON]} ..."


@contextmanager
def reading(
    path: str | os.PathLike, what: str, remedy: str = "", named: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Name the file in whatever goes wrong while its content is read.

    Args:
        what: ends the sentence "FILE is not ...". remedy: what to do about it, after a semicolon.
        named: errors of the caller's own, which name the file already.

    Raises:
        DamagedFile: for any exception that is none of these two:
        OSError: the operating system's own (no such file, no permission, a failing disk), with the file's name.
        UnsafePickleError: the file refers to code.
    """
    try:
        yield
    except (UnsafePickleError, *named):
        raise
    except DamagedFile as error:  # named already
        if not remedy or str(error).endswith(remedy):
            raise
        raise DamagedFile(f"{error}; {remedy}") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (
            None,
            errno.EINVAL,
        ):  # a seek to where a damaged file says
            raise error if error.filename else type(error)(error.errno, error.strerror, os.fspath(path)) from error
        raise DamagedFile(f"{path} is not {what}: {reason(error)}{f'; {remedy}' if remedy else ''}") from error


def require(holds: Any, why: str) -> None:
    """End :func:`reading` with ``why`` unless ``holds``."""
    if not holds:
        raise ValueError(why)


# -- text ----------------------------------------------------------------------------------------------------


def read_text(path: str | os.PathLike, encoding: str = "utf-8") -> str:
    """A text file, with the line ends that it has.

    Raises:
        DamagedFile: it is not in ``encoding``; names the line.
    """
    with reading(path, "a text file"):
        return Path(path).read_bytes().decode(encoding)


def read_lines(path: str | os.PathLike, encoding: str = "utf-8") -> list[str]:
    """The lines of a text file without their ends."""
    return [line.rstrip("\n") for line in io.StringIO(read_text(path, encoding), newline=None)]


def parse_json(content: bytes | str, name: str | os.PathLike, pairs: Callable | None = None) -> Any:
    """The value of JSON text.

    Args:
        content: bytes in UTF-8 with or without a byte-order mark, UTF-16 or -32. name: for messages.
        pairs: makes an object of its list of (key, value), see :func:`json.loads`.

    Raises:
        DamagedFile: not valid, or more than :data:`MAX_DEPTH` deep, which is seen before anything is made of it.
    """
    with reading(name, "valid JSON"):
        text = content if isinstance(content, str) else content.decode(json.detect_encoding(content), "surrogatepass")
        steps = (_STEP[found] for found in _BRACKETS.findall(text) if found in _STEP)
        deep = any(depth > MAX_DEPTH for depth in itertools.accumulate(steps))
        require(not deep, f"lists and objects stand more than {MAX_DEPTH} deep inside each other")
        return json.loads(text, object_pairs_hook=pairs)


def read_json(fpath: str | os.PathLike, kind: type | None = None) -> Any:
    """Read a JSON file.

    Args:
        kind: ``dict`` or ``list`` where nothing else can be meant.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not valid JSON, or of another kind; names file and position.
    """
    with reading(fpath, "a readable file"):
        content = Path(fpath).read_bytes()
    value = parse_json(content, fpath)
    if kind is not None and not isinstance(value, kind):
        raise DamagedFile(f"{fpath} must hold a JSON {_KINDS[kind]}, not a {type(value).__name__}")
    return value


def csv_rows(path: str | os.PathLike, delimiters: str = ",") -> Iterator[tuple[int, list[str]]]:
    """``(line, cells)`` of a CSV file in UTF-8, empty lines left out.

    Args:
        delimiters: of which the one that stands most often in the first line counts.

    Raises:
        DamagedFile: not in UTF-8, or quotes that do not fit; names the line.
    """
    text = read_text(path, "utf-8-sig")
    first = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=max(delimiters, key=first.count), strict=True)
    while True:
        start = rows.line_num + 1
        with reading(path, "a CSV file"):
            try:
                cells = next(rows, None)
            except csv.Error as error:
                raise ValueError(f"line {start}: {error}") from error
        if cells is None:
            return
        if cells:
            yield start, cells


def read_csv(path: str | os.PathLike, columns: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, str]]]:
    """``(line, row)`` of a CSV file with a header in UTF-8.

    Args:
        columns: that it must have.

    Raises:
        DamagedFile: not such a file, a column is missing, or a row has more or fewer cells; names the line.
    """
    rows = csv_rows(path)
    _, names = next(rows, (1, []))
    with reading(path, "a CSV file with a header"):
        lacking = sorted(set(columns) - set(names))
        require(not lacking, f"missing columns {', '.join(lacking)} (there are {', '.join(names)})")
        require(len(set(names)) == len(names), f"a column stands twice ({', '.join(names)})")
    for line, cells in rows:
        with reading(path, "a CSV file with a header"):
            require(len(cells) == len(names), f"line {line} has {len(cells)} cells instead of {len(names)}")
        yield line, dict(zip(names, cells))


# -- arrays and weights --------------------------------------------------------------------------------------


def read_npy(
    path: str | os.PathLike, shape: Sequence[int | None] | None = None, dtype: Any = None, mmap: bool = False
) -> np.ndarray:
    """The array of a ``.npy`` file.

    Args:
        shape: that it must have, None for any length. dtype: that it must have. mmap: leave it on the disk.

    Raises:
        DamagedFile: not an array of plain numbers or texts, cut short, longer than it says, of another shape or dtype.
    """
    import numpy as np

    with reading(path, "a whole .npy file"):
        with open(path, "rb") as file:
            require(file.read(6) == b"\x93NUMPY", "it does not begin as one")
        array = np.load(path, mmap_mode="r", allow_pickle=False)  # compares the length before it takes any room
        require(array.dtype.kind in PLAIN_KINDS, f"it holds {array.dtype}")
        size, expected = os.path.getsize(path), array.offset + array.nbytes
        require(size == expected or not array.nbytes, f"it has {size:,} bytes instead of {expected:,}")
        wanted = None if shape is None else tuple(have if n is None else n for n, have in zip(shape, array.shape))
        same = shape is None or len(shape) == array.ndim and wanted == array.shape
        require(same, f"its shape is {array.shape} instead of {tuple(shape or ())}")
        require(dtype is None or array.dtype == dtype, f"it holds {array.dtype} instead of {np.dtype(dtype)}")
        return array if mmap else np.array(array)


def read_npz(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of an ``.npz`` file, by name.

    Raises:
        DamagedFile: not such a file, or it holds objects.
    """
    import numpy as np

    with reading(path, "an .npz file of plain arrays"), open(path, "rb") as file:
        require(file.read(2) == b"PK", "it does not begin as one")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}


def read_safetensors(path: str | os.PathLike) -> dict[str, Any]:
    """The tensors of a ``.safetensors`` file, or of one packed as ``.safetensors.xz``, by name.

    Raises:
        DamagedFile: not such a file, or it unpacks to far more than weights do.
    """
    from safetensors.torch import load, load_file

    with reading(path, "a readable safetensors file (damaged or cut short?)"):
        return load(unpack_xz(path)) if str(path).endswith(".xz") else load_file(os.fspath(path))


def unpack_xz(path: str | os.PathLike) -> bytes:
    """The content of an ``.xz`` file.

    Raises:
        DamagedFile: not such a file, or it unpacks to more than :data:`MAX_RATIO` times its size.
    """
    with reading(path, "a readable .xz file"):
        packed = Path(path).read_bytes()
        most = SMALL + MAX_RATIO * len(packed)
        unpacker = lzma.LZMADecompressor(memlimit=MAX_WINDOW)
        content = unpacker.decompress(packed, max_length=most)
        require(len(content) < most, f"it unpacks to more than {most:,} bytes")
        require(unpacker.eof, "it is cut short")
        require(not unpacker.unused_data, "something follows its end")
        return content
