"""``python -m dassl_prompts.run.captions``: image-text retrieval in FDRD's protocol, from start to table.

``compare`` runs zero-shot CLIP, the baselines and DCAR; ``ablate`` runs DCAR without its parts. Several seeds
give means and standard deviations, several domains their unweighted mean as well. Finished runs are skipped.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dassl_prompts.configs.own_data import data_name, is_own
from dassl_prompts.engine.ending import tell
from dassl_prompts.fdrd.domains import get_domain
from dassl_prompts.results.statistics import Value, paired
from dassl_prompts.run.arguments import add_places
from dassl_prompts.run.execute import check, execute
from dassl_prompts.run.job import Job, eval_step, train_step
from dassl_prompts.run.options import check_options, select
from dassl_prompts.run.pages import write_page
from dassl_prompts.run.steps import Step, StepFailed
from dassl_prompts.run.tables import table

#: trainer -> its name in tables and on the command line
METHODS = {
    "ZeroshotITR": "zero-shot CLIP",
    "CoOpITR": "CoOp",
    "CLIPAdapterITR": "CLIP-Adapter",
    "MaPLeITR": "MaPLe",
    "DCAR": "DCAR",
}
ZERO_SHOT = "ZeroshotITR"
#: without its module the CAA branch does not exist
NO_CAA = ("TRAINER.DCAR.CAA.ENABLED", "False", "TRAINER.DCAR.TEST.BRANCH", "prompt")
NO_DTR = ("TRAINER.DCAR.DTR.ENABLED", "False")
#: row of the ablation that evaluates the finished full run once more, by its prompts alone: a recipe whose
#: TEST.BRANCH uses the module loses that branch together with the module, this row tells the two apart
BRANCH_ROW, BRANCH_TAG = "test branch prompt only", "branch-prompt"
PROMPT_BRANCH = ("TRAINER.DCAR.TEST.BRANCH", "prompt")
#: row of the ablation that is trained -> folder tag and options
ABLATION = {
    "DCAR": ("", ()),
    "without token re-weighting": ("no-dtr", NO_DTR),
    "without category-aware augmentation": ("no-caa", NO_CAA),
    "with neither (dual prompts)": ("no-dtr-caa", NO_DTR + NO_CAA),
}
#: the same of DCAR with prompts of one tower, and with other numbers of negatives per caption; as in the default mix one is of
#: the attributes, fewer or more where the number asks for it
PROMPT_ROWS = {
    f"{tower} prompts only": (f"prompts-{tower}", ("TRAINER.DCAR.PROMPTS", tower)) for tower in ("text", "image")
}
NEGATIVE_ROWS = {
    "no negatives": ABLATION["without category-aware augmentation"],
    **{
        f"{n} negative{'s' if n > 1 else ''}": (
            f"neg{n}",
            ("TRAINER.DCAR.CAA.N_NEG", str(n), "TRAINER.DCAR.CAA.N_ATTR", str(n_attr)),
        )
        for n, n_attr in ((1, 0), (2, 1))
    },
    "4 negatives": ABLATION["DCAR"],
    "8 negatives": ("neg8", ("TRAINER.DCAR.CAA.N_NEG", "8", "TRAINER.DCAR.CAA.N_ATTR", "2")),
}
FAMILIES = {"parts": ABLATION, "prompts": PROMPT_ROWS, "negatives": NEGATIVE_ROWS}
COLUMNS = {f"{d}_r{k}": f"{n} R@{k}" for d, n in (("i2t", "I2T"), ("t2i", "T2I")) for k in (1, 5, 10)} | {
    "mean_r1": "mean R@1"
}
#: columns of the second table: what the first answers were that are wrong, and how the annotated negatives fared
CATEGORY_COLUMNS = {
    f"{d}_{key}": f"{n} {title}"
    for d, n in (("i2t", "I2T"), ("t2i", "T2I"))
    for key, title in (
        ("wrong_category", "wrong category"),
        ("wrong_attributes", "wrong attributes"),
        ("category_r5", "category R@5"),
        ("within_r1", "R@1 in category"),
    )
} | {"negatives_category": "category negatives", "negatives_attributes": "attribute negatives"}
#: FDRD's domains by the name of their file in configs/datasets, without fdrd_
DOMAIN_FILES = {
    "Caltech101": "caltech101",
    "OxfordPets": "oxford_pets",
    "StanfordCars": "stanford_cars",
    "Flowers102": "oxford_flowers",
    "Food101": "food101",
    "FGVCAircraft": "fgvc_aircraft",
    "SUN397": "sun397",
    "DTD": "dtd",
    "UCF101": "ucf101",
}


@dataclass(frozen=True)
class Runs:
    """What the runs of one table share."""

    domain: str
    shots: int = 16
    cfg: str = ""
    root: str = "data"
    output: Path = Path("output")
    opts: tuple[str, ...] = ()
    epochs: int = 0
    imports: tuple[str, ...] = ()
    tag: str = ""

    @property
    def dataset(self) -> str:
        """File in configs/datasets, or captions of one's own as they are given.

        Raises:
            ValueError: unknown domain; lists them.
        """
        if is_own(self.domain):
            return self.domain
        name = self.domain if self.domain == "emoji" else DOMAIN_FILES.get(get_domain(self.domain).name)
        if name is None:
            raise ValueError(
                "domain custom has no configuration file: use train.py with DATASET.FDRD_TRAIN and DATASET.FDRD_TEST"
            )
        return f"fdrd_{name}"

    def job(self, trainer: str, seed: int, tag: str = "", opts: tuple[str, ...] = ()) -> Job:
        cfg = self.cfg or ("emoji_tiny" if self.domain == "emoji" else "vit_b32_fdrd")
        own = select(self.opts, trainer.upper())
        tag = "-".join(part for part in (self.tag, tag) if part)
        more = {"epochs": 0 if trainer == ZERO_SHOT else self.epochs, "imports": self.imports}
        return Job(trainer, self.dataset, seed, self.shots, cfg, self.root, self.output, tag, (*own, *opts), **more)

    def step(self, trainer: str, seed: int, tag: str = "", opts: tuple[str, ...] = ()) -> Step:
        """The run of one method (train and test both ways); zero-shot CLIP has no seed and no shots."""
        zero_shot = trainer == ZERO_SHOT
        job = self.job(trainer, 1 if zero_shot else seed, tag, opts)
        folder = self.output / "retrieval" / ("test_all" if zero_shot else "train_all") / job.folder
        if zero_shot:
            return eval_step(job, f"{trainer} on {data_name(self.domain)}", folder, None)
        return train_step(
            job, f"{trainer}{f' ({tag})' if tag else ''} on {data_name(self.domain)}, seed {seed}", folder
        )

    def evaluate(self, run: Step, trainer: str, seed: int, tag: str, opts: tuple[str, ...]) -> Step:
        """A finished run evaluated with other options."""
        job = self.job(trainer, seed, tag, opts)
        title = f"{trainer} ({tag}) on {data_name(self.domain)}, seed {seed}"
        return eval_step(job, title, self.output / "retrieval" / "test_all" / job.folder, run.output)


def compare(runs: Runs, seeds: Sequence[int], methods: Sequence[str]) -> dict[str, list[Step]]:
    """Steps of every row: method -> one run per seed."""
    return {METHODS[m]: [runs.step(m, s) for s in (seeds[:1] if m == ZERO_SHOT else seeds)] for m in methods}


def ablate(
    runs: Runs, seeds: Sequence[int], methods: Sequence[str] = (), families: Sequence[str] = ("parts",)
) -> dict[str, list[Step]]:
    """Steps of every row of the ablation: the full method, then those of the :data:`FAMILIES` asked for."""
    rows = {"DCAR": ABLATION["DCAR"]} | {name: row for family in families for name, row in FAMILIES[family].items()}
    steps = {name: [runs.step("DCAR", s, tag, opts) for s in seeds] for name, (tag, opts) in rows.items()}
    if "parts" not in families:
        return steps
    again = [runs.evaluate(run, "DCAR", s, BRANCH_TAG, PROMPT_BRANCH) for run, s in zip(steps["DCAR"], seeds)]
    first, *rest = steps.items()
    return dict([first, (BRANCH_ROW, again), *rest])


#: method -> column -> one number per seed
Values = dict[str, dict[str, list[float]]]


def values_of(steps_of: dict[str, list[Step]]) -> Values:
    """What the runs of a table measured; training recalls, categories and negatives are there where every run has them."""
    values = {}
    for name, steps in steps_of.items():
        results = [step.results() for step in steps]
        values[name] = {title: [r["test"][key] for r in results] for key, title in COLUMNS.items()}
        for key, title in CATEGORY_COLUMNS.items():
            found = [r["test"][key] for r in results if key in r["test"]]
            if len(found) == len(results):
                values[name][title] = found
        for way in ("on", "off"):
            found = [r["train"][key] for r in results if (key := f"mean_r1_weights_{way}") in r.get("train", {})]
            if len(found) == len(results):
                values[name][f"train R@1, weights {way}"] = found
    return values


def mean_over_domains(domains: Sequence[Values]) -> Values:
    """Unweighted mean of the domains for every seed, so that the deviation is that of the mean."""
    first = domains[0]
    return {
        method: {
            column: [statistics.mean(numbers) for numbers in zip(*(domain[method][column] for domain in domains))]
            for column in columns
            if all(column in domain[method] for domain in domains)
        }
        for method, columns in first.items()
    }


def rows_of(values: Values, second: bool = False) -> list[dict[str, str]]:
    """Cells as text: the mean over seeds, with the standard deviation where there are several.

    Args:
        values: what was measured. second: the columns of the second table, categories against attributes; none where no
            row has them.
    """
    of_second = CATEGORY_COLUMNS.values()
    columns = list(dict.fromkeys(c for row in values.values() for c in row if (c in of_second) == second))
    if not columns:
        return []
    return [
        {
            "method": name,
            "seeds": str(len(next(iter(row.values())))),
            **{column: str(Value.over(row[column])) if column in row else "" for column in columns},
        }
        for name, row in values.items()
    ]


def differences_of(values: Values, reference: str) -> list[dict[str, str]]:
    """Cells as text: the other methods minus ``reference``, seed by seed; zero-shot CLIP has no seeds to pair."""
    theirs, rows = values[reference], []
    for name, row in values.items():
        if name not in (reference, METHODS[ZERO_SHOT]):
            pairs = {c: [dict(enumerate(side[c])) for side in (row, theirs)] for c in COLUMNS.values()}
            count = len(next(iter(row.values())))
            rows.append({"method": name, "seeds": str(count), **{c: str(paired(*pair)) for c, pair in pairs.items()}})
    return rows


def run_domains(tables: dict[str, dict[str, list[Step]]], args) -> tuple[dict[str, Values], dict[str, Exception]]:
    """Run the domains one after the other; returns what each measured, and why others failed.

    All are looked at before the first one starts: what one lacks is said before hours of another.
    """
    finished, failed = {}, {}
    steps = {domain: [step for row in steps_of.values() for step in row] for domain, steps_of in tables.items()}
    look = partial(check, force=args.force)
    for work in (look, partial(execute, force=args.force, quiet=args.quiet)):
        for domain in [domain for domain in tables if domain not in failed]:
            try:
                work(steps[domain])
                if work is not look:
                    finished[domain] = values_of(tables[domain])
            except (StepFailed, ValueError, FileNotFoundError) as error:
                print(f"error: {domain}: {error}", file=sys.stderr)
                failed[domain] = error
    return finished, failed


def report(finished: dict[str, Values]) -> str:
    """Two tables per domain and, from two domains on, of their mean; below each the differences to DCAR."""
    parts = [(domain, values) for domain, values in finished.items()]
    if len(parts) > 1:
        named = f"mean of {len(parts)} domains, unweighted: {', '.join(finished)}"
        parts.append((named, mean_over_domains(list(finished.values()))))
    texts = []
    for title, values in parts:
        texts += [title, table(rows_of(values))]
        if categories := rows_of(values, second=True):
            texts += [f"{title}: categories against attributes", table(categories)]
        differences = differences_of(values, METHODS["DCAR"]) if METHODS["DCAR"] in values else []
        if differences:
            texts += [f"{title}: minus DCAR, seed by seed", table(differences)]
    return "\n\n".join(texts)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.run.captions",
        description=__doc__.split("\n\n")[1],
        epilog=(
            "Exit codes: 0 done, 1 a run failed, 2 wrong input. KEY VALUE pairs after -- go to every run they concern."
        ),
    )
    p.add_argument("command", choices=("compare", "ablate"))
    p.add_argument(
        "--domain", nargs="+", required=True, help="of FDRD's nine domains, or emoji (embedded); one or several"
    )
    p.add_argument("--seed", type=int, nargs="+", default=[1], help="one or several seeds (default 1)")
    p.add_argument("--shots", type=int, default=16, help="training pairs per class (default 16)")
    p.add_argument(
        "--rows", nargs="+", default=["parts"], choices=FAMILIES, help="ablate: families of rows (default parts)"
    )
    p.add_argument("--tag", default="", help="suffix that keeps a variant's folders apart")
    p.add_argument("--method", nargs="+", default=list(METHODS), choices=METHODS, help="compare: methods (default all)")
    p.add_argument(
        "--cfg",
        default="",
        help="file in configs/trainers/<trainer> (default vit_b32_fdrd; emoji_tiny for emoji)",
    )
    add_places(p)
    p.add_argument("--quiet", action="store_true", help="what the runs print goes to console.txt in their folders")
    return p


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    at = argv.index("--") if "--" in argv else len(argv)
    args, opts = parser().parse_args(argv[:at]), tuple(argv[at + 1 :])
    try:
        methods = args.method if args.command == "compare" else ["DCAR"]
        check_options(opts, {method: method.upper() for method in methods})
        build = compare if args.command == "compare" else partial(ablate, families=args.rows)
        tables = {
            domain: build(
                Runs(domain, args.shots, args.cfg, args.root, args.output, opts, tag=args.tag), args.seed, args.method
            )
            for domain in args.domain
        }
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    finished, failed = run_domains(tables, args)
    if finished:
        text = report(finished)
        print(f"\n{args.shots} shots, seeds {' '.join(map(str, args.seed))}\n\n{text}")
        if args.write:
            try:
                write(args, argv, text, list(failed))
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
    if failed and len(tables) > 1:
        print(f"error: {len(failed)} of {len(tables)} domains failed:", file=sys.stderr)
        for domain, error in failed.items():
            print(f"  {domain}: {error}", file=sys.stderr)
        return 1
    return 0 if not failed else 1 if isinstance(next(iter(failed.values())), StepFailed) else 2


def write(args, argv: Sequence[str], text: str, failed: Sequence[str]) -> None:
    """Write the tables into the page ``--write``.

    Raises:
        ValueError: the markers of the page do not fit.
    """
    families = [] if args.rows == ["parts"] else args.rows
    words = " ".join([args.command, *args.domain, *families, *filter(None, [args.tag])])
    title = f"Image-text retrieval: {words}, {args.shots} shots, seeds {' '.join(map(str, args.seed))}"
    lacking = f"\n\nNot finished: {', '.join(failed)}." if failed else ""
    command = f"python -m dassl_prompts.run.captions {shlex.join(argv)}"
    write_page(args.write, f"run.retrieval {words}", title, command, text + lacking)


if __name__ == "__main__":
    raise SystemExit(main())
