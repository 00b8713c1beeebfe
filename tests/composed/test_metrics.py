"""CIRR and FashionIQ metrics and submissions against brute force on the real annotations."""

import itertools
import json

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts import extend_cfg
from dassl_prompts.composed import cirr_submission
from dassl_prompts.composed.metrics import best, best_members, evaluate, summarise
from dassl_prompts.composed.submission import check
from dassl_prompts.composed.triplets import ImageFolder, Query, RetrievalTask
from dassl_prompts.datasets.cirr import CIRR
from dassl_prompts.datasets.fashioniq import FashionIQ
from dassl_prompts.engine import get_cfg_default, merge_opts


def config(root, *opts):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_opts(cfg, ["DATASET.ROOT", str(root), *opts])
    return cfg


def toy(n=8, protocol="cirr", remove=True):
    names = [f"img{i}" for i in range(n)]
    members = tuple(names[:6])
    queries = [
        Query(str(i), names[i], ("t",), names[(i + 1) % 6], tuple(m for m in members if m != names[i]))
        for i in range(6)
    ]
    return RetrievalTask("toy val", protocol, {name: f"{name}.png" for name in names}, queries, remove)


def mixed_features(task, width=32):
    """Random features with recalls between 0 and 100: queries mix target, reference and noise."""
    gallery = F.normalize(torch.randn(len(task.gallery), width), dim=-1)
    target, reference = (
        torch.tensor([task.index[n] for n in names])
        for names in zip(*[(q.target or q.reference, q.reference) for q in task.queries])
    )
    queries = 0.35 * gallery[target] + 0.3 * gallery[reference] + 0.15 * torch.randn(len(target), width)
    return F.normalize(queries, dim=-1), gallery


def brute_force(task, queries, gallery):
    """Sort every query's whole gallery in pure Python; hits per metric."""
    names = list(task.gallery)
    hits = {"recall": [], "subset": []}
    for query, row in zip(task.queries, (queries @ gallery.T).tolist()):
        order = sorted(range(len(names)), key=lambda i: (-row[i], i))
        order = [names[i] for i in order if not (task.remove_reference and names[i] == query.reference)]
        hits["recall"].append(order.index(query.target) + 1)
        if query.members:
            hits["subset"].append([n for n in order if n in query.members].index(query.target) + 1)
    return hits


def recall(ranks, k):
    return 100 * sum(r <= k for r in ranks) / len(ranks)


def assert_equals_brute_force(task, queries, gallery):
    ours, ranks = evaluate(task, queries, gallery), brute_force(task, queries, gallery)
    for key, value in ours.items():
        if key != "average":
            kind, k = key.split("@")
            assert value == pytest.approx(recall(ranks["subset" if kind == "Rs" else "recall"], int(k)), abs=1e-9), key
    return ours


def test_real_cirr_val_equals_brute_force(shared_data):
    dataset = CIRR(config(shared_data))
    task = dataset.task("val", dataset.read("image_splits", "split.rc2.val.json"))
    ours = assert_equals_brute_force(task, *mixed_features(task))
    assert (
        5 < ours["R@1"] < ours["R@5"] < ours["R@10"] < ours["R@50"] < 100
    )  # the features must be able to show an error
    assert 20 < ours["Rs@1"] < ours["Rs@2"] < ours["Rs@3"] < 100
    assert ours["average"] == (ours["R@5"] + ours["Rs@1"]) / 2


def test_cirrs_average_is_that_of_recall_at_5_and_subset_recall_at_1():
    """On a made-up set of its shape, whose recalls all differ: no other pair of them has this mean."""
    names = [f"img{i}" for i in range(240)]
    queries = []
    for i, name in enumerate(names):
        members = tuple(n for n in names[i - i % 6 : i - i % 6 + 6] if n != name)
        queries.append(Query(str(i), name, ("t",), members[(i + 1) % 5], members))
    task = RetrievalTask("made up", "cirr", {name: f"{name}.png" for name in names}, queries, True)
    ours = assert_equals_brute_force(task, *mixed_features(task, width=16))
    recalls = {key: value for key, value in ours.items() if key != "average"}
    assert len({round(value, 2) for value in recalls.values()}) == 7, "the recalls must be able to show an error"
    assert ours["average"] == (ours["R@5"] + ours["Rs@1"]) / 2
    means = [(a + b) / 2 for a, b in itertools.combinations(recalls.values(), 2)]
    assert sum(abs(mean - ours["average"]) < 1e-9 for mean in means) == 1


