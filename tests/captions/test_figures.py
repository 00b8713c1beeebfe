"""Figures of a trained run, and recall of feature files from the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_prompts.captions import figures as caption_figures
from dassl_prompts.captions import recall
from tests.trainers import plain
from tests.trainers.retrieval_tree import make_trainer, make_tree


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Finished runs of DCAR and CoOp-ITR on the small tree."""
    root = tmp_path_factory.mktemp("figures")
    make_tree(root / "tree")
    torch.save(plain.openai_state(), root / "clip.pt")
    for name in ("DCAR", "CoOpITR"):
        make_trainer(root / "tree", root / "clip.pt", root / name, name).train()
    return root


def test_loaded_run_encodes_like_the_trained_one(runs):
    loaded = caption_figures.load_run(str(runs / "DCAR"))
    stored = json.loads((runs / "DCAR" / "results.json").read_text())["test"]["mean_r1"]
    before = (runs / "DCAR" / "results.json").read_bytes()
    assert loaded.test() == stored
    assert json.loads(before)["test"] == json.loads((runs / "DCAR" / "results.json").read_text())["test"]


def test_weights_are_drawn(runs, tmp_path):
    assert (
        caption_figures.main(["weights", "--run", str(runs / "DCAR"), "--out", str(tmp_path / "w.png"), "-n", "3"]) == 0
    )
    image = np.asarray(Image.open(tmp_path / "w.png").convert("RGB")).astype(int)
    assert image.shape[0] > 3 * 128
    blue = (image[..., 2] == 255) & (image[..., 0] < 130)
    assert blue.any(), "no token has the ground of the largest weight"


def test_sheets_mark_the_right_answer(runs, tmp_path):
    assert (
        caption_figures.main(["sheet", "--run", str(runs / "CoOpITR"), "--out", str(tmp_path / "s.png"), "-n", "12"])
        == 0
    )
    trainer = caption_figures.load_run(str(runs / "CoOpITR"))
    ranks = trainer.test() and json.loads((runs / "CoOpITR" / "results.json").read_text())["test"]
    for name, direction in (("s.png", "t2i"), ("s_captions.png", "i2t")):
        image = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        green = (image == np.array([0, 140, 60])).all(-1).any()
        assert green == (ranks[f"{direction}_r5"] > 0)


def test_what_cannot_be_drawn_is_named(runs, tmp_path, capsys):
    out = str(tmp_path / "w.png")
    assert caption_figures.main(["weights", "--run", str(runs / "CoOpITR"), "--out", out]) == 2
    assert "has no token weights" in capsys.readouterr().err
    assert caption_figures.main(["weights", "--run", str(tmp_path), "--out", out]) == 2
    assert "not a finished run" in capsys.readouterr().err
    assert caption_figures.main(["weights", "--run", str(runs / "DCAR"), "--out", str(tmp_path / "w.txt")]) == 2


def test_recall_command_reads_foreign_features(tmp_path, capsys):
    eye = np.eye(4, dtype=np.float32)
    np.savez(tmp_path / "f.npz", image=eye, text=eye[[1, 0, 2, 3]] + 0.0)
    assert recall.main([str(tmp_path / "f.npz"), "--json"]) == 0
    results = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert results["i2t_r1"] == results["t2i_r1"] == 50.0 and results["i2t_r5"] == 100.0
    assert recall.main([str(tmp_path / "f.npz"), "--per-class"]) == 2 and "has no labels" in capsys.readouterr().err
    assert recall.main([str(tmp_path / "none.npz")]) == 2


@pytest.mark.parametrize(("image", "text"), [((4,), (4, 4)), ((4, 4), (4,)), ((4, 4), (4, 3)), ((4, 2, 2), (4, 4))])
def test_foreign_features_of_a_wrong_shape_are_named(image, text, tmp_path, capsys):
    np.savez(tmp_path / "f.npz", image=np.ones(image), text=np.ones(text))
    assert recall.main([str(tmp_path / "f.npz")]) == 2
    error = capsys.readouterr().err
    assert "f.npz: " in error and "must be [N, E]" in error
