"""Runs a graph of steps on this machine, several at once."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from dassl_prompts.engine.run_folder import in_use
from dassl_prompts.run.launchers.base import Launcher
from dassl_prompts.run.plan import Node, block_dependents
from dassl_prompts.run.progress import last_line
from dassl_prompts.run.steps import CONSOLE, RESULTS, remove_run
from dassl_prompts.run.warm import WarmRun, available

POLL_SECONDS = 0.1
#: how long a run may take to end after SIGTERM
GRACE_SECONDS = 20.0


@dataclass(frozen=True)
class Slot:
    """A place for one run at a time; ``device`` is a CUDA index, "cpu", or "" for what the runs choose."""

    device: str = ""

    def environment(self, slots: int) -> dict[str, str]:
        """Environment of a run on this slot, one of ``slots``."""
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if self.device:
            env["CUDA_VISIBLE_DEVICES"] = "" if self.device == "cpu" else self.device
        if slots > 1:  # each run would start a thread per core
            env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // slots)))
        return env


def make_slots(devices: list[str], jobs: int, each: int = 1) -> list[Slot]:
    """``jobs`` slots on every device, or on every ``each`` devices for runs that take as many; they take turns.

    Raises:
        ValueError: the devices do not go into groups of ``each``.

    >>> [slot.device for slot in make_slots(["0", "1", "2", "3"], 1, each=2)]
    ['0,1', '2,3']
    """
    if devices in ([], ["cpu"]):
        each = 1
    if len(devices) % each:
        raise ValueError(
            f"--devices names {len(devices)} devices; with --gpus-per-run {each} give a multiple of {each}"
        )
    groups = [",".join(devices[at : at + each]) for at in range(0, len(devices), each)]
    return [Slot(device) for _ in range(jobs) for device in (groups or [""])]


class Scheduler(Launcher):
    """Runs the nodes itself, several at once.

    Args:
        slots: where runs can be; one run at a time by default.
        stream: the runs print to the screen; only for a single slot. Otherwise their output goes to ``console.txt``.
        given: the other arguments of :class:`Launcher`.
    """

    def __init__(self, nodes: list[Node], slots: list[Slot] | None = None, *, stream: bool = False, **given):
        self.slots = slots or [Slot()]
        self.stream = stream and len(self.slots) == 1
        super().__init__(nodes, at_once=len(self.slots), bar=not self.stream, **given)
        self.running: dict[subprocess.Popen | WarmRun, tuple[Node, Slot, float]] = {}

    def work(self) -> None:
        """Run until nothing is left that can."""
        free = list(self.slots)
        while True:
            waiting = [] if self.stopped else [node for node in self.nodes if node.ready]
            held = self.fill(free, waiting)
            if not self.running and not any(node.state == "waiting" for node in waiting):
                if not any(node.ready for node in self.nodes) or self.stopped:
                    return
                continue
            self.progress.refresh([node for node, _, _ in self.running.values()], held)
            time.sleep(POLL_SECONDS)
            for process in [p for p in self.running if p.poll() is not None]:
                free.append(self.finish(process))

    def fill(self, free: list[Slot], waiting: list[Node]) -> int:
        """Start what can be on the free slots; returns how many steps another process keeps from starting."""
        held = 0
        for node in waiting:
            if not free or self.stopped:
                break
            if in_use(node.step.output):
                held += 1
            elif not self.force and node.step.results() is not None:  # another process was faster
                self.accept(node)
            else:
                try:
                    self.start(node, free[0])
                except OSError as error:  # a full disk, a folder that somebody took: the other runs can go on
                    self.refuse(node, f"could not be started: {error}")
                else:
                    del free[0]
        return held

    def start(self, node: Node, slot: Slot) -> None:
        folder = node.step.output
        if self.force and node.tries == 0:
            remove_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        node.state, node.tries = "running", node.tries + 1
        self.progress.started(node)
        env = slot.environment(len(self.slots))
        process = launch(node.step.command(), env, None if self.stream else folder / CONSOLE, warm=len(self.nodes) > 1)
        self.running[process] = node, slot, time.monotonic()

    def finish(self, process: subprocess.Popen | WarmRun) -> Slot:
        """Note how a run ended; returns its slot."""
        node, slot, since = self.running.pop(process)
        node.seconds, node.code = time.monotonic() - since, process.returncode
        folder = node.step.output
        if node.code == 0 and node.step.results() is not None:
            node.state = "finished"
        elif node.code != 0 and in_use(folder):  # another process took the folder in between: wait for it
            node.state, node.tries = "waiting", node.tries - 1
        else:
            node.state = "failed"
            node.reason = failure(folder, node.code, logged=not self.stream)
            self.stopped = self.stop
            if node.tries > self.retry or self.stopped:
                block_dependents(self.nodes)
        self.progress.ended(node)
        return slot

    def close(self) -> None:
        """End the runs that are left, after an interruption."""
        for process in self.running:
            process.terminate()
        for process in self.running:
            try:
                process.wait(GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()


def launch(command: list[str], env: dict[str, str], console: Path | None, warm: bool):
    """Start a command whose output goes to the end of ``console`` or, without one, to the screen.

    Args:
        warm: fork it from a process that has imported what it needs, where that is possible.
    """
    if warm and available(command):
        return WarmRun(command, env, console)
    if console is None:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=env)
    with open(console, "ab") as out:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env)


def failure(folder: Path, code: int, logged: bool) -> str:
    """Why a run failed, in one line, with the file that says more."""
    if code == 0:
        return f"ended without a finished {folder / RESULTS}"
    log = folder / (CONSOLE if logged else "log.txt")
    said = f"exit code {code}" if code > 0 else f"killed by signal {-code}"
    last = last_line(log) if logged else ""
    return f"failed with {said}{f' ({last})' if last else ''}; see {log}"
