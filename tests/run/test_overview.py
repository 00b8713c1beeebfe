"""The plan as a table: what is finished, and what the rest will cost by what others took."""

import json

from dassl_prompts.run import __main__ as command
from dassl_prompts.run import overview as module
from dassl_prompts.run.overview import overview
from dassl_prompts.run.plan import plan
from dassl_prompts.run.steps import Step


def step(root, trainer, seed, stage="train"):
    args = ("--trainer", trainer, *(("--eval-only",) if stage == "test" else ()))
    return Step(f"{trainer} on pets, 16 shots, seed {seed}: {stage}", root / stage / trainer / f"seed{seed}", args)


def finish(step, seconds):
    step.output.mkdir(parents=True)
    (step.output / "results.json").write_text(json.dumps({"finished": True, "seconds": seconds}))
    (step.output / "weights").write_bytes(b"0" * 2_000_000)


def test_costs_come_from_other_seeds_then_from_runs_of_the_same_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "device", lambda slots: f"on {slots} things")
    chains = [[step(tmp_path, trainer, seed) for seed in (1, 2)] for trainer in ("CoOp", "MaPLe")]
    finish(chains[0][0], 60)
    finish(step(tmp_path, "CoOp", 3), 120)
    text = overview(plan(chains), 2)
    lines = [line.split() for line in text.splitlines()]
    assert lines[2][-4:] == ["1", "0:01:30", "2.0", "MB"]  # of two runs one is finished
    assert lines[3][-3:] == ["0", "?", "?"]
    assert text.endswith(
        "3 of 4 runs to do; about 0:00:45 and 2.0 MB, without 2 of a kind that has not run yet; on 2 things"
    )


def test_a_plan_that_is_finished(tmp_path):
    runs = [step(tmp_path, "CoOp", 1)]
    finish(runs[0], 60)
    assert "0 of 1 runs to do; on " in overview(plan([runs]))


def test_nothing_is_known_at_first(tmp_path):
    assert "known after the first of a kind" in overview(plan([[step(tmp_path, "CoOp", 1)]]))


def test_commands_are_printed_and_nothing_starts(tmp_path, capsys):
    words = ["base2new", "--trainer", "DPC_CoOp", "--dataset", "emoji", "--output", f"{tmp_path}/a b", "--commands"]
    assert command.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("-m dassl_prompts.train --output-dir" in line for line in lines)
    assert f"'{tmp_path}/a b/base2new/train_base/emoji/" in lines[0] and not (tmp_path / "a b").exists()
