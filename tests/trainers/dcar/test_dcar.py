"""DCAR: plain formulas with token weights, off-switch identities, every switch acts, no leak at test time,
learning.

One file: its cases share the plain objective at its head.
"""

import json

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.captions.bpe import tokenizer
from dassl_prompts.trainers.dcar.candidates import negative_captions, with_batch
from dassl_prompts.trainers.dcar.reweighting import blank_image
from dassl_prompts.trainers.dcar.trainer import DCARModel, check_node
from dassl_prompts.trainers.itr import MaPLeCaptions
from tests.trainers import plain
from tests.trainers.retrieval_tree import config, make_trainer, make_tree


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture
def make(tree, clip_file, tmp_path):
    """``make(**keys)``: a DCAR trainer; keys without a dot-path prefix belong to TRAINER.DCAR."""

    def build(name="run", **keys):
        keys = {
            k if k.split(".")[0] in ("OPTIM", "INPUT", "DATASET", "TEST_", "SEED") else f"TRAINER.DCAR.{k}": v
            for k, v in keys.items()
        }
        return make_trainer(tree, clip_file, tmp_path / name, "DCAR", **keys)

    return build


def batch_of(trainer):
    torch.manual_seed(3)
    return next(iter(trainer.train_loader_x))


def first_loss(trainer):
    """Loss and its gradient over the first batch."""
    batch = batch_of(trainer)
    trainer.prepare_training()
    torch.manual_seed(0)
    terms = trainer.loss(*trainer.parse_batch_train(batch))
    trainer.model.zero_grad()
    terms["loss"].backward()
    return {k: v.detach() for k, v in terms.items()}, {
        n: p.grad for n, p in trainer.model.named_parameters() if p.requires_grad
    }


# -- the whole objective, written plainly --------------------------------------------------------------------


def plain_weighted_text(state, tokens, ctx, weights):
    """77-token text tower with scaled content embeddings."""
    x = state["token_embedding.weight"][tokens] * weights[..., None]
    n = len(ctx)
    x = torch.cat([x[:, :1], ctx.expand(len(x), n, -1), x[:, 1 + n :]], 1) + state["positional_embedding"]
    mask = torch.full((77, 77), float("-inf")).triu(1)
    for i in range(plain.depth(state)):
        x = plain.block(state, f"transformer.resblocks.{i}.", x, mask)
    x = plain.norm(state, "ln_final", x)[torch.arange(len(tokens)), tokens.argmax(-1)] @ state["text_projection"]
    return F.normalize(x, dim=-1)


def plain_hidden(state, tokens):
    """``ln_final(H) W`` at every position of raw captions."""
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    mask = torch.full((77, 77), float("-inf")).triu(1)
    for i in range(plain.depth(state)):
        x = plain.block(state, f"transformer.resblocks.{i}.", x, mask)
    return plain.norm(state, "ln_final", x) @ state["text_projection"]


