"""fdrd check: the defects of the released files by number, and of a file made to have each of them."""

import json

import pytest

from dassl_prompts.captions.records import Record
from dassl_prompts.fdrd.__main__ import main
from dassl_prompts.fdrd.check import check_file, check_pair, check_substitution

# counts of specs/dcar.md 3.5; 66 of the 85 aircraft captions do name their class, but with the slash that
# keys cannot have
REAL = {
    "flower_test": {
        "caption tokens, mean": 36.8,
        "caption tokens, 95th percentile": 50,
        "caption tokens, longest": 55,
        "duplicate captions": 30,
        "records with a negative equal to the positive": 96,
        "records whose negatives all equal the positive": 55,
        "records that repeat a negative": 202,
        "captions with the class name inside another word": 1,
        "negatives damaged by substring replacement": 4,
    },
    "pets_test": {
        "caption tokens, mean": 30.1,
        "caption tokens, 95th percentile": 44,
        "caption tokens, longest": 55,
        "duplicate captions": 6,
        "records with a negative equal to the positive": 344,
        "records whose negatives all equal the positive": 2,
        "records that repeat a negative": 581,
        "class name absent from the caption": 6,
        "captions with the class name inside another word": 50,
        "negatives damaged by substring replacement": 194,
    },
    "plane_test": {
        "caption tokens, mean": 27.6,
        "caption tokens, 95th percentile": 42,
        "caption tokens, longest": 56,
        "duplicate captions": 34,
        "records with a negative equal to the positive": 10,
        "records whose negatives all equal the positive": 10,
        "records that repeat a negative": 207,
        "class name absent, as the key spells it": 85,
        "class name absent from the caption": 19,
        "captions with the class name inside another word": 61,
        "negatives damaged by substring replacement": 235,
    },
    "inter_dtd_test": {
        "caption tokens, mean": 45.9,
        "caption tokens, 95th percentile": 57,
        "caption tokens, longest": 66,
        "captions too long beside 16 prompt tokens": 8,
        "captions too long beside 4 prompt tokens": 0,
        "duplicate captions": 8,
        "placeholder path": 1692,
        "records without negatives": 1692,
    },
    "inter_dtd_train": {
        "caption tokens, mean": 45.7,
        "caption tokens, 95th percentile": 56,
        "caption tokens, longest": 68,
        "captions too long beside 16 prompt tokens": 8,
        "duplicate captions": 20,
    },
    "inter_caltech-101_train": {
        "caption tokens, mean": 38.0,
        "caption tokens, 95th percentile": 54,
        "caption tokens, longest": 68,
        "captions too long beside 16 prompt tokens": 7,
        "duplicate captions": 43,
    },
    "inter_caltech-101_test": {
        "caption tokens, mean": 37.6,
        "caption tokens, 95th percentile": 53,
        "caption tokens, longest": 65,
        "captions too long beside 16 prompt tokens": 4,
        "duplicate captions": 13,
    },
    "car_train": {
        "caption tokens, mean": 41.4,
        "caption tokens, 95th percentile": 56,
        "caption tokens, longest": 72,
        "captions too long beside 16 prompt tokens": 32,
        "duplicate captions": 19,
    },
    "ucf101_train": {
        "caption tokens, mean": 37.3,
        "caption tokens, 95th percentile": 54,
        "caption tokens, longest": 84,
        "captions longer than 77 tokens": 1,
        "captions too long beside 16 prompt tokens": 12,
        "duplicate captions": 599,
    },
    "ucf101_test": {
        "caption tokens, mean": 37.0,
        "caption tokens, 95th percentile": 54,
        "caption tokens, longest": 63,
        "captions too long beside 16 prompt tokens": 3,
        "duplicate captions": 217,
    },
}


def real_file(shared_data, name):
    """A released file under either of its names; some could not be fetched."""
    folder = shared_data / "fdrd" / name.rpartition("_")[2]
    for path in (folder / f"{name}.json", folder / f"inter_{name}.json"):
        if path.is_file():
            return path
    pytest.skip(f"{name}.json is not in {folder}")


@pytest.mark.parametrize("name", REAL)
def test_real_files_show_the_known_defects(shared_data, name):
    report = check_file(real_file(shared_data, name))
    assert {key: report[key] for key in REAL[name]} == REAL[name]
    assert report["unusable records"] == 0


