"""CoOp and zero-shot CLIP against the plain formulas."""

import copy

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.classification.templates import ENSEMBLE_TEMPLATES
from dassl_prompts.engine import build_trainer, load_checkpoint
from dassl_prompts.trainers.coop import CoOpModel
from dassl_prompts.trainers.zsclip import ZeroshotModel
from tests.trainers import plain


def reference_logits(state, model, images, ctx):
    tokens = model.class_prompts.tokens
    return plain.logits(state, plain.image_features(state, images), plain.text_features(state, tokens, ctx))


@pytest.mark.parametrize("csc", [False, True])
@pytest.mark.parametrize("n_ctx, init", [(16, ""), (4, ""), (4, "a photo of a")])
def test_logits_and_gradient(state, clip, images, labels, csc, n_ctx, init):
    model = CoOpModel(clip, plain.CLASSES, n_ctx, init, csc)
    ctx = model.prompt_learner.ctx
    assert ctx.shape == ((len(plain.CLASSES), n_ctx, 128) if csc and not init else (n_ctx, 128))
    ours, theirs = model(images), reference_logits(state, model, images, ctx)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    (a,) = torch.autograd.grad(F.cross_entropy(ours, labels), ctx)
    (b,) = torch.autograd.grad(F.cross_entropy(theirs, labels), ctx)
    assert plain.relative_error(a, b) < 1e-4


def test_initial_words_are_their_token_embeddings(state, clip):
    model = CoOpModel(clip, plain.CLASSES, 16, "a_photo_of_a")
    tokens = clip.tokenize(["a photo of a"])[0, 1:5]
    assert torch.equal(model.prompt_learner.ctx, state["token_embedding.weight"][tokens])


@torch.no_grad()
@pytest.mark.parametrize("position", ["middle", "front"])
def test_positions_differ_from_the_end(clip, images, position):
    torch.manual_seed(1)
    model = CoOpModel(clip, plain.CLASSES, 4, position=position)
    moved = model(images)
    model.class_position = "end"
    model.train(False)
    assert not torch.allclose(moved, model(images))
    with pytest.raises(ValueError, match="CLASS_TOKEN_POSITION"):
        CoOpModel(clip, plain.CLASSES, 4, position="start")


def test_evaluation_encodes_the_classes_once(train, make_cfg, tmp_path):
    train("CoOp", "TRAINER.COOP.N_CTX", 4)
    trainer = build_trainer(make_cfg("CoOp", "TRAINER.COOP.N_CTX", 4, "DATALOADER.TEST.BATCH_SIZE", 1, output="eval"))
    trainer.load_model(str(tmp_path / "run"))
    calls = []
    trainer.model.clip.text.register_forward_hook(lambda *a: calls.append(1))
    trainer.test()
    assert len(trainer.test_loader) > 10 and len(calls) == 1


@torch.no_grad()
def test_kept_class_matrix_follows_the_parameters(clip, images):
    model = CoOpModel(clip, plain.CLASSES, 4).eval()
    before = model(images)
    assert torch.equal(model(images), before)
    model.prompt_learner.ctx.add_(0.5)
    assert not torch.allclose(model(images), before)
    fresh = CoOpModel(clip, plain.CLASSES, 4).eval()
    fresh.prompt_learner.load_state_dict(model.prompt_learner.state_dict())
    torch.testing.assert_close(model(images), fresh(images))


def test_kept_class_matrix_is_computed_again_when_the_model_was_moved(clip, monkeypatch):
    model = ZeroshotModel(copy.deepcopy(clip), plain.CLASSES, ["a photo of a {}."])
    calls = []
    monkeypatch.setattr(model, "encode_classes", lambda prompts: calls.append(1) or torch.zeros(1))
    model.class_features(), model.class_features()
    assert len(calls) == 1
    model.double()
    model.class_features()
    assert len(calls) == 2


def test_checkpoint_is_coops(train, tmp_path):
    train("CoOp", "TRAINER.COOP.N_CTX", 4)
    saved = load_checkpoint(tmp_path / "run" / "prompt_learner" / "model.pth.tar-2")
    assert list(saved["state_dict"]) == ["ctx"] and saved["state_dict"]["ctx"].shape == (4, 128)


def test_checkpoint_of_official_coop_loads(make_cfg, tmp_path, images):
    """Token buffers of other classes are left alone."""
    ctx = torch.randn(4, 128)
    folder = tmp_path / "official" / "prompt_learner"
    folder.mkdir(parents=True)
    state = {"ctx": ctx, "token_prefix": torch.zeros(3, 1, 128), "token_suffix": torch.zeros(3, 72, 128)}
    torch.save({"state_dict": state, "epoch": 50}, folder / "model.pth.tar-50")
    trainer = build_trainer(make_cfg("CoOp", "TRAINER.COOP.N_CTX", 4))
    trainer.load_model(str(tmp_path / "official"))
    assert torch.equal(trainer.model.prompt_learner.ctx, ctx)


@pytest.mark.skipif(torch.cuda.is_available(), reason="half precision is computed as such on a GPU")
@pytest.mark.parametrize("precision, told", [("fp32", False), ("amp", True), ("fp16", True)])
def test_half_precision_on_a_cpu_is_fp32_and_says_so(make_cfg, capsys, precision, told):
    trainer = build_trainer(make_cfg("CoOp", "TRAINER.COOP.PREC", precision))
    assert trainer.precision == "fp32" and trainer.model.clip.dtype == torch.float32
    assert (f"PREC {precision} needs a GPU: computing in fp32" in capsys.readouterr().out) == told