def plain_objective(trainer, state, clip, batch, negatives):
    """L_con + lambda L_cate of a batch from the state dict, one pair after the other."""
    node, model, k = trainer.node, trainer.model, trainer.node.N_CTX
    items = [trainer.dm.dataset.train_x[int(i)] for i in batch["index"]]
    scale = state["logit_scale"].exp()
    blank = plain.image_features(
        state, blank_image("white", 32, trainer.cfg.INPUT.PIXEL_MEAN, trainer.cfg.INPUT.PIXEL_STD)
    )[0]
    ctx, proj = model.prompt_learner.ctx, model.prompt_learner.proj
    visual = ctx @ proj.weight.t() + proj.bias
    us, zs, cate = [], [], 0.0
    for item, image in zip(items, batch["img"]):
        ids = tokenizer().encode(item.caption)
        hidden = plain_hidden(state, clip.tokenize([item.caption]))[0].detach()
        g = plain.image_features(state, image[None])[0].detach()
        delta = [abs(float(F.normalize(hidden[1 + j], dim=0) @ (blank - g))) for j in range(len(ids))]
        weights = torch.ones(1, 77)
        for j, d in enumerate(delta):
            weights[0, 1 + k + j] = min(max(d / (sum(delta) / len(delta)), node.DTR.CLAMP[0]), node.DTR.CLAMP[1])
        tokens = clip.tokenize([" ".join(["x"] * k) + " " + item.caption])
        zs.append(plain_weighted_text(state, tokens, ctx, weights)[0])
        us.append(plain.image_features(state, image[None], visual)[0])
        texts = [item.caption, *(text for text, _ in negatives[item.key])]
        frozen = plain.text_features(state, clip.tokenize(texts))
        first, second = model.caa.mlp[0].weight, model.caa.mlp[2].weight
        r = node.CAA.RATIO
        p = F.normalize((1 - r) * frozen + r * F.relu(F.relu(frozen @ first.t()) @ second.t()), dim=1)
        omega = torch.tensor(
            [1 + node.CAA.ALPHA, *(1 + node.CAA.ALPHA * (c == item.label) for _, c in negatives[item.key])]
        )
        powers = omega * torch.exp(scale * (p @ us[-1]))
        cate = cate - torch.log(powers[0] / powers.sum()) / len(items)
    u, z = torch.stack(us), torch.stack(zs)
    own = torch.arange(len(u))
    con = (F.cross_entropy(scale * u @ z.t(), own) + F.cross_entropy(scale * z @ u.t(), own)) / 2
    return con, cate


