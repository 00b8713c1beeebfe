"""A run is the same run when what it was built on was moved, or is named another way; other content is another run."""

import os

import pytest
from yacs.config import CfgNode

from dassl_prompts.engine import config_differences
from dassl_prompts.engine.places import BACKBONE, contents
from dassl_prompts.engine.resume import flat_config, noted_contents
from dassl_prompts.engine.run_folder import RunFolder
from dassl_prompts.results.groups import group
from dassl_prompts.results.runs import find_runs
from tests.report.tree import write_run

KEY = "TRAINER.DPC.CKPT_DIR"
STAGE1 = "base2new/train_base/emoji/shots_16/CoOp/open_tiny/seed1"


def stage1(root, content=b"weights", place=STAGE1):
    """A run folder with a checkpoint, an older one and a best one."""
    model = root / place / "prompt_learner"
    model.mkdir(parents=True)
    (model / "checkpoint").write_text("model.pth.tar-2\n")
    (model / "model.pth.tar-1").write_bytes(b"older")
    (model / "model.pth.tar-2").write_bytes(content)
    return root / place


def config(place, backbone="ViT-B/16"):
    return CfgNode(
        {"TRAINER": {"NAME": "", "DPC": {"CKPT_DIR": str(place)}}, "MODEL": {"BACKBONE": {"NAME": str(backbone)}}}
    )


def finished(cfg):
    """What a run with this configuration would note."""
    return {"config": flat_config(cfg), "contents": contents(flat_config(cfg)), "digests": {"backbone": "ab"}}


def differences(run, cfg):
    return config_differences(run["config"], cfg, noted_contents(run))


def test_a_first_stage_that_was_moved_is_the_same(tmp_path):
    run = finished(config(stage1(tmp_path / "old")))
    (tmp_path / "old").rename(tmp_path / "new")
    assert set(run["contents"]) == {KEY}
    assert differences(run, config(tmp_path / "new" / STAGE1)) == []
    (tmp_path / "new" / STAGE1 / "prompt_learner" / "model.pth.tar-1").unlink()  # tidying up changes nothing
    assert differences(run, config(tmp_path / "new" / STAGE1)) == []


def test_a_first_stage_named_absolutely_is_the_relative_one(tmp_path, monkeypatch):
    folder = stage1(tmp_path)
    monkeypatch.chdir(tmp_path)
    for first, second in ((STAGE1, folder), (folder, STAGE1), (STAGE1, f"./{STAGE1}/")):
        run = finished(config(first))
        assert differences(run, config(second)) == []
        assert differences({"config": run["config"]}, config(second)) == []  # a version that noted no contents


def test_another_first_stage_at_any_place_is_another_run(tmp_path):
    run = finished(config(stage1(tmp_path / "a")))
    other = stage1(tmp_path / "b", b"other weights")
    (found,) = differences(run, config(other))
    assert found.startswith(f"{KEY}: ") and str(other) in found
    assert differences(run, config("")) and differences(run, config(tmp_path / "nowhere"))


def test_an_older_run_knows_its_moved_first_stage_by_its_name_in_the_tree(tmp_path):
    run = {"config": flat_config(config(f"/gone/output/{STAGE1}"))}
    assert differences(run, config(stage1(tmp_path))) == []
    other = stage1(tmp_path, place=STAGE1.replace("seed1", "seed2"))
    assert differences(run, config(other))


def test_a_file_counts_by_its_content(tmp_path):
    files = [tmp_path / name for name in ("a.pt", "copy.pt", "other.pt")]
    for file, content in zip(files, (b"1", b"1", b"2")):
        file.write_bytes(content)
    run = finished(config(files[0]))
    assert differences(run, config(files[1])) == [] and differences(run, config(files[2]))


def test_a_backbones_file_may_move_and_its_weights_are_compared_with_the_digests(tmp_path):
    old, new = tmp_path / "a" / "clip.pt", tmp_path / "b" / "clip.pt"
    for file in (old, new):
        file.parent.mkdir()
        file.write_bytes(b"")
    run = finished(config("", old))
    assert BACKBONE not in run["contents"] and differences(run, config("", new)) == []
    assert differences(run, config("", "ViT-B/32")) and differences(finished(config("")), config("", new))
    RunFolder(tmp_path / "run", {"backbone": str(old)}).write({})
    RunFolder(tmp_path / "run", {"backbone": str(new)}).check_owner()
    with pytest.raises(ValueError, match="backbone"):
        RunFolder(tmp_path / "run", {"backbone": str(tmp_path / "other.pt")}).check_owner()


def test_a_report_averages_runs_whose_backbone_or_first_stage_lay_elsewhere(tmp_path):
    for seed, root in ((1, "/first/output"), (2, "output"), (3, os.path.join("..", "moved"))):
        stage = f"{root}/base2new/train_base/emoji/shots_16/CoOp/open_tiny/seed{seed}"
        here = {KEY: repr(stage), BACKBONE: repr(f"{root}/clip.pt")}
        write_run(
            tmp_path, "base2new/train_base", "DPC_CoOp", seed=seed, values=80.0, config=here, backbone=f"{root}/clip.pt"
        )
    (method,) = group(find_runs(tmp_path)[0])
    assert method.seeds() == [1, 2, 3] and method.backbone == "clip.pt"
