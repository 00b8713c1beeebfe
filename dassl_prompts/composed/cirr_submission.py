"""Submission files for CIRR's test server (cirr.cecs.anu.edu.au), checked before they are written.

``python -m dassl_prompts.composed.cirr_submission FILE... --root DATA`` checks files that exist already.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dassl_prompts.composed.metrics import best, best_members
from dassl_prompts.composed.submission import check_command, id_problems, list_fault, serialise, slug, write_checked
from dassl_prompts.composed.triplets import RetrievalTask

SERVER = "https://cirr.cecs.anu.edu.au/test_process"
VERSION = "rc2"
LENGTHS = {"recall": 50, "recall_subset": 3}
MAX_BYTES = 5_000_000  # the server's limit of 5 MB


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
    found += id_problems(given, task, "pair ids")
    length = min(LENGTHS[metric], len(task.gallery) - 1)
    for key in sorted(given & set(queries)):
        query = queries[key]
        allowed, where = (query.members, "its image set") if metric == "recall_subset" else (task.index, "the gallery")
        fault = list_fault(submission[key], query, str, length, allowed, where, own=False)
        if fault:
            found.append(f"pair {key}: {fault}")
    size = len(serialise(submission)) if size is None else size
    if size > MAX_BYTES:
        found.append(f"{size:,} bytes, the server takes {MAX_BYTES:,}")
    return found


def write(task: RetrievalTask, queries: Tensor, gallery: Tensor, folder: str | Path, name: str) -> list[Path]:
    """Rank, check, and write ``cirr_<name>_recall.json`` and ``cirr_<name>_recall_subset.json`` into ``folder``.

    Args:
        name: of the method and, where it asks in several ways, the query; every pair of files needs its own.

    Raises:
        ValueError: a file would not be accepted; nothing is written then.
    """
    submissions = build(task, queries, gallery)
    named = {f"cirr_{slug(name)}_{metric}.json": submission for metric, submission in submissions.items()}
    return write_checked(named, task, problems, folder)


main = check_command(
    "cirr_submission",
    "CIRR",
    "cirr",
    lambda dataset: dataset.task("test1", dataset.read("image_splits", "split.rc2.test1.json")),
    problems,
)

if __name__ == "__main__":
    raise SystemExit(main())
