"""``epochs.json``: what every epoch of a run measured on its training batches; curves are drawn from it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dassl_prompts.engine.files import atomic_path
from dassl_prompts.engine.reading import read_json

FILE = "epochs.json"


def read(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """``[{"epoch": 1, "lr": 0.002, "train": {"loss": 2.3, ...}}, ...]`` of a run folder; empty if there is none.

    Raises:
        ValueError: the file is not such a list; names it.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return []
    found = read_json(path)
    if not isinstance(found, list) or not all(isinstance(e, dict) and isinstance(e.get("epoch"), int) for e in found):
        raise ValueError(f"{path} is not a list of epochs: remove it, the run's results do not depend on it")
    return found


def write(folder: str | os.PathLike, epochs: list[dict[str, Any]]) -> None:
    """Replace the file, atomically; a line per epoch."""
    with atomic_path(Path(folder) / FILE) as temporary:
        temporary.write_text("[\n" + ",\n".join(map(json.dumps, epochs)) + "\n]\n", encoding="utf-8")
