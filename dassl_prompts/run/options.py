"""KEY VALUE pairs of the command line: which method they concern, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def pairs(opts: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(opts[::2], opts[1::2]))


def fits(key: str, node: str) -> bool:
    """Whether a key concerns the method with the node TRAINER.<node>: TRAINER.X only X, everything else all."""
    first, _, rest = key.partition(".")
    return first != "TRAINER" or rest.partition(".")[0] == node


def select(opts: Sequence[str], node: str) -> tuple[str, ...]:
    """The pairs that concern a method."""
    return tuple(word for pair in pairs(opts) if fits(pair[0], node) for word in pair)


def check_options(opts: Sequence[str], nodes: dict[str, str], taken: Iterable[str] = ()) -> None:
    """Refuse options that would reach no run, a misspelt method for one.

    Args:
        nodes: the methods that run, with their nodes below TRAINER.
        taken: keys that the command varies itself.

    Raises:
        ValueError: a key lacks its value, concerns none of the methods, or is taken.
    """
    if len(opts) % 2:
        raise ValueError(f"options come as KEY VALUE pairs, {opts[-1]!r} has no value")
    for key in opts[::2]:
        if not any(fits(key, node) for node in nodes.values()):
            known = ", ".join(f"{method} (TRAINER.{node})" for method, node in nodes.items())
            raise ValueError(f"{key} concerns none of the methods that run here: {known}")
        if key in taken:
            raise ValueError(f"{key} is what this command varies: leave it out")
