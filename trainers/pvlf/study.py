"""Tables 1 to 5 of the PVLF paper: every row that can be run here, under the published one.

``python -m dassl_prompts.trainers.pvlf.study 3 --dataset laion --seed 1``; the rows are those of the published tables
(``assets/published.json``), so what a row sets and what it is compared with stand in one place. ``--dataset emoji`` runs
the same rows on the embedded data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from dassl_prompts.engine.ending import tell
from dassl_prompts.results.published import Published, published
from dassl_prompts.results.statistics import Value
from dassl_prompts.run.arguments import add_places
from dassl_prompts.run.composed import ALL_NODES, BASELINE, INVERSIONS, NODES, Plan
from dassl_prompts.run.composed_tables import last_rows, metric_rows
from dassl_prompts.run.execute import execute
from dassl_prompts.run.options import check_options
from dassl_prompts.run.pages import write_page
from dassl_prompts.run.steps import Step, StepFailed
from dassl_prompts.run.tables import table
from dassl_prompts.trainers.pvlf.trainer import DEFAULTS as PVLF_DEFAULTS
from dassl_prompts.trainers.pvlf.transagg import DEFAULTS as TRANSAGG_DEFAULTS

TITLES = {
    1: "FashionIQ val, zero-shot",
    2: "CIRR, zero-shot",
    3: "backbones and tuned towers",
    4: "prompt length",
    5: "prompt depth J, also the number of fusion layers",
}
TRAINING_SETS = ("laion", "laion_template", "laion_llm", "laion_combined", "emoji")
#: the paper's backbone -> recipe
RECIPES = {"BLIP": "blip", "CLIP L/14": "vit_l14", "CLIP B/32": "vit_b32"}
#: the paper's name -> query of the training-free baselines
QUERIES = {
    **dict.fromkeys(("Image-only", "Image"), "image"),
    **dict.fromkeys(("Text-only", "Text"), "text"),
    "Image+Text": "image+text",
    "SEARLE-XL-OTI": "oti",
}
#: a query of its own folder: it is asked alone, with the options that say so
ALONE = {"oti": ("TRAINER.ZEROSHOT_CIR.QUERIES", '["oti"]')}
LAION_SET = "CIR.LAION_SET"
#: the average of an evaluation set, which the paper prints with errors (docs/pvlf.md): it is computed for both sides
AVERAGES = {"CIRR test1": ("R@5", "Rs@1"), "FashionIQ": ("R@10", "R@50")}


@dataclass(frozen=True)
class Line:
    """A published row and how it is run here.

    Attributes:
        paper: the row. triplets: training set. trainer: "" where it is not run here. keys: below TRAINER.<node>, without
            those that say what the defaults say. query: of the baselines.
    """

    paper: Published
    triplets: str
    trainer: str = ""
    keys: tuple[tuple[str, object], ...] = ()
    query: str = ""

    @property
    def tag(self) -> str:
        """Suffix of the run's folder: that of ``run.composed compare`` and ``ablate``, which share these runs."""
        keys = dict(self.keys)
        layers = keys.get("FUSION.NUM_LAYERS")
        parts = (
            f"length{keys['PROMPT.LENGTH']}" if "PROMPT.LENGTH" in keys else "",
            f"layers{layers}_depth{keys['PROMPT.DEPTH']}" if layers else "",
            f"{keys['BACKBONE.TUNE']}-tuned" if "BACKBONE.TUNE" in keys else "",
        )
        return "_".join(filter(None, parts))

    def plan(self, args, opts: tuple[str, ...]) -> Plan:
        recipe = RECIPES[self.paper.backbone] if args.dataset != "emoji" else "blip"
        repro = "_repro" if args.repro and self.trainer in NODES else ""
        return Plan(
            self.triplets, recipe + repro, args.root, args.output, self.tag, (*opts, *ALONE.get(self.query, ()))
        )

    def train(self, plan: Plan, seed: int) -> Step:
        opts = [word for key, value in self.keys for word in (f"TRAINER.{ALL_NODES[self.trainer]}.{key}", str(value))]
        return plan.train(self.trainer, seed, *opts)


