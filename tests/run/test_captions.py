"""The retrieval driver: which runs a table is made of, how their results are read; scripts' arguments."""

import json
import subprocess
from pathlib import Path

import pytest

from dassl_prompts.results.statistics import Value
from dassl_prompts.run import captions as retrieval
from dassl_prompts.run.captions import (
    ABLATION,
    BRANCH_ROW,
    METHODS,
    Runs,
    ablate,
    compare,
    main,
    rows_of,
    values_of,
)
from dassl_prompts.run.steps import StepFailed
from dassl_prompts.run.tables import table as markdown

ROOT = Path(__file__).resolve().parents[2]


def test_compare_trains_every_method_once_per_seed(tmp_path):
    table = compare(Runs("DTD", 4, output=tmp_path), [1, 2], list(METHODS))
    assert list(table) == list(METHODS.values())
    assert [len(steps) for steps in table.values()] == [1, 2, 2, 2, 2]
    zero_shot, dcar = table["zero-shot CLIP"][0], table["DCAR"][1]
    assert "--eval-only" in zero_shot.args and "--eval-only" not in dcar.args
    assert dcar.output == tmp_path / "retrieval/train_all/fdrd_dtd/shots_4/DCAR/vit_b32_fdrd/seed2"
    cfg = dcar.config()
    assert (cfg.DATASET.NAME, cfg.DATASET.FDRD_DOMAIN, cfg.DATASET.NUM_SHOTS, cfg.SEED) == (
        "FDRD",
        "DTD",
        4,
        2,
    )
    assert (cfg.TEST.EVALUATOR, cfg.MODEL.BACKBONE.NAME, cfg.OPTIM.MAX_EPOCH) == ("Retrieval", "ViT-B/32", 50)


@pytest.mark.parametrize(
    "domain",
    [
        "Caltech101",
        "pets",
        "stanford_cars",
        "Flowers102",
        "Food101",
        "aircraft",
        "SUN397",
        "DTD",
        "UCF101",
        "emoji",
    ],
)
def test_every_domain_has_its_configuration(domain, tmp_path):
    from dassl_prompts.fdrd.domains import get_domain

    step = Runs(domain, output=tmp_path).step("DCAR", 1)
    assert step.config().DATASET.FDRD_DOMAIN == (domain if domain == "emoji" else get_domain(domain).name)


def test_options_reach_only_the_method_they_name(tmp_path):
    runs = Runs("emoji", output=tmp_path, opts=("TRAINER.COOPITR.N_CTX", "3", "OPTIM.MAX_EPOCH", "2"))
    coop, dcar = (runs.step(name, 1) for name in ("CoOpITR", "DCAR"))
    assert "TRAINER.COOPITR.N_CTX" in coop.args and "TRAINER.COOPITR.N_CTX" not in dcar.args
    assert coop.config().TRAINER.COOPITR.N_CTX == 3 and dcar.config().OPTIM.MAX_EPOCH == 2


def test_ablation_shares_the_full_run_and_switches_parts_off(tmp_path):
    runs = Runs("emoji", output=tmp_path)
    table = ablate(runs, [1])
    full, branch = table["DCAR"][0], table.pop(BRANCH_ROW)[0]
    assert list(table) == list(ABLATION)
    assert full == compare(runs, [1], ["DCAR"])["DCAR"][0]
    nodes = [steps[0].config().TRAINER.DCAR for steps in table.values()]
    assert [(node.DTR.ENABLED, node.CAA.ENABLED) for node in nodes] == [
        (True, True),
        (False, True),
        (True, False),
        (False, False),
    ]
    assert len({s[0].output for s in table.values()} | {branch.output}) == 5
    # only evaluated, after the full run whose weights it loads
    assert branch.needs(full) and not branch.is_training and full.is_training
    node = branch.config().TRAINER.DCAR
    assert node.TEST.BRANCH == "prompt" and node.CAA.ENABLED and nodes[0].TEST.BRANCH == "sum"
    assert branch.config().DATASET == full.config().DATASET


