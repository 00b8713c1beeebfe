"""Peak memory and seconds of labelling large photos: pictures of a whole batch in full size, or transformed where they are read.

    python -m benchmarks.photo_memory [--photos 64] [--rounds 1]

makes photos of 24 megapixels (eight different ones, repeated) and labels them with the embedded backbone in batches of 64, each way
in a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tabulate import tabulate

WAYS = {"batch": "read a batch, then transform it (0.1.0)", "threads": "transform in the reading threads"}
SIZE = (6000, 4000)
DIFFERENT = 8


def make_photos(folder: Path, count: int) -> None:
    """JPEG files with detail, of which :data:`DIFFERENT` differ."""
    import numpy as np
    from PIL import Image

    for number in range(count):
        if number >= DIFFERENT:
            os.link(folder / f"{number % DIFFERENT:03d}.jpg", folder / f"{number:03d}.jpg")
            continue
        small = np.random.default_rng(number).integers(0, 255, (SIZE[1] // 40, SIZE[0] // 40, 3), np.uint8)
        Image.fromarray(small).resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:03d}.jpg", quality=85)


def zero_shot():
    """A run of the embedded backbone without a folder."""
    import dassl_prompts
    from dassl_prompts.engine import build_transform, get_cfg_default
    from dassl_prompts.predict.run import TrainedRun

    cfg = get_cfg_default()
    dassl_prompts.extend_cfg(cfg)
    cfg.TRAINER.NAME, cfg.MODEL.BACKBONE.NAME, cfg.USE_CUDA = "ZeroshotCLIP", "emoji-tiny", False
    cfg.INPUT.SIZE, cfg.INPUT.TRANSFORMS = (64, 64), ["normalize"]
    cfg.DATASET.NAME, names = "Emoji", ["cat", "dog", "car"]
    model = dassl_prompts.build_model(cfg, names)
    return TrainedRun(Path("none"), model, names, names, build_transform(cfg, is_train=False), cfg, {})


def label(way: str, folder: Path, batch_size: int, threads: int) -> dict[str, float]:
    """Seconds, peak of the process in GB and the sum of all highest scores."""
    from dassl_prompts.images import read_image

    run, paths = zero_shot(), sorted(map(str, folder.glob("*.jpg")))
    began = time.monotonic()
    if way == "threads":
        best = [float(scores.max()) for _, scores in run.predict(paths, batch_size, threads, "camera")]
    else:
        best = []
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(paths), batch_size):
                pictures = list(pool.map(lambda path: read_image(path, "camera"), paths[start : start + batch_size]))
                best += [float(scores.max()) for scores in run.scores(pictures)]
    seconds = time.monotonic() - began
    return {"seconds": seconds, "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "sum": sum(best)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--photos", type=int, default=64)
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1), help="default: what predict takes here")
    p.add_argument("--rounds", type=int, default=1, help="how often each way is measured")
    p.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    p.add_argument("--folder", type=Path, help="photos that are there already")
    args = p.parse_args()
    if args.way:
        print(json.dumps(label(args.way, args.folder, args.batch_size, args.threads)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = args.folder or Path(place)
        if not args.folder:
            make_photos(folder, args.photos)
        rows = []
        for way in [*WAYS] * args.rounds:
            words = [sys.executable, "-m", "benchmarks.photo_memory", "--way", way, "--folder", str(folder)]
            words += ["--batch-size", str(args.batch_size), "--threads", str(args.threads)]
            done = subprocess.run(
                words, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append([WAYS[way], f"{found['gb']:.2f}", f"{found['seconds']:.1f}", f"{found['sum']:.6f}"])
    print(tabulate(rows, ["way", "peak GB", "seconds", "sum of scores"], tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
