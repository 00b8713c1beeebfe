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


# -- several captions per image ------------------------------------------------------------------------------


def several(dtd, split="train"):
    """The first record of each class gets three captions; the second record's image a second record."""
    path = dtd / "FDRD" / split / f"inter_dtd_{split}.json"
    records = json.loads(path.read_text())
    for name in ("banded", "dotted"):
        record = records[f"{name}_{split}0.jpg"]
        record["positive"] = [record["positive"], f"{name}, seen again.", " a "]
        again = {**records[f"{name}_{split}1.jpg"], "positive": f"{name}, in another record."}
        again["file_path"] = f"dtd/images/{name}/{name}_{split}1.jpg"
        records[f"again_{name}"] = again
    path.write_text(json.dumps(records))
    return records


def test_every_caption_of_an_image_is_a_pair_and_no_negative_of_it(dtd):
    several(dtd)
    data = build_dataset(config(dtd, **{"DATASET.NUM_SHOTS": -1}))
    assert len(data.train_x) == 8 + 2 * 3 and len({d.impath for d in data.train_x}) == 8
    of_first = [d for d in data.train_x if d.impath.endswith("banded_train0.jpg")]
    assert [d.caption for d in of_first] == ["This is a photo of banded. Number 0.", "banded, seen again.", "a"]
    assert all(d.negatives == ("b",) for d in of_first)  # "a" is one of the captions
    of_second = [d.caption for d in data.train_x if d.impath.endswith("banded_train1.jpg")]
    assert of_second == ["This is a photo of banded. Number 1.", "banded, in another record."]


def test_shots_count_images_which_bring_all_their_captions(dtd):
    several(dtd)
    whole = {}
    for item in build_dataset(config(dtd, **{"DATASET.NUM_SHOTS": -1})).train_x:
        whole.setdefault(item.impath, []).append(item.caption)
    for seed in range(1, 6):
        drawn = {}
        for item in build_dataset(config(dtd, SEED=seed)).train_x:
            drawn.setdefault(item.impath, []).append(item.caption)
        assert [sum(f"/{name}/" in path for path in drawn) for name in ("banded", "dotted")] == [2, 2]
        assert all(whole[path] == captions for path, captions in drawn.items())


def test_an_image_of_two_classes_is_refused(dtd):
    path = dtd / "FDRD" / "train" / "inter_dtd_train.json"
    records = several(dtd)
    records["again_banded"]["class_name"] = "dotted"
    path.write_text(json.dumps(records))
    with pytest.raises(ValueError, match="banded_train1.jpg is captioned as 'banded' and as 'dotted'"):
        build_dataset(config(dtd))


def test_cocos_caption_files_are_read_as_they_are(tmp_path):
    for split in ("train", "val"):
        images, annotations = [], []
        for i in range(3):
            name = f"{split}/{i}.jpg"
            (tmp_path / split).mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (50 * i, 0, 0)).save(tmp_path / name)
            images.append({"id": 10 + i, "file_name": name})
            annotations += [{"image_id": 10 + i, "id": 5 * i + j, "caption": f"{split} {i} {j}"} for j in range(5)]
        content = {"info": {}, "images": images, "annotations": annotations[::-1]}
        (tmp_path / f"captions_{split}.json").write_text(json.dumps(content))
    keys = {
        "DATASET.FDRD_DOMAIN": "custom",
        "DATASET.FDRD_TRAIN": str(tmp_path / "captions_train.json"),
        "DATASET.FDRD_TEST": str(tmp_path / "captions_val.json"),
        "DATASET.NUM_SHOTS": -1,
    }
    data = build_dataset(config(tmp_path, **keys))
    assert len(data.train_x) == len(data.test) == 15 and len({d.impath for d in data.test}) == 3
    assert all(d.caption.split()[1] == d.impath[-5] for d in data.test)
    content["annotations"][0]["image_id"] = 99
    (tmp_path / "captions_val.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="captions_val.json looks like a caption file of COCO.*99"):
        build_dataset(config(tmp_path, **keys))
