"""Training curves from epochs.json; of older runs, which have none, from the progress lines of log.txt."""

from __future__ import annotations

import re
from pathlib import Path

from dassl_prompts.engine import epochs

PROGRESS = re.compile(r"^epoch \[(\d+)/\d+\] batch \[(\d+)/(\d+)\] (.*)$", re.M)
#: "loss 2.5596 (2.7548)": the value of the batch and, in brackets, the mean since the epoch began
TERM = re.compile(r"(\S+) (\S+) \((\S+)\)")
TIMES = ("time", "data")


def read_curves(folder: str | Path) -> dict[str, dict[float, float]]:
    """Logged terms of a run: name -> {epochs done: mean since the epoch began}.

    Raises:
        ValueError: epochs.json is damaged; names it.
    """
    noted = epochs.read(folder)
    done = [entry["epoch"] for entry in noted]
    # a run may have begun under a version that wrote no epochs.json
    curves = {} if done and done == list(range(1, len(done) + 1)) else read_logs(folder)
    for entry in noted:
        for name, mean in entry.get("train", {}).items():
            curves.setdefault(name, {})[float(entry["epoch"])] = float(mean)
    return {name: dict(sorted(points.items())) for name, points in curves.items()}


def read_logs(folder: str | Path) -> dict[str, dict[float, float]]:
    """The same from the logs: a resumed run has several; where two tell of the same batch, the newer one counts."""
    logs = sorted(Path(folder).glob("log.txt*"), key=lambda p: p.stat().st_mtime)
    curves: dict[str, dict[float, float]] = {}
    for log in logs:
        for epoch, batch, batches, rest in PROGRESS.findall(log.read_text(encoding="utf-8", errors="replace")):
            at = int(epoch) - 1 + int(batch) / int(batches)
            for name, _, mean in TERM.findall(rest):
                if name not in TIMES:
                    curves.setdefault(name, {})[at] = float(mean)
    return curves


def per_epoch(points: dict[float, float]) -> dict[int, float]:
    """The last value of every epoch: the mean over (nearly) all of its batches."""
    last: dict[int, float] = {}
    for at in sorted(points):
        last[int(-(-at // 1))] = points[at]
    return last
