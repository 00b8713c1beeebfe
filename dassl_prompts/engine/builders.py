"""What the names in a pickle stand for: builders of plain data that check their arguments.

None of them passes an argument of the file on to a constructor that could take room or run code for it: sizes are bounded by
what the file itself holds, numpy's arrays and dtypes are plain numbers, truth values and texts.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

#: elements that a tensor may have beyond those that its file holds (a number expanded to a shape)
EXPANDED = 1 << 24
#: kinds of numpy's dtypes that are plain data: bool, integers, floats, complex, bytes, text
PLAIN_KINDS = "biufcSU"


class UnsafePickleError(pickle.UnpicklingError):
    """A pickled file refers to something that is neither data nor a known record."""


class Builder:
    """Stands for a callable of a pickle: it can be called with plain arguments, and nothing else.

    Args:
        name: as the pickle has it. build: makes the object, or raises TypeError or ValueError.
    """

    __slots__ = ("build", "name")

    def __init__(self, name: str, build: Callable | None = None):
        self.name, self.build = name, build

    def __call__(self, *args: Any) -> Any:
        if self.build is None:
            raise UnsafePickleError(f"calls {self.name}, which is no data")
        try:
            return self.build(*args)
        except (TypeError, ValueError, OverflowError) as error:
            raise UnsafePickleError(f"calls {self.name} with arguments that are no plain data ({error})") from error

    def __repr__(self) -> str:
        return f"<{self.name} of a pickle>"


class PlainDtype:
    """A numpy dtype of a pickle while it is built; ``dtype`` is the real one.

    Raises:
        TypeError, ValueError: objects, records, or anything else that is not a plain number, truth value or text.
    """

    def __init__(self, code: Any = "", *flags: Any):
        import numpy as np

        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not all(isinstance(flag, (bool, int)) for flag in flags):
            raise TypeError("a dtype is named by a text")
        kind, size = code.lstrip("<>=|")[:1], code.lstrip("<>=|")[1:]
        if kind not in PLAIN_KINDS or not kind or (size and not size.isdecimal()) or len(size) > 9:
            raise ValueError(f"the dtype {code!r}")
        if kind not in "SU" and int(size or 0) > 32:
            raise ValueError(f"the dtype {code!r}")
        self.dtype = np.dtype(f"{kind}{int(size)}" if size else kind)

    def __setstate__(self, state: Any) -> None:
        """``(version, byte order, subdtype, names, fields, item size, alignment, flags)``, of which only the order counts."""
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise UnsafePickleError("describes a numpy dtype that is no plain number or text")
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


def _array(shape: Any, dtype: Any, raw: Any, fortran: Any = False):
    """An array of ``raw`` bytes, whose number has to be the array's.

    Raises:
        UnsafePickleError: no plain dtype, or another number of bytes.
    """
    import numpy as np

    if not isinstance(dtype, PlainDtype):
        raise UnsafePickleError("builds a numpy array of a dtype that is no plain number or text")
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    fits = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not fits or not isinstance(raw, (bytes, bytearray)):
        raise UnsafePickleError("builds a numpy array of a shape or content that is no plain data")
    empty = not dtype.dtype.itemsize and math.prod(shape)  # texts of no length, any number of which take no room
    if math.prod(shape) * dtype.dtype.itemsize != len(raw) or len(shape) > 32 or empty:
        raise UnsafePickleError(
            f"builds a numpy array of {math.prod(shape)} elements of {dtype.dtype.itemsize} bytes from {len(raw)} bytes"
        )
    flat = np.frombuffer(bytes(raw), dtype.dtype, math.prod(shape)) if len(raw) else np.empty(0, dtype.dtype)
    return flat.reshape(shape, order="F" if fortran else "C").copy("K")


def _scalar(dtype: Any, raw: Any = b""):
    return _array((), dtype, raw)[()]


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None):
    if axes is not None or order not in ("C", "F"):
        raise ValueError("axes in another order")
    return _array(shape, dtype, bytes(raw) if isinstance(raw, (bytearray, pickle.PickleBuffer)) else raw, order == "F")


class PlainArray:
    """A numpy array of a pickle before its state comes; the finished one takes its place."""

    def __init__(self, *ignored: Any):
        pass

    def finish(self, state: Any):
        """The array of the state ``(version, shape, dtype, Fortran order, bytes)``."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnsafePickleError("builds a numpy array from something that is no state of one")
        _, shape, dtype, fortran, raw = state
        return _array(shape, dtype, raw, fortran)


def _collection(kind: type, *sources: type) -> Callable:
    """``kind()`` or ``kind(x)`` with an ``x`` that is there already; a number or a range would ask for any size."""

    def build(*args: Any):
        if len(args) > 1 or not all(type(arg) in sources for arg in args):
            raise TypeError(f"{kind.__name__} takes what is already there")
        return kind(*args)

    return build


