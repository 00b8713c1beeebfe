"""``python -m dassl_prompts.run.composed``: composed retrieval from start to table.

``baselines`` evaluates what needs no training; ``train`` runs the baselines and one method; ``eval`` asks a
trained run on another benchmark; ``submit`` writes the files of CIRR's or CIRCO's server; ``compare`` runs
baselines, TransAgg and PVLF with the same data and tuning mode over several seeds; ``ablate`` varies one thing.
Finished runs are skipped.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dassl_prompts.engine.ending import tell
from dassl_prompts.run.arguments import add_places
from dassl_prompts.run.composed_tables import last_rows, metric_rows, over_seeds, pvlf_minus_transagg, table
from dassl_prompts.run.execute import execute
from dassl_prompts.run.job import Job
from dassl_prompts.run.options import check_options, pairs, select
from dassl_prompts.run.pages import write_page
from dassl_prompts.run.present import check_same_run
from dassl_prompts.run.steps import Step, StepFailed

#: name on the command line -> configuration file and its options
DATASETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "emoji": ("emoji_cir", ()),
    "laion_combined": ("laion_cir", ("CIR.LAION_SET", "combined")),
    "laion_template": ("laion_cir", ("CIR.LAION_SET", "template")),
    "laion_llm": ("laion_cir", ("CIR.LAION_SET", "llm")),
    "cirr": ("cirr", ()),
    "fashioniq": ("fashioniq", ()),
    "circo": ("circo", ()),
}
#: of them, what has queries
BENCHMARKS = ("cirr", "fashioniq", "circo", "emoji")
#: and a test server
SERVERS = ("cirr", "circo")
NODES = {"PVLF": "PVLF", "TransAgg": "TRANSAGG"}
#: methods that train a network for the image's word, without triplets
INVERSIONS = {"Pic2Word": "PIC2WORD", "LinCIR": "LINCIR"}
BASELINE = "ZeroshotCIR"
ALL_NODES = {**NODES, **INVERSIONS, BASELINE: "ZEROSHOT_CIR"}
#: keys that change how a trained run is evaluated; an evaluation with one of them has a folder of its own
PROTOCOL_KEYS = tuple(
    f"CIR.{key}"
    for key in (
        "SPLIT",
        "TARGETPAD_RATIO",
        "FIQ_CATEGORIES",
        "FIQ_GALLERY",
        "FIQ_REMOVE_REFERENCE",
        "FIQ_CAPTION",
        "FIQ_EMPTY_CAPTION",
        "FIQ_LEAVE_OUT_MISSING",
    )
)


@dataclass(frozen=True)
class Plan:
    """One training set, one backbone configuration, one output root."""

    dataset: str
    cfg: str
    root: str
    output: Path
    tag: str = ""
    opts: tuple[str, ...] = ()

    @property
    def config(self) -> str:
        """Configuration file; the emoji data has its own small one."""
        return "emoji_tiny" if self.dataset == "emoji" and self.cfg == "blip" else self.cfg

    @property
    def name(self) -> str:
        """Of the configuration in folder names; it may be a YAML file of the user's own."""
        return Path(self.config).stem if self.config.endswith(".yaml") else self.config

    def folder(self, trainer: str, seed: int) -> Path:
        name = f"{self.name}_{self.tag}" if self.tag else self.name
        return self.output / "composed" / self.dataset / trainer / name / f"seed{seed}"

    def args(self, trainer: str, seed: int, *extra: str, dataset: str = "") -> tuple[str, ...]:
        file, options = DATASETS[dataset or self.dataset]
        job = Job(
            trainer,
            file,
            seed,
            cfg=self.baseline_config() if trainer == BASELINE else self.config,
            root=self.root,
        )
        shared = ("CIR.CACHE_DIR", str(self.output / "composed" / "features"))
        return job.args(*extra, *shared, *options, *select(self.opts, ALL_NODES[trainer]))

    def baseline_config(self) -> str:
        return self.config.removesuffix("_repro")

    def train(self, trainer: str, seed: int, *opts: str) -> Step:
        return Step(
            f"{trainer} on {self.dataset}, seed {seed}",
            self.folder(trainer, seed),
            self.args(trainer, seed, *opts),
        )

    def protocol(self, *keys: str) -> str:
        """Suffix of an evaluation's folder: PROTOCOL_KEYS and ``keys`` among the options, readable."""
        given = dict(pairs(self.opts))
        parts = []
        for key in (*keys, *PROTOCOL_KEYS):
            if given.get(key):
                value = re.sub(r"[^\w.+]+", "-", Path(given[key]).name).strip("-")
                parts.append(f"{key.rpartition('.')[2].lower().replace('_', '-')}-{value}")
        return "_".join(parts)

    def baselines(self, dataset: str = "") -> Step:
        dataset = dataset or self.dataset
        asked = ("PIC2WORD", "SEARLE", "LINCIR", "QUERIES", "OTI.STEPS")
        protocol = self.protocol(*(f"TRAINER.ZEROSHOT_CIR.{key}" for key in asked))
        name = "_".join(filter(None, (self.name.removesuffix("_repro"), self.tag, protocol)))
        folder = self.output / "composed" / dataset / BASELINE / name
        return Step(f"baselines on {dataset}", folder, self.args(BASELINE, 1, "--eval-only", dataset=dataset))

    def evaluate(self, trainer: str, seed: int, dataset: str, *opts: str, name: str = "eval") -> Step:
        run = self.folder(trainer, seed)
        extra = ("--model-dir", str(run), "--eval-only")
        title = f"{trainer}, trained on {self.dataset}, seed {seed}: {name} on {dataset}"
        # CIR.EVAL of the training configuration must not redirect the evaluation
        return Step(
            title,
            run / "_".join(filter(None, (name, dataset, self.protocol()))),
            self.args(trainer, seed, *extra, "CIR.EVAL", "[]", *opts, dataset=dataset),
        )


