"""``python -m dassl_prompts.run PROTOCOL --trainer NAME --dataset NAME --seed N``: one job, start to table."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dassl_prompts.run.protocols import PROTOCOLS, Job
from dassl_prompts.run.steps import StepFailed, execute


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.run",
        description="Run one method on one dataset and print its table. Finished parts are skipped.",
        epilog="Exit codes: 0 done, 1 a run failed, 2 wrong input.",
    )
    p.add_argument("protocol", choices=PROTOCOLS, help="; ".join(f"{k}: {v.help}" for k, v in PROTOCOLS.items()))
    p.add_argument("--trainer", required=True, help="e.g. CoOp, MaPLe, DPC_CoOp, ZeroshotCLIP")
    p.add_argument("--dataset", required=True, help="name of a file in configs/datasets, e.g. caltech101 or emoji")
    p.add_argument("--seed", type=int, nargs="+", default=[1], help="one or several seeds (default 1)")
    p.add_argument("--shots", type=int, default=16, help="training images per class (default 16)")
    p.add_argument("--cfg", default="", help="file in configs/trainers/<trainer>, or a YAML of your own; default: the recipe")
    p.add_argument("--root", default=os.environ.get("DATA", "data"), help="folder of the datasets (default $DATA or ./data)")
    p.add_argument("--output", type=Path, default=Path("output"), help="root of the output tree (default ./output)")
    p.add_argument("--tag", default="", help="suffix that keeps a variant's folders apart")
    p.add_argument("--force", action="store_true", default=os.environ.get("FORCE", "0") not in ("", "0"),
                   help="repeat finished runs (also FORCE=1)")  # fmt: skip
    p.add_argument("opts", nargs="*", metavar="KEY VALUE", help="configuration of every run, e.g. TRAINER.COOP.N_CTX 4")
    return p


def table(rows: list[dict]) -> str:
    from tabulate import tabulate

    return tabulate(rows, headers="keys", tablefmt="github", floatfmt=".2f")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    protocol = PROTOCOLS[args.protocol]
    rows = []
    try:
        for seed in args.seed:
            job = Job(args.trainer, args.dataset, seed, args.shots, args.cfg, args.root, args.output, args.tag, tuple(args.opts))
            execute(protocol.steps(job), force=args.force)
            rows += [{"seed": seed, **row} for row in protocol.rows(job)]
    except StepFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
