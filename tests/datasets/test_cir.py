"""CIRR, FashionIQ and Laion-CIR: real annotation counts, small trees in every layout, bad input."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dassl_prompts import extend_cfg
from dassl_prompts.composed import data_report as cir_report
from dassl_prompts.composed.data_report import describe_task, describe_triplets, id_types
from dassl_prompts.composed.facts import contradictions, r1_bound, repeated
from dassl_prompts.composed.trainer import ComposedTrainer
from dassl_prompts.composed.triplets import ImageFolder, NoImages, Query, RetrievalTask, check_galleries
from dassl_prompts.datasets.cirr import CIRR
from dassl_prompts.datasets.fashioniq import FashionIQ, join_captions
from dassl_prompts.datasets.laion_cir import LaionCIR, read_info
from dassl_prompts.engine import DATASET_REGISTRY, get_cfg_default, merge_opts
from tests.datasets import cir_trees


def config(root, *opts):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_opts(cfg, ["DATASET.ROOT", str(root), *opts])
    return cfg


def test_registered():
    for cls in (CIRR, FashionIQ, LaionCIR):
        assert DATASET_REGISTRY.get(cls.__name__) is cls


# -- the real annotations ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("split", "queries", "images", "references", "blank"),
    [
        ("val", 4181, 2297, 2165, 0),
        ("test1", 4148, 2315, 2178, 1),
    ],
)
def test_real_cirr(shared_data, split, queries, images, references, blank):
    dataset = CIRR(config(shared_data))
    names = dataset.read("image_splits", f"split.rc2.{split}.json")
    task = dataset.task(split, names)
    counts = describe_task(task)
    assert (counts["queries"], counts["gallery images"], counts["references"]) == (
        queries,
        images,
        references,
    )
    assert counts["empty captions"] == blank
    assert counts["queries without a target"] == (queries if split == "test1" else 0)
    for query in task.queries:
        assert len(set(query.members)) == 5 and query.reference not in query.members
        assert query.target is None or query.target in query.members
    if blank:
        assert [q.id for q in task.queries if not q.texts[0].strip()] == ["27098"]


FIQ_COUNTS = {"dress": (2017, 3817, 2628), "shirt": (2038, 6346, 3089), "toptee": (1961, 5373, 2902)}


@pytest.mark.parametrize("category", FIQ_COUNTS)
def test_real_fashioniq(shared_data, category):
    queries, original, small = FIQ_COUNTS[category]
    task = FashionIQ(config(shared_data)).task(category, "val", ImageFolder("none"))
    assert (len(task.queries), len(task.gallery), task.remove_reference) == (queries, original, False)
    task = FashionIQ(config(shared_data, "CIR.FIQ_GALLERY", "val_split")).task(category, "val", ImageFolder("none"))
    assert (len(task.queries), len(task.gallery)) == (queries, small)


def test_real_laion_cir(shared_data):
    folder = shared_data / "laion_cir"
    template, llm = (list(read_info(folder / f"laion_{name}_info.json")) for name in ("template", "llm"))
    assert len(template) == len(llm) == 16000
    assert len(set(template + llm)) == 32000
    # 12,445 and 54,844 when the ids that are numbers in the file are not taken for the same id as text
    assert len({t for _, _, t in template}) == 12414 and len({r for r, _, _ in llm}) == 16000
    images = {i for r, _, t in template + llm for i in (r, t)}
    assert len(images) == 54693 and {len(i) for i in images} == {7}
    with_number = json.loads((folder / "laion_template_info.json").read_text())
    assert sum(isinstance(e["tgt_image_id"], int) for e in with_number) == 2000


# -- small trees ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["official", "searle", "transagg"])
def test_cirr_layouts(tmp_path, layout):
    cir_trees.cirr(tmp_path, layout)
    dataset = CIRR(config(tmp_path))
    (task,) = dataset.tasks("val")
    task.check_images()
    assert task.protocol == "cirr" and task.remove_reference
    assert task.queries[0] == Query(
        "100", "dev-0-0-img0", ("red",), "dev-1-0-img1", tuple(f"dev-{i}-0-img{i % 2}" for i in range(1, 6))
    )
    assert len(dataset.train_x) == 6 and "train/7/train-0-0-img0.png" in dataset.train_x[0].reference
    (test,) = dataset.tasks("test")
    assert test.queries[2].texts == (" ",) and test.queries[0].target is None


def test_cirr_images_elsewhere(tmp_path):
    cir_trees.cirr(tmp_path / "a")
    (tmp_path / "a" / "cirr" / "img_raw").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="IMAGE_ROOTS"):
        CIRR(config(tmp_path / "a")).tasks("val")
    (task,) = CIRR(config(tmp_path / "a", "CIR.IMAGE_ROOTS", f"['{tmp_path / 'elsewhere'}']")).tasks("val")
    task.check_images()


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_fashioniq_tree(tmp_path, suffix):
    cir_trees.fashioniq(tmp_path, suffix)
    dataset = FashionIQ(config(tmp_path))
    tasks = dataset.tasks("val")
    assert [t.name.split()[1] for t in tasks] == ["dress", "shirt", "toptee"]
    for task in tasks:
        task.check_images()
        assert task.queries[0].texts == ("Is red and green",)
    assert "B1000" in tasks[1].gallery and "B1000" in tasks[2].gallery
    assert len(dataset.train_x) == 15
    assert all(q.target is None for q in dataset.tasks("test")[0].queries)


@pytest.mark.parametrize(
    ("order", "empty", "captions", "expected"),
    [
        ("and", "keep", ["Is RED.", "longer, "], ("Is red and longer",)),
        ("and_rev", "keep", ["is red.", "longer, "], ("Longer and is red",)),
        ("both_avg", "keep", ["is red", "longer"], ("Is red and longer", "Longer and is red")),
        ("and", "keep", ["is red", ""], ("Is red and ",)),
        ("both_avg", "drop", ["", "longer"], ("Longer",)),
        ("and", "drop", ["", ""], ("",)),
    ],
)
def test_caption_variants(order, empty, captions, expected):
    assert join_captions(captions, order, empty) == expected


@pytest.mark.parametrize(("name", "count"), [("template", 6), ("llm", 4), ("combined", 10)])
def test_laion_cir_tree(tmp_path, name, count):
    cir_trees.laion_cir(tmp_path)
    triplets = LaionCIR(config(tmp_path, "CIR.LAION_SET", name)).train_x
    assert len(triplets) == count
    if name != "llm":
        assert triplets[4].target.endswith("0000005.png")
    with pytest.raises(ValueError, match="CIR.EVAL"):
        LaionCIR(config(tmp_path)).tasks("val")


# -- defects -------------------------------------------------------------------------------------------------


def test_missing_image_in_evaluation_is_an_error(tmp_path):
    cir_trees.cirr(tmp_path)
    gone = tmp_path / "cirr" / "img_raw" / "dev" / "dev-7-0-img1.png"
    gone.unlink()
    with pytest.raises(FileNotFoundError, match="1 of the 8 images.*dev-7-0-img1"):
        CIRR(config(tmp_path)).tasks("val")[0].check_images()


def test_missing_training_image_is_counted_and_capped(tmp_path, capsys):
    cir_trees.laion_cir(tmp_path)
    (tmp_path / "laion_cir" / "images" / "0000005.png").unlink()
    with pytest.raises(FileNotFoundError, match="CIR.MAX_MISSING 3"):
        LaionCIR(config(tmp_path)).train_x
    kept = LaionCIR(config(tmp_path, "CIR.MAX_MISSING", "3")).train_x
    assert len(kept) == 7 and "left out 3 of 10" in capsys.readouterr().out
    for path in (tmp_path / "laion_cir" / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="10 of 10"):
        LaionCIR(config(tmp_path, "CIR.MAX_MISSING", "99")).train_x


@pytest.mark.parametrize("change", [{"reference": "x"}, {"target": "x"}, {"members": ("a", "x")}])
def test_names_outside_the_gallery(change):
    entry = {"id": "7", "reference": "a", "texts": ("t",), "target": "b", "members": ("b",), **change}
    with pytest.raises(ValueError, match="x of query 7 is not in the gallery"):
        RetrievalTask("toy", "cirr", {"a": "a.png", "b": "b.png"}, [Query(**entry)], True)


def test_wrong_annotations(tmp_path):
    cir_trees.laion_cir(tmp_path)
    (tmp_path / "laion_cir" / "laion_template_info.json").write_text('[{"a": 1}]')
    with pytest.raises(ValueError, match="laion_template_info.json is not a Laion-CIR file"):
        LaionCIR(config(tmp_path)).train_x
    (tmp_path / "laion_cir" / "laion_template_info.json").write_text("[")
    with pytest.raises(ValueError, match="not valid JSON"):
        LaionCIR(config(tmp_path)).train_x


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        (("CIR.FIQ_GALLERY", "small"), "CIR.FIQ_GALLERY"),
        (("CIR.FIQ_CATEGORIES", "['hat']"), "CIR.FIQ_CATEGORIES"),
        (("CIR.FIQ_CAPTION", "or"), "CIR.FIQ_CAPTION"),
    ],
)
def test_wrong_keys(tmp_path, opts, match):
    cir_trees.fashioniq(tmp_path)
    with pytest.raises(ValueError, match=match):
        FashionIQ(config(tmp_path, *opts))


def test_absent_dataset_lists_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="cirr_dataset/cirr/image_splits"):
        CIRR(config(tmp_path))


def test_report(tmp_path, capsys):
    cir_trees.laion_cir(tmp_path)
    assert cir_report.main(["LaionCIR", "--root", str(tmp_path)]) == 0
    assert "10 triplets" in capsys.readouterr().out
    (tmp_path / "laion_cir" / "images" / "0000001.png").write_bytes(b"no image")
    assert cir_report.main(["LaionCIR", "--root", str(tmp_path), "--read"]) == 1
    out = capsys.readouterr().out
    assert "unreadable images: 1\n" in out and "0000001.png" in out and "1 target ids of type int" in out
    assert cir_report.main(["CIRR", "--root", str(tmp_path)]) == 2


def test_report_without_images_counts_the_annotations(tmp_path, capsys):
    for tree, folder in (
        (cir_trees.cirr, "cirr/img_raw"),
        (cir_trees.fashioniq, "fashioniq/images"),
        (cir_trees.laion_cir, "laion_cir/images"),
    ):
        tree(tmp_path)
        (tmp_path / folder).rename(tmp_path / f"gone-{folder.replace('/', '-')}")
    assert cir_report.main(["CIRR", "FashionIQ", "LaionCIR", "--root", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "the images of split val are not below DATASET.ROOT" in out
    assert "CIRR val: 6 queries, 8 gallery images" in out and "FashionIQ toptee val: 5 queries" in out
    assert "train: 10 triplets" in out and "cirr/img_raw/dev/dev-0-0-img0.png" in out
    assert out.count("missing images: 8\n") == 2 + 6  # CIRR's val and test, FashionIQ's categories of both
    with pytest.raises(NoImages):
        CIRR(config(tmp_path)).tasks("val")


def test_report_on_the_real_annotations(shared_data, capsys):
    """No images at this place: everything that the annotations say is counted all the same."""
    assert cir_report.main(["CIRR", "FashionIQ", "LaionCIR", "--root", str(shared_data)]) == 1
    out = capsys.readouterr().out
    assert "CIRR val: 4,181 queries, 2,297 gallery images, 2,165 references, 0 queries without a target" in out
    assert (
        "CIRR test1: 4,148 queries, 2,315 gallery images, 2,178 references, 4,148 queries without a target, 1 empty"
        in out
    )
    assert "FashionIQ shirt val: 2,038 queries, 6,346 gallery images" in out
    gaps = [
        line.split(", ")[-1].split()[0]
        for line in out.splitlines()
        if line.startswith("FashionIQ ") and " val: " in line
    ]
    assert gaps == ["0", "1", "2"]  # dress, shirt, toptee
    assert "train: 32,000 triplets" in out and "2,000 target ids of type int" in out


def test_one_missing_image_does_not_hide_the_folder(tmp_path):
    cir_trees.cirr(tmp_path)
    (tmp_path / "cirr" / "img_raw" / "dev" / "dev-0-0-img0.png").unlink()  # the first of its split
    (task,) = CIRR(config(tmp_path)).tasks("val")
    with pytest.raises(FileNotFoundError, match="1 of the 8 images.*dev-0-0-img0"):
        task.check_images()


def test_report_counts(tmp_path):
    cir_trees.laion_cir(tmp_path)
    dataset = LaionCIR(config(tmp_path))
    counts = describe_triplets(dataset.read_triplets())
    assert (counts["triplets"], counts["references"], counts["targets"], counts["images"]) == (10, 6, 6, 7)
    assert id_types(dataset) == {"target ids of type int": 1, "target ids of type str": 9}


# -- facts that bound results ----------------------------------------------------------------------------------


def asked(*rows):
    """Queries from three letters each: reference, caption, target."""
    return [Query(str(i), reference, (text,), target) for i, (reference, text, target) in enumerate(rows)]


def test_r1_bound_is_what_the_best_ranking_reaches():
    queries = asked("aqx", "aqx", "aqy", "arz", "bqx", "brx", "bry")
    # every ranking that depends on reference and wording only: one first answer per question
    questions = sorted({(q.reference, q.texts) for q in queries})
    best = max(
        sum(dict(zip(questions, answer))[q.reference, q.texts] == q.target for q in queries)
        for answer in itertools.product("xyz", repeat=len(questions))
    )
    assert r1_bound(queries) == pytest.approx(100 * best / len(queries)) and best == 5
    assert sorted(contradictions(queries)) == [2, 2] and repeated(queries) == 0


def test_facts_of_a_small_tree(tmp_path, capsys):
    cir_trees.cirr(tmp_path)
    path = tmp_path / "cirr" / "captions" / "cap.rc2.val.json"
    entries = json.loads(path.read_text())
    entries[1] |= {"reference": entries[0]["reference"], "caption": entries[0]["caption"]}
    entries[1]["img_set"] = entries[0]["img_set"]
    entries[2]["target_soft"] = {entries[2]["reference"]: 1.0, "dev-0-0-img0": 0.5}
    path.write_text(json.dumps(entries))
    assert cir_report.main(["CIRR", "--root", str(tmp_path), "--facts"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "| CIRR val | questions (reference, caption) with several targets | 1 |" in rows
    assert f"| CIRR val | highest R@1 that a method can reach (%) | {100 * 5 / 6:.2f} |" in rows
    assert "| CIRR val | target_soft names the reference with 1 and leaves the target out | 1 |" in rows
    assert "| CIRR test1 | blank captions | 1 |" in rows


def test_facts_in_the_docs_are_those_of_the_real_files(shared_data, capsys):
    assert cir_report.main(["CIRR", "FashionIQ", "LaionCIR", "--root", str(shared_data), "--facts"]) == 0
    table = capsys.readouterr().out.strip()
    page = (Path(__file__).parent.parent.parent / "docs" / "pvlf.md").read_text(encoding="utf-8")
    part = page.partition("<!-- begin: data_report facts -->")[2].partition("<!-- end -->")[0]
    assert part.rpartition("```")[2].strip() == table
    for fact in (
        "CIRR val | questions (reference, caption) with several targets | 6",
        "CIRR val | highest R@1 that a method can reach (%) | 99.86",
        "CIRR val | target_soft names the reference with 1 and leaves the target out | 37",
        "CIRR test1 | queries that repeat another (reference, caption, target) | 4",
        "FashionIQ shirt, toptee val | pictures in both galleries | 121",
    ):
        assert f"| {fact} |" in table


# -- FashionIQ with dead images --------------------------------------------------------------------------------


def test_dead_images_of_all_categories_are_named_before_anything_is_encoded(tmp_path):
    cir_trees.fashioniq(tmp_path)
    for name in ("B0003", "B1004", "B2005"):
        (tmp_path / "fashioniq" / "images" / f"{name}.jpg").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        check_galleries(FashionIQ(config(tmp_path)).tasks("val"))
    for category, name in (("dress", "B0003"), ("shirt", "B1004"), ("toptee", "B2005")):
        assert f"1 of the 8 images of the gallery of FashionIQ {category} val" in str(caught.value)
        assert name in str(caught.value)
    assert "CIR.FIQ_LEAVE_OUT_MISSING True" in str(caught.value)


def test_dead_images_are_left_out_on_request_with_their_queries(tmp_path, capsys):
    cir_trees.fashioniq(tmp_path)
    whole = FashionIQ(config(tmp_path)).tasks("val")
    (tmp_path / "fashioniq" / "images" / "B0003.jpg").unlink()  # target of query 2, reference of query 3
    dress, shirt, _ = FashionIQ(config(tmp_path, "CIR.FIQ_LEAVE_OUT_MISSING", "True")).tasks("val")
    assert dress.left_out == "2 of 5 queries and 1 of 8 gallery images" and not shirt.left_out
    assert [q.id for q in dress.queries] == ["dress-0", "dress-1", "dress-4"]
    assert list(dress.gallery) == [name for name in whole[0].gallery if name != "B0003"]
    assert [list(dress.index)[dress.index[q.target]] for q in dress.queries] == [q.target for q in dress.queries]
    assert "FashionIQ dress val: left out 2 of 5 queries and 1 of 8" in capsys.readouterr().out
    for path in (tmp_path / "fashioniq" / "images").glob("B0*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="8 of the 8 images"):
        FashionIQ(config(tmp_path, "CIR.FIQ_LEAVE_OUT_MISSING", "True")).tasks("val")


def test_results_without_dead_images_are_named_not_comparable_and_never_averaged_with_whole_ones(tmp_path):
    from dassl_prompts.run.composed_tables import metric_rows, over_seeds

    cir_trees.fashioniq(tmp_path)
    (tmp_path / "fashioniq" / "images" / "B2005.jpg").unlink()
    cfg = config(tmp_path, "CIR.FIQ_LEAVE_OUT_MISSING", "True")
    found = {}
    trainer = SimpleNamespace(
        cfg=cfg,
        task_features=lambda task: (torch.randn(len(task.queries), 4), torch.randn(len(task.gallery), 4)),
        record=lambda entry, results: found.setdefault(entry, results),
        _training=True,
    )
    ComposedTrainer.test_dataset(trainer, "FashionIQ", FashionIQ(cfg), "")
    cir_trees.fashioniq(tmp_path)
    ComposedTrainer.test_dataset(trainer, "FashionIQ", FashionIQ(cfg), "")
    assert list(found) == ["FashionIQ(incomplete,not-comparable) val", "FashionIQ val"]
    rows = over_seeds(metric_rows(SimpleNamespace(results=lambda: found, title="x"), "PVLF"))
    assert [row["set"] for row in rows] == list(found)


@pytest.mark.parametrize("below", ["images", ""])
def test_fashioniq_folders_per_category_are_recognised(tmp_path, below):
    cir_trees.fashioniq(tmp_path)
    base = tmp_path / "fashioniq"
    for path in sorted((base / "images").iterdir()):
        folder = base / below / ("dress", "shirt", "toptee")[int(path.name[1])]
        folder.mkdir(exist_ok=True, parents=True)
        path.rename(folder / path.name)
    if not below:
        (base / "images").rmdir()
    tasks = FashionIQ(config(tmp_path)).tasks("val")
    check_galleries(tasks)
    assert tasks[2].gallery["B1000"] == str(base / below / "shirt" / "B1000.jpg")  # shared with shirt
