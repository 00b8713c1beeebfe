"""CoPrompt's adapters, consistency terms and sentences against the plain formulas."""

import json
import random

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.classification.templates import PROMPTSRC_TEMPLATES
from dassl_prompts.engine import build_trainer, load_checkpoint
from dassl_prompts.run.job import Job, eval_step, train_step
from dassl_prompts.trainers.coprompt import consistency, read_sentences
from tests.trainers import plain
from tests.trainers.test_maple import maple_logits

NAMES = [n.replace("_", " ") for n in plain.CLASSES]
OPTS = ["TRAINER.CoPrompt.PROMPT_DEPTH", 3, "DATALOADER.K_TRANSFORMS", 2]


@pytest.fixture
def sentences(tmp_path):
    """Two sentences about every class, under names with underscores."""
    path = tmp_path / "toy.json"
    path.write_text(json.dumps({n: [f"One {n} on grass.", f"The tail of a {n}."] for n in plain.CLASSES}))
    return str(path)


def shaken(trainer):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trainer.model.prompt_parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return trainer, next(iter(trainer.train_loader_x))


def adapted(features, adapter, share):
    down, up = adapter.fc[0].weight, adapter.fc[2].weight
    features = (1 - share) * features + share * ((features @ down.t()).relu() @ up.t()).relu()
    return features / features.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("kind", ["cosine", "mse"])
def test_objective_and_gradients_from_pixels(make_cfg, state, clip, sentences, kind):
    settings = ("TRAINER.CoPrompt.SENTENCES", sentences, "TRAINER.W", 3.0, "TRAINER.DISTILL", kind)
    trainer, batch = shaken(build_trainer(make_cfg("CoPrompt", *OPTS, *settings)))
    first, second = batch["img"]
    assert not torch.allclose(first, second)
    m, prompts, labels = trainer.model, trainer.model.emit(), batch["label"]
    random.seed(4)
    images, labels = trainer.parse_batch_train(batch)
    loss = trainer.loss(images, labels)["loss"]
    random.seed(4)
    j = random.randrange(2)

    tokens = clip.tokenize([f"X X of a {name}." for name in NAMES])
    t = plain.text_features(state, tokens, prompts.text, prompts.text_deep, normalise=False)
    v = plain.image_features(state, first, prompts.vision, prompts.vision_deep, normalise=False)
    t, v = adapted(t, m.adapter_text, 0.2), adapted(v, m.adapter_image, 0.1)
    texts = [(f"One {n} on grass.", f"The tail of a {n}.")[j] for n in plain.CLASSES]
    g, frozen = plain.text_features(state, clip.tokenize(texts)), plain.image_features(state, second)
    if kind == "cosine":
        distance = 1 - sum(a @ b for a, b in zip(t, g)) / len(t) + 1 - sum(a @ b for a, b in zip(v, frozen)) / len(v)
    else:
        distance = ((t - g) ** 2).mean() + ((v - frozen) ** 2).mean()
    wanted = F.cross_entropy(plain.logits(state, v, t), labels) + 3.0 * distance
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)
    parameters = m.prompt_parameters()
    for got, want in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters)):
        assert want.norm() > 0 and plain.relative_error(got, want) < 1e-3


def test_without_adapters_and_weight_it_is_maple(make_cfg, state, clip, images):
    """Logits, loss, gradients."""
    settings = ("TRAINER.CoPrompt.IMAGE_ADAPTER", 0.0, "TRAINER.CoPrompt.TEXT_ADAPTER", 0.0, "TRAINER.W", 0.0)
    trainer, batch = shaken(build_trainer(make_cfg("CoPrompt", *OPTS, *settings)))
    m = trainer.model
    torch.testing.assert_close(m(images), maple_logits(m, state, images, clip, "of a"), rtol=1e-5, atol=1e-3)
    pixels, labels = trainer.parse_batch_train(batch)
    wanted = F.cross_entropy(maple_logits(m, state, pixels, clip, "of a"), labels)
    loss = trainer.loss(pixels, labels)["loss"]
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)
    learner = list(m.prompt_learner.parameters())
    for got, want in zip(torch.autograd.grad(loss, learner), torch.autograd.grad(wanted, learner)):
        assert want.norm() > 0 and plain.relative_error(got, want) < 1e-3


