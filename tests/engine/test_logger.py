"""Logger, files, meters."""

import gc
import io
import os
import sys

import pytest
import torch

from dassl_prompts.engine import (
    AverageMeter,
    MetricMeter,
    close_logger,
    compute_accuracy,
    count_num_param,
    listdir_nohidden,
    open_specified_layers,
    read_json,
    set_random_seed,
    setup_logger,
    write_json,
)
from dassl_prompts.engine.files import require_writable
from dassl_prompts.engine.randomness import rng_state, set_rng_state


@pytest.fixture
def make_console(monkeypatch):
    """Puts a stream in place of sys.stdout; called inside the test, because pytest puts back its own before
    it."""

    def make():
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        return sys.stdout

    yield make
    close_logger()


def test_what_is_printed_goes_to_both(make_console, tmp_path):
    console = make_console()
    setup_logger(tmp_path / "run")
    print("hello")
    assert console.getvalue().endswith("hello\n")
    # without flush or close: a killed run keeps its last line
    assert (tmp_path / "run" / "log.txt").read_text().endswith("hello\n")
    assert sys.stdout.isatty() is False and sys.stdout.encoding == console.encoding


def test_the_console_survives_the_logger(make_console, tmp_path):
    console = make_console()
    setup_logger(tmp_path)
    sys.stdout = console
    gc.collect()
    print("still open")
    setup_logger(tmp_path)
    close_logger()
    assert sys.stdout is console
    print("and again")
    assert console.getvalue().endswith("still open\nand again\n")


def test_an_existing_log_is_kept(make_console, tmp_path):
    make_console()
    for text in ("first", "second", "third"):
        setup_logger(tmp_path)
        print(text)
    assert (tmp_path / "log.txt").read_text().endswith("first\n")
    others = sorted(p for p in tmp_path.iterdir() if p.name != "log.txt")
    assert len(others) == 2 and all(p.name.startswith("log.txt-20") for p in others)
    assert "second" in others[0].read_text() and "third" in others[1].read_text()
    setup_logger(tmp_path, append=True)
    print("more")
    assert (tmp_path / "log.txt").read_text().endswith("first\nmore\n")


def test_log_file_by_name_or_not_at_all(make_console, tmp_path):
    console = make_console()
    setup_logger(None)
    assert sys.stdout is console
    setup_logger(tmp_path / "my.log")
    print("x")
    assert (tmp_path / "my.log").exists()


def test_unwritable_folders_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError,
        match="output folder .*file/run: .*file is not a folder; choose another one with --output-dir",
    ):
        setup_logger(tmp_path / "file" / "run")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for a user without rights; root has them all
    with pytest.raises(PermissionError, match=f"output folder .*run: no permission to write in {tmp_path}"):
        require_writable(tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_json(tmp_path):
    write_json({"a": [1, "ü"]}, tmp_path / "sub" / "x.json")
    assert read_json(tmp_path / "sub" / "x.json") == {"a": [1, "ü"]}
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match="x.json is not valid JSON"):
        read_json(tmp_path / "x.json")


def test_listdir_nohidden(tmp_path):
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).write_text("")
    assert listdir_nohidden(tmp_path, sort=True) == ["a", "b"]


def test_meters():
    meter = AverageMeter()
    meter.update(1.0)
    meter.update(torch.tensor(4.0), n=2)
    assert (meter.val, meter.avg, meter.sum, meter.count) == (4.0, 3.0, 9.0, 3)
    metrics = MetricMeter()
    metrics.update({"loss": 1.23456, "acc": torch.tensor([50.0])})
    metrics.update({"loss": 2.0, "acc": 100})
    metrics.update(None)
    assert str(metrics) == "loss 2.0000 (1.6173) acc 100.0000 (75.0000)"
    with pytest.raises(TypeError, match="must be a dictionary"):
        metrics.update([1])


def test_top_k_accuracy():
    logits = torch.tensor([[3.0, 2, 1], [3, 2, 1], [1, 3, 2], [1, 2, 3]])
    top1, top2 = compute_accuracy(logits, torch.tensor([0, 1, 0, 1]), topk=(1, 2))
    assert top1.tolist() == [25.0] and top2.tolist() == [75.0]


def test_counting_and_opening_parameters():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    assert count_num_param(model) == 13 and count_num_param(params=model[1].parameters()) == 4
    assert count_num_param(params=torch.optim.SGD(model.parameters(), lr=1).param_groups) == 13
    open_specified_layers(model, "1")
    assert not model[0].weight.requires_grad and model[1].weight.requires_grad and not model[0].training
    with pytest.raises(ValueError, match="body is not a child"):
        open_specified_layers(model, ["body"])
    with pytest.raises(ValueError, match="at least one"):
        count_num_param()


def draw_everything():
    import random

    import numpy as np

    return [
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        *torch.rand(3).tolist(),
        torch.randn(1).item(),
    ]


def test_random_state_round_trip(tmp_path):
    set_random_seed(4)
    draw_everything()  # leaves a cached Gaussian behind in Python and numpy
    torch.save(rng_state(), tmp_path / "rng.pt")
    expected = [draw_everything() for _ in range(3)]
    set_rng_state(torch.load(tmp_path / "rng.pt"))
    assert [draw_everything() for _ in range(3)] == expected
    set_random_seed(4)
    first = draw_everything()
    set_random_seed(4)
    assert draw_everything() == first
