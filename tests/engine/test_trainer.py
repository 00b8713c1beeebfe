"""PromptTrainer: the life cycle, its lines, results and errors."""

import json
import math
import re

import pytest
import torch

from dassl_prompts.engine import ENGINE_NAME, TRAINER_REGISTRY, TrainerX, build_trainer, read_learned
from dassl_prompts.engine.images import ImageReadError
from tests.engine.toy import CLASSES, ToyTrainer, make_images, toy_trainer

LINE = re.compile(
    r"epoch \[\d+/\d+\] batch \[\d+/\d+\] time \d+\.\d{3} \(\d+\.\d{3}\) data \d+\.\d{3} \(\d+\.\d{3}\) "
    r"loss \d+\.\d{4} \(\d+\.\d{4}\) lr \d\.\d{4}e[+-]\d\d eta \d+:\d\d:\d\d"
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def results(folder):
    return json.loads((folder / "results.json").read_text())


def test_hooks_run_in_dassls_order(images, tmp_path, monkeypatch):
    calls = []
    hooks = (
        "check_cfg",
        "build_data_loader",
        "build_model",
        "before_train",
        "before_epoch",
        "run_epoch",
        "after_epoch",
        "after_train",
        "test",
        "save_model",
    )
    for hook in hooks:
        original = getattr(ToyTrainer, hook)

        def wrapped(self, *args, _hook=hook, _original=original, **kwargs):
            calls.append((_hook, hasattr(self, "cfg")) if _hook == "check_cfg" else _hook)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(ToyTrainer, hook, wrapped)
    trainer = toy_trainer(images, tmp_path, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1)
    trainer.train()
    epoch = ["before_epoch", "run_epoch", "after_epoch", "save_model"]
    built = [("check_cfg", False), "build_data_loader", "build_model"]
    assert calls == [*built, "before_train", *epoch, *epoch, "after_train", "test"]
    assert isinstance(trainer, TrainerX) and trainer.epoch == 1 and trainer.device.type == "cpu"


def test_printed_lines(images, tmp_path, capsys):
    toy_trainer(images, tmp_path, "TRAIN.PRINT_FREQ", 2, "OPTIM.MAX_EPOCH", 2).train()
    lines = capsys.readouterr().out.splitlines()
    progress = [line for line in lines if line.startswith("epoch")]
    assert len(progress) == 2 and all(LINE.fullmatch(line) for line in progress)
    marks = [
        "No checkpoint found, train from scratch",
        "Finish training",
        "Deploy the last-epoch model",
        "Evaluate on the *test* set",
        "=> result",
    ]
    assert [line for line in lines if line in marks] == marks
    assert re.fullmatch(r"Elapsed: \d:\d\d:\d\d", lines[-1])


def test_epochs_json_holds_the_means_of_every_epoch(images, tmp_path, monkeypatch):
    losses = []
    original = ToyTrainer.forward_backward

    def noting(self, batch):
        losses.append(original(self, batch)["loss"])
        return {"loss": losses[-1]}

    monkeypatch.setattr(ToyTrainer, "forward_backward", noting)
    toy_trainer(images, tmp_path, "OPTIM.MAX_EPOCH", 2).train()
    noted = json.loads((tmp_path / "epochs.json").read_text())
    half = len(losses) // 2
    assert half > 1 and [entry["epoch"] for entry in noted] == [1, 2]
    for entry, some in zip(noted, (losses[:half], losses[half:])):
        assert entry["train"] == {"loss": pytest.approx(sum(some) / half)}


def test_rates_printed_at_the_end_of_an_epoch_are_the_next_ones(images, tmp_path, capsys):
    toy_trainer(images, tmp_path).train()
    rates = re.findall(r"batch \[3/3\].* lr (\S+)", capsys.readouterr().out)
    expected = [0.05 * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates == [f"{rate:.4e}" for rate in expected]


def test_files_of_a_run(images, tmp_path):
    out = tmp_path / "out"
    accuracy = toy_trainer(images, out, "TRAIN.CHECKPOINT_FREQ", 2).train()
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file() and p.parent.name != "tensorboard")
    assert files == [
        "epochs.json",
        "predictions_test.npz",
        "prompt_learner/checkpoint",
        "prompt_learner/model.pth.tar-2",
        "prompt_learner/model.pth.tar-4",
        "results.json",
        "resume.pt",
    ]
    checkpoint = torch.load(out / "prompt_learner" / "model.pth.tar-4")
    assert set(checkpoint["state_dict"]) == {"ctx", "mean", "token_prefix"} and checkpoint["epoch"] == 4
    written = results(out)
    assert written["finished"] is True and written["test"]["accuracy"] == accuracy == 100.0
    assert written["trainer"] == "ToyTrainer" and written["seed"] == 1 and written["classnames"] == CLASSES
    assert written["config"]["OPTIM.LR"] == "0.05" and written["max_epoch"] == 4


@pytest.mark.parametrize("key, known", [("SPLIT", "test, val"), ("FINAL_MODEL", "last_step, best_val")])
def test_unknown_values_of_the_test_keys_are_refused(images, tmp_path, key, known):
    with pytest.raises(ValueError, match=f"TEST.{key} is 'best'; choose one of {known}"):
        toy_trainer(images, tmp_path, f"TEST.{key}", "best")


def test_prompts_of_another_backbone_are_told(images, tmp_path, capsys):
    toy_trainer(images, tmp_path / "train", "MODEL.BACKBONE.NAME", "small", "OPTIM.MAX_EPOCH", 1).train()
    capsys.readouterr()
    for backbone, told in (("small", False), ("large", True)):
        trainer = toy_trainer(images, tmp_path / "eval", "MODEL.BACKBONE.NAME", backbone)
        trainer.load_model(tmp_path / "train")
        note = f"was trained on the backbone small, this run has {backbone}"
        assert (note in capsys.readouterr().out) == told


def test_full_checkpoints_on_request(images, tmp_path):
    trainer = toy_trainer(images, tmp_path, "TRAIN.CHECKPOINT_FULL", "True", "OPTIM.MAX_EPOCH", 1)
    trainer.train()
    state = torch.load(tmp_path / "prompt_learner" / "model.pth.tar-1")["state_dict"]
    assert set(state) == set(trainer.model.state_dict())


def test_evaluation_of_a_trained_run(images, tmp_path, capsys):
    trained = toy_trainer(images, tmp_path / "train")
    trained.train()
    trainer = toy_trainer(images, tmp_path / "eval", "SEED", 2)
    assert not torch.equal(trainer.model.ctx, trained.model.ctx)
    trainer.load_model(tmp_path / "train", epoch=4)
    assert torch.equal(trainer.model.ctx, trained.model.ctx) and torch.equal(trainer.model.mean, trained.model.mean)
    assert 'Loading weights to prompt_learner from "' in capsys.readouterr().out
    trainer.test()
    assert results(tmp_path / "eval")["finished"] is True and results(tmp_path / "eval")["kind"] == "evaluation"
    # evaluated again with another setting: results.json tells of the last evaluation
    toy_trainer(images, tmp_path / "eval", "SEED", 2, "OPTIM.LR", 0.5).test()
    assert results(tmp_path / "eval")["config"]["OPTIM.LR"] == "0.5"
    trainer.load_model("")
    assert "load_model() is skipped" in capsys.readouterr().out


def test_coops_load_model_reads_our_checkpoints(images, tmp_path):
    """CoOp's trainer reads these entries, drops the class tokens and loads the rest by name."""
    trained = toy_trainer(images, tmp_path)
    trained.train()
    checkpoint = torch.load(tmp_path / "prompt_learner" / "model.pth.tar-4", map_location="cpu")
    state_dict, epoch = checkpoint["state_dict"], checkpoint["epoch"]
    for name in ("token_prefix", "token_suffix"):
        state_dict.pop(name, None)
    other = toy_trainer(images, tmp_path / "other", "SEED", 2).model
    missing, unexpected = other.load_state_dict(state_dict, strict=False)
    assert epoch == 4 and not unexpected and all(name.startswith(("backbone.", "token_")) for name in missing)
    assert torch.equal(other.ctx, trained.model.ctx)


def test_newest_or_best_checkpoint_by_default(images, tmp_path):
    toy_trainer(images, tmp_path, "TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.MAX_EPOCH", 11).train()
    newest = torch.load(tmp_path / "prompt_learner" / "model.pth.tar-11")["state_dict"]["ctx"]
    assert torch.equal(read_learned(tmp_path, "prompt_learner")["ctx"], newest)
    (tmp_path / "prompt_learner" / "model.pth.tar-3").rename(tmp_path / "prompt_learner" / "model-best.pth.tar")
    best = torch.load(tmp_path / "prompt_learner" / "model-best.pth.tar")["state_dict"]["ctx"]
    assert torch.equal(read_learned(tmp_path, "prompt_learner")["ctx"], best)
    trainer = toy_trainer(images, tmp_path / "other")
    with pytest.raises(
        FileNotFoundError,
        match="model.pth.tar-99 .there are model-best.pth.tar, model.pth.tar-1, model.pth.tar-10, .*",
    ):
        trainer.load_model(tmp_path, epoch=99)
    with pytest.raises(FileNotFoundError, match="nothing/prompt_learner has no checkpoint"):
        trainer.load_model(tmp_path / "nothing")


def test_checkpoint_of_another_method(images, tmp_path):
    trainer = toy_trainer(images, tmp_path / "out")
    (tmp_path / "prompt_learner").mkdir()
    torch.save({"state_dict": {"vpt": torch.ones(2)}, "epoch": 1}, tmp_path / "prompt_learner" / "model.pth.tar-1")
    with pytest.raises(ValueError, match=r"does not hold \['ctx'\].*'vpt'"):
        trainer.load_model(tmp_path, epoch=1)
    torch.save([1], tmp_path / "prompt_learner" / "model.pth.tar-1")
    with pytest.raises(ValueError, match="model.pth.tar-1 is not a readable checkpoint .*it holds a list"):
        trainer.load_model(tmp_path, epoch=1)


def test_init_weights(images, tmp_path):
    toy_trainer(images, tmp_path / "a", "OPTIM.MAX_EPOCH", 1).train()
    trainer = toy_trainer(images, tmp_path / "b", "SEED", 5)
    path = tmp_path / "a" / "prompt_learner" / "model.pth.tar-1"
    trainer.load_init_weights(trainer.model, path)
    assert torch.equal(trainer.model.ctx, torch.load(path)["state_dict"]["ctx"])


def test_the_best_model_is_deployed(images, tmp_path, capsys, monkeypatch):
    scores = iter([10.0, 30.0, 30.0, 20.0])
    evaluate = ToyTrainer.test
    monkeypatch.setattr(
        ToyTrainer, "test", lambda self, split=None: next(scores) if split == "val" else evaluate(self, split)
    )
    trainer = toy_trainer(images, tmp_path, "TEST.FINAL_MODEL", "best_val")
    trainer.train()
    best = torch.load(tmp_path / "prompt_learner" / "model-best.pth.tar")
    assert best["epoch"] == 2 and best["val_result"] == 30.0 and trainer.best_result == 30.0
    assert torch.equal(trainer.model.ctx, best["state_dict"]["ctx"])
    assert "Deploy the model with the best val performance" in capsys.readouterr().out
    assert (tmp_path / "prompt_learner" / "checkpoint").read_text() == "model.pth.tar-4\n"


def test_without_a_test(images, tmp_path):
    assert toy_trainer(images, tmp_path, "TEST.NO_TEST", "True").train() is None
    assert results(tmp_path)["finished"] is True and "test" not in results(tmp_path)


def test_nan_stops_the_run_and_keeps_the_last_good_state(images, tmp_path, monkeypatch):
    monkeypatch.setattr(ToyTrainer, "nan_at", (2, 1))
    trainer = toy_trainer(images, tmp_path / "out", "TRAIN.CHECKPOINT_FREQ", 1)
    with pytest.raises(
        FloatingPointError, match=r"epoch 3/4, batch 2/3; the state after epoch 2 is kept in .*out/resume.pt"
    ):
        trainer.train()
    saved = torch.load(tmp_path / "out" / "prompt_learner" / "model.pth.tar-2")["state_dict"]["ctx"]
    assert saved.isfinite().all() and trainer.model.ctx.isfinite().all()
    assert results(tmp_path / "out")["finished"] is False
    # what forward_backward reports is checked as well, for methods that step on their own
    monkeypatch.setattr(ToyTrainer, "nan_at", None)
    monkeypatch.setattr(ToyTrainer, "forward_backward", lambda self, batch: {"loss": 1.0, "kl": float("inf")})
    with pytest.raises(FloatingPointError, match="kl in epoch 3/4, batch 1/3"):
        toy_trainer(images, tmp_path / "out", "TRAIN.CHECKPOINT_FREQ", 1).train()


def test_nan_logits_stop_a_test(images, tmp_path):
    trainer = toy_trainer(images, tmp_path)
    trainer.model.ctx.data.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="logits of the test set, batch 1 of 2"):
        trainer.test()
    assert not (tmp_path / "results.json").exists()


