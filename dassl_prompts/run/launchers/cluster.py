"""What a SLURM controller is asked, and what its answers mean to a user: squeue, scontrol, scancel; never sacct."""

from __future__ import annotations

import getpass
import re
import shutil
import subprocess
from dataclasses import dataclass

ASK_SECONDS = 60
#: what sbatch says -> what to do
REFUSALS = {
    r"invalid partition": "give one of the partitions {partitions} with --partition",
    r"invalid account": "give an account of yours with --account (sacctmgr show associations user=$USER lists them)",
    r"generic resource|gres": "the partition has no such GPUs: change --gpus or --partition (sinfo -o '%P %G' lists them)",
    r"memory specification|node configuration": "no node of the partition is that large: change --cpus, --mem, --gpus or --partition",
    r"time limit": "change --time or --partition (sinfo -s lists the limits)",
    r"unable to contact|connect failure|configuration source|resolve_ctls|s_p_parse_file": "the controller does not answer: try again, or ask its administrators",
    r"unrecognized option|invalid option": "sbatch does not know a flag that --slurm gives",
    r"I/O error|No space left": "the controller's disk is full: tell its administrators, and run the same command again then",
    r"job submit limit|QOSMax|AssocMax|temporarily unable": "submit fewer at once: the same command later submits the rest",
}
#: why a job waits that will not start by itself -> what to do
STUCK = {
    r"JobHeld": "it is held: scontrol release {job}",
    r"PartitionTimeLimit": "--time is more than its partition allows: run cancel, then give less",
    r"PartitionNodeLimit|PartitionConfig|BadConstraints|AccountingPolicy": "no node of its partition has what it asks for: run cancel, then change "
    "--cpus, --mem, --gpus or --partition",
    r"ReqNodeNotAvail|PartitionDown|PartitionInactive|NodeDown|DOWN": "no node can take it now: sinfo -R says why",
}
#: SLURM could not even start the script on the node; the job is held, and the node most often drained
NOT_LAUNCHED = re.compile(r"launch.failed", re.IGNORECASE)


class NoAnswer(RuntimeError):
    """A command of SLURM failed; the message is its first line."""


@dataclass(frozen=True)
class Job:
    """A job, or a task of an array, that SLURM still has: id as ``12_3``, name, state, why it waits, node."""

    id: str
    name: str
    state: str
    reason: str = ""
    node: str = ""


def require() -> None:
    """
    Raises:
        ValueError: there is no SLURM here, or no submitit.
    """
    if shutil.which("sbatch") is None:
        raise ValueError(
            "there is no SLURM here (no sbatch): run this on a login node of the cluster, or use --launcher local, or "
            "--launcher commands for another batch system"
        )
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ValueError("--launcher slurm needs submitit: pip install 'dassl-prompts[slurm]'") from error


def ask(*command: str) -> str:
    """What a command of SLURM prints.

    Raises:
        NoAnswer: it failed or did not answer in a minute.
    """
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise NoAnswer(f"{command[0]} does not answer") from error
    except FileNotFoundError as error:
        raise NoAnswer(f"there is no {command[0]} here") from error
    if run.returncode:
        raise NoAnswer((run.stderr.strip() or f"{command[0]} failed").splitlines()[0])
    return run.stdout


def queue() -> dict[str, Job]:
    """The user's jobs by id, those that wait included."""
    rows = ask("squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%F|%K|%T|%r|%N|%j").splitlines()
    jobs = {}
    for row in rows:
        main, task, state, reason, node, name = row.split("|", 5)
        key = main if task in ("N/A", "") else f"{main}_{task}"
        jobs[key] = Job(key, name, state, reason, node)
    return jobs


def ended(job: str) -> dict[str, str]:
    """What the controller still knows of a job that has ended: JobState, Reason, NodeList ...; {} when it has forgotten it."""
    try:
        text = ask("scontrol", "show", "job", "-o", job).splitlines()[0]
    except (NoAnswer, IndexError):
        return {}
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def find(queue: dict[str, Job], id_: str, name: str) -> Job | None:
    """The job of a number and a name: a new controller begins with its numbers anew, so that the number alone may be another's."""
    job = queue.get(id_)
    return job if job is not None and job.name == name else None


def cancel(jobs: dict[str, str]) -> None:
    """End jobs, by id; each only if it has the name that is given."""
    ids: dict[str, list[str]] = {}
    for id_, name in jobs.items():
        ids.setdefault(name, []).append(id_)
    for name, same in ids.items():
        for at in range(0, len(same), 500):
            ask("scancel", "--name", name, *same[at : at + 500])


def largest_array() -> int:
    """How many tasks an array may have."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", ask("scontrol", "show", "config"))
    return max(1, int(found[1])) if found else 1000


def refusal(said: str) -> str:
    """One line from what sbatch printed on its way out."""
    lines = [re.sub(r"^sbatch: (error: )?", "", line.strip()) for line in said.splitlines() if "sbatch:" in line]
    first = lines[0] if lines else " ".join(said.split())[:200]
    for pattern, remedy in REFUSALS.items():
        if re.search(pattern, said, re.IGNORECASE):
            return f"SLURM refuses: {first}; {remedy.format(partitions=partitions())}"
    return f"SLURM refuses: {first}"


def partitions() -> str:
    try:
        return ", ".join(dict.fromkeys(ask("sinfo", "-h", "-o", "%R").split()))
    except NoAnswer:
        return "of sinfo"


def stuck(job: Job) -> str:
    """What to do about a job that waits and will not start by itself; "" for one that will."""
    for pattern, remedy in STUCK.items():
        if job.state == "PENDING" and re.search(pattern, job.reason):
            return f"job {job.id} waits ({job.reason}): {remedy.format(job=job.id)}"
    return ""


def why_ended(job: str, memory: str) -> str:
    """Why SLURM ended a job, with what to do; "" if it ended by itself or nothing is known."""
    known = ended(job)
    state, node = known.get("JobState", ""), known.get("NodeList", "a node")
    more = f"it had {memory}" if memory else "none was given"
    return {
        "OUT_OF_MEMORY": f"killed for memory: ask for more with --mem ({more})",
        "TIMEOUT": "ended at its time limit: give more with --time",
        "NODE_FAIL": f"node {node} died: the same command goes on from the last epoch",
        "CANCELLED": f"job {job} was cancelled",
        "BOOT_FAIL": f"node {node} did not start: the same command tries another",
        "DEADLINE": "ended at its deadline",
    }.get(state.rstrip("+"), "") or (
        f"job {job} on node {node} could not write where it was told" if cannot_write(known) else ""
    )


def cannot_write(known: dict[str, str]) -> bool:
    """Signal 53 is how SLURM says that a job's output file cannot be opened."""
    return known.get("ExitCode", "").endswith(":53") or "RaisedSignal:53" in known.get("Reason", "")