def test_objective_and_gradients_equal_the_plain_formulas(make, state, clip):
    trainer = make(**{"CAA.ALPHA": 0.7, "LOSS.CATE_WEIGHT": 0.5})
    batch = batch_of(trainer)
    trainer.prepare_training()
    texts = {text: i for i, text in enumerate(trainer.captions["train"].texts)}
    # the negatives that the trainer drew, with labels, from its generator
    data = trainer.dm.dataset
    drawn = negative_captions(trainer.node.CAA, data.train_x, data.classnames, clip, 1)
    negatives = {data.train_x[i].key: drawn[i] for i in texts.values()}
    assert all(len(row) == 4 for row in drawn) and any(c == data.train_x[0].label for _, c in drawn[0])
    terms = trainer.loss(*trainer.parse_batch_train(batch))
    con, cate = plain_objective(trainer, state, clip, batch, negatives)
    torch.testing.assert_close(terms["loss_con"], con, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(terms["loss_cate"], cate, rtol=1e-3, atol=1e-4)
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    got = torch.autograd.grad(terms["loss"], parameters)
    want = torch.autograd.grad(con + 0.5 * cate, parameters)
    for g, w in zip(got, want):
        assert w.norm() > 0 and plain.relative_error(g, w) < 2e-3


def test_parameter_count_of_the_specification():
    k, text, vision, width, hidden = 4, 512, 768, 512, 128
    assert k * text + (vision * text + vision) + 2 * width * hidden == 527_104


def test_default_parameters_are_prompts_coupling_and_caa(clip):
    cfg = config("", "", "", "DCAR")
    model = DCARModel(clip, cfg.TRAINER.DCAR)
    counts = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    t, v, e = clip.text.width, clip.vision.width, clip.embed_dim
    assert counts == {
        "prompt_learner.ctx": 4 * t,
        "prompt_learner.proj.weight": v * t,
        "prompt_learner.proj.bias": v,
        "caa.mlp.0.weight": 128 * e,
        "caa.mlp.2.weight": 128 * e,
    }
    assert torch.equal(model.prompt_learner.ctx, clip.text.embed_words("a photo of a"))


# -- off-switch identities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 3])
def test_with_both_parts_off_it_is_maple(clip, images, depth):
    node = config(
        "", "", "", "DCAR", **{"TRAINER.DCAR.CAA.ENABLED": False, "TRAINER.DCAR.PROMPT_DEPTH": depth}
    ).TRAINER.DCAR
    ours, maple = DCARModel(clip, node), MaPLeCaptions(clip, 4, depth=depth)
    ours.prompt_learner.load_state_dict(maple.prompt_learner.state_dict())
    captions = ours.tokenize(["a red box", "an owl that sleeps"])
    for a, b in zip(ours(images, captions), maple(images, captions)):
        assert torch.equal(a, b)


def test_weights_of_one_change_nothing(clip):
    model = DCARModel(clip, config("", "", "", "DCAR").TRAINER.DCAR)
    captions = model.tokenize(["a red box", "an owl that sleeps"])
    prompts = model.emit()
    torch.testing.assert_close(
        model.encode_captions(captions, prompts, torch.ones(2, 77)),
        model.encode_captions(captions, prompts),
        rtol=1e-5,
        atol=1e-6,
    )


def test_probability_zero_equals_disabled(make):
    off, never = make("a", **{"DTR.ENABLED": False}), make("b", **{"DTR.PROB": 0.0})
    torch.testing.assert_close(first_loss(off)[0]["loss"], first_loss(never)[0]["loss"])


# -- every switch acts ---------------------------------------------------------------------------------------

SWITCHES = [
    {"DTR.ENABLED": False},
    {"DTR.TOKEN_FEAT": "isolated"},
    {"DTR.IMAGE_FEAT": "patch_max"},
    {"DTR.IMAGE_FEAT": "patch_mean"},
    {"DTR.BLANK": "black"},
    {"DTR.BLANK": "mean"},
    {"DTR.NORM": "softmax"},
    {"DTR.NORM": "minmax"},
    {"DTR.NORM": "residual"},
    {"DTR.NORM": "none"},
    {"DTR.NORM": "residual", "DTR.BETA": 0.5},
    {"DTR.CLAMP": (0.9, 1.1)},
    {"DTR.SOURCE": "prompted"},
    {"DTR.SCOPE": "vocab"},
    {"DTR.PROB": 0.5},
    {"DTR.GROUP_WORDS": True},
    {"COUPLING": "mlp"},
    {"COUPLING": "independent"},
    {"PROMPTS": "text"},
    {"PROMPTS": "image"},
    {"PROMPTS": "image", "COUPLING": "independent"},
    {"PROMPT_DEPTH": 2},
    {"N_CTX": 3},
    {"CTX_INIT": ""},
    {"CAA.ENABLED": False},
    {"CAA.MODULE": "linear"},
    {"CAA.MODULE": "mlp"},
    {"CAA.MODULE": "none"},
    {"CAA.HIDDEN": 16},
    {"CAA.RATIO": 0.5},
    {"CAA.N_NEG": 2},
    {"CAA.N_ATTR": 3},
    {"CAA.ATTR": "words"},
    {"CAA.NEG_SOURCE": "json"},
    {"CAA.ALPHA": 2.0},
    {"CAA.WEIGHT_MODE": "logit"},
    {"CAA.WEIGHT_MODE": "loss"},
    {"CAA.WEIGHT_POS": False},
    {"CAA.IN_BATCH": True},
    {"LOSS.DIRECTION": "i2t"},
    {"LOSS.DIRECTION": "t2i"},
    {"LOSS.CATE_WEIGHT": 0.3},
]


def test_every_switch_changes_the_loss(make):
    reference = first_loss(make("reference"))[0]["loss"]
    for i, keys in enumerate(SWITCHES):
        value = first_loss(make(f"s{i}", **keys))[0]["loss"]
        assert torch.isfinite(value)
        assert abs(float(value - reference)) > 1e-6, f"{keys} has no effect"


def test_residual_beta_and_swap_tables_act(make, tmp_path):
    one, half = (first_loss(make(f"b{b}", **{"DTR.NORM": "residual", "DTR.BETA": b}))[0]["loss"] for b in (1.0, 0.5))
    assert abs(float(one - half)) > 1e-6
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"ball": "round", "cone": "round", "red_box": "square"}))
    with pytest.raises(ValueError, match="alone in their meta-category: red_box"):
        make("m1", **{"CAA.SWAP": "meta", "CAA.META_FILE": str(meta)}).prepare_training()
    with pytest.raises(ValueError, match=r"needs CAA\.META_FILE"):
        make("m2", **{"CAA.SWAP": "meta"}).prepare_training()
    meta.write_text(json.dumps(dict.fromkeys(("ball", "cone", "red_box"), "thing")))
    trainer = make("m3", **{"CAA.SWAP": "meta", "CAA.META_FILE": str(meta)})
    trainer.prepare_training()
    assert trainer.candidates.valid.all()
    assert make("u", **{"CAA.SWAP": "uniform"}).train() >= 0


