"""What a run asks of a batch system, in the words of the command line and of sweep files."""

from __future__ import annotations

import math
import re
from typing import Any

#: name -> help
RESOURCES = {
    "gpus": "GPUs of a run",
    "cpus": "processor cores of a run",
    "mem": "memory of a run, e.g. 16G",
    "time": "time limit of a run as SLURM writes it, e.g. 8:00:00 (default 24:00:00); a run that reaches it goes on in a new job",
    "partition": "partition (queue)",
    "account": "account to charge",
}
#: of a run that says nothing
DEFAULT_TIME = "24:00:00"
MEMORY = re.compile(r"[1-9]\d*[KMGT]?B?", re.IGNORECASE)
TIMES = re.compile(r"(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})")


def settle(values: dict[str, Any], extra: Any) -> tuple[tuple[str, str], ...]:
    """The resources of a run as text, with further flags of ``sbatch`` under ``slurm``.

    Args:
        values: by the names of :data:`RESOURCES`, and ``gpus_per_run``; None or "" for what is not given.
        extra: a mapping of flags, or a list of ``name=value``.

    Raises:
        ValueError: a value that SLURM would not take.
    """
    found = {key: str(values[key]) for key in RESOURCES if values.get(key) not in (None, "")}
    if values.get("gpus_per_run"):
        found = {"gpus": str(values["gpus_per_run"]), **found, "processes": str(values["gpus_per_run"])}
        if not found["processes"].isdecimal():
            raise ValueError(f"--gpus-per-run is {found['processes']!r}; it has to be a number from 1 on")
    for key, least in (("gpus", 0), ("cpus", 1)):
        if key in found and not (found[key].isdecimal() and int(found[key]) >= least):
            raise ValueError(f"--{key} is {found[key]!r}; it has to be a number from {least} on")
    if "mem" in found and not MEMORY.fullmatch(found["mem"]):
        raise ValueError(f"--mem is {found['mem']!r}; write it as 16G")
    if isinstance(values.get("time"), int):  # YAML reads 8:00:00 as 28800
        raise ValueError("time in a sweep file stands in quotes, '8:00:00'; YAML takes it for a number otherwise")
    if "time" in found:
        minutes(found["time"])
    return tuple(found.items()) + tuple((f"slurm {name}", value) for name, value in flags(extra))


def flags(extra: Any) -> list[tuple[str, str]]:
    """Further flags of sbatch by name; "" is the value of one that has none."""
    if isinstance(extra, dict):
        return [(str(name), "" if value in (None, True) else str(value)) for name, value in extra.items()]
    words = [extra] if isinstance(extra, str) else list(extra or ())
    return [(name.lstrip("-"), value) for name, _, value in (str(word).partition("=") for word in words)]


def minutes(text: str) -> int:
    """SLURM's time limit in minutes, rounded up: ``60``, ``8:00:00``, ``1-12`` or ``1-12:30``.

    Raises:
        ValueError: something else.

    >>> minutes("8:00:00"), minutes("90"), minutes("1-12"), minutes("0:30")
    (480, 90, 2160, 1)
    """
    match = TIMES.fullmatch(text)
    if not match or not any(map(int, re.findall(r"\d+", text))):
        raise ValueError(f"--time is {text!r}; write it as 8:00:00 or 2-00:00:00")
    parts = [int(part) for part in match["parts"].split(":")]
    if match["days"] is not None:  # days-hours[:minutes[:seconds]]
        hours, mins, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, mins, seconds = parts
    else:  # minutes[:seconds]
        hours, (mins, seconds) = 0, (*parts, 0)[:2]
    return math.ceil(int(match["days"] or 0) * 1440 + hours * 60 + mins + seconds / 60)
