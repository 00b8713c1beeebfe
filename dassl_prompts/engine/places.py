"""Files and folders that a configuration names: a run is the same run wherever they lie.

A first stage, a teacher, a file with weights may move, or be named absolutely instead of relatively. Runs note the digest of
what they read (``contents`` in results.json and resume.pt), and two places are the same if their contents are.
"""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dassl_prompts.engine.digest import DIGITS
from dassl_prompts.engine.reading import read_text

#: places that hold copies or inputs whose own digests are compared; what lies there does not change a result
FREE_PLACES = (
    "OUTPUT_DIR",
    "RESUME",
    "DATASET.ROOT",
    "FEATURES.DIR",
    "CIR.CACHE_DIR",
    "CIR.IMAGE_ROOTS",
    "TRAINER.ATTRIPROMPT.CACHE.DIR",
    "TRAINER.PROMPTKD.TEACHER_CACHE",
)
#: its weights have a digest among those of the run
BACKBONE = "MODEL.BACKBONE.NAME"
#: <protocol>/<train|test>_<classes>[/<target>]/<dataset>/shots_<n>/<trainer>/<cfg>/seed<s>, as
#: `dassl_prompts.run` writes it
LAYOUT = re.compile(
    r"(?:^|/)(?P<protocol>[^/]+)/(?P<stage>train|test)(?:_(?P<classes>[^/]+))?(?:/(?P<target>[^/]+))?"
    r"/(?P<dataset>[^/]+)/shots_(?P<shots>\d+)/(?P<trainer>[^/]+)/(?P<cfg>[^/]+)/seed(?P<seed>\d+)$"
)


def place_in_tree(folder: str) -> str:
    """A run folder's name from the protocol on, which stays when an output tree moves; other folders as absolute paths."""
    match = LAYOUT.search(folder.replace(os.sep, "/").rstrip("/"))
    return match.group().lstrip("/") if match else os.path.abspath(folder)


def contents(config: Mapping[str, str]) -> dict[str, str]:
    """Digest of every file and run folder that a flat configuration names, by key.

    Args:
        config: values as ``repr``, from :func:`dassl_prompts.engine.resume.flat_config`.
    """
    found = {}
    for key, text in config.items():
        value = text_of(text)
        if value and key not in (*FREE_PLACES, BACKBONE) and os.path.exists(os.path.expanduser(value)):
            digest = content_digest(os.path.expanduser(value))
            if digest:
                found[key] = digest
    return found


def content_digest(place: str | os.PathLike) -> str:
    """Digest of a file, or of the checkpoints that a run folder is read by; "" for other folders."""
    place = Path(place)
    if place.is_file():
        return _of_files([place])
    models = sorted(file.parent for file in place.glob("*/checkpoint"))
    return _of_files(file for model in models for file in _read_of(model))


def _read_of(model: Path) -> list[Path]:
    """The newest and the best checkpoint of a registered model."""
    newest = model / read_text(model / "checkpoint").strip()
    return [file for file in (newest, model / "model-best.pth.tar") if file.is_file()]


def _of_files(files: Iterable[Path]) -> str:
    found, any_file = hashlib.sha256(), False
    for file in files:
        any_file = True
        with open(file, "rb") as handle:
            found.update(
                hashlib.file_digest(handle, "sha256").digest() if hasattr(hashlib, "file_digest") else _slow(handle)
            )
    return found.hexdigest()[:DIGITS] if any_file else ""


def _slow(handle) -> bytes:
    """``hashlib.file_digest`` of Python 3.10."""
    found = hashlib.sha256()
    while block := handle.read(1 << 20):
        found.update(block)
    return found.digest()


def same_place(key: str, old: str, new: str, noted: str) -> bool:
    """Whether two values of a key name the same thing.

    Args:
        old, new: values as ``repr``. noted: what the old run noted of the content; "" for runs that noted none.
    """
    before, now = text_of(old), text_of(new)
    if not before or not now or not os.path.exists(os.path.expanduser(now)):
        return False
    if os.path.realpath(os.path.expanduser(before)) == os.path.realpath(os.path.expanduser(now)):
        return True
    if key == BACKBONE:  # two files; their weights are compared with the other digests
        return bool(noted) and looks_like_file(before)
    own = content_digest(os.path.expanduser(now))
    if noted:
        return noted == own
    if os.path.exists(os.path.expanduser(before)):
        return bool(own) and content_digest(os.path.expanduser(before)) == own
    # an older run whose first stage or teacher moved with it: the folders' names say method, recipe, data and seed
    return place_in_tree(before) == place_in_tree(now)


def looks_like_file(name: str) -> bool:
    """Whether a backbone's name is a path and not one of open_clip's names such as ``ViT-B/16``."""
    return os.path.isabs(name) or Path(name).suffix in (".pt", ".pth", ".bin", ".safetensors", ".xz", ".json")


def plain_name(name: str) -> str:
    """A backbone's name without the place of its file."""
    return Path(name).name if looks_like_file(name) else name


def text_of(value: str) -> str:
    """The text that a ``repr`` stands for; "" if it is no text."""
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return ""
    return found if isinstance(found, str) else ""
