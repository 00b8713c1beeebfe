"""AttriPrompt's model and losses against the plain 77-token path, loops, IVLP and PromptSRC.

One file: its cases share the plain text path at its head.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from yacs.config import CfgNode

from dassl_prompts.classification.prompted import normalize
from dassl_prompts.models import load_clip
from dassl_prompts.trainers.attriprompt.attributes import View
from dassl_prompts.trainers.attriprompt.pool import Retrieval
from dassl_prompts.trainers.attriprompt.trainer import AttriPrompt, AttriPromptModel, contrast, extend_cfg, regulariser
from dassl_prompts.trainers.ivlp import IVLPModel
from dassl_prompts.trainers.promptsrc import consistency_losses
from tests.trainers import plain

CLASSES = ["red apple", "green pear", "blue plum", "fig", "dark red cherry"]
LARGE = {"POOL.INIT_STD": 0.5}  # prompts large enough that a wrong one shows


@pytest.fixture(scope="module")
def state():
    """Random weights; the joint width equals the text width, and there are 16 patches."""
    return plain.openai_state(embed=64, text_width=64, vision_width=64, patch=8)


def clip_of(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "random.pt"
    torch.save(state, path)
    return load_clip(str(path))


@pytest.fixture(scope="module")
def clip(state, tmp_path_factory):
    return clip_of(state, tmp_path_factory)


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32)


def options(changes=None):
    cfg = CfgNode()
    extend_cfg(cfg)
    for key, value in (changes or {}).items():
        *path, leaf = key.split(".")
        node = cfg.TRAINER.ATTRIPROMPT
        for part in path:
            node = node[part]
        assert leaf in node, key
        node[leaf] = value
    return cfg.TRAINER.ATTRIPROMPT


def make(clip, changes=None, template="a photo of a {}.", classes=CLASSES):
    return AttriPromptModel(clip, classes, options(changes), template).eval()


def plain_text(model, state, index):
    """Class features image by image from the bare weights, over all 77 positions."""
    rows = []
    for image in index.tolist():
        layers = [torch.cat([model.pool.prompts[0, m] for m in layer]) for layer in image]
        rows.append(plain.text_features(state, model.class_prompts.tokens, layers[0], layers[1:]))
    return torch.stack(rows)


# -- text path -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"TEXT.MEMO": False},
        {"TEXT.SHARE_PREFIX": False},
        {"TEXT.TRIM": False, "TEXT.SHARE_PREFIX": False},
        {"TEXT.CHUNK_TOKENS": 40},
        {"TEXT.CHUNK_TOKENS": 40, "TEXT.CHECKPOINT": True},
        {"PROMPT_DEPTH": 2},
        {"PROMPT_DEPTH": 1},
        {"CLUSTER.K": 1},
        {"CLUSTER.K": 2, "RETRIEVAL.TOP_K": 2, "POOL.LENGTH": 1, "POOL.SIZE": 3},
    ],
)
def test_text_equals_the_plain_path_in_value_and_gradient(clip, state, images, changes):
    model = make(clip, {"POOL.SIZE": 6, **LARGE, **changes})
    view = model.look(torch.cat([images, images[:1]]))  # one tuple occurs twice
    retrieval = model.retrieve(view)
    weights = torch.randn(5, len(CLASSES), clip.embed_dim)

    expected = plain_text(model, state, retrieval.index)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), model.pool.prompts)
    text = model.encode(retrieval)
    (gradient,) = torch.autograd.grad((text * weights).sum(), model.pool.prompts)
    torch.testing.assert_close(text, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
    with torch.no_grad():
        torch.testing.assert_close(model.encode(retrieval), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("clusters, length", [(1, 1), (2, 2), (4, 2)])
def test_one_frozen_tuple_is_deep_language_prompting(clip, images, clusters, length):
    """The structural oracle: IVLP without visual prompts, fed the same vectors."""
    model = make(clip, {"CLUSTER.K": clusters, "POOL.LENGTH": length, **LARGE}, template="{}.")
    n, depth = clusters * length, clip.text.layers
    ivlp = IVLPModel(clip, CLASSES, n_text=n, depth_text=depth, depth_vision=0, ctx_init="").eval()
    index = torch.randint(0, 32, (1, depth, clusters))
    layers = model.pool.compose(Retrieval(index, None))[0]
    with torch.no_grad():
        ivlp.prompt_learner.ctx.copy_(layers[0])
        for i in range(1, depth):
            ivlp.text_encoder.transformer.resblocks.get_submodule(str(i)).VPT_shallow.copy_(layers[i])
        ours = model.logits(model.look(images).feature, model.encode(Retrieval(index.expand(4, -1, -1), None)))
        torch.testing.assert_close(ours, ivlp(images), rtol=0, atol=1e-5 * float(model.scale))


@torch.no_grad()
def test_static_mode_is_deep_language_prompting(clip, state, images):
    model = make(clip, {"RETRIEVAL.MODE": "static", "CLUSTER.K": 3, **LARGE})
    assert model.pool.prompts.shape == (clip.text.layers, 3, 2, clip.text.width)
    layers = [p.flatten(0, 1) for p in model.pool.prompts]
    text = plain.text_features(state, model.class_prompts.tokens, layers[0], layers[1:])
    expected = plain.logits(state, plain.image_features(state, images), text)
    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-3)
    assert model.usage.images == 0


@torch.no_grad()
def test_slot_order_matters_in_the_first_layer_only(clip):
    model = make(clip, {"TEXT.MEMO": False, **LARGE})
    index = torch.randint(0, 32, (1, clip.text.layers, 4))
    text = model.encode(Retrieval(index, None))
    later = index.clone()
    later[:, 1:] = later[:, 1:].flip(-1)
    torch.testing.assert_close(model.encode(Retrieval(later, None)), text, rtol=0, atol=1e-5)
    first = index.clone()
    first[:, :1] = first[:, :1].flip(-1)
    assert not torch.allclose(model.encode(Retrieval(first, None)), text, atol=1e-3)

    shallow = make(clip, {"PROMPT_DEPTH": 2, "TEXT.MEMO": False, **LARGE})
    text = shallow.encode(Retrieval(index[:, :2], None))
    assert not torch.allclose(shallow.encode(Retrieval(later[:, :2], None)), text, atol=1e-4)


@torch.no_grad()
def test_evaluation_encodes_every_tuple_once_until_the_pool_changes(clip, images):
    model = make(clip, {"POOL.SIZE": 2, "CLUSTER.K": 1, "PROMPT_DEPTH": 1})
    plain = make(clip, {"POOL.SIZE": 2, "CLUSTER.K": 1, "PROMPT_DEPTH": 1, "TEXT.MEMO": False})
    plain.load_state_dict(model.state_dict())
    many = torch.cat([images, images.flip(0)])
    for _ in range(2):
        torch.testing.assert_close(model(many), plain(many), rtol=0, atol=1e-3)
    assert model.memo.images == 16 and 1 <= model.memo.encoded <= 2
    encoded = model.memo.encoded
    model.pool.prompts.mul_(-1)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(many), plain(many), rtol=0, atol=1e-3)
    assert model.memo.encoded > encoded


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch_in_evaluation(clip, images):
    model = make(clip, LARGE)
    whole = model(images)
    torch.testing.assert_close(torch.cat([model(i[None]) for i in images]), whole, rtol=0, atol=1e-3)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(images[order]), whole[order], rtol=0, atol=1e-3)


def test_learnable_words_start_as_the_fixed_ones_and_are_learned(clip, images):
    fixed, learnable = make(clip, LARGE), make(clip, {"CTX.LEARNABLE": True, **LARGE})
    with torch.no_grad():
        learnable.pool.prompts.copy_(fixed.pool.prompts)
        torch.testing.assert_close(learnable(images), fixed(images), rtol=0, atol=1e-3)
    learnable(images).sum().backward()
    assert learnable.words.shape == (4, clip.text.width) and (learnable.words.grad.abs().sum(dim=1) > 0).all()


def accumulated_text(model, state, layers):
    """Class features when every layer puts its slots behind the start token and keeps those of the layers before."""
    tokens = model.class_prompts.tokens
    n = len(layers[0])
    x = state["token_embedding.weight"][tokens]
    x = torch.cat([x[:, :1], layers[0].expand(len(x), n, -1), x[:, 1 + n :]], dim=1) + state["positional_embedding"]
    for i, slots in enumerate(layers):
        if i:
            x = torch.cat([x[:, :1], slots.expand(len(x), n, -1), x[:, 1:]], dim=1)
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf")).triu(1)
        x = plain.block(state, f"transformer.resblocks.{i}.", x, mask)
    end = tokens.argmax(-1) + n * (len(layers) - 1)
    x = plain.norm(state, "ln_final", x)[torch.arange(len(tokens)), end] @ state["text_projection"]
    return F.normalize(x, dim=-1)


@pytest.mark.parametrize("share_prefix", [True, False])
def test_accumulate_keeps_the_slots_of_all_layers(clip, state, images, share_prefix):
    model = make(clip, {"COMPOSE": "accumulate", "CLUSTER.K": 2, "TEXT.SHARE_PREFIX": share_prefix, **LARGE})
    index = model.retrieve(model.look(images[:2])).index
    expected = torch.stack(
        [
            accumulated_text(model, state, [torch.cat([model.pool.prompts[0, m] for m in layer]) for layer in image])
            for image in index.tolist()
        ]
    )
    text = model.encode(Retrieval(index, None))
    torch.testing.assert_close(text, expected, rtol=0, atol=1e-5)
    weights = torch.randn_like(text)
    (ours,) = torch.autograd.grad((text * weights).sum(), model.pool.prompts)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), model.pool.prompts)
    assert plain.relative_error(ours, theirs) < 1e-4
    replaced = make(clip, {"CLUSTER.K": 2, **LARGE})
    replaced.pool.load_state_dict(model.pool.state_dict())
    assert not torch.allclose(replaced.encode(Retrieval(index, None)), text, atol=1e-3)


# -- frozen side ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_non_prompted_text_and_image_are_the_frozen_clip(clip, images):
    model = make(clip, template="a photo of a {}, a type of fruit.")
    texts = [f"a photo of a {name}, a type of fruit." for name in CLASSES]
    expected = F.normalize(clip.encode_text(clip.tokenize(texts)), dim=-1)
    torch.testing.assert_close(model.text_target, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        model.look(images).feature, F.normalize(clip.encode_image(images), dim=-1), rtol=0, atol=1e-5
    )
    ensemble = make(clip, {"REG.TEMPLATES": "ensemble"})
    assert not torch.allclose(ensemble.text_target, expected, atol=1e-3)
    torch.testing.assert_close(ensemble.text_target.norm(dim=-1), torch.ones(len(CLASSES)))


def test_words_of_the_template_stand_around_the_class_name(clip):
    ids = lambda text: clip.tokenize([text])[0]
    model = make(clip, {"CLUSTER.K": 1, "POOL.LENGTH": 1}, template="{} texture.")
    tokens = model.class_prompts.tokens[3]
    plain = ids("fig texture.")
    assert tokens[0] == plain[0] and torch.equal(tokens[2:8], plain[1:7])
    other = make(
        clip, {"CTX_INIT": "a_drawing_of", "CLUSTER.K": 1, "POOL.LENGTH": 1}, template="a photo of a {}, a fruit."
    )
    assert torch.equal(other.class_prompts.tokens[3][2:10], ids("a drawing of fig, a fruit.")[1:9])


# -- losses ----------------------------------------------------------------------------------------------------------


def trainer_for(model, **changes):
    """A trainer around a model, without data."""
    trainer = object.__new__(AttriPrompt)
    trainer.model, trainer.device = model, torch.device("cpu")
    trainer.cfg = CfgNode({"TRAINER": {"ATTRIPROMPT": model.options}})
    return trainer


def slow_contrast(similarity, labels):
    total = 0
    for b in range(len(labels)):
        kept = [j for j in range(len(labels)) if j == b or labels[j] != labels[b]]
        total += -similarity[b, b] + math.log(sum(math.exp(float(similarity[b, j])) for j in kept))
    return total / len(labels)


def test_contrast_equals_loops_and_leaves_out_same_class_columns():
    similarity, labels = 3 * torch.randn(5, 5), torch.tensor([0, 2, 0, 1, 2])
    torch.testing.assert_close(contrast(similarity, labels), slow_contrast(similarity, labels))
    assert contrast(similarity[:1, :1], labels[:1]) == 0


@pytest.mark.parametrize("mode", ["cls+inst", "cls_symmetric", "prompted+plain", "cls_only"])
@pytest.mark.parametrize("retrieval_mode", ["per_cluster", "static"])
def test_losses_equal_loops(clip, images, mode, retrieval_mode):
    labels = torch.tensor([1, 3, 1, 0])
    model = make(clip, {"DUAL.MODE": mode, "DUAL.WEIGHT": 0.5, "RETRIEVAL.MODE": retrieval_mode, **LARGE})
    terms = trainer_for(model).loss(images, labels)
    with torch.no_grad():
        view = model.look(images)
        text = model.encode(model.retrieve(view))
        text = text.expand(4, -1, -1) if text.ndim == 2 else text
        logits = torch.stack([model.scale * t @ f for t, f in zip(text, view.feature)])
        own = torch.stack([text[b, y] for b, y in enumerate(labels)])
    assert terms["loss_cls"].item() == pytest.approx(float(F.cross_entropy(logits, labels)), abs=1e-4)
    assert terms["loss_reg"].item() == pytest.approx(25 * float((text - model.text_target).abs().mean()), abs=1e-4)
    if mode == "cls+inst":
        a = model.scale * view.feature @ own.t()
        second = (slow_contrast(a, labels) + slow_contrast(a.t(), labels)) / 2
    elif mode == "cls_symmetric":
        second = slow_contrast(torch.stack([logits[:, y] for y in labels]), labels)
    elif mode == "prompted+plain":
        slots = [p.repeat(4, 1) for p in model.pool.mean_prompt(1)]
        plain = normalize(clip.text(model.class_prompts, slots[0], slots[1:]))
        second = F.cross_entropy(model.scale * view.feature @ plain.t(), labels)
    else:
        assert "loss_dual" not in terms
        return
    assert terms["loss_dual"].item() == pytest.approx(0.5 * second.item(), abs=1e-4)
    assert terms["loss"].item() == pytest.approx(
        sum(terms[f"loss_{k}"].item() for k in ("cls", "dual", "reg")), abs=1e-4
    )


def test_regulariser_is_promptsrcs_text_term():
    text, target = (normalize(torch.randn(5, 8)) for _ in range(2))
    image = normalize(torch.randn(3, 8))
    expected, _, _ = consistency_losses(image, text, image, target, torch.tensor(100.0))
    torch.testing.assert_close(regulariser("l1", text, target), expected)
    torch.testing.assert_close(
        regulariser("cos", text, target), torch.stack([1 - a @ b for a, b in zip(text, target)]).mean()
    )
    torch.testing.assert_close(regulariser("mse", text, target), ((text - target) ** 2).mean())
    assert all(regulariser(kind, text, text).item() == pytest.approx(0, abs=1e-6) for kind in ("l1", "cos", "mse"))


def test_regulariser_options(clip, images):
    labels = torch.tensor([1, 3, 1, 0])
    model = make(clip, {"REG.TYPE": "cos", "REG.SCOPE": "target", "DUAL.MODE": "cls_only", **LARGE})
    terms = trainer_for(model).loss(images, labels)
    with torch.no_grad():
        text = model.encode(model.retrieve(model.look(images)))
        expected = 8 * sum(1 - text[b, y] @ model.text_target[y] for b, y in enumerate(labels)) / 4
    torch.testing.assert_close(terms["loss_reg"], expected, rtol=1e-4, atol=1e-4)
    weighted = make(clip, {"REG.WEIGHT": 0.0, **LARGE})
    assert trainer_for(weighted).loss(images, labels)["loss_reg"] == 0
    assert "loss_reg" not in trainer_for(make(clip, {"REG.TYPE": "none"})).loss(images, labels)


# -- what is learned -------------------------------------------------------------------------------------------------


def test_only_retrieved_prompts_get_gradients(clip, images):
    model = make(clip, LARGE)
    trainer_for(model).loss(images, torch.tensor([1, 3, 2, 0]))["loss"].backward()
    used = torch.zeros(32, dtype=torch.bool)
    used[model.retrieve(model.look(images)).index.unique()] = True
    assert torch.equal(model.pool.prompts.grad[0].abs().sum(dim=(1, 2)) > 0, used)
    assert not used.all()
    assert all(p.grad is None for p in clip.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"RETRIEVAL.WEIGHTING": "sim", "POOL.KEY_LOSS_WEIGHT": 0.0},
        {"RETRIEVAL.WEIGHTING": "softmax", "POOL.KEY_LOSS_WEIGHT": 0.0},
        {"RETRIEVAL.QUERY": "raw"},
        {"RETRIEVAL.MODE": "union"},
    ],
)
def test_learned_keys_get_gradients(clip, images, changes):
    model = make(clip, {"POOL.KEY": "learned", "POOL.PER_LAYER": True, **changes})
    terms = trainer_for(model).loss(images, torch.tensor([1, 3, 2, 0]))
    terms["loss"].backward()
    assert model.pool.keys.grad.abs().sum() > 0
    assert "loss_key" in terms


def test_training_centres_queries_and_evaluation_leaves_the_mean(clip, images):
    model = make(clip).train()
    view = model.look(images)
    model.retrieve(view)
    torch.testing.assert_close(model.pool.centre, view.queries.mean(dim=(0, 2)))
    model.eval()
    before = model.pool.centre.clone()
    model.retrieve(model.look(images.flip(0) + 1))
    assert torch.equal(model.pool.centre, before)
    plain = make(clip, {"RETRIEVAL.CENTER": False}).train()
    plain.retrieve(view)
    assert plain.pool.centre_count == 0


def test_the_running_mean_holds_the_batch_before_it_is_subtracted(clip, images):
    """The first batch of a run is retrieved with its own mean, not with zeros."""
    model = make(clip, LARGE).train()
    view = model.look(images)
    found = model.retrieve(view)
    keys = F.normalize(model.pool.prompts[0].detach().mean(dim=1), dim=-1)
    centred = F.normalize(view.queries - view.queries.mean(dim=(0, 2))[:, None], dim=-1)
    score, index = (centred @ keys.t()).max(dim=-1)
    assert torch.equal(found.index, index)
    torch.testing.assert_close(found.score, score, rtol=0, atol=1e-5)
    assert not torch.equal(index, (view.queries @ keys.t()).argmax(dim=-1))


def test_a_view_stands_for_its_image(clip, images):
    model = make(clip, LARGE)
    view = model.look(images)
    assert model.look(view) is view and isinstance(view, View)
    with torch.no_grad():
        assert torch.equal(model(view), model(images))


def test_visual_prompts_are_learned(clip, images):
    model = make(clip, {"N_CTX_VISION": 2, "PROMPT_DEPTH_VISION": 2})
    trainer_for(model).loss(images, torch.tensor([1, 3, 2, 0]))["loss"].backward()
    grads = {n: p.grad for n, p in model.named_parameters() if "VPT" in n}
    assert len(grads) == 2 and all(g.abs().sum() > 0 for g in grads.values())


def test_pool_moves_to_other_classes(clip, images):
    model, other = make(clip, LARGE), make(clip, classes=["sparrow", "blue tit"])
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("clip.")}
    assert sorted(state) == ["pool.centre", "pool.centre_count", "pool.prompts"]
    assert not other.load_state_dict(state, strict=False).unexpected_keys
    assert other(images).shape == (4, 2)


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"CLUSTER.K": 17}, "CLUSTER.K is 17, but 32 px images have 16 tokens"),
        ({"CLUSTER.K": 0}, "CLUSTER.K is 0; it must be positive"),
        ({"POOL.SIZE": 2, "RETRIEVAL.TOP_K": 3}, "POOL.SIZE is 2, but RETRIEVAL takes 3"),
        ({"POOL.SIZE": 7, "RETRIEVAL.TOP_K": 2, "RETRIEVAL.MODE": "union"}, "POOL.SIZE is 7, but RETRIEVAL takes 8"),
        ({"POOL.LENGTH": 18}, "does not fit|fit.*72 prompt tokens"),
        ({"POOL.KEY": "learned", "POOL.KEY_LOSS_WEIGHT": 0.0}, "no gradient would reach the keys"),
        ({"RETRIEVAL.QUERY": "raw"}, "set POOL.KEY learned"),
        ({"RETRIEVAL.WEIGHTING": "softmax", "RETRIEVAL.TOP_K": 2}, "set TOP_K 1"),
        ({"RETRIEVAL.WEIGHTING": "max"}, "RETRIEVAL.WEIGHTING is 'max'; choose one of none, sim, softmax"),
        ({"DUAL.MODE": "both"}, "DUAL.MODE is 'both'"),
        ({"REG.WEIGHT": -2.0}, "REG.WEIGHT is -2.0"),
        ({"PROMPT_DEPTH": 9}, "PROMPT_DEPTH is 9, but this backbone's tower has 4"),
        ({"N_CTX_VISION": 2}, "both be 0 .* or both positive"),
        ({"N_CTX_VISION": 2, "PROMPT_DEPTH_VISION": 1, "CACHE.DIR": "x"}, "CACHE.DIR needs a frozen image tower"),
        ({"CACHE.VIEWS": 2}, "CACHE.DIR is empty"),
    ],
)
def test_bad_settings(clip, changes, message):
    with pytest.raises(ValueError, match=message):
        make(clip, changes)


def test_template_without_a_place_for_the_class(clip):
    with pytest.raises(ValueError, match="TEMPLATE must hold {} once"):
        make(clip, template="a photo")


def test_batch_of_one_has_no_negatives():
    cfg = CfgNode({"DATALOADER": {"TRAIN_X": {"BATCH_SIZE": 1}}})
    extend_cfg(cfg)
    with pytest.raises(ValueError, match="BATCH_SIZE is 1: enlarge it, or set DUAL.MODE cls_only"):
        AttriPrompt.check_cfg(object.__new__(AttriPrompt), cfg)
    cfg.TRAINER.ATTRIPROMPT.DUAL.MODE = "cls_only"
    AttriPrompt.check_cfg(object.__new__(AttriPrompt), cfg)


def test_joint_width_unequal_to_text_width_needs_learned_keys(images, tmp_path_factory):
    clip = clip_of(plain.openai_state(embed=32, text_width=64, vision_width=64, patch=8), tmp_path_factory)
    with pytest.raises(ValueError, match="set TRAINER.ATTRIPROMPT.POOL.KEY learned"):
        make(clip)
    assert make(clip, {"POOL.KEY": "learned"})(images).shape == (4, 5)
