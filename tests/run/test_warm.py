"""Runs forked from a process that has imported everything: same results, exit codes, output and end as a command of their own."""

import json
import os
import subprocess
import sys

import pytest

from dassl_prompts.configs.recipes import config_file
from dassl_prompts.run.launchers.local import launch
from dassl_prompts.run.warm import WarmRun, available

COMMAND = [sys.executable, "-m", "dassl_prompts.train"]
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.skipif(not available(COMMAND), reason="this system has no fork server")


def training(output):
    files = ["--dataset-config-file", config_file("datasets", "emoji"), "--config-file"]
    files += [config_file("trainers", "CoOp", "open_tiny")]
    opts = ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]
    return [*COMMAND, "--output-dir", str(output), *files, "--trainer", "CoOp", "--seed", "1", *opts]


def test_a_forked_run_computes_what_a_command_of_its_own_computes(tmp_path):
    found = []
    for name, warm in (("forked", True), ("own", False)):
        process = launch(training(tmp_path / name), ENV, tmp_path / f"{name}.txt", warm)
        assert isinstance(process, WarmRun) is warm
        assert process.wait(120) == 0, (tmp_path / f"{name}.txt").read_text()
        results = json.loads((tmp_path / name / "results.json").read_text())
        found.append([results[key] for key in ("test", "digests", "classnames")])
    assert found[0] == found[1]


def test_output_and_exit_code_of_a_wrong_command(tmp_path):
    process = launch([*COMMAND, "--trainer", "CoOp"], ENV, tmp_path / "console.txt", True)
    assert process.wait(60) == 2 == process.poll() == process.returncode
    assert "DATASET.NAME is empty: give --dataset" in (tmp_path / "console.txt").read_text()


def test_a_forked_run_can_be_killed_and_waited_for(tmp_path):
    process = launch(training(tmp_path / "run"), ENV, tmp_path / "console.txt", True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    assert process.poll() is None and process.pid != os.getpid()
    process.kill()
    assert process.wait(20) == -9


def test_environment_and_screen_are_the_runs_own(tmp_path, capfd):
    process = launch([*COMMAND, "--help"], {**ENV, "COLUMNS": "50"}, None, True)
    assert process.wait(60) == 0
    printed = capfd.readouterr().out
    assert printed.splitlines()[0] == "usage: train.py [-h] [--root ROOT]"  # wrapped for a narrow screen
    assert "COLUMNS" not in os.environ or os.environ["COLUMNS"] != "50"


@pytest.mark.parametrize("command", [["true"], [sys.executable, "-c", "pass"], ["other", "-m", "dassl_prompts.train"]])
def test_other_commands_are_started_as_they_are(command):
    assert not available(command)
