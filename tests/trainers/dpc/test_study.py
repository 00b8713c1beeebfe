"""DPC's studies: which prompts each point of the curves and each row of the ablation scores."""

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


def test_rows_of_the_ablation(weights):
    rows = {row["row"][0]: (row["Base"], row["New"]) for row in dpc_study.ablation(JOB)}
    assert rows == {
        "0": (7.0, 7.0),
        "1": (100.0, 100.0),
        "2": (100.0, 100.0),  # no weighting, no decoupling
        "3": (20.0, 20.0),  # weighting, no decoupling
        "4": (20.0, 0.5),
        "5": (20.0, 0.5),
        "6": (20.0, 0.5),  # new classes: P with all that belongs to it
    }
    opts = {job.tag: job.opts[2:] for job in weights}
    assert opts == {"two_step": dpc_study.TRAININGS["two_step"], "": (), "dhno_ce": dpc_study.TRAININGS["dhno_ce"]}
    assert all(job.opts[:2] == JOB.opts for job in weights)


def test_plain_cloning_trains_with_cross_entropy_alone(make_cfg, coop_stage1):
    from dassl_prompts.engine import build_trainer

    opts = dpc_study.TRAININGS["two_step"]
    trainer = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, *opts, output="a"))
    trainer.load_stage1()
    trainer.train_loader_x = trainer.mined_loader()
    batch = next(iter(trainer.train_loader_x))
    assert not batch["negative_index"] and len(batch["label"]) == len(batch["anchors"])
    assert trainer.loss(*trainer.parse_batch_train(batch)).keys() == {"loss", "loss_ce"}


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
        dpc_study.STUDIES, "ablation", (lambda job, force: jobs.append(job) or [{**row, "seed": job.seed}], "row")
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
