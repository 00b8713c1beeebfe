"""Contact sheets of the testbed's downstream sets: one row per class with training pictures, so that no test picture is shown.

python tools/draw_testbed.py        # writes docs/images/testbed_<set>.png
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dassl_prompts.datasets.testbed import read_index, read_splits
from dassl_prompts.engine.files import atomic_path
from dassl_prompts.images import read_image

CELL, GAP, SHOWN, NAMES = 48, 4, 8, 120
DOCS = Path(__file__).resolve().parent.parent / "docs" / "images"


def sheet(name: str, columns: int = 2) -> Image.Image:
    """The set's classes in `columns` columns: base classes first, each name beside its first training pictures."""
    by_class = {}
    for item in read_splits(name).train:
        by_class.setdefault(item.classname, []).append(item.impath)
    rows = -(-len(by_class) // columns)
    width = NAMES + SHOWN * (CELL + GAP) + 3 * GAP
    picture = Image.new("RGB", (columns * width, rows * (CELL + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(12)
    for i, (classname, paths) in enumerate(by_class.items()):
        left, top = i // rows * width, i % rows * (CELL + GAP) + GAP
        base = i < -(-len(by_class) // 2)
        draw.text((left + GAP, top + CELL // 3), classname, "#1e1e1e" if base else "#8a4b08", font)
        for j, path in enumerate(paths[:SHOWN]):
            shown = read_image(path).convert("RGB").resize((CELL, CELL))
            picture.paste(shown, (left + NAMES + j * (CELL + GAP), top))
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DOCS)
    args = parser.parse_args()
    for name in read_index():
        stream, path = io.BytesIO(), args.out / f"testbed_{name}.png"
        sheet(name).quantize(64).save(stream, "PNG", optimize=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(stream.getvalue())
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