def paper_rows(number: int) -> list[Published]:
    """The rows of one of the paper's tables, of all its evaluation sets."""
    return [row for row in published() if row.table == "PVLF" and f", table {number}:" in row.source]


def line_of(row: Published, number: int, dataset: str) -> Line | None:
    """How a published row is run on ``dataset``; None where it is not one of its rows."""
    config = dict(row.config)
    wanted = config.pop(LAION_SET, "")
    emoji = dataset == "emoji"
    if row.method in QUERIES:
        return Line(row, "emoji" if emoji else "", BASELINE, query=QUERIES[row.method])
    chosen = f"laion_{wanted or 'combined'}" if dataset == "laion" else dataset
    if row.trainer in INVERSIONS:
        return Line(row, chosen, row.trainer)
    if row.trainer not in NODES:
        return Line(row, "")
    # one training set: of the rows that differ in it only its own; the embedded data stands for the whole
    if wanted and chosen != f"laion_{wanted}" and not (emoji and wanted == "combined"):
        return None
    if emoji and row.backbone != "BLIP":
        return None
    defaults = {"PVLF": PVLF_DEFAULTS, "TransAgg": TRANSAGG_DEFAULTS}[row.trainer]
    keys = {key.partition(".")[2].partition(".")[2]: value for key, value in config.items()}
    if not emoji:
        keys.setdefault("BACKBONE.TUNE", defaults["BACKBONE"]["TUNE"])
    elif number != 3:
        keys.pop("BACKBONE.TUNE", None)  # as its recipe says
    plain = {
        key: value for key, value in keys.items() if key == "BACKBONE.TUNE" or not is_default(defaults, key, value)
    }
    return Line(row, chosen, row.trainer, tuple(sorted(plain.items())))


def is_default(defaults: dict, key: str, value: object) -> bool:
    node, _, name = key.partition(".")
    return defaults[node][name] == value


def ours(line: Line, benchmark: str, args, opts: tuple[str, ...]) -> tuple[list[Step], list[Step]]:
    """The steps of a line up to its numbers on a benchmark, and those of them that hold these numbers."""
    plan, on = line.plan(args, opts), "fashioniq" if benchmark == "FashionIQ" else "cirr"
    if line.trainer == BASELINE:
        step = plan.baselines(on if args.dataset != "emoji" else "emoji")
        return [step], [step]
    runs = [line.train(plan, seed) for seed in args.seed]
    if args.dataset == "emoji":
        return runs, runs
    steps = [plan.evaluate(line.trainer, seed, on) for seed in args.seed]
    if benchmark == "FashionIQ":
        return [*runs, *steps], steps
    return [*runs, *steps, *submissions(line, args, opts)], steps


def submissions(line: Line, args, opts: tuple[str, ...]) -> list[Step]:
    """CIRR's test split: its numbers come from the server, these runs write the files."""
    plan = line.plan(args, opts)
    return [plan.evaluate(line.trainer, seed, "cirr", "CIR.SPLIT", "test", name="submit") for seed in args.seed]


def measured(line: Line, steps: Sequence[Step], emoji: bool) -> list[dict]:
    """The metrics of a line, one row per seed."""
    if line.trainer == BASELINE:
        return [row for step in steps for row in metric_rows(step) if row["label"] == line.query]
    return [row for step in steps for row in (last_rows(step, line.trainer) if emoji else metric_rows(step))]


def with_average(values: dict, benchmark: str) -> dict:
    """``values`` with the paper's average of the benchmark where its two parts are there."""
    first, second = (values.get(name) for name in AVERAGES[benchmark])
    if first is None or second is None:
        return values
    return {**values, "average": (first + second) / 2}


