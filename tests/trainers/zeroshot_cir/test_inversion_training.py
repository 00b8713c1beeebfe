"""Training of words and of the networks that make them: every loss against plain formulas on a text tower walked step by
step, values and gradients."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.composed.loading import ShuffledItems
from dassl_prompts.composed.schedule import StepCosine
from dassl_prompts.datasets.laion_cir import LaionCIR
from dassl_prompts.models.clip_tokens import ClipTokens
from dassl_prompts.trainers.zeroshot_cir import oti
from dassl_prompts.trainers.zeroshot_cir.inversion_trainer import (
    InversionModel,
    LinCIR,
    Pic2Word,
    contrastive_loss,
    without_keywords,
)
from dassl_prompts.trainers.zeroshot_cir.oti import OTI, oti_loss, read_phrases
from dassl_prompts.trainers.zeroshot_cir.textual_inversion import (
    Phi,
    Pic2WordNetwork,
    encode_with_word,
    inversion_query,
    load_inversion,
)
from tests.datasets import cir_trees
from tests.datasets.test_cir import config
from tests.tiny import tiny_clip

D = 64


@pytest.fixture(scope="module")
def encoder():
    return ClipTokens(tiny_clip())


def plain_feature(encoder, parts, word):
    """One text through the tower by hand: all 77 positions, a mask, every block; ``parts`` as in encode_with_word."""
    text = encoder.clip.text
    rows = [text.token_embedding.weight[49406]]
    for part in parts:
        rows += [word] if part is None else [text.token_embedding.weight[i] for i in text.encode_ids(part)]
    rows = [*rows[:76], text.token_embedding.weight[49407]]
    eot = len(rows) - 1
    rows += [text.token_embedding.weight[0]] * (77 - len(rows))
    x = (torch.stack(rows) + text.positional_embedding)[None]
    mask = torch.full((77, 77), -torch.inf).triu(1)
    for block in text.blocks:
        x = block(x, attn_mask=mask)
    return text._project(x)[0, eot]


def cosine(a, b):
    return (a * b).sum() / a.norm() / b.norm()


TEXTS = [("a photo of", None, "that is * red"), (None,), ("", None, "near", None, "and", None), (None, "word " * 90)]


def test_a_word_may_stand_at_several_places(encoder):
    words = torch.randn(4, D, requires_grad=True)
    ours = encode_with_word(encoder.clip.text, TEXTS, words)
    theirs = torch.stack([plain_feature(encoder, parts, word) for parts, word in zip(TEXTS, words)])
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    weights = torch.randn_like(ours)
    (one,) = torch.autograd.grad((ours * weights).sum(), words)
    (other,) = torch.autograd.grad((theirs * weights).sum(), words)
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert one.abs().sum(1).min() > 0


# -- Pic2Word ------------------------------------------------------------------------------------------------


def test_contrastive_loss_against_loops():
    text, image = (torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2))
    total = 0.0
    for i in range(5):
        row = torch.stack([3.0 * cosine(text[i], image[j]) for j in range(5)])
        column = torch.stack([3.0 * cosine(text[j], image[i]) for j in range(5)])
        total = total - (row[i] - row.exp().sum().log()) / 10 - (column[i] - column.exp().sum().log()) / 10
    ours = contrastive_loss(text, image, 3.0)
    assert ours.item() == pytest.approx(total.item(), abs=1e-12)
    for one, other in zip(torch.autograd.grad(ours, (text, image)), torch.autograd.grad(total, (text, image))):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def trainer_of(cls, encoder, network, **node):
    model = InversionModel(encoder, network, cls.method)
    return SimpleNamespace(encoder=encoder, model=model, device=torch.device("cpu"), node=SimpleNamespace(**node))


def test_pic2word_loss_starts_from_image_features(encoder):
    torch.manual_seed(1)
    network = Pic2WordNetwork([D, 8, 8, D], dropout=0.0)
    images = torch.randn(3, D)
    ours = Pic2Word.loss(trainer_of(Pic2Word, encoder, network), {"image": images})
    told = torch.stack([plain_feature(encoder, ("a photo of", None), network(image)) for image in images])
    scale = encoder.clip.logit_scale.exp()
    theirs = contrastive_loss(told, images, scale)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    parameters = list(network.parameters())
    for one, other in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters)):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


# -- LinCIR --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "pieces"),
    [
        ("two cats sleeping on a sofa", (None, "on", None)),
        ("in front of the house, and at night", ("in", None, "of", None, "and at", None)),
        ("red", (None,)),
    ],
)
def test_keywords(caption, pieces):
    assert without_keywords(caption) == pieces


def test_a_caption_of_function_words_has_one_replaced():
    found = {without_keywords("of and with") for _ in range(40)}
    assert found == {(None, "and with"), ("of", None, "with"), ("of and", None)}


def test_lincir_loss_is_the_squared_distance_to_the_own_feature(encoder):
    network = Phi([D, 16, 16, D], dropout=0.0)
    captions = ["a dog on the grass", "two cats"]
    ours = LinCIR.loss(trainer_of(LinCIR, encoder, network, NOISE=0.0), {"caption": captions})
    total, count = 0.0, 0
    for caption, pieces in zip(captions, [(None, "on", None), (None,)]):
        feature = plain_feature(encoder, (caption,), None).detach()
        told = plain_feature(encoder, pieces, network(feature))
        total, count = total + ((told - feature) ** 2).sum(), count + len(feature)
    theirs = total / count
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)
    parameters = list(network.parameters())
    for one, other in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters)):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_noise_of_lincir_is_normal_times_uniform(encoder):
    """Per caption one strength between 0 and NOISE; of the features that the network sees, not of the target."""
    seen = []

    class Spy(Phi):
        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    network = Spy([D, 4, 4, D])
    captions = ["a dog on the grass"] * 400
    torch.manual_seed(0)
    LinCIR.loss(trainer_of(LinCIR, encoder, network, NOISE=2.0), {"caption": captions})
    feature = plain_feature(encoder, (captions[0],), None).detach()
    strengths = (seen[0] - feature).std(dim=1)
    assert strengths.min() < 0.1 and 1.7 < strengths.max() < 2.6
    assert float(strengths.mean()) == pytest.approx(1.0, abs=0.1)
    assert float(strengths.std()) == pytest.approx(2 / math.sqrt(12), abs=0.1)


# -- OTI -----------------------------------------------------------------------------------------------------


def test_oti_loss_against_loops():
    told, image, replaced, phrase = (torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(4))
    first = sum(1 - cosine(a, b) for a, b in zip(told, image)) / 4
    second = sum(1 - cosine(a, b) for a, b in zip(replaced, phrase)) / 4
    for ours, theirs in (
        (oti_loss(told, image, None, None, 0.5), first),
        (oti_loss(told, image, replaced, phrase, 0.5), (first + 0.5 * second) / 1.5),
    ):
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-12)
        (one,), (other,) = torch.autograd.grad(ours, told), torch.autograd.grad(theirs, told, retain_graph=True)
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_oti_follows_its_description_step_by_step(encoder, monkeypatch):
    """One sentence and one phrase, so that nothing is drawn: AdamW and the moving average by hand."""
    monkeypatch.setattr(oti, "SENTENCES", (("a photo of a", "in a picture"),))
    images = torch.randn(2, D)
    words = OTI(encoder, steps=4, lr=0.1, ema=0.7, weight_decay=0.01, phrases={"dog": ["the dog runs"]}, seed=5)
    ours = words(images[[0, 1, 0]])
    assert torch.equal(ours[0], ours[2])
    order = torch.unique(images, dim=0)
    at = [int((order == image).all(1).nonzero()) for image in images]
    word = 0.02 * torch.randn(2, D, generator=torch.Generator().manual_seed(5))
    average, m, v = word.clone(), torch.zeros(2, D), torch.zeros(2, D)
    phrase = plain_feature(encoder, ("the dog runs",), None).detach()
    for step in range(1, 5):
        leaf = word.clone().requires_grad_(True)
        loss = 0.0
        for i in range(2):
            told = plain_feature(encoder, ("a photo of a", None, "in a picture"), leaf[i])
            swapped = plain_feature(encoder, ("the", None, "runs"), leaf[i])
            loss = loss + ((1 - cosine(told, order[i])) + 0.5 * (1 - cosine(swapped, phrase))) / 1.5 / 2
        (gradient,) = torch.autograd.grad(loss, leaf)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        move = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        word = word * (1 - 0.1 * 0.01) - 0.1 * move
        average = 0.7 * average + 0.3 * word
    torch.testing.assert_close(ours[:2], average[at], atol=2e-4, rtol=1e-3)


def test_oti_brings_the_text_to_the_image_and_works_without_gradients_around_it(encoder):
    images = F.normalize(torch.randn(3, D), dim=-1)
    near = lambda steps: encode_with_word(
        encoder.clip.text, [("a photo of a", None)] * 3, OTI(encoder, steps=steps, ema=0.5, batch=2)(images)
    )
    with torch.no_grad():
        before, after = (F.cosine_similarity(near(steps), images).mean() for steps in (1, 40))
        assert after > before + 0.2
        query = inversion_query(encoder, OTI(encoder, steps=2), "oti")(["red", "blue"], torch.randn(2, 17, D))
    assert query.shape == (2, D) and query.norm(dim=1).allclose(torch.ones(2))


def test_phrases_are_drawn_from_the_most_similar_concepts(encoder):
    phrases = {"dog": ["a dog runs", "my dog"], "cat": ["one cat"], "red car": ["a red car"]}
    words = OTI(encoder, concepts=2, phrases=phrases)
    images = torch.stack([encoder.text_tokens([f"a photo of a {name}"]).features[0] for name in phrases]).detach()
    near = words.nearest(images)
    assert [row[0] for row in near] == list(phrases) and all(len(row) == 2 for row in near)
    drawn = {words.draw_phrase(["dog", "cat"], torch.Generator().manual_seed(i)) for i in range(40)}
    assert drawn == {("dog", "a dog runs"), ("dog", "my dog"), ("cat", "one cat")}


@pytest.mark.parametrize(
    ("content", "match"),
    [('{"dog": "a dog"}', "needs a list"), ('{"dog": []}', "needs a list"), ('{"dog": ["a cat"]}', "does not name")],
)
def test_wrong_phrases(tmp_path, content, match):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(ValueError, match=match):
        read_phrases(str(tmp_path / "p.json"))


# -- what they share -----------------------------------------------------------------------------------------


def test_warmup_rises_linearly_and_the_cosine_follows():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([{"params": [parameter]}], lr=2.0)
    schedule, rates = StepCosine(optimiser, 3, steps=4, end_ratio=0.0, warmup=5), []
    for _ in range(12):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    rise = [2.0 * (step + 1) / 5 for step in range(5)]
    fall = [2.0 * (1 + math.cos(math.pi * step / 7)) / 2 for step in range(7)]
    assert rates == pytest.approx(rise + fall)


def test_batches_hold_every_item_once():
    items = ShuffledItems("x", list("abcdefg"), 3)
    batches = [batch["x"] for batch in items]
    assert len(items) == len(batches) == 2 and all(len(batch) == 3 for batch in batches)
    assert len({x for batch in batches for x in batch}) == 6
    (batch,) = ShuffledItems("x", torch.arange(2.0), 5)
    assert sorted(batch["x"].tolist()) == [0, 1]


@pytest.mark.parametrize("method", ["pic2word", "lincir"])
def test_our_checkpoints_are_read_like_the_published_ones(tmp_path, method):
    network = (Pic2WordNetwork if method == "pic2word" else Phi)([D, 8, 8, D]).eval()
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.pth.tar-3")
    x = torch.randn(2, D)
    torch.testing.assert_close(load_inversion(str(tmp_path / "model.pth.tar-3"), method)(x), network(x))


def test_captions_for_training_on_text_alone(tmp_path):
    cir_trees.laion_cir(tmp_path)
    assert LaionCIR(config(tmp_path)).captions() == ["x"] * 4
    with pytest.raises(ValueError, match="LaionCIR has no descriptions .* TRAINER.LINCIR.CAPTIONS"):
        LaionCIR(config(tmp_path, "CIR.LAION_SET", "template")).captions()