def test_equal_features_are_at_distance_zero(make_cfg, images):
    v = F.normalize(torch.randn(4, 8), dim=-1)
    assert consistency(v, v, "cosine").abs() < 1e-6 and consistency(v, v, "mse") == 0
    trainer = build_trainer(make_cfg("CoPrompt", *OPTS[:2], "TRAINER.CoPrompt.IMAGE_ADAPTER", 0.0))
    frozen = trainer.model.frozen_image_features(images)
    trainer.second_view = images
    assert trainer.regularisers(images, frozen, trainer.model.sentence_features(0))["loss_image"].abs() < 1e-4


def test_one_view_is_compared_with_itself(make_cfg):
    trainer = build_trainer(make_cfg("CoPrompt", *OPTS[:2]))
    batch = next(iter(trainer.train_loader_x))
    images, _ = trainer.parse_batch_train(batch)
    assert images is trainer.second_view or torch.equal(images, trainer.second_view)
    with pytest.raises(ValueError, match="K_TRANSFORMS is 3"):
        build_trainer(make_cfg("CoPrompt", "DATALOADER.K_TRANSFORMS", 3))


# -- sentences --------------------------------------------------------------------------------------------------------


def test_without_a_file_the_sentences_are_templates(make_cfg, state, clip):
    model = build_trainer(make_cfg("CoPrompt", *OPTS)).model
    assert len(model.sentences) == len(PROMPTSRC_TEMPLATES)
    tokens = clip.tokenize([PROMPTSRC_TEMPLATES[7].format(name) for name in NAMES])
    torch.testing.assert_close(model.sentence_features(7), plain.text_features(state, tokens), rtol=1e-5, atol=1e-6)


def test_a_folder_has_the_authors_file_names(tmp_path):
    (tmp_path / "caltech_prompt.json").write_text('{"great_white shark": ["A fish."], "dog": ["It barks."]}')
    assert read_sentences(str(tmp_path), "Caltech101", ["dog", "great white shark"]) == [["It barks.", "A fish."]]


def test_bad_sentences_are_named(tmp_path):
    path = tmp_path / "s.json"
    with pytest.raises(FileNotFoundError, match="SENTENCES: no file"):
        read_sentences(str(path), "X", ["dog"])
    path.write_text('{"dog": ["a", "b"], "cat": ["a"], "bus": "a"}')
    for names, message in (
        (["dog", "cow"], "no list of sentences for the class 'cow'"),
        (["bus"], "no list of sentences for the class 'bus'"),
        (["dog", "cat"], "2 sentences for 'dog' but 1 for 'cat'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_sentences(str(path), "X", names)


def test_classes_that_are_only_tested_need_no_sentences(make_cfg, tmp_path):
    new = ("DATASET.SUBSAMPLE_CLASSES", "new", "TRAINER.CoPrompt.SENTENCES", str(tmp_path / "none.json"))
    build_trainer(make_cfg("CoPrompt", *OPTS, *new))


# -- files and recipes ------------------------------------------------------------------------------------------------


def test_official_names(train, tmp_path):
    train("CoPrompt", *OPTS)
    state = load_checkpoint(tmp_path / "run" / "MultiModalPromptLearner" / "model.pth.tar-2")["state_dict"]
    adapters = {f"adapter_{side}.fc.{i}.weight" for side in ("image", "text") for i in (0, 2)}
    assert {key for key in state if key.startswith("adapter")} == adapters
    assert {key.split(".")[0] for key in state} == {"prompt_learner", "adapter_image", "adapter_text"}


def test_settings_of_a_dataset_hold_in_training_and_in_testing(tmp_path):
    job = Job("CoPrompt", "dtd", 1, output=tmp_path).recipe("base2new")
    for step in (train_step(job, "", tmp_path), eval_step(job, "", tmp_path, tmp_path, dataset="food101")):
        cfg = step.config()
        assert (cfg.TRAINER.CoPrompt.PROMPT_DEPTH, cfg.TRAINER.CoPrompt.N_CTX, cfg.TRAINER.W) == (12, 2, 8.0)
    food = train_step(Job("CoPrompt", "food101", 1).recipe("base2new"), "", tmp_path).config()
    assert (food.OPTIM.MAX_EPOCH, food.TRAINER.W) == (5, 0.5)
    emoji = train_step(Job("CoPrompt", "emoji", 1).recipe("base2new"), "", tmp_path).config()
    assert emoji.TRAINER.CoPrompt.PROMPT_DEPTH <= 4
