"""CLIPAdapter, TipAdapter, TipAdapterF and LinearProbe against the plain formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.classification.class_bound import rows_among
from dassl_prompts.classification.prompted import Prompts
from dassl_prompts.engine import build_trainer, load_checkpoint
from dassl_prompts.trainers.clip_adapter import Adapter
from dassl_prompts.trainers.linear_probe import step_sizes
from tests.trainers import plain

TEMPLATE = "a photo of a {}."
NAMES = [n.replace("_", " ") for n in plain.CLASSES]
NODE = {"CLIPAdapter": "CLIP_ADAPTER", "TipAdapter": "TIP_ADAPTER", "TipAdapterF": "TIP_ADAPTER", "LinearProbe": "LP"}
BASE, NEW = (["DATASET.SUBSAMPLE_CLASSES", which] for which in ("base", "new"))


def opts(name, *more):
    return [f"TRAINER.{NODE[name]}.TEMPLATE", TEMPLATE, *more]


def plain_text(state, clip, names=NAMES):
    return plain.text_features(state, clip.tokenize([TEMPLATE.format(name) for name in names]))


def zero_shot(state, clip, images, names):
    return plain.logits(state, plain.image_features(state, images), plain_text(state, clip, names))


# -- CLIPAdapter ------------------------------------------------------------------------------------------------------


def test_adapter_objective_and_gradients(make_cfg, state, clip):
    """From pixels: norm(0.7 f + 0.3 ReLU(U ReLU(D f))) on un-normalised features against the template's."""
    trainer = build_trainer(make_cfg("CLIPAdapter", *opts("CLIPAdapter", "TRAINER.CLIP_ADAPTER.RATIO", 0.3)))
    batch = next(iter(trainer.train_loader_x))
    down, up = (p for p in trainer.model.adapter.parameters())
    assert down.shape == (16, 64) and up.shape == (64, 16)
    f = plain.image_features(state, batch["img"], normalise=False)
    v = 0.7 * f + 0.3 * ((f @ down.t()).relu() @ up.t()).relu()
    v = v / v.norm(dim=-1, keepdim=True)
    wanted = F.cross_entropy(plain.logits(state, v, plain_text(state, clip)), batch["label"])
    loss = trainer.loss(batch["img"], batch["label"])["loss"]
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)
    for got, want in zip(torch.autograd.grad(loss, (down, up)), torch.autograd.grad(wanted, (down, up))):
        assert plain.relative_error(got, want) < 1e-4 and want.norm() > 0


def test_adapter_without_share_is_zero_shot_clip(make_cfg, state, clip, images):
    model = build_trainer(make_cfg("CLIPAdapter", *opts("CLIPAdapter", "TRAINER.CLIP_ADAPTER.RATIO", 0.0))).model
    torch.testing.assert_close(model(images), zero_shot(state, clip, images, NAMES), rtol=1e-5, atol=1e-3)


def test_adapter_checkpoint_has_the_official_names(train, tmp_path):
    train("CLIPAdapter", *opts("CLIPAdapter"))
    state = load_checkpoint(tmp_path / "run" / "clip_adapter" / "model.pth.tar-2")["state_dict"]
    assert set(state) == {"fc.0.weight", "fc.2.weight"}


@pytest.mark.parametrize("ratio, reduction", [(1.5, 4), (0.2, 0)])
def test_adapter_settings_are_checked(ratio, reduction):
    with pytest.raises(ValueError, match="of an adapter is"):
        Adapter(8, ratio, reduction)


# -- Tip-Adapter ------------------------------------------------------------------------------------------------------


def tip(train, *more, **kw):
    settings = ("TRAINER.TIP_ADAPTER.SEARCH_HP", False, "INPUT.TRANSFORMS", ("normalize",))
    return train("TipAdapter", *opts("TipAdapter"), *settings, "TRAINER.TIP_ADAPTER.ALPHA", 2.0, *more, **kw)


def cached_pixels(trainer):
    """All training images in order, with their labels."""
    items = [trainer.train_loader_x.dataset[i] for i in range(len(trainer.dm.dataset.train_x))]
    return torch.stack([item["img"] for item in items]), torch.tensor([item["label"] for item in items])