def test_families_of_rows_share_runs_and_a_tag_keeps_them_apart(tmp_path):
    table = ablate(Runs("emoji", output=tmp_path), [1], families=["prompts", "negatives"])
    nodes = {name: steps[0].config().TRAINER.DCAR for name, steps in table.items()}
    assert [
        (name, node.PROMPTS, node.CAA.ENABLED and node.CAA.N_NEG, node.CAA.N_ATTR) for name, node in nodes.items()
    ] == [
        ("DCAR", "dual", 4, 1),
        ("text prompts only", "text", 4, 1),
        ("image prompts only", "image", 4, 1),
        ("no negatives", "dual", False, 1),
        ("1 negative", "dual", 1, 0),
        ("2 negatives", "dual", 2, 1),
        ("4 negatives", "dual", 4, 1),
        ("8 negatives", "dual", 8, 2),
    ]
    assert table["4 negatives"] == table["DCAR"]
    parts = ablate(Runs("emoji", output=tmp_path), [1])
    assert table["no negatives"] == parts["without category-aware augmentation"]
    assert len({steps[0].output for steps in table.values()}) == 7
    tagged = ablate(Runs("emoji", output=tmp_path, tag="mine"), [1], families=["prompts", "parts"])
    folders = {str(steps[0].output) for steps in tagged.values()}
    assert len(folders) == 7 and all("mine" in folder for folder in folders)
    assert BRANCH_ROW in tagged and any("mine-prompts-text" in folder for folder in folders)


def finish(step, value, train=None, more=None):
    test = {f"{d}_r{k}": value + k for d in ("i2t", "t2i") for k in (1, 5, 10)} | {"mean_r1": value, **(more or {})}
    step.output.mkdir(parents=True)
    (step.output / "results.json").write_text(
        json.dumps({"finished": True, "test": test, **({"train": train} if train else {})})
    )


def test_rows_hold_mean_and_deviation(tmp_path):
    table = compare(Runs("emoji", output=tmp_path), [1, 2], ["CoOpITR", "DCAR"])
    for value, (a, b) in zip((10.0, 20.0), zip(*table.values())):
        finish(a, value)
        finish(b, value + 1, {"mean_r1_weights_on": 50.0, "mean_r1_weights_off": value})
    first, second = rows_of(values_of(table))
    assert (
        first["mean R@1"] == "15.00 ± 7.07"
        and first["I2T R@5"] == "20.00 ± 7.07"
        and first["train R@1, weights on"] == ""
    )
    assert second["train R@1, weights off"] == "15.00 ± 7.07"
    assert str(Value.over([3.14159])) == "3.14"
    assert "train R@1, weights on" in markdown([first, second])
    alone = values_of({"CoOp": table["CoOp"]})
    assert "train" not in markdown(rows_of(alone))


def test_categories_stand_in_a_table_of_their_own(tmp_path):
    steps = compare(Runs("emoji", output=tmp_path), [1, 2], ["CoOpITR", "DCAR"])
    for value, (a, b) in zip((10.0, 20.0), zip(*steps.values())):
        finish(a, value)
        finish(b, value, more={"i2t_wrong_category": value + 30, "negatives_attributes": value + 60})
    text = retrieval.report({"emoji": values_of(steps)})
    first, rest = text.split("emoji: categories against attributes")
    second, differences = rest.split("minus DCAR")
    assert cells(second, "DCAR", "I2T wrong category") == ["45.00 ± 7.07"]
    assert cells(second, "DCAR", "attribute negatives") == ["75.00 ± 7.07"]
    assert cells(second, "CoOp", "attribute negatives") == [""]
    assert "wrong" not in first + differences and "R@1 |" not in second


@pytest.fixture
def pretend(monkeypatch):
    """Runs that write a number instead of training; domains in the returned set fail."""
    broken, value = set(), {"fdrd_dtd": 10.0, "fdrd_ucf101": 20.0, "fdrd_food101": 60.0}

    def execute(steps, force=False, quiet=False):
        for step in steps:
            name = next(part for part in step.output.parts if part.startswith("fdrd_"))
            if name in broken:
                raise StepFailed(f"{step.title}: no file in {name}")
            if not step.output.exists():
                finish(step, value[name] + 2 * int(step.output.name.removeprefix("seed")))

    monkeypatch.setattr(retrieval, "execute", execute)
    monkeypatch.setattr(retrieval, "check", lambda steps, force: None)
    return broken


def cells(text, method, column="mean R@1"):
    """That column of every table that has the method."""
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line[:2] == "| "]
    at = next(row for row in lines if row[0] == "method").index(column)
    return [row[at] for row in lines if row[0] == method]


COMMAND = ("compare", "--method", "ZeroshotITR", "DCAR", "--seed", "1", "2", "--domain")


