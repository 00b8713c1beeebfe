"""Arguments that the commands for runs and studies share."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def add_places(p: argparse.ArgumentParser) -> None:
    """``--root``, ``--output``, ``--write`` and ``--force``; $DATA and $FORCE are their defaults."""
    p.add_argument(
        "--root", default=os.environ.get("DATA", "data"), help="folder of the datasets (default $DATA or ./data)"
    )
    p.add_argument("--output", type=Path, default=Path("output"), help="root of the output tree (default ./output)")
    p.add_argument("--write", type=Path, help="also write the tables into this Markdown page")
    add_force(p)


def add_force(p: argparse.ArgumentParser) -> None:
    """``--force``."""
    p.add_argument(
        "--force",
        action="store_true",
        default=os.environ.get("FORCE", "0") not in ("", "0"),
        help="repeat finished runs (also FORCE=1)",
    )