def test_equal_pictures_tie_in_the_subset_too():
    """The submission's first and the recall come from one ranking; a product of a few rows may round otherwise."""
    task, gallery = toy(), F.normalize(torch.randn(8, 131), dim=-1)
    gallery[[1, 2, 3]] = gallery[5].clone()
    queries = F.normalize(gallery[[5] * 6] + 0.1 * torch.randn(6, 131), dim=-1)
    ours = assert_equals_brute_force(task, queries, gallery)
    first = [row[0] for row in best_members(task, queries, gallery, 1)]
    assert first == ["img1", "img2", *["img1"] * 4]
    assert ours["Rs@1"] == 100 * sum(a == q.target for a, q in zip(first, task.queries)) / 6


@pytest.mark.parametrize("category", ["dress", "shirt", "toptee"])
def test_real_fashioniq_equals_brute_force(shared_data, category):
    task = FashionIQ(config(shared_data)).task(category, "val", ImageFolder("none"))
    task = RetrievalTask(task.name, task.protocol, task.gallery, task.queries[:400], task.remove_reference)
    ours = assert_equals_brute_force(task, *mixed_features(task))
    assert set(ours) == {"R@10", "R@50"} and 5 < ours["R@10"] < ours["R@50"] < 100


def test_a_case_worked_by_hand():
    task = toy()
    gallery = torch.eye(8)
    queries = torch.stack([gallery[task.index[q.target]] for q in task.queries])
    assert evaluate(task, queries, gallery)["R@1"] == 100
    queries[0] = gallery[7]  # outside the image set: misses R@1, while the subset's ranking is a tie won by index
    metrics = evaluate(task, queries, gallery)
    assert metrics["R@1"] == pytest.approx(100 * 5 / 6) and metrics["Rs@1"] == 100


def test_reference_takes_no_part_in_cirr_but_does_in_fashioniq():
    gallery = F.normalize(torch.randn(8, 5), dim=-1)
    for remove in (True, False):
        task = toy(remove=remove)
        queries = torch.stack([gallery[task.index[q.reference]] for q in task.queries])
        first = [row[0] for row in best(task, queries, gallery, 3)]
        assert all((name == q.reference) != remove for name, q in zip(first, task.queries))
        assert_equals_brute_force(task, queries + 0.3 * torch.randn_like(queries), gallery)


def test_ties_go_to_the_smaller_index():
    task = toy()
    gallery = torch.ones(8, 4) / 2
    queries = torch.ones(6, 4) / 2
    assert_equals_brute_force(task, queries, gallery)


def test_summary():
    fiq = [toy(protocol="fashioniq") for _ in range(2)]
    fiq = [
        RetrievalTask(f"FashionIQ {c} val", t.protocol, t.gallery, t.queries, False)
        for c, t in zip(("dress", "shirt"), fiq)
    ]
    values = summarise(fiq, [{"R@10": 10.0, "R@50": 40.0}, {"R@10": 20.0, "R@50": 60.0}])
    assert values == {
        "mean": 32.5,
        "R@10": 15.0,
        "R@50": 50.0,
        "average": 32.5,
        "dress R@10": 10.0,
        "dress R@50": 40.0,
        "shirt R@10": 20.0,
        "shirt R@50": 60.0,
    }
    seven = dict(zip(("R@1", "R@5", "R@10", "R@50", "Rs@1", "Rs@2", "Rs@3"), map(float, range(7))))
    assert next(iter(summarise([toy()], [{**seven, "average": 99.0}]).items())) == ("mean", 3.0)


def test_wrong_features_and_missing_targets():
    task = toy()
    with pytest.raises(ValueError, match="6 queries and 8 images"):
        evaluate(task, torch.randn(5, 4), torch.randn(8, 4))
    blind = RetrievalTask("t", "cirr", task.gallery, [Query("1", "img0", ("t",), None)], True)
    with pytest.raises(ValueError, match="no public targets"):
        evaluate(blind, torch.randn(1, 4), torch.randn(8, 4))
    plain = RetrievalTask("t", "cirr", task.gallery, [Query("1", "img0", ("t",), "img1")], True)
    with pytest.raises(ValueError, match="no image sets"):
        evaluate(plain, torch.randn(1, 4), torch.randn(8, 4))


