"""Hard negatives: the sampler against hand-made rankings and the released procedure, the pool, the loader."""

import json
import random

import pytest
import torch

from dassl_prompts.trainers.dpc.negatives import ImagePool, MinedLoader, hard_negatives, lay_out, read_official_json


def ranking(*rows):
    """Scores that rank the classes of each row in the order given."""
    scores = torch.zeros(len(rows), len(rows[0]))
    for i, row in enumerate(rows):
        for place, c in enumerate(row):
            scores[i, c] = -place
    return scores


def test_truth_among_candidates_leaves_k_minus_1():
    scores = ranking([2, 0, 1, 3, 4])
    assert hard_negatives(scores, [0], 3) == [[2, 1]]
    assert hard_negatives(scores, [0], 3, cap="k") == [[2, 1]]


def test_truth_outside_candidates_keeps_k_only_in_the_released_code():
    scores = ranking([2, 3, 1, 4, 0])
    assert hard_negatives(scores, [0], 3) == [[2, 3]]
    assert hard_negatives(scores, [0], 3, cap="k") == [[2, 3, 1]]


def test_no_class_twice_in_a_step_and_no_anchor_class():
    scores = ranking([0, 1, 2, 3, 4, 5], [3, 2, 1, 0, 4, 5])
    assert hard_negatives(scores, [0, 3], 4) == [[1, 2], []]
    assert hard_negatives(scores, [0, 3], 4, dedup=False) == [[1, 2, 3], [2, 1, 0]]


def test_fill_draws_from_its_range_and_never_the_truth():
    scores = ranking([0, 1, 2, 3, 4, 5])
    for seed in range(50):
        [found] = hard_negatives(scores, [0], 1, min_fill=2, fill_range=(1, 4), rng=random.Random(seed))
        assert len(set(found)) == len(found) <= 2 and set(found) <= {1, 2, 3, 4}
    reached = {c for s in range(200) for c in hard_negatives(scores, [0], 1, min_fill=2, rng=random.Random(s))[0]}
    assert reached == {1, 2, 3, 4, 5}


def test_equal_scores_prefer_the_lower_class():
    assert hard_negatives(torch.zeros(1, 6), [0], 4) == [[1, 2, 3]]


@pytest.mark.parametrize("k", [0, 7])
def test_k_outside_the_classes_is_refused(k):
    with pytest.raises(ValueError, match="between 1 and the number of classes"):
        hard_negatives(torch.zeros(1, 6), [0], k)


def released_sampler(scores, labels, k, rng):
    """The procedure of specs/dpc.md 4.4 written as loops."""
    n = scores.shape[1]
    running, groups = list(labels), []
    for b, label in enumerate(labels):
        top = sorted(range(n), key=lambda c: (-float(scores[b, c]), c))[:k]
        found = []
        for c in top:
            if c == label or c in running:
                continue
            found.append(c)
        running += found
        tries = 0
        while len(found) < 2 and tries < n - 2:
            c = rng.randint(1, n - 2)
            tries += 1
            if c != label and c not in running:
                found.append(c)
                running.append(c)
        groups.append(found)
    return groups


@pytest.mark.parametrize("n_classes, batch, k", [(98, 4, 8), (24, 4, 8), (12, 8, 4), (40, 16, 2), (5, 4, 4)])
def test_equals_the_released_procedure(n_classes, batch, k):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(batch, n_classes, generator=generator)
        labels = torch.randint(n_classes, (batch,), generator=generator).tolist()
        ours = hard_negatives(
            scores, labels, k, cap="k", min_fill=2, fill_range=(1, n_classes - 2), rng=random.Random(seed)
        )
        assert ours == released_sampler(scores, labels, k, random.Random(seed))


@pytest.mark.parametrize("share, rows, drawn", [(False, [0, 3, 4, 1, 5, 2, 6, 7], [1, 2, 2, 1, 7]),
                                                (True, [0, 3, 4, 1, 4, 2, 3, 1], [1, 2])])  # fmt: skip
def test_pairs_of_an_anchor_follow_it_and_show_one_image_per_class_if_shared(share, rows, drawn):
    step = lay_out([5, 7, 5], [[1, 2], [2], [1, 7]], share)
    assert step.labels == [5, 1, 2, 7, 2, 5, 1, 7]
    assert (step.rows, step.drawn, step.anchors) == (rows, drawn, [0, 3, 5])
    images = [5, 7, 5, *step.drawn]  # every image's class: three anchors, then what is drawn
    assert [images[row] for row in step.rows] == step.labels