# -- commands ------------------------------------------------------------------------------------------------


def baselines(plan: Plan, args) -> list[dict]:
    step = plan.baselines()
    execute([step], force=args.force)
    for path in step.results().get("submission", []):
        print(path)
    return metric_rows(step)


def train(plan: Plan, args) -> list[dict]:
    return run_and_read(plan.baselines(), plan.train, args)


def evaluate(plan: Plan, args) -> list[dict]:
    return run_and_read(plan.baselines(args.on), partial(plan.evaluate, dataset=args.on), args)


def run_and_read(baselines: Step, step_of: Callable[[str, int], Step], args) -> list[dict]:
    """Rows of the baselines, of the other method's runs where they are finished, and of one run per seed."""
    execute([baselines, *(step_of(args.trainer, seed) for seed in args.seed)], force=args.force)
    rows = metric_rows(baselines)
    # an inversion network's backbone is a CLIP and its recipe its own
    others = [trainer for trainer in NODES if trainer != args.trainer and args.trainer in NODES]
    for trainer in (*others, args.trainer):
        for seed in args.seed:
            step = step_of(trainer, seed)
            if trainer in others and (missing := why_not_comparable(step, trainer)):
                print(f"{trainer}, seed {seed}, is not in the table: {missing}")
                continue
            for row in metric_rows(step, f"{trainer}, seed {seed}"):
                rows.append({**row, "query": row["query"] + (" (best epoch)" if row["label"] == "best" else "")})
    return rows


def why_not_comparable(step: Step, trainer: str) -> str:
    """Why a run of the other method cannot stand beside ours; empty if it can."""
    if step.results() is None:
        return f"{step.output} holds no finished run (scripts/{trainer.lower()} has the same commands)"
    try:
        check_same_run(step)
    except ValueError as error:
        return str(error)
    return ""


def submit(plan: Plan, args) -> list[dict]:
    on = args.on or "cirr"
    steps = [plan.evaluate(args.trainer, seed, on, "CIR.SPLIT", "test", name="submit") for seed in args.seed]
    execute(steps, force=args.force)
    for step in steps:
        print("\n".join(step.results()["submission"]))
    return []


def compare(plan: Plan, args) -> list[dict]:
    """Like for like: both methods with the same triplets, backbone, tuning mode, steps and seeds."""
    tuned = replace(plan, tag="_".join(filter(None, (plan.tag, f"{args.tune}-tuned"))))
    steps = [
        (
            f"{trainer} ({args.tune} tuned)",
            tuned.train(trainer, seed, f"TRAINER.{NODES[trainer]}.BACKBONE.TUNE", args.tune),
        )
        for trainer in ("TransAgg", "PVLF")
        for seed in args.seed
    ]
    execute([plan.baselines(), *(step for _, step in steps)], force=args.force)
    trained = [row for name, step in steps for row in last_rows(step, name)]
    return over_seeds(metric_rows(plan.baselines()) + trained) + pvlf_minus_transagg(trained)


def ablation(what: str) -> dict[str, tuple[tuple[str, str], ...]]:
    """Folder tag -> keys below TRAINER.<node>. Layers and prompt depth are separate axes (the paper varies
    both at once)."""
    if what == "length":
        return {f"length{n}": (("PROMPT.LENGTH", str(n)),) for n in (5, 10, 15, 20, 25, 30, 35)}
    if what == "depth":
        return {
            f"layers{layers}_depth{depth}": (("FUSION.NUM_LAYERS", str(layers)), ("PROMPT.DEPTH", str(depth)))
            for layers in (1, 2, 3)
            for depth in range(layers + 1)
        }
    return {f"{tune}-tuned": (("BACKBONE.TUNE", tune),) for tune in ("none", "text", "both")}


