"""Whole runs of AttriPrompt: checkpoints, resume, cached views, pool usage, the attribute sheet."""

import json
import os

import pytest
import torch
from PIL import Image

from dassl_prompts.engine import build_trainer, load_checkpoint, read_json, register_dataset, set_random_seed
from dassl_prompts.trainers.attriprompt import sheet as attributes
from tests.trainers import plain
from tests.trainers.conftest import ToyColours

NODE = "TRAINER.ATTRIPROMPT."


@register_dataset
class ToyColoursOfOneDay(ToyColours):
    """The toy data write their images anew for every run; these have the same time of change."""

    def __init__(self, cfg):
        super().__init__(cfg)
        for item in (*self.train_x, *self.val, *self.test):
            os.utime(item.impath, (0, 0))


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    """Joint width equal to text width, 16 patches."""
    path = tmp_path_factory.mktemp("clip") / "square.pt"
    torch.save(plain.openai_state(embed=64, text_width=64, vision_width=64, patch=8), path)
    return path


@pytest.fixture
def make_cfg(make_cfg, load_once, clip_file):
    """The toy data have no template of their own. The first load of a CLIP draws random numbers, so it comes before the runs."""
    load_once(str(clip_file), precision="fp32", device=torch.device("cpu"))
    own = ("DATASET.NAME", "ToyColoursOfOneDay", NODE + "TEMPLATE", "a photo of a {}.")

    def make(trainer, *opts, output="run"):
        return make_cfg(trainer, *own, *opts, output=output)

    return make


def pool_of(tmp_path, run, epoch=2):
    return load_checkpoint(tmp_path / run / "PromptPool" / f"model.pth.tar-{epoch}")["state_dict"]


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_runs_repeat_and_checkpoints_hold_the_pool_only(train, tmp_path):
    first, second = train("AttriPrompt"), train("AttriPrompt", output="again")
    state = pool_of(tmp_path, "run")
    assert sorted(state) == ["pool.centre", "pool.centre_count", "pool.prompts"]
    assert state["pool.centre_count"] == 2 * 4 * 7 * 4  # epochs, batches, images, clusters
    assert equal(state, pool_of(tmp_path, "again")) and first._final_result == second._final_result


def test_base_run_is_evaluated_on_new_classes(train, make_cfg, tmp_path):
    train("AttriPrompt", "DATASET.SUBSAMPLE_CLASSES", "base")
    new = build_trainer(make_cfg("AttriPrompt", "DATASET.SUBSAMPLE_CLASSES", "new", output="new"))
    new.load_model(str(tmp_path / "run"))
    new.test()
    assert torch.equal(new.model.pool.prompts, pool_of(tmp_path, "run")["pool.prompts"])
    results = read_json(tmp_path / "new" / "results.json")
    usage = results["pool"]["test"]
    assert usage["images"] == 9 and len(usage["entropy"]) == plain.LAYERS
    assert all(sum(layer) == 9 * 4 for layer in usage["counts"])
    assert 1 <= usage["texts_encoded"] <= 9 and "accuracy" in results["test"]


def test_switches_of_the_text_pass_do_not_change_a_run(train, tmp_path):
    train("AttriPrompt")
    off = ["SHARE_PREFIX", False, "TRIM", False, "MEMO", False]
    train("AttriPrompt", *[NODE + "TEXT." + x if isinstance(x, str) else x for x in off], output="plain")
    a, b = pool_of(tmp_path, "run"), pool_of(tmp_path, "plain")
    torch.testing.assert_close(a["pool.prompts"], b["pool.prompts"], rtol=0, atol=1e-4)


# -- cached views ---------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path):
    return [NODE + "CACHE.DIR", str(tmp_path / "views")]


