"""The index that grows and the demo: one more picture, a question at 100,000, 16 clients for a minute, hostile requests.

    python -m benchmarks.demo [grow page load hostile] [--write]      --write renews docs/benchmarks/demo.md

A CLIP of ViT-B/32's shape with random weights asks; indices have random features, and their 100,000 pictures are names of 1,000. The
server is `dassl-prompts demo` in a process of its own. `page` needs playwright and chromium, without them it is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote, urlencode

import numpy as np
import torch
from PIL import Image
from tabulate import tabulate

from benchmarks.measure import add_flags
from benchmarks.pages import DOCS, conditions, device_name, write_section

DOC = DOCS / "demo.md"
B32 = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}
GROWING, LARGE, MILLION, KINDS = 10_000, 100_000, 1_000_000, 1000
CLIENTS, SECONDS = 16, 60
WORDS = "red blue dark light with without longer shorter dress shoe dog cat house tree two three on under a the".split()


# -- what is asked -------------------------------------------------------------------------------------------


def write_backbone(folder: Path) -> Path:
    """A configuration with weights, as `--backbone` takes it."""
    from dassl_prompts.models.clip import build_model

    torch.manual_seed(0)
    torch.save(build_model(B32).state_dict(), folder / "b32.pt")
    (folder / "b32.json").write_text(json.dumps({**B32, "weights": "b32.pt"}))
    return folder / "b32.json"


def write_pictures(folder: Path, count: int) -> list[str]:
    """``count`` names of :data:`KINDS` pictures; returns them in order."""
    folder.mkdir()
    names = [f"{number:07d}.jpg" for number in range(count)]
    draw = np.random.default_rng(0)
    for number, name in enumerate(names):
        if number < KINDS:
            coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8))
            coarse.resize((320, 240), Image.Resampling.BICUBIC).save(folder / name)
        else:
            os.link(folder / names[number % KINDS], folder / name)
    return names


def write_index(place: Path, start: str, names: list[str], model: dict, settings: dict) -> None:
    """An index of names with random features."""
    from dassl_prompts.composed.index_files import Former, write
    from dassl_prompts.composed.index_table import FORMAT, Row, Table

    rows = [Row(0, name.encode(), 1, 1, i.to_bytes(16, "big"), True, i) for i, name in enumerate(names)]
    features = np.random.default_rng(0).standard_normal((len(rows), settings["width"]), dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    former = Former({}, features=features.astype(np.float16))
    manifest = {
        "format": FORMAT,
        "starts": [start],
        "model": model,
        "settings": settings,
        "faiss": "",
        "next": len(rows),
    }
    place.mkdir(parents=True)
    write(place, manifest, Table.of([start], rows), np.arange(len(rows)), former, SimpleNamespace(rows={}))


class Setting:
    """The backbone on disk and in memory, and folders that the parts share."""

    def __init__(self, folder: Path):
        from dassl_prompts.composed.asked_models import load_model, transform_of

        self.folder = folder
        self.model = {"backbone": str(write_backbone(folder)), "query": "image+text"}
        self.encoder, _, ratio = load_model(self.model)
        self.transform = transform_of(self.encoder, ratio)
        self.options = {"weights": self.encoder.image_fingerprint(), "width": self.encoder.width}

    def large(self) -> Path:
        """The index of :data:`LARGE` pictures, made once."""
        place = self.folder / "large"
        if not place.exists():
            from dassl_prompts.composed.index_table import start_of

            names = write_pictures(self.folder / "photos", LARGE)
            settings = {**self.options, "transform": repr(self.transform), "orientation": "camera"}
            write_index(place, start_of(str(self.folder / "photos")), names, self.model, settings)
        return place


def grow(setting: Setting, args) -> list[dict]:
    """One file more in a folder of :data:`GROWING`, its listing included, and opening a million entries."""
    from dassl_prompts.composed.index import ImageIndex
    from dassl_prompts.composed.index_table import list_root, start_of
    from dassl_prompts.composed.index_update import update_index

    photos, place = setting.folder / "growing", setting.folder / "grown"
    names = write_pictures(photos, GROWING)
    (photos / names[-1]).rename(setting.folder / "one.jpg")
    old = time.time_ns() - 10**10
    for name in names[:-1]:
        os.utime(photos / name, ns=(old, old))
    rows = []

    def update(what: str, encode) -> None:
        began = time.perf_counter()
        files = {start_of(str(photos)): list_root(str(photos))}
        _, done = update_index(place, files, encode, setting.transform, model=setting.model, **setting.options)
        spent = time.perf_counter() - began
        rows.append({"what": what, "encoded": done.encoded, "seconds": f"{spent:.2f}", "must be below": "-"})

    made = lambda images: torch.randn(len(images), setting.encoder.width)
    update(f"a first index of {GROWING - 1:,} pictures (made features)", made)
    Image.effect_noise((320, 240), 50).convert("RGB").save(photos / "new.jpg")
    update("one picture added", torch.no_grad()(setting.encoder.image_features))
    rows[-1]["must be below"] = "2"
    update("nothing changed", made)
    (photos / names[5]).unlink()
    update("one picture removed", made)
    settings = {**setting.options, "transform": "", "orientation": "camera"}
    names = [f"album{number // 1000:04d}/IMG_{number:07d}.jpg" for number in range(MILLION)]
    write_index(setting.folder / "million", "/photos/", names, setting.model, settings)
    began = time.perf_counter()
    ImageIndex.open(setting.folder / "million")
    spent = f"{time.perf_counter() - began:.2f}"
    rows.append({"what": f"an index of {MILLION:,} opened", "encoded": "-", "seconds": spent, "must be below": "1"})
    return rows


# -- the server ----------------------------------------------------------------------------------------------


@contextmanager
def server(setting: Setting) -> Iterator[tuple[str, int]]:
    """Address and process of `dassl-prompts demo` on the large index."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "dassl_prompts.demo", "--index", str(setting.large()), "--port", str(port)]
    with (setting.folder / "server.txt").open("w") as log, subprocess.Popen(words, stdout=log, stderr=log) as process:
        address = f"http://127.0.0.1:{port}"
        try:
            while status(f"{address}/about") != 200:
                if process.poll() is not None:
                    raise RuntimeError((setting.folder / "server.txt").read_text())
                time.sleep(0.2)
            yield address, process.pid
        finally:
            process.send_signal(signal.SIGINT)


