"""DPC's studies: which prompts each point of the curves and each row of the ablation scores."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dassl_prompts.run.job import Job
from dassl_prompts.trainers.dpc import study as dpc_study
from tests.trainers.dpc.test_dpc import coop_stage1  # noqa: F401


@pytest.fixture
def weights(train, make_cfg, coop_stage1, tmp_path, monkeypatch):
    """Evaluations return 100 w for prompts w P' + (1 - w) P, plus 0.5 where the rest of the model is that of P."""
    from dassl_prompts.trainers.dpc.stage2 import DPC

    train("DPC_CoOp", *coop_stage1, output="stage2")

    def step(which):
        cfg = make_cfg("DPC_CoOp", *coop_stage1, "DATASET.SUBSAMPLE_CLASSES", which, output=which)
        return SimpleNamespace(config=lambda: cfg, output=tmp_path / "stage2")

    @torch.no_grad()
    def test(self, split=None):
        model = self.model.eval()
        p, p_prime = model.tuned.prompt_learner.ctx, model.parallel.prompt_learner.ctx
        used = model.emit().text
        assert torch.equal(model.class_features(), model.encode_classes(model.emit()))
        weight = float(((used - p) * (p_prime - p)).sum() / (p_prime - p).square().sum())
        return round(100 * weight, 2) + (0.5 if model._net is model.tuned else 0.0)

    trainings = []
    monkeypatch.setattr(DPC, "test", test)
    monkeypatch.setattr(dpc_study, "trained", lambda job, force: trainings.append(job) or (step("base"), step("new")))
    monkeypatch.setattr(dpc_study, "accuracy", lambda step: 7.0)
    return trainings


JOB = Job("DPC_CoOp", "emoji", 1, opts=("OPTIM.LR", "0.1"))


def test_curve_goes_from_p_to_p_prime(weights):
    rows = dpc_study.omega_curve(JOB)
    assert [row["omega"] for row in rows] == list(dpc_study.OMEGAS)
    assert [row["base at omega_b"] for row in rows] == pytest.approx([100 * w for w in dpc_study.OMEGAS])
    assert [row["new at omega_n"] for row in rows] == pytest.approx([100 * w + 0.5 for w in dpc_study.OMEGAS])


def test_channel_strength_is_the_mean_over_classes_and_their_order_is_compared_by_rank(monkeypatch):
    text = torch.tensor([[1.0, -2.0, 0.5], [-3.0, 0.0, 0.5]])
    trainer = SimpleNamespace(model=nn.Module())
    trainer.model.class_features = lambda: text
    assert dpc_study.channel_strength(trainer).tolist() == [2.0, 1.0, 0.5]

    rng = np.random.default_rng(0)
    first, last = rng.random(40), rng.random(40)
    strengths = [(1 - w) * first + w * last for w in dpc_study.OMEGAS]
    monkeypatch.setattr(dpc_study, "trained", lambda job, force: (SimpleNamespace(output=Path()), None))
    monkeypatch.setattr(dpc_study, "with_settings", lambda *args: strengths)
    rows = dpc_study.channels(JOB)
    assert [row["omega"] for row in rows] == list(dpc_study.OMEGAS)
    for row, strength in zip(rows, strengths, strict=True):
        for column, other in (("with P", first), ("with P'", last)):
            d = strength.argsort().argsort() - other.argsort().argsort()
            assert row[column] == pytest.approx(1 - 6 * (d**2).sum() / (40 * (40**2 - 1)))


@pytest.mark.parametrize("preset, weighted", [("full_move", 100.0), ("mixture", 20.0)])
def test_rows_of_the_ablation(weights, monkeypatch, preset, weighted):
    settings = SimpleNamespace(full_move=(1.0, 5.0), mixture=(0.2, 1.0)).__dict__[preset]
    monkeypatch.setattr(
        dpc_study, "settings_of", lambda job: SimpleNamespace(omega_b=settings[0], grad_scale=settings[1])
    )
    rows = {row["row"][0]: (row["Base"], row["New"]) for row in dpc_study.ablation(JOB)}
    assert rows == {
        "0": (7.0, 7.0),
        "1": (100.0, 100.0),
        "2": (100.0, 100.0),  # no weighting, no decoupling
        "3": (weighted, 20.0),  # weighting, no decoupling
        "4": (weighted, 0.5),
        "5": (weighted, 0.5),
        "6": (weighted, 0.5),  # new classes: P with all that belongs to it
    }
    opts = {job.tag: job.opts[2:] for job in weights}
    assert opts == {name if name != "dhno" else "": opts for name, opts in dpc_study.TRAININGS.items()}
    assert all(job.opts[:2] == JOB.opts for job in weights)


def test_settings_of_a_job_are_those_of_its_second_stage(tmp_path):
    job = Job("DPC_MaPLe", "emoji", 1, output=tmp_path)
    assert dpc_study.settings_of(job).preset == "full_move"
    mixture = dpc_study.settings_of(
        Job("DPC_MaPLe", "emoji", 1, output=tmp_path, opts=("TRAINER.DPC.PRESET", "mixture"))
    )
    assert (mixture.omega_b, mixture.grad_scale) == (1.0, 1.0)


