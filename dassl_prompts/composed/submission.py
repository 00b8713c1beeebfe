"""What the submission files of composed retrieval share: their form, their checks, and how they are written.

CIRR's and CIRCO's test servers take different objects: :mod:`~dassl_prompts.composed.cirr_submission`,
:mod:`~dassl_prompts.composed.circo_submission`.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from dassl_prompts.composed.triplets import Query, RetrievalTask, TripletDataset
from dassl_prompts.engine.ending import tell
from dassl_prompts.engine.files import atomic_path, require_writable
from dassl_prompts.engine.reading import read_json

MAX_SHOWN = 3
#: what is wrong with a submission, one line each; of a file of the given bytes, None = as it would be written
Problems = Callable[..., list[str]]


def serialise(submission: dict) -> bytes:
    return json.dumps(submission, separators=(",", ":")).encode()


def slug(name: str) -> str:
    """``ZeroshotCIR image+text, normalised`` -> ``ZeroshotCIR-image+text-normalised``."""
    return re.sub(r"[^\w.+]+", "-", name).strip("-")


def id_problems(given: Collection[str], task: RetrievalTask, what: str) -> list[str]:
    """Query ids that are missing, and ids that the task does not have; ``what`` they are called."""
    wanted = {query.id for query in task.queries}
    found = []
    for kind, keys in (("missing", wanted - set(given)), ("unknown", set(given) - wanted)):
        if keys:
            found.append(f"{len(keys)} {kind} {what}, such as {', '.join(sorted(keys)[:MAX_SHOWN])}")
    return found


def list_fault(names, query: Query, kind: type, length: int, allowed: Collection, where: str, own: bool) -> str:
    """What is wrong with one ranked list, or "".

    Args:
        kind: of the list's items. allowed: items that may stand in it, ``where`` in words. own: whether the query's
            reference may be among them.
    """
    if not isinstance(names, list) or not all(type(name) is kind for name in names):
        return "not a list of image names" if kind is str else "not a list of image ids (numbers)"
    if len(names) != length:
        return f"{len(names)} names instead of {length}"
    if len(set(names)) != len(names):
        return "a name occurs twice"
    if not own and query.reference in names:
        return f"contains its own reference {query.reference}"
    strange = [name for name in names if name not in allowed]
    return f"{strange[0]} is not in {where}" if strange else ""


def check(submission: dict, task: RetrievalTask, problems: Problems) -> None:
    """Raise ValueError with the first problems, if there are any."""
    found = problems(submission, task)
    if found:
        more = f"\n  ... and {len(found) - MAX_SHOWN} more" if len(found) > MAX_SHOWN else ""
        raise ValueError(f"submission is not valid for {task.name}:\n  " + "\n  ".join(found[:MAX_SHOWN]) + more)


def write_checked(
    submissions: Mapping[str, dict], task: RetrievalTask, problems: Problems, folder: str | Path
) -> list[Path]:
    """Check all ``submissions`` (by file name), then write them into ``folder``.

    Raises:
        ValueError: a file would not be accepted; nothing is written then.
    """
    require_writable(folder)
    for submission in submissions.values():
        check(submission, task, problems)
    paths = []
    for name, submission in submissions.items():
        path = Path(folder) / name
        with atomic_path(path) as temporary:
            temporary.write_bytes(serialise(submission))
        paths.append(path)
    return paths


def check_command(
    module: str, dataset: str, folder: str, test: Callable[[TripletDataset], RetrievalTask], problems: Problems
) -> Callable[[Sequence[str] | None], int]:
    """The ``main`` of a module that checks existing files.

    Args:
        dataset: registered name. folder: of its annotations below the root. test: its test task, without images.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        from dassl_prompts import extend_cfg
        from dassl_prompts.engine import DATASET_REGISTRY, get_cfg_default, merge_opts

        p = argparse.ArgumentParser(
            prog=f"python -m dassl_prompts.composed.{module}",
            description=f"Check submission files against the {dataset} annotations before uploading them.",
            epilog="Exit codes: 0 all files are fine, 1 a file is not, 2 wrong input.",
        )
        p.add_argument("files", nargs="+", type=Path)
        p.add_argument("--root", default="data", help=f"folder that holds {folder}/ (default ./data)")
        args = p.parse_args(argv)
        cfg = get_cfg_default()
        extend_cfg(cfg)
        try:
            merge_opts(cfg, ["DATASET.ROOT", args.root])
            task = test(DATASET_REGISTRY.get(dataset)(cfg))
            faulty = 0
            for path in args.files:
                found = problems(read_json(path), task, path.stat().st_size)
                faulty += bool(found)
                lines = [f"{len(found)} problems", *found[:MAX_SHOWN]]
                print(f"{path}: " + ("fine" if not found else "\n  ".join(lines)))
        except (Exception, KeyboardInterrupt) as error:
            return tell(error)
        return 1 if faulty else 0

    return main
