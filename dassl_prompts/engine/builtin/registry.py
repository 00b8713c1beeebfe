"""Registries: classes by name, with Dassl's messages."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any


class Registry:
    """Objects by their ``__name__``.

    ``@R.register()`` and ``R.register(obj)`` both work; the first returns the object, the second None (as in
    Dassl).

    Args:
        name: shown in error messages.
    """

    def __init__(self, name: str):
        self._name = name
        self._obj_map: dict[str, Any] = {}
        self._guests: Mapping[str, Any] = {}

    def give_way(self, guests: Mapping[str, Any]) -> None:
        """Let others register the names of ``guests`` while these stand for them, without ``force``."""
        self._guests = guests

    def _do_register(self, name: str, obj: Any, force: bool = False) -> None:
        if name in self._obj_map and not force and self._obj_map[name] is not self._guests.get(name):
            raise KeyError(
                f'An object named "{name}" was already registered in "{self._name}" registry'
                f"{whose(self._obj_map[name])}"
            )
        self._obj_map[name] = obj

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Register ``obj``, or return a decorator that does.

        Raises:
            KeyError: the name is taken and ``force`` is not set.
        """
        if obj is None:

            def wrapper(fn_or_class: Any) -> Any:
                self._do_register(fn_or_class.__name__, fn_or_class, force=force)
                return fn_or_class

            return wrapper
        self._do_register(obj.__name__, obj, force=force)
        return None

    def get(self, name: str) -> Any:
        """The object called ``name``.

        Raises:
            KeyError: nothing of that name.
        """
        if name not in self._obj_map:
            raise KeyError(f'Object name "{name}" does not exist in "{self._name}" registry')
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """All names, in the order they were registered."""
        return list(self._obj_map)


def whose(obj: Any) -> str:
    """Where a registered class is defined; for one of this package also what to do, as its user may not expect it."""
    try:
        said = f", by {inspect.getfile(obj)}"
    except (TypeError, OSError):
        return ""
    if not obj.__module__.startswith("dassl_prompts."):
        return said
    return f'{said}: to keep yours import dassl_prompts after it, or register it with "force=True"'


def check_availability(requested: str, available: Iterable[str]) -> None:
    """Check that ``requested`` is one of ``available``.

    Raises:
        ValueError: lists what is available and names the nearest.
    """
    available = list(available)
    if requested in available:
        return
    # "coop" is nearer to CoOp than to CoCoOp, whose letters it matches as often
    alike = lambda name: difflib.SequenceMatcher(None, str(requested).lower(), name.lower()).ratio()
    nearest = max(available, key=alike, default=None)
    raise ValueError(
        f"The requested one is expected to belong to {available}, but got [{requested}] (do you mean [{nearest}]?)"
    )


def build_named(registry, kind: str, name: str, cfg, **kwargs) -> Any:
    """An instance of the class called ``name``, made with ``cfg`` and announced if ``cfg.VERBOSE``.

    Raises:
        ValueError: nothing of that name; lists what there is.
    """
    check_availability(name, registry.registered_names())
    if cfg.VERBOSE:
        print(f"Loading {kind}: {name}")
    return registry.get(name)(cfg, **kwargs)


TRAINER_REGISTRY = Registry("TRAINER")
DATASET_REGISTRY = Registry("DATASET")
EVALUATOR_REGISTRY = Registry("EVALUATOR")
