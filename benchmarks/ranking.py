"""Exact ranking at the size of Food-101's test set, both directions: time and memory beyond the features.

    python -m benchmarks.ranking [--write]      --write renews docs/benchmarks/ranking.md
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from dassl_prompts.retrieval.ranking import recall_at, target_ranks

DOC = Path(__file__).resolve().parent.parent / "docs" / "benchmarks" / "ranking.md"


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(n: int, width: int) -> dict:
    """One size: seconds per direction and growth of the process's peak memory."""
    images = F.normalize(torch.randn(n, width), dim=1)
    captions = F.normalize(images + 0.2 * torch.randn(n, width), dim=1)
    own = torch.arange(n)
    before, row = peak_mb(), {"N": n, "E": width}
    for name, queries, gallery in (("i2t", images, captions), ("t2i", captions, images)):
        start = time.perf_counter()
        ranks = target_ranks(queries, gallery, own)
        row[f"{name} (s)"] = round(time.perf_counter() - start, 2)
        row[f"{name} R@1"] = round(recall_at(ranks, (1,))[1], 2)
    row["extra memory (MB)"] = round(peak_mb() - before)
    row["N x N in fp32 (MB)"] = round(n * n * 4 / 2**20)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[3669, 8041, 30300])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--write", action="store_true", help=f"write the table to {DOC}")
    args = parser.parse_args()
    from tabulate import tabulate

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    table = tabulate([measure(n, args.width) for n in sorted(args.sizes)], headers="keys", tablefmt="github")
    text = (
        "# Exact ranking\n\n"
        "Written by `python -m benchmarks.ranking --write`. Random normalised features; both directions of "
        "an image-caption\n"
        "gallery, one positive each. Extra memory is the growth of the process's peak over the features "
        "themselves.\n\n"
        f"{args.threads} threads, {platform.machine()}, torch {torch.__version__}, "
        f"load of the machine at the end {os.getloadavg()[0]:.1f}.\n\n{table}\n"
    )
    print(text)
    if args.write:
        DOC.parent.mkdir(parents=True, exist_ok=True)
        DOC.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
