"""The command line of train.py."""

import json
import sys

import pytest
import torch

from dassl_prompts.engine import FolderInUse, ImageReadError
from dassl_prompts.train import main, message, parser, setup_cfg
from tests.datasets import trees

EMOJI = [
    "--dataset-config-file",
    "configs/datasets/emoji.yaml",
    "--config-file",
    "configs/trainers/CoOp/open_tiny.yaml",
]


@pytest.fixture(autouse=True)
def in_repository(monkeypatch, tmp_path):
    """The configurations are at hand as in the repository; the default ./output is none of the user's."""
    from tests.conftest import ROOT

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)


def cfg_of(*argv):
    return setup_cfg(parser().parse_args(list(argv)))


def test_flags_win_over_files_and_pairs_over_flags():
    cfg = cfg_of(*EMOJI, "--trainer", "CoOp", "--seed", "0", "--backbone", "ViT-B/16", "OPTIM.MAX_EPOCH", "3")
    assert (cfg.SEED, cfg.MODEL.BACKBONE.NAME, cfg.OPTIM.MAX_EPOCH) == (0, "ViT-B/16", 3)


def test_an_integer_is_fine_for_a_float():
    assert cfg_of(*EMOJI, "--trainer", "DPC_CoOp", "TRAINER.DPC.OMEGA_B", "1").TRAINER.DPC.OMEGA_B == 1.0


