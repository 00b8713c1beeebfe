"""Predictions of an evaluation, and the page on errors that is made of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_prompts.engine.predictions import Collector, read
from dassl_prompts.report.__main__ import main
from dassl_prompts.results.statistics import Value, intervals
from tests.report.tree import write_run

NAMES = ["cat", "dog", "hen"]


def logits(answers):
    return 10.0 * torch.nn.functional.one_hot(torch.tensor(answers), 3)


def evaluate(root, trainer, answers, labels=(0, 0, 1, 1, 2, 2), **changes):
    """A run on six pictures of three classes."""
    data = root / "data"
    data.mkdir(exist_ok=True)
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * number, 0, 0)).save(data / f"{number}.png")
    config = {"DATASET.ROOT": repr(str(data)), "INPUT.ORIENTATION": "'stored'"}
    values = {"test": {"accuracy": 50.0}}
    folder = write_run(
        root / "out", "fewshot/train_all", trainer, "Emoji", 1, values, config=config, classnames=NAMES, **changes
    )
    collector = Collector(data)
    for part in (slice(0, 4), slice(4, 6)):
        paths = [str(data / f"{number}.png") for number in range(6)][part]
        collector.add(paths, logits(answers[part]), torch.tensor(labels[part]))
    collector.write(folder / "predictions_test.npz")
    return folder


def test_predictions_come_back(tmp_path):
    folder = evaluate(tmp_path, "CoOp", (0, 1, 1, 1, 2, 0))
    found = read(folder / "predictions_test.npz")
    assert found.path.tolist() == [f"{number}.png" for number in range(6)]
    assert found.right.tolist() == [True, False, True, True, True, False]
    scores = logits((0, 1, 1, 1, 2, 0)).log_softmax(1).numpy()
    assert np.allclose(found.log_answer, scores.max(1)) and np.allclose(found.log_label[1], scores[1, 0])
    (folder / "predictions_test.npz").write_bytes(b"x")
    with pytest.raises(ValueError, match="is not an .npz file of plain arrays"):
        read(folder / "predictions_test.npz")


def test_the_page_names_classes_mistakes_and_pairs(tmp_path, capsys):
    evaluate(tmp_path, "CoOp", (0, 1, 1, 1, 2, 0))
    evaluate(tmp_path, "MaPLe", (0, 0, 1, 1, 2, 0))
    assert main([str(tmp_path / "out"), "--errors", str(tmp_path / "errors")]) == 0
    assert "errors.md" in capsys.readouterr().out
    page = (tmp_path / "errors" / "errors.md").read_text()
    assert "| cat     | 50.0       | 2          | dog (1)     |" in page
    assert "| 66.67" in page and "ECE" in page and "NLL" in page
    assert "Both right 4, neither 1; McNemar's exact test p = 1." in page
    assert "B alone is right most often on cat (1)." in page
    for name in (
        "CoOp_vit_b16_on_Emoji_all_classes_seed_1_confusion.png",
        "MaPLe_vit_b16_on_Emoji_all_classes_seed_1_mistakes.png",
    ):
        assert name in page and Image.open(tmp_path / "errors" / name).size[0] > 100


def test_pictures_that_are_gone_are_counted(tmp_path):
    evaluate(tmp_path, "CoOp", (0, 1, 1, 1, 2, 0))
    for path in (tmp_path / "data").iterdir():
        path.unlink()
    assert main([str(tmp_path / "out"), "--errors", str(tmp_path / "errors")]) == 0
    assert "2 pictures are not where they were" in (tmp_path / "errors" / "errors.md").read_text()


def test_other_pictures_are_no_pair(tmp_path):
    evaluate(tmp_path, "CoOp", (0, 1, 1, 1, 2, 0))
    folder = evaluate(tmp_path, "MaPLe", (0, 0, 1, 1, 2, 0))
    collector = Collector("")
    collector.add(["other.png"], logits([0]), torch.tensor([0]))
    collector.write(folder / "predictions_test.npz")
    assert main([str(tmp_path / "out"), "--errors", str(tmp_path / "errors")]) == 0
    assert "McNemar" not in (tmp_path / "errors" / "errors.md").read_text()


def test_runs_without_predictions_are_told(tmp_path, capsys):
    write_run(tmp_path, "fewshot/train_all", values=50.0)
    assert main([str(tmp_path), "--errors", str(tmp_path / "errors")]) == 2
    assert "no run has predictions_test.npz" in capsys.readouterr().err


def test_intervals_stand_beside_the_deviation(tmp_path, capsys):
    for seed, value in enumerate((80.0, 82.5, 90.0), 1):
        write_run(tmp_path, "fewshot/train_all", seed=seed, values=value)
    assert main([str(tmp_path), "--ci95"]) == 0
    assert "84.17 ± 5.20 (CI95 ± 12.93)" in capsys.readouterr().out
    with intervals(False):
        assert str(Value.over([80.0, 82.5, 90.0])) == "84.17 ± 5.20"
