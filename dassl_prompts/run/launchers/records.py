"""Which runs were submitted from an output tree: a note per array in ``<output>/.slurm``, so that the same command finds them again."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from dassl_prompts.engine.files import write_json
from dassl_prompts.engine.reading import read_json
from dassl_prompts.run.launchers.cluster import Job, find

FOLDER = ".slurm"
#: begins the names of the jobs
PREFIX = "dassl-"


@dataclass(frozen=True)
class Entry:
    """A submitted run: job id, job name, run folder (absolute), arguments of the run."""

    job: str
    name: str
    folder: str
    args: tuple[str, ...]


class Records:
    """The notes of an output tree."""

    def __init__(self, output: Path):
        self.folder = Path(output).absolute() / FOLDER

    @staticmethod
    def new_name() -> str:
        """A name for jobs that no others have: SLURM's numbers begin anew on a new controller."""
        return f"{PREFIX}{uuid.uuid4().hex[:12]}"

    def add(self, name: str, entries: list[Entry]) -> None:
        rows = [{"job": entry.job, "folder": entry.folder, "args": list(entry.args)} for entry in entries]
        write_json({"name": name, "runs": rows}, self.folder / f"{name}.json")

    def all(self) -> dict[str, Entry]:
        """The newest entry of every run folder."""
        found: dict[str, Entry] = {}
        notes = sorted(self.folder.glob(f"{PREFIX}*.json"), key=lambda path: path.stat().st_mtime)
        for path in notes:
            note = read_json(path, dict)
            for row in note["runs"]:
                found[row["folder"]] = Entry(row["job"], note["name"], row["folder"], tuple(row["args"]))
        return found

    def live(self, queue: dict[str, Job]) -> dict[str, Entry]:
        """Those that SLURM still has, by run folder."""
        return {folder: entry for folder, entry in self.all().items() if find(queue, entry.job, entry.name)}