def status(address: str, method: str = "GET", content: bytes | None = None, headers: dict | None = None) -> int:
    """Of an answer that is read whole; 0 where there is none."""
    request = urllib.request.Request(address, content or None, headers or {}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def memory(process: int) -> int:
    """Resident MiB, without what is mapped from files: the index is the system's cache."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024


def question(draw: random.Random) -> str:
    """A question about one of 1,000 pictures."""
    text = " ".join(draw.choices(WORDS, k=6))
    return urlencode({"image": f"{draw.randrange(1000):07d}.jpg", "text": text, "k": 12})


def page(setting: Setting, args) -> list[dict]:
    """From the key or click to the answers on the screen, in chromium, one user."""
    from playwright.sync_api import sync_playwright

    with server(setting) as (address, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page()
        shown.goto(f"{address}/?image=0000000.jpg&text=red")
        shown.wait_for_selector("#answers .columns")
        # the page itself notes when other answers were drawn, so that playwright's own waiting does not count
        shown.evaluate(
            "new MutationObserver(() => requestAnimationFrame(() => {"
            "  const now = document.querySelector('#answers .columns')?.innerText;"
            "  if (!window.drawn && now && now !== window.before) window.drawn = performance.now();"
            "})).observe(document.querySelector('#answers'), {childList: true, subtree: true, characterData: true})"
        )
        draw, field = random.Random(0), shown.locator("#text").get_by_role("textbox")

        def spent(button: str) -> float:
            shown.wait_for_timeout(500)
            shown.evaluate(
                "window.drawn = 0; window.before = document.querySelector('#answers .columns').innerText;"
                f"window.began = performance.now(); {button}.click()"
            )
            shown.wait_for_function("window.drawn > 0")
            return shown.evaluate("window.drawn - window.began")

        typed, chosen = [], []
        for number in range(args.repeats + 2):
            field.fill(" ".join(draw.choices(WORDS, k=6)))
            typed.append(spent("document.querySelector('#ask')"))
            chosen.append(spent(f"document.querySelectorAll('#answers .hit')[{12 + number % 12}]"))
        browser.close()
    rows = [("a change typed", typed[2:], "150"), ("an answer chosen: its picture is encoded, too", chosen[2:], "-")]
    return [
        {
            "question in the page": name,
            "median (ms)": f"{statistics.median(times):.0f}",
            "slowest (ms)": f"{max(times):.0f}",
            "must be below (ms)": limit,
        }
        for name, times, limit in rows
    ]


def load(setting: Setting, args) -> list[dict]:
    """:data:`CLIENTS` clients without pause over HTTP, every tenth time a picture instead of a question."""
    times: list[float] = []
    faults: list[int] = []
    with server(setting) as (address, process):

        def client(number: int, end: float) -> None:
            draw = random.Random(number)
            while time.perf_counter() < end:
                picture = draw.random() < 0.1
                name = quote(f"{draw.randrange(1000):07d}.jpg")
                asked = f"/image?path={name}" if picture else f"/search?{question(draw)}"
                began = time.perf_counter()
                code = status(address + asked)
                if code != 200:
                    faults.append(code)
                elif not picture:
                    times.append(1000 * (time.perf_counter() - began))

        def ask_together(seconds: float) -> list[int]:
            """The server's memory, each second."""
            end = time.perf_counter() + seconds
            clients = [threading.Thread(target=client, args=(number, end)) for number in range(CLIENTS)]
            for one in clients:
                one.start()
            held = [memory(process)]
            while any(one.is_alive() for one in clients):
                time.sleep(1)
                held.append(memory(process))
            return held

        before = ask_together(args.seconds / 4)[-1]  # every thread of the server has had its first question
        times.clear()
        held = ask_together(args.seconds)
    half = held[len(held) // 2]
    times.sort()
    return [
        {
            "clients": CLIENTS,
            "seconds": args.seconds,
            "questions": f"{len(times):,}",
            "per second": f"{len(times) / args.seconds:.1f}",
            "errors": len(faults),
            "median (ms)": f"{statistics.median(times):.0f}",
            "99th percentile (ms)": f"{times[int(0.99 * len(times))]:.0f}",
            "memory before, half-way, after (MiB)": f"{before}, {half}, {held[-1]}",
        }
    ]


def hostile(setting: Setting, args) -> list[dict]:
    """The requests of tests/demo/hostile.py against the server itself."""
    from tests.demo.hostile import requests

    codes: dict[int, int] = {}
    with server(setting) as (address, _):
        for one in requests():
            code = status(address + quote(one.url, safe="/?&=%+"), one.method, one.content, one.headers)
            codes[code] = codes.get(code, 0) + 1
        alive = status(f"{address}/about") == 200
    refused = sum(count for code, count in codes.items() if 400 <= code < 500)
    told = ", ".join(f"{code}: {count}" for code, count in sorted(codes.items()))
    return [{"hostile requests": sum(codes.values()), "refused": refused, "by status": told, "it still answers": alive}]


PARTS = {"grow": grow, "page": page, "load": load, "hostile": hostile}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"of the clients (default {SECONDS})")
    parser.add_argument("--repeats", type=int, default=20, help="questions in the page (default 20)")
    add_flags(parser, DOC.name)
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(args.threads)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder))
        for name in args.parts or PARTS:
            try:
                rows = PARTS[name](setting, args)
            except ImportError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
            tables.append(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
            print(tables[-1], flush=True)
    text = (
        "Written by `python -m benchmarks.demo --write`. A CLIP of ViT-B/32's shape with random weights; the demo and the clients share\n"
        f"the machine. The page, the clients and the hostile requests ask an index of {LARGE:,} pictures.\n\n"
        f"{conditions('cpu', args.threads)}.\n\n" + "\n\n".join(tables) + "\n"
    )
    if args.write:
        write_section(DOC, "The index that grows, and the demo", device_name("cpu"), text)


if __name__ == "__main__":
    main()
