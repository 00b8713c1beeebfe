"""One method per file; importing a file registers its trainer."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def import_all() -> list[ModuleType]:
    """Import every file of this folder."""
    return [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