def test_cached_weights_equal_those_of_the_step(make):
    cached, anew = make("a"), make("b", **{"DTR.CACHE": False})
    (first, grads), (second, other) = first_loss(cached), first_loss(anew)
    torch.testing.assert_close(first["loss"], second["loss"], rtol=1e-4, atol=1e-5)
    for name in grads:
        torch.testing.assert_close(grads[name], other[name], rtol=1e-3, atol=1e-5)


def test_equal_captions_share_their_image(make):
    plain_loss = make("a", **{"CAA.ENABLED": False, "DTR.ENABLED": False, "LOSS.DEDUP": False})
    shared = make("b", **{"CAA.ENABLED": False, "DTR.ENABLED": False})
    for trainer in (plain_loss, shared):
        trainer.captions["train"].groups[:] = 0
    assert float(first_loss(shared)[0]["loss"]) != pytest.approx(float(first_loss(plain_loss)[0]["loss"]))


def test_in_batch_candidates_follow_the_rule():
    q = torch.randn(3, 2, 4)
    labels, groups = torch.tensor([0, 1, 0]), torch.tensor([0, 1, 2])
    candidates, weights, valid = with_batch(
        q, torch.ones(3, 2), torch.ones(3, 2, dtype=torch.bool), labels, groups, 0.5
    )
    assert candidates.shape == (3, 5, 4) and torch.equal(candidates[1, 2:], q[:, 0])
    assert weights[:, 2:].tolist() == [[1.5, 1, 1.5], [1, 1.5, 1], [1.5, 1, 1.5]]
    assert valid[:, 2:].tolist() == [[False, True, True], [True, False, True], [True, True, False]]


# -- no leak -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["off", "vocab"])
@pytest.mark.parametrize("branch", ["prompt", "caa", "sum"])
def test_text_features_do_not_see_test_images(make, mode, branch):
    trainer = make(mode + branch, **{"TEST.DTR": mode, "TEST.BRANCH": branch})
    before = trainer.text_features("test")
    other = make("other" + mode + branch, **{"TEST.DTR": mode, "TEST.BRANCH": branch})
    wrapper = other.test_loader.dataset
    order = list(reversed(range(len(wrapper.data_source))))
    items = [wrapper.data_source[i] for i in order]

    class Blind:
        """A loader that fails when somebody asks for test images."""

        dataset, batch_size = wrapper, 5

        def __iter__(self):
            raise AssertionError("the text side looked at test images")

    other.test_loader = Blind()
    assert torch.equal(other.text_features("test"), before)
    assert items[0].caption == wrapper.data_source[-1].caption


def test_image_order_does_not_matter(make):
    trainer = make()
    text = trainer.text_features("test")
    images = trainer.image_features("test")
    trainer._frozen.clear()
    permutation = torch.randperm(len(text))
    source = trainer.test_loader.dataset.data_source
    trainer.test_loader.dataset.data_source = [source[i] for i in permutation]
    torch.testing.assert_close(trainer.image_features("test"), images[permutation])
    assert torch.equal(trainer.text_features("test"), text)


def test_weights_from_the_own_image_are_not_offered(make):
    for mode in ("pair_oracle", "pair", "oracle"):
        with pytest.raises(ValueError, match="give the answer away"):
            make(**{"TEST.DTR": mode})


def test_reranking_equals_pair_by_pair_encoding(make):
    trainer = make(**{"TEST.DTR": "rerank", "TEST.RERANK": 3})
    with torch.no_grad():
        images = trainer.image_features("test")
        size, score = trainer.reranker("test", images)
        image, text = torch.tensor([0, 3, 3, 11, 5, 2]), torch.tensor([4, 4, 0, 2, 5, 11])
        got = score(image, text)
        captions, frozen = trainer.captions["test"], trainer.frozen_images("test")
        for n, (i, t) in enumerate(zip(image, text)):
            weights = trainer.reweighter.pair_weights(captions.raw.select(t[None]), frozen[i[None]])
            prompted = captions.prompts.select(t[None])
            z = trainer.model.encode_captions(prompted, trainer.model.emit(), trainer.place(weights, prompted))
            assert float(got[n]) == pytest.approx(float(images[i] @ z[0]), abs=1e-5)
    assert size == 3 and 0 <= trainer.test() <= 100


