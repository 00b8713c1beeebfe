"""The cluster launcher on a SLURM of two nodes on this machine, each pinned to a core (Debian's slurm-wlm and munge, as root).

    python -m benchmarks.distributed [--parts planned nodes disturbed] [--write]

Submits a thousand runs; compares runs through the launcher with plain sbatch and one node with two; then makes 24 runs on this
machine and again on the cluster, where a node is killed and a job preempted, and compares their results.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from benchmarks.pages import DOCS, conditions, write_section
from dassl_prompts.run.launchers import cluster
from dassl_prompts.run.launchers.slurm import SlurmLauncher
from dassl_prompts.run.plan import Node
from dassl_prompts.run.steps import CONSOLE
from dassl_prompts.run.sweep import build

TOOL = Path(__file__).resolve().parent.parent / "tools" / "slurm.sh"
TITLE = "The cluster launcher on SLURM"
#: the sweep that is disturbed: four methods, three seeds, DPC on top of CoOp's runs
SWEEP = "base2new --trainer CoOp KgCoOp ProGrad DPC_CoOp --dataset emoji --seed 1 2 3 --shots 1 --epochs 5"
RUNS = 6


def steps(output: Path, seeds: int, protocol: str = "fewshot", **given) -> list[Node]:
    """Runs of CoOp on the emoji that differ in the seed."""
    asked = {"protocol": [protocol], "trainer": ["CoOp"], "dataset": ["emoji"], "seed": list(range(1, seeds + 1))}
    return build({**asked, "shots": [4], "epochs": 20, **given}, {}, "data", output).nodes()


def submit(nodes: list[Node], output: Path, wait: bool = True) -> list[Node]:
    with contextlib.redirect_stdout(io.StringIO()):
        return SlurmLauncher(nodes, output, wait=wait).run()


def thousand(folder: Path) -> float:
    """Seconds from a plan of 1,000 runs to 1,000 jobs in the queue, held."""
    nodes = steps(folder, 500, "base2new", slurm=["hold"])
    assert len(nodes) == 1000
    begin = time.perf_counter()
    submit(nodes, folder, wait=False)
    seconds = time.perf_counter() - begin
    waiting = cluster.queue()
    assert len(waiting) == 1000, len(waiting)
    cluster.cancel({id_.split("_")[0]: job.name for id_, job in waiting.items()})
    return seconds


def through_launcher(folder: Path) -> float:
    """Seconds from the submission of some runs to the last result."""
    nodes = steps(folder, RUNS)
    begin = time.time()
    failed = submit(nodes, folder)
    assert not failed, failed
    return max((n.step.output / "results.json").stat().st_mtime for n in nodes) - begin


def plain(folder: Path) -> float:
    """The same runs as an array of ``sbatch`` by hand."""
    nodes = steps(folder, RUNS)
    lines = "\n".join(f"{i}) exec {' '.join(n.step.command())} ;;" for i, n in enumerate(nodes))
    script = f"#!/bin/bash\nexport OMP_NUM_THREADS=1\ncase $SLURM_ARRAY_TASK_ID in\n{lines}\nesac\n"
    begin = time.time()
    command = ["sbatch", "--wait", f"--array=0-{RUNS - 1}", "-o", "/dev/null"]
    subprocess.run(command, input=script, text=True, check=True, capture_output=True)
    return max((n.step.output / "results.json").stat().st_mtime for n in nodes) - begin


def disturbed(folder: Path, slurm: Path) -> tuple[str, int, int, int]:
    """The sweep on this machine and on the cluster, disturbed.

    Returns:
        the transcript, the number of runs, those with equal results, and epochs that were trained twice.
    """
    command = [sys.executable, "-m", "dassl_prompts.run", *SWEEP.split()]
    local, remote = folder / "local", folder / "remote"
    subprocess.run([*command, "--jobs", "2", "--output", str(local)], check=True, capture_output=True)
    said = []

    def tell(line: str) -> None:
        said.append(f"{time.time() - begin:5.0f} s  {line}")

    begin, done, hurt = time.time(), 0, 0
    process = subprocess.Popen(
        [*command, "--launcher", "slurm", "--output", str(remote)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("["):
            tell(line.strip().split(" -> ")[0])
        done += ": done in" in line
        running = [job for job in cluster.queue().values() if job.state == "RUNNING"] if hurt < 2 else []
        if done >= 3 and hurt == 0 and len(running) == 2:
            tell(f"(kill node {running[0].node}, which runs job {running[0].id})")
            subprocess.run([TOOL, "kill-node", slurm, running[0].node], check=True)
            dead, hurt = running[0].node, 1
        elif done >= 6 and hurt == 1 and (left := [job for job in running if job.node != dead]):
            tell(f"(a job of the partition urgent takes the place of job {left[0].id}; node {dead} is back)")
            subprocess.run(
                ["sbatch", "-p", "urgent", "-w", left[0].node, "-o", "/dev/null", "--wrap", "sleep 1"],
                check=True,
                capture_output=True,
            )
            subprocess.run([TOOL, "start-node", slurm, dead], check=True)
            hurt = 2
    assert process.wait() == 0, "the sweep failed"
    tell("all done")
    results = {path.parent.relative_to(local): json.loads(path.read_text()) for path in local.rglob("results.json")}
    equal = sum(
        all(result[key] == found[key] for key in ("test", "digests", "classnames"))
        for name, result in results.items()
        for found in [json.loads((remote / name / "results.json").read_text())]
    )
    return "\n".join(said), len(results), equal, sum(trained_twice(remote / name / CONSOLE) for name in results)


def trained_twice(console: Path) -> int:
    """How many epochs a run began again after it had finished them."""
    ended = re.findall(r"^epoch \[(\d+)/.* batch \[(\d+)/\2\]", console.read_text(), re.MULTILINE)
    return len(ended) - len(set(ended))


def report_planned(folder: Path, slurm: Path) -> str:
    return f"1,000 planned runs of CoOp, checked, submitted and held by SLURM: {thousand(folder):.1f} s."


def report_nodes(folder: Path, slurm: Path) -> str:
    both = through_launcher(folder / "both")
    subprocess.run(["scontrol", "update", "nodename=n2", "state=drain", "reason=measured"], check=True)
    one = through_launcher(folder / "one")
    alone = plain(folder / "plain")
    rows = [
        ("one node, arrays of sbatch by hand", f"{alone:.1f} s"),
        ("one node, launcher", f"{one:.1f} s"),
        ("two nodes, launcher", f"{both:.1f} s"),
        ("overhead of the launcher per run", f"{(one - alone) / RUNS:.2f} s"),
        ("throughput of two nodes over one", f"{one / both:.2f}x"),
    ]
    table = tabulate(
        rows, (f"{RUNS} trainings of CoOp", "from submission to the last result"), "github", disable_numparse=True
    )
    return f"{table}"


def report_disturbed(folder: Path, slurm: Path) -> str:
    transcript, count, equal, twice = disturbed(folder, slurm)
    return (
        f"`run {SWEEP} --launcher slurm`, with what was done to it in brackets. {equal} of {count} results (test, digests, class "
        f"names) are those of `--launcher local`; {twice} epochs were trained twice.\n\n```text\n{transcript}\n```"
    )


#: part -> heading, and what makes its section
PARTS = {
    "planned": ("A thousand runs", report_planned),
    "nodes": ("One node and two", report_nodes),
    "disturbed": ("A node dies, a job is preempted", report_disturbed),
}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (default: everything)"
    )
    p.add_argument("--write", action="store_true", help="write docs/benchmarks/distributed.md")
    args = p.parse_args()
    os.environ["DASSL_PROMPTS_FEATURES"] = "off"  # every run computes its own
    os.environ["OMP_NUM_THREADS"] = "1"
    for part in args.parts:
        heading, measure = PARTS[part]
        with tempfile.TemporaryDirectory(prefix="distributed") as scratch:
            slurm = Path(scratch, "slurm")
            out = subprocess.run([TOOL, "start", slurm], check=True, stdout=subprocess.PIPE, text=True).stdout
            os.environ["SLURM_CONF"] = out.split("'")[1]
            try:
                text = measure(Path(scratch), slurm)
            finally:
                subprocess.run([TOOL, "stop", slurm], check=True)
        text += (
            f"\n\nWritten by `python -m benchmarks.distributed --parts {part} --write`: a SLURM of two nodes on this machine "
            f"(`tools/slurm.sh`), each pinned to a core. {conditions('cpu', 1)} ({os.cpu_count()} cores, shared with other work)."
        )
        print(text, flush=True)
        if args.write:
            write_section(DOCS / "distributed.md", TITLE, heading, text)


if __name__ == "__main__":
    main()
