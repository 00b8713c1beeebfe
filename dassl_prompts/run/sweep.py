"""Which jobs a command line or a YAML file asks for: protocols x methods x datasets x shots x seeds."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from dassl_prompts.engine.config import read_yaml_file
from dassl_prompts.run.job import Job
from dassl_prompts.run.plan import Node, plan
from dassl_prompts.run.protocols import PROTOCOLS
from dassl_prompts.run.resources import RESOURCES, settle

#: what a file may say once for all runs or for each of its blocks; lists are combined with each other
MATRIX = ("protocol", "trainer", "dataset", "shots", "seed")
SETTINGS = ("cfg", "tag", "opts", "common", "epochs", "task", "targets", "template", "class_names", "gpus_per_run")
SETTINGS += (*RESOURCES, "slurm")
#: what a file may say once
PLACES = ("root", "output", "jobs", "devices", "retry", "import", "launcher", "parallel")
DEFAULTS = {
    "shots": [16],
    "seed": [1],
    **{"cfg": "", "tag": "", "opts": [], "common": [], "epochs": 0, "task": "known"},
    **{"targets": [], "template": "", "class_names": "", "import": [], "slurm": []},
}
#: a config key among the words of a command line: has a dot, or is one of the root's values
CONFIG_KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.[A-Z][A-Z0-9_]*)+|USE_CUDA|VERBOSE|SEED|OUTPUT_DIR|RESUME")
#: flags that take no value: what follows them belongs to nothing
SWITCHES = ("--", "--stop", "--stream", "--no-stream", "--dry-run", "--commands", "--force", "--no-wait")


@dataclass(frozen=True)
class Sweep:
    """Jobs with their protocols, in order."""

    jobs: tuple[tuple[str, Job], ...]

    def nodes(self) -> list[Node]:
        """The graph of all runs.

        Raises:
            ValueError: an unknown recipe or dataset, or two jobs that want one folder with different
            settings.
        """
        return plan(
            [replace(step, resources=job.resources) for step in PROTOCOLS[protocol].steps(job)]
            for protocol, job in self.jobs
        )


def split_opts(words: list[str]) -> tuple[list[str], list[str]]:
    """Take KEY VALUE pairs out of a command line, wherever they stand.

    Raises:
        ValueError: a key without a value.
    """
    flags, opts, at = [], [], 0
    while at < len(words):
        word = words[at]
        before = words[at - 1] if at else ""
        is_value = before.startswith("--") and before not in SWITCHES
        if CONFIG_KEY.fullmatch(word) and not is_value:
            if at + 1 == len(words):
                raise ValueError(f"options come as KEY VALUE pairs, but {word} has no value")
            opts += words[at : at + 2]
            at += 2
        else:
            flags.append(word)
            at += 1
    return [word for word in flags if word != "--"], opts


def read_file(path: str | Path) -> dict[str, Any]:
    """A sweep file: a mapping with the keys above, and under ``runs`` a list of blocks that differ from it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown key or one that stands twice; names the file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no sweep file {path}")
    content = read_yaml_file(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path} has to be a mapping such as 'trainer: [CoOp, MaPLe]', not {type(content).__name__}")
    check_keys(content, (*MATRIX, *SETTINGS, *PLACES, "runs"), path)
    blocks = content.get("runs", [{}])
    if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
        raise ValueError(f"{path}: runs has to be a list of mappings")
    for number, block in enumerate(blocks, 1):
        check_keys(block, (*MATRIX, *SETTINGS), f"{path}, runs entry {number}")
    return content


def check_keys(mapping: dict, known: tuple[str, ...], where: Any) -> None:
    unknown = [str(key) for key in mapping if key not in known]
    if unknown:
        raise ValueError(f"{where} has an unknown key {unknown[0]!r}; known: {', '.join(known)}")


def build(given: dict[str, Any], content: dict[str, Any], root: str, output: Path) -> Sweep:
    """All jobs.

    Args:
        given: values of the command line, which win; None = not given. content: of the sweep file, {} if
        there is none.

    Raises:
        ValueError: nothing to run, a missing or unknown value.
    """
    given = {key: value for key, value in given.items() if value is not None}
    top = {key: value for key, value in content.items() if key in (*MATRIX, *SETTINGS, "import")}
    jobs: list[tuple[str, Job]] = []
    for block in content.get("runs", [{}]):
        jobs += expand({**DEFAULTS, **top, **block, **given}, root, output)
    if not jobs:
        raise ValueError("nothing to run")
    return Sweep(tuple(dict.fromkeys(jobs)))


def expand(values: dict[str, Any], root: str, output: Path) -> list[tuple[str, Job]]:
    """The combinations of one block."""
    missing = [key for key in MATRIX if not as_list(values.get(key))]
    if missing:
        remedy = f"begin with {' or '.join(PROTOCOLS)}" if missing[0] == "protocol" else f"use --{missing[0]}"
        raise ValueError(f"no {missing[0]} is given: {remedy} (--help has examples)")
    unknown = [name for name in as_list(values["protocol"]) if name not in PROTOCOLS]
    if unknown:
        raise ValueError(f"unknown protocol {unknown[0]!r}; choose one of {', '.join(PROTOCOLS)}")
    numbers = {key: [whole(key, value) for value in as_list(values[key])] for key in ("shots", "seed")}
    settings = {
        "cfg": str(values["cfg"] or ""),
        "tag": str(values["tag"] or ""),
        "opts": pairs(values["opts"]),
        "common": pairs(values["common"]),
        "epochs": whole("epochs", values["epochs"]),
        "task": str(values["task"]),
        "targets": tuple(map(str, as_list(values["targets"]))),
        "template": str(values["template"] or ""),
        "class_names": str(values["class_names"] or ""),
        "imports": tuple(map(str, as_list(values["import"]))),
        "resources": settle(values, values["slurm"]),
    }
    told = [name for name in as_list(values["protocol"]) if name != "base2new"]
    if settings["task"] == "unknown" and told:
        raise ValueError(f"task unknown is a part of base2new; {told[0]} tests all its classes together anyway")
    other = [name for name in as_list(values["protocol"]) if name not in ("xd", "dg")]
    if settings["targets"] and other:
        raise ValueError(f"targets are what xd and dg test on; {other[0]} tests on the dataset itself")
    names = [as_list(values[key]) for key in ("protocol", "trainer", "dataset")]
    return [
        (protocol, Job(str(trainer), str(dataset), seed, shots, root=root, output=output, **settings))
        for protocol, trainer, dataset, shots, seed in product(*names, numbers["shots"], numbers["seed"])
    ]


def as_list(value: Any) -> list:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{key} has to be a whole number from 0 on, not {value!r}")
    return value


def pairs(value: Any) -> tuple[str, ...]:
    """KEY VALUE pairs as the command line has them, from a mapping or a list."""
    if isinstance(value, dict):
        value = [item for pair in value.items() for item in pair]
    return tuple(map(str, as_list(value)))
