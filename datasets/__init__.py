"""One classification dataset per file, in CoOp's on-disk layouts. ``import_all()`` registers them."""

from __future__ import annotations

import importlib
import pkgutil


def import_all() -> list:
    """Import every module here, so that its classes are registered.

    Returns:
        the modules, and before them the one that holds the config keys that datasets share.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    shared = importlib.import_module("dassl_prompts.classification.dataset")
    return [shared, *(importlib.import_module(f"{__name__}.{name}") for name in names)]
