"""The emoji classes as files: class folders and a CoOp split file, for programs that read neither archives nor our datasets."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from dassl_prompts.classification.split_files import Splits, save_split
from dassl_prompts.emoji import archives as emoji
from dassl_prompts.emoji.splits import read_splits
from dassl_prompts.engine import Datum
from dassl_prompts.engine.files import require_writable
from dassl_prompts.images import read_image

IMAGES, SPLIT = "images", "split_emoji.json"


def folder_name(style: str) -> str:
    """``emoji_fluent`` holds the dataset Emoji, ``emoji_noto`` EmojiNoto and so on."""
    return f"emoji_{style}"


def export(folder: str | os.PathLike) -> list[Path]:
    """Write every style as ``folder/emoji_<style>/``: ``images/<class>/<code points>.png`` and ``split_emoji.json``.

    The split file has CoOp's form, paths relative to ``images/``, and the order of our lists: the same seed draws the same
    few shots. Pictures are what our trainers see, bit for bit. A style's folder appears when it is whole.

    Returns:
        the styles' folders.

    Raises:
        FileExistsError: one of them is there already; names it.
        EmojiDataError: an archive is missing or damaged; says how to restore it.
    """
    folder = Path(folder)
    require_writable(folder, "folder of --export")
    targets = {style: folder / folder_name(style) for style in emoji.STYLES}
    for target in targets.values():
        if os.path.lexists(target):
            raise FileExistsError(f"--export: {target} exists; delete it or give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for style, target in targets.items():
        with tempfile.TemporaryDirectory(dir=folder, prefix=f".{target.name}.") as temporary:
            whole = Path(temporary) / target.name  # an ordinary folder; the temporary one is private
            write_style(style, whole)
            os.rename(whole, target)
    return list(targets.values())


def write_style(style: str, folder: Path) -> None:
    """Pictures and split file of one style."""
    images = folder / IMAGES
    written = []
    for part in read_splits(style):
        items = []
        for item in part:
            code = Path(item.impath.rpartition("::")[2]).stem
            path = images / item.classname.replace(" ", "_") / f"{code}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            read_image(item.impath).save(path, "PNG")
            items.append(Datum(impath=str(path), label=item.label, classname=item.classname))
        written.append(items)
    save_split(Splits(*written), folder / SPLIT, images)
