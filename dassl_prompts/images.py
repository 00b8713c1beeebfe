"""Image files and members of zip archives: reading them, and finding missing ones without touching each."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from PIL import Image

#: separates an archive from its member in an image path: ``emoji.zip::smileys/1f600.png``
MEMBER_SEPARATOR = "::"

_archives: dict[str, zipfile.ZipFile] = {}
# A forked worker shares its parent's file offset, so it has to open archives of its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_archives.clear)


class ImageReadError(OSError):
    """An image exists but cannot be decoded; ``path`` is the offending file.

    Built from one message, because DataLoader re-raises a worker's exception that way.
    """

    path: str = ""


def _unreadable(path: str, reason: object) -> ImageReadError:
    error = ImageReadError(f"cannot read image {path}: {reason}; the file is corrupt or incomplete, fetch it again")
    error.path = path
    return error


def split_member(path: str) -> tuple[str, str | None]:
    """``"a.zip::b.png"`` -> ``("a.zip", "b.png")``; a plain path -> ``(path, None)``."""
    archive, separator, member = path.partition(MEMBER_SEPARATOR)
    return (archive, member) if separator else (path, None)


def open_archive(path: str) -> zipfile.ZipFile:
    """The zip archive ``path``, opened once per process.

    Raises:
        FileNotFoundError: no such archive.
        ImageReadError: it is not a readable zip file.
    """
    archive = _archives.get(path)
    if archive is None:
        try:
            archive = _archives[path] = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise _unreadable(path, error) from error
    return archive


def _read_member(path: str, archive_path: str, member: str) -> bytes:
    try:
        return open_archive(archive_path).read(member)
    except KeyError:
        raise FileNotFoundError(f"archive {archive_path} has no member {member!r}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _unreadable(path, error) from error


def read_image(path: str | os.PathLike) -> Image.Image:
    """Decode an image as RGB.

    Args:
        path: a file, or ``archive.zip::member``.

    Raises:
        FileNotFoundError: the file, archive or member does not exist.
        ImageReadError: it is there but corrupt or truncated.
    """
    path = os.fspath(path)
    archive_path, member = split_member(path)
    source = path if member is None else io.BytesIO(_read_member(path, archive_path, member))
    try:
        with Image.open(source) as image:
            return image.convert("RGB")
    except (FileNotFoundError, PermissionError, IsADirectoryError):
        raise
    # Besides OSError, Pillow's decoders let these through on damaged files.
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
        zlib.error,
        IndexError,
        Image.DecompressionBombError,
    ) as error:
        raise _unreadable(path, error) from error


def missing_images(paths: Iterable[str]) -> list[str]:
    """Paths that do not exist, folder by folder; one listing per folder or archive, no access per image."""
    wanted = defaultdict(dict)
    for path in paths:
        archive, member = split_member(path)
        folder, name = os.path.split(path) if member is None else (archive, member)
        wanted[folder, member is None][name] = path
    missing = []
    for (folder, is_folder), names in wanted.items():
        present = _names_in_folder(folder) if is_folder else _names_in_archive(folder)
        missing += [path for name, path in names.items() if name not in present]
    return missing


def _names_in_folder(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _names_in_archive(path: str) -> set[str]:
    return set(open_archive(path).namelist()) if os.path.exists(path) else set()


def check_images(paths: Sequence[str], what: str, obtain: str = "") -> None:
    """Raise FileNotFoundError with counts and the first names when images are missing.

    Args:
        what: the dataset, for the message.
        obtain: what to do about it, for the message.
    """
    missing = missing_images(paths)
    if missing:
        first = "".join(f"\n  {path}" for path in missing[:5])
        more = f"\n  ... and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        raise FileNotFoundError(
            f"{what}: {len(missing):,} of {len(paths):,} images are missing:{first}{more}\n{obtain}".rstrip()
        )