class Noisy:
    """Item i is i plus random augmentation."""

    def __getitem__(self, i):
        return {"img": i + torch.rand(3, 2, 2)}


@pytest.mark.parametrize("workers", [0, 2])
def test_pool_depends_on_seeds_only(workers):
    pool = ImagePool(Noisy(), workers)
    before = torch.random.get_rng_state()
    got = pool.submit([4, 9, 4], [11, 12, 13])()
    assert torch.equal(torch.random.get_rng_state(), before)
    pool.close()
    expected = []
    for index, seed in ((4, 11), (9, 12), (4, 13)):
        torch.manual_seed(seed)
        expected.append(index + torch.rand(3, 2, 2))
    assert torch.equal(got, torch.stack(expected))


def make_loader(seed=1):
    batches = [
        {"img": torch.full((2, 3, 2, 2), -1.0 - n), "label": torch.tensor([0, 2]), "index": torch.tensor([0, 1])}
        for n in range(4)
    ]
    by_class = [[0, 1], [10, 11, 12], [20], [30, 31]]
    return MinedLoader(
        batches, lambda images, labels, rng: ([[1], [3]], {"note": 7}), by_class, ImagePool(Noisy()), seed
    )


def test_loader_aligns_images_and_classes():
    batches = list(make_loader())
    assert len(batches) == 4
    for number, batch in enumerate(batches):
        assert batch["label"].tolist() == [0, 1, 2, 3]
        assert batch["anchors"].tolist() == [0, 2] and batch["note"] == 7
        assert batch["rows"].tolist() == [0, 2, 1, 3] and (batch["img"][:2] == -1.0 - number).all()
        first, second = batch["negative_index"]
        assert first in (10, 11, 12) and second in (30, 31)
        assert (batch["img"][2].floor() == first).all() and (batch["img"][3].floor() == second).all()


def test_loader_repeats_an_epoch_exactly_and_changes_between_epochs():
    loader = make_loader()
    first = torch.stack([b["img"] for b in loader])
    assert torch.equal(first, torch.stack([b["img"] for b in loader]))
    loader.epoch = 1
    assert not torch.equal(first, torch.stack([b["img"] for b in loader]))


# -- the official annotation format ----------------------------------------------------------------------------------


class Dataset:
    def __init__(self, root):
        from dassl_prompts.engine import Datum

        def datum(relative, label, name):
            path = root / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
            return Datum(impath=str(path), label=label, classname=name)

        self.classnames = ["abbey", "bow window"]
        self.train_x = [datum("img/a/abbey/1.jpg", 0, "abbey"), datum("img/b/bow_window/indoor/1.jpg", 1, "bow window")]
        self.val = []
        self.test = [datum("img/a/abbey/9.jpg", 0, "abbey")]


def write_json(path, **classes):
    path.write_text(json.dumps({"train": [{name: [0, paths] for name, paths in classes.items()}]}))
    return str(path)


def test_official_json_resolves_folders_of_different_depth(tmp_path):
    dataset = Dataset(tmp_path)
    path = write_json(tmp_path / "SPLE_SUN397.json", abbey=["a/abbey/1.jpg"], bow_window=["b/bow_window/indoor/1.jpg"])
    items = read_official_json(path, dataset)
    assert [(i.label, i.impath) for i in items] == [(d.label, d.impath) for d in dataset.train_x]


@pytest.mark.parametrize(
    "classes, message",
    [
        ({"abbey": ["a/abbey/1.jpg"]}, "no images for class 'bow window'"),
        ({"abbey": ["a/abbey/9.jpg"], "bow_window": ["b/bow_window/indoor/1.jpg"]}, "test image"),
        ({"abbey": ["x/1.jpg"], "bow_window": ["b/bow_window/indoor/1.jpg"]}, "exists under none"),
    ],
)
def test_official_json_refuses_what_would_be_wrong(tmp_path, classes, message):
    path = write_json(tmp_path / "SPLE_SUN397.json", **classes)
    with pytest.raises(ValueError, match=message):
        read_official_json(path, Dataset(tmp_path))


def test_other_json_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match="not an SPLE file"):
        read_official_json(str(path), Dataset(tmp_path))
