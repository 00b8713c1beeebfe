"""What a user sees while runs go on: a line for every start and end, and a bar with the time left."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

from dassl_prompts.run.plan import Node
from dassl_prompts.run.steps import CONSOLE

EPOCH_LINE = re.compile(r"epoch \[(\d+)/(\d+)\].*?\beta (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)")
#: without a terminal a line of news is printed this often
HEARTBEAT_SECONDS = 60.0


def clock(seconds: float) -> str:
    """``0:01:07``."""
    return str(timedelta(seconds=round(seconds)))


def tail(path: Path, limit: int) -> str:
    """The last ``limit`` bytes of a text file; "" if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit))
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def last_line(path: Path) -> str:
    """The last line of a text file that is not blank; redrawn progress bars count as lines."""
    lines = tail(path, 8192).replace("\r", "\n").split("\n")
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def running_state(node: Node) -> tuple[str, float | None]:
    """``("epoch 3/10", seconds left)`` of a running step by what it printed last; ``("", None)`` at first."""
    lines = EPOCH_LINE.findall(tail(node.step.output / CONSOLE, 4096))
    if not lines:
        return "", None
    epoch, epochs, days, hours, minutes, seconds = lines[-1]
    left = ((int(days or 0) * 24 + int(hours)) * 60 + int(minutes)) * 60 + int(seconds)
    return f"epoch {epoch}/{epochs}", float(left)


def kind(node: Node) -> tuple[str, bool]:
    """Steps of one kind take about equally long: the method and whether it is trained."""
    args = node.step.args
    return args[args.index("--trainer") + 1] if "--trainer" in args else "", node.step.is_training


def time_left(
    nodes: list[Node],
    slots: int,
    lefts: dict[int, float | None],
    elapsed: dict[int, float],
    planned: Mapping[int, float] = MappingProxyType({}),
) -> float | None:
    """Estimated seconds until all is done, None before there is anything to go by.

    Args:
        lefts: by ``id(node)``, what running steps say of themselves (None: nothing yet). elapsed: how long
        they have run. planned: what the plan gave to steps, which counts until one of the kind has shown more.
    """
    known: dict[tuple[str, bool], list[float]] = {}
    for node in nodes:
        if node.state == "finished":
            known.setdefault(kind(node), []).append(node.seconds)
        elif lefts.get(id(node)) is not None:
            known.setdefault(kind(node), []).append(elapsed[id(node)] + lefts[id(node)])
    mean = {k: sum(v) / len(v) for k, v in known.items()}
    guesses = list(mean.values()) or list(planned.values())
    if not guesses:
        return None
    overall = sum(guesses) / len(guesses)
    work = 0.0
    for node in nodes:
        expected = mean.get(kind(node), planned.get(id(node), overall))
        if node.state == "waiting":
            work += expected
        elif node.state == "running":
            left = lefts.get(id(node))
            work += max(0.0, expected - elapsed[id(node)]) if left is None else left
    return work / slots


class Progress:
    """Prints starts, ends and, on a terminal, a bar at the bottom.

    Args:
        nodes: the plan. slots: runs at once. bar: False while the runs print to the same screen.
    """

    def __init__(self, nodes: list[Node], slots: int, bar: bool = True):
        self.nodes, self.slots, self.wants_bar = nodes, slots, bar
        self.number = {id(node): i for i, node in enumerate(nodes, 1)}
        self.since: dict[int, float] = {}
        self.planned: Mapping[int, float] = {}
        self.bar = None
        self.news = time.monotonic()

    def begin(self, planned: Mapping[int, float]) -> None:
        """Name what is finished; ``planned`` as :func:`time_left` takes it."""
        self.planned = planned
        for node in self.nodes:
            if node.state == "skipped":
                self.say(f"{self.label(node)}: already finished in {node.step.output}")
        todo = [node for node in self.nodes if node.state == "waiting"]
        if todo and self.wants_bar and sys.stdout.isatty():
            from tqdm import tqdm

            form = "{n_fmt}/{total_fmt} runs |{bar:20}| {elapsed}{postfix}"
            self.bar = tqdm(total=len(todo), bar_format=form, file=sys.stdout, dynamic_ncols=True)

    def label(self, node: Node) -> str:
        return f"[{self.number[id(node)]}/{len(self.nodes)}] {node.step.title}"

    def say(self, text: str) -> None:
        if self.bar is None:
            print(text, flush=True)
        else:
            self.bar.write(text)

    def started(self, node: Node) -> None:
        self.since[id(node)] = time.monotonic()
        again = f" (try {node.tries})" if node.tries > 1 else ""
        self.say(f"{self.label(node)} -> {node.step.output}{again}")

    def ended(self, node: Node) -> None:
        if self.bar is not None:
            self.bar.n = sum(n.state in ("finished", "failed") for n in self.nodes)
            self.bar.refresh()
        if node.state == "failed":
            self.say(f"{self.label(node)}: {node.reason}")
        elif node.state == "finished" and self.wants_bar:
            self.say(f"{self.label(node)}: done in {clock(node.seconds)}")

    def refresh(self, running: list[Node], held: int = 0) -> None:
        """Show what runs now; ``held`` steps wait for another process that has their folder."""
        now = time.monotonic()
        due = now - self.news >= (1.0 if self.bar is not None else HEARTBEAT_SECONDS)
        if not self.wants_bar or not due:
            return
        self.news = now
        text = self.status(running, held, now)
        if self.bar is not None:
            self.bar.set_postfix_str(text)
        else:
            done = sum(node.done for node in self.nodes)
            print(f"{done}/{len(self.nodes)} runs done, {text}", flush=True)

    def status(self, running: list[Node], held: int, now: float) -> str:
        states = {id(node): running_state(node) for node in running}
        elapsed = {key: now - self.since[key] for key in states}
        lefts = {key: value[1] for key, value in states.items()}
        left = time_left(self.nodes, self.slots, lefts, elapsed, self.planned)
        where = ", ".join(f"#{self.number[key]} {state[0]}".strip() for key, state in states.items())
        parts = [
            f"left about {clock(left)}" if left is not None else "left unknown",
            f"running {where}" if where else "",
        ]
        parts.append(f"{held} wait for another process" if held and not running else "")
        return ", ".join(filter(None, parts))

    def end(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