@pytest.mark.parametrize(("stem", "shared"), [("caltech-101", 49), ("dtd", 19), ("ucf101", 108)])
def test_real_splits_share_captions_but_no_images(shared_data, stem, shared):
    found = check_pair(*(real_file(shared_data, f"{stem}_{split}") for split in ("train", "test")))
    found.pop("video groups in both files", None)
    assert found == {"keys in both files": 0, "captions of the second file that occur in the first": shared}


def record(**changes):
    base = {
        "file_name": "cat_1",
        "file_path": "YOUR_IMAGE_PATH",
        "class_name": "cat",
        "positive": "A cat.",
        "negative": [],
    }
    return {**base, **changes}


def test_every_defect_is_counted(tmp_path, capsys):
    long = "A cat" + " and a cat" * 30 + "."
    records = {
        "cat_1": record(negative=["A cat.", "A dog.", "A dog."]),
        "cat_2": record(positive="A catfish on the left", negative=["A catfish on the left"]),
        "cat_3": record(positive="A dog.", file_path="cats/3.jpg"),
        "cat_4": record(positive=long),
        "cat_5": record(file_path="/abs/5.jpg", file_name="5"),
        "cat_6": record(positive=""),
    }
    (tmp_path / "cats").mkdir()
    (tmp_path / "cats/3.jpg").touch()
    path = tmp_path / "own_test.json"
    path.write_text(json.dumps(records))
    report = check_file(path, root=str(tmp_path))
    expected = {
        "domain": "custom",
        "records": 6,
        "unusable records": 1,
        "classes": 1,
        "placeholder path": 3,
        "absolute path": 1,
        "key differs from file_name": 4,
        "captions longer than 77 tokens": 1,
        "captions too long beside 4 prompt tokens": 1,
        "duplicate captions": 1,
        "captions without final punctuation (%)": 20.0,
        "captions that mention left or right (%)": 20.0,
        "class name absent from the caption": 1,
        "class name only inside a longer word": 1,
        "records with a negative equal to the positive": 2,
        "records whose negatives all equal the positive": 1,
        "records that repeat a negative": 1,
        "usable negatives": 1,
        "images missing": 4,
    }
    assert {key: report[key] for key in expected} == expected
    assert main(["check", str(path)]) == 1
    assert "record 'cat_6': the caption is empty" in capsys.readouterr().out


def test_words_broken_by_replacing_the_class_name_are_counted():
    scattered = "A cat sits on scattered leaves."
    cases = {
        "A cat sits on scattered leaves.": (1, ["A dog sits on sdogtered leaves.", scattered, "A dog on leaves."]),
        "A Cat, scattered.": (1, ["A Cat, sdogtered."]),
        "A CAT scattered.": (1, ["A dog sdogtered."]),
        "Two cats.": (0, ["Two dogs."]),
        "A cat's tail.": (0, ["A dog's tail."]),
        "A cat, catalogued.": (1, ["A dog, fishalogued.", "A dog, catalogued."]),
    }
    damaged = {"A cat sits on scattered leaves.": 1, "A Cat, scattered.": 1, "A CAT scattered.": 1}
    for caption, (glued, negatives) in cases.items():
        found = check_substitution([Record("cat_1", caption, tuple(negatives))], {"cat_1": "cat"})
        assert list(found.values()) == [glued, damaged.get(caption, 0)], caption


def test_frames_of_one_video_are_counted(tmp_path):
    names = ["v_Archery_g01_c01", "v_Archery_g01_c02", "v_Archery_g01_c03", "v_Archery_g02_c01", "v_Diving_g01_c01"]
    train, test = tmp_path / "ucf101_train.json", tmp_path / "ucf101_test.json"
    for path, keys in ((train, names), (test, ["v_Archery_g02_c07", "v_Diving_g09_c01"])):
        path.write_text(json.dumps({f"{key}.jpg": record(file_name=f"{key}.jpg") for key in keys}))
    report = check_file(train)
    assert report["video groups"] == 3 and report["records per video group"] == "1-3"
    assert report["near-duplicates (records beyond the first of their video group)"] == 2
    assert check_pair(train, test)["video groups in both files"] == 1


def test_emptied_file_ends_with_one_line(tmp_path, capsys):
    (tmp_path / "inter_dtd_train.json").write_bytes(b"\r\n")
    assert main(["check", str(tmp_path / "inter_dtd_train.json")]) == 1
    assert "is empty (2 bytes)" in capsys.readouterr().err