def test_tip_logits_equal_the_plain_formula(train, state, clip, images):
    trainer = tip(train, "TRAINER.TIP_ADAPTER.BETA", 3.0)
    pixels, labels = cached_pixels(trainer)
    assert len(pixels) == 4 * len(NAMES)  # none is left out, whatever the batch size
    keys, v = plain.image_features(state, pixels), plain.image_features(state, images)
    wanted = zero_shot(state, clip, images, NAMES)
    for image, row in zip(v, wanted):
        for key, label in zip(keys, labels):
            row[label] += 2.0 * math.exp(-3.0 * (1 - float(image @ key)))
    torch.testing.assert_close(trainer.model_inference(images), wanted, rtol=1e-5, atol=1e-3)


def test_tip_keys_are_the_mean_of_augmented_views(train, state):
    """Un-normalised features of every epoch's view are added up, then normalised."""
    trainer = train(
        "TipAdapter", *opts("TipAdapter"), "TRAINER.TIP_ADAPTER.SEARCH_HP", False, "OPTIM.MAX_EPOCH", 1, output="one"
    )
    seen = []
    again = build_trainer(trainer.cfg.clone())
    again.output_dir = ""
    model = again.model
    image = model.image_features
    model.image_features = lambda x, p: seen.append(image(x, p)) or seen[-1]
    for epoch in range(2):
        again.train_loader_x.dataset.epoch_seed = epoch
        for batch in again.train_loader_x:
            again.fill_cache(batch)
    half = len(seen) // 2
    mean = (torch.cat(seen[:half]) + torch.cat(seen[half:])) / 2
    assert not torch.allclose(*(torch.cat(part) for part in (seen[:half], seen[half:])))  # augmented
    probe = F.normalize(torch.randn(3, 64), dim=-1)
    torch.testing.assert_close(model.cache.affinity(probe), probe @ F.normalize(mean, dim=-1).t(), rtol=1e-5, atol=1e-5)


def test_tip_search_takes_the_best_pair_of_the_validation_images(train, capsys):
    settings = ("TRAINER.TIP_ADAPTER.SEARCH_STEP", (4, 3), "TRAINER.TIP_ADAPTER.SEARCH_SCALE", (7.0, 30.0))
    trainer = train("TipAdapter", *opts("TipAdapter"), *settings)
    out = capsys.readouterr().out
    assert "Chosen on 14 validation images" in out
    model = trainer.model.eval()
    scores = {}
    with torch.no_grad():
        for beta in [0.1 + i * 6.9 / 4 for i in range(4)]:
            for alpha in [0.1 + i * 29.9 / 3 for i in range(3)]:
                model.cache.beta.fill_(beta), model.cache.alpha.fill_(alpha)
                hits = [(model(b["img"]).argmax(1) == b["label"]).float() for b in trainer.val_loader]
                scores[beta, alpha] = torch.cat(hits).mean().item()
    best = max(scores.values())
    first = next(pair for pair, score in scores.items() if score == best)
    assert f"BETA {first[0]:.2f}, ALPHA {first[1]:.2f}" in out


@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF", "LinearProbe"])
def test_new_classes_are_scored_by_zero_shot_clip(train, make_cfg, tmp_path, state, clip, images, name):
    """Nothing was learned of them: their ranking is that of the template alone."""
    train(name, *opts(name), *BASE)
    new = build_trainer(make_cfg(name, *opts(name), *NEW, output="new"))
    new.load_model(str(tmp_path / "run"))
    names = new.model.classnames
    assert not set(names) & set(NAMES[: len(NAMES) - len(names)])
    got, wanted = new.model_inference(images), zero_shot(state, clip, images, names)
    if name == "LinearProbe":  # with one weight for all of them
        ratio = got / (wanted / state["logit_scale"].exp())
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=1e-3)
    else:
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", ["TipAdapter", "TipAdapterF", "LinearProbe"])
def test_classes_in_another_order_keep_their_rows(train, make_cfg, tmp_path, images, name):
    """``build_model`` with the class names turned round: the logits are turned round."""
    import dassl_prompts

    trained = train(name, *opts(name))
    cfg = make_cfg(name, *opts(name), output="x")
    model = dassl_prompts.build_model(cfg, list(reversed(plain.CLASSES)), checkpoint=str(tmp_path / "run"))
    trained.set_model_mode("eval")
    torch.testing.assert_close(model(images).flip(1), trained.model_inference(images), rtol=1e-4, atol=1e-3)


