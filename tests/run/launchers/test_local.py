"""The scheduler: order, sharing, failures, retries, slots, other processes."""

import json
import subprocess
import sys

import pytest
from yacs.config import CfgNode

from dassl_prompts.run.execute import execute
from dassl_prompts.run.launchers import local as module
from dassl_prompts.run.launchers.local import Scheduler, Slot, make_slots
from dassl_prompts.run.plan import plan
from dassl_prompts.run.steps import StepFailed
from tests.run.fake import FakeStep, step


def begin(s):
    return float((s.output / "begin").read_text().split()[0])


def end(s):
    return float((s.output / "end").read_text())


def test_steps_start_after_what_they_read_and_shared_ones_run_once(tmp_path):
    first = step(tmp_path, "stage1", seconds=0.2)
    second, third = step(tmp_path, "a", first), step(tmp_path, "b", first)
    nodes = plan([[first], [first, second], [first, third]])
    assert [n.step for n in nodes] == [first, second, third]
    assert Scheduler(nodes, make_slots([], 3)).run() == []
    assert len((first.output / "begin").read_text().splitlines()) == 1
    assert min(begin(second), begin(third)) >= end(first)


def test_independent_steps_run_at_once_on_the_slots(tmp_path):
    steps = [step(tmp_path, str(i), seconds=0.6) for i in range(3)]
    Scheduler(plan([steps]), make_slots([], 2)).run()
    spans = sorted((begin(s), end(s)) for s in steps)
    assert spans[1][0] < spans[0][1]  # the second began before the first ended
    assert spans[2][0] > min(e for _, e in spans[:2])  # the third had to wait for a slot


def test_slots_set_the_device_and_share_the_cores(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    steps = [step(tmp_path, str(i), seconds=0.3) for i in range(2)]
    Scheduler(plan([steps]), make_slots(["0", "cpu"], 1)).run()
    seen = sorted((s.output / "begin").read_text().rstrip("\n").split(" ")[1:] for s in steps)
    assert seen == [["", "4"], ["0", "4"]]
    assert Slot("cpu").environment(2)["CUDA_VISIBLE_DEVICES"] == ""
    assert Slot("1").environment(1)["CUDA_VISIBLE_DEVICES"] == "1"
    assert make_slots(["0", "1"], 2) == [Slot("0"), Slot("1"), Slot("0"), Slot("1")]


def test_a_failure_blocks_only_what_needs_it(tmp_path, capsys):
    bad = step(tmp_path, "bad", code=1)
    after, other = step(tmp_path, "after", bad), step(tmp_path, "other")
    failed = Scheduler(plan([[bad, after], [other]])).run()
    assert [(n.step, n.state) for n in failed] == [(bad, "failed"), (after, "blocked")]
    assert "exit code 1 (error: broken on purpose)" in failed[0].reason and "bad/console.txt" in failed[0].reason
    assert str(bad.output) in failed[1].reason
    assert other.results() is not None and not after.output.exists()
    assert "bad: failed with exit code 1" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [False, True])
def test_a_folder_taken_in_the_middle_fails_its_run_alone(tmp_path, monkeypatch, stop):
    bad, other = step(tmp_path, "bad"), step(tmp_path, "other")
    scheduler = Scheduler(plan([[bad], [other]]), stop=stop, retry=1)
    monkeypatch.setattr(scheduler, "skip_finished", lambda: bad.output.write_text(""))  # after the check
    failed = scheduler.run()
    assert (
        failed[0].step is bad
        and failed[0].reason.startswith("could not be started: ")
        and str(bad.output) in failed[0].reason
    )
    assert len(failed) == 1 + stop and (other.results() is None) == stop


def test_stop_starts_nothing_after_a_failure(tmp_path):
    bad, other = step(tmp_path, "bad", code=1), step(tmp_path, "other")
    failed = Scheduler(plan([[bad], [other]]), stop=True).run()
    assert [n.state for n in failed] == ["failed", "waiting"]
    assert not other.output.exists()


def test_failed_runs_are_tried_again_after_everything_else(tmp_path):
    flaky = step(tmp_path, "flaky", fails=2)
    after, other = step(tmp_path, "after", flaky), step(tmp_path, "other")
    nodes = plan([[flaky, after], [other]])
    assert [n.state for n in Scheduler(nodes, retry=1).run()] == ["failed", "blocked"]
    flaky = step(tmp_path, "flaky", fails=2)
    nodes = plan([[flaky, after], [other]])
    assert Scheduler(nodes, retry=2).run() == []
    assert nodes[0].tries == 3 and begin(after) > end(flaky) and nodes[2].state == "skipped"


