"""Contact sheets of the embedded emoji data, to be looked at."""

import textwrap

from PIL import Image, ImageDraw, ImageFont

from dassl_prompts.emoji import archives as emoji
from dassl_prompts.engine.files import atomic_path
from dassl_prompts.images import read_image

CELL, GAP = 64, 6
INK, PALE = (30, 30, 30), (110, 110, 110)


def _save(sheet, path):
    with atomic_path(path) as temporary:
        sheet.save(temporary, "PNG")


def _font(size):
    return ImageFont.load_default(size)


def draw_classes(path, per_style=2):
    """One row per class: its name, `per_style` test concepts in each style, and a caption. Writes a PNG to
    `path`.
    """
    names, text, left = emoji.classnames(), _font(12), 150
    columns = per_style * len(emoji.STYLES)
    width = left + columns * (CELL + GAP) + 4 * GAP + 430
    sheet = Image.new("RGB", (width, 30 + len(names) * (CELL + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for s, style in enumerate(emoji.STYLES):
        draw.text((left + s * (per_style * (CELL + GAP) + GAP), 8), style, INK, _font(14))
    for row, name in enumerate(names):
        top = 30 + row * (CELL + GAP)
        draw.text((6, top + 24), name, INK, text)
        shown = [c for c in emoji.concepts() if c.classname == name and c.split == "test"][:per_style]
        for s, style in enumerate(emoji.STYLES):
            for i, concept in enumerate(shown):
                x = left + s * (per_style * (CELL + GAP) + GAP) + i * (CELL + GAP)
                sheet.paste(read_image(emoji.Picture(concept, style).path), (x, top))
        lines = [line for c in shown for line in textwrap.wrap(emoji.caption(emoji.Picture(c, emoji.HELD_OUT)), 70)]
        for i, line in enumerate(lines[:4]):
            draw.text((width - 440, top + 4 + 15 * i), line, PALE, _font(11))
    _save(sheet, path)


def draw_triplets(path, per_kind=3):
    """Rows of composed queries: reference, modification text, target | the six look-alikes. Writes a PNG to
    `path`.
    """
    from dassl_prompts.emoji.retrieval import emoji_cirr

    cirr = emoji_cirr()
    chosen, count = [], {}
    for query, extended in zip(cirr["captions"], cirr["captions_ext"]):
        kind = extended["caption_extend"]["0"]
        count[kind] = count.get(kind, 0) + 1
        if count[kind] <= per_kind:
            chosen.append((kind, query))
    middle, row_height = 270, CELL + GAP
    sheet = Image.new("RGB", (90 + 2 * CELL + middle + 40 + 6 * (CELL + GAP), 30 + len(chosen) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for x, title in (
        (90, "reference"),
        (100 + CELL, "modification"),
        (90 + CELL + middle, "target"),
        (90 + 2 * CELL + middle + 30, "look-alikes (image set)"),
    ):
        draw.text((x, 8), title, INK, _font(14))
    for row, (kind, query) in enumerate(chosen):
        top = 30 + row * row_height

        def paste(name, x):
            sheet.paste(read_image(cirr["image_splits"][name]), (x, top))

        draw.text((6, top + 24), kind, PALE, _font(12))
        paste(query["reference"], 90)
        for i, line in enumerate(textwrap.wrap(query["caption"], 40)):
            draw.text((100 + CELL, top + 16 + 16 * i), line, INK, _font(12))
        paste(query["target_hard"], 90 + CELL + middle)
        for i, member in enumerate(query["img_set"]["members"]):
            paste(member, 90 + 2 * CELL + middle + 30 + i * (CELL + GAP))
    _save(sheet, path)
