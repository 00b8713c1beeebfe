"""A stand-in for the real Dassl: the built-in engine copied into a package ``dassl`` of its own, with Dassl's
module names.

Its classes are other objects than the built-in ones, so tests see which engine is in use and that both behave
alike.
"""

import re
import shutil
from pathlib import Path

import dassl_prompts
from dassl_prompts.engine.alias import LAYOUT

SOURCE = Path(dassl_prompts.__file__).parent


def make_dassl(folder):
    """Write ``folder/dassl`` and return ``folder``."""
    package = folder / "dassl"
    shutil.copytree(SOURCE / "engine", package / "copied" / "engine", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(SOURCE / "images.py", package / "copied")
    for init in ("", "engine"):
        (package / "copied" / init / "__init__.py").write_text("")
    (package / "copied" / "VERSION").write_text("0\n")
    for path in (package / "copied").rglob("*.py"):
        path.write_text(re.sub(r"\bdassl_prompts\b", "dassl.copied", path.read_text()))
    for name, sources in LAYOUT.items():
        text = "".join(f"from dassl.copied.engine.{source} import *\n" for source in sources)
        text += '__version__ = "0.6.3"\n' if not name else ""
        has_children = not name or any(other.startswith(name + ".") for other in LAYOUT)
        target = package.joinpath(*name.split(".")) if name else package
        path = target / "__init__.py" if has_children else target.with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
