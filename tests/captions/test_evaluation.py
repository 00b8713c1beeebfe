"""Recall both ways against sorting by hand, equal texts, several captions per image, re-ranking, files, the
evaluator.
"""

import numpy as np
import pytest
import torch

from dassl_prompts.captions.evaluation import (
    Retrieval,
    evaluate,
    extend_cfg,
    load_features,
    per_class,
    retrieval_ranks,
    save_features,
    summarise,
)
from dassl_prompts.captions.gallery import Gallery, Negatives
from dassl_prompts.captions.negatives import given_negatives
from dassl_prompts.captions.records import read_records
from dassl_prompts.engine import get_cfg_default, merge_opts
from dassl_prompts.fdrd.domains import get_domain
from dassl_prompts.ranking.exact import category_ranks, equal_groups


def brute_ranks(queries, gallery, right):
    """Rank of the best right answer; equal scores by index."""
    ranks = []
    for i, q in enumerate(queries):
        order = sorted(range(len(gallery)), key=lambda j: (-float(q @ gallery[j]), j))
        ranks.append(min(order.index(j) + 1 for j in right[i]))
    return ranks


def random_gallery(n=20, m=20, **changes):
    return Gallery(torch.randn(n, 6), torch.randn(m, 6), **changes)


def test_one_caption_per_image_equals_brute_force():
    gallery = random_gallery()
    ranks = retrieval_ranks(gallery, chunk=7)
    own = [[i] for i in range(20)]
    assert ranks["i2t"].tolist() == brute_ranks(gallery.image, gallery.text, own)
    assert ranks["t2i"].tolist() == brute_ranks(gallery.text, gallery.image, own)


def test_several_captions_per_image_equal_brute_force():
    owner = torch.tensor([0, 0, 1, 2, 2, 2, 3])
    gallery = random_gallery(4, 7, image_of_text=owner)
    ranks = retrieval_ranks(gallery)
    assert ranks["i2t"].tolist() == brute_ranks(gallery.image, gallery.text, [[0, 1], [2], [3, 4, 5], [6]])
    assert ranks["t2i"].tolist() == brute_ranks(gallery.text, gallery.image, [[int(o)] for o in owner])


def test_equal_texts_count_when_asked():
    captions = ["a", "b", "a", "c", "b", "d"]
    gallery = random_gallery(6, 6, captions=captions)
    for j, i in ((2, 0), (4, 1)):
        gallery.text[j] = gallery.text[i]
    strict, equal = retrieval_ranks(gallery), retrieval_ranks(gallery, text_equal=True)
    groups = [[j for j in range(6) if captions[j] == captions[i]] for i in range(6)]
    for direction, sides in {
        "i2t": (gallery.image, gallery.text),
        "t2i": (gallery.text, gallery.image),
    }.items():
        assert strict[direction].tolist() == brute_ranks(*sides, [[i] for i in range(6)])
        assert equal[direction].tolist() == brute_ranks(*sides, groups)
    # equal captions tie, and the tie goes to the smaller index
    assert strict["i2t"][2] > equal["i2t"][2]
    with pytest.raises(ValueError, match="needs the caption texts"):
        retrieval_ranks(random_gallery(), text_equal=True)


def test_reranking_reorders_the_first_candidates_only():
    gallery = random_gallery(12, 12)
    table = torch.randn(12, 12)
    ranks = retrieval_ranks(gallery, rerank=(4, lambda image, text: table[image, text]))
    plain = retrieval_ranks(gallery)
    scores = gallery.image @ gallery.text.t()
    for direction, s, new in (("i2t", scores, table), ("t2i", scores.t(), table.t())):
        for q in range(12):
            first = sorted(range(12), key=lambda j: (-float(s[q, j]), j))[:4]
            wanted = int(plain[direction][q])
            if q in first:
                wanted = sorted(first, key=lambda j: (-float(new[q, j]), j)).index(q) + 1
            assert int(ranks[direction][q]) == wanted


def test_reranking_with_the_same_scores_changes_nothing():
    gallery = random_gallery(12, 12)
    ranks = retrieval_ranks(gallery, rerank=(5, lambda image, text: (gallery.image[image] * gallery.text[text]).sum(1)))
    assert all(torch.equal(ranks[d], r) for d, r in retrieval_ranks(gallery).items())


