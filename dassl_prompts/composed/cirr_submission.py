"""Submission files for CIRR's test server (cirr.cecs.anu.edu.au), checked before they are written.

``python -m dassl_prompts.composed.cirr_submission FILE... --root DATA`` checks files that exist already.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from torch import Tensor

from dassl_prompts.composed.metrics import best, best_members
from dassl_prompts.composed.triplets import RetrievalTask
from dassl_prompts.engine.ending import tell
from dassl_prompts.engine.files import atomic_path, require_writable
from dassl_prompts.engine.reading import read_json

VERSION = "rc2"
LENGTHS = {"recall": 50, "recall_subset": 3}
MAX_BYTES = 5_000_000  # the server's limit of 5 MB
MAX_SHOWN = 3


def build(task: RetrievalTask, queries: Tensor, gallery: Tensor) -> dict[str, dict]:
    """``{"recall": ..., "recall_subset": ...}``, the two objects that the server takes.

    Args:
        queries: [Q, d]. gallery: [G, d]; both L2-normalised, rows in the task's order.
    """
    lists = {
        "recall": best(task, queries, gallery, LENGTHS["recall"]),
        "recall_subset": best_members(task, queries, gallery, LENGTHS["recall_subset"]),
    }
    return {
        metric: {"version": VERSION, "metric": metric, **{q.id: row for q, row in zip(task.queries, rows)}}
        for metric, rows in lists.items()
    }


def serialise(submission: dict) -> bytes:
    return json.dumps(submission, separators=(",", ":")).encode()


def problems(submission: dict, task: RetrievalTask, size: int | None = None) -> list[str]:
    """What the server (or the metric) would not accept, one line each; empty when the submission is fine.

    Args:
        size: bytes of the file that holds it; None = as :func:`write` writes it.
    """
    if not isinstance(submission, dict):
        return ["the file is not a JSON object"]
    metric = submission.get("metric")
    if metric not in LENGTHS:
        return [f'"metric" is {metric!r}, not one of {", ".join(LENGTHS)}']
    found = (
        [] if submission.get("version") == VERSION else [f'"version" is {submission.get("version")!r}, not {VERSION!r}']
    )
    queries = {query.id: query for query in task.queries}
    given = set(submission) - {"version", "metric"}
    for what, keys in (("missing", set(queries) - given), ("unknown", given - set(queries))):
        if keys:
            found.append(f"{len(keys)} {what} pair ids, such as {', '.join(sorted(keys)[:MAX_SHOWN])}")
    length = min(LENGTHS[metric], len(task.gallery) - 1)
    for key in sorted(given & set(queries)):
        fault = list_fault(submission[key], queries[key], task, metric, length)
        if fault:
            found.append(f"pair {key}: {fault}")
    size = len(serialise(submission)) if size is None else size
    if size > MAX_BYTES:
        found.append(f"{size:,} bytes, the server takes {MAX_BYTES:,}")
    return found


def list_fault(names, query, task: RetrievalTask, metric: str, length: int) -> str:
    """What is wrong with one list, or ""."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "not a list of image names"
    if len(names) != length:
        return f"{len(names)} names instead of {length}"
    if len(set(names)) != len(names):
        return "a name occurs twice"
    if query.reference in names:
        return f"contains its own reference {query.reference}"
    allowed, where = (query.members, "its image set") if metric == "recall_subset" else (task.index, "the gallery")
    strange = [name for name in names if name not in allowed]
    return f"{strange[0]} is not in {where}" if strange else ""


def check(submission: dict, task: RetrievalTask, source: str = "submission") -> None:
    """Raise ValueError with the first problems, if there are any."""
    found = problems(submission, task)
    if found:
        more = f"\n  ... and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
        raise ValueError(f"{source} is not valid for {task.name}:\n  " + "\n  ".join(found[:MAX_SHOWN]) + more)


def write(task: RetrievalTask, queries: Tensor, gallery: Tensor, folder: str | Path, name: str) -> list[Path]:
    """Rank, check, and write ``cirr_<name>_recall.json`` and ``cirr_<name>_recall_subset.json`` into ``folder``.

    Args:
        name: of the method and, where it asks in several ways, the query; every pair of files needs its own.

    Raises:
        ValueError: a file would not be accepted; nothing is written then.
    """
    require_writable(folder)
    submissions = build(task, queries, gallery)
    for submission in submissions.values():
        check(submission, task)
    paths = []
    for metric, submission in submissions.items():
        path = Path(folder) / f"cirr_{slug(name)}_{metric}.json"
        with atomic_path(path) as temporary:
            temporary.write_bytes(serialise(submission))
        paths.append(path)
    return paths


def slug(name: str) -> str:
    """``ZeroshotCIR image+text, normalised`` -> ``ZeroshotCIR-image+text-normalised``."""
    return re.sub(r"[^\w.+]+", "-", name).strip("-")


def main(argv: list[str] | None = None) -> int:
    from dassl_prompts import extend_cfg
    from dassl_prompts.engine import DATASET_REGISTRY, get_cfg_default, merge_opts

    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.composed.cirr_submission",
        description="Check submission files against the CIRR annotations before uploading them.",
        epilog="Exit codes: 0 all files are fine, 1 a file is not, 2 wrong input.",
    )
    p.add_argument("files", nargs="+", type=Path)
    p.add_argument("--root", default="data", help="folder that holds cirr/ (default ./data)")
    args = p.parse_args(argv)
    cfg = get_cfg_default()
    extend_cfg(cfg)
    try:
        merge_opts(cfg, ["DATASET.ROOT", args.root])
        dataset = DATASET_REGISTRY.get("CIRR")(cfg)
        task = dataset.task("test1", dataset.read("image_splits", "split.rc2.test1.json"))
        faulty = 0
        for path in args.files:
            found = problems(read_json(path), task, path.stat().st_size)
            faulty += bool(found)
            print(f"{path}: " + ("fine" if not found else "\n  ".join([f"{len(found)} problems", *found[:MAX_SHOWN]])))
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    return 1 if faulty else 0


if __name__ == "__main__":
    raise SystemExit(main())
