"""A SLURM of the tests' own, on this machine: a controller and two nodes."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[3] / "tools" / "slurm.sh"


def wait_for(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.2)


class Cluster:
    """The running SLURM; ``folder`` has its configuration, logs and spools."""

    def __init__(self, folder):
        self.folder = folder

    def tool(self, action, *words):
        return subprocess.run([TOOL, action, self.folder, *words], check=True, text=True, stdout=subprocess.PIPE).stdout

    def ask(self, *command):
        return subprocess.run(command, check=True, text=True, capture_output=True).stdout

    def repair(self):
        """Both nodes are there and idle."""
        for node in ("n1", "n2"):
            if not Path(f"{self.folder}/slurmd.{node}.pid").exists():
                self.tool("start-node", node)
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True, check=False)
        wait_for(lambda: self.ask("sinfo", "-h", "-p", "main", "-o", "%t %D").split() == ["idle", "2"])


@pytest.fixture(scope="session")
def slurm():
    """Started once; skipped where Debian's slurm-wlm and munge or the rights of root are missing."""
    pytest.importorskip("submitit", reason="submitit is not installed: pip install -e .[slurm]")
    missing = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(
            f"no SLURM of its own can be started: {', '.join(missing) or 'not root'} (apt-get install slurm-wlm munge)"
        )
    with tempfile.TemporaryDirectory(prefix="slurm") as folder:
        cluster = Cluster(folder)
        before = os.environ.get("SLURM_CONF")
        try:
            out = cluster.tool("start")
            os.environ["SLURM_CONF"] = out.split("'")[1]
            yield cluster
        finally:
            cluster.tool("stop")
            if before is None:
                os.environ.pop("SLURM_CONF", None)
            else:
                os.environ["SLURM_CONF"] = before


@pytest.fixture
def quick(monkeypatch):
    """Looks at the queue often."""
    from dassl_prompts.run.launchers import slurm as module

    monkeypatch.setattr(module, "POLL_SECONDS", 0.3)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 1.0)
