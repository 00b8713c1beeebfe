"""What runs ask of a batch system, from flags and sweep files, and what is wrong with it; no SLURM is needed."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dassl_prompts.run.__main__ import main, parser, settle
from dassl_prompts.run.launchers.local import make_slots
from dassl_prompts.run.launchers.script import ScriptLauncher
from dassl_prompts.run.launchers.slurm import batches, parameters
from dassl_prompts.run.launchers.task import Task
from dassl_prompts.run.plan import plan
from dassl_prompts.run.sweep import read_file
from tests.run.fake import FakeStep, step

RUN = ["base2new", "--trainer", "CoOp", "--dataset", "emoji"]


def nodes_of(tmp_path, words, content=None):
    if content is not None:
        (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
        content = read_file(str(tmp_path / "sweep.yaml"))
    return settle(parser().parse_args([*words, "--output", str(tmp_path)]), content or {}, []).nodes()


def test_flags_win_over_the_file_and_blocks_over_the_rest(tmp_path):
    content = {"protocol": "base2new", "dataset": "emoji", "launcher": "slurm", "parallel": 3, "mem": "8G", "cpus": 2, "runs": [
        {"trainer": "CoOp"},
        {"trainer": "MaPLe", "mem": "16G", "gpus": 1, "slurm": {"qos": "high", "exclusive": None}},
    ]}  # fmt: skip
    nodes = nodes_of(tmp_path, ["--cpus", "4", "--time", "8:00:00"], content)
    asked = {n.step.args[n.step.args.index("--trainer") + 1]: dict(n.step.resources) for n in nodes}
    common = {"cpus": "4", "time": "8:00:00"}
    more = {"gpus": "1", "slurm qos": "high", "slurm exclusive": ""}
    assert asked == {"CoOp": {**common, "mem": "8G"}, "MaPLe": {**common, "mem": "16G", **more}}
    given = parameters(asked["MaPLe"], "dassl-x", 480, ["7"], 3)
    further = given.pop("additional_parameters")
    assert further == {"requeue": True, "mem": "16G", "qos": "high", "exclusive": True}
    assert given == {"job_name": "dassl-x", "time": 480, "signal_delay_s": 90, "array_parallelism": 3, "stderr_to_stdout": True,
                     "cpus_per_task": 4, "gpus_per_node": 1, "dependency": "afterany:7"}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mem", "lots"], "--mem is 'lots'; write it as 16G"),
        (["--time", "soon"], "--time is 'soon'; write it as 8:00:00 or 2-00:00:00"),
        (["--gpus", "all"], "--gpus is 'all'; it has to be a number from 0 on"),
        (["--cpus", "0"], "--cpus is '0'; it has to be a number from 1 on"),
        (["--parallel", "-1"], "--parallel is -1; it has to be a number from 0 on"),
        (["--jobs", "2"], "--jobs is read with --launcher local, not with slurm"),
        ([], "there is no SLURM here (no sbatch): run this on a login node of the cluster, or use --launcher local"),
    ],
)
def test_wrong_input_is_one_line_and_starts_nothing(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*RUN, "--output", str(tmp_path / "out"), "--launcher", "slurm", *words]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_flags_of_clusters_mean_nothing_on_one_machine(tmp_path, capsys):
    assert main([*RUN, "--output", str(tmp_path), "--gpus", "1"]) == 2
    assert "--gpus is read with --launcher slurm or commands, not with local" in capsys.readouterr().err


def test_a_time_that_yaml_takes_for_a_number(tmp_path):
    content = {"protocol": "base2new", "dataset": "emoji", "trainer": "CoOp", "launcher": "commands"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content) + "time: 8:00:00\n")
    with pytest.raises(ValueError, match="time in a sweep file stands in quotes"):
        settle(parser().parse_args(["--output", str(tmp_path)]), read_file(str(tmp_path / "sweep.yaml")), [])


def test_several_gpus_per_run(tmp_path, capsys):
    words = [*RUN, "--gpus-per-run", "2"]
    for node in nodes_of(tmp_path, [*words, "--launcher", "slurm"]):
        assert parameters(dict(node.step.resources), "dassl-x", 60, [], 1)["gpus_per_node"] == 2
        assert node.step.command()[1:7] == [
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            "-m",
        ]
        assert node.step.config().TRAINER.NAME == "CoOp"
    assert [slot.device for slot in make_slots(["0", "1", "2", "3"], 1, 2)] == ["0,1", "2,3"]
    assert [slot.device for slot in make_slots(["cpu"], 2, 2)] == ["cpu", "cpu"]
    assert main([*words, "--output", str(tmp_path), "--devices", "0", "1", "2"]) == 2
    assert "--devices names 3 devices; with --gpus-per-run 2 give a multiple of 2" in capsys.readouterr().err


def test_the_sweep_file_of_the_page(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "clusters.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    nodes = nodes_of(tmp_path, [], yaml.safe_load(text))
    asked = {n.step.title.split()[0]: dict(n.step.resources) for n in nodes}
    assert asked["PromptKD"]["mem"] == "24G" and asked["KgCoOp"]["mem"] == "8G" and len(nodes) > 600


def test_arrays_hold_a_level_and_one_set_of_resources_and_are_cut_to_size(tmp_path):
    first = step(tmp_path, "first")
    many = [step(tmp_path, f"m{i}", first) for i in range(3)]
    other = FakeStep("other", tmp_path / "other", (), resources=(("mem", "1G"),))
    nodes = plan([*([first, m] for m in many), [other]])
    names = [[n.step.title for n in batch] for batch in batches(nodes, 2)]
    assert names == [["first"], ["other"], ["m0", "m1"], ["m2"]]


def test_the_script_of_commands_runs_each_array_after_the_other(tmp_path, capfd):
    first, done = step(tmp_path, "first"), step(tmp_path, "done")
    second, bad = step(tmp_path, "it's second", first), step(tmp_path, "bad", code=1)
    after = step(tmp_path, "after", bad)
    subprocess.run(done.command(), check=True, cwd=(done.output.mkdir(), tmp_path)[1])
    launcher = ScriptLauncher(plan([[first, second], [bad, after], [done]]), tmp_path, parallel=2)
    assert launcher.run() == [] and not (first.output / "begin").exists()
    assert "4 runs in 2 arrays are in" in capfd.readouterr().out
    text = (tmp_path / "jobs.sh").read_text()
    calls = [line.split("one machine: ")[1] for line in text.splitlines() if "one machine: " in line]
    assert len(calls) == 2 and "qsub -J 1-2%2 -v ARRAY=1" in text and "qsub -t 1-2 -tc 2 -v ARRAY=2" in text
    codes = [subprocess.run(["bash", "-c", call], check=False).returncode for call in calls]
    assert codes == [123, 123]  # xargs: one of them failed
    assert second.results() and not (after.output / "begin").exists()
    said = capfd.readouterr().err
    assert f"{bad.output}: exit code 1: error: broken on purpose" in said and f"it needs {bad.output}" in said
    # again, as a task of Kubernetes: what is finished is left alone
    env = {**os.environ, "JOB_COMPLETION_INDEX": "0", "ARRAY": "1"}
    assert subprocess.run(["bash", tmp_path / "jobs.sh"], check=False, env=env).returncode == 0
    assert len((first.output / "begin").read_text().splitlines()) == 1
    gone = subprocess.run(["bash", tmp_path / "jobs.sh", "1", "9"], check=False)
    assert gone.returncode == 2 and "there is no run 1.9" in capfd.readouterr().err
    assert sys.executable in text


def test_a_run_that_still_waits_for_its_folder_is_put_back(tmp_path):
    pytest.importorskip("submitit")
    waiting = Task(["run"], tmp_path, [], minutes=60)
    assert waiting.checkpoint() is not None  # nothing has begun that could have finished an epoch
    waiting.began = time.monotonic() - 45 * 60
    assert (
        waiting.checkpoint() is None and "no epoch was finished in 60 minutes" in (tmp_path / "console.txt").read_text()
    )
