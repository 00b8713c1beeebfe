"""KgCoOp's objective against the plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.classification.templates import CUSTOM_TEMPLATES, KGCOOP_TEMPLATES
from dassl_prompts.engine import build_trainer, load_checkpoint
from dassl_prompts.trainers.kgcoop import knowledge_distance
from tests.trainers import plain

TEMPLATE = "a photo of a {}."
OPTS = ["TRAINER.KGCOOP.TEMPLATE", TEMPLATE, "TRAINER.COOP.CTX_INIT", "a photo of a"]
NAMES = [n.replace("_", " ") for n in plain.CLASSES]


def pixels(trainer):
    return next(iter(trainer.train_loader_x))


@pytest.mark.parametrize("weight", [8.0, 0.5])
def test_objective_and_gradient_equal_the_plain_formulas(make_cfg, state, clip, weight):
    """From pixels and token ids: CE over s V T^T, and the mean cosine to the template's features over all classes."""
    trainer = build_trainer(make_cfg("KgCoOp", *OPTS, "TRAINER.COOP.W", weight))
    ctx = trainer.model.prompt_learner.ctx
    with torch.no_grad():
        ctx.add_(0.1 * torch.randn_like(ctx))
    batch = pixels(trainer)
    labels = batch["label"][:3]
    terms = trainer.loss(batch["img"][:3], labels)  # three images: the classes of the batch are not all classes

    text = plain.text_features(state, clip.tokenize([f"X X X X {name}." for name in NAMES]), ctx)
    target = plain.text_features(state, clip.tokenize([TEMPLATE.format(name) for name in NAMES]))
    logits = plain.logits(state, plain.image_features(state, batch["img"][:3]), text)
    distance = 1 - sum(float_dot(t, w) for t, w in zip(text, target)) / len(NAMES)
    wanted = F.cross_entropy(logits, labels) + weight * distance
    torch.testing.assert_close(terms["loss"], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms["loss_kg"], weight * distance, rtol=1e-4, atol=1e-5)
    (got,) = torch.autograd.grad(terms["loss"], ctx)
    (want,) = torch.autograd.grad(wanted, ctx)
    assert plain.relative_error(got, want) < 1e-4


def float_dot(a, b):
    return (a * b).sum()


def test_the_papers_squared_distance_is_twice_the_codes():
    """So the code's W 8 is the paper's lambda 4."""
    t, w = (F.normalize(torch.randn(6, 16, dtype=torch.float64), dim=-1) for _ in range(2))
    squared = ((t - w) ** 2).sum(-1).mean()
    torch.testing.assert_close(2 * knowledge_distance(t, w).double(), squared, rtol=1e-6, atol=1e-6)


def test_without_weight_it_is_coop_step_for_step(train):
    ours = train("KgCoOp", *OPTS, "TRAINER.COOP.W", 0.0, output="kg")
    coop = train("CoOp", *OPTS[2:], output="coop")
    assert torch.equal(ours.model.prompt_learner.ctx, coop.model.prompt_learner.ctx)
    weighted = train("KgCoOp", *OPTS, output="weighted")
    assert not torch.equal(ours.model.prompt_learner.ctx, weighted.model.prompt_learner.ctx)


def test_the_hand_written_prompt_itself_is_at_distance_zero(make_cfg):
    trainer = build_trainer(make_cfg("KgCoOp", *OPTS))
    batch = pixels(trainer)
    assert trainer.loss(batch["img"], batch["label"])["loss_kg"].item() == pytest.approx(0, abs=1e-5)


def test_the_weight_pulls_the_classes_towards_the_template(train):
    """What the method is for: after the same steps the regularised classes are nearer."""
    near, far = (
        train("KgCoOp", *OPTS, "TRAINER.COOP.W", weight, "OPTIM.LR", 0.05, output=f"w{weight}").model
        for weight in (20.0, 0.0)
    )
    distance = lambda model: float(knowledge_distance(model.class_features(), model.target))
    assert distance(near) < distance(far)


def test_checkpoint_is_coops(train, tmp_path):
    train("KgCoOp", *OPTS)
    state = load_checkpoint(tmp_path / "run" / "prompt_learner" / "model.pth.tar-2")["state_dict"]
    assert list(state) == ["ctx"]


def test_templates_are_the_official_ones():
    differing = {name: t for name, t in KGCOOP_TEMPLATES.items() if t != CUSTOM_TEMPLATES[name]}
    assert differing == {"DescribableTextures": "a photo of a {}, a type of texture."}
    assert KGCOOP_TEMPLATES["Food101"] == "a photo of {}, a type of food."
    assert KGCOOP_TEMPLATES["FGVCAircraft"] == "a photo of a {}, a type of aircraft."


def test_a_dataset_without_template_names_the_key(make_cfg):
    with pytest.raises(ValueError, match="ToyColours: set TRAINER.KGCOOP.TEMPLATE"):
        build_trainer(make_cfg("KgCoOp"))
    with pytest.raises(ValueError, match="TRAINER.KGCOOP.TEMPLATE must hold {} once"):
        build_trainer(make_cfg("KgCoOp", "TRAINER.KGCOOP.TEMPLATE", "a photo"))
