"""``python -m dassl_prompts.report OUTPUT``: tables, published numbers, missing runs, plots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dassl_prompts.engine.ending import tell
from dassl_prompts.engine.files import atomic_path, require_file_writable, require_writable
from dassl_prompts.results.groups import group
from dassl_prompts.results.long_form import long_form
from dassl_prompts.results.notes import sections
from dassl_prompts.results.runs import Run, find_runs
from dassl_prompts.results.statistics import intervals
from dassl_prompts.results.tables import FORMATS, tables
from dassl_prompts.run.pages import replace_part

EPILOG = """\
Every run below OUTPUT that has a results.json is read. Values are the mean over seeds and the sample standard
deviation; HM is the harmonic mean of the two means. Runs are averaged only when nothing but the seed differs;
others get rows of their own, marked [2], [3], and a line that says in what they differ. Published numbers
stand next to runs of the same method, backbone and shots; their sources are named below the table.

examples:
  python -m dassl_prompts.report output
  python -m dassl_prompts.report output --format latex --trainer CoOp DPC_CoOp > table.tex
  python -m dassl_prompts.report output --plots output/plots --seeds 1 2 3
  python -m dassl_prompts.report output --errors output/errors --trainer CoOp DPC_CoOp

exit codes: 0 tables printed, 1 no finished run found, 2 wrong input
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.report",
        description="Tables and plots of all runs in a folder, with published numbers and missing runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("output", metavar="OUTPUT", help="folder with runs, at any depth")
    p.add_argument(
        "--format",
        choices=[*FORMATS, "csv"],
        default="console",
        help="how the tables are written (default console); csv is for programs: a line per number with mean, std and n",
    )
    p.add_argument("--write", type=Path, metavar="FILE", help="write the tables to a file instead of the screen")
    p.add_argument("--plots", type=Path, metavar="DIR", help="draw the plots into this folder (PNG)")
    p.add_argument(
        "--errors",
        type=Path,
        metavar="DIR",
        help="write a page on the errors: worst classes, confusion, mistakes, calibration, pairs of runs (picks with --trainer, --dataset)",
    )
    p.add_argument(
        "--ci95", action="store_true", help="95 %% confidence intervals of the mean over seeds beside the deviation"
    )
    p.add_argument("--trainer", nargs="+", metavar="NAME", help="only these methods")
    p.add_argument("--dataset", nargs="+", metavar="NAME", help="only these datasets, by the names in the tables")
    p.add_argument("--shots", type=int, nargs="+", metavar="N", help="only these numbers of shots")
    p.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="seeds that every method should have (default: all that occur); others are listed as missing",
    )
    p.add_argument(
        "--join",
        nargs="+",
        default=[],
        metavar="RECIPE",
        help="recipes that count as one, e.g. vit_b16_ep20 and vit_b16_ep10_bs2top2, made for one dataset",
    )
    return p


def chosen(runs: list[Run], args: argparse.Namespace) -> list[Run]:
    """The runs that the filters let through.

    Raises:
        ValueError: a filter names something that no run has.
    """
    for name, wanted in (("trainer", args.trainer), ("dataset", args.dataset), ("shots", args.shots)):
        if wanted:
            have = sorted({getattr(run, name) for run in runs})
            unknown = [value for value in wanted if value not in have]
            if unknown:
                raise ValueError(f"no run has --{name} {unknown[0]}; there are {', '.join(map(str, have))}")
            runs = [run for run in runs if getattr(run, name) in wanted]
    return runs


def notes_text(notes: dict[str, list[str]], form: str) -> str:
    if form == "markdown":
        return "\n".join(
            f"### {heading}\n\n" + "\n".join(f"- {line}" for line in lines) + "\n" for heading, lines in notes.items()
        )
    mark = "% " if form == "latex" else ""
    return "\n".join(
        f"{mark}{heading}:\n" + "\n".join(f"{mark}  {line}" for line in lines) for heading, lines in notes.items()
    )


def write_text(path: Path, text: str, form: str) -> None:
    """A new file, or in Markdown the part "report" of a page that marks it (dassl_prompts/run/pages.py).

    Raises:
        ValueError: the markers of the page do not fit.
    """
    page = None
    if form == "markdown" and path.is_file():
        try:
            page = replace_part(path.read_text(encoding="utf-8"), "report", text)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    with atomic_path(path) as temporary:
        temporary.write_text(text if page is None else page, encoding="utf-8")


def run(args: argparse.Namespace) -> int:
    if args.write:
        require_file_writable(args.write, "--write")
    if args.plots:
        require_writable(args.plots, "folder of --plots", "give another one with --plots")
    if args.errors:
        require_writable(args.errors, "folder of --errors", "give another one with --errors")
    runs, unfinished = find_runs(args.output)
    if not runs:
        print(f"error: no finished run below {args.output}", file=sys.stderr)
        for one in unfinished:
            print(f"  {one.folder}: {one.why}", file=sys.stderr)
        return 1
    runs = chosen(runs, args)
    methods = group(runs, args.join)
    notes = notes_text(sections(methods, runs, unfinished, args.seeds), args.format)
    if args.format == "csv":  # a program takes no prose
        text = long_form(methods)
        print(notes, end="\n" if notes else "", file=sys.stderr)
    else:
        with intervals(args.ci95):
            text = "\n".join(table.text(args.format) for table in tables(methods))
        text = f"{text}\n{notes}".rstrip() + "\n"
    if args.write:
        write_text(args.write, text, args.format)
        print(f"wrote {args.write}")
    else:
        print(text, end="")
    if args.plots:
        from dassl_prompts.report.plots import draw_all

        for path in draw_all(methods, args.plots):
            print(f"plot: {path}", file=sys.stderr if args.format == "csv" else sys.stdout)
    if args.errors:
        from dassl_prompts.report.errors import write_errors

        for path in write_errors(runs, args.errors):
            print(f"errors: {path}", file=sys.stderr if args.format == "csv" else sys.stdout)
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return run(args)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)


if __name__ == "__main__":
    raise SystemExit(main())
