"""The retrieval baselines: plain formulas, runs from start to end, frozen features, what goes wrong."""

import json

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.captions.model import RetrievalModel
from dassl_prompts.captions.trainer import AnnotatedNegatives, CaptionTexts, linked
from dassl_prompts.datasets.fdrd import emoji_pairs, to_data
from dassl_prompts.trainers.itr import CLIPAdapter, CoOpCaptions, MaPLeCaptions, caption_context
from tests.trainers import plain
from tests.trainers.retrieval_tree import make_trainer, make_tree

CAPTIONS = ["a small owl sits.", "red fox in the snow, looking to the left side of the picture", "x"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"))


def slots(clip, k):
    """Token ids of the captions behind k slots, made without the package's prompt code."""
    return clip.tokenize([" ".join(["x"] * k + [c]) for c in CAPTIONS])


def perturbed(model):
    with torch.no_grad():
        for p in model.checkpoint_module.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn_like(p))
    return model


def test_without_prompts_features_are_clip(clip, state, images):
    model = RetrievalModel(clip)
    u, z = model(images, model.tokenize(CAPTIONS))
    torch.testing.assert_close(u, plain.image_features(state, images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(z, plain.text_features(state, clip.tokenize(CAPTIONS)), rtol=1e-4, atol=1e-5)


def test_coop_equals_the_plain_formula(clip, state, images):
    model = perturbed(CoOpCaptions(clip, 5))
    ctx = model.prompt_learner.ctx
    z = model(images, model.tokenize(CAPTIONS))[1]
    wanted = plain.text_features(state, slots(clip, 5), ctx)
    torch.testing.assert_close(z, wanted, rtol=1e-4, atol=1e-5)
    direction = torch.randn_like(z)
    got, want = (torch.autograd.grad((x * direction).sum(), ctx)[0] for x in (z, wanted))
    assert plain.relative_error(got, want) < 1e-4


@pytest.mark.parametrize("depth", [1, 3])
def test_maple_equals_the_plain_formula(clip, state, images, depth):
    model = perturbed(MaPLeCaptions(clip, 2, depth=depth))
    p = model.prompt_learner
    linear = lambda layer, x: x @ layer.weight.t() + layer.bias
    visual_deep = [linear(layer, c) for layer, c in zip(p.compound_prompt_projections, p.compound_prompts_text)]
    u, z = model(images, model.tokenize(CAPTIONS))
    torch.testing.assert_close(
        u, plain.image_features(state, images, linear(p.proj, p.ctx), visual_deep), rtol=1e-4, atol=1e-5
    )
    wanted = plain.text_features(state, slots(clip, 2), p.ctx, list(p.compound_prompts_text))
    torch.testing.assert_close(z, wanted, rtol=1e-4, atol=1e-5)


def test_adapter_equals_the_plain_formula(clip, images):
    model = CLIPAdapter(clip, reduction=4, ratio=0.3)
    first, second = model.adapter.mlp[0].weight, model.adapter.mlp[2].weight
    assert first.shape == (clip.embed_dim // 4, clip.embed_dim) and len(list(model.adapter.parameters())) == 2
    x = F.normalize(clip.encode_image(images), dim=1)
    wanted = F.normalize(0.7 * x + 0.3 * F.relu(F.relu(x @ first.t()) @ second.t()), dim=1)
    torch.testing.assert_close(model(images, model.tokenize(CAPTIONS[:1] * 5))[0], wanted)


def test_context_words_are_the_first_ones(clip):
    words = clip.text.embed_words("a photo of a")
    assert torch.equal(caption_context(clip.text, 2, "a_photo_of_a"), words[:2])
    assert torch.equal(caption_context(clip.text, 4, "a photo of a"), words)
    assert caption_context(clip.text, 6, "a photo of a").shape == (6, clip.text.width)


@pytest.mark.parametrize("name", ["CoOpITR", "CLIPAdapterITR", "MaPLeITR"])
def test_runs_and_reloads(name, tree, clip_file, tmp_path):
    trainer = make_trainer(tree, clip_file, tmp_path / "run", name)
    result = trainer.train()
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    assert stored["finished"] and stored["test"]["mean_r1"] == result and "t2i_r10" in stored["test"]
    again = make_trainer(tree, clip_file, tmp_path / "again", name)
    again.load_model(str(tmp_path / "run"))
    assert again.test() == result
    a, b = trainer.text_features("test"), again.text_features("test")
    assert torch.equal(a, b)


def test_zero_shot_is_evaluation_only(tree, clip_file, tmp_path, state, clip):
    trainer = make_trainer(tree, clip_file, tmp_path, "ZeroshotITR")
    trainer.test()
    texts = [d.caption for d in trainer.dm.dataset.test]
    torch.testing.assert_close(
        trainer.text_features("test"), plain.text_features(state, clip.tokenize(texts)), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(ValueError, match="nothing to train"):
        trainer.train()


def test_frozen_towers_run_once(tree, clip_file, tmp_path, monkeypatch):
    trainer = make_trainer(tree, clip_file, tmp_path, "CLIPAdapterITR", **{"OPTIM.MAX_EPOCH": 3})
    counts = {"image": 0, "text": 0}
    clip = trainer.model.clip
    encode_image, forward = type(clip).encode_image, type(clip.text).forward

    def count(kind, call):
        def wrapped(self, x, *args, **kwargs):
            counts[kind] += len(x)
            return call(self, x, *args, **kwargs)

        return wrapped

    monkeypatch.setattr(type(clip), "encode_image", count("image", encode_image))
    monkeypatch.setattr(type(clip.text), "forward", count("text", forward))
    trainer.train()
    # the eight negatives of the test records that differ from their captions come on top
    assert counts == {"image": 24, "text": 24 + 8}, "12 training and 12 test pairs, once each"


@pytest.mark.parametrize("name", ["CLIPAdapterITR", "DCAR"])
def test_negatives_are_encoded_like_captions_and_stored(name, tree, clip_file, tmp_path):
    keys = {"TRAINER.DCAR.TEST.BRANCH": "sum"} if name == "DCAR" else {}
    trainer = make_trainer(tree, clip_file, tmp_path, name, **keys)
    trainer.train()
    items, images = trainer.dm.dataset.test, trainer.image_features("test")
    texts = [(i, d.caption, [n for n in d.negatives if n != d.caption]) for i, d in enumerate(items)]
    asked = [(i, [caption, *negatives]) for i, caption, negatives in texts if negatives]
    won = 0
    for i, captions in asked:
        trainer.captions["asked"] = CaptionTexts(captions, trainer.model)
        trainer._frozen.pop("captions asked", None)
        own, *others = (trainer.text_features("asked") @ images[i]).tolist()
        won += own > max(others)
    stored = json.loads((tmp_path / "results.json").read_text())["test"]
    assert len(asked) == 8 and stored["negatives_category"] == pytest.approx(100 * won / 8, abs=1e-9)
    assert "negatives_attributes" not in stored
    assert stored["i2t_r1"] + stored["i2t_wrong_category"] + stored["i2t_wrong_attributes"] == pytest.approx(100)
    with torch.no_grad():
        scores = images @ trainer.text_features("test").t()
    label = [d.label for d in items]
    other = [label[int(row.argmax())] != label[i] for i, row in enumerate(scores)]
    assert stored["i2t_wrong_category"] == pytest.approx(100 * sum(other) / len(items), abs=1e-9)


def test_emoji_negatives_are_told_apart(clip):
    """Two swaps of the category, then two of attributes; a class name that a concept repeats ("person golfing") hides three."""
    _, data = emoji_pairs()
    names = list(dict.fromkeys(name for _, name, _ in data))
    items = [d for record, name, path in data for d in to_data(record, name, path, names.index(name))]
    found = AnnotatedNegatives(items, names, RetrievalModel(clip))
    kinds: dict[int, list[int]] = {}
    for caption, kind in zip(found.caption.tolist(), found.kind.tolist()):
        kinds.setdefault(caption, []).append(kind)
    assert len(kinds) == len(items)
    assert sum(mine != wanted for row in kinds.values() for mine, wanted in zip(row, (0, 0, 1, 1))) == 3


def test_augmented_images_are_encoded_anew(tree, clip_file, tmp_path):
    keys = {"INPUT.TRANSFORMS": ("random_resized_crop", "normalize")}
    trainer = make_trainer(tree, clip_file, tmp_path, "CoOpITR", **keys)
    assert not trainer.trains_on_features
    batch = next(iter(trainer.train_loader_x))
    assert batch["img"].shape == (6, 3, 32, 32) and batch["tokens"].shape == (6, 77)
    assert torch.equal(batch["tokens"], trainer.captions["train"].prompts.tokens[batch["caption"]])


def test_long_captions_are_cut_and_counted(tree, clip_file, tmp_path, capsys):
    path = tree / "FDRD" / "train" / "inter_dtd_train.json"
    records = json.loads(path.read_text())
    key = next(iter(records))
    records[key]["positive"] = "ball " * 100
    own = tmp_path / "long.json"
    own.write_text(json.dumps(records))
    trainer = make_trainer(tree, clip_file, tmp_path / "run", "CoOpITR", **{"DATASET.FDRD_TRAIN": str(own)})
    assert "1 of 12 train captions are too long and were cut" in capsys.readouterr().out
    prompts = trainer.captions["train"].prompts
    assert int(prompts.eot.max()) == 76 and (prompts.tokens.argmax(1) == prompts.eot).all()
    trainer.train()


def test_wrong_evaluator_and_captionless_data_are_named(tree, clip_file, tmp_path):
    with pytest.raises(ValueError, match=r"TEST\.EVALUATOR is 'Classification'"):
        make_trainer(tree, clip_file, tmp_path, "CoOpITR", **{"TEST.EVALUATOR": "Classification"})
    with pytest.raises(ValueError, match="dataset Emoji has no captions"):
        make_trainer(tree, clip_file, tmp_path, "CoOpITR", **{"DATASET.NAME": "Emoji"})
    with pytest.raises(ValueError, match=r"COOPITR\.LOSS\.DIRECTION is 'up'"):
        make_trainer(tree, clip_file, tmp_path, "CoOpITR", **{"TRAINER.COOPITR.LOSS.DIRECTION": "up"})
    with pytest.raises(ValueError, match=r"MAPLEITR\.PROMPT_DEPTH is 9"):
        make_trainer(tree, clip_file, tmp_path, "MaPLeITR", **{"TRAINER.MAPLEITR.PROMPT_DEPTH": 9})


# -- several captions per image ------------------------------------------------------------------------------


def test_recall_with_several_captions_per_image_is_the_usual_one(tmp_path, clip_file, monkeypatch):
    """An image is right with any of its captions, a caption with its one image; images are counted once."""
    root = make_tree(tmp_path / "tree")
    path = root / "FDRD" / "test" / "inter_dtd_test.json"
    records = json.loads(path.read_text())
    for i, record in enumerate(records.values()):
        record["positive"] = [record["positive"], *(f"picture {i}, described {j} times." for j in range(i % 3))]
    path.write_text(json.dumps(records))
    trainer = make_trainer(root, clip_file, tmp_path / "out", "ZeroshotITR", **{"TEST.RETRIEVAL.SAVE_FEATURES": True})
    trainer.test()
    items = trainer.dm.dataset.test
    paths = list(dict.fromkeys(item.impath for item in items))
    assert len(items) == 24 and len(paths) == 12
    first = [[item.impath for item in items].index(path) for path in paths]
    images, texts = trainer.image_features("test")[first], trainer.text_features("test")
    scores = (images @ texts.t()).tolist()
    hits = {f"{d}_r{k}": [] for d in ("i2t", "t2i") for k in (1, 5, 10)}
    for k in (1, 5, 10):
        for i, row in enumerate(scores):
            best = sorted(range(24), key=lambda j: (-row[j], j))[:k]
            hits[f"i2t_r{k}"].append(any(items[j].impath == paths[i] for j in best))
        for j, item in enumerate(items):
            best = sorted(range(12), key=lambda i: (-scores[i][j], i))[:k]
            hits[f"t2i_r{k}"].append(item.impath in [paths[i] for i in best])
    results = json.loads((tmp_path / "out" / "results.json").read_text())["test"]
    assert {key: results[key] for key in hits} == {
        key: pytest.approx(100 * sum(values) / len(values)) for key, values in hits.items()
    }
    pairs = trainer.image_features("test")
    same = lambda image, text: (pairs[image] * texts[text]).sum(1)  # a reranker counts images by their pairs
    monkeypatch.setattr(trainer, "reranker", lambda split, images: (6, same))
    trainer.test()
    again = json.loads((tmp_path / "out" / "results.json").read_text())["test"]
    assert {key: again[key] for key in hits} == {key: pytest.approx(results[key]) for key in hits}


def test_pairs_of_one_image_or_one_text_share_the_target():
    assert linked("abcab", "vwxyz") == [0, 1, 2, 0, 1]
    assert linked("abcd", "xyyx") == [0, 1, 1, 0]
    assert linked("abab", "xyyz") == [0, 0, 0, 0]  # joined through a chain
    assert linked("abcd", "wxyz") == [0, 1, 2, 3]
