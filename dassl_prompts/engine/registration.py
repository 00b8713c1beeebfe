"""Putting our classes into registries where others may have registered the same names.

A class decorated with ``@register_trainer`` (or ``_dataset``, ``_evaluator``) is registered at once if its
name is free. If somebody else's class has the name, nothing is replaced until :func:`register_all` says what
to do. With ``install_alias`` it may also come later and take a name of ours (:func:`give_way`).
"""

from __future__ import annotations

import inspect
import os
from dataclasses import dataclass
from typing import Any

from dassl_prompts.engine import seam
from dassl_prompts.engine.backend import DATASET_REGISTRY, EVALUATOR_REGISTRY, TRAINER_REGISTRY

REGISTRIES = {"trainer": TRAINER_REGISTRY, "dataset": DATASET_REGISTRY, "evaluator": EVALUATOR_REGISTRY}
POLICIES = ("keep", "replace", "error")

_ours: dict[str, dict[str, type]] = {kind: {} for kind in REGISTRIES}


@dataclass(frozen=True)
class Conflict:
    """A name that somebody else's class has in the registry."""

    kind: str
    name: str
    ours: type
    theirs: type

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {origin(self.theirs)} (registered first) and {origin(self.ours)}"


def origin(cls: Any) -> str:
    """File in which a class or function was defined."""
    try:
        return os.path.realpath(inspect.getfile(cls))
    except (TypeError, OSError):
        return f"module {cls.__module__}"


def _register(kind: str, cls: type) -> type:
    _ours[kind][cls.__name__] = cls
    registry = REGISTRIES[kind]
    if cls.__name__ not in registry.registered_names():
        registry.register(cls)
    return cls


def register_trainer(cls: type) -> type:
    """Class decorator: register a trainer under its class name."""
    return _register("trainer", cls)


def register_dataset(cls: type) -> type:
    """Class decorator: register a dataset under its class name."""
    return _register("dataset", cls)


def register_evaluator(cls: type) -> type:
    """Class decorator: register an evaluator under its class name."""
    return _register("evaluator", cls)


def is_ours(kind: str, name: str) -> bool:
    """Whether ``name`` stands for a class of this package in the registry of its kind."""
    registry = REGISTRIES[kind]
    return name in registry.registered_names() and registry.get(name).__module__.startswith("dassl_prompts.")


def conflicts() -> list[Conflict]:
    """Names of ours that stand for somebody else's class; a second import of the same file is none."""
    found = []
    for kind, classes in _ours.items():
        registry = REGISTRIES[kind]
        for name, ours in classes.items():
            theirs = registry.get(name)
            if theirs is not ours and origin(theirs) != origin(ours):
                found.append(Conflict(kind, name, ours, theirs))
    return found


def give_way() -> None:
    """Let classes of somebody else take names of ours that are registered already; for the built-in engine's registries.

    Trainer and dataset files of a CoOp checkout can only be imported after ``install_alias``, hence after our own.
    """
    for kind, registry in REGISTRIES.items():
        registry.give_way(_ours[kind])


def outcome(found: list[Conflict], replaced: bool = False) -> str:
    """One line on the names that stay somebody else's (or were ``replaced`` by ours): the first with both files; "" for none."""
    if not found:
        return ""
    first = found[0]
    kept, left = (first.ours, first.theirs) if replaced else (first.theirs, first.ours)
    verb = "is now" if replaced else "stays"
    line = f"{first.kind} {first.name} {verb} the one of {origin(kept)}, not the one of {origin(left)}"
    more = {kind: [c.name for c in found[1:] if c.kind == kind] for kind in REGISTRIES}
    named = "; ".join(f"{kind} {', '.join(names)}" for kind, names in more.items() if names)
    return f"{line}; likewise {named}" if named else line


# names may be taken before a log is opened, and until then
seam.notes.append(lambda: outcome(conflicts()))


def register_all(on_conflict: str | dict[str, str] = "keep") -> list[Conflict]:
    """Settle the names that somebody else registered first.

    Args:
        on_conflict: ``"keep"`` leaves theirs in place and prints one line that names them; ``"replace"`` puts ours
            in their place and prints the same (what our own commands do: train, run, predict); ``"error"``
            raises. A dictionary gives one of these per kind (``trainer``, ``dataset``, ``evaluator``; missing kinds are kept).

    Returns:
        the conflicts there were.

    Raises:
        ValueError: unknown policy, or conflicts under ``"error"``: names both files and what to do.
    """
    policy = on_conflict if isinstance(on_conflict, dict) else dict.fromkeys(REGISTRIES, on_conflict)
    if unknown := (set(policy) - set(REGISTRIES)) | (set(policy.values()) - set(POLICIES)):
        raise ValueError(
            f"on_conflict: unknown {sorted(unknown)}; kinds are {list(REGISTRIES)}, policies {list(POLICIES)}"
        )
    found = conflicts()
    refused = [c for c in found if policy.get(c.kind, "keep") == "error"]
    if refused:
        raise ValueError(
            "these names are registered twice:\n  " + "\n  ".join(map(str, refused)) + "\n"
            'Keep yours with dassl_prompts.engine.register_all(on_conflict="keep"), use ours with "replace", '
            "or leave out one of the imports."
        )
    replaced = [c for c in found if policy.get(c.kind, "keep") == "replace"]
    for conflict in replaced:
        REGISTRIES[conflict.kind].register(conflict.ours, force=True)
    for line in (outcome(replaced, replaced=True), outcome([c for c in found if c not in replaced])):
        if line:
            print(line)
    return found
