"""Contact sheets: a query image and its caption, then the images that were found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dassl_prompts.engine.files import atomic_path
from dassl_prompts.images import read_image

TILE, GAP, LINE_HEIGHT, CAPTION_WIDTH = 128, 8, 16, 190
RIGHT, WRONG, PLAIN = (0, 140, 60), (150, 150, 150), (60, 60, 60)


@dataclass(frozen=True)
class Row:
    """One query. ``image`` may be "" (text only); ``right`` are the wanted images' paths, which get a green
    frame; labels may have several lines."""

    image: str
    caption: str
    found: Sequence[str]
    labels: Sequence[str]
    right: Sequence[str] = ()


def contact_sheet(rows: Sequence[Row], path: str | Path, orientation: str = "stored") -> None:
    """Write a sheet with one line per query; the format follows the suffix of ``path`` (.png, .jpg).

    Pictures are turned as the model saw them, see :func:`~dassl_prompts.images.read_image`.

    Raises:
        ValueError: there are no rows, or the suffix is no image format.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one query")
    if Path(path).suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"cannot write a contact sheet as {path}: end its name with .png or .jpg")
    columns = max(len(row.found) for row in rows)
    label_lines = max((label.count("\n") + 1 for row in rows for label in row.labels), default=1)
    line = TILE + 14 + label_lines * LINE_HEIGHT + GAP
    sheet = Image.new("RGB", (CAPTION_WIDTH + (columns + 1) * (TILE + GAP) + 2 * GAP, len(rows) * line + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=13)
    for number, row in enumerate(rows):
        top = GAP + number * line
        if row.image:
            paste(sheet, row.image, GAP, top, PLAIN, orientation)
        draw.multiline_text((2 * GAP + TILE, top + 4), textwrap.fill(row.caption, 26), fill="black", font=font)
        for column, (image, label) in enumerate(zip(row.found, row.labels)):
            left = CAPTION_WIDTH + GAP + (column + 1) * (TILE + GAP)
            colour = (RIGHT if image in row.right else WRONG) if row.right else PLAIN
            paste(sheet, image, left, top, colour, orientation)
            text = "\n".join(map(shorten, label.split("\n")))
            draw.multiline_text((left, top + TILE + 6), text, fill=colour, font=font, spacing=3)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format=Image.registered_extensions()[Path(path).suffix.lower()])


def paste(
    sheet: Image.Image, path: str, left: int, top: int, colour: tuple[int, int, int], orientation: str = "stored"
) -> None:
    """An image, scaled to fit into a framed tile."""
    image = read_image(path, orientation)
    scale = (TILE - 6) / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    ImageDraw.Draw(sheet).rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=colour, width=3)
    sheet.paste(image, (left + (TILE - image.width) // 2, top + (TILE - image.height) // 2))


def shorten(text: str, length: int = 19) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def shorten_path(path: str, length: int = 19) -> str:
    """A path with its end, which is what tells pictures apart."""
    return path if len(path) <= length else "…" + path[1 - length :]