def forbid_vision(trainer, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("the image tower ran")

    monkeypatch.setattr(trainer.model.clip.vision, "forward", never)


def test_cached_evaluation_equals_the_plain_one_and_needs_no_image_tower(train, make_cfg, cache, tmp_path, monkeypatch):
    trainer = train("AttriPrompt")
    for number in range(2):
        cached = build_trainer(make_cfg("AttriPrompt", *cache, output=f"cached{number}"))
        cached.load_model(str(tmp_path / "run"))
        if number:
            forbid_vision(cached, monkeypatch)
        assert cached.test() == trainer._final_result
        theirs, ours = (
            read_json(tmp_path / run / "results.json")["pool"]["test"] for run in ("run", f"cached{number}")
        )
        assert ours == theirs
    assert len(list((tmp_path / "views").iterdir())) == 1


def test_training_on_cached_views(train, make_cfg, cache, tmp_path, monkeypatch):
    opts = [*cache, NODE + "CACHE.VIEWS", 3]
    train("AttriPrompt", *opts)
    set_random_seed(1)
    second = build_trainer(make_cfg("AttriPrompt", *opts, output="again"))
    forbid_vision(second, monkeypatch)
    second.train()
    assert equal(pool_of(tmp_path, "run"), pool_of(tmp_path, "again"))
    static = [*opts, NODE + "RETRIEVAL.MODE", "static"]
    train("AttriPrompt", *static, output="static")
    assert len(list((tmp_path / "views").iterdir())) == 2  # training and test images, shared by both variants


@pytest.mark.parametrize(
    "key, value",
    [
        (NODE + "CLUSTER.K", 2),
        (NODE + "CACHE.DTYPE", "float16"),
        ("INPUT.INTERPOLATION", "bicubic"),
        ("DATASET.SUBSAMPLE_CLASSES", "base"),
    ],
)
def test_other_settings_have_another_cache(make_cfg, cache, tmp_path, key, value):
    for opts in ([], [key, value]):
        trainer = build_trainer(make_cfg("AttriPrompt", *cache, *opts, output=f"run{len(opts)}"))
        trainer.test()
    assert len(list((tmp_path / "views").iterdir())) == 2


# -- how the pool is used ------------------------------------------------------------------------------------------


def test_collapse_is_announced(make_cfg, capsys):
    trainer = build_trainer(make_cfg("AttriPrompt"))
    trainer.model.usage.update(torch.randint(0, 32, (50, plain.LAYERS, 4)))
    trainer.report_usage("training")
    assert "WARNING" not in capsys.readouterr().out
    index = torch.randint(0, 32, (50, plain.LAYERS, 4))
    index[:, 2] = 7
    trainer.model.usage.reset()
    trainer.model.usage.update(index)
    trainer.report_usage("training")
    out = capsys.readouterr().out
    assert "collapsed in text layers 3:" in out and "RETRIEVAL.MODE union" in out and "entropy 0.00" in out


@pytest.fixture
def sheet(train, tmp_path):
    train("AttriPrompt", NODE + "POOL.SIZE", 4)

    def draw(*args, run="run"):
        return attributes.main([str(tmp_path / run), "--out", str(tmp_path / "sheet.png"), *args])

    return draw


def test_the_sheet_shows_images_by_prompt(sheet, tmp_path, capsys):
    assert sheet("--class", "dog", "bus", "--layer", "2", "--columns", "2") == 0
    assert "6 test images, text layer 2" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width == attributes.LABEL + 2 * (attributes.CELL + attributes.MARGIN) + attributes.MARGIN
        assert picture.getcolors(1 << 20) is not None


def test_sightings_name_the_clusters_that_retrieved_a_prompt(train):
    model = train("AttriPrompt", NODE + "POOL.SIZE", 4).model.eval()
    images = torch.randn(3, 3, 32, 32)
    found = attributes.sightings(model, images, images, layer=1)
    index = model.retrieve(model.look(images)).index[:, 1]
    assert {p: len(s) for p, s in found.items()} == {
        p: int((index == p).any(dim=1).sum()) for p in index.unique().tolist()
    }
    _, outputs = model.attributes.outputs(images)
    labels = model.attributes.labels(outputs[1])
    for prompt, seen in found.items():
        rows = [b for b in range(3) if (index[b] == prompt).any()]
        for b, sighting in zip(rows, seen):
            expected = torch.tensor([index[b, cluster] == prompt for cluster in labels[b].tolist()])
            assert torch.equal(sighting.mask.flatten(), expected)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--class", "wolf"], "no class 'wolf' among the test images; there are: aeroplane"),
        (["--class", "dog", "--layer", "9"], "text layers 1 to 4"),
        (["--class", "dog", "--epoch", "7"], "No model at"),
    ],
)
def test_the_sheet_refuses_what_it_cannot_draw(sheet, args, message, capsys, tmp_path):
    assert sheet(*args) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "sheet.png").exists()


def test_the_sheet_needs_a_run_of_attriprompt(sheet, tmp_path, capsys):
    assert sheet("--class", "dog", run="nothing") == 2
    assert "has no results.json" in capsys.readouterr().err
    results = read_json(tmp_path / "run" / "results.json")
    results["trainer"] = "CoOp"
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    assert sheet("--class", "dog") == 2
    assert "is a run of CoOp" in capsys.readouterr().err


def test_the_sheet_needs_retrieval(train, tmp_path, capsys):
    train("AttriPrompt", NODE + "RETRIEVAL.MODE", "static")
    assert attributes.main([str(tmp_path / "run"), "--out", str(tmp_path / "sheet.png"), "--class", "dog"]) == 2
    assert "RETRIEVAL.MODE static: there is no retrieval" in capsys.readouterr().err
