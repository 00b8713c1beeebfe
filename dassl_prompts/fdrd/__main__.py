"""``python -m dassl_prompts.fdrd check FILE ...`` and ``python -m dassl_prompts.fdrd build ...``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from dassl_prompts.captions.records import FDRDError
from dassl_prompts.engine.ending import tell
from dassl_prompts.engine.reading import read_csv
from dassl_prompts.fdrd.domains import get_domain


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.fdrd", description="Check or build FDRD files (one caption per image)."
    )
    commands = p.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="report what is wrong with FDRD files",
        description=(
            "Counts every defect that the released files are known to have. Exit code 1 if a file or record "
            "cannot be used."
        ),
    )
    check.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="JSON files; two files (train test) are also compared with each other",
    )
    check.add_argument("--domain", default="", help="FDRD domain, where the file name does not tell")
    check.add_argument("--root", default="", help="dataset root: also look for the images")
    check.add_argument("--json", action="store_true", help="print JSON instead of a table")

    build = commands.add_parser(
        "build",
        help="make an FDRD file for any dataset",
        description=(
            "Captions come from a file of ready ones (--captions), a Python function (--captioner), or, to "
            "try things out, from image "
            "statistics (--captions statistics). No model is downloaded."
        ),
    )
    source = build.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", help="a registered dataset, e.g. DescribableTextures (train and val become one)")
    source.add_argument(
        "--csv",
        type=Path,
        help="CSV with the columns path, class, split (train or test); paths relative to --root",
    )
    build.add_argument("--root", required=True, help="dataset root; paths in the file are relative to it")
    texts = build.add_mutually_exclusive_group(required=True)
    texts.add_argument("--captions", help='JSON lines {"path": ..., "caption": ...}, or the word statistics')
    texts.add_argument(
        "--captioner",
        help="module:function that takes a dassl_prompts.fdrd.captioners.Request and returns a string",
    )
    build.add_argument(
        "--output",
        type=Path,
        required=True,
        help="folder for <name>_train.json, <name>_test.json, <name>_rejected.jsonl",
    )
    build.add_argument("--name", default="", help="name of the files; default the dataset's")
    build.add_argument("--n-ctx", type=int, default=4, help="prompt tokens to keep room for (default 4)")
    build.add_argument("--negatives", default="both", choices=("none", "swap", "attr", "both"))
    build.add_argument("--meta", type=Path, help="JSON {class: meta-category}: class swaps stay inside a meta-category")
    build.add_argument(
        "--min-clip-percentile",
        type=float,
        default=0.0,
        help="reject captions below this percentile of CLIP scores",
    )
    build.add_argument("--backbone", default="ViT-B/32", help="CLIP for --min-clip-percentile (default ViT-B/32)")
    build.add_argument(
        "--activation",
        default="",
        choices=("quickgelu", "gelu"),
        help="of a weight file as --backbone, where nothing tells it",
    )
    build.add_argument("--seed", type=int, default=1, help="seed of the negatives")
    build.add_argument("--force", action="store_true", help="replace existing files")
    return p


# -- check ---------------------------------------------------------------------------------------------------


def run_check(args) -> int:
    from dassl_prompts.fdrd.check import check_file, check_pair

    domain = get_domain(args.domain) if args.domain else None
    reports = {path: check_file(path, domain, args.root) for path in args.files}
    if len(args.files) == 2:
        reports["both files"] = check_pair(*args.files)
    if args.json:
        print(json.dumps(reports, indent=1))
    else:
        print(check_table(reports))
    return int(any(report.get("unusable records") for report in reports.values()))


def check_table(reports: dict[str, dict]) -> str:
    from tabulate import tabulate

    lines = []
    for path, report in reports.items():
        rows = [(name, value) for name, value in report.items() if not name.startswith("reasons")]
        lines.append(f"{path}\n{tabulate(rows, tablefmt='plain', disable_numparse=True)}")
        for name in ("reasons", "reasons (images)"):
            reasons = report.get(name, [])
            lines += [f"  {reason}" for reason in reasons[:10]]
            if len(reasons) > 10:
                lines.append(f"  ... and {len(reasons) - 10} more (--json lists all)")
    return "\n".join(lines)


# -- build ---------------------------------------------------------------------------------------------------


def items_from_csv(path: Path, root: str) -> list:
    """Raises ValueError when a column or an image is missing, or a split is neither train nor test."""
    from dassl_prompts.fdrd.build import Item
    from dassl_prompts.images import missing_images

    items, lines = [], {}
    for number, row in read_csv(path, ("path", "class", "split")):
        if row["split"] not in ("train", "test") or not row["path"] or not row["class"]:
            raise ValueError(f"{path}, line {number}: expected a path, a class and the split train or test, got {row}")
        relative = row["path"].replace("\\", "/")
        items.append(Item(os.path.join(root, relative), relative, row["class"], row["split"]))
        lines[items[-1].path] = number
    missing = missing_images(lines)
    if missing:
        named = "".join(f"\n  line {lines[image]}: {image}" for image in missing[:5])
        more = f"\n  ... and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        raise ValueError(
            f"{path}: {len(missing):,} of {len(lines):,} images do not exist below --root {root}:{named}{more}"
        )
    return items


def items_from_dataset(name: str, root: str) -> list:
    """All images of a registered dataset; train and val become train, as in FDRD."""
    from dassl_prompts import extend_cfg
    from dassl_prompts.engine import build_dataset, get_cfg_default, merge_opts
    from dassl_prompts.fdrd.build import Item

    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_opts(cfg, ["DATASET.NAME", name, "DATASET.ROOT", root, "DATASET.NUM_SHOTS", -1, "VERBOSE", False])
    dataset = build_dataset(cfg)
    parts = (("train", [*dataset.train_x, *(dataset.val or [])]), ("test", dataset.test))
    return [Item(d.impath, path_in_file(d.impath, root), d.classname, split) for split, part in parts for d in part]


def path_in_file(impath: str, root: str) -> str:
    """How an image is written into a file: relative to the root, absolute where it lies outside (embedded data).

    The reader refuses paths that climb out of the root.
    """
    from dassl_prompts.classification.split_files import relative_path

    folder = os.path.join(os.path.abspath(os.path.expanduser(root)), "")
    return relative_path(impath, folder) if impath.startswith(folder) else impath.replace(os.sep, "/")


def clip_scores(built, items, backbone: str, activation: str = "") -> dict[str, float]:
    """Cosine of every accepted caption with its image, by the record's key."""
    import torch

    from dassl_prompts.captions.features import encode_image_files, encode_texts
    from dassl_prompts.models import load_clip

    device = "cuda" if torch.cuda.is_available() else "cpu"
    clip = load_clip(backbone, device=device, activation=activation, key="--activation")
    path = {item.relative: item.path for item in items}
    records = {key: record for split in built.splits.values() for key, record in split.items()}
    images = encode_image_files(clip, [path[key] for key in records])
    texts = encode_texts(clip, [record["positive"] for record in records.values()])
    return dict(zip(records, (images * texts).sum(1).tolist()))


