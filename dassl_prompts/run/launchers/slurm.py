"""Runs a graph of steps as SLURM job arrays, through submitit; a run is judged by its results.json and by what SLURM still has."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dassl_prompts.run.launchers import cluster
from dassl_prompts.run.launchers.base import Launcher
from dassl_prompts.run.launchers.records import FOLDER, Entry, Records
from dassl_prompts.run.launchers.task import Task
from dassl_prompts.run.plan import Node, block_dependents
from dassl_prompts.run.progress import last_line
from dassl_prompts.run.resources import DEFAULT_TIME, minutes
from dassl_prompts.run.steps import CONSOLE, remove_run

#: between two looks at the queue
POLL_SECONDS = 5.0
#: how long the files of a job that is gone may take to be seen here
SETTLE_SECONDS = 20.0
#: how often a run may reach its time limit; one that finishes no epoch in between is not started again
TIMEOUTS = 10_000


class SlurmLauncher(Launcher):
    """Submits the nodes, an array per level of the graph, and watches them.

    Args:
        output: root of the output tree, on a disk that the nodes share. parallel: how many runs at most at once; 0 = as many as
        SLURM starts. wait: watch the runs; otherwise leave when they are submitted. given: the other arguments of
        :class:`Launcher`.
    """

    def __init__(self, nodes: list[Node], output: Path, *, parallel: int = 0, wait: bool = True, **given):
        super().__init__(nodes, at_once=parallel or 1, **given)
        self.output, self.parallel, self.watches = output, parallel, wait
        self.records = Records(output)
        self.active: dict[str, Node] = {}
        self.names: dict[str, str] = {}
        self.attached = False
        self.since: dict[int, float] = {}
        self.gone: dict[str, float] = {}
        self.over: list[str] = []
        self.told: set[str] = set()

    # -- before anything starts ---------------------------------------------------------------------------

    def skip_finished(self) -> None:
        """As every launcher, and find the runs that an earlier command has submitted.

        Raises:
            ValueError: no SLURM, or a run goes on with other settings; nothing was started.
        """
        cluster.require()
        try:
            live = self.records.live(cluster.queue())
        except cluster.NoAnswer as error:
            raise ValueError(cluster.refusal(str(error))) from error
        mine = {str(node.step.output.absolute()): node for node in self.nodes}
        live = {folder: entry for folder, entry in live.items() if folder in mine}
        for folder, entry in live.items():
            if self.force or entry.args != mine[folder].step.args:
                why = "--force repeats it" if self.force else "it was submitted with other settings"
                raise ValueError(
                    f"{folder} is still in the queue as job {entry.job}, and {why}: end it first with "
                    f"'run cancel --output {self.output}', or choose another --tag"
                )
        super().skip_finished()
        for folder, entry in live.items():
            if mine[folder].state == "waiting":
                self.active[entry.job], self.names[entry.job] = mine[folder], entry.name
                mine[folder].tries += 1

    # -- submission ---------------------------------------------------------------------------------------

    def work(self) -> None:
        known = {id(node) for node in self.active.values()}
        if known and not self.attached:
            print(f"{len(known)} runs are in the queue already and are watched", flush=True)
        self.attached = True
        self.submit([node for node in self.nodes if node.state == "waiting" and id(node) not in known])
        while self.watches and self.active:
            self.look()
            running = [node for node in self.active.values() if node.state == "running"]
            self.progress.slots = self.parallel or len(running) or 1
            self.progress.refresh(running)
            if self.active:
                time.sleep(POLL_SECONDS)

    def submit(self, nodes: list[Node]) -> None:
        """
        Raises:
            ValueError: SLURM does not take them; says how many it took before.
        """
        if not nodes:
            return
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        began, arrays = time.monotonic(), 0
        try:
            largest = cluster.largest_array()
            for batch in batches(nodes, largest):
                self.submit_array(batch)
                arrays += 1
        except (FailedJobError, FailedSubmissionError, cluster.NoAnswer) as error:
            taken = len({id(n) for n in self.active.values()} & {id(n) for n in nodes})
            raise ValueError(
                f"{cluster.refusal(str(error))}. {f'{taken} runs were submitted before' if taken else 'Nothing was started'}"
            ) from error
        seconds = time.monotonic() - began
        print(f"{len(nodes)} runs submitted in {arrays} job arrays, {seconds:.1f} s; notes and SLURM's logs are in "
              f"{self.output / FOLDER}", flush=True)  # fmt: skip

    def submit_array(self, nodes: list[Node]) -> None:
        """One array, behind those that it needs; with --parallel behind all others, so that no more run at once."""
        import submitit

        asked = dict(nodes[0].step.resources)
        limit = minutes(asked.get("time", DEFAULT_TIME))
        name = self.records.new_name()
        jobs = {id(node): job.split("_")[0] for job, node in self.active.items()}
        before = (
            jobs.values() if self.parallel else [jobs[id(n)] for node in nodes for n in node.after if id(n) in jobs]
        )
        executor = submitit.SlurmExecutor(self.records.folder, max_num_timeout=TIMEOUTS)
        executor.update_parameters(**parameters(asked, name, limit, sorted(set(before)), self.parallel or len(nodes)))
        tasks = []
        for node in nodes:
            if self.force and node.tries == 0:
                remove_run(node.step.output)
            needs = [n.step.output.absolute() for n in node.after]
            tasks.append(Task(node.step.command(), node.step.output.absolute(), needs, asked.get("mem", ""), limit))
        with executor.batch():
            submitted = [executor.submit(task) for task in tasks]
        entries = []
        for job, node in zip(submitted, nodes):
            self.active[job.job_id], self.names[job.job_id] = node, name
            node.tries += 1
            entries.append(Entry(job.job_id, name, str(node.step.output.absolute()), node.step.args))
        self.records.add(name, entries)

    # -- watching -----------------------------------------------------------------------------------------

    def look(self) -> None:
        """Compare the runs with their results and with the queue."""
        try:
            queue = cluster.queue()
        except cluster.NoAnswer as error:
            self.tell(f"SLURM does not answer ({error}); the jobs go on, asking again")
            return
        for id_, node in sorted(self.active.items(), key=lambda pair: self.progress.number[id(pair[1])]):
            job = cluster.find(queue, id_, self.names[id_])
            if node.state == "blocked":
                self.drop(id_)
            elif self.finished(node):
                self.ended(id_, node)
            elif job is None:
                self.lost(id_, node)
            elif job.state == "RUNNING" and node.state == "waiting":
                node.state = "running"
                self.since[id(node)] = time.monotonic()
                self.progress.started(node)
            elif job.state == "PENDING" and cluster.NOT_LAUNCHED.search(job.reason):
                self.fail(id_, node, f"SLURM could not start it on its node, whose spool is full or which does not see "
                          f"{node.step.output}: sinfo -R says which; the same command tries again elsewhere")  # fmt: skip
            elif job.state == "PENDING":
                if node.state == "running":
                    node.state = "waiting"
                    self.progress.say(f"{self.progress.label(node)}: put back by SLURM, goes on from its last epoch")
                if remedy := cluster.stuck(job):
                    self.tell(remedy)

    def finished(self, node: Node) -> bool:
        try:
            return node.step.results() is not None
        except ValueError:  # is being copied to here, or damaged: the job's end tells
            return False

    def ended(self, id_: str, node: Node) -> None:
        del self.active[id_]
        node.state = "finished"
        node.seconds = time.monotonic() - self.since.get(id(node), time.monotonic())
        self.progress.ended(node)
        self.over.append(id_)

    def lost(self, id_: str, node: Node) -> None:
        """A run that SLURM no longer has and that has no result: wait for its files, then say why."""
        if any(not n.done for n in node.after):  # what it needs is settled first
            if not any(n in self.active.values() for n in node.after):
                node.state = "waiting"  # its job looked for what it needs and ended
                block_dependents(self.nodes)
            return
        if time.monotonic() - self.gone.setdefault(id_, time.monotonic()) < SETTLE_SECONDS:
            return
        asked = dict(node.step.resources)
        self.fail(id_, node, self.reason(id_, node, asked.get("mem", "")))

    def reason(self, id_: str, node: Node, memory: str) -> str:
        """Why a run failed, in one line, with the file that says more."""
        console = node.step.output / CONSOLE
        logs = [path for path in self.records.folder.glob(f"{id_}_*_log.*") if path.stat().st_size]
        why = cluster.why_ended(id_, memory)
        said = last_line(console)
        if not console.is_file() and not logs and (not why or "could not write" in why):
            return (
                f"{f'{why}, and' if why else f'job {id_} ended and'} nothing of it is in {node.step.output}: the nodes do not see "
                "this folder; choose a disk that they share with --output"
            )
        log = console if console.is_file() else next(iter(logs), self.records.folder)
        return f"{why or 'failed'}{f' ({said})' if said else ''}; see {log}"

    def fail(self, id_: str, node: Node, reason: str) -> None:
        self.drop(id_)
        node.state, node.reason = "failed", reason
        self.stopped = self.stop
        block_dependents(self.nodes)
        self.progress.ended(node)
        if self.stopped:
            for job in [job for job, other in self.active.items() if other.state != "running"]:
                self.drop(job)

    def drop(self, id_: str) -> None:
        """Give up a job; one that is still in the queue is cancelled."""
        self.active.pop(id_, None)
        try:
            cluster.cancel({id_: self.names[id_]})
        except cluster.NoAnswer:  # it is gone already
            pass

    def tell(self, text: str) -> None:
        """Say something once."""
        if text not in self.told:
            self.told.add(text)
            self.progress.say(text)

    def close(self) -> None:
        for id_ in self.over:  # submitit's files; all there is to say is in the run's folder
            for path in self.records.folder.glob(f"{id_}_*"):
                path.unlink(missing_ok=True)
        if self.active:
            print(
                f"\n{len(self.active)} runs go on in SLURM: the same command watches them again; "
                f"'run status --output {self.output}' lists them, 'run cancel --output {self.output}' ends them",
                file=sys.stderr,
            )


def parameters(asked: dict[str, str], name: str, limit: int, before: list[str], at_once: int) -> dict:
    """What submitit is told of an array.

    Args:
        asked: resources. limit: minutes. before: ids of arrays that come first, however they end: a run looks itself whether
        what it needs is there.
    """
    flags = {key.removeprefix("slurm "): value or True for key, value in asked.items() if key.startswith("slurm ")}
    found = {
        "job_name": name,
        "time": limit,
        "signal_delay_s": min(90, 60 * limit // 4),
        "array_parallelism": at_once,
        "stderr_to_stdout": True,
        "cpus_per_task": int(asked["cpus"]) if "cpus" in asked else None,
        "gpus_per_node": int(asked["gpus"]) if int(asked.get("gpus", 0)) else None,
        "partition": asked.get("partition"),
        "account": asked.get("account"),
        "dependency": f"afterany:{':'.join(before)}" if before else None,
        "additional_parameters": {"requeue": True, **({"mem": asked["mem"]} if "mem" in asked else {}), **flags},
    }
    return {key: value for key, value in found.items() if value is not None}


def batches(nodes: list[Node], largest: int) -> Iterator[list[Node]]:
    """The nodes by level of the graph and by resources, in arrays of at most ``largest``."""
    level: dict[int, int] = {}
    groups: dict[tuple, list[Node]] = {}
    for node in nodes:  # the plan has what a node needs before it
        level[id(node)] = 1 + max((level.get(id(n), 0) for n in node.after), default=0)
        groups.setdefault((level[id(node)], node.step.resources), []).append(node)
    for key in sorted(groups, key=lambda key: key[0]):
        for at in range(0, len(groups[key]), largest):
            yield groups[key][at : at + largest]


# -- run status, run cancel -------------------------------------------------------------------------------


def status(output: Path) -> str:
    """The runs that were submitted from an output tree: those that wait or run, those that failed, and how many are finished."""
    from tabulate import tabulate

    from dassl_prompts.run.progress import running_state
    from dassl_prompts.run.steps import Step

    entries, queue = submitted(output)
    rows, counts = [], {}
    for folder, entry in entries.items():
        job, step = cluster.find(queue, entry.job, entry.name), Step("", Path(folder), entry.args)
        done = step.results() is not None
        state = "finished" if done else {"RUNNING": "running"}.get(job.state, "waiting") if job else "failed"
        counts[state] = counts.get(state, 0) + 1
        if state == "running":
            rows.append((state, entry.job, job.node, running_state(Node(step))[0], folder))
        elif state == "waiting":
            rows.append((state, entry.job, "", cluster.stuck(job) or job.reason, folder))
        elif state == "failed":
            rows.append((state, entry.job, "", last_line(Path(folder) / CONSOLE)[:60], folder))
    table = tabulate(rows, ("state", "job", "node", "", "folder"), disable_numparse=True) + "\n\n" if rows else ""
    return table + ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def cancel(output: Path) -> str:
    """End the runs of an output tree that wait or run; a line that says how many."""
    entries, queue = submitted(output)
    jobs = {e.job: e.name for e in entries.values() if cluster.find(queue, e.job, e.name)}
    cluster.cancel(jobs)
    return f"{len(jobs)} runs cancelled; what they saved stays, the same command goes on from there"


def submitted(output: Path) -> tuple[dict[str, Entry], dict[str, cluster.Job]]:
    """
    Raises:
        ValueError: nothing was submitted from there, or no answer from SLURM.
    """
    if shutil.which("squeue") is None:
        raise ValueError("there is no SLURM here (no squeue): run this on a login node of the cluster")
    entries = Records(output).all()
    if not entries:
        raise ValueError(f"no runs were submitted from {output} (no {output / FOLDER}): give the --output of the runs")
    try:
        return entries, cluster.queue()
    except cluster.NoAnswer as error:
        raise ValueError(cluster.refusal(str(error))) from error
