"""AttriPrompt's ablations: 17 rows, each one switch (or a few) away from the full method.

``python -m dassl_prompts.trainers.attriprompt.study --dataset emoji --seed 1 2 3 [--protocol xd] [--rows full floor ...]``
"""

from __future__ import annotations

import argparse
import sys

from dassl_prompts.engine import config_differences, write_json
from dassl_prompts.engine.resume import flat_config
from dassl_prompts.run.arguments import add_places
from dassl_prompts.run.execute import execute
from dassl_prompts.run.pages import write_page
from dassl_prompts.run.protocols import PROTOCOLS, Job
from dassl_prompts.run.steps import StepFailed
from dassl_prompts.run.tables import study_text

KEY = "TRAINER.ATTRIPROMPT."


def switches(**values) -> tuple[str, ...]:
    """``RETRIEVAL__MODE="static"`` -> KEY VALUE pairs of the command line."""
    return tuple(item for key, value in values.items() for item in (KEY + key.replace("__", "."), str(value)))


#: row -> what it says, its switches
ROWS = {
    "full": ("AttriPrompt", ()),
    "floor": (
        "deep language prompting (no retrieval, no instance stream, no regulariser)",
        switches(RETRIEVAL__MODE="static", DUAL__MODE="cls_only", REG__TYPE="none"),
    ),
    "static": ("no retrieval", switches(RETRIEVAL__MODE="static")),
    "cls_only": ("no instance stream", switches(DUAL__MODE="cls_only")),
    "no_reg": ("no regulariser", switches(REG__TYPE="none")),
    "retrieval_only": ("no instance stream, no regulariser", switches(DUAL__MODE="cls_only", REG__TYPE="none")),
    "no_centre": ("queries not centred", switches(RETRIEVAL__CENTER=False)),
    "union": ("distinct prompts (union)", switches(RETRIEVAL__MODE="union")),
    "softmax": ("softmax mixture of the pool", switches(RETRIEVAL__WEIGHTING="softmax")),
    "per_layer": ("a pool per layer", switches(POOL__PER_LAYER=True)),
    "learned_keys": ("learned keys, raw queries", switches(POOL__KEY="learned", RETRIEVAL__QUERY="raw")),
    "mean": ("one query: the mean token", switches(CLUSTER__METHOD="mean")),
    "k2": ("2 clusters", switches(CLUSTER__K=2)),
    "k4": ("4 clusters", switches(CLUSTER__K=4)),
    "k8": ("8 clusters", switches(CLUSTER__K=8)),
    "pool8": ("pool of 8", switches(POOL__SIZE=8)),
    "pool128": ("pool of 128", switches(POOL__SIZE=128)),
}


def distinct(protocol: str, jobs: dict[str, Job], full: Job) -> list[str]:
    """Rows whose runs are configured otherwise than those of the recipe itself, which is the row "full".

    A recipe may hold the value that a row sets; the row would train the same runs once more and show their numbers twice.
    """
    recipe = flat_config(PROTOCOLS[protocol].steps(full)[0].config())
    kept = []
    for name, job in jobs.items():
        if name == "full" or config_differences(recipe, PROTOCOLS[protocol].steps(job)[0].config()):
            kept.append(name)
        else:
            print(f"row {name} ({ROWS[name][0]}) is left out: the recipe is set so, it equals the row full")
    return kept


#: protocols that have a table of ablations
PROTOCOL_NAMES = tuple(name for name, protocol in PROTOCOLS.items() if protocol.rows)


def study(protocol: str, jobs: list[tuple[str, Job]], force: bool = False) -> list[dict]:
    """Run the (row of the table, job) pairs in one plan, so that all are checked before the first starts; finished ones are
    read."""
    execute([step for _, job in jobs for step in PROTOCOLS[protocol].steps(job)], force=force, quiet=True)
    rows = []
    for name, job in jobs:
        for row in PROTOCOLS[protocol].rows(job):
            numbers = {column: value for column, value in row.items() if isinstance(value, float)}
            rows.append({"seed": job.seed, "variant": ROWS[name][0], **numbers})
    return rows


def write(args, text: str) -> None:
    """Write the finished study into the Markdown page ``--write``."""
    parts = [
        "python -m dassl_prompts.trainers.attriprompt.study",
        "--protocol",
        args.protocol,
        "--dataset",
        args.dataset,
    ]
    parts += ["--shots", args.shots, "--seed", *args.seed, "--rows", *args.rows, "--write", args.write]
    parts += ["--opts", *args.opts] if args.opts else []
    title = f"AttriPrompt: ablations on {args.dataset}, {args.protocol}"
    text = f"Accuracy in percent. {text}"
    name = f"run.attriprompt_study {args.protocol} {args.dataset}"
    write_page(args.write, name, title, " ".join(map(str, parts)), text)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.trainers.attriprompt.study", description=__doc__.splitlines()[0]
    )
    p.add_argument("--protocol", choices=PROTOCOL_NAMES, default="base2new")
    p.add_argument("--dataset", default="emoji")
    p.add_argument("--seed", type=int, nargs="+", default=[1])
    p.add_argument("--shots", type=int, default=16)
    p.add_argument("--cfg", default="", help="file in configs/trainers/AttriPrompt; default: the protocol's recipe")
    p.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"of {', '.join(ROWS)}")
    add_places(p)
    p.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="KEY VALUE pairs for every run")
    return p


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    planned, kept = [], None
    try:
        for seed in args.seed:
            base = dict(
                trainer="AttriPrompt",
                dataset=args.dataset,
                seed=seed,
                shots=args.shots,
                cfg=args.cfg,
                root=args.root,
                output=args.output,
            )
            jobs = {
                name: Job(**base, tag="" if name == "full" else name, opts=(*args.opts, *ROWS[name][1]))
                for name in args.rows
            }
            if kept is None:  # the same for every seed
                kept = distinct(args.protocol, jobs, Job(**base, opts=tuple(args.opts)))
            planned += [(name, jobs[name]) for name in kept]
        rows = study(args.protocol, planned, args.force)
    except (StepFailed, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, StepFailed) else 2
    folder = args.output / "studies" / f"attriprompt_{args.dataset}_shots{args.shots}"
    write_json(rows, folder / f"{args.protocol}.json")
    full = ROWS["full"][0]
    text = study_text(rows, "variant", full if any(row["variant"] == full for row in rows) else None)
    print(text)
    if args.write:
        try:
            write(args, text)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
