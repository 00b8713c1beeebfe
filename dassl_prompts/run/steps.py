"""One training or evaluation run as a step that can be skipped when its result is there."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from dassl_prompts.engine.reading import DamagedFile, read_json

RESULTS = "results.json"
#: what a run prints, errors included, when several run at once
CONSOLE = "console.txt"


class StepFailed(RuntimeError):
    """A run ended with an error; the message names its folder."""


@dataclass(frozen=True)
class Step:
    """One call of ``python -m dassl_prompts.train``.

    Attributes:
        title: what the user sees.
        output: the run's folder.
        args: command line without ``--output-dir``.
        resources: what it asks of a batch system, by the names of :data:`dassl_prompts.run.resources.RESOURCES`, and under
        ``processes`` how many work on it, see :mod:`dassl_prompts.engine.distributed`.
    """

    title: str
    output: Path
    args: tuple[str, ...]
    resources: tuple[tuple[str, str], ...] = field(default=(), kw_only=True)

    def results(self) -> dict | None:
        """The finished result, or None.

        Raises:
            ValueError: results.json cannot be read.
        """
        path = self.output / RESULTS
        if not path.is_file():
            return None
        try:
            results = read_json(path, dict)
        except DamagedFile as error:
            raise DamagedFile(f"{error}: delete the folder or run again with --force") from error
        return results if results.get("finished") else None

    def config(self):
        """The configuration that this step would run with."""
        from dassl_prompts.train import parser, setup_cfg

        return setup_cfg(parser().parse_args(self.words))

    def problems(self, folders: set[str]) -> list[str]:
        """What would keep this run from starting, see :func:`dassl_prompts.run.ahead.problems_of`."""
        from dassl_prompts.run.ahead import problems_of

        found = problems_of(self.config, folders)
        if "--model-dir" in self.args:
            model = Path(self.args[self.args.index("--model-dir") + 1])
            if str(model.absolute()) not in folders and not model.is_dir():
                found.append(f"--model-dir: there is no folder {model}")
        return found

    def command(self) -> list[str]:
        several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self.processes), "-m"]
        return [sys.executable, "-m", *(several if self.processes > 1 else ()), "dassl_prompts.train", *self.words]

    @property
    def words(self) -> list[str]:
        """The command line of the training itself."""
        return ["--output-dir", str(self.output), *self.args]

    @property
    def processes(self) -> int:
        return int(dict(self.resources).get("processes", 1))

    def needs(self, other: Step) -> bool:
        """Whether this run reads what ``other`` leaves: its folder is on the command line."""
        return str(other.output) in self.args

    @property
    def is_training(self) -> bool:
        return "--eval-only" not in self.args


def remove_run(folder: Path) -> None:
    """Remove a run's files so that nothing of it is resumed; only folders that look like a run are touched.

    Raises:
        ValueError: the folder holds something else.
    """
    import shutil

    if not folder.exists():
        return
    known = (RESULTS, "log.txt", CONSOLE)
    if not any((folder / name).exists() for name in known) and any(folder.iterdir()):
        raise ValueError(f"{folder} is not a run folder (no {' or '.join(known)}), not removing it")
    shutil.rmtree(folder)
