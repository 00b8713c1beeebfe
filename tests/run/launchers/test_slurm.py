"""Job arrays on a real SLURM of two nodes: order, failures, attaching, cancelling, dead nodes, requeues, bad input."""

import os
import re
import subprocess
import threading

import pytest

from dassl_prompts.run.__main__ import main
from dassl_prompts.run.launchers import cluster
from dassl_prompts.run.launchers.local import Scheduler
from dassl_prompts.run.launchers.records import Records
from dassl_prompts.run.launchers.slurm import SlurmLauncher
from dassl_prompts.run.plan import plan
from tests.run.fake import FakeStep, step
from tests.run.launchers.conftest import wait_for

pytestmark = pytest.mark.usefixtures("slurm", "quick")


def starts(s):
    return len((s.output / "begin").read_text().splitlines())


def launch(root, *chains, **given):
    nodes = plan(chains)
    return SlurmLauncher(nodes, root, **given).run(), nodes


def with_resources(s, **resources):
    from dataclasses import replace

    return replace(s, resources=tuple(resources.items()))


def test_order_failures_and_tries(tmp_path, capsys):
    first, bad = step(tmp_path, "stage1", fails=1), step(tmp_path, "bad", code=1)
    second, third = step(tmp_path, "a", first), step(tmp_path, "b", first)
    after = step(tmp_path, "after", bad)
    failed, nodes = launch(tmp_path, [first, second], [first, third], [bad, after], retry=1)
    assert [(n.step.title, n.state) for n in failed] == [("bad", "failed"), ("after", "blocked")]
    assert failed[0].reason == f"failed (error: broken on purpose); see {bad.output / 'console.txt'}"
    assert [starts(s) for s in (first, second, third, bad)] == [2, 1, 1, 2] and not (after.output / "begin").exists()
    out = capsys.readouterr().out
    assert "5 runs submitted in 2 job arrays" in out and re.search(r"\[2/5\] a: done in", out)
    wait_for(lambda: cluster.queue() == {})


def test_the_same_command_attaches_to_what_runs_and_skips_what_is_finished(tmp_path, capsys):
    slow = step(tmp_path, "slow", seconds=6)
    after, done = step(tmp_path, "after", slow), step(tmp_path, "done")
    assert Scheduler(plan([[done]])).run() == []
    assert launch(tmp_path, [slow, after], [done], wait=False)[0] == []
    other = type(slow)("slow", slow.output, (*slow.args, "OPTIM.LR", "0.1"), 0, 6)
    with pytest.raises(ValueError, match=r"still in the queue as job \d+, and it was submitted with other settings"):
        launch(tmp_path, [other])
    with pytest.raises(ValueError, match="--force repeats it: end it first with 'run cancel"):
        launch(tmp_path, [slow], force=True)
    failed, nodes = launch(tmp_path, [slow, after], [done])
    assert failed == [] and [n.state for n in nodes] == ["finished", "finished", "skipped"]
    assert starts(slow) == starts(after) == starts(done) == 1
    assert "2 runs are in the queue already and are watched" in capsys.readouterr().out


