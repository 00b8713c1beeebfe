"""Interrupted runs: the same command again ends with the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dassl_prompts.engine import CannotResume, epochs
from tests.engine.toy import ToyTrainer, make_images, toy_trainer

TOY = Path(__file__).parent / "toy.py"
LAST = "prompt_learner/model.pth.tar-4"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def uninterrupted(images, tmp_path_factory):
    """Output folder and trainer of a run from start to end."""
    out = tmp_path_factory.mktemp("straight")
    trainer = toy_trainer(images, out)
    trainer.train()
    return out, trainer


def assert_same_end(out, expected):
    ours, theirs = torch.load(out / LAST), torch.load(expected / LAST)
    assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())
    for (i, mine), other in zip(ours["optimizer"]["state"].items(), theirs["optimizer"]["state"].values()):
        assert all(torch.equal(mine[key], other[key]) for key in ("exp_avg", "exp_avg_sq", "step")), i
    assert ours["scheduler"] == theirs["scheduler"]


def test_sigkill_at_any_moment(images, uninterrupted, tmp_path):
    """Killed again and again, at another moment each time, on one and on no worker."""
    moments = ["batch 0 1", "saved 0", "batch 1 2", "writing 2", "resumable 2", "saved 3", "trained"]
    command = [str(part) for part in (sys.executable, TOY, images, tmp_path, *moments)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "results.json").read_text())["finished"] is False
    trainer = toy_trainer(images, tmp_path)
    assert trainer.train() == 100.0
    assert_same_end(tmp_path, uninterrupted[0])
    assert trainer.history == uninterrupted[1].history
    noted = epochs.read(tmp_path)
    assert noted == epochs.read(uninterrupted[0]) and [entry["epoch"] for entry in noted] == [1, 2, 3, 4]
    assert not list(tmp_path.rglob("*.tmp"))
    assert json.loads((tmp_path / "results.json").read_text())["finished"] is True


class Stop(Exception):
    pass


def interrupt(monkeypatch, moment, run):
    """Run until ``moment``, where an exception ends it."""

    def stop(self, name):
        if name == moment:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(ToyTrainer, "moment", stop)
        with pytest.raises(Stop):
            run()


@pytest.mark.parametrize(
    "opts",
    [
        ["TEST.FINAL_MODEL", "best_val"],
        ["TRAIN.RESUME_FREQ", 3],
        ["DATALOADER.SEED_ITEMS", "False"],
        ["DATASET.NUM_SHOTS", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 2],
        ["OPTIM.NAME", "sgd", "TRAIN.CHECKPOINT_FREQ", 1],
    ],
)
def test_resume_with_other_settings(images, tmp_path, monkeypatch, opts):
    straight = toy_trainer(images, tmp_path / "straight", *opts)
    straight.train()
    interrupt(monkeypatch, "batch 3 1", lambda: toy_trainer(images, tmp_path / "cut", *opts).train())
    trainer = toy_trainer(images, tmp_path / "cut", *opts)
    trainer.train()
    assert trainer.history == straight.history and trainer.best_result == straight.best_result
    for key, value in straight.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[key], value)


def test_hooks_after_the_start_do_not_shift_the_random_stream(images, tmp_path, monkeypatch):
    """A subclass may draw numbers after ``super().before_train()``."""
    start = ToyTrainer.before_train
    monkeypatch.setattr(ToyTrainer, "before_train", lambda self: (start(self), torch.rand(7)))
    straight = toy_trainer(images, tmp_path / "straight")
    straight.train()
    for moment in ("batch 0 0", "batch 1 1"):
        interrupt(monkeypatch, moment, lambda: toy_trainer(images, tmp_path / "cut").train())
    trainer = toy_trainer(images, tmp_path / "cut")
    trainer.train()
    assert trainer.history == straight.history


def test_a_finished_run_is_not_trained_again(images, tmp_path, capsys):
    first = toy_trainer(images, tmp_path)
    first.train()
    before = (tmp_path / LAST).stat().st_mtime_ns
    again = toy_trainer(images, tmp_path)
    capsys.readouterr()
    assert again.train() == 100.0
    out = capsys.readouterr().out
    assert "is finished (4 epochs), nothing left to train" in out and "epoch [" not in out
    assert (tmp_path / LAST).stat().st_mtime_ns == before and again.history == first.history
    assert torch.equal(again.model.ctx, first.model.ctx)


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        (["OPTIM.LR", 0.1], "OPTIM.LR: 0.05 -> 0.1"),
        (["SEED", 2], "SEED: 1 -> 2"),
        (["DATASET.SUBSAMPLE_CLASSES", "new"], "DATASET.SUBSAMPLE_CLASSES: 'all' -> 'new'"),
        (
            ["OPTIM.MAX_EPOCH", 8, "DATASET.NUM_SHOTS", 1],
            "DATASET.NUM_SHOTS: -1 -> 1; OPTIM.MAX_EPOCH: 4 -> 8",
        ),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(images, uninterrupted, opts, text):
    out = uninterrupted[0]
    before = (out / "resume.pt").read_bytes()
    with pytest.raises(CannotResume, match=f"resume.pt belongs to a run with other settings .{text}.*--output-dir"):
        toy_trainer(images, out, *opts).train()
    assert (out / "resume.pt").read_bytes() == before


def test_settings_without_influence_may_differ(images, tmp_path, uninterrupted, monkeypatch):
    interrupt(monkeypatch, "batch 2 0", lambda: toy_trainer(images, tmp_path / "a").train())
    (tmp_path / "a").rename(tmp_path / "moved")
    images.rename(images.with_name("elsewhere"))
    try:
        toy_trainer(
            images.with_name("elsewhere"),
            tmp_path / "moved",
            "TRAIN.PRINT_FREQ",
            2,
            "DATALOADER.NUM_WORKERS",
            1,
        ).train()
    finally:
        images.with_name("elsewhere").rename(images)
    assert_same_end(tmp_path / "moved", uninterrupted[0])


def test_other_training_images_are_refused(images, tmp_path, monkeypatch):
    opts = ["SEED", -1, "DATASET.NUM_SHOTS", 2]
    interrupt(monkeypatch, "batch 1 0", lambda: toy_trainer(images, tmp_path, *opts).train())
    import random

    random.seed(12345)
    with pytest.raises(CannotResume, match="other training images; SEED is negative"):
        toy_trainer(images, tmp_path, *opts).train()


@pytest.mark.parametrize("what", ["backbone", "class names"])
def test_other_weights_or_names_are_refused(images, tmp_path, monkeypatch, what):
    noted = {"backbone": "aa", "class names": "bb"}
    monkeypatch.setattr(ToyTrainer, "digests", lambda self: noted)
    interrupt(monkeypatch, "batch 1 0", lambda: toy_trainer(images, tmp_path).train())
    monkeypatch.setattr(ToyTrainer, "digests", lambda self: {**noted, what: "cc"})
    with pytest.raises(CannotResume, match=f"other data or weights.*{what}: {noted[what]} -> cc"):
        toy_trainer(images, tmp_path).train()


def test_resume_from_another_folder(images, tmp_path, uninterrupted, monkeypatch):
    interrupt(monkeypatch, "batch 2 1", lambda: toy_trainer(images, tmp_path / "a").train())
    again = lambda: toy_trainer(images, tmp_path / "b", "RESUME", tmp_path / "a").train()
    # the same command after a second interruption goes on in its own folder
    interrupt(monkeypatch, "batch 3 1", again)
    (tmp_path / "a" / "resume.pt").unlink()
    again()
    assert_same_end(tmp_path / "b", uninterrupted[0])


def test_resume_from_nothing(images, tmp_path):
    with pytest.raises(FileNotFoundError, match="empty/prompt_learner has no checkpoint"):
        toy_trainer(images, tmp_path / "out", "RESUME", tmp_path / "empty").train()


def test_resume_from_checkpoints_of_stock_dassl(images, tmp_path, uninterrupted, capsys, monkeypatch):
    """Weights, optimiser and learning rate go on; the random state is not in such files, and that is said."""
    opts = ["TRAIN.RESUME_FREQ", 0, "TRAIN.CHECKPOINT_FREQ", 1]
    interrupt(monkeypatch, "batch 2 0", lambda: toy_trainer(images, tmp_path / "stock", *opts).train())
    trainer = toy_trainer(images, tmp_path / "out", "RESUME", tmp_path / "stock")
    trainer.train()
    assert trainer.start_epoch == 2 and "not be bit-identical" in capsys.readouterr().out
    assert trainer.sched.state_dict() == uninterrupted[1].sched.state_dict()

    # in the folder itself nothing is replaced without --resume
    with pytest.raises(CannotResume, match="holds checkpoints .*model.pth.tar-1.* but no resume.pt"):
        toy_trainer(images, tmp_path / "stock").train()
    toy_trainer(images, tmp_path / "stock", "RESUME", tmp_path / "stock").train()
    assert (tmp_path / "stock" / LAST).exists()


def test_damaged_or_foreign_resume_files(images, tmp_path, uninterrupted):
    whole = (uninterrupted[0] / "resume.pt").read_bytes()
    path = tmp_path / "resume.pt"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="resume.pt is not a readable checkpoint"):
        toy_trainer(images, tmp_path).train()
    torch.save({"epoch": 1}, path)
    with pytest.raises(ValueError, match="resume.pt is not a resume file"):
        toy_trainer(images, tmp_path).train()
    state = torch.load(uninterrupted[0] / "resume.pt")
    torch.save({**state, "format": 0}, path)
    with pytest.raises(CannotResume, match="format 0"):
        toy_trainer(images, tmp_path).train()
    torch.save({**state, "models": {"prompt_learner": {"ctx": torch.ones(2)}}}, path)
    with pytest.raises(CannotResume, match=r"learned tensors \['ctx', 'mean', 'token_prefix'\]"):
        toy_trainer(images, tmp_path).train()


def test_resume_files_load_with_torchs_defaults(uninterrupted):
    state = torch.load(uninterrupted[0] / "resume.pt")
    assert (
        state["epoch"] == 4
        and state["trainer"] == "ToyTrainer"
        and set(state["rng"]) == {"python", "numpy", "torch", "cuda"}
    )


def test_elapsed_time_adds_up(images, tmp_path, monkeypatch):
    interrupt(monkeypatch, "batch 2 0", lambda: toy_trainer(images, tmp_path).train())
    state = torch.load(tmp_path / "resume.pt")
    torch.save({**state, "elapsed": 1000.0}, tmp_path / "resume.pt")
    toy_trainer(images, tmp_path).train()
    assert 1000 <= json.loads((tmp_path / "results.json").read_text())["seconds"] < 1100
