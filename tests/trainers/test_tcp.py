"""TCP's class-aware tokens and objective against the plain formulas."""

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.classification.templates import TCP_STUDENT_TEMPLATES, TCP_TEMPLATES
from dassl_prompts.engine import build_trainer, load_checkpoint
from dassl_prompts.trainers.tcp import TCPModel, student_words
from tests.trainers import plain

TEMPLATE = "a photo of a {}, a type of thing."
OPTS = ["TRAINER.TCP.TEMPLATE", TEMPLATE, "TRAINER.TCP.STUDENT", "X X X X {}.", "TRAINER.TCP.LAYER", 2]
OPTS += ["TRAINER.COOP.N_CTX", 4]
NAMES = [n.replace("_", " ") for n in plain.CLASSES]


def model(clip, layer=2, student="X X X X {}.", classnames=plain.CLASSES):
    net = TCPModel(clip, classnames, TEMPLATE, student, 4, "", layer)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in net.prompt_parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return net


def reference(net, state, clip, images, student="X X X X {}."):
    """Logits and the distance, class by class from token ids; the tokens of every class by its own two products."""
    learner = net.prompt_learner
    target = plain.text_features(state, clip.tokenize([TEMPLATE.format(name) for name in NAMES]))
    tokens = []
    for w in target:
        hidden = learner.meta_net.linear1.weight @ w + learner.meta_net.linear1.bias
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        tokens.append((learner.meta_net.linear2.weight @ hidden + learner.meta_net.linear2.bias).reshape(4, 128))
    deep = [None] * (net.layer - 1) + [torch.stack(tokens)]
    text = plain.text_features(state, clip.tokenize([student.format(name) for name in NAMES]), learner.ctx, deep)
    return plain.logits(state, plain.image_features(state, images), text), 1 - (text * target).sum(-1).mean()


@pytest.mark.parametrize(
    "layer, student", [(1, "X X X X {}."), (3, "X X X X {}, a type of pet."), (2, "a photo of a person doing {}.")]
)
def test_logits_and_gradients(clip, state, images, labels, layer, student):
    net = model(clip, layer, student)
    ours, (wanted, _) = net(images), reference(net, state, clip, images, student)
    torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-3)
    parameters = net.prompt_parameters()
    got = torch.autograd.grad(F.cross_entropy(ours, labels), parameters)
    for g, w in zip(got, torch.autograd.grad(F.cross_entropy(wanted, labels), parameters)):
        assert w.norm() > 0 and plain.relative_error(g, w) < 1e-4


def test_objective_from_pixels(make_cfg, state, clip):
    trainer = build_trainer(make_cfg("TCP", *OPTS, "TRAINER.TCP.W", 3.0))
    batch = next(iter(trainer.train_loader_x))
    pixels, labels = batch["img"][:3], batch["label"][:3]
    logits, distance = reference(trainer.model, state, clip, pixels)
    wanted = F.cross_entropy(logits, labels) + 3.0 * distance
    loss = trainer.loss(pixels, labels)["loss"]
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-4)
    parameters = trainer.model.prompt_parameters()
    for g, w in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters)):
        assert w.norm() > 0 and plain.relative_error(g, w) < 1e-3


def test_replacing_by_the_hidden_states_that_are_there_is_coop(clip, state, images):
    """The tokens are what block 2 gets anyway: then the classes are those of the context alone."""
    net = model(clip)
    x = state["token_embedding.weight"][net.class_prompts.tokens]
    x = (
        torch.cat([x[:, :1], net.prompt_learner.ctx.expand(len(x), 4, 128), x[:, 5:]], 1)
        + state["positional_embedding"]
    )
    for i in range(2):
        x = plain.block(state, f"transformer.resblocks.{i}.", x, torch.full((77, 77), float("-inf")).triu(1))
    net.prompt_learner.forward = lambda target: x[:, 1:5]
    tokens = clip.tokenize([f"X X X X {name}." for name in NAMES])
    coop = plain.text_features(state, tokens, net.prompt_learner.ctx)
    wanted = plain.logits(state, plain.image_features(state, images), coop)
    torch.testing.assert_close(net(images), wanted, rtol=1e-5, atol=1e-3)


