"""Reading pickled files without running what is in them.

Checkpoints of Dassl contain, besides tensors, whole scheduler and optimiser objects; its few-shot caches
contain ``Datum`` objects. The unpickler here rebuilds tensors and plain containers, puts *inert* records in
place of the known Dassl and torch objects, and refuses everything else.
"""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

from dassl_prompts.engine.datum import Datum

PLAIN = {
    "collections": {"OrderedDict", "defaultdict", "Counter"},
    "builtins": {
        "dict",
        "list",
        "tuple",
        "set",
        "frozenset",
        "int",
        "float",
        "complex",
        "bool",
        "str",
        "bytes",
        "bytearray",
        "slice",
        "range",
        "object",
    },
    "torch": {
        "Size",
        "device",
        "Tensor",
        "FloatStorage",
        "HalfStorage",
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "bool",
    },
    "torch._utils": {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"},
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch.storage": {"UntypedStorage", "TypedStorage"},
    "numpy": {"ndarray", "dtype"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "_codecs": {"encode"},
}
PLAIN["__builtin__"] = PLAIN["builtins"]  # as protocol 2 pickles name them

#: packages whose objects may occur in a checkpoint and become inert records
INERT_PACKAGES = ("torch.optim", "torch.amp", "torch.cuda.amp", "dassl", "dassl_prompts.engine", "yacs")


class UnsafePickleError(pickle.UnpicklingError):
    """A pickled file refers to something that is neither data nor a known record."""


class Inert:
    """Stand-in for a pickled object: keeps its attributes, runs none of its code.

    Attributes of the pickled object are attributes here; ``pickled_class`` names the class it had.
    """

    pickled_class = ""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # (__dict__, __slots__)
            state = {**(state[0] or {}), **(state[1] or {})}
        if isinstance(state, dict):
            self.__dict__.update(state)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__.setdefault("items", {})[key] = value

    def append(self, value: Any) -> None:
        self.__dict__.setdefault("values", []).append(value)

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)

    def __repr__(self) -> str:
        return f"<inert {self.pickled_class}>"


def _inert(module: str, name: str) -> type[Inert]:
    return type(name.rsplit(".", 1)[-1], (Inert,), {"pickled_class": f"{module}.{name}", "__module__": __name__})


def _is_datum(module: str, name: str) -> bool:
    return name == "Datum" and module.split(".")[0] in ("dassl", "dassl_prompts")


class SafeUnpickler(pickle.Unpickler):
    """Unpickler that resolves only the names of :data:`PLAIN`, ``Datum`` and inert records."""

    def find_class(self, module: str, name: str) -> Any:
        if name in PLAIN.get(module, ()):
            return super().find_class(module, name)
        if _is_datum(module, name):
            return Datum
        if any(module == package or module.startswith(package + ".") for package in INERT_PACKAGES):
            return _inert(module, name)
        raise UnsafePickleError(f"refers to {module}.{name}, which is not plain data")


class pickle_module:
    """The part of the ``pickle`` module that ``torch.load`` uses, with :class:`SafeUnpickler` inside."""

    Unpickler = SafeUnpickler
    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(file, **kwargs) -> Any:
        return SafeUnpickler(file, **kwargs).load()

    @staticmethod
    def loads(data: bytes, **kwargs) -> Any:
        return SafeUnpickler(io.BytesIO(data), **kwargs).load()


def read_pickle(path: str | os.PathLike) -> Any:
    """Read a pickle of plain data and ``Datum`` objects, such as Dassl's few-shot caches.

    Raises:
        UnsafePickleError: the file refers to anything else; names file and object.
        ValueError: the file is damaged.
    """
    with open(path, "rb") as file:
        try:
            return SafeUnpickler(file).load()
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{path} {error}; it was not read") from error
        except (pickle.UnpicklingError, EOFError, ValueError, IndexError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a readable pickle: {error!r}") from error
