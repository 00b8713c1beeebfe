"""A run where a batch system puts it: ``python -m dassl_prompts.run.launchers.task FOLDER [--needs FOLDER ...] -- COMMAND ...``.

It may be killed and started again, on another node too: the run goes on from its last epoch, one that is finished is left alone.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from dassl_prompts.engine.run_folder import in_use
from dassl_prompts.run.steps import CONSOLE, RESULTS, Step
from dassl_prompts.run.warm import WarmRun, available

#: how often a folder that another process holds is looked at
POLL_SECONDS = 2.0
#: how long a run may take to end after SIGTERM
GRACE_SECONDS = 20.0


class Task:
    """One run on a node.

    Args:
        command: of the run. folder: of the run. needs: run folders that it reads. memory: asked for, "" if not. minutes: the time
        limit, 0 for none.
    """

    def __init__(self, command: list[str], folder: Path, needs: list[Path], memory: str = "", minutes: int = 0):
        self.command, self.folder, self.needs = command, folder, needs
        self.memory, self.minutes = memory, minutes
        self.process: WarmRun | subprocess.Popen | None = None
        self.began, self.epochs = math.inf, 0.0  # when the run was started, and what it had then

    def __call__(self) -> None:
        """What submitit calls; ends the process with the exit code of the run."""
        if code := self.run():
            sys.exit(code)

    def run(self) -> int:
        """The exit code; every reason for one that is not 0 is the last line of console.txt."""
        self.folder.mkdir(parents=True, exist_ok=True)
        missing = [folder for folder in self.needs if not (folder / RESULTS).is_file()]
        if missing:
            return self.say(f"not run, it needs {missing[0]}", code=2)
        self.say(f"== {where()}")
        self.wait_for_folder()
        if Step("", self.folder, ()).results() is not None:
            return 0
        self.began, self.epochs = time.monotonic(), self.saved()
        self.process = start(self.command, self.folder / CONSOLE)
        code = self.process.wait()
        self.process = None
        if code == -signal.SIGKILL:
            more = f"it had {self.memory}" if self.memory else "give --mem"
            self.say(f"killed by signal 9, most often for want of memory: ask for more with --mem ({more})")
        return code if code >= 0 else 128 - code

    def wait_for_folder(self) -> None:
        """Wait while another process has the folder: another sweep, or this run on a node that SLURM has given up."""
        if in_use(self.folder):
            self.say(f"waiting: another process works in {self.folder}")
        while in_use(self.folder):
            time.sleep(POLL_SECONDS)

    def saved(self) -> float:
        """When the last epoch was saved; 0 before the first."""
        from dassl_prompts.engine.resume import FILE as RESUME_FILE  # torch is imported when work starts

        with suppress(FileNotFoundError):
            return (self.folder / RESUME_FILE).stat().st_mtime
        return 0.0

    def checkpoint(self):
        """What submitit calls before the time limit or a preemption, and starts again.

        Returns:
            None, upon which the job is not requeued, when no epoch was finished in the time that a run has.
        """
        import submitit

        if self.process is not None:
            end(self.process)
        late = self.minutes and time.monotonic() - self.began > 60 * self.minutes / 2
        if late and self.saved() <= self.epochs:
            self.say(f"no epoch was finished in {self.minutes} minutes: give more with --time")
            return None
        return submitit.helpers.DelayedSubmission(
            Task(self.command, self.folder, self.needs, self.memory, self.minutes)
        )

    def say(self, text: str, code: int = 0) -> int:
        with open(self.folder / CONSOLE, "a", encoding="utf-8") as console:
            console.write(f"{text}\n")
        return code


def where() -> str:
    """Job, node and how often it was started."""
    env = os.environ
    parts = [env.get("SLURM_ARRAY_JOB_ID") or env.get("SLURM_JOB_ID", ""), env.get("SLURM_ARRAY_TASK_ID", "")]
    job = "_".join(filter(None, parts))
    start = int(env.get("SLURM_RESTART_COUNT") or 0) + 1
    return f"{f'job {job} ' if job else ''}on {env.get('SLURMD_NODENAME') or socket.gethostname()}, start {start}"


def start(command: list[str], console: Path) -> WarmRun | subprocess.Popen:
    """Start a run: forked from this process, which has imported what a run imports, where that is possible."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if cpus := env.get("SLURM_CPUS_PER_TASK"):
        env.setdefault("OMP_NUM_THREADS", cpus)
    if available(command):
        return WarmRun(command, env, console, method="fork")
    # SLURM's warning goes to all processes of a job; it is meant for this one
    quiet = (lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN)) if hasattr(signal, "SIGUSR2") else None
    with open(console, "ab") as out:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=env, preexec_fn=quiet
        )


def end(process: WarmRun | subprocess.Popen) -> None:
    """End a run; what it saved last stays whole.

    It is called in a signal's handler, so it takes none of the locks of ``subprocess``: the interrupted wait may hold them.
    """
    os.kill(process.pid, signal.SIGTERM)
    late = time.monotonic() + GRACE_SECONDS
    while running(process.pid):
        if time.monotonic() > late:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.1)


def running(pid: int) -> bool:
    """Whether a child has not ended."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m dassl_prompts.run.launchers.task", description=__doc__.splitlines()[0])
    p.add_argument("folder", type=Path, help="of the run")
    p.add_argument("--needs", type=Path, nargs="+", default=[], help="run folders that it reads")
    p.add_argument("command", nargs="+", help="the run's command line, after --")
    args = p.parse_args(argv)
    task = Task(args.command, args.folder, args.needs)
    code = task.run()
    if code:
        from dassl_prompts.run.progress import last_line

        print(f"{args.folder}: exit code {code}: {last_line(args.folder / CONSOLE)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
