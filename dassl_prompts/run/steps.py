"""One training or evaluation run as a step that can be skipped when its result is there."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

RESULTS = "results.json"


class StepFailed(RuntimeError):
    """A run ended with an error; carries its folder."""


@dataclass(frozen=True)
class Step:
    """One call of ``python -m dassl_prompts.train``.

    Attributes:
        title: what the user sees.
        output: the run's folder.
        args: command line without ``--output-dir``.
        clears: the step leaves checkpoints that may be resumed, so FORCE has to remove the folder first.
    """

    title: str
    output: Path
    args: tuple[str, ...]

    def results(self) -> dict | None:
        """The finished result, or None."""
        path = self.output / RESULTS
        if not path.is_file():
            return None
        try:
            results = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is damaged ({error}): delete the folder or run again with FORCE=1") from error
        return results if results.get("finished") else None

    def config(self):
        """The configuration that this step would run with."""
        from dassl_prompts.train import parser, setup_cfg

        return setup_cfg(parser().parse_args(self.command()[3:]))

    def command(self) -> list[str]:
        return [sys.executable, "-m", "dassl_prompts.train", "--output-dir", str(self.output), *self.args]


def execute(steps: list[Step], force: bool = False, quiet: bool = False) -> None:
    """Run the steps in order, skipping those that are finished with the same configuration.

    Raises:
        StepFailed: when a run exits with an error; steps already finished stay finished.
        ValueError: when a finished folder holds the result of another configuration.
    """
    for number, step in enumerate(steps, 1):
        label = f"[{number}/{len(steps)}] {step.title}"
        if not force and step.results() is not None:
            check_same_config(step)
            print(f"{label}: already finished in {step.output}", flush=True)
            continue
        print(f"{label} -> {step.output}", flush=True)
        if force:
            remove_run(step.output)
        stdout = subprocess.DEVNULL if quiet else None
        code = subprocess.run(step.command(), stdin=subprocess.DEVNULL, stdout=stdout, check=False).returncode
        if code != 0:
            raise StepFailed(f"{step.title} failed with exit code {code}; its log is {step.output}/log.txt")
        if step.results() is None:
            raise StepFailed(f"{step.title} ended without a finished {step.output}/{RESULTS}")


def check_same_config(step: Step) -> None:
    """A finished folder may only stand in for a run with equal settings."""
    from dassl_prompts.engine import config_differences

    different = config_differences(step.results()["config"], step.config())
    if different:
        raise ValueError(
            f"{step.output} holds a finished run with other settings ({'; '.join(different)}): "
            f"choose another --output or --tag, or repeat it with FORCE=1"
        )


def remove_run(folder: Path) -> None:
    """Remove a run's files so that nothing of it is resumed; only folders that look like a run are touched."""
    import shutil

    if not folder.exists():
        return
    known = {RESULTS, "log.txt"}
    if not any((folder / name).exists() for name in known) and any(folder.iterdir()):
        raise ValueError(f"{folder} is not a run folder (no {' or '.join(sorted(known))}), not removing it")
    shutil.rmtree(folder)