def section(benchmark: str, found: Sequence[tuple[Line, Sequence[dict]]], where: str) -> str:
    """One table: ours over the published row, line by line."""
    first = found[0][0].paper
    columns = [*first.columns, *(["average"] if set(AVERAGES[benchmark]) <= set(first.columns) else [])]
    rows = []
    for line, measures in found:
        name = {"": line.paper.method, "backbone": line.paper.backbone}
        if measures:
            complete = [with_average(row, benchmark) for row in measures]
            cells = {c: str(Value.over(row[c] for row in complete)) if c in complete[0] else "" for c in columns}
            rows.append({**name, "of": f"ours, {where}", **cells})
            name = {"": "", "backbone": ""}
        values = with_average(line.paper.on(benchmark), benchmark)
        shown = {c: f"{values[c]:.2f}" if c in values else "" for c in columns}
        rows.append({**name, "of": f"published, {benchmark}", **shown})
    return f"{table(rows)}\n\nPublished: {first.source}."


def study(number: int, args, opts: tuple[str, ...]) -> tuple[str, list[str]]:
    """Run what the table needs (finished runs are read); its text, and the submission files that were written."""
    emoji, found = args.dataset == "emoji", {}
    for row in paper_rows(number):
        line = line_of(row, number, args.dataset)
        for benchmark in row.values if line else ():
            found.setdefault(benchmark, []).append(
                (line, *(ours(line, benchmark, args, opts) if line.trainer else ([], [])))
            )
    lines = [entry for entries in found.values() for entry in entries]
    execute(distinct(step for _, steps, _ in lines for step in steps), force=args.force)
    parts, files = [], []
    for benchmark, entries in found.items():
        where = "EmojiCIR val" if emoji else "CIRR val" if benchmark == "CIRR test1" else "FashionIQ val"
        parts.append(section(benchmark, [(line, measured(line, steps, emoji)) for line, _, steps in entries], where))
        if benchmark == "CIRR test1" and not emoji:
            files += [
                path
                for line, _, _ in entries
                if line.trainer in (*NODES, *INVERSIONS)
                for step in submissions(line, args, opts)
                for path in step.results()["submission"]
            ]
    return "\n\n".join(parts), list(dict.fromkeys(files))


def distinct(steps) -> list[Step]:
    """Steps by their folder, once: lines share trainings and baselines."""
    return list({step.output: step for step in steps}.values())


def note(number: int, args) -> str:
    """What has to be known to read the table."""
    several = "mean ± standard deviation over the seeds" if len(args.seed) > 1 else "one seed, no spread to judge by"
    text = f"Table {number} of the PVLF paper: {TITLES[number]}. Percent, {several}."
    if args.dataset == "emoji":
        return f"{text} Ours: embedded data and its small backbone, so the rows can be looked at but not compared."
    if number != 1:
        text += " Published CIRR numbers are the test server's, ours those of val: not comparable; the files for the server are listed."
    return text


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.trainers.pvlf.study",
        description=__doc__.splitlines()[0],
        epilog="Exit codes: 0 done, 1 a run failed, 2 wrong input. KEY VALUE pairs after -- go to every run.",
    )
    p.add_argument("number", type=int, choices=TITLES, help="of the table")
    p.add_argument(
        "--dataset",
        default="laion",
        choices=TRAINING_SETS,
        help="training set: laion (as each row says, Combined where it does not), one of its sets, or emoji",
    )
    p.add_argument("--seed", type=int, nargs="+", default=[1])
    p.add_argument("--repro", action="store_true", help="the _repro recipes: as TransAgg's code runs")
    add_places(p)
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    at = argv.index("--") if "--" in argv else len(argv)
    args, opts = parser().parse_args(argv[:at]), tuple(argv[at + 1 :])
    try:
        if args.repro and args.dataset == "emoji":
            raise ValueError("--repro has no recipe for emoji: leave one of them out")
        taken = {key for row in paper_rows(args.number) for key, _ in row.config}
        check_options(opts, ALL_NODES, taken)
        text, files = study(args.number, args, opts)
        text = f"{note(args.number, args)}\n\n{text}"
        print("\n".join([text, *(["", "For CIRR's server:", *files] if files else [])]))
        if args.write:
            name = f"pvlf.study {args.number} {args.dataset}"
            command = " ".join(["python -m dassl_prompts.trainers.pvlf.study", *argv])
            write_page(args.write, name, f"PVLF, table {args.number} on {args.dataset}", command, text)
    except StepFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
