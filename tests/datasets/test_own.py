"""Own pictures: folders and lists, the split that is drawn and kept, and everything that is named instead of guessed."""

import json

import numpy as np
import pytest
from PIL import Image

import dassl_prompts
from dassl_prompts.classification.split_files import unkept
from dassl_prompts.engine import build_dataset, get_cfg_default

NAMES = ("cat", "dog", "hen")


def picture(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)


def folders(root, names=NAMES, count=10, first=0):
    """``count`` pictures per class, no two alike."""
    for number in range(len(names) * count):
        picture(root / names[number // count] / f"{number:03}.png", first + number)


def build(root, name="OwnPictures", **keys):
    cfg = get_cfg_default()
    dassl_prompts.extend_cfg(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.SEED = name, str(root), 1
    for key, value in keys.items():
        cfg.DATASET[key] = value
    return build_dataset(cfg)


def table(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def rows(tmp_path):
    """Lines of a CSV for twelve pictures of two classes, two per class in the test."""
    folders(tmp_path, NAMES[:2], 6)
    return [
        f"{path.relative_to(tmp_path)},{path.parent.name},{'test' if int(path.stem) % 6 > 3 else 'train'}"
        for path in sorted(tmp_path.glob("*/*.png"))
    ]


# -- folders -------------------------------------------------------------------------------------------------


def test_a_folder_is_split_by_a_seed_that_is_written_down(tmp_path, capsys):
    folders(tmp_path)
    data = build(tmp_path)
    assert data.classnames == list(NAMES)
    assert [len(part) for part in (data.train_x, data.val, data.test)] == [15, 6, 9]
    kept = json.loads((tmp_path / ".dassl_prompts" / "split_seed1.json").read_text())
    assert sorted(item.impath for item in data.test) == sorted(str(tmp_path / path) for path, _, _ in kept["test"])
    assert "Drew a split" in capsys.readouterr().out
    again = build(tmp_path)
    assert [item.impath for item in again.test] == [item.impath for item in data.test]
    said = capsys.readouterr().out
    assert "Drew" not in said and "new pictures" not in said  # neither drawn nor read again
    with unkept():
        other = build(tmp_path, MAKE_SPLIT=2)
    assert not (tmp_path / ".dassl_prompts" / "split_seed2.json").exists()
    assert [item.impath for item in other.test] == [item.impath for item in build(tmp_path, MAKE_SPLIT=2).test]
    assert (tmp_path / ".dassl_prompts" / "split_seed2.json").is_file()
    assert [item.impath for item in other.test] != [item.impath for item in data.test]


def test_shots_are_drawn_as_everywhere_and_small_classes_are_named(tmp_path, capsys):
    folders(tmp_path)
    assert len(build(tmp_path, NUM_SHOTS=2).train_x) == 6
    assert (tmp_path / ".dassl_prompts" / "split_fewshot_seed1" / "shot_2-seed_1.json").is_file()
    capsys.readouterr()
    build(tmp_path, NUM_SHOTS=8)
    assert (
        "3 classes have fewer than 8 training images and give all they have: 'cat' 5, 'dog' 5"
        in capsys.readouterr().out
    )


def test_parts_of_a_folder_are_the_split(tmp_path, capsys):
    for number, part in enumerate(("train", "valid", "test")):
        folders(tmp_path / part, count=2, first=50 * number)
    data = build(tmp_path)
    assert [len(part) for part in (data.train_x, data.val, data.test)] == [6, 6, 6]
    with pytest.raises(ValueError, match=r"MAKE_SPLIT is 1, but .* says itself"):
        build(tmp_path, MAKE_SPLIT=1)


def test_train_and_val_alone_are_train_and_test(tmp_path, capsys):
    for number, part in enumerate(("train", "val")):
        folders(tmp_path / part, count=2, first=50 * number)
    assert len(build(tmp_path).test) == 6
    assert "its val is the test set" in capsys.readouterr().out


def test_a_class_may_be_called_train(tmp_path):
    folders(tmp_path, ("train", "truck"))
    assert build(tmp_path).classnames == ["train", "truck"]


def test_base_and_new_classes(tmp_path):
    folders(tmp_path)
    assert build(tmp_path, SUBSAMPLE_CLASSES="base").classnames == ["cat", "dog"]
    assert build(tmp_path, SUBSAMPLE_CLASSES="new").classnames == ["hen"]


def test_classes_are_renamed_without_another_split(tmp_path):
    folders(tmp_path)
    before = [item.impath for item in build(tmp_path, NUM_SHOTS=2).train_x]
    names = table(tmp_path / "names.yaml", "cat: tabby cat", "hen: 007")
    data = build(tmp_path, CLASS_NAMES_FILE=str(names), NUM_SHOTS=2)
    assert data.classnames == ["tabby cat", "dog", "007"] and [item.impath for item in data.train_x] == before
    table(names, "cta: tabby")
    with pytest.raises(ValueError, match="renames 'cta', which is no class here; did you mean 'cat'"):
        build(tmp_path, CLASS_NAMES_FILE=str(names))


def test_a_folder_that_cannot_be_written_keeps_its_notes_in_the_cache(tmp_path, monkeypatch):
    from dassl_prompts.classification import own_notes

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(own_notes, "is_writable", lambda folder: False)
    folders(tmp_path / "pictures")
    build(tmp_path / "pictures")
    assert not (tmp_path / "pictures" / ".dassl_prompts").exists()
    assert list((tmp_path / "cache").rglob("split_seed1.json"))


# -- what is named -------------------------------------------------------------------------------------------


def one_class(root):
    folders(root, ("cat",))


def case(root):
    folders(root, ("Cat", "cat "))


def no_name(root):
    folders(root, ("cat", "_"))


def twins(root):
    folders(root / "train", count=3)
    folders(root / "test", count=3)


def unreadable(root):
    folders(root)
    (root / "cat" / "x.png").write_bytes(b"not a picture")


def too_few(root):
    folders(root, count=3)


def beside(root):
    folders(root / "train", count=2)
    folders(root / "test", count=2, first=50)
    folders(root, ("cow", "hen"), 2, first=100)


def flat(root):
    picture(root / "1.png")


@pytest.mark.parametrize(
    "make, message",
    [
        (one_class, "has one class, 'cat': there is nothing to tell apart"),
        (case, "the classes 'Cat' and 'cat ' have the names 'Cat' and 'cat ', which CLIP does not tell apart"),
        (no_name, "the class '_' has an empty name"),
        (
            twins,
            r"9 pictures are in two parts of the split: .*000.png \(train\) is .*000.png \(test\).*SAME_PICTURES",
        ),
        (unreadable, "1 of 31 pictures cannot be read: .*x.png"),
        (too_few, "class 'cat' has 3 images, too few for train, val and test"),
        (beside, "has the parts test, train beside cow, hen"),
        (flat, "a folder per class is needed"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_folders_are_named(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(ValueError, match=message):
        build(tmp_path)


def test_equal_pictures_in_train_and_test_may_be_asked_for(tmp_path):
    twins(tmp_path)
    assert len(build(tmp_path, SAME_PICTURES=True).test) == 9


def test_pictures_that_came_after_the_split_are_named(tmp_path):
    folders(tmp_path)
    build(tmp_path)
    picture(tmp_path / "cat" / "late.png", 200)
    with pytest.raises(ValueError, match=r"1 pictures came \(.*late.png\).*delete .*split_seed1.json"):
        build(tmp_path)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder and no list"):
        build(tmp_path / "nowhere")


# -- lists ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_list_with_a_split(tmp_path, rows, delimiter):
    lines = [line.replace(",", delimiter) for line in ("Path,Label,Split", *rows)]
    data = build(table(tmp_path / "labels.csv", *lines))
    assert data.classnames == ["cat", "dog"] and (len(data.train_x), len(data.test)) == (8, 4)
    assert data.val is None and data.train_x[0].impath == str(tmp_path / "cat" / "000.png")


def test_a_list_without_a_split_is_split(tmp_path, rows):
    data = build(table(tmp_path / "labels.csv", "path,label", *(row.rpartition(",")[0] for row in rows)))
    assert (len(data.train_x), len(data.val), len(data.test)) == (6, 2, 4)
    assert (tmp_path / ".dassl_prompts" / "labels" / "split_seed1.json").is_file()


def test_labels_that_are_numbers_count(tmp_path, rows):
    rows = [row.replace(",cat,", ",10,").replace(",dog,", ",9,") for row in rows]
    assert build(table(tmp_path / "labels.csv", "path,label,split", *rows)).classnames == ["9", "10"]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda rows: rows, "has no column path: its first line has to name the columns.*; it reads 'cat/000.png, cat, train'"),
        (lambda rows: ["path,label,split", *rows, "cat/none.png,cat,train"], r"1 of 13 pictures are not there: .*none.png"),
        (lambda rows: ["path,label,split", *rows, "cat/000.png,,train"], "line 14 has no label"),
        (lambda rows: ["path,label,split", *rows, "cat/000.png,cat"], "line 14 has 2 cells instead of 3"),
        (lambda rows: ["path,label,split", *rows, "cat/000.png,cat,later"], "line 14 has the split 'later'"),
        (lambda rows: ["path,label,split", *rows, rows[0]], "names 1 pictures more than once: .*000.png"),
        (lambda rows: ["path,label,class", *rows], "has 2 columns for label: label, class"),
        (lambda rows: ["path,label,split"], "names no picture"),
    ],
    ids=["header", "missing", "empty", "cells", "split", "twice", "columns", "rows"],
)  # fmt: skip
def test_bad_lists_are_named(tmp_path, rows, change, message):
    with pytest.raises(ValueError, match=message):
        build(table(tmp_path / "labels.csv", *change(rows)))


# -- captions ------------------------------------------------------------------------------------------------


def test_a_list_of_captions(tmp_path, rows):
    lines = [f"{row},a {row.split(',')[1]} on a mat" for row in rows]
    path = table(tmp_path / "captions.csv", "path,label,split,caption", *lines, f"{rows[0]},another view")
    data = build(path, "OwnCaptions")
    assert len(data.train_x) == 9 and len(data.test) == 4 and data.train_x[0].caption == "a cat on a mat"
    drawn = build(path, "OwnCaptions", NUM_SHOTS=1).train_x
    assert len({item.impath for item in drawn}) == 2


def test_captions_need_no_label(tmp_path, rows):
    lines = [f"{row.split(',')[0]},picture {number}" for number, row in enumerate(rows)]
    data = build(table(tmp_path / "captions.csv", "file,caption", *lines), "OwnCaptions")
    assert data.classnames == ["image"] and len(data.train_x) == 8 and len(data.test) == 4


def test_captions_are_asked_of_a_list(tmp_path, rows):
    with pytest.raises(ValueError, match="is a folder: captions are read from a CSV"):
        build(tmp_path, "OwnCaptions")
    with pytest.raises(ValueError, match="has no column caption"):
        build(table(tmp_path / "labels.csv", "path,label,split", *rows), "OwnCaptions")
