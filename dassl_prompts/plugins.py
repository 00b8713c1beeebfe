"""Trainers and datasets of others: modules that a command names, and installed packages that announce theirs.

A package announces modules under the entry-point group ``dassl_prompts``; importing one registers what it decorates with
``register_trainer`` and ``register_dataset``, and its ``extend_cfg(cfg)``, if it has one, adds its configuration keys.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import ModuleType

GROUP = "dassl_prompts"
_loaded: dict[str, ModuleType] = {}
_announced: list[ModuleType] | None = None


def load(names: Iterable[str]) -> None:
    """Import modules, by name (the working folder counts) or by file.

    Raises:
        ValueError: there is no such module or file, or its import fails; names it.
    """
    for name in names:
        if name not in _loaded:
            _loaded[name] = _import(name)


def _import(name: str) -> ModuleType:
    try:
        if not name.endswith(".py"):
            if os.getcwd() not in sys.path:
                sys.path.append(os.getcwd())
            return importlib.import_module(name)
        path = Path(name).expanduser().resolve()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # it is somebody else's code
        raise ValueError(f"--import {name}: {type(error).__name__}: {error}") from error


def announced() -> list[ModuleType]:
    """The modules of installed packages, imported once; one that fails is named and left out."""
    global _announced
    if _announced is None:
        _announced = []
        for point in metadata.entry_points(group=GROUP):
            try:
                _announced.append(importlib.import_module(point.module))
            except Exception as error:  # a broken package of others must not stop the rest
                print(
                    f"entry point {point.name} of the group {GROUP}: {type(error).__name__}: {error}", file=sys.stderr
                )
    return _announced


def modules() -> list[ModuleType]:
    """All of them, in the order of their import."""
    return [*announced(), *_loaded.values()]
