"""What unpacking alone cannot lay out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from dassl_prompts.prepare.errors import ArchiveError


def imagenet(folder: Path) -> None:
    """The three archives of ILSVRC 2012 in ``folder`` -> ``images/{train,val}/<wnid>``, by torchvision.

    Raises:
        ArchiveError: an archive is not the published one.
    """
    from torchvision.datasets import imagenet as torchvision_imagenet

    try:
        _finish(folder, "train", lambda name: torchvision_imagenet.parse_train_archive(folder, folder=name))
        torchvision_imagenet.parse_devkit_archive(folder)
        _finish(folder, "val", lambda name: torchvision_imagenet.parse_val_archive(folder, folder=name))
    except RuntimeError as error:  # torchvision's answer to a wrong checksum
        raise ArchiveError(str(error)) from error
    (folder / torchvision_imagenet.META_FILE).unlink(missing_ok=True)


def _finish(folder: Path, part: str, parse) -> None:
    """Let ``parse`` fill a temporary folder and give it its name when it is whole."""
    target = folder / "images" / part
    if target.exists():
        return
    staging = folder / f".unpack-{part}"
    shutil.rmtree(staging, ignore_errors=True)
    parse(staging.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staging, target)