def test_summary_and_classes_by_hand():
    ranks = {"i2t": torch.tensor([1, 2, 6, 20]), "t2i": torch.tensor([1, 1, 5, 11])}
    results = summarise(ranks)
    assert list(results)[0] == "mean_r1"
    assert results == {
        "mean_r1": 37.5,
        "i2t_r1": 25.0,
        "i2t_r5": 50.0,
        "i2t_r10": 75.0,
        "t2i_r1": 50.0,
        "t2i_r5": 75.0,
        "t2i_r10": 75.0,
    }
    gallery = random_gallery(4, 4, labels=torch.tensor([0, 0, 3, 3]))
    assert per_class(ranks, gallery) == {
        0: {"i2t": 50.0, "t2i": 100.0, "total": 2},
        3: {"i2t": 0.0, "t2i": 0.0, "total": 2},
    }


def brute_categories(gallery, order):
    """What ``categories`` and ``negative_accuracy`` give, by sorting and counting; ``order(direction, query)`` is the ranking."""
    owner, label = gallery.image_of_text.tolist(), gallery.labels.tolist()
    of_text = [label[i] for i in owner]
    sizes, results = {"i2t": len(label), "t2i": len(owner)}, {}
    for direction, size in sizes.items():
        mine, theirs = (label, of_text) if direction == "i2t" else (of_text, label)
        is_right = lambda q, j, d=direction: owner[j] == q if d == "i2t" else owner[q] == j
        ranked = [order(direction, q) for q in range(size)]
        first = [row[0] for row in ranked]
        wrong = [q for q in range(size) if not is_right(q, first[q])]
        other = [q for q in wrong if theirs[first[q]] != mine[q]]
        results[f"{direction}_wrong_category"] = 100 * len(other) / size
        results[f"{direction}_wrong_attributes"] = 100 * (len(wrong) - len(other)) / size
        inside = [[j for j in row if theirs[j] == mine[q]] for q, row in enumerate(ranked)]
        for k in (1, 5, 10):
            results[f"{direction}_category_r{k}"] = (
                100 * sum(any(theirs[j] == mine[q] for j in ranked[q][:k]) for q in range(size)) / size
            )
            results[f"{direction}_within_r{k}"] = (
                100 * sum(any(is_right(q, j) for j in inside[q][:k]) for q in range(size)) / size
            )
    if gallery.negatives is not None:
        rows = list(zip(gallery.negatives.caption.tolist(), gallery.negatives.kind.tolist(), gallery.negatives.text))
        for number, kind in enumerate(("category", "attributes")):
            asked = {c for c, k, _ in rows if k == number}
            won = [
                c
                for c in asked
                if all(
                    float(gallery.image[owner[c]] @ gallery.text[c]) > float(gallery.image[owner[c]] @ x)
                    for own, k, x in rows
                    if (own, k) == (c, number)
                )
            ]
            if asked:
                results[f"negatives_{kind}"] = 100 * len(won) / len(asked)
    return results


def plain_order(gallery):
    sides = {"i2t": (gallery.image, gallery.text), "t2i": (gallery.text, gallery.image)}

    def order(direction, q):
        queries, items = sides[direction]
        return sorted(range(len(items)), key=lambda j: (-float(queries[q] @ items[j]), j))

    return order


def agree(results, wanted):
    chosen = {name: value for name, value in results.items() if name in wanted}
    assert chosen == pytest.approx(wanted, abs=1e-9)
    for d in ("i2t", "t2i"):
        parts = (results[f"{d}_r1"], results[f"{d}_wrong_category"], results[f"{d}_wrong_attributes"])
        assert sum(parts) == pytest.approx(100, abs=1e-9)
        assert results[f"{d}_category_r1"] == pytest.approx(100 - parts[1], abs=1e-9)


def category_gallery(seed=0):
    """30 images of four classes with one to three captions each, and many equal scores: whole numbers, few of them."""
    g = torch.Generator().manual_seed(seed)
    owner = torch.arange(30).repeat_interleave(torch.randint(1, 4, (30,), generator=g))
    owner = owner[torch.randperm(len(owner), generator=g)]
    whole = lambda n: torch.randint(-1, 2, (n, 3), generator=g).float() + torch.tensor([0.0, 0.0, 2.0])
    gallery = Gallery(whole(30), whole(len(owner)), owner, labels=torch.arange(30) % 4)
    against = torch.arange(len(owner)).repeat_interleave(3)[5:]
    gallery.negatives = Negatives(whole(len(against)), against, torch.randint(0, 2, (len(against),), generator=g))
    # not normalised: inner products of whole numbers have no rounding, so that ties are ties for both sides
    gallery.image, gallery.text, gallery.negatives.text = whole(30), whole(len(owner)), whole(len(against))
    return gallery


