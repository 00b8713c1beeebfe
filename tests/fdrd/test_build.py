"""fdrd build: acceptance, the feedback loop, negatives, and the command on a small tree of images."""

import json

import pytest
from PIL import Image

from dassl_prompts import extend_cfg
from dassl_prompts.captions.bpe import token_count
from dassl_prompts.captions.records import read_records
from dassl_prompts.engine import build_dataset, get_cfg_default, merge_opts
from dassl_prompts.fdrd.__main__ import main, path_in_file
from dassl_prompts.fdrd.build import Item, add_negatives, build, drop_low_scores, shorten
from dassl_prompts.fdrd.captioners import CaptionFile, make_request
from tests.datasets import trees

ITEMS = [
    Item(f"/r/{c}/{i}.png", f"{c}/{i}.png", c, "train" if i else "test")
    for c in ("red_fox", "owl", "bear")
    for i in range(3)
]


def good(request):
    return f"A {request.classname} number {request.relative[-5]}."


def test_captions_are_mended():
    built = build(ITEMS[:1], lambda r: "an animal \n in the  snow", "zoo")
    assert built.splits["test"]["red_fox/0.png"]["positive"] == "A photo of red fox. an animal in the snow."
    assert sum(built.notes.values()) == 2


def test_long_captions_are_cut_at_a_sentence():
    text = "A red fox. It runs. " + "very " * 80 + "fast."
    assert shorten(text, 20) == "A red fox. It runs."
    assert shorten("very " * 80 + "fast.", 20) == ""
    built = build(ITEMS[:1], lambda r: text, "zoo", n_ctx=16)
    assert token_count(built.splits["test"]["red_fox/0.png"]["positive"]) <= 77 - 16


def test_rejected_captions_come_back_with_the_reason():
    asked = []

    def captioner(request):
        asked.append((request.round, request.feedback))
        return "" if request.round < 3 else good(request)

    built = build(ITEMS[:1], captioner, "zoo", judge=lambda request, caption: "")
    assert asked == [(1, ""), (2, "there is no caption"), (3, "there is no caption")]
    assert len(built.splits["test"]) == 1 and not built.rejected
    lost = build(ITEMS[:1], lambda r: "A red fox.", "zoo", judge=lambda request, caption: "dull")
    assert (
        lost.rejected == [{"path": "red_fox/0.png", "class": "red_fox", "reason": "dull"}] and not lost.splits["test"]
    )


@pytest.mark.parametrize(("kind", "swaps", "own"), [("none", 0, 0), ("swap", 2, 0), ("attr", 0, 1), ("both", 2, 1)])
def test_negatives_by_kind(kind, swaps, own):
    built = build(ITEMS, good, "zoo")
    add_negatives(built, kind)
    negatives = built.splits["train"]["owl/1.png"]["negative"]
    assert len([n for n in negatives if "owl" not in n]) == swaps
    assert len([n for n in negatives if "owl" in n]) == own
    assert "A owl number 1." not in negatives and len(set(negatives)) == len(negatives)


def test_meta_table_keeps_swaps_inside():
    built = build(ITEMS, good, "zoo")
    add_negatives(built, "swap", {"red_fox": "mammal", "bear": "mammal", "owl": "bird"} | {"owl": "mammal"})
    assert built.splits["train"]["owl/1.png"]["meta"] == "mammal"
    with pytest.raises(ValueError, match="alone in their meta-category: owl"):
        add_negatives(built, "swap", {"red_fox": "mammal", "bear": "mammal", "owl": "bird"})
    with pytest.raises(ValueError, match="no meta-category for 2 classes"):
        add_negatives(built, "swap", {"owl": "bird"})


def test_low_clip_scores_are_rejected():
    built = build(ITEMS, good, "zoo")
    drop_low_scores(built, {item.relative: float(i) for i, item in enumerate(ITEMS)}, 25)
    assert [entry["path"] for entry in built.rejected] == ["red_fox/0.png", "red_fox/1.png"]


def test_caption_file_errors_name_the_line(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"path": "a", "caption": "x"}\n{"path": "b"}\n')
    with pytest.raises(ValueError, match=r"c\.jsonl, line 2"):
        CaptionFile(path, [])


def caption_file(path, **captions):
    path.write_text("\n".join(json.dumps({"path": k, "caption": v}) for k, v in captions.items()))
    return path


def caption_of(captions, relative):
    return captions(make_request(f"/r/{relative}", relative, "owl", "zoo"))


def test_a_file_name_stands_for_its_only_image(tmp_path):
    path = caption_file(tmp_path / "c.jsonl", **{"1.jpg": "one", "a/2.jpg": "two"})
    captions = CaptionFile(path, ["a/1.jpg", "a/2.jpg", "b/2.jpg"])
    assert [caption_of(captions, r) for r in ("a/1.jpg", "a/2.jpg", "b/2.jpg")] == ["one", "two", ""]


def test_a_file_name_of_several_images_is_refused(tmp_path):
    path = caption_file(tmp_path / "c.jsonl", **{"1.jpg": "one"})
    with pytest.raises(ValueError, match=r"line 1: 2 images are called 1\.jpg \(a/1\.jpg, b/1\.jpg\)"):
        CaptionFile(path, ["a/1.jpg", "b/1.jpg"])
    captions = CaptionFile(path, ["1.jpg", "b/1.jpg"])
    assert [caption_of(captions, r) for r in ("1.jpg", "b/1.jpg")] == ["one", ""]