def test_tip_f_first_step_is_that_of_the_plain_formula(make_cfg, state, clip):
    """Gradient of CE for the keys, from pixels."""
    settings = ("INPUT.TRANSFORMS", ("normalize",), "TRAINER.TIP_ADAPTER.AUGMENT_EPOCH", 1)
    trainer = build_trainer(make_cfg("TipAdapterF", *opts("TipAdapterF"), *settings))
    trainer.before_train()
    pixels, labels = cached_pixels(trainer)
    keys = plain.image_features(state, pixels).detach().requires_grad_()
    torch.testing.assert_close(trainer.model.cache.keys.detach(), keys.detach(), rtol=1e-4, atol=1e-5)
    batch = next(iter(trainer.train_loader_x))
    v = plain.image_features(state, batch["img"])
    one_hot = torch.eye(len(NAMES))[labels]
    logits = plain.logits(state, v, plain_text(state, clip)) + (-5.5 * (1 - v @ keys.t())).exp() @ one_hot
    (want,) = torch.autograd.grad(F.cross_entropy(logits, batch["label"]), keys)
    (got,) = torch.autograd.grad(trainer.loss(batch["img"], batch["label"])["loss"], trainer.model.cache.keys)
    assert plain.relative_error(got, want) < 1e-3 and want.norm() > 0


def test_adam_eps_reaches_the_optimiser(make_cfg):
    settings = ("OPTIM.NAME", "adamw", "OPTIM.ADAM_EPS", 1e-4)
    trainer = build_trainer(make_cfg("TipAdapterF", *opts("TipAdapterF"), *settings))
    assert trainer.optim.param_groups[0]["eps"] == 1e-4


# -- LinearProbe ------------------------------------------------------------------------------------------------------


def test_probe_steps_equal_a_plain_loop(train, state, clip):
    """Eleven steps of SGD with momentum on W and b, one of alpha after the tenth, from pixels."""
    trainer = train(
        "LinearProbe", *opts("LinearProbe"), "INPUT.TRANSFORMS", ("normalize",), "OPTIM.MAX_EPOCH", 11,
        "OPTIM.NAME", "sgd", "OPTIM.LR", 1.0, "OPTIM.WEIGHT_DECAY", 0.0, "OPTIM.LR_SCHEDULER", "single_step",
    )  # fmt: skip
    from dassl_prompts.engine.loading import whole_pass_loader

    loader = whole_pass_loader(trainer.cfg, trainer.dm)
    batches = list(loader)
    v = plain.image_features(state, torch.cat([b["img"] for b in batches]))
    y, t = torch.cat([b["label"] for b in batches]), plain_text(state, clip)
    n, c = len(y), len(NAMES)
    w = torch.stack([v[y == k].mean(0) for k in range(c)]).requires_grad_()
    b = torch.zeros(c, requires_grad=True)
    cosine = sum(float((v[y == k] @ t[k]).mean()) for k in range(c)) / c
    alpha = torch.full((c,), 250 * cosine).requires_grad_()
    lr_w = 4 * n / float(torch.linalg.eigvalsh(v.double().t() @ v.double())[-1])
    lr_alpha = n / (4 * float((v @ t.t()).square().sum(0).max()))
    velocity = [torch.zeros_like(w), torch.zeros_like(b)]
    for step in range(1, 12):
        loss = F.cross_entropy(v @ w.t() + b + alpha * (v @ t.t()), y)
        grads = torch.autograd.grad(loss, (w, b, alpha))
        with torch.no_grad():
            for p, m, g in zip((w, b), velocity, grads):
                m.mul_(0.9).add_(g)
                p -= lr_w * m
            if step == 10:
                alpha -= lr_alpha * grads[2]
    probe = trainer.model.probe
    torch.testing.assert_close(probe.alpha.detach(), alpha.detach(), rtol=1e-3, atol=1e-3)
    assert plain.relative_error(probe.classifier.weight.detach(), w.detach()) < 1e-2


def test_step_sizes():
    v, t = F.normalize(torch.randn(20, 6), dim=-1), F.normalize(torch.randn(3, 6), dim=-1)
    w, alpha = step_sizes(v, t)
    assert w == pytest.approx(4 * 20 / float(torch.linalg.svdvals(v)[0] ** 2), rel=1e-4)
    assert alpha == pytest.approx(20 / (4 * max(float(((v @ t[k]) ** 2).sum()) for k in range(3))), rel=1e-4)


def test_image_features_carry_no_gradient(make_cfg, images):
    model = build_trainer(make_cfg("LinearProbe", *opts("LinearProbe"))).model
    assert not model.encode_images(images, Prompts()).requires_grad


def test_rows_among():
    assert rows_among(["red_panda", "violin", "dog"], ["dog", "red panda"]).tolist() == [1, -1, 0]