def test_weights_from_prompted_towers_follow_the_prompts_outside_training_too(make):
    keys = {"DTR.SOURCE": "prompted", "TEST.DTR": "rerank", "TEST.RERANK": 3}
    trainer = make(**keys)
    before = trainer.train_weights()
    with torch.no_grad():
        for p in trainer.model.prompt_learner.parameters():
            p.add_(0.3 * torch.randn_like(p))
        after = trainer.train_weights()
        assert not torch.allclose(before, after, atol=1e-3), "weights of the prompts before were kept"
        batch = batch_of(trainer)
        index = batch["index"]
        step = trainer.step_weights(batch["img"], index)
        content = trainer.reweighter.content(trainer.captions["train"].prompts.select(index))
        torch.testing.assert_close(after[index][:, : step.shape[1]][content], step[content], rtol=1e-3, atol=1e-4)

        images, captions = trainer.image_features("test"), trainer.captions["test"].prompts
        prompts = trainer.model.emit()
        _, score = trainer.reranker("test", images)
        image, text = torch.tensor([0, 3, 11]), torch.tensor([4, 0, 2])
        # the images' own features with prompts are what DTR.IMAGE_FEAT global compares
        weights = trainer.reweighter.pair_weights(captions.select(text), images[image], prompts)
        chosen = captions.select(text)
        z = trainer.model.encode_captions(chosen, prompts, trainer.place(weights, chosen))
        torch.testing.assert_close(score(image, text), (images[image] * z).sum(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("towers", "coupling", "learned"),
    [
        ("text", "linear", {"ctx", "text.0"}),
        ("image", "independent", {"vision.0", "vision.1"}),
        ("image", "linear", {"ctx", "compound_prompts_text.0", "proj", "compound_prompt_projections.0"}),
    ],
)
def test_prompts_of_one_tower_leave_the_other_as_it_is(clip, state, images, towers, coupling, learned):
    keys = {"PROMPTS": towers, "COUPLING": coupling, "PROMPT_DEPTH": 2, "CAA.ENABLED": False, "N_CTX": 2}
    model = DCARModel(
        clip, config("", "", "", "DCAR", **{f"TRAINER.DCAR.{k}": v for k, v in keys.items()}).TRAINER.DCAR
    )
    names = {n.removesuffix(".weight").removesuffix(".bias") for n, _ in model.prompt_learner.named_parameters()}
    assert names == learned
    with torch.no_grad():
        for p in model.prompt_learner.parameters():
            p.add_(0.3 * torch.randn_like(p))
    captions = ["a small owl sits.", "red fox in the snow"]
    u, z = model(images, model.tokenize(captions))
    raw_u, raw_z = plain.image_features(state, images), plain.text_features(state, clip.tokenize(captions))
    prompts, close = model.emit(), {"rtol": 1e-4, "atol": 1e-5}
    if towers == "text":
        slots = clip.tokenize([f"x x {c}" for c in captions])
        torch.testing.assert_close(u, raw_u, **close)
        torch.testing.assert_close(z, plain.text_features(state, slots, prompts.text, list(prompts.text_deep)), **close)
        assert not torch.allclose(z, raw_z, atol=1e-3) and not prompts.has_vision
    else:
        wanted = plain.image_features(state, images, prompts.vision, list(prompts.vision_deep))
        torch.testing.assert_close(u, wanted, **close)
        torch.testing.assert_close(z, raw_z, **close)
        assert not torch.allclose(u, raw_u, atol=1e-3) and prompts.text is None
    (u.sum() + z.sum()).backward()
    assert all(p.grad is not None for p in model.prompt_learner.parameters())


@pytest.mark.parametrize("towers", ["text", "image"])
def test_runs_with_prompts_of_one_tower_reload(make, towers, tmp_path):
    result = make(PROMPTS=towers).train()
    again = make("again", PROMPTS=towers)
    again.load_model(str(tmp_path / "run"))
    assert again.test() == result


def test_weights_of_the_step_see_images_where_their_features_are_fixed(make):
    assert make("features", PROMPTS="text").trains_on_features
    cached, anew = (first_loss(make(f"c{x}", PROMPTS="text", **{"DTR.CACHE": x}))[0]["loss"] for x in (True, False))
    torch.testing.assert_close(cached, anew, rtol=1e-4, atol=1e-5)


# -- configuration, runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("COUPLING", "quadratic", "choose one of linear, mlp, independent"),
        ("DTR.NORM", "l2", "choose one of mean1"),
        ("DTR.PROB", 1.5, "share between 0 and 1"),
        ("DTR.CLAMP", (3.0, 0.2), "0 <= low <= high"),
        ("CAA.ALPHA", -1.0, "must be positive"),
        ("CAA.N_NEG", 0, "N_NEG is 0"),
        ("TEST.RERANK", 0, "RERANK is 0"),
        ("CAA.SWAP", "random", "choose one of meta"),
        ("CAA.N_ATTR", 9, "N_ATTR is 9"),
    ],
)
def test_wrong_values_name_their_key(make, key, value, message):
    with pytest.raises(ValueError, match=message):
        make(**{key: value}).prepare_training()