def test_finished_runs_are_skipped_and_force_repeats_them(tmp_path):
    first = step(tmp_path, "first")
    second = step(tmp_path, "second", first)
    Scheduler(plan([[first, second]])).run()
    began = begin(first)
    nodes = plan([[first, second]])
    assert Scheduler(nodes).run() == [] and {n.state for n in nodes} == {"skipped"} and begin(first) == began
    (first.output / "left over").write_text("x")
    assert Scheduler(plan([[first, second]]), force=True).run() == []
    assert begin(first) > began and begin(second) > end(first) and not (first.output / "left over").exists()


def test_force_leaves_folders_alone_that_are_no_runs(tmp_path):
    one = step(tmp_path, "one")
    one.output.mkdir()
    (one.output / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not a run folder"):
        Scheduler(plan([[one]]), force=True).run()
    assert (one.output / "thesis.tex").exists()


def test_an_unfinished_result_is_a_failure(tmp_path, monkeypatch):
    one = step(tmp_path, "one")
    monkeypatch.setattr(type(one), "command", lambda self: ["true"])
    failed = Scheduler(plan([[one]])).run()
    assert "ended without a finished" in failed[0].reason


def test_a_damaged_result_is_named_before_anything_starts(tmp_path):
    first, second = step(tmp_path, "first"), step(tmp_path, "second")
    second.output.mkdir()
    (second.output / "results.json").write_text('{"finished": tr')
    with pytest.raises(
        ValueError, match="second/results.json is not valid JSON: .*delete the folder or run again with --force"
    ):
        Scheduler(plan([[first, second]])).run()
    assert not first.output.exists()


def hold_and_finish(one, config):
    """Another process that holds the folder of ``one``, then leaves a finished result of ``config`` there."""
    one.output.mkdir()
    code = (
        "import fcntl, json, pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "handle = open(folder / 'run.lock', 'w')\n"
        "fcntl.lockf(handle, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(0.5)\n"
        "(folder / 'results.json').write_text(json.dumps({'finished': True, 'config': json.loads(sys.argv[2])}))\n"
    )
    command = [sys.executable, "-S", "-c", code, str(one.output), json.dumps(config)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    assert module.in_use(one.output)
    return other


def test_a_folder_of_another_process_is_waited_for(tmp_path):
    one = step(tmp_path, "one")
    other = hold_and_finish(one, config={})
    nodes = plan([[one]])
    assert Scheduler(nodes).run() == []
    other.communicate()
    assert nodes[0].state == "skipped" and not (one.output / "begin").exists()
    assert not module.in_use(one.output)


def test_foreign_results_of_another_process_fail_their_own_run_only(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeStep, "config", lambda self: CfgNode({"SEED": 1, "TRAINER": {"NAME": "Fake"}}))
    one, free = step(tmp_path, "one"), step(tmp_path, "free")
    after = step(tmp_path, "after", one)
    other = hold_and_finish(one, config={"SEED": 7})
    nodes = plan([[one, after], [free]])
    failed = Scheduler(nodes, retry=2).run()
    other.communicate()
    assert [n.state for n in nodes] == ["failed", "blocked", "finished"]
    assert failed == nodes[:2] and "other settings (SEED" in failed[0].reason


def test_an_interruption_ends_the_running_steps(tmp_path, monkeypatch):
    slow = step(tmp_path, "slow", seconds=60)
    scheduler = Scheduler(plan([[slow]]))
    monkeypatch.setattr(scheduler.progress, "refresh", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        scheduler.run()
    assert not scheduler.running and not (slow.output / "end").exists()


def test_execute_stops_at_the_first_failure(tmp_path):
    first, bad, last = step(tmp_path, "first"), step(tmp_path, "bad", code=1), step(tmp_path, "last")
    with pytest.raises(StepFailed, match="bad: failed with exit code 1"):
        execute([first, bad, last], quiet=True)
    assert first.results() and not last.output.exists()


def test_two_jobs_that_want_one_folder_with_other_settings_are_refused(tmp_path):
    one = step(tmp_path, "one")
    other = type(one)("again", one.output, (*one.args, "OPTIM.LR", "0.1"))
    with pytest.raises(ValueError, match=r"'OPTIM.LR', '0.1'.*--tag"):
        plan([[one], [other]])