def ablate(plan: Plan, args) -> list[dict]:
    """One row per variant; the tuning table has both methods, like for like."""
    steps = []
    for trainer in ("TransAgg", "PVLF") if args.what == "tuning" else (args.trainer,):
        for tag, keys in ablation(args.what).items():
            variant = replace(plan, tag="_".join(filter(None, (plan.tag, tag))))
            opts = [o for key, value in keys for o in (f"TRAINER.{NODES[trainer]}.{key}", value)]
            steps += [(f"{trainer} {tag}", variant.train(trainer, seed, *opts)) for seed in args.seed]
    execute([step for _, step in steps], force=args.force)
    rows = [row for name, step in steps for row in last_rows(step, name)]
    return over_seeds(rows) + pvlf_minus_transagg(rows)


def check(args, opts: Sequence[str]) -> None:
    """Refuse what would run nothing, or not what it says.

    Raises:
        ValueError: names the option and what to do.
    """
    if args.command == "eval" and not args.on:
        raise ValueError(f"eval needs --on {', '.join(BENCHMARKS[:-1])} or {BENCHMARKS[-1]}")
    if args.command == "submit" and args.on not in ("", *SERVERS):
        raise ValueError(f"{args.on} has no test server: submit is --on {' or '.join(SERVERS)}")
    if args.dataset == "circo" and args.command != "baselines":
        raise ValueError("circo has no training triplets: train on another set, then eval --on circo")
    varies = {"compare": ["BACKBONE.TUNE"], "ablate": [key for row in ablation(args.what).values() for key, _ in row]}
    several = args.command == "compare" or (args.command == "ablate" and args.what == "tuning")
    trained = list(NODES) if several else [] if args.command == "baselines" else [args.trainer]
    if args.command in ("compare", "ablate") and args.trainer in INVERSIONS:
        raise ValueError(
            f"{args.command} is for {' and '.join(NODES)}; {args.trainer} has neither prompts nor tuned towers"
        )
    if args.command == "ablate" and args.what != "tuning" and args.trainer == "TransAgg":
        raise ValueError(f"TransAgg has no prompts (PROMPT.MODE none): ablate --what {args.what} is for --trainer PVLF")
    methods = trained if args.command in ("submit", "ablate") else [*trained, BASELINE]
    taken = [f"TRAINER.{ALL_NODES[trainer]}.{key}" for trainer in trained for key in varies.get(args.command, ())]
    check_options(opts, {method: ALL_NODES[method] for method in methods}, taken)


COMMANDS = {
    "baselines": baselines,
    "train": train,
    "eval": evaluate,
    "submit": submit,
    "compare": compare,
    "ablate": ablate,
}


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.run.composed",
        description=__doc__.split("\n\n")[1],
        epilog="Exit codes: 0 done, 1 a run failed, 2 wrong input. KEY VALUE pairs after -- go to every run.",
    )
    p.add_argument("command", choices=COMMANDS)
    p.add_argument("--trainer", default="PVLF", choices=[*NODES, *INVERSIONS], help="method (default PVLF)")
    p.add_argument("--dataset", required=True, choices=DATASETS, help="training set")
    p.add_argument(
        "--on",
        default="",
        choices=["", *BENCHMARKS],
        help="eval: benchmark to evaluate on; submit: cirr (default) or circo",
    )
    p.add_argument("--seed", type=int, nargs="+", default=[1], help="one or several seeds (default 1)")
    p.add_argument(
        "--cfg",
        default="blip",
        help="file in configs/trainers/<trainer>: blip, vit_l14, vit_b32, or one with _repro",
    )
    p.add_argument(
        "--tune",
        default="none",
        choices=["none", "text", "both"],
        help="compare: towers that both methods train",
    )
    p.add_argument("--what", default="length", choices=["length", "depth", "tuning"], help="ablate: what varies")
    add_places(p)
    p.add_argument("--tag", default="", help="suffix that keeps a variant's folders apart")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    at = argv.index("--") if "--" in argv else len(argv)
    args, opts = parser().parse_args(argv[:at]), tuple(argv[at + 1 :])
    plan = Plan(args.dataset, args.cfg, args.root, args.output, args.tag, opts)
    try:
        check(args, opts)
        rows = COMMANDS[args.command](plan, args)
    except StepFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    if rows:
        print(table(rows))
    return write(args, argv, table(rows)) if rows and args.write else 0


def write(args, argv: Sequence[str], text: str) -> int:
    """Write the table into the page ``--write``; returns the exit code."""
    single = args.command in ("train", "eval") or (args.command == "ablate" and args.what != "tuning")
    what = {"ablate": [args.what], "eval": ["on", args.on]}.get(args.command, [])
    words = " ".join([args.command, *what, *([args.trainer] if single else []), args.dataset])
    seeds = " ".join(map(str, args.seed))
    title = f"Composed retrieval: {words}, {args.cfg}, {'seed' if len(args.seed) == 1 else 'seeds'} {seeds}"
    command = f"python -m dassl_prompts.run.composed {shlex.join(argv)}"
    try:
        write_page(args.write, f"run.composed {words}", title, command, text)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
