"""Where scalars go: CSV, tensorboard, Weights & Biases without network, and names that are refused."""

import csv

import pytest

from dassl_prompts.engine import writers
from dassl_prompts.engine.writers import Writers, check_kinds

SCALARS = [("train/loss", 2.5, 0), ("train/loss", 1.25, 1), ("test/accuracy", 50.0, 3)]


def write(names, folder):
    found = Writers(names, folder, {"SEED": 1})
    for scalar in SCALARS:
        found.add_scalar(*scalar)
    found.close()


def test_csv_goes_on_after_a_restart(tmp_path):
    write(["csv"], tmp_path)
    write(["csv"], tmp_path)
    with open(tmp_path / "scalars.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["step", "tag", "value"] and len(rows) == 7 and rows[2] == ["1", "train/loss", "1.25"]


def test_tensorboard_reads_its_files(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    write(["tensorboard"], tmp_path)
    found = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in found.Scalars("train/loss")] == [2.5, 1.25]


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(["wandb", "csv"], tmp_path)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_wrong_names_and_missing_packages_are_named(monkeypatch):
    with pytest.raises(ValueError, match="TRAIN.LOG_TO has 'tensorbord'; choose among tensorboard, csv, wandb"):
        check_kinds(["tensorbord"])
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
    check_kinds(["tensorboard", "csv"])  # tensorboard is used where it is
    with pytest.raises(ValueError, match="needs the package wandb: pip install wandb"):
        check_kinds(["wandb"])
