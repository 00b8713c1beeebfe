"""Training runs on a real SLURM of two nodes: one node dies in the middle, a job of the other is preempted."""

import re
import threading

import pytest

from dassl_prompts.configs.recipes import config_file
from dassl_prompts.run.launchers import cluster
from dassl_prompts.run.launchers.records import Records
from dassl_prompts.run.launchers.slurm import SlurmLauncher
from dassl_prompts.run.plan import plan
from dassl_prompts.run.steps import Step
from tests.run.fake import InProcess
from tests.run.launchers.conftest import wait_for

pytestmark = pytest.mark.usefixtures("slurm", "quick")
EPOCHS = 25


def training(folder):
    files = ("--config-file", config_file("trainers", "CoOp", "open_tiny"))
    files += ("--dataset-config-file", config_file("datasets", "emoji"))
    opts = ("DATASET.NUM_SHOTS", "2", "OPTIM.MAX_EPOCH", str(EPOCHS))
    return Step(folder.name, folder, (*files, "--trainer", "CoOp", "--seed", "1", *opts))


def test_a_dead_node_and_a_preemption_cost_an_epoch_at_most(slurm, tmp_path, capsys):
    lost, moved, alone = (training(tmp_path / name) for name in ("lost", "moved", "alone"))

    def disturb():
        for s in (lost, moved):  # both nodes work
            wait_for(lambda s=s: epochs(s))
        dead, other = (cluster.queue()[Records(tmp_path).all()[str(s.output)].job].node for s in (lost, moved))
        slurm.tool("kill-node", dead)
        slurm.ask("sbatch", "-p", "urgent", "-w", other, "-o", "/dev/null", "--wrap", "true")

    thread = threading.Thread(target=disturb)
    thread.start()
    failed = SlurmLauncher(plan([[lost], [moved]]), tmp_path).run()
    thread.join()
    slurm.repair()
    assert failed == [], failed[0].reason
    assert capsys.readouterr().out.count("put back by SLURM, goes on from its last epoch") >= 1
    InProcess(alone.command())
    for s in (lost, moved):
        assert [s.results()[key] for key in ("test", "digests")] == [
            alone.results()[key] for key in ("test", "digests")
        ]
        assert sorted(set(epochs(s))) == list(range(1, EPOCHS + 1)) and len(epochs(s)) <= EPOCHS + 1
        assert (s.output / "console.txt").read_text().count("== job") == 2


def epochs(s):
    """The epochs that a run has finished, in the order in which it did."""
    console = s.output / "console.txt"
    return (
        [int(n) for n in re.findall(r"^epoch \[(\d+)/.* batch \[2/2\]", console.read_text(), re.M)]
        if console.exists()
        else []
    )