@pytest.mark.parametrize("seed", range(4))
def test_categories_against_attributes_equal_brute_force(seed, capsys):
    gallery = category_gallery(seed)
    results = evaluate(gallery, chunk=7)
    wanted = brute_categories(gallery, plain_order(gallery))
    assert len(wanted) == 18
    agree(results, wanted)
    assert 0 < results["i2t_wrong_attributes"] < 100 and 0 < results["negatives_category"] < 100
    out = capsys.readouterr().out
    assert f"above all annotated negatives (attributes): {wanted['negatives_attributes']:.2f}%" in out
    assert f"first answer of another category {wanted['t2i_wrong_category']:6.2f}%" in out


@pytest.mark.parametrize("name", ["pets_test", "flower_test"])
def test_real_annotations_equal_brute_force(shared_data, name):
    """Every twentieth record of a released file, random features."""
    path = shared_data / "fdrd" / "test" / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no {path}")
    domain, records = get_domain("pets" if name == "pets_test" else "Flowers102"), read_records(path)
    classes, records = sorted({domain.class_of(r) for r in records}), records[::20]
    labels = [classes.index(domain.class_of(r)) for r in records]
    pairs = [
        (i, int(said == labels[i]))
        for i, r in enumerate(records)
        for _, said in given_negatives(r.caption, r.negatives, labels[i], classes)
    ]
    against, kind = (torch.tensor(x) for x in zip(*pairs))
    negatives = Negatives(torch.randn(len(pairs), 6), against, kind)
    gallery = random_gallery(len(records), len(records), labels=torch.tensor(labels), negatives=negatives)
    assert (kind == 0).float().mean() > 0.9, "the released negatives swap the category"
    agree(evaluate(gallery), brute_categories(gallery, plain_order(gallery)))


def test_categories_follow_the_new_order_of_reranking():
    gallery = category_gallery(9)
    table = torch.randint(0, 5, (len(gallery.image), len(gallery.text)), generator=torch.Generator().manual_seed(1))
    results = evaluate(gallery, rerank=(6, lambda image, text: table[image, text].float()))
    plain = plain_order(gallery)

    def order(direction, q):
        before = plain(direction, q)
        score = (lambda j: int(table[q, j])) if direction == "i2t" else (lambda j: int(table[j, q]))
        return sorted(before[:6], key=lambda j: (-score(j), j)) + before[6:]

    agree(results, brute_categories(gallery, order))


def test_categories_need_two_classes_and_negatives_need_a_kind():
    assert not [name for name in evaluate(random_gallery()) if "category" in name or "negatives" in name]
    same = random_gallery(4, 4, labels=torch.zeros(4))
    assert not [name for name in evaluate(same) if "category" in name]
    one = random_gallery(4, 4, negatives=Negatives(torch.randn(2, 6), torch.tensor([0, 0]), torch.ones(2)))
    assert {"negatives_attributes"} == {name for name in evaluate(one) if name.startswith("negatives")}
    with pytest.raises(ValueError, match="0 .another category. or 1"):
        Negatives(torch.randn(2, 6), torch.tensor([0, 0]), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="2 negative captions"):
        Negatives(torch.randn(2, 6), torch.tensor([0]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="caption index 0 .. 3"):
        random_gallery(4, 4, negatives=Negatives(torch.randn(2, 6), torch.tensor([0, 4]), torch.ones(2)))


def test_category_ranks_refuse_a_target_of_another_category():
    x, own = torch.eye(3), torch.arange(3)
    nearest, within = category_ranks(x, x, own, [0, 0, 1], [0, 0, 1])
    assert nearest.tolist() == within.tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match="another category"):
        category_ranks(x, x, own, [0, 1, 1], [0, 0, 1])
    with pytest.raises(ValueError, match="2 labels for 3 queries"):
        category_ranks(x, x, own, [0, 1], [0, 0, 1])