def _numbers(kind: type) -> Callable:
    def build(*args: Any):
        if not all(type(arg) in (int, float, bool, type(None)) for arg in args):
            raise TypeError(f"{kind.__name__} takes numbers")
        return kind(*args)

    return build


def _encode(text: Any, codec: Any = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if type(text) is not str or codec not in ("latin1", "latin-1", "ascii"):
        raise TypeError("only text in latin1 is encoded")
    return text.encode(codec)


def _default_dict(factory: Any = None, *args: Any):
    known = {
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")
        for kind in (list, dict, set, int, float)
    }
    if factory is not None and not (isinstance(factory, Builder) and factory.name in known):
        raise TypeError("its factory is no plain container")
    return defaultdict(None if factory is None else known[factory.name], *_pairs(args))


def _pairs(args: tuple) -> tuple:
    if len(args) > 1 or not all(type(arg) in (dict, list, OrderedDict) for arg in args):
        raise TypeError("it takes a dictionary or a list of pairs")
    return args


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any):
    """A view of a storage; ``rest`` (gradient flag, hooks, metadata) says nothing of the data.

    Raises:
        ValueError: it lies outside its storage, or is expanded to a size that the file does not hold.
    """
    import torch

    if not isinstance(storage, (torch.UntypedStorage, torch.storage.TypedStorage)):
        raise TypeError("its storage is no storage")
    if not all(
        isinstance(part, (tuple, torch.Size)) and all(type(n) is int and n >= 0 for n in part)
        for part in (size, stride)
    ):
        raise TypeError("its size is no tuple of numbers")
    if type(offset) is not int or offset < 0 or len(size) != len(stride):
        raise TypeError("its place is no number")
    raw = getattr(storage, "_untyped_storage", storage)  # a typed one warns of itself when it is asked
    held = raw.nbytes() // (1 if raw is storage else storage.dtype.itemsize)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if math.prod(size) and last >= held:
        raise ValueError(f"a tensor of size {tuple(size)} ends behind the {held} elements of its storage")
    if math.prod(size) > max(held, EXPANDED):
        raise ValueError(f"a tensor of {math.prod(size)} elements from {held}")
    return torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))


def _parameter(data: Any, requires_grad: Any = True, *hooks: Any):
    import torch

    if not isinstance(data, torch.Tensor):
        raise TypeError("it is no tensor")
    return torch.nn.Parameter(data, requires_grad=bool(requires_grad) and data.is_floating_point())


def _device(*args: Any):
    import torch

    return torch.device(*args)


def _size(numbers: Any = ()):
    import torch

    return torch.Size(numbers)


_BYTES = (bytes, bytearray)
#: what a pickle may name -> how it is built; None may be named and not called
PLAIN: dict[str, dict[str, Callable | None]] = {
    "collections": {
        "OrderedDict": lambda *args: OrderedDict(*_pairs(args)),
        "defaultdict": _default_dict,
        "Counter": lambda *args: Counter(*_pairs(args)),
    },
    "builtins": {
        "dict": lambda *args: dict(*_pairs(args)),
        "list": _collection(list, list, tuple),
        "tuple": _collection(tuple, list, tuple),
        "set": _collection(set, list, tuple, set),
        "frozenset": _collection(frozenset, list, tuple, set),
        "str": _collection(str, str),
        "bytes": _collection(bytes, *_BYTES, list),
        "bytearray": lambda *args: bytearray(
            _encode(*args) if args and type(args[0]) is str else _collection(bytes, *_BYTES)(*args)
        ),
        "int": _numbers(int),
        "float": _numbers(float),
        "bool": _numbers(bool),
        "complex": _numbers(complex),
        "slice": _numbers(slice),
        "range": _numbers(range),
    },
    "torch": {"Size": _size, "device": _device, "Tensor": None},
    "torch._utils": {"_rebuild_tensor": _tensor, "_rebuild_tensor_v2": _tensor, "_rebuild_parameter": _parameter},
    "torch.nn.parameter": {"Parameter": None},
    "numpy": {"ndarray": None, "dtype": PlainDtype},
    "_codecs": {"encode": _encode},
}
_old = {"xrange": _numbers(range), "long": _numbers(int), "unicode": _collection(str, str)}
PLAIN["__builtin__"] = PLAIN["builtins"] | _old  # as protocols up to 2 name them
for _core in ("numpy.core", "numpy._core"):
    PLAIN[f"{_core}.multiarray"] = {"_reconstruct": PlainArray, "scalar": _scalar}
    PLAIN[f"{_core}.numeric"] = {"_frombuffer": _frombuffer}