def run_build(args) -> int:
    from dassl_prompts.engine import read_json
    from dassl_prompts.engine.files import atomic_path
    from dassl_prompts.fdrd.build import add_negatives, build, drop_low_scores
    from dassl_prompts.fdrd.captioners import CaptionFile, describe_statistics, load_function

    name = args.name or args.dataset or args.csv.stem
    targets = {split: args.output / f"{name}_{split}.json" for split in ("train", "test")}
    there = [str(path) for path in targets.values() if path.exists()]
    if there and not args.force:
        raise FileExistsError(f"{', '.join(there)} exist already: choose another --name or --output, or give --force")
    items = items_from_csv(args.csv, args.root) if args.csv else items_from_dataset(args.dataset, args.root)
    captioner = (
        load_function(args.captioner)
        if args.captioner
        else describe_statistics
        if args.captions == "statistics"
        else CaptionFile(args.captions, [item.relative for item in items])
    )
    built = build(items, captioner, args.dataset or name, n_ctx=args.n_ctx)
    if args.min_clip_percentile > 0:
        drop_low_scores(built, clip_scores(built, items, args.backbone, args.activation), args.min_clip_percentile)
    add_negatives(built, args.negatives, read_json(args.meta, dict) if args.meta else None, args.seed)
    for split, records in built.splits.items():
        with atomic_path(targets[split]) as temporary:
            temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {targets[split]}: {len(records)} records")
    for note, count in built.notes.items():
        if count:
            print(f"{note}: {count}")
    if built.rejected:
        path = args.output / f"{name}_rejected.jsonl"
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in built.rejected), encoding="utf-8")
        print(f"rejected: {len(built.rejected)} images, listed with reasons in {path}")
    print(
        f"use them with DATASET.NAME FDRD DATASET.FDRD_DOMAIN custom DATASET.FDRD_TRAIN {targets['train']} "
        f"DATASET.FDRD_TEST {targets['test']}"
    )
    return 0


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    try:
        return run_check(args) if args.command == "check" else run_build(args)
    except FDRDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)


def check_command() -> int:
    """``fdrd-check FILE...``."""
    return main(["check", *sys.argv[1:]])


def build_command() -> int:
    """``fdrd-build ...``."""
    return main(["build", *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
