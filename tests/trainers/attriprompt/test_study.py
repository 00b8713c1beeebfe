"""AttriPrompt's ablations: every row is a possible configuration, and the table says what the runs say."""

import json

import pytest

from dassl_prompts.engine import TRAINER_REGISTRY
from dassl_prompts.run.job import config_file
from dassl_prompts.train import parser, setup_cfg
from dassl_prompts.trainers.attriprompt import study


def config(*opts):
    return setup_cfg(
        parser().parse_args(
            [
                "--trainer",
                "AttriPrompt",
                "--config-file",
                config_file("trainers", "AttriPrompt", "open_tiny"),
                "--dataset-config-file",
                config_file("datasets", "emoji"),
                *opts,
            ]
        )
    )


@pytest.mark.parametrize("row", study.ROWS)
def test_every_row_changes_the_configuration_and_is_accepted(row):
    cfg = config(*study.ROWS[row][1])
    trainer = TRAINER_REGISTRY.get("AttriPrompt")
    trainer.check_cfg(trainer.__new__(trainer), cfg)
    assert (cfg == config()) == (row in ("full", "k2"))  # the emoji recipe itself has two clusters


def test_rows_that_equal_the_recipe_are_left_out(tmp_path, monkeypatch, capsys):
    studied = []
    monkeypatch.setattr(
        study,
        "study",
        lambda protocol, jobs, force: (
            studied.append([name for name, _ in jobs])
            or [{"seed": job.seed, "variant": name, "Base": 1.0, "New": 1.0, "HM": 1.0} for name, job in jobs]
        ),
    )
    words = ["--seed", "1", "2", "--rows", "full", "k2", "k4", "k8", "--output", str(tmp_path)]
    assert study.main(words) == 0
    assert studied == [["full", "k4", "k8"] * 2]
    assert capsys.readouterr().out.count("row k2 (2 clusters) is left out") == 1
    studied.clear()
    assert study.main([*words, "--opts", "TRAINER.ATTRIPROMPT.CLUSTER.K", "8"]) == 0
    assert studied == [["full", "k2", "k4"] * 2]


def test_table_page_and_skipped_runs(tmp_path, monkeypatch, capsys):
    executed = []

    def pretend(steps, force=False, quiet=False):
        for step in steps:
            executed.append(step)
            value = 10.0 * len(executed)
            step.output.mkdir(parents=True)
            results = {"finished": True, "trainer": "AttriPrompt", "test": {"accuracy": value}}
            (step.output / "results.json").write_text(json.dumps(results))

    monkeypatch.setattr(study, "execute", pretend)
    page = tmp_path / "docs" / "page.md"
    code = study.main(
        [
            "--dataset",
            "emoji",
            "--seed",
            "1",
            "2",
            "--rows",
            "full",
            "floor",
            "--output",
            str(tmp_path / "out"),
            "--write",
            str(page),
            "--opts",
            "OPTIM.MAX_EPOCH",
            "1",
        ]
    )
    assert code == 0
    assert len({step.output for step in executed}) == len(executed) == 8
    assert all("OPTIM.MAX_EPOCH" in step.args for step in executed)
    assert sum("TRAINER.ATTRIPROMPT.RETRIEVAL.MODE" in step.args for step in executed) == 4
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line[:1] == "|"
    ]
    # full: base 10 and 50, new 20 and 60; floor: base 30 and 70, new 40 and 80
    assert [cell.split(" ")[0] for cell in rows[2]] == ["AttriPrompt", "2", "30.00", "40.00", "34.29"]
    assert [cell.split(" ")[0] for cell in rows[3][1:]] == ["2", "50.00", "60.00", "54.55"]
    assert rows[2][2] == rows[3][2].replace("50", "30", 1) == "30.00 ± 28.28"
    assert rows[3][0].startswith("deep language prompting")
    assert rows[-1][1:4] == ["2", "+20.00 ± 0.00", "+20.00 ± 0.00"]  # seed by seed: the same 20 points for both seeds
    text = page.read_text()
    assert "--rows full floor" in text and "--opts OPTIM.MAX_EPOCH 1" in text and "| 34.29 ± 29.14 |" in text
    assert 'Difference to "AttriPrompt", seed by seed' in text


def test_a_failed_run_ends_the_study(tmp_path, monkeypatch, capsys):
    def fail(steps, **options):
        raise study.StepFailed("run 1 failed")

    monkeypatch.setattr(study, "execute", fail)
    assert study.main(["--output", str(tmp_path)]) == 1
    assert "error: run 1 failed" in capsys.readouterr().err
    assert study.main(["--output", str(tmp_path), "--cfg", "nothing"]) in (1, 2)
