"""Splits: draws and base/new classes equal to Dassl's and CoOp's, caches, bad files."""

import json
import os
import pickle
import random
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from dassl_prompts.classification import splits
from dassl_prompts.classification.split_files import check_labels
from dassl_prompts.classification.splits import (
    Splits,
    draw_shots,
    few_shot,
    split_by_class,
    split_trainval,
    subsample_classes,
)
from dassl_prompts.engine import Datum

RECORDED = np.load(Path(__file__).parent.parent / "fixtures" / "dassl_fewshot.npz")
LAYOUTS = ("blocks", "interleaved", "descending", "short")


def numbered(labels, folder="/data"):
    return [Datum(impath=f"{folder}/{i:03d}.jpg", label=int(y), classname=f"c{y}") for i, y in enumerate(labels)]


def ids(items):
    return [int(os.path.basename(item.impath)[:3]) for item in items]


def toy(n_classes=3, train=6, val=5, folder="/data"):
    """Train and val lists with distinct relative paths."""
    return tuple(
        [
            Datum(impath=f"{folder}/c{y}/{part}_{i}.jpg", label=y, classname=f"c{y}")
            for y in range(n_classes)
            for i in range(n)
        ]
        for part, n in (("train", train), ("val", val))
    )


def paths(items):
    return [item.impath for item in items]


# -- against what Dassl and CoOp do ------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_few_shot_draws_what_dassl_draws(layout, seed):
    train = numbered(RECORDED[f"{layout}/labels"], "/train")
    val = numbered(RECORDED[f"{layout}/labels"], "/val")
    for shots in (1, 2, 4, 8, 16):
        drawn = few_shot(train, val, shots, seed, "/")
        for part, items in zip(("train", "val"), drawn):
            assert ids(items) == RECORDED[f"{layout}/seed{seed}/shots{shots}/{part}"].tolist()


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_repeat_draws_what_dassl_draws(seed):
    items = numbered(RECORDED["short/labels"])
    drawn = draw_shots(items, 16, random.Random(seed), repeat=True)
    assert ids(drawn) == RECORDED[f"short/seed{seed}/shots16_repeat/train"].tolist()


@pytest.mark.parametrize("n_classes", [7, 10])
@pytest.mark.parametrize("subsample", ["all", "base", "new"])
def test_subsample_gives_coops_classes(n_classes, subsample):
    first = numbered(list(range(n_classes)) * 2)
    first, second = subsample_classes(first, first[::-1], subsample=subsample)
    key = f"subsample/{n_classes}/{subsample}"
    assert [x.label for x in first] == RECORDED[f"{key}/labels"].tolist()
    assert [x.classname for x in first] == RECORDED[f"{key}/classnames"].tolist()
    assert [x.label for x in second] == RECORDED[f"{key}/second_list_labels"].tolist()


def test_subsample_prints_coops_line_and_refuses_other_words(capsys):
    items = numbered([0, 1, 2])
    subsample_classes(items, subsample="base")
    assert capsys.readouterr().out == "SUBSAMPLE BASE CLASSES!\n"
    subsample_classes(items, subsample="all")
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="SUBSAMPLE_CLASSES is 'novel'.*all, base, new"):
        subsample_classes(items, subsample="novel")
    with pytest.raises(ValueError, match="leaves none"):
        subsample_classes(numbered([0, 0]), subsample="new")


def test_draw_leaves_the_global_generator_alone_unless_unseeded():
    train, val = toy()
    random.seed(5)
    state = random.getstate()
    few_shot(train, val, 2, 1, "/data")
    assert random.getstate() == state
    unseeded = few_shot(train, val, 2, -1, "/data")
    random.seed(5)
    assert paths(few_shot(train, val, 2, -1, "/data")[0]) == paths(unseeded[0])


def test_fewer_images_than_shots_are_reported(capsys):
    train, val = few_shot(*toy(train=3, val=2), 4, 1, "/data")
    assert len(train) == 9 and len(val) == 6
    assert "3 classes have fewer than 4 training images" in capsys.readouterr().out


def test_no_shots_means_everything():
    train, val = toy()
    assert few_shot(train, val, -1, 1, "/data", "/nowhere") == (train, val)


# -- the JSON cache ----------------------------------------------------------------------------------------