def test_permuted_classes_permute_the_logits(clip, images):
    order = [3, 0, 6, 1, 5, 2, 4]
    net, moved = model(clip), model(clip, classnames=[plain.CLASSES[i] for i in order])
    moved.prompt_learner.load_state_dict(net.prompt_learner.state_dict())
    torch.testing.assert_close(moved(images), net(images)[:, order], rtol=1e-5, atol=1e-3)


def test_ctx_is_reached_only_through_the_blocks_below(clip, images):
    """From the block on the slots are the class-aware tokens: keys and values of the classes' words are all that is left of ctx."""
    net = model(clip, layer=3)
    net(images).square().sum().backward()
    assert net.prompt_learner.ctx.grad.norm() > 0
    frozen = net.clip.text.prefix(
        net.class_prompts, net.emit().text, (None, None, net.emit().text_deep[2]), 5, False, 3
    )
    assert len(frozen[0]) == 6 and frozen[1].shape == (1, 1, 128)  # SOT alone goes on


def test_checkpoint_has_the_official_names(train, tmp_path):
    train("TCP", *OPTS)
    state = load_checkpoint(tmp_path / "run" / "prompt_learner" / "model.pth.tar-2")["state_dict"]
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == {
        "ctx": (4, 128),
        "meta_net.linear1.weight": (16, 64),
        "meta_net.linear1.bias": (16,),
        "meta_net.linear2.weight": (512, 16),
        "meta_net.linear2.bias": (512,),
    }


def test_recipe_and_settings(make_cfg):
    trainer = build_trainer(make_cfg("TCP", *OPTS, "OPTIM.NAME", "adam", "OPTIM.ADAM_EPS", 1e-3))
    assert trainer.optim.param_groups[0]["eps"] == 1e-3
    for key, value, message in (
        ("TRAINER.TCP.LAYER", 4, "LAYER is 4.*give 1 to 3"),
        ("TRAINER.TCP.LAYER", 0, "LAYER is 0.*give 1 to 3"),
        ("TRAINER.COOP.N_CTX", 5, "N_CTX is 5.*has 4 words.*TRAINER.TCP.STUDENT"),
        ("TRAINER.COOP.CSC", True, "CSC False"),
    ):
        with pytest.raises(ValueError, match=message):
            build_trainer(make_cfg("TCP", *OPTS, key, value))


def test_student_words():
    assert student_words("X X X X {}, a type of car", 4) == ("", ", a type of car")
    assert student_words("a photo of a person doing {}.", 4) == ("person doing", ".")


def test_tokens_of_student_texts_are_the_official_ones(clip):
    """Behind the slots everything is as in the template's own string."""
    for template in set(TCP_STUDENT_TEMPLATES.values()):
        net = TCPModel(clip, plain.CLASSES, TEMPLATE, template, 4, "", 2)
        assert torch.equal(net.class_prompts.tokens[:, 5:], clip.tokenize([template.format(n) for n in NAMES])[:, 5:])


def test_templates_are_the_official_ones():
    assert TCP_TEMPLATES["FGVCAircraft"] == "a photo of an aircraft {}."
    assert TCP_TEMPLATES["Food101"] == "a photo of a {}, a type of food."
    assert TCP_TEMPLATES["DescribableTextures"] == "a photo of a {}, a type of texture."
    assert TCP_STUDENT_TEMPLATES["StanfordCars"] == "X X X X {}, a type of car"
    assert TCP_STUDENT_TEMPLATES["EuroSAT"] == TCP_STUDENT_TEMPLATES["SUN397"] == "X X X X {}."
    assert TCP_STUDENT_TEMPLATES["ImageNetR"] == "a photo of a {}."
