"""Embedded downstream sets of the testbed (docs/open_backbones.md): sketches, held-out icons, clip art. No DATASET.ROOT needed."""

from __future__ import annotations

import hashlib
import zipfile
from functools import cache
from pathlib import Path

import dassl_prompts
from dassl_prompts.classification.split_files import PARTS, Splits
from dassl_prompts.classification.splits import few_shot, subsample_classes
from dassl_prompts.engine import DatasetBase, Datum, register_dataset
from dassl_prompts.engine.digest import digests_of_lists
from dassl_prompts.engine.reading import read_json

ASSETS = Path(dassl_prompts.__file__).parent / "assets" / "testbed"
VERSION = 1
RESTORE = (
    "restore it with `git checkout -- dassl_prompts/assets/testbed` or `python tools/build_testbed.py --cache DIR`"
)


class TestbedError(ValueError):
    """An archive of the testbed is missing, damaged or of another version."""

    __test__ = False  # pytest would take the name for a test class


@cache
def read_index() -> dict:
    """Entries of all sets (rule, classes, sha256) by name. Raises TestbedError with the command that restores it."""
    path = ASSETS / f"testbed-v{VERSION}.json"
    try:
        index = read_json(path, dict)
    except (OSError, ValueError) as error:
        raise TestbedError(f"{path}: {error}: {RESTORE}") from error
    if index.get("version") != VERSION:
        raise TestbedError(f"{path} has version {index.get('version')}, this code reads version {VERSION}: {RESTORE}")
    return index["sets"]


@cache
def read_archive(name: str) -> tuple[Path, tuple[str, ...]]:
    """(path, names of its pictures) of a set's archive, checked by its hash. Raises TestbedError."""
    path = ASSETS / f"{name}-v{VERSION}.zip"
    expected = read_index()[name]["sha256"]
    if not path.is_file():
        raise TestbedError(f"{path} is missing: {RESTORE}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
        raise TestbedError(f"{path} is damaged or of another version (sha256 {expected[:12]}... expected): {RESTORE}")
    with zipfile.ZipFile(path) as archive:
        return path, tuple(n for n in archive.namelist() if n.endswith(".webp"))


def read_splits(name: str) -> Splits:
    """Train, validation and test pictures of a set; members are called ``<split>/<class>/<picture>.webp``."""
    path, members = read_archive(name)
    label = {classname: i for i, classname in enumerate(sorted(read_index()[name]["classes"]))}
    parts = {part: [] for part in PARTS}
    for member in sorted(members):
        part, classname, _ = member.split("/")
        parts[part].append(Datum(impath=f"{path}::{member}", label=label[classname], classname=classname))
    return Splits(**parts)


class TestbedDataset(DatasetBase):
    """One set of the testbed; a subclass names its archive.

    Raises:
        TestbedError: an archive is missing, damaged or of another version; says how to restore it.
    """

    __test__ = False
    archive = ""

    def __init__(self, cfg):
        train, val, test = splits = read_splits(self.archive)
        self.digests = digests_of_lists(splits, ASSETS)
        train, val = few_shot(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED, ASSETS)
        subsample = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        train, val, test = subsample_classes(train, val, test, subsample=subsample)
        super().__init__(train_x=train, val=val or None, test=test)


@register_dataset
class QuickDraw(TestbedDataset):
    """Hand-drawn sketches by players of Quick, Draw!: things that at least 24 training artists drew as icons."""

    archive = "sketches"


@register_dataset
class IconPark(TestbedDataset):
    """Icons of one artist that the open backbones have not seen, in four styles, by theme."""

    archive = "icons"


@register_dataset
class ClipArt(TestbedDataset):
    """Pictures of the Open Clip Art Library by subject, by many hands."""

    archive = "clipart"
