"""CIRCO: the loader, its metrics against brute force, its submission files and its facts; on the real annotations where the
workplace has them, and on a small tree in the real layout."""

import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts import extend_cfg
from dassl_prompts.composed import circo_submission, data_report
from dassl_prompts.composed.metrics import CIRCO_KS, average_precision, evaluate, summarise
from dassl_prompts.composed.submission import check
from dassl_prompts.composed.triplets import NoImages, Query, RetrievalTask, check_galleries
from dassl_prompts.datasets.circo import CIRCO
from dassl_prompts.engine import get_cfg_default, merge_opts
from dassl_prompts.prepare.__main__ import main as prepare
from tests.datasets import cir_trees

ASPECTS = {
    "addition", "cardinality", "comparative_statement", "compare_change", "direct_addressing", "negation",
    "spatial_relations_background", "statement_with_conjunction", "viewpoint",
}  # fmt: skip


def config(root, *opts):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_opts(cfg, ["DATASET.ROOT", str(root), *opts])
    return cfg


@pytest.fixture
def tree(tmp_path):
    cir_trees.circo(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def real(shared_data):
    """The official annotations; COCO's list of pictures need not be there."""
    if not (shared_data / "circo" / "annotations" / "val.json").is_file():
        pytest.skip(f"CIRCO's annotations are not at {shared_data / 'circo'}")
    return CIRCO(config(shared_data))


def gallery_with(dataset, more):
    """The named pictures among ``more`` others, in an order of its own."""
    names = [*dataset.named(), *(str(10_000_000 + i) for i in range(more))]
    random.Random(0).shuffle(names)
    return dict.fromkeys(names, "")


def features(task, width=24):
    """Queries near one of their answers and near the reference, so that precisions lie between 0 and 1."""
    gallery = F.normalize(torch.randn(len(task.gallery), width), dim=-1)
    rows = torch.stack(
        [
            gallery[[task.index[name] for name in (query.answers or (query.reference,))]].mean(0)
            + 0.3 * gallery[task.index[query.reference]]
            for query in task.queries
        ]
    )
    return F.normalize(rows + 0.12 * torch.randn(len(rows), width), dim=-1), gallery


def brute_force(task, queries, gallery):
    """The official definitions, from sorted lists of names and in plain Python."""
    names = list(task.gallery)
    found = {**{f"mAP@{k}": [] for k in CIRCO_KS}, **{f"R@{k}": [] for k in CIRCO_KS}}
    for query, scores in zip(task.queries, (queries @ gallery.T).tolist()):
        ranking = [names[i] for i in sorted(range(len(names)), key=lambda i: (-scores[i], i))]
        for k in CIRCO_KS:
            right, total = 0, 0.0
            for position, name in enumerate(ranking[:k], 1):
                if name in query.targets:
                    right += 1
                    total += right / position
            precision = total / min(len(query.targets), k)
            found[f"mAP@{k}"].append(precision)
            found[f"R@{k}"].append(float(query.target in ranking[:k]))
            if k == 10:
                for aspect in query.aspects:
                    found.setdefault(f"mAP@10 {aspect}", []).append(precision)
    return {key: 100 * sum(values) / len(values) for key, values in found.items()}


def assert_equals_brute_force(task, queries, gallery):
    ours, expected = evaluate(task, queries, gallery), brute_force(task, queries, gallery)
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert ours[key] == pytest.approx(value, abs=1e-9), key
    return ours


# -- metrics -------------------------------------------------------------------------------------------------


def test_real_val_equals_brute_force(real):
    task = real.task("val", gallery_with(real, 3000))
    assert len(task.queries) == 220 and sum(len(q.targets) for q in task.queries) == 916
    ours = assert_equals_brute_force(task, *features(task))
    values = [ours[f"mAP@{k}"] for k in CIRCO_KS]
    assert 5 < min(values) < max(values) < 95 and len(set(values)) == 4, "the features must be able to show an error"
    assert 5 < ours["R@5"] < ours["R@10"] < ours["R@25"] < ours["R@50"] < 100
    assert {key.partition(" ")[2] for key in ours if " " in key} == ASPECTS


def test_made_up_val_equals_brute_force(tree):
    (task,) = CIRCO(config(tree)).tasks("val")
    ours = assert_equals_brute_force(task, *features(task))
    assert 0 < ours["mAP@5"] < 100 and set(ours) >= {"mAP@10 addition", "mAP@10 negation"}
    # the same pictures twice in the gallery's features: ties go to the smaller index
    queries, gallery = features(task)
    gallery[[3, 7]] = gallery[[5, 2]]
    assert_equals_brute_force(task, queries, gallery)


def test_the_reference_stays_in_the_ranking(tree):
    (task,) = CIRCO(config(tree)).tasks("val")
    assert not task.remove_reference
    gallery = torch.eye(len(task.gallery))
    queries = torch.stack(
        [gallery[task.index[q.reference]] + 0.5 * sum(gallery[task.index[n]] for n in q.targets) for q in task.queries]
    )
    # the reference comes first, the n answers at 2 ... n + 1
    expected = [sum(i / (i + 1) for i in range(1, n + 1)) / n for n in (len(q.targets) for q in task.queries)]
    assert evaluate(task, queries, gallery)["mAP@10"] == pytest.approx(100 * sum(expected) / len(expected), abs=1e-9)


def test_denominator_is_the_smaller_of_k_and_the_number_of_answers():
    hits = torch.ones(2, 10, dtype=torch.bool)
    hits[1, 2:] = False
    counts = torch.tensor([14, 3])
    assert average_precision(hits, counts, 5).tolist() == pytest.approx([1.0, 2 / 3])
    assert average_precision(hits, counts, 10).tolist() == pytest.approx([1.0, 2 / 3])
    assert average_precision(hits, counts, 25).tolist() == pytest.approx([10 / 14, 2 / 3])  # a gallery of ten


def test_summary_is_the_mean_of_the_four_precisions(tree):
    (task,) = CIRCO(config(tree)).tasks("val")
    metrics = {f"mAP@{k}": float(k) for k in CIRCO_KS} | {"R@5": 99.0}
    assert next(iter(summarise([task], [metrics]).items())) == ("mean", 22.5)


# -- the loader ----------------------------------------------------------------------------------------------


def test_tree(tree):
    dataset = CIRCO(config(tree))
    (task,) = dataset.tasks("val")
    check_galleries([task])
    assert list(task.gallery)[:3] == ["581929", "37", "1001"]  # COCO's order, which decides ties
    assert task.gallery["37"] == str(tree / "circo/COCO2017_unlabeled/unlabeled2017/000000000037.jpg")
    assert task.queries[1] == Query(
        "1", "37", ("green",), "1001", targets=("1001", "205", "99"), aspects=("addition", "viewpoint")
    )
    (test,) = dataset.tasks("test")
    assert len(test.queries) == 4 and all(q.target is None and not q.answers for q in test.queries)
    assert dataset.train_x == []
    with pytest.raises(ValueError, match="no split 'train'"):
        dataset.tasks("train")


def test_real_test_split(real):
    task = real.task("test", gallery_with(real, 0))
    assert [q.id for q in task.queries] == [str(i) for i in range(800)]
    assert all(q.target is None for q in task.queries)


@pytest.mark.parametrize("place", ["unlabeled2017", "../coco/unlabeled2017"])
def test_pictures_elsewhere(tree, place):
    (tree / "circo" / place).parent.mkdir(exist_ok=True)
    (tree / "circo/COCO2017_unlabeled/unlabeled2017").rename(tree / "circo" / place)
    if ".." in place:
        (tree / "circo/COCO2017_unlabeled/annotations").rename(tree / "coco/annotations")
    check_galleries(CIRCO(config(tree)).tasks("val"))


def test_without_list_or_pictures(tree, capsys):
    info = tree / "circo/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    info.write_text('{"annotations": []}')
    with pytest.raises(ValueError, match="image_info_unlabeled2017.json is not COCO's list"):
        CIRCO(config(tree)).tasks("val")
    info.unlink()
    with pytest.raises(NoImages, match="COCO's list of images"):
        CIRCO(config(tree)).tasks("val")
    assert data_report.main(["CIRCO", "--root", str(tree)]) == 1  # though the named pictures are all there
    out = capsys.readouterr().out
    assert "COCO's list of images" in out and "CIRCO val: 5 queries" in out and "14 targets" in out


def test_digest_follows_the_answers(tree):
    before = CIRCO(config(tree)).digests
    path = tree / "circo/annotations/val.json"
    entries = json.loads(path.read_text())
    entries[0]["gt_img_ids"].reverse()
    path.write_text(json.dumps(entries))
    assert CIRCO(config(tree)).digests != before


@pytest.mark.parametrize("targets", [("b", "b"), ("c", "a")])
def test_wrong_targets(targets):
    gallery = dict.fromkeys("abc", "x")
    with pytest.raises(ValueError, match="targets of query 7"):
        RetrievalTask("toy", "circo", gallery, [Query("7", "a", ("t",), "b", targets=targets)], False)
    with pytest.raises(ValueError, match="target z of query 7 is not in the gallery"):
        RetrievalTask("toy", "circo", gallery, [Query("7", "a", ("t",), "b", targets=("b", "z"))], False)


def test_check_by_prepare(tree, capsys):
    assert prepare(["CIRCO", "--root", str(tree), "--check"]) == 0
    assert "12 gallery images" in capsys.readouterr().out
    (tree / "circo/COCO2017_unlabeled/unlabeled2017/000000000037.jpg").write_bytes(b"no picture")
    assert prepare(["CIRCO", "--root", str(tree), "--check"]) == 8
    shown = capsys.readouterr()
    assert "000000000037.jpg" in shown.out and "image_info_unlabeled2017.json" in shown.err
    assert prepare(["circo", "--root", str(tree)]) == 3


# -- submissions ---------------------------------------------------------------------------------------------


def test_submission(tree, tmp_path, capsys):
    (task,) = CIRCO(config(tree)).tasks("test")
    queries, gallery = features(task)
    (path,) = circo_submission.write(task, queries, gallery, tmp_path, "PVLF last")
    assert path.name == "circo_PVLF-last.json"
    content = json.loads(path.read_text())
    names = [int(name) for name in task.gallery]
    assert list(content) == ["0", "1", "2", "3"]
    for row, scores in zip(content.values(), queries @ gallery.T):
        assert row == [names[i] for i in scores.argsort(descending=True).tolist()]  # a gallery of twelve, all of it
    assert circo_submission.main([str(path), "--root", str(tree)]) == 0
    del content["2"]
    path.write_text(json.dumps(content))
    assert circo_submission.main([str(path), "--root", str(tree)]) == 1
    assert "1 missing query ids, such as 2" in capsys.readouterr().out


def test_real_submission(real, tmp_path):
    task = real.task("test", gallery_with(real, 500))
    (path,) = circo_submission.write(task, *features(task), tmp_path, "x")
    content = json.loads(path.read_text())
    assert len(content) == 800 and all(len(row) == 50 and type(row[0]) is int for row in content.values())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.update({"99": []}), "1 unknown query ids, such as 99"),
        (lambda s: s.update({"2": s["2"][:-1]}), "11 names instead of 12"),
        (lambda s: s["2"].__setitem__(0, s["2"][1]), "twice"),
        (lambda s: s["2"].__setitem__(0, 5), "5 is not in the gallery"),
        (lambda s: s.update({"2": [str(n) for n in s["2"]]}), "numbers"),
    ],
)
def test_invalid_submissions(tree, change, problem):
    (task,) = CIRCO(config(tree)).tasks("test")
    submission = circo_submission.build(task, *features(task))
    assert circo_submission.problems(submission, task) == []
    change(submission)
    assert any(problem in line for line in circo_submission.problems(submission, task))
    with pytest.raises(ValueError, match="not valid for CIRCO test"):
        check(submission, task, circo_submission.problems)


# -- facts ---------------------------------------------------------------------------------------------------


def test_facts_of_a_small_tree(tree, capsys):
    path = tree / "circo/annotations/val.json"
    entries = json.loads(path.read_text())
    entries[0]["gt_img_ids"].reverse()
    path.write_text(json.dumps(entries))
    assert data_report.main(["CIRCO", "--root", str(tree), "--facts"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "| CIRCO val | the target is the first of the ground truths | 4 of 5 |" in rows
    assert "| CIRCO val | ground truths per query: least, mean, most | 2, 2.80, 4 |" in rows
    assert "| CIRCO test | queries | 4 |" in rows


def test_facts_in_the_docs_are_those_of_the_real_files(real, shared_data, capsys):
    assert data_report.main(["CIRCO", "--root", str(shared_data), "--facts"]) == 0
    table = capsys.readouterr().out.strip()
    page = (Path(__file__).parent.parent.parent / "docs" / "pvlf.md").read_text(encoding="utf-8")
    part = page.partition("<!-- begin: data_report facts CIRCO -->")[2].partition("<!-- end -->")[0]
    assert part.rpartition("```")[2].strip() == table
    assert "| CIRCO val | the target is the first of the ground truths | 220 of 220 |" in table
