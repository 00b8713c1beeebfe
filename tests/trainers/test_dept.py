"""DePT's head, objective, fusion and what it knows of classes, against the plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.engine import TRAINER_REGISTRY, build_trainer, load_checkpoint, load_learned_tensors
from tests.trainers import plain
from tests.trainers.test_backbone_runs import METHODS

BACKBONES = {
    "CoOp": ["TRAINER.COOP.N_CTX", 4],
    **{n: METHODS[n][0] for n in ("CoCoOp", "KgCoOp", "MaPLe", "PromptSRC")},
}
NAMES = [n.replace("_", " ") for n in plain.CLASSES]
BASE, NEW = (["DATASET.SUBSAMPLE_CLASSES", which] for which in ("base", "new"))


def opts(name, *more):
    return [*BACKBONES[name], *more]


def shaken(trainer, seed=3):
    """All learned tensors away from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainer.model.prompt_parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return trainer, next(iter(trainer.train_loader_x))


def twins(make_cfg, name, *more):
    """DePT and its backbone with the same prompts, and a batch."""
    ours, batch = shaken(build_trainer(make_cfg(f"DePT_{name}", *opts(name, *more), output="dept")))
    backbone = build_trainer(make_cfg(name, *opts(name), output="backbone"))
    own = dict(ours.model.named_parameters())
    with torch.no_grad():
        for key, p in backbone.model.named_parameters():
            p.copy_(own[key])
    return ours, backbone, batch


@pytest.mark.parametrize("name", BACKBONES)
def test_without_lambda_it_is_the_backbone(make_cfg, name):
    """Loss, gradients of the prompts, logits."""
    ours, backbone, batch = twins(make_cfg, name, "TRAINER.LINEAR_PROBE.WEIGHT", 0.0)
    losses = [t.loss(batch["img"][:3], batch["label"][:3])["loss"] for t in (ours, backbone)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    learned = {key: p for key, p in backbone.model.named_parameters() if p.requires_grad}
    own = dict(ours.model.named_parameters())
    got = torch.autograd.grad(losses[0], [own[key] for key in learned])
    for g, w in zip(got, torch.autograd.grad(losses[1], list(learned.values()))):
        assert plain.relative_error(g, w) < 1e-4
    for trainer in (ours, backbone):
        trainer.set_model_mode("eval")
    with torch.no_grad():
        logits = [t.model_inference(batch["img"]) for t in (ours, backbone)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-3)


def test_objective_from_pixels(make_cfg, state, clip):
    """0.4 CE(z_ITM) + 0.6 CE over 2B rows: channel-adjusted un-normalised text features of the labels, then of the images."""
    trainer, batch = shaken(build_trainer(make_cfg("DePT_CoOp", *opts("CoOp"), "TRAINER.LINEAR_PROBE.WEIGHT", 0.6)))
    m, labels = trainer.model, batch["label"]
    f = plain.image_features(state, batch["img"], normalise=False)
    tokens = clip.tokenize([f"X X X X {name}." for name in NAMES])
    t = plain.text_features(state, tokens, m.prompt_learner.ctx, normalise=False)
    logits = plain.logits(state, F.normalize(f, dim=-1), F.normalize(t, dim=-1))
    total = 0.4 * F.cross_entropy(logits, labels)
    rows, targets = [], []
    for film, features in ((m.film_lp_text, t[labels]), (m.film_lp_img, f)):
        for feature, label in zip(features, labels):
            rows.append(m.linear_probe_proj.weight @ (film.scale * feature + film.bias) + m.linear_probe_proj.bias)
            targets.append(label)
    wanted = total + 0.6 * F.cross_entropy(torch.stack(rows), torch.stack(targets))
    loss = trainer.loss(batch["img"], labels)["loss"]
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)
    parameters = m.prompt_parameters()
    for g, w in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters)):
        assert w.norm() > 0 and plain.relative_error(g, w) < 1e-3


