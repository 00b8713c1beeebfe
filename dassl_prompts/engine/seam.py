"""Which toolbox is used, decided once at import: the real Dassl if there is one, else the built-in engine.

The environment variable ``engine`` (``auto``, ``builtin`` or ``dassl``) overrides the automatic choice. A
Dassl that the program has imported already is always used, because its registries are the ones that the
program reads.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

CHOICES = ("auto", "builtin", "dassl")
HINT = (
    "Dassl is not on PyPI; install it with\n"
    "  pip install --no-build-isolation --no-deps git+https://github.com/KaiyangZhou/Dassl.pytorch\n"
    "  pip install gdown tensorboard wilds pandas\n"
    "or use the built-in engine (engine=builtin)"
)
VERSION = (Path(__file__).parent.parent / "VERSION").read_text(encoding="utf-8").strip()


def is_real(module: ModuleType | None) -> bool:
    """Whether a module called ``dassl`` is a package with code, not the alias of ``install_alias``."""
    return (
        module is not None
        and getattr(module, "__file__", None) is not None
        and not getattr(module, "__builtin_engine__", False)
    )


def installed() -> str | None:
    """Path of an importable Dassl, or None; a bare folder called dassl does not count."""
    if getattr(sys.modules.get("dassl"), "__builtin_engine__", False):
        return None
    # find_spec would raise for a module without a spec, and a folder imported by accident must not hide a
    # real package
    if "dassl" in sys.modules and not is_real(sys.modules["dassl"]):
        del sys.modules["dassl"]
    spec = importlib.util.find_spec("dassl")
    return spec.origin if spec is not None and spec.has_location else None


def choose(environ: Mapping[str, str]) -> tuple[str, str]:
    """Name of the engine to use and a line that describes it.

    Raises:
        ValueError: the environment variable has an unknown value.
        ImportError: ``engine=dassl`` and Dassl cannot be imported; says how to install it.
    """
    wanted = environ.get("engine", "auto").strip().lower() or "auto"
    if wanted not in CHOICES:
        raise ValueError(f"environment variable engine={wanted}: choose one of {', '.join(CHOICES)}")
    builtin = f"builtin {VERSION}"
    imported = is_real(sys.modules.get("dassl"))
    if wanted == "builtin" and not imported:
        return "builtin", builtin
    origin = sys.modules["dassl"].__file__ if imported else installed()
    if origin is None:
        if wanted == "dassl":
            raise ImportError(f"engine=dassl, but there is no importable package dassl. {HINT}")
        return "builtin", builtin
    before = set(sys.modules)
    try:
        importlib.import_module("dassl_prompts.engine.real")
    # AttributeError: old copies of Dassl use numpy names that are gone
    except (ImportError, AttributeError) as error:
        for name in set(sys.modules) - before:
            if name == "dassl" or name.startswith("dassl."):
                del sys.modules[name]
        if wanted == "dassl":
            raise ImportError(f"engine=dassl, but {origin} cannot be imported ({error}). {HINT}") from error
        return "builtin", f"{builtin} (dassl at {origin} cannot be imported: {error})"
    note = "; it was imported before, so engine=builtin has no effect" if wanted == "builtin" else ""
    return "dassl", describe_real() + note


def describe_real() -> str:
    """Version and place of the imported Dassl; both places when its parts come from two folders."""
    dassl, engine = sys.modules["dassl"], sys.modules["dassl.engine"]
    places = {str(Path(dassl.__file__).parent), str(Path(engine.__file__).parent.parent)}
    return f"dassl {getattr(dassl, '__version__', '(no version)')} at {' and '.join(sorted(places))}"


ENGINE_NAME, ENGINE = choose(os.environ)

_announced = False

#: lines that belong into a run's log although they are known before it is opened; each gives "" when there is nothing to say
notes: list[Callable[[], str]] = []


def announce() -> None:
    """Print ``engine: ...`` and the :data:`notes` the first time it is called, which is when a log has just been opened."""
    global _announced
    if not _announced:
        _announced = True
        for line in (f"engine: {ENGINE}", *(note() for note in notes)):
            if line:
                print(line)
