"""``python -m dassl_prompts.composed.data_report CIRR FashionIQ LaionCIR CIRCO --root DATA``: are the
composed-retrieval data whole?

Counts queries, images and their defects per split, finds missing and (with ``--read``) unreadable images
before a run does.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from dassl_prompts.composed.facts import FACTS, facts_table
from dassl_prompts.composed.triplets import NoImages, NoQueries, RetrievalTask, Triplet, TripletDataset
from dassl_prompts.engine.ending import tell
from dassl_prompts.images import ImageReadError, missing_images, read_image

SHOWN = 5
#: title, counts, paths of the images
Part = tuple[str, dict[str, int], Iterable[str]]


def caption_defects(captions: Sequence[str]) -> dict[str, int]:
    return {
        "empty captions": sum(not c.strip() for c in captions),
        "double spaces": sum("  " in c for c in captions),
        "longest caption (words)": max((len(c.split()) for c in captions), default=0),
    }


def describe_triplets(triplets: Sequence[Triplet]) -> dict[str, int]:
    """Counts of a training set."""
    references, targets = {t.reference for t in triplets}, Counter(t.target for t in triplets)
    return {
        "triplets": len(triplets),
        "references": len(references),
        "targets": len(targets),
        "images": len(references | set(targets)),
        "triplets of the most frequent target": max(targets.values(), default=0),
        **caption_defects([t.caption for t in triplets]),
    }


def describe_task(task: RetrievalTask) -> dict[str, int]:
    """Counts of a set of queries and its gallery."""
    return {
        "queries": len(task.queries),
        "gallery images": len(task.gallery),
        "references": len({q.reference for q in task.queries}),
        "queries without a target": sum(q.target is None for q in task.queries),
        **({"targets": sum(len(q.targets) for q in task.queries)} if any(q.targets for q in task.queries) else {}),
        **caption_defects([q.texts[0] for q in task.queries]),
    }


def image_defects(paths: Iterable[str], read: bool) -> dict[str, list[str]]:
    """Missing images and, when they are to be read, unreadable ones."""
    paths = list(dict.fromkeys(paths))
    missing = missing_images(paths)
    defects = {"missing": missing}
    if read:
        gone = set(missing)
        defects["unreadable"] = [path for path in paths if path not in gone and not readable(path)]
    return defects


def readable(path: str) -> bool:
    try:
        read_image(path)
    except ImageReadError:
        return False
    return True


def id_types(dataset: TripletDataset) -> dict[str, int]:
    """How the ids of Laion-CIR are written: some are numbers, most are strings."""
    if not hasattr(dataset, "files"):
        return {}
    types: Counter = Counter()
    for file in dataset.files:
        content = dataset.read(file)
        entries = content.values() if isinstance(content, dict) else content
        types.update(type(entry["tgt_image_id"]).__name__ for entry in entries)
    return {f"target ids of type {name}": count for name, count in sorted(types.items())}


def half_empty(dataset: TripletDataset, split: str, *categories: str) -> dict[str, int]:
    """FashionIQ's pairs of captions with an empty one; with the other one they make no empty text."""
    if not hasattr(dataset, "half_empty"):
        return {}
    count = sum(dataset.half_empty(category, split) for category in categories)
    return {"pairs of captions with an empty one": count}


def report(dataset: TripletDataset, read: bool) -> int:
    """Print the report of one dataset; returns the number of defects: images, and parts that cannot be
    read. Without any image folder the annotations are still counted."""
    parts: list[Part] = []
    problems = 0
    for title, collect in (
        ("train", lambda: triplet_part(dataset)),
        ("val", lambda: task_parts(dataset, "val")),
        ("test", lambda: task_parts(dataset, "test")),
    ):
        try:
            found, lacking = with_or_without_images(dataset, collect)
            parts += found
            problems += lacking
        except NoQueries:
            continue
        except (FileNotFoundError, ValueError) as error:  # also queries that do not fit their gallery
            problems += 1
            print(f"{title}: {error}")
    for title, counts, paths in parts:
        print(f"{title}: " + ", ".join(f"{value:,} {key}" for key, value in counts.items()))
        for kind, defects in image_defects(paths, read).items():
            problems += len(defects)
            names = "".join(f"\n    {path}" for path in defects[:SHOWN])
            more = f"\n    ... and {len(defects) - SHOWN:,} more" if len(defects) > SHOWN else ""
            print(f"  {kind} images: {len(defects):,}{names}{more}")
    return problems


def with_or_without_images(dataset: TripletDataset, collect: Callable[[], list[Part]]) -> tuple[list[Part], int]:
    """What ``collect`` finds, and whether there is no folder of images (1, after a word about it) or there is (0)."""
    try:
        return collect(), 0
    except NoImages as error:
        print(error)
    dataset.images_optional = True
    try:
        return collect(), 1
    finally:
        dataset.images_optional = False


def triplet_part(dataset: TripletDataset) -> list[Part]:
    triplets = dataset.read_triplets()
    if not triplets:
        return []
    gaps = half_empty(dataset, "train", *dataset.cfg.CIR.FIQ_CATEGORIES)
    counts = {**describe_triplets(triplets), **gaps, **id_types(dataset)}
    return [("train", counts, [path for t in triplets for path in (t.reference, t.target)])]


def task_parts(dataset: TripletDataset, split: str) -> list[Part]:
    return [
        (task.name, {**describe_task(task), **half_empty(dataset, split, task.name.split()[1])}, task.gallery.values())
        for task in dataset.tasks(split)
    ]


def main(argv: list[str] | None = None) -> int:
    from dassl_prompts import extend_cfg
    from dassl_prompts.engine import DATASET_REGISTRY, get_cfg_default, merge_opts

    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.composed.data_report",
        description="Check composed-retrieval data: counts, captions, missing and unreadable images.",
        epilog="Exit codes: 0 whole, 1 defects found, 2 wrong input.",
    )
    p.add_argument("datasets", nargs="+", choices=list(FACTS), help="which datasets")
    p.add_argument("--root", default="data", type=Path, help="folder that holds the datasets (default ./data)")
    p.add_argument("--read", action="store_true", help="also decode every image (minutes)")
    p.add_argument("--facts", action="store_true", help="only a table of facts that bound results, for the docs")
    p.add_argument("--opts", nargs="+", default=[], help="KEY VALUE pairs, e.g. CIR.LAION_SET template")
    args = p.parse_args(argv)
    cfg = get_cfg_default()
    extend_cfg(cfg)
    try:
        merge_opts(cfg, ["DATASET.ROOT", str(args.root), *args.opts])
        if args.facts:
            print(facts_table({name: DATASET_REGISTRY.get(name)(cfg) for name in args.datasets}))
            return 0
        problems = 0
        for name in args.datasets:
            print(f"== {name}")
            problems += report(DATASET_REGISTRY.get(name)(cfg), args.read)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