# -- submissions ---------------------------------------------------------------------------------------------


def real_test1(shared_data):
    dataset = CIRR(config(shared_data))
    return dataset.task("test1", dataset.read("image_splits", "split.rc2.test1.json"))


def test_real_submission(shared_data, tmp_path):
    task = real_test1(shared_data)
    queries, gallery = mixed_features(task)
    paths = cirr_submission.write(task, queries, gallery, tmp_path, "PVLF last")
    assert [p.name for p in paths] == ["cirr_PVLF-last_recall.json", "cirr_PVLF-last_recall_subset.json"]
    for path, length in zip(paths, (50, 3)):
        assert path.stat().st_size < 5_000_000
        content = json.loads(path.read_text())
        assert len(content) == 4148 + 2 and content["version"] == "rc2"
        assert cirr_submission.problems(content, task) == []
        names = list(task.gallery)
        for query, row in list(zip(task.queries, queries @ gallery.T))[::100]:
            order = [names[i] for i in row.argsort(descending=True).tolist() if names[i] != query.reference]
            if length == 3:
                order = [n for n in order if n in query.members]
            assert content[query.id] == order[:length]
    assert cirr_submission.main([*map(str, paths), "--root", str(shared_data)]) == 0


def test_size_of_the_file_itself_counts(shared_data, tmp_path, capsys):
    task = real_test1(shared_data)
    paths = cirr_submission.write(task, *mixed_features(task), tmp_path, "PVLF")
    content = json.loads(paths[0].read_text())
    paths[0].write_text(json.dumps(content, indent=4))  # the same lists, with white space
    assert paths[0].stat().st_size > 5_000_000
    assert cirr_submission.main([*map(str, paths), "--root", str(shared_data)]) == 1
    first, fault, second = capsys.readouterr().out.splitlines()
    assert "1 problems" in first and "the server takes 5,000,000" in fault and second.endswith("fine")


def test_the_organisers_demo_is_valid(shared_data):
    demo = json.loads((shared_data / "cirr" / "demo" / "test1_pred_ranks_recall_subset.json").read_text())
    assert cirr_submission.problems(demo, real_test1(shared_data)) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.pop("3"), "1 missing pair ids, such as 3"),
        (lambda s: s.update({"99": []}), "1 unknown pair ids, such as 99"),
        (lambda s: s.update(version="rc1"), "version"),
        (lambda s: s.update(metric="r"), "metric"),
        (lambda s: s["2"].__setitem__(0, s["2"][1]), "twice"),
        (lambda s: s["2"].__setitem__(0, "img2"), "own reference"),
        (lambda s: s["2"].__setitem__(0, "nowhere"), "not in the gallery"),
        (lambda s: s["2"].pop(), "6 names instead of 7"),
        (lambda s: s.update({"2": "img1"}), "not a list"),
    ],
)
def test_invalid_submissions(change, problem):
    task = toy()
    gallery = torch.randn(8, 4)
    submission = cirr_submission.build(task, gallery[:6], gallery)["recall"]
    assert cirr_submission.problems(submission, task) == []
    change(submission)
    assert any(problem in line for line in cirr_submission.problems(submission, task))
    with pytest.raises(ValueError, match="not valid"):
        check(submission, task, cirr_submission.problems)


def test_subset_names_must_be_members():
    task = toy()
    gallery = torch.randn(8, 4)
    submission = cirr_submission.build(task, gallery[:6], gallery)["recall_subset"]
    submission["2"][0] = "img7"
    assert "not in its image set" in cirr_submission.problems(submission, task)[0]


def test_too_large_submission_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(cirr_submission, "MAX_BYTES", 100)
    task, gallery = toy(), torch.randn(8, 4)
    with pytest.raises(ValueError, match="bytes, the server takes 100"):
        cirr_submission.write(task, gallery[:6], gallery, tmp_path, "PVLF")
    assert list(tmp_path.iterdir()) == []
