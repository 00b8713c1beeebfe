"""``python -m dassl_prompts.prepare``: get datasets into CoOp's layout, or check what is there."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dassl_prompts.prepare.errors import ByHandError, CheckError, PrepareError
from dassl_prompts.prepare.fetch import prepare
from dassl_prompts.prepare.links import CoopPage
from dassl_prompts.prepare.sources import COOP_PAGE, GUIDES, SOURCES

EPILOG = """\
examples:
  get two datasets:             python -m dassl_prompts.prepare Caltech101 EuroSAT --root /data
  examine all fifteen:          python -m dassl_prompts.prepare all --root /data --check
  ... without reading images:   python -m dassl_prompts.prepare all --root /data --check --fast
  examine retrieval data:       python -m dassl_prompts.prepare CIRR FDRD --root /data --check
  what there is, from where:    python -m dassl_prompts.prepare --list

What no program may fetch is named with its address and the place to put it; run the same command again
afterwards. Interrupted downloads continue where they stopped. Files that are there already are never changed.

exit codes:
  0 everything is ready          3 something has to be fetched by hand     6 disk full
  1 another failure              4 a download failed                       7 damaged or unsafe archive
  2 wrong use of the command     5 wrong checksum                          8 a check found problems
  130 interrupted                of several failures, the first one's code
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.prepare",
        description="Get datasets, lay them out as CoOp's code expects them, and check them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "datasets",
        nargs="*",
        metavar="DATASET",
        help="names as in the configurations (Caltech101 or caltech101), or `all`",
    )
    p.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DATA", "data")),
        metavar="DATA",
        help="folder that holds the dataset folders (default: $DATA, else ./data)",
    )
    p.add_argument("--check", action="store_true", help="fetch nothing, only examine what is there")
    p.add_argument("--fast", action="store_true", help="with --check: do not read the images, only look for them")
    p.add_argument("--list", action="store_true", help="list the datasets and their sources")
    p.add_argument("--keep-archives", action="store_true", help="keep downloaded archives after unpacking")
    p.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that read images (default: all cores)"
    )
    p.add_argument(
        "--coop-page",
        default=COOP_PAGE,
        metavar="URL",
        help="page or local file with the links to CoOp's split files (default: %(default)s)",
    )
    return p


def known_names() -> dict[str, str]:
    """Every accepted spelling, lower-cased -> registered name."""
    from dassl_prompts.prepare.check import dataset_classes

    classes = dataset_classes()
    names = {}
    for name, cls in classes.items():
        # the embedded data needs no source
        if name in SOURCES or name in GUIDES or issubclass(cls, classes["Emoji"]):
            names[name.lower()] = name
            names.setdefault(cls.__module__.rpartition(".")[2], name)  # as the configuration files are called
    return names


def resolve(parser: argparse.ArgumentParser, given: list[str]) -> list[str]:
    known = known_names()
    chosen: dict[str, None] = {}
    for word in given:
        if word.lower() == "all":
            chosen |= dict.fromkeys(SOURCES)
        elif word.lower() in known:
            chosen[known[word.lower()]] = None
        else:
            parser.error(f"unknown dataset {word!r}; known are {', '.join(sorted(set(known.values())))} and `all`")
    return list(chosen)


def print_list() -> None:
    for name, source in SOURCES.items():
        print(f"{name}  ->  <root>/{source.folder}")
        for file in source.files:
            where = ", or ".join(file.urls) or (
                "linked from CoOp's page" if file.on_coop_page else f"BY HAND: {file.by_hand}"
            )
            print(f"    {file.name}: {where}")
    for name, guide in GUIDES.items():
        print(f"{name}  BY HAND\n    " + guide.replace("\n", "\n    "))
    print("Emoji is part of the package: nothing to get")


def handle(name: str, args: argparse.Namespace, page: CoopPage) -> None:
    """Get (unless --check) and check one dataset; prints its summary line."""
    if name in GUIDES:
        return handle_retrieval(name, args)
    if not args.check and name in SOURCES:
        prepare(name, args.root, page, args.keep_archives)
    from dassl_prompts.prepare.check import check

    report = check(name, args.root, decode=args.check and not args.fast, workers=args.workers)
    print("\n  note: ".join([report.summary(), *report.notes]))
    if report.problems:
        raise CheckError("\n".join(report.problems))


def handle_retrieval(name: str, args: argparse.Namespace) -> None:
    """Captioned images and triplets: told how to get, and checked by the reports of their own."""
    if not args.check:
        raise ByHandError(GUIDES[name])
    if name == "FDRD":
        return handle_fdrd(args.root)
    from dassl_prompts.composed import data_report as cir_report

    if cir_report.main([name, "--root", str(args.root), *([] if args.fast else ["--read"])]):
        raise CheckError(f"see the report above; what has to be where:\n{GUIDES[name]}")


def handle_fdrd(root: Path) -> None:
    """A summary line per domain that is there; `python -m dassl_prompts.fdrd check` tells more of a file."""
    from dassl_prompts.prepare.check import check_fdrd

    reports = check_fdrd(root)
    if not reports:
        raise ByHandError(GUIDES["FDRD"])
    for report in reports:
        print(report.summary())
    problems = [f"{report.name}: {line}" for report in reports for line in report.problems]
    if problems:
        raise CheckError("\n".join(problems))


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    p = parser()
    args = p.parse_args(argv)
    if args.list:
        print_list()
        return 0
    if not args.datasets:
        p.error("name a dataset, `all`, or --list")
    if args.fast and not args.check:
        p.error("--fast belongs to --check")
    if "://" not in args.coop_page and not os.path.isfile(args.coop_page):
        p.error(f"--coop-page: {args.coop_page} is neither an address nor a file")
    names = resolve(p, args.datasets)
    args.root = args.root.expanduser().absolute()
    page = CoopPage(args.root, args.coop_page)
    codes = []
    for name in names:
        try:
            handle(name, args, page)
        except PrepareError as error:
            codes.append(error.exit_code)
            label = "still to do" if error.exit_code == 3 else "problem"
            print(f"{name}: {label}\n  " + str(error).replace("\n", "\n  "), file=sys.stderr)
        except OSError as error:
            codes.append(1)
            print(f"{name}: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted; run the same command again to continue", file=sys.stderr)
            return 130
    if codes and len(names) > 1:
        print(f"{len(names) - len(codes)} of {len(names)} datasets are ready", file=sys.stderr)
    return codes[0] if codes else 0


if __name__ == "__main__":
    sys.exit(main())
