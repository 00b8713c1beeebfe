"""Unpacking archives without letting them write anywhere but into their folder."""

from __future__ import annotations

import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from dassl_prompts.engine.reading import DamagedFile, reading
from dassl_prompts.prepare.download import disk_errors, require_space
from dassl_prompts.prepare.errors import ArchiveError, PrepareError

#: what archivers of other systems leave in
IGNORED_FOLDERS = ("__MACOSX",)
#: begins the names of folders in which archives are unpacked
STAGING = ".unpack-"
AGAIN = "delete it and run the command again"


def unpack(archive: str | os.PathLike, folder: str | os.PathLike, products: dict[str, str]) -> None:
    """Unpack ``archive`` and move ``products`` (path in the archive -> path below ``folder``) into place.

    The archive is unpacked beside its destination first, so an interrupted run leaves no half-filled folder
    under a final name. Products that exist already are left alone.

    Raises:
        ArchiveError: the archive is damaged, unsafe, or holds no such product.
        DiskFullError: no room.
    """
    archive, folder = Path(archive), Path(folder)
    staging = folder / f"{STAGING}{archive.name}"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        extract(archive, staging)
        absent = [source for source in products if not (staging / source).exists()]
        if absent:
            raise ArchiveError(f"{archive} holds no {absent[0]!r}; is it the right archive?")
        for source, destination in products.items():
            target = folder / destination
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(staging / source, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def extract(archive: str | os.PathLike, target: str | os.PathLike) -> None:
    """Extract a zip or tar archive (plain or compressed) into the existing folder ``target``.

    Every member is checked before anything is written.

    Raises:
        ArchiveError: a member is a link or device, or its path is absolute or leads outside; or the archive
            is damaged.
        DiskFullError: no room.
    """
    archive, target = Path(archive), Path(target)
    try:
        with reading(archive, "a whole archive (damaged or cut short?)", AGAIN, named=(PrepareError,)):
            members = _reader(archive)
            for name, size, stream in _with_progress(members(archive, target), f"unpacking {archive.name}"):
                path = target / name
                with disk_errors(target):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with stream, open(path, "wb") as file:
                        shutil.copyfileobj(stream, file, 1 << 20)
                if path.stat().st_size != size:
                    raise ArchiveError(f"{archive}: {name} is cut off")
    except DamagedFile as error:
        raise ArchiveError(str(error)) from error


def _reader(archive: Path):
    # tar first: an uncompressed tar that ends with a zip file passes for a zip
    if tarfile.is_tarfile(archive):
        return _tar_members
    if zipfile.is_zipfile(archive):
        return _zip_members
    raise ArchiveError(f"{archive} is damaged (neither a tar nor a zip archive); {AGAIN}")


def safe_name(name: str, archive: Path) -> str:
    """``name`` as a relative path.

    Raises:
        ArchiveError: it is absolute, names a drive, or climbs out of the folder.
    """
    name = name.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts or "\0" in name:
        raise ArchiveError(f"{archive}: member {name!r} would be written outside the folder; nothing was unpacked")
    return str(path)


Member = tuple[str, int, BinaryIO]


def _zip_members(archive: Path, target: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as file:
        infos = [info for info in file.infolist() if not info.is_dir()]
        names = {info: safe_name(info.filename, archive) for info in infos}
        for info in infos:
            kind = (info.external_attr >> 16) & 0o170000
            if kind not in (0, 0o100000):
                raise ArchiveError(f"{archive}: member {info.filename!r} is a link or device; nothing was unpacked")
        require_space(target, sum(info.file_size for info in infos), str(archive))
        for info in infos:
            if not _ignored(names[info]):
                try:
                    stream = file.open(info)
                except (
                    RuntimeError,
                    NotImplementedError,
                ) as error:  # encrypted, or packed by a method that zipfile lacks
                    raise ArchiveError(
                        f"{archive}: member {info.filename!r} cannot be unpacked ({error}); unpack it by hand"
                    ) from error
                yield names[info], info.file_size, stream


def _tar_members(archive: Path, target: Path) -> Iterator[Member]:
    # Checking first costs a second pass over a compressed archive; it keeps "nothing was unpacked" true.
    total = 0
    with tarfile.open(archive) as file:
        for info in _with_progress(file, f"checking {archive.name}"):
            safe_name(info.name, archive)
            if not (info.isfile() or info.isdir()):
                raise ArchiveError(f"{archive}: member {info.name!r} is a link or device; nothing was unpacked")
            total += info.size
        while file.fileobj.read(1 << 20):  # the checksum of the packing stands behind the last member
            pass
    require_space(target, total, str(archive))
    with tarfile.open(archive) as file:
        for info in file:
            name = safe_name(info.name, archive)
            if info.isfile() and not _ignored(name):
                yield name, info.size, file.extractfile(info)


def _ignored(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return not parts or parts[0] in IGNORED_FOLDERS or parts[-1].startswith("._")


def _with_progress(items: Iterable, what: str) -> Iterator:
    from tqdm import tqdm

    return iter(tqdm(items, desc=what, unit=" files", mininterval=0.5))