def test_draw_is_kept_with_relative_paths_and_survives_a_move(tmp_path, capsys):
    drawn = few_shot(*toy(), 2, 1, "/data", tmp_path)
    content = json.loads((tmp_path / "shot_2-seed_1.json").read_text())
    assert content["train"][0][0].startswith("c0/train_") and len(content["train"]) == 6
    moved = few_shot(*toy(folder="/elsewhere"), 2, 1, "/elsewhere", tmp_path)
    assert "Loading preprocessed few-shot data from" in capsys.readouterr().out
    assert [paths(part) for part in moved] == [
        [path.replace("/data", "/elsewhere") for path in paths(part)] for part in drawn
    ]
    assert [x.classname for x in moved[0]] == [x.classname for x in drawn[0]]


def test_cached_draw_is_what_gets_used(tmp_path):
    few_shot(*toy(), 1, 1, "/data", tmp_path)
    path = tmp_path / "shot_1-seed_1.json"
    content = json.loads(path.read_text())
    content["train"] = [[f"c{c}/train_5.jpg", c, f"c{c}"] for c in range(3)]
    path.write_text(json.dumps(content))
    assert paths(few_shot(*toy(), 1, 1, "/data", tmp_path)[0]) == [f"/data/c{c}/train_5.jpg" for c in range(3)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[0].__setitem__(1, 2), "has label 2 there and 0 in this split"),
        (lambda rows: rows[0].__setitem__(0, "c0/test_0.jpg"), "'/data/c0/test_0.jpg' is not in this split"),
        (lambda rows: rows.__delitem__(slice(3, None)), "it has 1 of 2 images of label 1"),
        (lambda rows: rows[1].__setitem__(0, rows[0][0]), "it has 1 of 2 images of label 0"),
        (lambda rows: rows.append(rows[0]), "it has 7 images, not 6"),
    ],
    ids=["another label", "a test image", "half the draw", "an image twice", "an image more"],
)
def test_a_kept_draw_that_is_not_of_this_split_is_refused(tmp_path, change, message):
    few_shot(*toy(), 2, 1, "/data", tmp_path)
    path = tmp_path / "shot_2-seed_1.json"
    content = json.loads(path.read_text())
    change(content["train"])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"shot_2-seed_1.json, train: .*{message}; delete it to draw again"):
        few_shot(*toy(), 2, 1, "/data", tmp_path)


def test_draw_from_another_split_is_made_again(tmp_path, capsys):
    few_shot(*toy(train=6), 2, 1, "/data", tmp_path)
    longer = toy(train=9)
    again = few_shot(*longer, 2, 1, "/data", tmp_path)
    assert "drawn from another split" in capsys.readouterr().out
    assert paths(again[0]) == paths(few_shot(*longer, 2, 1, "/data")[0])
    assert paths(few_shot(*longer, 2, 1, "/data", tmp_path)[0]) == paths(again[0])


def test_damaged_draw_is_named(tmp_path):
    path = tmp_path / "shot_2-seed_1.json"
    path.write_text('{"format": 1, "tr')
    with pytest.raises(ValueError, match="shot_2-seed_1.json"):
        few_shot(*toy(), 2, 1, "/data", tmp_path)
    path.write_text('{"format": 1, "train": []}')
    with pytest.raises(ValueError, match="shot_2-seed_1.json"):
        few_shot(*toy(), 2, 1, "/data", tmp_path)


def test_folder_that_cannot_be_written_is_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(splits, "_unwritable", set())
    (tmp_path / "file").touch()
    cache = tmp_path / "file" / "split_fewshot"  # no folder can be made below a file, not even by root
    first = few_shot(*toy(), 2, 1, "/data", cache)
    second = few_shot(*toy(), 2, 2, "/data", cache)
    assert capsys.readouterr().out.count("is not kept") == 1
    assert paths(first[0]) == paths(few_shot(*toy(), 2, 1, "/data")[0]) and len(second[0]) == 6


def test_unseeded_draw_is_never_kept(tmp_path):
    few_shot(*toy(), 2, -1, "/data", tmp_path)
    assert list(tmp_path.iterdir()) == []


# -- Dassl's pickles ---------------------------------------------------------------------------------------


