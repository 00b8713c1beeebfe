"""Tensors of a TorchScript archive, read without running anything of it.

``torch.jit.load`` compiles the code in an archive and runs its ``__setstate__``. OpenAI's own ``.pt`` files are such archives, of
which only the tensors are wanted: they lie as raw bytes beside a pickle that says where each belongs.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dassl_prompts.engine.builders import Builder, UnsafePickleError
from dassl_prompts.engine.reading import reading, require
from dassl_prompts.engine.unpickle import Inert, SafeUnpickler, inert

#: storages of torch by the type of their elements
STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}
#: bytes that a compressed member may have
MOST_CODE = 16 << 20
WHAT = "a readable TorchScript archive of a module (damaged or cut short?)"
#: names of lists and typed containers in TorchScript's pickles, which are what they are given
CONTAINERS = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist", "restore_type_tag")
CLASS = re.compile(r"^class (\w+)\(Module\):\n((?:[ \t].*\n|\n)*)", re.MULTILINE)
NAMES = re.compile(r"__(?:parameters|buffers)__ = \[([^\]]*)\]")


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive; ``torch.save`` writes zip files without constants."""
    if not zipfile.is_zipfile(path):
        return False
    with reading(path, WHAT), zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of an archive's module, as its ``state_dict`` has them.

    Raises:
        UnsafePickleError: the archive needs code to be read.
        ValueError: it is damaged or compressed; names it.
    """
    try:
        with reading(path, WHAT), zipfile.ZipFile(path) as archive:
            members = Members(archive)
            root = ArchiveUnpickler(io.BytesIO(members.read("data.pkl")), members).load()
            declared = members.declared()
            require(isinstance(root, Inert), f"it holds a {type(root).__name__} instead of a module")
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{path} {error}; it was not read. Save the tensors alone: torch.save(torch.jit.load(FILE).state_dict(), NEW), "
            "if you know where the file comes from"
        ) from error
    return dict(tensors_of(root, declared))


class Members:
    """The files of an archive below its one folder."""

    def __init__(self, archive: zipfile.ZipFile):
        self.archive = archive
        (self.root,) = {name.split("/", 1)[0] for name in archive.namelist()}

    def read(self, name: str) -> bytes:
        """The bytes of a member; torch compresses code alone, so nothing else is larger than the archive.

        Raises:
            KeyError, ValueError: there is none, or it is compressed and large.
        """
        info = self.archive.getinfo(f"{self.root}/{name}")
        if info.compress_type != zipfile.ZIP_STORED and info.file_size > MOST_CODE:
            raise ValueError(f"{name} is compressed and has {info.file_size:,} bytes")
        return self.archive.read(info)

    def declared(self) -> dict[str, set[str]]:
        """The names of parameters and buffers of every class, from the text of its code."""
        found: dict[str, set[str]] = {}
        prefix = f"{self.root}/code/"
        for name in self.archive.namelist():
            if not (name.startswith(prefix) and name.endswith(".py")):
                continue
            module = name.removeprefix(prefix).removesuffix(".py").replace("/", ".")
            text = self.read(name.removeprefix(f"{self.root}/")).decode("utf-8", "replace")
            for title, body in CLASS.findall(text):
                lists = NAMES.findall(body)
                found[f"{module}.{title}"] = {item.strip("\"' ") for names in lists for item in names.split(",")} - {""}
        return found


def tensors_of(module: Inert, declared: dict[str, set[str]], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and values of the tensors of a module and those in it."""
    own = declared.get(module.pickled_class)
    for name, value in vars(module).items():
        if isinstance(value, Inert):
            yield from tensors_of(value, declared, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and (own is None or name in own):
            yield f"{prefix}{name}", value


class ArchiveUnpickler(SafeUnpickler):
    """Modules become records without code, storages views of the archive's bytes."""

    def __init__(self, file: io.BytesIO, members: Members):
        super().__init__(file)
        self.members, self.storages = members, {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return inert(module, name)
        if module == "torch" and name in STORAGES:
            return Builder(name)
        if module == "torch.jit._pickle" and name in CONTAINERS:
            return Builder(name, lambda data, *kind: data)
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return Builder(name, view)
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Tensor:
        """The elements of a storage, from ``("storage", type, key, device, count)``."""
        _, kind, key, _, count = pid
        if not isinstance(kind, Builder) or type(key) is not str or type(count) is not int:
            raise UnsafePickleError("refers to a storage that is none")
        if key not in self.storages:
            raw, dtype = self.members.read(f"data/{key}"), STORAGES[kind.name]
            if len(raw) < count * dtype.itemsize:
                raise ValueError(f"data/{key} has {len(raw)} bytes instead of {count * dtype.itemsize}")
            held = bytearray(raw[: count * dtype.itemsize])
            self.storages[key] = torch.frombuffer(held, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return self.storages[key]


def view(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A tensor on the elements of a storage, which it may not leave.

    Raises:
        TypeError, ValueError: it is no such description, or lies outside.
    """
    numbers = [offset, *size, *stride]
    if (
        not isinstance(storage, Tensor)
        or not all(type(n) is int and n >= 0 for n in numbers)
        or len(size) != len(stride)
    ):
        raise TypeError("its place in a storage is no place")
    count = torch.Size(size).numel()
    if (
        count
        and offset + sum((n - 1) * step for n, step in zip(size, stride)) >= len(storage)
        or count > max(len(storage), 1)
    ):
        raise ValueError(f"a tensor of size {tuple(size)} does not fit the {len(storage)} elements of its storage")
    return storage.as_strided(tuple(size), tuple(stride), offset).clone()