def test_several_domains_end_with_their_unweighted_mean(pretend, tmp_path, capsys):
    assert main([*COMMAND, "DTD", "UCF101", "Food101", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert cells(out, "DCAR") == ["13.00 ± 1.41", "23.00 ± 1.41", "63.00 ± 1.41", "33.00 ± 1.41"]
    assert cells(out, "zero-shot CLIP")[-1] == "32.00" and cells(out, "DCAR", "I2T R@5")[-1] == "38.00 ± 1.41"
    assert "mean of 3 domains, unweighted: DTD, UCF101, Food101" in out


def test_differences_to_dcar_are_of_paired_seeds(tmp_path):
    """Both methods move by 10 points from seed to seed, their difference by 1."""
    steps = compare(Runs("emoji", output=tmp_path), [1, 2], ["ZeroshotITR", "CoOpITR", "DCAR"])
    finish(steps["zero-shot CLIP"][0], 5.0)
    for coop, dcar, value in zip(steps["CoOp"], steps["DCAR"], (10.0, 20.0)):
        finish(coop, value)
        finish(dcar, value + 1 + value / 10)
    text = retrieval.report({"emoji": values_of(steps)})
    _, differences = text.split("emoji: minus DCAR, seed by seed")
    assert cells(differences, "CoOp") == ["-2.50 ± 0.71"] and "zero-shot" not in differences


def test_a_failing_domain_does_not_stop_the_others(pretend, tmp_path, capsys):
    pretend.add("fdrd_ucf101")
    page = tmp_path / "page.md"
    assert main([*COMMAND, "UCF101", "DTD", "Food101", "--output", str(tmp_path), "--write", str(page)]) == 1
    out, err = capsys.readouterr()
    assert cells(out, "DCAR")[-1] == "38.00 ± 1.41" and "mean of 2 domains, unweighted: DTD, Food101" in out
    assert "1 of 3 domains failed:\n  UCF101: " in err
    text = page.read_text()
    assert text.startswith("# Image-text retrieval: compare UCF101 DTD Food101, 16 shots, seeds 1 2\n")
    assert "Not finished: UCF101." in text and cells(text, "DCAR") == cells(out, "DCAR")
    assert "python -m dassl_prompts.run.captions compare --method ZeroshotITR DCAR" in text


def test_what_a_domain_lacks_is_said_before_another_one_starts(monkeypatch, tmp_path, capsys):
    started = []
    monkeypatch.setattr(retrieval, "execute", lambda steps, force, quiet: started.append(capsys.readouterr().err))
    monkeypatch.setattr(retrieval, "values_of", lambda steps: {})
    monkeypatch.setattr(retrieval, "report", lambda finished: "")
    assert main([*COMMAND, "emoji", "DTD", "--output", str(tmp_path), "--root", str(tmp_path)]) == 1
    assert len(started) == 1 and "error: DTD: " in started[0] and str(tmp_path) in started[0]


def test_a_single_domain_has_no_mean(pretend, tmp_path, capsys):
    assert main([*COMMAND, "DTD", "--output", str(tmp_path)]) == 0
    assert "mean of" not in capsys.readouterr().out
    pretend.add("fdrd_food101")
    assert main([*COMMAND, "Food101", "--output", str(tmp_path)]) == 1
    assert main([*COMMAND, "DTD", "birds", "--output", str(tmp_path)]) == 2


def test_wrong_domain_ends_with_the_nine(capsys):
    assert main(["compare", "--domain", "birds"]) == 2
    assert "the nine are Caltech101" in capsys.readouterr().err
    assert main(["compare", "--domain", "custom"]) == 2
    assert main(["compare", "--domain", "emoji", "--", "OPTIM.LR"]) == 2


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (["compare"], "TRAINER.DCARR.N_CTX"),
        (["ablate"], "TRAINER.COOPITR.N_CTX"),
        (["compare", "--method", "CoOpITR"], "TRAINER.DCAR.N_CTX"),
    ],
)
def test_options_that_reach_no_run_are_refused(arguments, key, tmp_path, capsys):
    argv = [*arguments, "--domain", "emoji", "--output", str(tmp_path), "--", key, "3"]
    assert main(argv) == 2
    assert f"{key} concerns none of the methods" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "script",
    [
        "dcar/retrieval.sh",
        "dcar/ablation.sh",
        "itr/zeroshot.sh",
        "itr/coop.sh",
        "itr/clip_adapter.sh",
        "itr/maple.sh",
    ],
)
def test_scripts_say_how_they_are_used(script):
    done = subprocess.run(["bash", str(ROOT / "scripts" / script)], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and f"usage: bash scripts/{script} DOMAIN" in done.stderr