def test_readings_train_every_preset_on_one_first_stage(monkeypatch):
    jobs = []
    steps = {"base": SimpleNamespace(), "new": SimpleNamespace()}
    monkeypatch.setattr(dpc_study, "trained", lambda job, force: jobs.append(job) or tuple(steps.values()))
    monkeypatch.setattr(dpc_study, "accuracy", lambda step: 60.0 if step is steps["base"] else 50.0)
    rows = dpc_study.readings(JOB)
    assert [job.opts[2:] for job in jobs] == [("TRAINER.DPC.PRESET", name) for name in dpc_study.PRESETS]
    assert [job.tag for job in jobs] == list(dpc_study.PRESETS)
    assert [row["row"] for row in rows] == ["backbone", *(f"DPC_CoOp, {name}" for name in dpc_study.PRESETS)]
    assert [(row["Base"], row["New"]) for row in rows] == [(50.0, 50.0), *[(60.0, 50.0)] * 4]


def test_short_schedules_stand_beside_the_recipes(monkeypatch):
    jobs = []
    monkeypatch.setattr(dpc_study, "trained", lambda job, force: jobs.append(job) or (None, None))
    monkeypatch.setattr(dpc_study, "accuracy", lambda step: 50.0)
    rows = dpc_study.short(JOB)
    assert [job.epochs for job in jobs] == [0, 5]
    assert [row["row"] for row in rows] == [
        "CoOp, recipe",
        "DPC_CoOp, recipe",
        "CoOp, 5 + 5 epochs",
        "DPC_CoOp, 5 + 5 epochs",
    ]


def test_union_measures_p_alone_and_every_way(train, make_cfg, coop_stage1, tmp_path):
    """The row of P alone is the backbone's own result; no way changes the scores of new classes."""
    from dassl_prompts.engine import build_trainer

    train("DPC_CoOp", *coop_stage1, output="stage2")
    both = ["DATASET.SUBSAMPLE_CLASSES", "all", "TEST.EVALUATOR", "Union"]
    cfg = make_cfg("DPC_CoOp", *coop_stage1, *both, "TRAINER.DPC.TASK", "union", output="union")
    step = SimpleNamespace(config=lambda: cfg)
    [found] = dpc_study.with_settings(
        step, tmp_path / "stage2", [{}], lambda trainer: dpc_study.union_metrics(trainer, "test")
    )
    backbone = build_trainer(make_cfg("CoOp", *coop_stage1[:2], *both, output="backbone"))
    backbone.load_model(str(tmp_path / "stage1"))
    backbone.test()
    results = json.loads((tmp_path / "backbone" / "results.json").read_text())
    assert found["P alone"] == pytest.approx(results["test"]) and results["seen_unseen_curve"]
    own = build_trainer(cfg)
    own.load_model(str(tmp_path / "stage2"))
    own.test()
    assert own.model.union == "gate" and found["gate"] == pytest.approx(
        json.loads((tmp_path / "union" / "results.json").read_text())["test"]
    )


def test_plain_cloning_trains_with_cross_entropy_alone(make_cfg, coop_stage1):
    from dassl_prompts.engine import build_trainer

    opts = dpc_study.TRAININGS["two_step"]
    trainer = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, *opts, output="a"))
    trainer.load_stage1()
    trainer.train_loader_x = trainer.mined_loader()
    batch = next(iter(trainer.train_loader_x))
    assert not batch["negative_index"] and len(batch["label"]) == len(batch["anchors"])
    assert trainer.loss(*trainer.parse_batch_train(batch)).keys() == {"loss", "loss_ce", "acc"}


def test_plot_shows_both_curves_over_omega_as_means_over_seeds(tmp_path, monkeypatch):
    from matplotlib import pyplot as plt

    rows = [
        {"seed": seed, "omega": w, "base at omega_b": 50 + 10 * w + seed, "new at omega_n": 40 - 20 * w + seed}
        for seed in (1, 3)
        for w in dpc_study.OMEGAS
    ]
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    picture = tmp_path / "new folder" / "omega.png"
    dpc_study.plot_omega(rows, picture, "a title")
    monkeypatch.undo()
    assert picture.read_bytes().startswith(b"\x89PNG")
    [figure] = figures
    base, new = (axis.lines[0].get_xydata().tolist() for axis in figure.axes)
    assert base == [pytest.approx([w, 52 + 10 * w]) for w in dpc_study.OMEGAS]
    assert new == [pytest.approx([w, 42 - 20 * w]) for w in dpc_study.OMEGAS]
    assert ["base" in figure.axes[0].get_ylabel(), "new" in figure.axes[1].get_ylabel()] == [True, True]
    plt.close(figure)


def test_command_line_passes_options_on(monkeypatch, tmp_path, capsys):
    jobs = []
    row = {"seed": 1, "row": "0 backbone", "Base": 1.0, "New": 1.0, "HM": 1.0}
    monkeypatch.setitem(
        dpc_study.STUDIES,
        "ablation",
        dpc_study.Study(lambda job, force: jobs.append(job) or [{**row, "seed": job.seed}], "row", "0 backbone"),
    )
    argv = [
        "ablation",
        "--seed",
        "1",
        "2",
        "--output",
        str(tmp_path),
        "--common",
        "OPTIM.MAX_EPOCH",
        "3",
        "TRAINER.DPC.TOPK",
        "4",
    ]
    assert dpc_study.main(argv) == 0 and "0 backbone" in capsys.readouterr().out
    assert [(job.seed, job.opts, job.common) for job in jobs] == [
        (seed, ("TRAINER.DPC.TOPK", "4"), ("OPTIM.MAX_EPOCH", "3")) for seed in (1, 2)
    ]
    assert (Path(tmp_path) / "studies" / "dpc_CoOp_emoji_shots16" / "ablation.json").is_file()
