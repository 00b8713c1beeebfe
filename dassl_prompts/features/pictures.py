"""What a picture is: the digest of its bytes, never its place. Noted for lists of files that did not change."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dassl_prompts.features.store import KEY, content_digest, digest_of, read_records, whole_files, write_records
from dassl_prompts.images import read_bytes, split_member

#: sub-folder of a store
FOLDER = "pictures"


def picture_digests(paths: Sequence[str], root: Path | None) -> list[bytes]:
    """Digest of every picture's bytes; b"" for one that cannot be read.

    Args:
        paths: files, or members of archives. root: of a store, where the digests of a list are noted together with each file's
            place, size, inode and times: a list in which nothing changed is not read again.
    """
    noted = None
    if root is not None:
        listing = digest_of(*_states(paths)).hex()
        for path in whole_files(root / FOLDER):
            if path.name.startswith(listing):
                noted = read_records(path, KEY)
    if noted is not None and len(noted) == len(paths):
        return list(map(bytes, noted))
    found = [_digest(path) for path in paths]
    if root is not None and all(found):
        records = np.frombuffer(b"".join(found), np.uint8).reshape(-1, KEY)
        try:
            write_records(root / FOLDER / f"{listing}-{content_digest(records)}.npy", records)
        except OSError as error:
            print(f"FEATURES.DIR {root}: {error}; the digests of the pictures are not noted")
    return found


def _states(paths: Sequence[str]) -> list[str]:
    """Each path with the state of its file; the time of change (ctime) is the system's own and tells of every rewriting."""
    seen: dict[str, str] = {}
    for path in paths:
        file = split_member(path)[0]
        if file not in seen:
            try:
                s = os.stat(file)
                seen[file] = f"{s.st_size}.{s.st_mtime_ns}.{s.st_ctime_ns}.{s.st_ino}"
            except OSError:
                seen[file] = "gone"
    return [f"{os.path.abspath(path)}\t{seen[split_member(path)[0]]}" for path in paths]


def _digest(path: str) -> bytes:
    try:
        return digest_of(read_bytes(path))
    except OSError:  # whoever needs its pixels says what is wrong
        return b""
