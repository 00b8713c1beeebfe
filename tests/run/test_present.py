"""A finished run is reused only while its data and backbone are those that its command would use now."""

import json

import pytest

from dassl_prompts.run import present
from dassl_prompts.run.job import Job
from dassl_prompts.run.launchers.local import Scheduler
from dassl_prompts.run.plan import plan
from dassl_prompts.run.protocols import PROTOCOLS


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(present, "_known", {})


@pytest.fixture
def finished(tmp_path):
    """``finished(digests)``: the step of a run on emoji whose results.json notes these digests."""
    from dassl_prompts.engine.resume import flat_config

    (step,) = PROTOCOLS["fewshot"].steps(Job("CoOp", "emoji", 1, output=tmp_path))
    step.output.mkdir(parents=True)

    def write(**changes):
        digests = {**present.digests_now(step.config(), step.output), **changes}
        content = {"finished": True, "config": flat_config(step.config()), "digests": digests}
        (step.output / "results.json").write_text(json.dumps(content))
        return step

    return write


def test_unchanged_runs_are_skipped(finished):
    step = finished()
    assert set(step.results()["digests"]) == {"class names", "image lists", "backbone"}
    nodes = plan([[step]])
    assert Scheduler(nodes).run() == [] and nodes[0].state == "skipped"


@pytest.mark.parametrize("what", ["class names", "image lists", "backbone"])
def test_a_change_is_named_and_nothing_starts(finished, what):
    nodes = plan([[finished(**{what: "0123456789abcdef"})]])
    with pytest.raises(ValueError, match=f"other data or weights.*{what}: 0123456789abcdef -> .*--force") as error:
        Scheduler(nodes).run()
    assert str(nodes[0].step.output) in str(error.value)


def test_runs_of_older_versions_are_compared_by_settings(finished):
    step = finished()
    content = step.results()
    del content["digests"]
    (step.output / "results.json").write_text(json.dumps(content))
    present.check_same_run(step)


def test_what_is_gone_is_not_compared_and_a_line_says_so(finished, monkeypatch, capsys):
    step = finished()
    present._known.clear()

    def gone(cfg):
        raise FileNotFoundError("the data\nis gone")

    monkeypatch.setattr(present, "data_now", gone)
    for _ in range(2):
        present.check_same_run(step)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 and "the data is gone" in said[0] and str(step.output) in said[0]


def test_a_sweep_looks_once_at_its_data_and_backbone(finished, monkeypatch):
    calls = []
    monkeypatch.setattr(present, "data_now", lambda cfg: calls.append(cfg) or {})
    step = finished()
    for _ in range(3):
        present.check_same_run(step)
    assert len(calls) == 1


def test_a_dry_run_tells_what_would_be_refused(finished):
    from dassl_prompts.run.__main__ import dry_run

    said, fine = dry_run(plan([[finished()]]))
    assert "1 of 1 runs are finished" in said and fine
    said, fine = dry_run(plan([[finished(backbone="0123456789abcdef")]]))
    assert not fine
    assert said.startswith("REFUSED") and "backbone: 0123456789abcdef -> " in said and "0 of 1 runs" in said
