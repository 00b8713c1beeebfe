"""Reading pickled files without running what is in them.

Checkpoints of Dassl contain, besides tensors, whole scheduler and optimiser objects, configurations (yacs nodes) and numpy
scalars; its few-shot caches contain ``Datum`` objects. The unpickler here never hands out a class or a function of a library:
every name of a pickle stands for a :class:`~dassl_prompts.engine.builders.Builder` that checks its arguments, or for a record
without code. Only what was built here may be given a state.
"""

from __future__ import annotations

import io
import os
import pickle
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path
from typing import Any

from dassl_prompts.engine.builders import PLAIN, Builder, PlainArray, PlainDtype, UnsafePickleError
from dassl_prompts.engine.datum import Datum
from dassl_prompts.engine.reading import reading

#: packages whose objects may occur in a checkpoint and become inert records
INERT_PACKAGES = ("torch.optim", "torch.amp", "torch.cuda.amp", "dassl", "dassl_prompts.engine", "yacs")
#: dtypes of torch that a pickle may name
TORCH_DTYPES = "float16 bfloat16 float32 float64 int8 int16 int32 int64 uint8 bool complex64 complex128".split()


#: bytes that the builders of one pickle may fill: so many, and so many times its own length
SPARE, MAX_RATIO = 1 << 26, 16


def _size_of(made: Any) -> int:
    """Bytes that a builder took, about."""
    if isinstance(made, (bytes, bytearray, str)):
        return len(made)
    if isinstance(made, (list, tuple, set, frozenset, dict)):
        return 64 * len(made)
    return made.nbytes if type(made).__module__ == "numpy" else 0


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
        slots = (
            isinstance(state, tuple) and len(state) == 2 and all(isinstance(part, (dict, type(None))) for part in state)
        )
        if slots:  # (__dict__, __slots__)
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


class Node(dict):
    """A configuration of yacs as a dictionary; keys are attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setstate__(self, state: Any) -> None:
        """Its frozen flag and lists of old keys are no settings."""


#: what a file may make by its name
RECORDS = (Inert, Datum, Node)
#: what may be given a state: built here, and without code of its own in the setting of it
STATEFUL = (*RECORDS, PlainDtype, OrderedDict, Counter, defaultdict)


def inert(module: str, name: str) -> type[Inert]:
    """A class of records that stand for the objects of a class."""
    return type(name.rsplit(".", 1)[-1], (Inert,), {"pickled_class": f"{module}.{name}", "__module__": __name__})


def _is_datum(module: str, name: str) -> bool:
    return name == "Datum" and module.split(".")[0] in ("dassl", "dassl_prompts")


class SafeUnpickler(pickle._Unpickler):
    """Unpickler that resolves only the names of :data:`PLAIN`, ``Datum`` and records without code.

    It is the pickle module's unpickler in Python, because only there the setting of states can be seen to.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: Any, **kwargs: Any):
        super().__init__(file, **kwargs)
        start = file.tell()
        self.room = SPARE + MAX_RATIO * file.seek(0, os.SEEK_END)
        file.seek(start)

    def load(self) -> Any:
        """The object of the pickle.

        Raises:
            UnsafePickleError: it refers to code, or makes far more of its content than it holds, by copying it again and again.
        """
        return super().load()

    def _take_room(self) -> None:
        self.room -= _size_of(self.stack[-1])
        if self.room < 0:
            raise UnsafePickleError("makes far more of its content than it holds")

    def find_class(self, module: str, name: str) -> Any:
        if name in PLAIN.get(module, ()):
            return Builder(f"{module}.{name}", PLAIN[module][name])
        if module == "torch" and name in TORCH_DTYPES or (module, name) == ("torch.storage", "UntypedStorage"):
            return super().find_class(module, name)
        if _is_datum(module, name):
            return Datum
        if module == "yacs.config" and name == "CfgNode":
            return Node
        if any(module == package or module.startswith(package + ".") for package in INERT_PACKAGES):
            return inert(module, name)
        raise UnsafePickleError(f"refers to {module}.{name}, which is not plain data")

    def load_build(self) -> None:
        """State of an object: for what was built here, never for a class, a function or a module."""
        made = self.stack[-2]
        if isinstance(made, PlainArray):
            array = made.finish(self.stack.pop())
            self.stack[-1] = array
            self._take_room()
            # what the pickle refers to again is the array, too; it was remembered just before its state
            place = next((key for key in reversed(self.memo) if self.memo[key] is made), None)
            if place is not None:
                self.memo[place] = array
            return
        if not isinstance(made, STATEFUL):
            what = made.__name__ if isinstance(made, type) else type(made).__name__
            raise UnsafePickleError(f"sets the state of {what}, which is no record of this file")
        pickle._Unpickler.load_build(self)

    dispatch[pickle.BUILD[0]] = load_build

    def load_reduce(self) -> None:
        """Calls of builders and records only."""
        self._require_known(self.stack[-2])
        pickle._Unpickler.load_reduce(self)
        self._take_room()

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        self._require_known(self.stack[-2])
        pickle._Unpickler.load_newobj(self)
        self._take_room()

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        self._require_known(self.stack[-3])
        pickle._Unpickler.load_newobj_ex(self)
        self._take_room()

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def _instantiate(self, klass: Any, args: Any) -> None:
        self._require_known(klass)
        pickle._Unpickler._instantiate(self, klass, args)
        self._take_room()

    def load_bytearray8(self) -> None:
        """As the pickle module's, which takes the room that the file asks for before it reads."""
        count = int.from_bytes(self.read(8), "little")
        content = self.read(count)
        if len(content) < count:
            raise EOFError("pickle data was truncated")
        self.append(bytearray(content))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    @staticmethod
    def _require_known(made: Any) -> None:
        if isinstance(made, Builder) or isinstance(made, type) and issubclass(made, RECORDS):
            return
        raise UnsafePickleError(f"calls {getattr(made, '__name__', repr(made))}, which is no record of this file")


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
    try:
        with reading(path, "a readable pickle"):
            return SafeUnpickler(io.BytesIO(Path(path).read_bytes())).load()
    except UnsafePickleError as error:
        raise UnsafePickleError(f"{path} {error}; it was not read") from error