def test_at_lambda_one_it_is_logistic_regression_on_stacked_features(make_cfg, state, clip):
    """gamma 1, beta 0: no channel adjustment."""
    trainer = build_trainer(make_cfg("DePT_CoOp", *opts("CoOp"), "TRAINER.LINEAR_PROBE.WEIGHT", 1.0))
    batch = next(iter(trainer.train_loader_x))
    labels, head = batch["label"], trainer.model.linear_probe_proj
    tokens = clip.tokenize([f"X X X X {name}." for name in NAMES])
    t = plain.text_features(state, tokens, trainer.model.prompt_learner.ctx, normalise=False)
    stacked = torch.cat([t[labels], plain.image_features(state, batch["img"], normalise=False)])
    wanted = F.cross_entropy(stacked @ head.weight.t() + head.bias, torch.cat([labels, labels]))
    torch.testing.assert_close(trainer.loss(batch["img"], labels)["loss"], wanted, rtol=1e-5, atol=1e-4)


def test_cocoop_takes_the_text_of_the_images_own_prompts(make_cfg):
    trainer, batch = shaken(build_trainer(make_cfg("DePT_CoCoOp", *opts("CoCoOp"))))
    m, labels = trainer.model, batch["label"]
    loss = 0
    for image, label in zip(batch["img"], labels):
        f = m.clip.encode_image(image[None])
        t = m.text_features(m.condition(F.normalize(f, dim=-1)))[0]
        both = m.cat_logits(f, t[label][None])
        loss = loss + F.cross_entropy(both, torch.stack([label, label])) / len(labels)
    torch.testing.assert_close(trainer.loss(batch["img"], labels)["loss_cat"], 0.7 * loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("regularisers, share", [("full", 1.0), ("scaled", 0.3)])
def test_regularisers_of_the_backbone(make_cfg, regularisers, share):
    ours, backbone, batch = twins(make_cfg, "KgCoOp", "TRAINER.DEPT.REGULARISERS", regularisers)
    theirs = backbone.loss(batch["img"], batch["label"])["loss_kg"]
    torch.testing.assert_close(ours.loss(batch["img"], batch["label"])["loss_kg"], share * theirs, rtol=1e-5, atol=1e-6)


# -- scores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CoOp", "MaPLe"])
def test_fusion(make_cfg, name, images):
    """Of logits, as the code has it, or of probabilities, as the paper has it; or the head alone."""
    ours, backbone, _ = twins(make_cfg, name)
    for trainer in (ours, backbone):
        trainer.set_model_mode("eval")
    with torch.no_grad():
        itm = backbone.model_inference(images)
        cat = ours.model.cat_logits(ours.model.image_features(images, ours.model.emit()))
        torch.testing.assert_close(ours.model_inference(images), 0.3 * itm + 0.7 * cat, rtol=1e-4, atol=1e-3)
        ours.model.probabilities = True
        p = 0.7 * cat.softmax(-1) + 0.3 * itm.softmax(-1)
        torch.testing.assert_close(ours.model_inference(images).exp(), p, rtol=1e-4, atol=1e-5)
        ours.model.fuse = False
        torch.testing.assert_close(ours.model_inference(images), cat)


def test_new_classes_are_scored_by_the_cosines_alone(train, make_cfg, tmp_path, images):
    train("DePT_CoOp", *opts("CoOp"), *BASE)
    new = build_trainer(make_cfg("DePT_CoOp", *opts("CoOp"), *NEW, output="new"))
    new.load_model(str(tmp_path / "run"))
    coop = build_trainer(make_cfg("CoOp", *opts("CoOp"), *NEW, output="coop"))
    state = load_checkpoint(tmp_path / "run" / "PromptLearner" / "model.pth.tar-2")["state_dict"]
    load_learned_tensors(coop.model.prompt_learner, {"ctx": state["prompt_learner.ctx"]})
    assert not new.model.has_head
    torch.testing.assert_close(new.model_inference(images), coop.model_inference(images))


def test_the_head_is_asked_for_classes_that_it_knows(train, make_cfg, tmp_path, images):
    """A part of the classes, in another order, as on ImageNet-A and -R: its rows are chosen by name; else it has no say."""
    import dassl_prompts

    trained = train("DePT_CoOp", *opts("CoOp"))
    trained.set_model_mode("eval")
    cfg = make_cfg("DePT_CoOp", *opts("CoOp"), output="x")
    some = [4, 1, 2]
    part = dassl_prompts.build_model(cfg, [plain.CLASSES[i] for i in some], checkpoint=str(tmp_path / "run"))
    with torch.no_grad():
        torch.testing.assert_close(part(images), trained.model_inference(images)[:, some], rtol=1e-4, atol=1e-3)
    others = dassl_prompts.build_model(cfg, [*plain.OTHERS, plain.CLASSES[0]], checkpoint=str(tmp_path / "run"))
    assert not others.has_head and others(images).shape == (5, 4)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, folder", [("CoOp", "PromptLearner"), ("MaPLe", "MultiModalPromptLearner"), ("PromptSRC", "VLPromptLearner")]
)
def test_official_names(make_cfg, name, folder):
    model = build_trainer(make_cfg(f"DePT_{name}", *opts(name))).model
    learned = {key for key, p in model.checkpoint_module.named_parameters() if p.requires_grad}
    head = {"film_lp_img.scale", "film_lp_img.bias", "film_lp_text.scale", "film_lp_text.bias"}
    assert model.checkpoint_name == folder
    assert head | {"linear_probe_proj.weight", "linear_probe_proj.bias", "prompt_learner.ctx"} <= learned