def test_features_survive_a_file(tmp_path):
    gallery = random_gallery(
        4,
        7,
        image_of_text=torch.tensor([0, 0, 1, 2, 2, 2, 3]),
        captions=[f"é {i}" for i in range(7)],
        labels=torch.tensor([1, 0, 1, 0]),
        negatives=Negatives(torch.randn(3, 6), torch.tensor([0, 6, 6]), torch.tensor([0, 1, 0])),
    )
    save_features(gallery, tmp_path / "f.npz")
    again = load_features(tmp_path / "f.npz")
    assert again.captions == gallery.captions and torch.equal(again.image_of_text, gallery.image_of_text)
    assert torch.equal(again.labels, gallery.labels)
    assert again.negatives.kind.tolist() == [0, 1, 0] and again.negatives.caption.tolist() == [0, 6, 6]
    assert evaluate(again, text_equal=True) == evaluate(gallery, text_equal=True)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": np.ones((3, 2))}, "lacks text"),
        ({"image": np.ones((3, 2)), "text": np.ones((4, 2))}, "3 images and 4 captions"),
        (
            {"image": np.ones((3, 2)), "text": np.ones((4, 2)), "image_of_text": np.array([0, 1, 1, 1])},
            "every image needs",
        ),
        ({"image": np.ones((2, 2)), "text": np.ones((2, 2)), "captions": np.array(["a"])}, "1 caption texts for 2"),
        (
            {"image": np.ones((1, 2)), "text": np.ones((1, 2)), "negative": np.ones((1, 2))},
            "negative captions need negative, negative_caption, negative_kind",
        ),
        ({"image": np.array([object()]), "text": np.ones((1, 2))}, "plain arrays"),
    ],
)
def test_unusable_feature_files_are_named(tmp_path, arrays, message):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        load_features(tmp_path / "f.npz")
    assert "f.npz" in str(error.value)


def config(**keys):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_opts(cfg, [x for item in {"TEST.EVALUATOR": "Retrieval", **keys}.items() for x in item])
    return cfg


def test_evaluator_collects_parts_and_prints(capsys, tmp_path):
    evaluator = Retrieval(
        config(
            **{
                "TEST.PER_CLASS_RESULT": True,
                "TEST.RETRIEVAL.TEXT_EQUAL": True,
                "OUTPUT_DIR": str(tmp_path),
                "TEST.RETRIEVAL.SAVE_FEATURES": True,
            }
        ),
        lab2cname={0: "cat", 1: "dog"},
    )
    image, text, captions = torch.randn(10, 4), torch.randn(10, 4), [f"caption {i % 9}" for i in range(10)]
    for part in (slice(0, 6), slice(6, 10)):
        labels = torch.arange(10)[part] % 2
        evaluator.process({"image": image[part], "text": text[part]}, {"label": labels, "caption": captions[part]})
    results = evaluator.evaluate()
    assert next(iter(results)) == "mean_r1"
    groups = [[j for j in equal_groups(captions)[i].tolist() if j >= 0] for i in range(10)]
    gallery = evaluator.gallery()
    expected = brute_ranks(gallery.image, gallery.text, groups)
    assert results["text_equal_i2t_r1"] == 10.0 * sum(r == 1 for r in expected)
    out = capsys.readouterr().out
    assert "image-to-text" in out and "class: 1 (dog)" in out
    evaluator.save("test")
    torch.testing.assert_close(load_features(tmp_path / "features_test.npz").image, gallery.image)


def test_evaluator_counts_negatives_over_parts():
    evaluator = Retrieval(config())
    image, text = torch.randn(6, 4), torch.randn(6, 4)
    negative, against, kind = torch.randn(9, 4), [0, 0, 2, 3, 3, 3, 4, 5, 5], [0, 1, 0, 1, 1, 0, 0, 1, 0]
    for start in (0, 3):
        chosen = [k for k, c in enumerate(against) if start <= c < start + 3]
        evaluator.process(
            {"image": image[start : start + 3], "text": text[start : start + 3], "negative": negative[chosen]},
            {
                "label": [0, 1, 2],
                "caption": [""] * 3,
                "negative_caption": [against[k] - start for k in chosen],
                "negative_kind": [kind[k] for k in chosen],
            },
        )
    gallery = evaluator.gallery()
    assert gallery.negatives.caption.tolist() == against and gallery.negatives.kind.tolist() == kind
    agree(evaluator.evaluate(), brute_categories(gallery, plain_order(gallery)))


def test_evaluator_refuses_nothing_and_unequal_parts():
    evaluator = Retrieval(config())
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match="differ in number"):
        evaluator.process({"image": torch.ones(2, 3), "text": torch.ones(2, 3)}, {"label": [0], "caption": ["a", "b"]})
