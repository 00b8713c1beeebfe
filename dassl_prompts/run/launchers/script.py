"""Writes a graph of steps as a script for batch systems that have no launcher here: PBS, SGE, Kubernetes, xargs."""

from __future__ import annotations

import shlex
from pathlib import Path

from dassl_prompts.engine.files import write_text
from dassl_prompts.run.launchers.base import Launcher
from dassl_prompts.run.launchers.slurm import batches
from dassl_prompts.run.plan import Node

SCRIPT = "jobs.sh"
HEAD = """\
#!/usr/bin/env bash
# {count} runs in {arrays} arrays, written by dassl-prompts. An array starts when the one before it has ended; finished runs are
# skipped, unfinished ones go on from their last epoch.
{calls}
# usage: {name} ARRAY [NUMBER]; the line to adapt says where your batch system keeps the number of a task, counted from 1
number=${{2:-${{SLURM_ARRAY_TASK_ID:-${{PBS_ARRAY_INDEX:-${{PBS_ARRAYID:-${{SGE_TASK_ID:-$((${{JOB_COMPLETION_INDEX:?number of the run}} + 1))}}}}}}}}}}
array=${{1:-${{ARRAY:?number of the array}}}}
cd {folder} || exit 2
case $array.$number in
"""
CALLS = {
    "SLURM": "sbatch --array=1-{size}{slurm_throttle} {script} {array}",
    "PBS": "qsub -J 1-{size}{throttle} -v ARRAY={array} {script}",
    "SGE": "qsub -t 1-{size} {sge_throttle}-v ARRAY={array} {script}",
    "Kubernetes": "completionMode: Indexed, completions: {size}, parallelism: {at_once}, command: bash {script} {array}",
    "one machine": "seq {size} | xargs -P {at_once} -I N bash {script} {array} N",
}


class ScriptLauncher(Launcher):
    """Writes ``<output>/jobs.sh`` and starts nothing.

    Args:
        output: root of the output tree. parallel: how many runs at most at once, 0 = all. given: the other arguments of
        :class:`Launcher`.
    """

    watches = False

    def __init__(self, nodes: list[Node], output: Path, *, parallel: int = 0, **given):
        super().__init__(nodes, **given)
        self.output, self.parallel = output, parallel

    def work(self) -> None:
        path = self.output.absolute() / SCRIPT
        todo = [node for node in self.nodes if node.state == "waiting"]
        arrays = list(batches(todo, len(todo) or 1))
        write_text(script(arrays, path, self.parallel), path)
        path.chmod(0o755)
        print(f"{len(todo)} runs in {len(arrays)} arrays are in {path}; its head says how to start them", flush=True)


def script(arrays: list[list[Node]], path: Path, parallel: int) -> str:
    """The text of the script.

    Args:
        arrays: what each holds. path: where it will stand. parallel: runs at most at once, 0 = all.
    """
    calls, cases = [], []
    for array, nodes in enumerate(arrays, 1):
        words = {
            "array": array,
            "size": len(nodes),
            "script": shlex.quote(str(path)),
            "at_once": min(parallel or len(nodes), len(nodes)),
            "throttle": f"%{parallel}" if parallel else "",
            "slurm_throttle": f"%{parallel}" if parallel else "",
            "sge_throttle": f"-tc {parallel} " if parallel else "",
        }
        asked = ", ".join(f"{key} {value}" for key, value in nodes[0].step.resources)
        calls.append(f"# array {array}: {len(nodes)} runs{f' ({asked})' if asked else ''}")
        calls += [f"#   {system + ':':<12} {call.format(**words)}" for system, call in CALLS.items()]
        for number, node in enumerate(nodes, 1):
            cases.append(f"{array}.{number}) exec {shlex.join(command(node))} ;;")
    head = HEAD.format(
        count=sum(map(len, arrays)),
        arrays=len(arrays),
        calls="\n".join(calls),
        name=path.name,
        folder=shlex.quote(str(Path.cwd())),
    )
    return head + "\n".join([*cases, '*) echo "there is no run $array.$number" >&2; exit 2 ;;', "esac", ""])


def command(node: Node) -> list[str]:
    """The command line of a run that looks after itself, see :mod:`dassl_prompts.run.launchers.task`."""
    run = node.step.command()
    needs = [str(n.step.output) for n in node.after]
    task = [run[0], "-m", "dassl_prompts.run.launchers.task", str(node.step.output)]
    return [*task, *(["--needs", *needs] if needs else []), "--", *run]
