"""Memory and speed of `dassl_prompts.predict` on folders of different size.

    python -m benchmarks.predict RUN_DIR [--counts 200 2000]

RUN_DIR is a trained run, e.g. of `python -m dassl_prompts.run base2new --trainer CoOp --dataset emoji`. Every
count runs in a process of its own on made-up pictures of 256 x 256 pixels; prints a JSON line each: peak
resident memory and pictures per second.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def make_pictures(folder: Path, count: int) -> None:
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    first = folder / "0.jpg"
    Image.fromarray(draw.integers(0, 255, (256, 256, 3), dtype=np.uint8)).save(first)
    for i in range(1, count):
        (folder / f"{i}.jpg").symlink_to(first)


def measure(run: str, folder: str) -> None:
    from dassl_prompts.predict.__main__ import main

    out = Path(folder).parent / "labels.csv"
    start = time.perf_counter()
    assert main([run, folder, "--output", str(out)]) == 0
    seconds = time.perf_counter() - start
    count = len(out.read_text().splitlines()) - 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"pictures": count, "peak_MiB": round(peak), "pictures_per_s": round(count / seconds, 1)}))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("run")
    p.add_argument("--counts", type=int, nargs="+", default=[200, 2000])
    p.add_argument("--measure", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.measure:
        return measure(args.run, args.measure)
    for count in args.counts:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "pictures"
            folder.mkdir()
            make_pictures(folder, count)
            subprocess.run(
                [sys.executable, __file__, args.run, "--measure", str(folder)],
                check=True,
                stderr=subprocess.DEVNULL,
            )


if __name__ == "__main__":
    main()
