"""FDRD as a dataset: a small tree in the layout of DTD, the embedded emoji, and what goes wrong."""

import json

import pytest
from PIL import Image

from dassl_prompts.captions.data import CaptionDatum, CaptionWrapper
from dassl_prompts.datasets import fdrd
from dassl_prompts.engine import add_defaults, build_dataset, get_cfg_default, merge_opts


def config(root, **keys):
    cfg = get_cfg_default()
    fdrd.extend_cfg(cfg)
    add_defaults(cfg, "DATASET", {"SUBSAMPLE_CLASSES": "all"})
    values = {
        "DATASET.NAME": "FDRD",
        "DATASET.ROOT": str(root),
        "DATASET.FDRD_DOMAIN": "DTD",
        "DATASET.NUM_SHOTS": 2,
        "SEED": 1,
        "VERBOSE": False,
        **keys,
    }
    merge_opts(cfg, [x for item in values.items() for x in item])
    return cfg


@pytest.fixture
def dtd(tmp_path):
    """Two classes for training, three for test; one record has a negative equal to its positive."""
    for split, names in (("train", ("banded", "dotted")), ("test", ("banded", "dotted", "waffled"))):
        records = {}
        for name in names:
            for i in range(4):
                key = f"{name}_{split}{i}.jpg"
                path = tmp_path / "dtd" / "images" / name / key
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (40, 32), (30 * i, 0, 0)).save(path)
                caption = f"This is a photo of {name}. Number {i}."
                records[key] = {
                    "file_name": key,
                    "class_name": name,
                    "file_path": "YOUR_IMAGE_PATH",
                    "positive": caption,
                    "negative": [caption, "a", "a", "b"] if i == 0 else [],
                }
        folder = tmp_path / "FDRD" / split
        folder.mkdir(parents=True)
        (folder / f"inter_dtd_{split}.json").write_text(json.dumps(records))
    return tmp_path


def test_records_become_captioned_items(dtd):
    data = build_dataset(config(dtd, **{"DATASET.NUM_SHOTS": -1}))
    first = data.train_x[0]
    assert isinstance(first, CaptionDatum)
    assert (first.caption, first.negatives, first.classname) == (
        "This is a photo of banded. Number 0.",
        ("a", "b"),
        "banded",
    )
    assert len(data.train_x) == 8 and len(data.test) == 12 and data.val is None
    assert data.classnames == ["banded", "dotted"] and data.lab2cname == {
        0: "banded",
        1: "dotted",
        2: "waffled",
    }


def test_shots_are_drawn_once_per_domain_shots_and_seed(dtd, capsys):
    first = build_dataset(config(dtd))
    assert [sum(d.label == c for d in first.train_x) for c in (0, 1)] == [2, 2]
    assert (dtd / "FDRD" / "split_fewshot" / "DTD" / "shot_2-seed_1.json").is_file()
    again = build_dataset(config(dtd))
    assert "Loading preprocessed few-shot data" in capsys.readouterr().out
    assert [d.caption for d in again.train_x] == [d.caption for d in first.train_x]
    draws = {tuple(d.impath for d in build_dataset(config(dtd, SEED=seed)).train_x) for seed in range(1, 6)}
    assert len(draws) > 1


def test_loader_items_carry_tokens_and_caption_index(dtd):
    import torch

    cfg = config(dtd)
    data = build_dataset(cfg)
    wrapper = CaptionWrapper(cfg, data.train_x, transform=lambda image: torch.zeros(3, 8, 8), is_train=True)
    wrapper.tokens = torch.arange(4 * 77).reshape(4, 77)
    item = wrapper[3]
    assert item["caption"] == 3 and torch.equal(item["tokens"], wrapper.tokens[3]) and item["img"].shape == (3, 8, 8)
    wrapper.load_images = False
    assert "img" not in wrapper[1] and wrapper[1]["label"] == data.train_x[1].label


def test_replaced_image_brings_its_own_caption(dtd):
    import torch

    cfg = config(dtd, **{"DATALOADER.MAX_CORRUPT": 1, "DATASET.NUM_SHOTS": -1})
    data = build_dataset(cfg)
    with open(data.train_x[2].impath, "wb") as file:
        file.write(b"broken")
    wrapper = CaptionWrapper(cfg, data.train_x, transform=lambda image: torch.zeros(1), is_train=True)
    wrapper.tokens = torch.arange(8)[:, None].expand(8, 77)
    item = wrapper[2]
    assert (
        item["caption"] == item["index"] == 3
        and int(item["tokens"][0]) == 3
        and item["corrupt"] == data.train_x[2].impath
    )


def test_emoji_needs_no_files(tmp_path):
    data = build_dataset(config(tmp_path, **{"DATASET.FDRD_DOMAIN": "emoji", "DATASET.NUM_SHOTS": 4}))
    counts = {c: sum(d.label == c for d in data.train_x) for c in {d.label for d in data.train_x}}
    assert max(counts.values()) == 4 and len(data.test) > 500
    assert not {d.impath for d in data.train_x} & {d.impath for d in data.test}
    assert all(d.caption not in d.negatives for d in data.test)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"DATASET.FDRD_DOMAIN": "DTT"}, ValueError, "the nine are Caltech101"),
        ({"DATASET.FDRD_DOMAIN": ""}, ValueError, "FDRD_DOMAIN is empty"),
        ({"DATASET.FDRD_DOMAIN": "SUN397"}, FileNotFoundError, "no train file of FDRD's domain SUN397"),
        ({"DATASET.FDRD_TRAIN": "/nowhere.json"}, FileNotFoundError, "/nowhere.json"),
        ({"DATASET.SUBSAMPLE_CLASSES": "base"}, ValueError, "no base and new classes"),
    ],
)
def test_wrong_configuration_is_named(dtd, keys, error, message):
    with pytest.raises(error, match=message):
        build_dataset(config(dtd, **keys))


def test_missing_images_and_broken_records_are_named(dtd):
    next((dtd / "dtd" / "images" / "dotted").glob("*test0.jpg")).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 20 images are missing:\s+.*dotted_test0\.jpg"):
        build_dataset(config(dtd))
    path = dtd / "FDRD" / "test" / "inter_dtd_test.json"
    path.write_text(json.dumps({"x.jpg": {"file_name": "x.jpg", "positive": "c"}}))
    with pytest.raises(ValueError, match=r"inter_dtd_test\.json: record 'x\.jpg' has no class_name"):
        build_dataset(config(dtd))