def test_requeue_status_and_cancel(slurm, tmp_path, capsys):
    steps = [step(tmp_path, name, seconds=600) for name in ("a", "b")]
    held = with_resources(step(tmp_path, "c"), **{"slurm hold": ""})
    launch(tmp_path, *[[s] for s in (*steps, held)], wait=False)
    wait_for(lambda: all((s.output / "begin").exists() for s in steps))
    capsys.readouterr()
    slurm.ask("scancel", "-s", "USR2", Records(tmp_path).all()[str(steps[0].output)].job)  # as before its time limit
    wait_for(lambda: starts(steps[0]) == 2)
    assert main(["status", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert (
        re.search(r"running +\d+_0 +n\d", out)
        and "2 running, 1 waiting" in out
        and "it is held: scontrol release" in out
    )
    assert main(["cancel", "--output", str(tmp_path)]) == 0
    assert "3 runs cancelled" in capsys.readouterr().out
    wait_for(lambda: not cluster.queue())
    assert main(["status", "--output", str(tmp_path)]) == 0 and "3 failed" in capsys.readouterr().out
    assert main(["status", "--output", str(tmp_path / "other")]) == 2
    assert "no runs were submitted from" in capsys.readouterr().err


def test_at_most_parallel_runs_at_once_across_arrays(tmp_path):
    steps = [with_resources(step(tmp_path, str(i), seconds=0.5), mem=f"{100 + i}M") for i in range(2)]
    assert launch(tmp_path, *[[s] for s in steps], parallel=1)[0] == []
    began = sorted(float((s.output / "begin").read_text().split()[0]) for s in steps)
    ended = sorted(float((s.output / "end").read_text()) for s in steps)
    assert began[1] >= ended[0]


def test_a_killed_run_and_a_cancelled_one_say_why(tmp_path):
    killed = Shot("killed", tmp_path / "killed", (), resources=(("mem", "100M"),))
    slow = step(tmp_path, "slow", seconds=60)

    def cancel():
        wait_for(lambda: (slow.output / "begin").exists())
        entry = Records(tmp_path).all()[str(slow.output)]
        subprocess.run(["scancel", entry.job], check=True)

    thread = threading.Thread(target=cancel)
    thread.start()
    failed, _ = launch(tmp_path, [killed], [slow])
    thread.join()
    reasons = {n.step.title: n.reason for n in failed}
    assert "for want of memory: ask for more with --mem (it had 100M)" in reasons["killed"]
    assert re.match(r"job \d+ was cancelled .*see .*console.txt", reasons["slow"])


def test_only_a_job_of_the_name_is_ended(tmp_path):
    """Numbers begin anew on a new controller, where one of ours may be somebody's other job."""
    out = subprocess.run(
        ["sbatch", "--parsable", "--job-name=mine", f"--output={tmp_path}/log", "--wrap", "sleep 60"],
        capture_output=True,
        text=True,
        check=True,
    )
    job = out.stdout.strip()
    cluster.cancel({job: "dassl-0"})
    queue = cluster.queue()
    assert cluster.find(queue, job, "dassl-0") is None and cluster.find(queue, job, "mine").id == job
    cluster.cancel({job: "mine"})
    wait_for(lambda: job not in cluster.queue())


class Shot(FakeStep):
    """A run that the kernel ends."""

    def command(self):
        return ["bash", "-c", "kill -KILL $$"]


def test_what_slurm_refuses_is_one_line_and_starts_nothing(tmp_path, capsys):
    wrong = with_resources(step(tmp_path, "a"), partition="nope")
    with pytest.raises(
        ValueError, match=r"invalid partition.*give one of the partitions main, urgent with --partition\. Nothing"
    ):
        launch(tmp_path, [wrong])
    huge = with_resources(step(tmp_path, "b"), mem="900T")
    with pytest.raises(ValueError, match=r"no node of the partition is that large: change --cpus, --mem"):
        launch(tmp_path, [huge])
    with pytest.raises(ValueError, match=r"sbatch does not know a flag that --slurm gives"):
        launch(tmp_path, [with_resources(step(tmp_path, "c"), **{"slurm frobnicate": "3"})])
    assert cluster.queue() == {}


def test_a_controller_that_does_not_answer(tmp_path, monkeypatch):
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(
        "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2\nexit 1\n"
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    with pytest.raises(ValueError, match=r"^SLURM refuses: .*the controller does not answer"):
        launch(tmp_path, [step(tmp_path, "a")])


@pytest.fixture
def node_behind(slurm, tmp_path):
    """Starts a node that sees an empty file system of the given size where another folder is; the other node stands still."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives nobody a view of the file system of their own (unshare -m)")

    def start(folder, size):
        os.makedirs(folder, exist_ok=True)
        slurm.tool("kill-node", "n2")
        mount = f"mount -t tmpfs -o size={size} none {folder} && exec slurmd -N n2 -f $SLURM_CONF"
        subprocess.run(["unshare", "-m", "sh", "-c", mount], check=True)
        slurm.ask("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
        wait_for(lambda: "idle" in slurm.ask("sinfo", "-h", "-n", "n2", "-o", "%t"))

    yield start
    slurm.tool("kill-node", "n2")
    slurm.repair()


def test_a_folder_that_the_nodes_do_not_share(tmp_path, node_behind):
    node_behind(tmp_path / "out", "1m")
    failed, _ = launch(tmp_path / "out", [step(tmp_path / "out", "a")])
    assert "the nodes do not see this folder; choose a disk that they share with --output" in failed[0].reason


def test_a_full_spool(slurm, tmp_path, node_behind):
    node_behind(f"{slurm.folder}/spool/n2", "4k")
    failed, _ = launch(tmp_path, [step(tmp_path, "a")])
    assert "could not start it on its node, whose spool is full" in failed[0].reason
    assert cluster.queue() == {}
