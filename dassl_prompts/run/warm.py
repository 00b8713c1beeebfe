"""Runs as processes forked from one that has imported torch and the package, so that a run starts at once.

That process, Python's fork server, computes nothing and never asks for a GPU: every run is as alone as one started by a command,
with its own environment, output, exit code and kill.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from multiprocessing.reduction import DupFd
from pathlib import Path

#: what a step's command begins with if it can run here
COMMAND = ("-m", "dassl_prompts.train")


def available(command: list[str]) -> bool:
    """Whether a command is a training or evaluation, and this system has fork."""
    own = tuple(command[1:3]) == COMMAND and command[0] == sys.executable
    return own and "forkserver" in multiprocessing.get_all_start_methods()


class Stream:
    """An open file that is handed to the forked process."""

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __reduce__(self):
        return _receive, (DupFd(self.descriptor),)


def _receive(handed) -> Stream:
    return Stream(handed.detach())


class WarmRun:
    """One run with the interface of :class:`subprocess.Popen`.

    Args:
        command: as for a subprocess, see :func:`available`.
        env: all environment variables of the run.
        console: file that its output is appended to; None: the screen.
        method: "fork" forks it from this process, for one that starts a single run and no thread.
    """

    def __init__(self, command: list[str], env: Mapping[str, str], console: Path | None, method: str = "forkserver"):
        context = multiprocessing.get_context(method)
        if method == "forkserver":
            context.set_forkserver_preload(["dassl_prompts.run.preload"])
        handle = open(console, "ab") if console else None
        try:
            out, err = (handle.fileno(), handle.fileno()) if handle else (1, 2)
            args = (command[3:], dict(env), Stream(out), Stream(err))
            self.process = context.Process(target=train, args=args, name=" ".join(command[1:3]))
            self.process.start()
        finally:
            if handle:
                handle.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        """The exit code, minus the signal's number if one ended it; None while it runs."""
        return self.process.exitcode

    def terminate(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired when it still runs after `timeout` seconds."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return self.process.exitcode


def train(argv: list[str], env: dict[str, str], out: Stream, err: Stream) -> None:
    """The forked process: what ``python -m dassl_prompts.train`` does with this command line and environment."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(out.descriptor, 1)
    os.dup2(err.descriptor, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a batch system's warning, for the process above
    from dassl_prompts.run.preload import torch

    if threads := env.get("OMP_NUM_THREADS"):  # torch read it when it was imported, from another environment
        torch.set_num_threads(int(threads))
    from dassl_prompts.train import main

    sys.argv[:] = ["train.py", *argv]
    main(argv)
