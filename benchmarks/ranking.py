"""Exact ranking at the size of Food-101's test set, both directions: time and memory beyond the features.

    python -m benchmarks.ranking [--device cuda] [--write]      --write renews docs/benchmarks/ranking.md

Features are ranked in fp32 whatever --prec is, as the evaluators do.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

from benchmarks.measure import Clock, add_flags, peak_mb
from benchmarks.pages import DOCS, conditions, device_name, write_section
from dassl_prompts.ranking.exact import recall_at, target_ranks

DOC = DOCS / "ranking.md"


def measure(n: int, args) -> dict:
    """One size: seconds per direction and growth of peak memory."""
    images = F.normalize(torch.randn(n, args.width, device=args.device), dim=1)
    captions = F.normalize(images + 0.2 * torch.randn_like(images), dim=1)
    own = torch.arange(n, device=args.device)
    clock, before, row = Clock(args.device, 1), peak_mb(args.device), {"N": n, "E": args.width}
    for name, queries, gallery in (("i2t", images, captions), ("t2i", captions, images)):
        ranks = []
        row[f"{name} (s)"] = round(clock(lambda: ranks.append(target_ranks(queries, gallery, own))), 2)
        row[f"{name} R@1"] = round(recall_at(ranks[0], (1,))[1], 2)
    row["extra memory (MB)"] = round(peak_mb(args.device) - before)
    row["N x N in fp32 (MB)"] = round(n * n * 4 / 2**20)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[3669, 8041, 30300])
    parser.add_argument("--width", type=int, default=512)
    add_flags(parser, DOC.name)
    args = parser.parse_args()
    from tabulate import tabulate

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    table = tabulate(
        [measure(n, args) for n in sorted(args.sizes)], headers="keys", tablefmt="github", disable_numparse=True
    )
    text = (
        f"Written by `python -m benchmarks.ranking --device {args.device} --write`. Random normalised features; both directions of\n"
        "an image-caption gallery, one positive each. Extra memory is the growth of the peak over the features themselves.\n\n"
        f"{conditions(args.device, args.threads)}.\n\n{table}\n"
    )
    print(text)
    if args.write:
        write_section(DOC, "Exact ranking", device_name(args.device), text)


if __name__ == "__main__":
    main()
