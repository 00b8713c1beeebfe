"""What is kept beside own pictures: which of them can be read, their digests, the split that was drawn."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dassl_prompts.classification.own_lists import listed
from dassl_prompts.engine.digest import DIGITS
from dassl_prompts.engine.files import read_json, write_json
from dassl_prompts.images import read_image

FOLDER = ".dassl_prompts"
PICTURES = "pictures.json"


def notes_folder(place: str) -> Path:
    """Where the notes on own data at ``place`` are kept: in its folder, or in the user's cache where that cannot be written."""
    path = Path(place)
    beside = path / FOLDER if path.is_dir() else path.parent / FOLDER / path.stem
    owner = path if path.is_dir() else path.parent
    if beside.is_dir() and os.access(beside, os.W_OK) or not beside.exists() and is_writable(owner):
        return beside
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return cache / "dassl_prompts" / f"{path.stem}-{hashlib.sha256(place.encode()).hexdigest()[:DIGITS]}"


def is_writable(folder: Path) -> bool:
    """Whether files can be made in ``folder``; permissions alone do not say it of every file system."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def check_pictures(paths: Sequence[str], root: str, notes: Path, place: str) -> dict[str, str]:
    """Read every picture once; what has been read before and did not change since is not read again.

    Args:
        paths: the files. root: what the notes' paths count from. notes: folder of the notes.

    Returns:
        digest of every file, by path.

    Raises:
        ValueError: some cannot be read; names them.
    """
    known = read_known(notes / PICTURES)
    state = {path: (os.path.relpath(path, root), os.stat(path)) for path in dict.fromkeys(paths)}
    marks = {path: [stat.st_size, stat.st_mtime_ns] for path, (_, stat) in state.items()}
    fresh = [path for path in state if known.get(state[path][0], [])[:2] != marks[path]]
    found = {path: known[state[path][0]][2] for path in state.keys() - set(fresh)}
    if fresh:
        print(f"Reading {len(fresh):,} new pictures of {place}, once")
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            results = list(pool.map(digest_or_error, fresh))
        broken = [result for result in results if isinstance(result, OSError)]
        if broken:
            reasons = listed([str(error) for error in broken], "; ")
            raise ValueError(
                f"{place}: {len(broken)} of {len(state)} pictures cannot be read: {reasons}. Mend or remove them"
            )
        found |= dict(zip(fresh, results))
        write_json({state[path][0]: [*marks[path], found[path]] for path in state}, notes / PICTURES)
    return found


def read_known(path: Path) -> dict[str, list]:
    """The notes of an earlier run; none where they are missing or damaged, which costs reading the pictures again."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    content = content if isinstance(content, dict) else {}
    return {name: entry for name, entry in content.items() if isinstance(entry, list) and len(entry) == 3}


def digest_or_error(path: str) -> str | OSError:
    """Digest of a picture's file, or why it is no readable picture."""
    try:
        read_image(path)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:DIGITS]
    except OSError as error:
        return error
