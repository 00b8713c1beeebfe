"""Costs from counts: the operations are those of the towers, the pictures those of the dataset, and tables mark them."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dassl_prompts.run import __main__ as command
from dassl_prompts.run import counts
from dassl_prompts.run.ahead import DataCounts, data_counts
from dassl_prompts.run.job import Job
from dassl_prompts.run.protocols import fewshot


def operations(call):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("backbone", ["open-tiny", "RN50"])
def test_operations_of_a_picture_are_those_of_the_tower(backbone):
    from dassl_prompts.models import build_clip
    from dassl_prompts.models.clip import named_config

    clip = build_clip(named_config(backbone), seed=0)
    size = counts.sizes(backbone)
    images = torch.zeros(2, 3, clip.image_size, clip.image_size)
    assert size.image == pytest.approx(operations(lambda: clip.encode_image(images)) / 2, rel=0.2)


def steps(tmp_path, trainer, *opts):
    job = Job(trainer, "quickdraw", 1, shots=4, root=str(tmp_path), output=tmp_path / "output", opts=opts)
    return fewshot(job.recipe("fewshot"))


def test_pictures_are_those_of_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "speed", lambda: math.inf)  # nothing but reading is left
    (step,) = steps(tmp_path, "CoOp", "OPTIM.MAX_EPOCH", "10")
    data = data_counts(step.config())
    assert data == DataCounts(dict.fromkeys(data.train, 20), 1340, 1072) and len(data.train) == 67
    seconds, size = counts.rough_cost(step)
    assert seconds == pytest.approx(counts.START + counts.READ * 64 * 64 * (1072 + 10 * 4 * 67))
    assert size > 1072 * counts.PREDICTION


def test_a_step_of_dpc_shows_a_class_once(tmp_path, monkeypatch):
    monkeypatch.setattr(counts, "speed", lambda: math.inf)
    *_, step = steps(tmp_path, "DPC_CoOp", "OPTIM.MAX_EPOCH", "10")
    cfg = step.config()
    batch, topk = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.TRAINER.DPC.TOPK
    # its pictures are frozen features: those of negatives are there, as of anchors of the epoch
    wanted = counts.START + counts.READ * 64 * 64 * (1072 + 10 * 4 * 67)
    assert counts.rough_cost(step)[0] == pytest.approx(wanted)
    # with learned image prompts each one is computed: every class once in a step
    *_, step = steps(tmp_path, "DPC_MaPLe", "OPTIM.MAX_EPOCH", "10")
    pictures = 4 * 67 / batch * min(batch * topk, 67)
    wanted = counts.START + counts.READ * 64 * 64 * (1072 + 10 * pictures)
    assert step.config().DATALOADER.TRAIN_X.BATCH_SIZE == batch
    assert counts.rough_cost(step)[0] == pytest.approx(wanted)


def test_a_plan_without_finished_runs_is_estimated_and_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(counts, "speed", lambda: 1e11)  # of an idle core, whatever this one has to do
    words = ["fewshot", "--trainer", "CoOp", "--dataset", "clipart", "--output", str(tmp_path), "--dry-run"]
    assert command.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if line.startswith("CoOp on clipart") and "~" in line]
    assert row.split()[-2:] == ["~0.2", "MB"] and row.split()[-3].startswith("~0:0")
    assert "~ from counts of pictures" in lines[-1]


def test_what_is_not_known_stays_open(tmp_path, monkeypatch):
    (step,) = steps(tmp_path, "CoOp", "MODEL.BACKBONE.NAME", str(tmp_path / "own.pt"))
    assert counts.rough_cost(step) is None