def tree(tmp_path):
    rows = ["path,class,split"]
    for i, name in enumerate(("red_fox", "owl")):
        for j in range(3):
            Image.new("RGB", (20 + 20 * j, 20), (200 * i, 120, 40 * j)).save(tmp_path / f"{name}{j}.png")
            rows.append(f"{name}{j}.png,{name},{'train' if j else 'test'}")
    (tmp_path / "zoo.csv").write_text("\n".join(rows))
    return [
        "build",
        "--csv",
        str(tmp_path / "zoo.csv"),
        "--root",
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
    ]


def test_command_writes_files_that_read_back(tmp_path, capsys):
    command = [*tree(tmp_path), "--captions", "statistics"]
    assert main(command) == 0
    records = read_records(tmp_path / "out" / "zoo_train.json")
    assert [r.key for r in records] == ["red_fox1.png", "red_fox2.png", "owl1.png", "owl2.png"]
    assert all("fox" in r.caption or "owl" in r.caption for r in records) and all(r.negatives for r in records)
    assert "wide photo of red fox" in records[1].caption and "square" not in records[1].caption
    assert main(command) == 2 and "exist already" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0


def read_custom(root, output, name):
    """The pair of files as the dataset FDRD reads it, from ``root``."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_opts(
        cfg,
        [
            "DATASET.NAME",
            "FDRD",
            "DATASET.ROOT",
            str(root),
            "DATASET.FDRD_DOMAIN",
            "custom",
            "DATASET.FDRD_TRAIN",
            str(output / f"{name}_train.json"),
            "DATASET.NUM_SHOTS",
            -1,
            "DATASET.FDRD_TEST",
            str(output / f"{name}_test.json"),
            "VERBOSE",
            False,
        ],
    )
    return build_dataset(cfg)


def test_file_of_a_registered_dataset_reads_back(tmp_path, monkeypatch):
    trees.dtd(tmp_path / "data")
    parts = {"train": range(5), "val": range(5, 7), "test": range(7, 10)}
    trees.split_json(
        tmp_path / "data/dtd/split_zhou_DescribableTextures.json",
        **{
            part: [
                (f"{name}/{name}_{i:04d}.jpg", label, name)
                for label, name in enumerate(("banded", "zigzagged"))
                for i in numbers
            ]
            for part, numbers in parts.items()
        },
    )
    monkeypatch.chdir(tmp_path)
    command = ["build", "--dataset", "DescribableTextures", "--root", "data", "--output", "out"]
    assert main([*command, "--captions", "statistics"]) == 0
    train = json.loads((tmp_path / "out" / "DescribableTextures_train.json").read_text())
    assert all(key == record["file_path"] and key.startswith("dtd/images/") for key, record in train.items())
    data = read_custom(tmp_path / "data", tmp_path / "out", "DescribableTextures")
    items = [*data.train_x, *data.test]
    assert len(items) == 20 and {item.classname for item in items} == {"banded", "zigzagged"}
    assert {item.impath for item in items} == {str(p) for p in (tmp_path / "data").rglob("*.jpg")}
    (tmp_path / "data").rename(tmp_path / "moved")
    assert (
        read_custom(tmp_path / "moved", tmp_path / "out", "DescribableTextures")
        .test[0]
        .impath.startswith(str(tmp_path / "moved"))
    )


def test_images_outside_the_root_keep_their_absolute_path(tmp_path):
    inside, beside = (str(tmp_path / name / "a.png") for name in ("data", "database"))
    assert path_in_file(inside, str(tmp_path / "data")) == "a.png"
    assert path_in_file(beside, str(tmp_path / "data")) == beside


def test_command_lists_what_was_rejected(tmp_path):
    captions = [{"path": f"{n}{j}.png", "caption": f"An {n} here."} for n in ("red_fox", "owl") for j in range(3)][:-1]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, captions)))
    assert main([*tree(tmp_path), "--captions", str(tmp_path / "c.jsonl")]) == 0
    rejected = (tmp_path / "out" / "zoo_rejected.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in rejected] == [
        {"path": "owl2.png", "class": "owl", "reason": "there is no caption"}
    ]


def test_wrong_csv_and_captioner_are_named(tmp_path, capsys):
    command = tree(tmp_path)
    (tmp_path / "zoo.csv").write_text("path,label\n")
    assert (
        main([*command, "--captions", "statistics"]) == 2 and "missing columns class, split" in capsys.readouterr().err
    )
    (tmp_path / "zoo.csv").write_text("path,class,split\na.png,x,dev\n")
    assert main([*command, "--captions", "statistics"]) == 2 and "line 2" in capsys.readouterr().err
    tree(tmp_path)
    (tmp_path / "owl0.png").unlink()
    assert main([*command, "--captions", "statistics"]) == 2
    assert f"1 of 6 images do not exist below --root {tmp_path}:\n  line 5" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    tree(tmp_path)
    assert main([*command, "--captioner", "json:nothing"]) == 2 and "json:nothing" in capsys.readouterr().err
