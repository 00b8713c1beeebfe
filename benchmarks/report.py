"""Time of `dassl_prompts.report` over many runs: writes a made-up output tree and reads it.

    python -m benchmarks.report [--runs 1000] [--keep DIR]

The numbers in the tree are random and mean nothing; only the time counts. Prints one JSON line:
seconds on the clock (*_s) and of processor time (*_cpu_s), which other programs on the machine do not change.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import tempfile
import time
from pathlib import Path

DATASETS = (
    "ImageNet",
    "Caltech101",
    "OxfordPets",
    "StanfordCars",
    "OxfordFlowers",
    "Food101",
    "FGVCAircraft",
    "SUN397",
    "DescribableTextures",
    "EuroSAT",
    "UCF101",
)
TRAINERS = ("CoOp", "CoCoOp", "MaPLe", "PromptSRC", "DPC_CoOp", "DPC_MaPLe")


def write_tree(root: Path, count: int, config_keys: int = 225) -> int:
    """Base-to-new and few-shot runs, ``count`` of them, with files as large as real ones."""
    draw = random.Random(0)
    config = {f"TRAINER.SOME.KEY_{i}": repr(i) for i in range(config_keys)}
    lines = "".join(
        f"epoch [{e}/20] batch [{b}/100] time 0.1 (0.1) data 0.0 (0.0) loss {3 / e:.4f} ({3 / e:.4f}) lr 2.0000e-03 eta 0:00:01\n"
        for e in range(1, 21)
        for b in range(20, 101, 20)
    )
    written = 0
    for number in range(count):  # seeds grow until there are enough runs
        seed, rest = divmod(number, len(DATASETS) * len(TRAINERS) * 3)
        dataset, rest = DATASETS[rest % 11], rest // 11
        trainer, what = TRAINERS[rest % 6], rest // 6
        stage, classes = (
            ("base2new/train_base", "base"),
            ("base2new/test_new", "new"),
            ("fewshot/train_all", "all"),
        )[what]
        folder = root / stage / dataset.lower() / "shots_16" / trainer / "vit_b16" / f"seed{seed + 1}"
        folder.mkdir(parents=True)
        results = {
            "trainer": trainer,
            "dataset": dataset,
            "classes": classes,
            "shots": 16,
            "seed": seed + 1,
            "backbone": "ViT-B/16",
            "config": {**config, "SEED": repr(seed + 1)},
            "classnames": [f"class {i}" for i in range(200)],
            "finished": True,
            "kind": "evaluation" if classes == "new" else "training",
            "test": {"accuracy": draw.uniform(60, 90)},
        }
        (folder / "results.json").write_text(json.dumps(results, indent=1))
        if classes != "new":
            (folder / "log.txt").write_text(lines)
        written += 1
    return written


def clock() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def passed(before: tuple[float, float], after: tuple[float, float], name: str) -> dict[str, float]:
    return {f"{name}_s": round(after[0] - before[0], 2), f"{name}_cpu_s": round(after[1] - before[1], 2)}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--runs", type=int, default=1000)
    p.add_argument("--keep", type=Path, help="write the tree here and keep it")
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.keep or Path(scratch)
        runs = write_tree(root, args.runs)
        start = clock()
        from dassl_prompts.report.__main__ import main as report

        imported = clock()
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert report([str(root)]) == 0
        tables = clock()
        with contextlib.redirect_stdout(io.StringIO()):
            assert report([str(root), "--plots", str(Path(scratch) / "plots")]) == 0
        plots = clock()
    print(
        json.dumps(
            {
                "runs": runs,
                "lines": out.getvalue().count("\n"),
                **passed(start, imported, "import"),
                **passed(imported, tables, "tables"),
                **passed(tables, plots, "tables_and_plots"),
            }
        )
    )


if __name__ == "__main__":
    main()
