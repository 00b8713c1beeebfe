"""A plan as a table before it starts: its runs, which are finished, and what the others will cost.

That is what finished runs of the same kind took, or else, marked with ``~``, what counts of pictures and operations give.
"""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dassl_prompts.configs.own_data import called
from dassl_prompts.engine.reading import read_json
from dassl_prompts.run.counts import rough_cost
from dassl_prompts.run.plan import Node
from dassl_prompts.run.progress import clock
from dassl_prompts.run.steps import RESULTS, Step

SEED = re.compile(r",? seed \d+")


@dataclass
class Cost:
    """What a run took: seconds (0 where it noted none) and bytes on disk; ``rough`` where they come from counts."""

    seconds: float
    size: float
    rough: bool = False


@dataclass
class Costs:
    """What finished runs took, by what they did; looked for in the folders of the plan's own runs and their other seeds."""

    nodes: list[Node]
    found: dict[Path, Cost | None] = field(default_factory=dict)
    counted: dict[Path, list[Cost]] = field(default_factory=dict)

    def of(self, folder: Path) -> Cost | None:
        """Of one finished run."""
        if folder not in self.found:
            self.found[folder] = read_cost(folder)
        return self.found[folder]

    def like(self, step: Step) -> list[Cost]:
        """Of runs that differ in the seed alone, else of the plan's runs of the same method and stage, else from counts."""
        siblings = [cost for folder in step.output.parent.glob("seed*") if (cost := self.of(folder))]
        return siblings or self.by_kind.get(kind(step)) or self.by_counts(step)

    def by_counts(self, step: Step) -> list[Cost]:
        if step.output not in self.counted:
            rough = rough_cost(step)
            self.counted[step.output] = [] if rough is None else [Cost(*rough, rough=True)]
        return self.counted[step.output]

    @cached_property
    def by_kind(self) -> dict[tuple[str, bool], list[Cost]]:
        kinds: dict[tuple[str, bool], list[Cost]] = {}
        for node in self.nodes:
            for folder in node.step.output.parent.glob("seed*"):
                if cost := self.of(folder):
                    kinds.setdefault(kind(node.step), []).append(cost)
        return kinds


def kind(step: Step) -> tuple[str, bool]:
    """The method, and whether it is trained."""
    args = step.args
    return args[args.index("--trainer") + 1] if "--trainer" in args else "", step.is_training


def read_cost(folder: Path) -> Cost | None:
    """What a finished run took; None for others."""
    try:
        results = read_json(folder / RESULTS)
    except (OSError, ValueError):
        return None
    if not isinstance(results, dict) or not results.get("finished"):
        return None
    seconds = results.get("seconds", 0)
    size = sum(os.path.getsize(path) for path in folder.rglob("*") if path.is_file())
    return Cost(float(seconds) if isinstance(seconds, (int, float)) else 0.0, size)


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"


def estimate(costs: Iterable[list[Cost]]) -> tuple[float | None, float | None]:
    """Seconds and bytes of runs, by the mean of what others like each of them took; None where one has no like."""
    costs = list(costs)
    seconds = [[cost.seconds for cost in like if cost.seconds] for like in costs]
    sizes = [[cost.size for cost in like] for like in costs]
    return tuple(sum(map(statistics.mean, found)) if all(found) else None for found in (seconds, sizes))


def overview(nodes: list[Node], slots: int = 1, finished: set[str] | None = None) -> str:
    """The table, and a line for all of it.

    Args:
        slots: runs at once. finished: folders of the runs that will be skipped; default: those with results.
    """
    from tabulate import tabulate

    if finished is None:
        finished = {str(node.step.output) for node in nodes if node.step.results() is not None}
    costs, groups = Costs(nodes), {}
    for node in nodes:
        groups.setdefault(SEED.sub("", node.step.title), []).append(node.step)
    rows, todo = [], []
    for title, steps in groups.items():
        left = [step for step in steps if str(step.output) not in finished]
        todo += left
        likes = [costs.like(step) for step in left]
        seconds, size = estimate(likes)
        mark = "~" if any(cost.rough for like in likes for cost in like) else ""
        rows.append(
            {
                "what": title,
                "runs": len(steps),
                "finished": len(steps) - len(left),
                "time": "-" if not left else "?" if seconds is None else f"{mark}{clock(seconds)}",
                "disk": "-" if not left else "?" if size is None else f"{mark}{megabytes(size)}",
            }
        )
    table = tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True)
    return "\n".join([table, *few_pictures(todo), summary_line(costs, todo, len(nodes), slots)])


def expected(nodes: list[Node]) -> dict[int, float]:
    """Seconds that the plan gives to each run that waits, by ``id(node)``; those that nothing is known of are left out."""
    costs = Costs(nodes)
    found = {id(node): estimate([costs.like(node.step)])[0] for node in nodes if node.state == "waiting"}
    return {key: seconds for key, seconds in found.items() if seconds}


def few_pictures(steps: Iterable[Step]) -> list[str]:
    """A line for every draw of shots to train on that some classes are too small for."""
    from dassl_prompts.classification.splits import small_classes
    from dassl_prompts.run.ahead import data_counts

    found = {}
    for step in steps:
        if not step.is_training:
            continue
        try:
            cfg = step.config()
        except (ValueError, KeyError, OSError):  # told by the checks of the plan
            continue
        data = data_counts(cfg) if cfg.DATASET.NUM_SHOTS > 0 else None
        if data and (said := small_classes(data.train, cfg.DATASET.NUM_SHOTS)):
            found[f"{called(cfg.DATASET.NAME, cfg.DATASET.ROOT)}: {said}"] = None
    return list(found)


def summary_line(costs: Costs, todo: list[Step], total: int, slots: int) -> str:
    known = [costs.like(step) for step in todo]
    seconds, size = estimate(like for like in known if like)
    parts = [f"{len(todo)} of {total} runs to do"]
    if todo and seconds:
        more = sum(not like for like in known)
        rest = f", without {more} of a kind that has not run yet" if more else ""
        rough = any(cost.rough for like in known for cost in like)
        how = ", ~ from counts of pictures, rough" if rough else ""
        parts.append(f"about {clock(seconds / slots)} and {megabytes(size)}{rest}{how}")
    elif todo:
        parts.append("time and disk are known after the first of a kind")
    return f"{'; '.join(parts)}; {device(slots)}"


def device(slots: int) -> str:
    """What the runs compute on; counting opens no GPU in this process."""
    import torch

    at_once = f", {slots} at once" if slots > 1 else ""
    count = torch.cuda.device_count()
    where = f"{count} CUDA device{'s' if count > 1 else ''}" if count else f"the CPU, {os.cpu_count()} cores"
    return f"on {where}{at_once}"
