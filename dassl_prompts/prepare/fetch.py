"""Getting one dataset: find or download its files, unpack them into CoOp's layout."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dassl_prompts.prepare import layout
from dassl_prompts.prepare.download import download
from dassl_prompts.prepare.errors import ArchiveError, ByHandError, DiskFullError, DownloadError, PrepareError
from dassl_prompts.prepare.extract import STAGING, unpack
from dassl_prompts.prepare.links import CoopPage
from dassl_prompts.prepare.sources import DOWNLOADS, SOURCES, File, Source


def prepare(name: str, root: Path, page: CoopPage, keep_archives: bool = False) -> None:
    """Complete the tree of dataset ``name`` below ``root``; what is there already stays untouched.

    Every file is tried before the first problem is reported, so one run tells all that is missing.

    Raises:
        PrepareError: of the kind of the first problem, naming all of them.
    """
    source = SOURCES[name]
    folder = root / source.folder
    problems: list[PrepareError] = []
    for file in source.files:
        try:
            _obtain(file, folder, page)
        except DiskFullError:
            raise
        except PrepareError as error:
            problems.append(error)
    if not problems and source.after and _absent(source, folder):
        getattr(layout, source.after)(folder)
    if problems:
        # A failure tells more than work for a person, which was to be expected.
        first = next((error for error in problems if not isinstance(error, ByHandError)), problems[0])
        raise type(first)("\n".join(str(error) for error in problems)) from first
    for staging in folder.glob(f"{STAGING}*"):  # of a run that was killed when all was in place
        shutil.rmtree(staging, ignore_errors=True)
    if not keep_archives:
        shutil.rmtree(folder / DOWNLOADS, ignore_errors=True)


def _absent(source: Source, folder: Path) -> list[str]:
    return [path for file in source.files for path in file.products if not (folder / path).exists()]


def _obtain(file: File, folder: Path, page: CoopPage) -> None:
    if all((folder / path).exists() for path in file.products):
        return
    if not (file.inner and _find(file.inner, folder)):
        path = _find(file, folder) or _download(file, folder, page)
        if file.unpack:
            _unpack(path, folder, file.unpack)
        elif not file.gives and path != folder / file.name:
            os.replace(path, folder / file.name)
    if file.inner:
        _obtain(file.inner, folder, page)


def _unpack(path: Path, folder: Path, products: dict[str, str]) -> None:
    try:
        unpack(path, folder, products)
    except ArchiveError:
        if path.parent.name == DOWNLOADS:  # or the next run would take it for a good one
            path.unlink(missing_ok=True)
        raise


def _find(file: File, folder: Path) -> Path | None:
    """The file where a person or an earlier run has put it."""
    places = [folder / file.name, folder / DOWNLOADS / file.name]
    if file.name == "classnames.txt":  # one for all ImageNets
        sibling = folder.parent / "imagenet" / file.name
        if sibling.exists():
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sibling, folder / file.name)
    return next((place for place in places if place.exists()), None)


def _download(file: File, folder: Path, page: CoopPage) -> Path:
    path = folder / DOWNLOADS / file.name
    if file.on_coop_page:
        try:
            page.fetch(file.name, path)
        except ByHandError as error:
            raise ByHandError(f"{error}\n    -> put it at {folder / file.name}") from error
        return path
    if not file.urls:
        raise ByHandError(f"{file.name}: {file.by_hand}\n    -> put it at {folder / file.name}")
    for url in file.urls:
        try:
            return download(url, path, file.md5)
        except DownloadError as error:
            problem = error
    raise DownloadError(f"{problem}\n    -> or fetch it by hand and put it at {folder / file.name}") from problem