@pytest.mark.parametrize(
    "argv, message",
    [
        ([*EMOJI], "TRAINER.NAME is empty: give --trainer"),
        (["--trainer", "CoOp"], "DATASET.NAME is empty: give --dataset"),
        ([*EMOJI, "--trainer", "CoOp", "TRAINER.COOP.N_CTXX", "4"], "did you mean TRAINER.COOP.N_CTX"),
        ([*EMOJI, "--trainer", "CoOp", "TRAINER.COOP.N_CTX"], "KEY VALUE pairs"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_unknown_names_list_the_known_ones(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main([*EMOJI, "--trainer", "CoOpp", "--output-dir", str(tmp_path / "run")])
    assert "do you mean" in capsys.readouterr().err
    # the traceback is kept for whoever wants it
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


def test_missing_dataset_names_the_folder(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(
            [
                "--dataset-config-file",
                "configs/datasets/caltech101.yaml",
                "--config-file",
                "configs/trainers/CoOp/vit_b16.yaml",
                "--trainer",
                "CoOp",
                "--root",
                str(tmp_path),
                "--output-dir",
                str(tmp_path / "run"),
            ]
        )
    assert f"{tmp_path}/caltech-101 does not exist" in capsys.readouterr().err


def test_train_then_evaluate_new_classes(tmp_path, capsys):
    opts = [
        "--trainer",
        "CoOp",
        "--seed",
        "1",
        "DATASET.NUM_SHOTS",
        "1",
        "OPTIM.MAX_EPOCH",
        "1",
        "TRAINER.COOP.N_CTX",
        "2",
    ]
    main([*EMOJI, "--output-dir", str(tmp_path / "train"), *opts, "DATASET.SUBSAMPLE_CLASSES", "base"])
    out = capsys.readouterr().out
    assert "Finish training" in out and "* accuracy: " in out
    main(
        [
            *EMOJI,
            "--output-dir",
            str(tmp_path / "test"),
            "--model-dir",
            str(tmp_path / "train"),
            "--eval-only",
            *opts,
            "DATASET.SUBSAMPLE_CLASSES",
            "new",
        ]
    )
    results = json.loads((tmp_path / "test" / "results.json").read_text())
    assert results["finished"] and results["classes"] == "new" and 0 <= results["test"]["accuracy"] <= 100


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--eval-only"], "--eval-only without --model-dir would evaluate the untrained prompts of CoOp"),
        (["--model-dir", "x"], "--model-dir is read with --eval-only alone"),
        (
            ["--eval-only", "--load-epoch", "3"],
            "--load-epoch 3 chooses a checkpoint of --model-dir, which is not given",
        ),
        (["--eval-only", "--model-dir", "x", "--resume", "y"], "--eval-only and --resume contradict each other"),
    ],
)
def test_flags_that_would_not_be_read_or_evaluate_nothing_trained_are_refused(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*EMOJI, "--trainer", "CoOp", "--output-dir", str(tmp_path / "run"), *flags, "DATASET.NUM_SHOTS", "1"])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "run" / "results.json").exists()  # nothing that the report would take for a result


def test_zero_shot_methods_are_evaluated_without_a_model_dir(tmp_path):
    files = [EMOJI[0], EMOJI[1], "--config-file", "configs/trainers/ZeroshotCLIP/open_tiny.yaml"]
    main([*files, "--trainer", "ZeroshotCLIP", "--output-dir", str(tmp_path / "run"), "--eval-only"])
    assert json.loads((tmp_path / "run" / "results.json").read_text())["finished"]


def test_contexts_per_class_with_initial_words_are_refused_with_both_keys(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*EMOJI, "--trainer", "CoOp", "--output-dir", str(tmp_path / "run"), "TRAINER.COOP.CSC", "True"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "TRAINER.COOP.CSC True and TRAINER.COOP.CTX_INIT 'a photo of a' contradict" in error


class Unreadable(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        ImageReadError("cannot read image a.jpg: cut short"),
        KeyError("a.jpg"),
        FileNotFoundError("no a.jpg"),
    ],
)
def test_an_error_in_a_loader_process_is_told_as_one_line(error):
    data = Unreadable()
    data.error = error
    with pytest.raises(type(error)) as caught:
        next(iter(torch.utils.data.DataLoader(data, num_workers=1)))
    assert "Traceback" in str(caught.value.args[0])
    assert message(caught.value) == str(error)
    assert message(error) == str(error).strip("'")


@pytest.mark.parametrize(
    "error, code",
    [
        (FloatingPointError("Loss is infinite or NaN!"), 1),
        (ImageReadError("cannot read image a.jpg"), 1),
        (FolderInUse("the folder is in use"), 2),
        (FileNotFoundError("no folder"), 2),
        (ValueError("no such key"), 2),
    ],
)
def test_a_failure_on_the_way_and_wrong_input_have_different_codes(error, code, monkeypatch, capsys):
    class Trainer:
        def train(self):
            raise error

    monkeypatch.setattr("dassl_prompts.engine.build_trainer", lambda cfg: Trainer())
    monkeypatch.setattr("dassl_prompts.engine.collect_env_info", lambda: "")  # asks every tool of the machine
    with pytest.raises(SystemExit) as stop:
        main([*EMOJI, "--trainer", "CoOp"])
    assert stop.value.code == code and capsys.readouterr().err == f"error: {error}\n"


def test_help_tells_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "exit codes: 0 done, 1 the run failed" in capsys.readouterr().out


def test_a_torchvision_for_another_torch_is_named(monkeypatch, capsys):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    with pytest.raises(SystemExit) as stop:
        main([*EMOJI, "--trainer", "CoOp"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "Traceback" not in error
    assert "do not belong together (operator torchvision::nms does not exist)" in error
    assert "pip install torch torchvision" in error


def test_a_split_without_training_images_is_scored_by_zero_shot_and_by_a_trained_run(tmp_path):
    trees.make_tree("Caltech101", tmp_path / "data")
    command = [
        "--root",
        str(tmp_path / "data"),
        "--dataset-config-file",
        "configs/datasets/caltech101.yaml",
        *EMOJI[2:],
    ]
    command += ["--seed", "1", "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]
    folders = {name: str(tmp_path / name) for name in ("whole", "scored", "zero_shot")}
    main(["--trainer", "CoOp", "--output-dir", folders["whole"], *command, "DATASET.MAKE_SPLIT", "0"])
    made = tmp_path / "data" / "caltech-101" / "split_own0_Caltech101.json"
    test = json.loads(made.read_text())["test"]
    made.with_name("split_zhou_Caltech101.json").write_text(json.dumps({"train": [], "val": [], "test": test}))
    trained = ["--trainer", "CoOp", "--model-dir", folders["whole"], "--output-dir", folders["scored"]]
    main([*trained, "--eval-only", *command])
    main(["--trainer", "ZeroshotCLIP", "--output-dir", folders["zero_shot"], "--eval-only", *command])
    result = {name: json.loads((tmp_path / name / "results.json").read_text()) for name in folders}
    assert result["scored"]["test"] == result["whole"]["test"] and result["scored"]["finished"]
    assert result["zero_shot"]["finished"] and 0 < result["zero_shot"]["test"]["accuracy"] < 100


def test_the_screen_has_a_headline_and_the_log_everything(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dassl_prompts.engine.collect_env_info", lambda: "versions")
    main([*EMOJI, "--trainer", "CoOp", "--no-train", "--seed", "1", "--output-dir", str(tmp_path / "run")])
    shown, log = capsys.readouterr().out, (tmp_path / "run" / "log.txt").read_text()
    assert "CoOp on Emoji (all classes), seed 1, open-tiny" in shown and "** Config" not in shown
    assert len(shown.splitlines()) < 30
    assert "** Differs from the defaults **" in log and "OPTIM.LR: 0.02 (default 0.0003)" in log and "versions" in log
    assert log.index("Differs from the defaults") < log.index("** Config **")
