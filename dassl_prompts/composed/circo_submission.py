"""Submission files for CIRCO's test server (circo.micc.unifi.it), checked before they are written.

One object: query id -> the first 50 image ids, as numbers, best first. The reference stays in the ranking, as in the
organisers' own files. ``python -m dassl_prompts.composed.circo_submission FILE... --root DATA`` checks files that
exist already.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dassl_prompts.composed.metrics import best
from dassl_prompts.composed.submission import check_command, id_problems, list_fault, slug, write_checked
from dassl_prompts.composed.triplets import RetrievalTask

SERVER = "https://circo.micc.unifi.it"
LENGTH = 50


def build(task: RetrievalTask, queries: Tensor, gallery: Tensor) -> dict[str, list[int]]:
    """The object that the server takes.

    Args:
        queries: [Q, d]. gallery: [G, d]; both L2-normalised, rows in the task's order.
    """
    ranked = best(task, queries, gallery, LENGTH)
    return {query.id: [int(name) for name in row] for query, row in zip(task.queries, ranked)}


def problems(submission: dict, task: RetrievalTask, size: int | None = None) -> list[str]:
    """What the server (or the metric) would not accept, one line each; empty when the submission is fine.

    Args:
        size: not limited by this server.
    """
    if not isinstance(submission, dict):
        return ["the file is not a JSON object"]
    queries = {query.id: query for query in task.queries}
    found = id_problems(submission, task, "query ids")
    length, ids = min(LENGTH, len(task.gallery)), {int(name) for name in task.gallery}
    for key in sorted(set(submission) & set(queries), key=int):
        fault = list_fault(submission[key], queries[key], int, length, ids, "the gallery", own=True)
        if fault:
            found.append(f"query {key}: {fault}")
    return found


def write(task: RetrievalTask, queries: Tensor, gallery: Tensor, folder: str | Path, name: str) -> list[Path]:
    """Rank, check, and write ``circo_<name>.json`` into ``folder``.

    Args:
        name: of the method and, where it asks in several ways, the query.

    Raises:
        ValueError: the file would not be accepted; nothing is written then.
    """
    named = {f"circo_{slug(name)}.json": build(task, queries, gallery)}
    return write_checked(named, task, problems, folder)


main = check_command(
    "circo_submission", "CIRCO", "circo", lambda dataset: dataset.task("test", dataset.listed()), problems
)

if __name__ == "__main__":
    raise SystemExit(main())