def test_an_official_file_that_does_not_name_its_classes(make_cfg, tmp_path, capsys):
    source = build_trainer(make_cfg("DePT_CoOp", *opts("CoOp"), output="source"))
    folder = tmp_path / "official" / "PromptLearner"
    folder.mkdir(parents=True)
    state = {k: p.detach() for k, p in source.model.named_parameters() if not k.startswith("clip.")}
    state["prompt_learner.token_prefix"] = torch.zeros(7, 1, 128)
    torch.save({"state_dict": state, "epoch": 10}, folder / "model.pth.tar-10")
    same = build_trainer(make_cfg("DePT_CoOp", *opts("CoOp"), output="same"))
    same.load_model(str(tmp_path / "official"))
    assert same.model.has_head and torch.equal(
        same.model.linear_probe_proj.weight, source.model.linear_probe_proj.weight
    )
    fewer = build_trainer(make_cfg("DePT_CoOp", *opts("CoOp"), *BASE, output="fewer"))
    fewer.load_model(str(tmp_path / "official"))
    assert not fewer.model.has_head and "scored by cosines alone" in capsys.readouterr().out


def test_new_layers_learn_at_their_own_rate(make_cfg):
    settings = (
        "OPTIM.LR",
        0.0035,
        "OPTIM.WARMUP_EPOCH",
        1,
        "OPTIM.WARMUP_TYPE",
        "constant",
        "OPTIM.LR_SCHEDULER",
        "cosine",
    )
    trainer = build_trainer(make_cfg("DePT_MaPLe", *opts("MaPLe"), *settings))
    prompts, head = trainer.optim.param_groups
    assert [prompts["lr"], head["lr"]] == [1e-5, 1e-5]  # the warm-up is the same for both
    trainer.update_lr()
    assert prompts["lr"] == pytest.approx(0.0035) and head["lr"] == pytest.approx(0.0035 * 6.5)
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in head["params"]} == {"linear_probe_proj", "film_lp_img", "film_lp_text"}
    assert sum(len(g["params"]) for g in (prompts, head)) == len(
        [p for p in trainer.model.parameters() if p.requires_grad]
    )


def test_settings_are_checked(make_cfg):
    for key, value, message in (
        ("TRAINER.LINEAR_PROBE.TYPE", "similarity", "LINEAR_PROBE.TYPE is 'similarity'"),
        ("TRAINER.LINEAR_PROBE.WEIGHT", 1.5, "WEIGHT is 1.5"),
        ("TRAINER.DEPT.FUSION", "votes", "FUSION is 'votes'"),
    ):
        with pytest.raises(ValueError, match=message):
            build_trainer(make_cfg("DePT_CoOp", *opts("CoOp"), key, value))


def test_without_channel_adjustment(make_cfg, images):
    model = build_trainer(make_cfg("DePT_CoOp", *opts("CoOp"), "TRAINER.FILM.LINEAR_PROBE", False)).model
    f = model.clip.encode_image(images)
    torch.testing.assert_close(model.cat_logits(f), model.linear_probe_proj(f))


def test_one_wrapper_for_all_backbones():
    assert {name for name in TRAINER_REGISTRY.registered_names() if name.startswith("DePT_")} == {
        f"DePT_{name}" for name in BACKBONES
    }
