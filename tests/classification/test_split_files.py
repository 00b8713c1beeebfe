"""Split files: CoOp's own, those made elsewhere, and those that contradict themselves."""

import json

import pytest

from dassl_prompts.classification.split_files import read_split, same_name, save_split

GOOD = {
    "train": [["a/1.jpg", 0, "cat"], ["b/1.jpg", 1, "dog"]],
    "val": [["a/2.jpg", 0, "cat"]],
    "test": [["a/3.jpg", 0, "cat"], ["b/3.jpg", 1, "dog"]],
}


def test_split_round_trip(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps(GOOD))
    read = read_split(tmp_path / "split.json", "/root/images")
    assert read.test[1].impath == "/root/images/b/3.jpg" and read.test[1].classname == "dog"
    assert len(read.val) == 1
    save_split(read, tmp_path / "again.json", "/root/images")
    assert json.loads((tmp_path / "again.json").read_text()) == GOOD
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.json", "split.json"]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"train": [["a/1.jpg", 0]]}, "train, entry 0"),
        ({"train": [["a/1.jpg", "0", "cat"]]}, "train, entry 0"),
        ({"val": [["a/1.jpg", -1, "cat"]]}, "val, entry 0"),
        ({"test": [["../../etc/passwd", 0, "cat"]]}, "test, entry 0"),
        ({"test": [["/etc/passwd", 0, "cat"]]}, "test, entry 0"),
        ({"test": []}, "no test images"),
        ({"val": [["a/2.jpg", 0, "kitten"]]}, "label 0 is called 'cat' and, in val, 'kitten'"),
        ({"train": [["a/1.jpg", 0, "cat"]]}, r"1 of 2 labels have no training image: 1 \(dog\)"),
        (
            {"train": [["a/1.jpg", 0, "cat"], ["b/1.jpg", 1, "dog"], ["c/1.jpg", 3, "eel"]]},
            "1 of 4 labels have no training image: 2",
        ),
        ({"test": "all"}, "lists train, val and test"),
        ({"train": [["a/1.jpg", True, "cat"]]}, "train, entry 0"),
        ({"train": [["a/1.jpg", "1", "cat"]]}, "write the label as a number: 1"),
        ({"train": [["a/1.jpg", "cat", 1]]}, "label and class name have changed places: 1, 'cat'"),
        ({"val": [["a/2.jpg", 0, "catt"]]}, "'cat' and, in val, 'catt'; spell them alike if they are one class"),
        ({"train": [["C:\\data\\1.jpg", 0, "cat"]]}, "train, entry 0: .*paths are relative to"),
        ({"train": [["a\\..\\..\\1.jpg", 0, "cat"]]}, "train, entry 0"),
        ({"train": [["/root/../etc/1.jpg", 0, "cat"]]}, "train, entry 0"),
    ],
)
def test_wrong_split_is_refused_with_its_place(tmp_path, change, message):
    (tmp_path / "split.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError, match=message) as caught:
        read_split(tmp_path / "split.json", "/root")
    assert "split.json" in str(caught.value)


SPELLINGS = {
    "backslashes": lambda path, label, name: [path.replace("/", "\\"), label, name],
    "absolute": lambda path, label, name: [f"{{root}}/{path}", label, name],
    "absolute, through a link": lambda path, label, name: [f"{{link}}/{path}", label, name],
    "dots": lambda path, label, name: [f"./{path}", label, name],
    "labels from 1": lambda path, label, name: [path, label + 1, name],
    "case": lambda path, label, name: [path, label, name.upper() if path.startswith("a") and "1" in path else name],
    "underscores": lambda path, label, name: [path, label, name.replace(" ", "_") if "3" in path else name],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig", "utf-16"])
def test_split_made_elsewhere_is_read_where_its_meaning_is_certain(tmp_path, spelling, mark, capsys):
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "link").symlink_to(images)
    root = tmp_path / "link" if "link" in spelling else images
    entries = {
        part: [[path, label, name.replace("dog", "hot dog")] for path, label, name in GOOD[part]] for part in GOOD
    }
    (tmp_path / "good.json").write_text(json.dumps(entries))
    good = read_split(tmp_path / "good.json", root)
    assert capsys.readouterr().out == ""
    text = json.dumps({part: [SPELLINGS[spelling](*entry) for entry in entries[part]] for part in entries})
    text = text.replace("{root}", str(images)).replace("{link}", str(images))
    (tmp_path / "split.json").write_text(text, encoding=mark)
    read = read_split(tmp_path / "split.json", root)
    first = {item.label: item.classname for part in read for item in part}
    assert [[(x.impath, x.label) for x in part] for part in read] == [[(x.impath, x.label) for x in p] for p in good]
    assert {same_name(name) for name in first.values()} == {"cat", "hot dog"}
    assert all(item.classname == first[item.label] for part in read for item in part)
    assert ("split.json: " in capsys.readouterr().out) == (spelling != "dots")


def test_file_names_with_backslashes_stay_where_the_files_have_them(tmp_path):
    (tmp_path / "a\\1.jpg").touch()
    (tmp_path / "split.json").write_text(json.dumps({**GOOD, "train": [["a\\1.jpg", 0, "cat"], ["b/1.jpg", 1, "dog"]]}))
    assert read_split(tmp_path / "split.json", tmp_path).train[0].impath == f"{tmp_path}/a\\1.jpg"


def test_missing_val_is_an_empty_one_and_near_misses_are_named(tmp_path):
    path = tmp_path / "split.json"
    path.write_text(json.dumps({part: GOOD[part] for part in ("train", "test")}))
    assert read_split(path, "/root").val == []
    for name in ("validation", "valid", "Val"):
        path.write_text(json.dumps({"train": GOOD["train"], "test": GOOD["test"], name: GOOD["val"]}))
        with pytest.raises(ValueError, match=f"split.json must hold .*: '{name}' is called 'val' here"):
            read_split(path, "/root")
    path.write_text(json.dumps({"training": GOOD["train"], "test": GOOD["test"]}))
    with pytest.raises(ValueError, match="lists train, val and test: 'training' is called 'train' here"):
        read_split(path, "/root")


def test_absolute_path_of_another_machine_is_refused_with_the_file_that_is_meant(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.jpg").touch()
    (tmp_path / "split.json").write_text(json.dumps({**GOOD, "train": [["/home/x/images/a/1.jpg", 0, "cat"]]}))
    with pytest.raises(ValueError, match="train, entry 0: .*images, which has 'a/1.jpg'"):
        read_split(tmp_path / "split.json", tmp_path / "images")


def test_a_split_without_training_images_is_a_test_set(tmp_path):
    (tmp_path / "split.json").write_text(json.dumps({"train": [], "val": [], "test": GOOD["test"]}))
    read = read_split(tmp_path / "split.json", "/root")
    assert read.train == [] and [item.label for item in read.test] == [0, 1]
    (tmp_path / "split.json").write_text(json.dumps({"train": [], "test": [["a.jpg", 0, "cat"], ["b.jpg", 2, "dog"]]}))
    with pytest.raises(ValueError, match="1 of 3 labels"):
        read_split(tmp_path / "split.json", "/root")


@pytest.mark.parametrize("content", ["", "[1, 2", "[]", "<html>Sign in</html>"])
def test_split_that_is_no_split_is_named(tmp_path, content):
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(ValueError, match="split.json"):
        read_split(tmp_path / "split.json", "/root")
