"""Recall both ways against sorting by hand, equal texts, several captions per image, re-ranking, files, the
evaluator.
"""

import numpy as np
import pytest
import torch

from dassl_prompts.captions.evaluation import (
    Gallery,
    Retrieval,
    evaluate,
    extend_cfg,
    load_features,
    per_class,
    retrieval_ranks,
    save_features,
    summarise,
)
from dassl_prompts.engine import get_cfg_default, merge_opts
from dassl_prompts.ranking.exact import equal_groups


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


def test_features_survive_a_file(tmp_path):
    gallery = random_gallery(
        4,
        7,
        image_of_text=torch.tensor([0, 0, 1, 2, 2, 2, 3]),
        captions=[f"é {i}" for i in range(7)],
        labels=torch.tensor([1, 0, 1, 0]),
    )
    save_features(gallery, tmp_path / "f.npz")
    again = load_features(tmp_path / "f.npz")
    assert again.captions == gallery.captions and torch.equal(again.image_of_text, gallery.image_of_text)
    assert torch.equal(again.labels, gallery.labels)
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


def test_evaluator_refuses_nothing_and_unequal_parts():
    evaluator = Retrieval(config())
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match="differ in number"):
        evaluator.process({"image": torch.ones(2, 3), "text": torch.ones(2, 3)}, {"label": [0], "caption": ["a", "b"]})
