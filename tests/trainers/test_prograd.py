"""ProGrad's projection, distillation and initial context against the plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.classification.templates import PROGRAD_TEMPLATES
from dassl_prompts.engine import build_trainer
from dassl_prompts.run.job import Job, train_step
from dassl_prompts.trainers.prograd import distillation, project, right_aligned_context
from tests.trainers import plain

TEMPLATE = "a photo of a {}."
OPTS = ["TRAINER.PROGRAD.TEMPLATE", TEMPLATE, "TRAINER.COOP.CTX_INIT", "a photo of a", "TRAINER.COOP.N_CTX", 6]
NAMES = [n.replace("_", " ") for n in plain.CLASSES]
vector = lambda *values: torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    "own, general, strength, expected",
    [
        (vector(1, 0), vector(3, 3), 1.0, vector(1, 0)),  # acute: untouched
        (vector(1, 0), vector(0, 5), 1.0, vector(1, 0)),  # right angle: untouched
        (vector(2, 0), vector(-1, 1), 1.0, vector(1, 1)),  # obtuse: without its component along the other
        (vector(2, 0), vector(-1, 1), 0.5, vector(1.5, 0.5)),
        (vector(2, 0), vector(-1, 1), 0.0, vector(2, 0)),
        (vector(1, -2), vector(-1, 2), 1.0, vector(0, 0)),  # opposite: nothing is left
        (vector(1, -2), vector(0, 0), 1.0, vector(1, -2)),  # teacher and student agree: the official code gives NaN
    ],
)
def test_projection(own, general, strength, expected):
    torch.testing.assert_close(project(own, general, strength), expected)
    torch.testing.assert_close(project(own, 1e-3 * general, strength), expected)  # the length of g_g does not matter


def test_projected_gradient_does_not_work_against_the_general_one():
    own, general = torch.randn(2, 4, 16, dtype=torch.float64)
    general = general if (own * general).sum() < 0 else -general
    assert float((project(own, general, 1.0) * general).sum()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_and_its_gradient(temperature):
    student, teacher = torch.randn(2, 3, 5, dtype=torch.float64)
    student.requires_grad_()
    loss = distillation(student, teacher, temperature)
    slow = 0.0
    for z, zt in zip(student, teacher):
        p, q = (zt / temperature).exp(), (z / temperature).exp()
        p, q = p / p.sum(), q / q.sum()
        slow = slow - temperature**2 * sum(p[c] * q[c].log() for c in range(5))
    torch.testing.assert_close(loss, slow / 3)
    assert torch.autograd.gradcheck(lambda z: distillation(z, teacher, temperature), student)
    kl = temperature**2 * F.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean"
    )
    torch.testing.assert_close(*(torch.autograd.grad(term, student)[0] for term in (loss, kl)))


def built(make_cfg, *opts, output="run"):
    """A trainer whose context is away from its start, and a batch."""
    trainer = build_trainer(make_cfg("ProGrad", *OPTS, *opts, output=output))
    ctx = trainer.model.prompt_learner.ctx
    with torch.no_grad():
        ctx.add_(0.2 * torch.randn(ctx.shape, generator=torch.Generator().manual_seed(1)))
    return trainer, next(iter(trainer.train_loader_x))


def plain_gradients(trainer, batch, state, clip, temperature=1.0):
    """Gradients of CE and of L_kl for ctx, from pixels and token ids."""
    ctx = trainer.model.prompt_learner.ctx
    image = plain.image_features(state, batch["img"])
    text = plain.text_features(state, clip.tokenize([f"X X X X X X {name}." for name in NAMES]), ctx)
    zero_shot = plain.text_features(state, clip.tokenize([TEMPLATE.format(name) for name in NAMES]))
    z, zt = plain.logits(state, image, text), plain.logits(state, image, zero_shot)
    ce = F.cross_entropy(z, batch["label"])
    kl = -(temperature**2) * ((zt / temperature).softmax(-1) * (z / temperature).log_softmax(-1)).sum(-1).mean()
    return ce, kl, torch.autograd.grad(ce, ctx, retain_graph=True)[0], torch.autograd.grad(kl, ctx)[0]


@pytest.mark.parametrize("flip", [False, True])
def test_one_step_equals_the_plain_formulas(make_cfg, state, clip, flip, monkeypatch):
    """The optimiser sees g_d with its conflicting part taken out; both kinds of angle are driven."""
    trainer, batch = built(make_cfg, "LOSS.LAMBDA", 0.7, "LOSS.T", 2.0)
    _, _, own, general = plain_gradients(trainer, batch, state, clip, 2.0)
    obtuse = bool((own * general).sum() < 0)
    if flip:  # the other kind of angle: minus L_kl
        original = trainer.loss
        monkeypatch.setattr(trainer, "loss", lambda *a: (lambda t: {**t, "loss_kl": -t["loss_kl"]})(original(*a)))
        general, obtuse = -general, not obtuse
    unit = general / general.norm()
    wanted = own - 0.7 * (own * unit).sum() * unit if obtuse else own
    trainer.batch_idx, trainer.num_batches = 0, 10
    trainer.forward_backward(batch)
    assert plain.relative_error(trainer.model.prompt_learner.ctx.grad, wanted) < 1e-4


def test_kd_mixes_the_losses(make_cfg, state, clip):
    trainer, batch = built(make_cfg, "LOSS.NAME", "kd", "LOSS.ALPHA", 0.3)
    ce, kl, own, general = plain_gradients(trainer, batch, state, clip)
    terms = trainer.loss(batch["img"], batch["label"])
    torch.testing.assert_close(terms["loss"], 0.7 * ce + 0.3 * kl, rtol=1e-5, atol=1e-4)
    trainer.batch_idx, trainer.num_batches = 0, 10
    trainer.forward_backward(batch)
    assert plain.relative_error(trainer.model.prompt_learner.ctx.grad, 0.7 * own + 0.3 * general) < 1e-4


def test_without_lambda_it_is_coop_step_for_step(train):
    opts = [*OPTS[:2], "TRAINER.COOP.CTX_INIT", "a photo of a", "TRAINER.COOP.N_CTX", 4]
    ours = train("ProGrad", *opts, "LOSS.LAMBDA", 0.0, output="prograd")
    coop = train("CoOp", *opts[2:], output="coop")
    assert torch.equal(ours.model.prompt_learner.ctx, coop.model.prompt_learner.ctx)


def test_a_student_equal_to_its_teacher_takes_a_finite_step(make_cfg):
    trainer = build_trainer(make_cfg("ProGrad", *OPTS[:4], "TRAINER.COOP.N_CTX", 4))
    batch = next(iter(trainer.train_loader_x))
    trainer.batch_idx, trainer.num_batches = 0, 10
    trainer.forward_backward(batch)
    assert trainer.model.prompt_learner.ctx.grad.isfinite().all()


# -- the context ------------------------------------------------------------------------------------------------------


def test_words_fill_the_last_slots_and_the_rest_is_zero(clip, state):
    ctx, rest = right_aligned_context(clip.text, 6, "a photo of a")
    ids = clip.tokenize(["a photo of a"])[0, 1:5]
    assert torch.equal(ctx[:2], torch.zeros(2, 128)) and torch.equal(ctx[2:], state["token_embedding.weight"][ids])
    assert rest == ""


def test_a_comma_leaves_the_last_word_behind_the_context(clip, state):
    """Eight words are nine tokens; the official code counts words, so that "a" stays as a fixed word."""
    words = "a type of pet, a photo of a"
    ctx, rest = right_aligned_context(clip.text, 16, words)
    ids = clip.tokenize([words])[0, 1:10]
    assert torch.equal(ctx[8:], state["token_embedding.weight"][ids[:8]]) and not ctx[:8].any() and rest == "a"


@pytest.mark.parametrize("value", ["template", "True"])
def test_prompts_are_the_official_tokens(make_cfg, clip, value):
    """SOT, 16 slots, then what the official string has from its 17th token on."""
    template = PROGRAD_TEMPLATES["OxfordPets"]
    opts = ["TRAINER.PROGRAD.TEMPLATE", template, "TRAINER.COOP.CTX_INIT", value]
    model = build_trainer(make_cfg("ProGrad", *opts)).model
    strings = ["X X X X X X X X a type of pet, a photo of a " + name + "." for name in NAMES]
    official = clip.tokenize(strings)
    assert torch.equal(model.class_prompts.tokens[:, 17:], official[:, 17:])
    assert model.prompt_learner.ctx.shape == (16, 128)


def test_too_few_slots_for_the_words(make_cfg):
    with pytest.raises(ValueError, match="N_CTX is 3.*give at least 4"):
        build_trainer(make_cfg("ProGrad", *OPTS[:4], "TRAINER.COOP.N_CTX", 3))


def test_random_context(make_cfg):
    model = build_trainer(make_cfg("ProGrad", *OPTS[:2], "TRAINER.COOP.N_CTX", 5)).model
    assert model.prompt_learner.ctx.shape == (5, 128) and 0.01 < model.prompt_learner.ctx.std() < 0.04


def test_unknown_loss_is_refused(make_cfg):
    with pytest.raises(ValueError, match="LOSS.NAME is 'vertical'; choose one of prograd, kd"):
        build_trainer(make_cfg("ProGrad", *OPTS, "LOSS.NAME", "vertical"))
    with pytest.raises(ValueError, match="LOSS.T is 0"):
        build_trainer(make_cfg("ProGrad", *OPTS, "LOSS.T", 0.0))


def test_templates_are_the_official_ones():
    assert {name: PROGRAD_TEMPLATES[name] for name in ("OxfordPets", "OxfordFlowers", "FGVCAircraft", "Food101")} == {
        "OxfordPets": "a type of pet, a photo of a {}.",
        "OxfordFlowers": "a type of flower, a photo of a {}.",
        "FGVCAircraft": "a type of aircraft, a photo of a {}.",
        "Food101": "a type of food, a photo of {}.",
    }
    assert PROGRAD_TEMPLATES["DescribableTextures"] == "a texture of {}."
    assert PROGRAD_TEMPLATES["UCF101"] == "a photo of a person doing {}."


@pytest.mark.parametrize(
    "dataset, shots, value", [("dtd", 16, 0.8), ("eurosat", 8, 0.8), ("dtd", 4, 1.0), ("food101", 16, 1.0)]
)
def test_three_datasets_have_a_milder_lambda_with_many_shots(dataset, shots, value, tmp_path):
    job = Job("ProGrad", dataset, 1, shots=shots, output=tmp_path).recipe("fewshot")
    assert train_step(job, "", tmp_path).config().LOSS.LAMBDA == value
    given = Job("ProGrad", dataset, 1, shots=shots, output=tmp_path, opts=("LOSS.LAMBDA", "0.5")).recipe("fewshot")
    assert train_step(given, "", tmp_path).config().LOSS.LAMBDA == 0.5
