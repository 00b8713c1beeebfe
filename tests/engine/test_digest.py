"""Digests of data: what they see, what they do not count."""

import os
from types import SimpleNamespace

from dassl_prompts.captions.data import CaptionDatum
from dassl_prompts.engine import Datum, get_cfg_default
from dassl_prompts.engine.config import extend_cfg
from dassl_prompts.engine.digest import data_digests, differences, digests_of_lists


def lists(root, names=("cat", "dog")):
    def items(part):
        return [Datum(impath=f"{root}/{part}/{i}.png", label=i % 2, classname=names[i % 2]) for i in range(4)]

    return [items(part) for part in ("train", "val", "test")]


def test_the_same_lists_in_another_folder_are_the_same_data(tmp_path):
    for name in ("here", "there"):
        for part in ("train", "val", "test"):
            (tmp_path / name / part).mkdir(parents=True)
            for i in range(4):
                (tmp_path / name / part / f"{i}.png").touch()
    here, there = (digests_of_lists(lists(tmp_path / n), tmp_path / n) for n in ("here", "there"))
    assert here == there and set(here) == {"class names", "image lists"}
    parts = lists(tmp_path / "here")

    def changed(*parts):
        return [text.split(":")[0] for text in differences(here, digests_of_lists(parts, tmp_path / "here"))]

    train, val, test = parts
    assert changed(train, val, test) == []
    assert changed(train[1:], val, test) == ["image lists"]
    assert changed(train[::-1], val, test) == ["image lists"]  # the order decides the few-shot draw
    assert changed(train, val + test[:1], test[1:]) == ["image lists"]
    assert changed(*lists(tmp_path / "here", ("cat", "wolf"))) == ["class names"]
    swapped = [Datum(impath=x.impath, label=1 - x.label, classname=x.classname) for x in train]
    assert "image lists" in changed(swapped, val, test)


def test_captions_count(tmp_path):
    (tmp_path / "a.png").touch()

    def of(caption):
        item = CaptionDatum(os.fspath(tmp_path / "a.png"), 0, classname="cat", caption=caption)
        return digests_of_lists([[item]], tmp_path)["image lists"]

    assert of("a cat") == of("a cat") != of("a black cat")


def test_a_foreign_dataset_is_known_by_its_test_images(tmp_path):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        for i in range(4):
            (tmp_path / part / f"{i}.png").touch()
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.DATASET.ROOT, cfg.DATASET.SUBSAMPLE_CLASSES = str(tmp_path), "base"
    train, _, test = lists(tmp_path)
    one, other = (SimpleNamespace(train_x=some, test=test) for some in (train[:2], train[2:]))  # two seeds' draws
    assert data_digests(one, cfg) == data_digests(other, cfg)
    assert all("base classes" in key for key in data_digests(one, cfg))
    assert differences(data_digests(one, cfg), data_digests(SimpleNamespace(test=test[1:]), cfg))


def test_own_datasets_have_one_digest_for_all_seeds_shots_and_class_subsets():
    from dassl_prompts.engine import build_dataset

    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.DATASET.NAME = "Emoji"
    seen = []
    for seed, shots, subset in ((1, 16, "base"), (2, 1, "new"), (3, -1, "all")):
        cfg.SEED, cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES = seed, shots, subset
        seen.append(data_digests(build_dataset(cfg), cfg))
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 2
    cfg.DATASET.NAME = "EmojiNoto"
    assert [d.split(":")[0] for d in differences(seen[0], data_digests(build_dataset(cfg), cfg))] == ["image lists"]