def test_contradictions_are_refused():
    def node(**keys):
        return config("", "", "", "DCAR", **{f"TRAINER.DCAR.{k}": v for k, v in keys.items()}).TRAINER.DCAR

    with pytest.raises(ValueError, match="SCOPE vocab"):
        check_node(node(**{"DTR.SCOPE": "vocab", "DTR.SOURCE": "prompted"}))
    with pytest.raises(ValueError, match="PROMPTS"):
        check_node(node(PROMPTS="text", COUPLING="mlp"))
    with pytest.raises(ValueError, match="TEST.BRANCH sum needs"):
        check_node(node(**{"CAA.ENABLED": False, "TEST.BRANCH": "sum"}))


def test_training_raises_recall_on_its_own_pairs_and_logs_the_shortcut_check(make, tmp_path, capsys):
    trainer = make(**{"OPTIM.MAX_EPOCH": 60, "OPTIM.NAME": "adam", "OPTIM.LR": 0.01, "PROMPT_DEPTH": 4})
    before = trainer.shortcut_check()["mean_r1_weights_off"]
    trainer.train()
    stored = json.loads((tmp_path / "run" / "results.json").read_text())["train"]
    assert set(stored) == {"mean_r1_weights_on", "mean_r1_weights_off"}
    assert stored["mean_r1_weights_off"] > before + 25
    assert "Training pairs, mean R@1 with token weights" in capsys.readouterr().out


def test_a_step_costs_one_prompted_pass_of_each_tower(make, monkeypatch):
    """Token weights, negatives and raw captions are ready before the first step."""
    trainer = make(**{"OPTIM.MAX_EPOCH": 3})
    passes, epochs = [], []

    def count(kind, call):
        def wrapped(self, x, prompts=None, *args, **kwargs):
            passes.append((kind, prompts is not None, len(x)))
            return call(self, x, prompts, *args, **kwargs)

        return wrapped

    for kind, tower in (("image", trainer.model.clip.vision), ("text", trainer.model.clip.text)):
        monkeypatch.setattr(type(tower), "forward", count(kind, type(tower).forward))
    run_epoch = trainer.run_epoch

    def epoch():
        passes.clear()
        run_epoch()
        epochs.append(sorted(passes))

    monkeypatch.setattr(trainer, "run_epoch", epoch)
    trainer.train()
    # 12 pairs in batches of 6: two steps per epoch, in the first epoch as in the last
    assert epochs == [[("image", True, 6)] * 2 + [("text", True, 6)] * 2] * 3


def test_checkpoint_gives_the_same_result(make):
    result = (first := make("one")).train()
    again = make("two")
    again.load_model(first.output_dir)
    assert again.test() == result
    assert torch.equal(again.image_features("test"), first.image_features("test"))