def test_an_evaluation_does_not_finish_a_training_run(images, tmp_path, monkeypatch):
    monkeypatch.setattr(ToyTrainer, "nan_at", (1, 0))
    with pytest.raises(FloatingPointError):
        toy_trainer(images, tmp_path).train()
    toy_trainer(images, tmp_path).test()
    assert results(tmp_path)["finished"] is False and "test" in results(tmp_path)


def test_results_of_another_run_are_not_overwritten(images, tmp_path):
    toy_trainer(images, tmp_path).test()
    with pytest.raises(ValueError, match="holds the results of another run .seed 1 there, 2 now"):
        toy_trainer(images, tmp_path, "SEED", 2).test()


@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_images(tmp_path, capsys, workers):
    root = make_images(tmp_path / "data")
    victim = root / "leaf" / "1.png"
    victim.write_bytes(victim.read_bytes()[:50])
    opts = ["DATALOADER.NUM_WORKERS", workers, "OPTIM.MAX_EPOCH", 1]
    with pytest.raises(ImageReadError, match="leaf/1.png"):
        toy_trainer(root, tmp_path / "a", *opts).train()
    trainer = toy_trainer(root, tmp_path / "b", *opts, "DATALOADER.MAX_CORRUPT", 1)
    trainer.train()
    assert trainer.corrupt_images == {str(victim)} and "leaf/1.png (1 of at most 1)" in capsys.readouterr().out
    tested = root / "root" / "0.png"
    tested.write_bytes(b"")
    with pytest.raises(ImageReadError, match="root/0.png"):
        trainer.test()