@pytest.fixture
def pickled(tmp_path, monkeypatch):
    """Write a cache as Dassl does: objects of its class, absolute paths of the writing machine."""
    names = ["dassl", "dassl.data", "dassl.data.datasets", "dassl.data.datasets.base_dataset"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    theirs = type("Datum", (), {"__module__": names[-1]})
    sys.modules[names[-1]].Datum = theirs

    def write(content, shots=2, seed=1):
        def convert(entry):
            item = theirs()
            item._impath, item._label, item._domain, item._classname = *entry[:2], 0, entry[2]
            return item

        data = {part: [convert(entry) for entry in entries] for part, entries in content.items()}
        path = tmp_path / f"shot_{shots}-seed_{seed}.pkl"
        path.write_bytes(pickle.dumps(data, protocol=pickle.HIGHEST_PROTOCOL))
        for name in names:
            monkeypatch.delitem(sys.modules, name)  # reading must not need Dassl
        return path

    return write


OLD = "/old/machine/caltech-101/101_ObjectCategories"


def test_dassls_draw_decides_and_is_rerooted(tmp_path, pickled, capsys):
    pickled(
        {
            "train": [(f"{OLD}/c1/train_5.jpg", 1, "c1"), (f"{OLD}/c0/train_0.jpg", 0, "c0")],
            "val": [("D:\\data\\c2\\val_3.jpg", 2, "c2")],
        }
    )
    train, val = few_shot(*toy(folder="/new"), 2, 1, "/new", tmp_path)
    assert paths(train) == ["/new/c1/train_5.jpg", "/new/c0/train_0.jpg"]
    assert paths(val) == ["/new/c2/val_3.jpg"]
    assert [x.label for x in train] == [1, 0]
    assert "Loading preprocessed few-shot data from" in capsys.readouterr().out


def test_dassls_draw_without_val_serves_a_dataset_without_val(tmp_path, pickled):
    pickled({"train": [(f"{OLD}/c1/train_5.jpg", 1, "c1")]})
    train, val = few_shot(toy()[0], [], 2, 1, "/data", tmp_path)
    assert paths(train) == ["/data/c1/train_5.jpg"] and val == []
    with pytest.raises(ValueError, match="no list 'val'"):
        few_shot(*toy(), 2, 1, "/data", tmp_path)


@pytest.mark.parametrize(
    "entry, message",
    [
        ((f"{OLD}/c9/train_5.jpg", 9, "c9"), "not in this split"),
        ((f"{OLD}/c0/val_0.jpg", 0, "c0"), "not in this split"),
        ((f"{OLD}/c1/train_5.jpg", 2, "c1"), "label 2 there and 1"),
    ],
)
def test_dassls_draw_of_another_split_is_refused(tmp_path, pickled, entry, message):
    pickled({"train": [entry], "val": []})
    with pytest.raises(ValueError, match=message):
        few_shot(*toy(), 2, 1, "/data", tmp_path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps({"train": [Bomb()]}),
        pickle.dumps({"train": ["x"], "val": []}),
        pickle.dumps({"train": []})[:9],
        b"",
        b"no pickle",
    ],
)
def test_foreign_or_damaged_pickle_is_named_and_not_run(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shot_2-seed_1.pkl").write_bytes(content)
    with pytest.raises((ValueError, pickle.UnpicklingError), match="shot_2-seed_1.pkl"):
        few_shot(*toy(), 2, 1, "/data", tmp_path)
    assert not (tmp_path / "exploded").exists()


# -- random splits -----------------------------------------------------------------------------------------


def test_split_by_class_is_a_partition_in_proportion():
    items = numbered([0] * 20 + [1] * 30)
    parts = split_by_class(items, random.Random(3))
    assert [sum(x.label == y for x in part) for part in parts for y in (0, 1)] == [10, 15, 4, 6, 6, 9]
    assert sorted(ids([*parts.train, *parts.val, *parts.test])) == list(range(50))
    assert ids(parts.train) == ids(split_by_class(items, random.Random(3)).train)
    assert ids(parts.train) != ids(split_by_class(items, random.Random(4)).train)
    check_labels(parts, "here")


def test_split_trainval_takes_a_fifth_of_every_class():
    train, val = split_trainval(numbered([0] * 10 + [1] * 20), random.Random(0))
    assert [sum(x.label == y for x in val) for y in (0, 1)] == [2, 4]
    assert sorted(ids(train + val)) == list(range(30))


def test_random_split_refuses_a_tiny_class():
    with pytest.raises(ValueError, match="'c1' has 2 images"):
        split_by_class(numbered([0] * 20 + [1] * 2), random.Random(0))
    with pytest.raises(ValueError, match="'c1' has 1 training images"):
        split_trainval(numbered([0] * 20 + [1]), random.Random(0))


def test_splits_unpacks_in_order():
    assert Splits([1], [2], [3])._fields == ("train", "val", "test")