def test_bad_settings(make_cfg):
    with pytest.raises(ValueError, match="PREC is 'int8'"):
        build_trainer(make_cfg("CoOp", "TRAINER.COOP.PREC", "int8"))
    with pytest.raises(ValueError, match="INPUT.SIZE is .64, 64. but the backbone .* takes 32 px"):
        build_trainer(make_cfg("CoOp", "INPUT.SIZE", (64, 64)))
    with pytest.raises(ValueError, match="only 1 fit into 77"):
        build_trainer(make_cfg("CoOp", "TRAINER.COOP.N_CTX", 74))
    with pytest.raises(ValueError, match="N_CTX is -1"):
        build_trainer(make_cfg("CoOp", "TRAINER.COOP.N_CTX", -1))


def test_test_sets_may_not_be_trained_on(make_cfg):
    trainer = build_trainer(make_cfg("CoOp", "TRAINER.COOP.N_CTX", 4))
    trainer.dm.dataset.evaluation_only = True
    with pytest.raises(ValueError, match="may not be trained on"):
        trainer.train()


def test_nan_stops_the_run_and_keeps_the_last_good_state(make_cfg, tmp_path):
    trainer = build_trainer(make_cfg("CoOp", "TRAINER.COOP.N_CTX", 4, "OPTIM.MAX_EPOCH", 3))
    original = trainer.loss

    def loss(images, labels):
        terms = original(images, labels)
        return {**terms, "loss": terms["loss"] * float("nan")} if trainer.epoch == 1 else terms

    trainer.loss = loss
    with pytest.raises(FloatingPointError, match="epoch 2/3, batch 1/4.*resume.pt"):
        trainer.train()
    assert trainer.model.prompt_learner.ctx.isfinite().all()


# -- zero-shot --------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("templates", [["a photo of a {}."], ["a photo of a {}.", *ENSEMBLE_TEMPLATES]])
def test_zero_shot_is_the_mean_of_normalised_features(state, clip, images, templates):
    model = ZeroshotModel(clip, plain.CLASSES, templates)
    rows = []
    for name in plain.CLASSES:
        tokens = clip.tokenize([t.format(name.replace("_", " ")) for t in templates])
        mean = plain.text_features(state, tokens).mean(0)
        rows.append(mean / mean.norm())
    theirs = plain.logits(state, plain.image_features(state, images), torch.stack(rows))
    torch.testing.assert_close(model(images), theirs, rtol=0, atol=1e-4)


def test_templates(make_cfg):
    trainer = build_trainer(make_cfg("ZeroshotCLIP", "TRAINER.ZSCLIP.TEMPLATE", "a drawing of a {}."))
    assert 0 <= trainer.test() <= 100
    with pytest.raises(ValueError, match="must hold {} once"):
        build_trainer(make_cfg("ZeroshotCLIP", "TRAINER.ZSCLIP.TEMPLATE", "a drawing"))
    with pytest.raises(ValueError, match="no template is known for dataset ToyColours"):
        build_trainer(make_cfg("ZeroshotCLIP"))
    # the ensemble does not grow when it is built twice
    cls = type(build_trainer(make_cfg("ZeroshotCLIP2", "TRAINER.ZSCLIP.TEMPLATE", "a drawing of a {}.", output="two")))
    sizes = {len(cls.templates(make_cfg("ZeroshotCLIP2", "TRAINER.ZSCLIP.TEMPLATE", "x {}."))) for _ in range(3)}
    assert sizes == {len(ENSEMBLE_TEMPLATES) + 1}


def test_zero_shot_has_nothing_to_train(make_cfg):
    trainer = build_trainer(make_cfg("ZeroshotCLIP", "TRAINER.ZSCLIP.TEMPLATE", "a {}."))
    with pytest.raises(ValueError, match="nothing to train"):
        trainer.train()


# -- models without data or trainer -----------------------------------------------------------------------------------


def test_build_model_for_unseen_classes(train, make_cfg, tmp_path, images):
    import dassl_prompts

    trained = train("CoOp", "TRAINER.COOP.N_CTX", 4)
    cfg = make_cfg("CoOp", "TRAINER.COOP.N_CTX", 4, output="x")
    model = dassl_prompts.build_model(cfg, plain.OTHERS, checkpoint=str(tmp_path / "run"))
    assert model(images).shape == (5, len(plain.OTHERS)) and not model.training
    assert torch.equal(model.prompt_learner.ctx, trained.model.prompt_learner.ctx)
    assert [n for n, p in model.checkpoint_module.named_parameters() if p.requires_grad] == ["ctx"]
    with pytest.raises(ValueError, match="do you mean"):
        dassl_prompts.build_model(make_cfg("CoOpp", output="y"), plain.OTHERS)


@pytest.mark.parametrize("name", ["CoOp", "ZeroshotCLIP"])
def test_a_run_on_a_resnet(name, train, make_cfg, resnet_file):
    path, official = resnet_file
    opts = [
        "MODEL.BACKBONE.NAME",
        str(path),
        "INPUT.SIZE",
        (64, 64),
        "OPTIM.MAX_EPOCH",
        1,
        "TRAINER.COOP.N_CTX",
        4,
        "TRAINER.ZSCLIP.TEMPLATE",
        "a photo of a {}.",
    ]
    trainer = train(name, *opts) if name == "CoOp" else build_trainer(make_cfg(name, *opts))
    assert trainer.test() >= 0
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        if name == "CoOp":
            texts = trainer.model.class_features()
        else:
            names = [c.replace("_", " ") for c in plain.CLASSES]
            texts = official.encode_text(
                trainer.model.clip.tokenize([f"a photo of a {c}." for c in names]), normalize=True
            )
        wanted = official.logit_scale.exp() * official.encode_image(images, normalize=True) @ texts.T
        torch.testing.assert_close(trainer.model_inference(images), wanted, rtol=0, atol=1e-3)