def test_labels_with_gaps(images, tmp_path):
    class Gaps:
        num_classes = 4
        train_x = [type("D", (), {"label": label}) for label in (0, 1, 3)]
        val = None
        test = train_x

    from dassl_prompts.engine.loading import check_labels

    with pytest.raises(ValueError, match="Gaps: no training image has label 2"):
        check_labels(Gaps())
    Gaps.num_classes, Gaps.train_x, Gaps.test = 2, Gaps.train_x[:2], Gaps.train_x
    with pytest.raises(ValueError, match="Gaps: test images have label 3"):
        check_labels(Gaps())


def test_plain_trainers_of_a_lab(images, tmp_path):
    """TrainerX as a lab's own file uses it, with Dassl's automatic resume."""
    from tests.engine import toy

    lab = type(
        "LabTrainer",
        (TrainerX,),
        {
            "build_model": ToyTrainer.build_model,
            "forward_backward": ToyTrainer.forward_backward,
            "moment": ToyTrainer.moment,
            "die_at": "",
            "nan_at": None,
        },
    )
    if "LabTrainer" not in TRAINER_REGISTRY.registered_names():
        TRAINER_REGISTRY.register(lab)
    cfg = toy.toy_cfg(images, tmp_path, "TRAINER.NAME", "LabTrainer", "TRAIN.CHECKPOINT_FREQ", 1)
    toy.set_random_seed(1)
    trainer = build_trainer(cfg)
    trainer.train()
    assert torch.load(tmp_path / "prompt_learner" / "model.pth.tar-4")["epoch"] == 4
    again = build_trainer(cfg)
    again.max_epoch = 6
    again.train()
    assert again.start_epoch == 4 and (tmp_path / "prompt_learner" / "model.pth.tar-6").exists()
    # Dassl prints the validation result of a checkpoint as a number, also where there is none
    if ENGINE_NAME == "dassl":
        return
    again.load_model(str(tmp_path), epoch=4)
    assert torch.equal(again.model.ctx, trainer.model.ctx)
