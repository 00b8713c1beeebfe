"""P, P' and their mixtures, on every backbone method."""

import math

import pytest
import torch

from dassl_prompts.trainers.coop import CoOpModel
from dassl_prompts.trainers.dpc.dual import DualPrompts, clone_prompts
from dassl_prompts.trainers.ivlp import IVLPModel
from dassl_prompts.trainers.maple import MaPLeModel
from dassl_prompts.trainers.promptkd.trainer import PromptKDModel
from tests.tiny import tiny_clip

CLASSES = ["red apple", "green pear", "blue plum", "fig", "dark red cherry"]


def make(method, clip):
    if method == "CoOp":
        return CoOpModel(clip, CLASSES, n_ctx=4)
    if method == "MaPLe":
        return MaPLeModel(clip, CLASSES, n_ctx=2, depth=3)
    if method == "PromptKD":
        teacher = IVLPModel(tiny_clip(seed=5), CLASSES, 2, 2, 3, 3)
        net = PromptKDModel(clip, CLASSES, teacher, n_vision=2, depth_vision=3)
        net.add_text_prompts()
        return net.eval()
    return IVLPModel(clip, CLASSES, 2, 2, 3, 3)


METHODS = ["CoOp", "MaPLe", "IVLP", "PromptKD"]


@pytest.fixture(params=METHODS)
def dual(request):
    net = make(request.param, tiny_clip(seed=1))
    model = DualPrompts(net, omega_b=0.2)
    with torch.no_grad():
        for p in model.learnable().values():
            p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32)


def tensors(prompts):
    return [t for t in (prompts.text, *prompts.text_deep, prompts.vision, *prompts.vision_deep) if t is not None]


@torch.no_grad()
def test_new_classes_at_omega_0_are_the_backbone_bit_for_bit(dual, images):
    alone = clone_prompts(dual.tuned).eval()
    dual.task, dual.omega_n = "new", 0.0
    assert torch.equal(dual(images), alone(images))


@torch.no_grad()
@pytest.mark.parametrize("omega, which", [(1.0, "parallel"), (0.0, "tuned")])
def test_ends_of_the_mixture_are_p_prime_and_p(dual, images, omega, which):
    dual.omega_b = omega
    for ours, own in zip(tensors(dual.emit()), tensors(getattr(dual, which).emit())):
        assert torch.equal(ours, own)


@torch.no_grad()
def test_mixture_is_linear_in_every_emitted_vector(dual):
    mixed, p_prime, p = (tensors(x) for x in (dual.emit(), dual.parallel.emit(), dual.tuned.emit()))
    assert len(mixed) == len(p)
    for m, a, b in zip(mixed, p_prime, p):
        torch.testing.assert_close(m, 0.2 * a + 0.8 * b, rtol=0, atol=1e-6)
        assert not torch.equal(a, b)


def test_everything_is_cloned_and_the_towers_are_shared(dual):
    fresh = DualPrompts(clone_prompts(dual.tuned).requires_grad_(True))
    tuned = dict(fresh.tuned.named_parameters())
    for name, p in fresh.parallel.named_parameters():
        assert torch.equal(p, tuned[name]), name
        same = p.data_ptr() == tuned[name].data_ptr()
        assert same == name.startswith(("clip.", "teacher.clip.")), name


def test_only_p_prime_gets_gradients(dual, images):
    prompts = dual.train_prompts()
    (dual.encode_images(images, prompts).sum() + dual.encode_classes(prompts).sum()).backward()
    assert all(p.grad is None for p in dual.tuned.parameters())
    assert all(p.grad is None for p in dual.clip.parameters())
    assert all(p.grad is not None for p in dual.learnable().values())


@torch.no_grad()
def test_tokens_and_leaves_agree_at_the_ends_and_differ_between():
    dual = DualPrompts(make("MaPLe", tiny_clip(seed=1)))
    for p in dual.learnable().values():
        p.add_(0.1 * torch.randn_like(p))
    for omega, equal in ((0.0, True), (0.5, False), (1.0, True)):
        dual.omega_b = omega
        dual.mix_leaves = False
        tokens = tensors(dual.emit())
        dual.mix_leaves = True
        leaves = tensors(dual.emit())
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(tokens, leaves)) == equal


@torch.no_grad()
def test_text_scope_mixes_the_first_text_layer_only():
    dual = DualPrompts(make("IVLP", tiny_clip(seed=1)), scope="text")
    for p in dual.learnable().values():
        p.add_(0.1 * torch.randn_like(p))
    ours, own, tuned = dual.emit(), dual.parallel.emit(), dual.tuned.emit()
    torch.testing.assert_close(ours.text, 0.2 * own.text + 0.8 * tuned.text)
    assert all(torch.equal(a, b) for a, b in zip(ours.text_deep, own.text_deep))
    assert torch.equal(ours.vision, own.vision)


@torch.no_grad()
def test_mixed_parametrisation_recovers_p_prime():
    """theta = F(P') is stored; F^-1(theta) must give P' back."""
    dual = DualPrompts(make("CoOp", tiny_clip(seed=1)), param="mixed")
    p = dual.tuned.prompt_learner.ctx
    p_prime = p + 0.1 * torch.randn_like(p)
    dual.parallel.prompt_learner.ctx.copy_(0.2 * p_prime + 0.8 * p)
    torch.testing.assert_close(dual.parallel_prompts().text, p_prime, rtol=0, atol=1e-6)
    torch.testing.assert_close(dual.mixed(0.2).text, dual.parallel.prompt_learner.ctx, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="OMEGA_B 0.0"):
        DualPrompts(make("CoOp", tiny_clip(seed=1)), omega_b=0.0, param="mixed")


@torch.no_grad()
def test_projector_follows_p_prime_on_base_and_p_on_new(images):
    dual = DualPrompts(make("PromptKD", tiny_clip(seed=1)), omega_n=0.5).eval()
    for p in dual.parallel.VPT_image_trans.parameters():
        p.add_(0.1 * torch.randn_like(p))
    prompts = dual.tuned.emit()
    base = dual.encode_images(images, prompts)
    dual.task = "new"
    assert torch.equal(dual.encode_images(images, prompts), dual.tuned.encode_images(images, prompts))
    assert not torch.allclose(base, dual.encode_images(images, prompts))


@torch.no_grad()
def test_mixed_parametrisation_inverts_the_scope_only():
    """With the text scope theta stands for the first text layer; the other tensors are those of P' themselves."""
    dual = DualPrompts(make("PromptKD", tiny_clip(seed=1)), param="mixed", scope="text")
    for p in dual.learnable().values():
        p.add_(0.1 * torch.randn_like(p))
    assert dual.mixed_names("text") == {"prompt_learner.ctx"}
    theta, p, leaves = dual.learnable(), dict(dual.tuned.named_parameters()), dual.parallel_leaves()
    for name, leaf in leaves.items():
        if name == "prompt_learner.ctx":
            torch.testing.assert_close(0.2 * leaf + 0.8 * p[name], theta[name], rtol=0, atol=1e-6)
            assert not torch.allclose(leaf, theta[name])
        else:
            assert torch.equal(leaf, theta[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_scope_all_reaches_every_prompt_and_no_projector(method):
    dual = DualPrompts(make(method, tiny_clip(seed=1)))
    prompts = {name for name in dual.learnable() if not name.startswith("VPT_image_trans.")}
    assert dual.mixed_names("all") == prompts
    assert (len(prompts) < len(dual.learnable())) == (method == "PromptKD")


@torch.no_grad()
def test_new_classes_may_keep_the_text_of_p():
    dual = DualPrompts(make("PromptKD", tiny_clip(seed=1)), omega_n=0.3, task="new", new_text="tuned").eval()
    for p in dual.learnable().values():
        p.add_(0.1 * torch.randn_like(p))
    ours, own, tuned = dual.emit(), dual.parallel.emit(), dual.tuned.emit()
    assert torch.equal(ours.text, tuned.text)
    assert all(torch.equal(a, b) for a, b in zip(ours.text_deep, tuned.text_deep))
    for m, a, b in zip(
        (ours.vision, *ours.vision_deep), (own.vision, *own.vision_deep), (tuned.vision, *tuned.vision_deep)
    ):
        torch.testing.assert_close(m, 0.3 * a + 0.7 * b, rtol=0, atol=1e-6)
    assert torch.equal(dual.class_features(), dual.tuned.encode_classes(tuned))


# -- base and new classes together --------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("how", ["none", "chain", "gate"])
def test_union_scores_every_class_under_its_own_prompts(dual, images, how):
    """Against the two told tasks: base columns are those of `base`, new ones those of `new`, shifted per picture for base."""
    base_names = [CLASSES[3], CLASSES[0], CLASSES[1]]
    dual.set_base_classes([name.replace(" ", "_") for name in base_names])
    told = {}
    for dual.task in ("base", "new"):
        told[dual.task] = dual(images).double()
    dual.task, dual.union = "union", how
    got = dual(images).double()
    is_base = [name in base_names for name in CLASSES]
    assert dual.is_base.tolist() == is_base == [True, True, False, True, False]
    for row in range(len(images)):
        b = [float(told["base"][row, c]) for c in range(5) if is_base[c]]
        p = [float(told["new"][row, c]) for c in range(5) if is_base[c]]
        shift = {
            "none": 0.0,
            "gate": max(p) - max(b),
            "chain": math.log(sum(map(math.exp, p))) - math.log(sum(map(math.exp, b))),
        }[how]
        for c in range(5):
            wanted = float(told["base"][row, c]) + shift if is_base[c] else float(told["new"][row, c])
            assert float(got[row, c]) == pytest.approx(wanted, abs=2e-3)


@torch.no_grad()
def test_chain_is_the_product_of_two_probabilities(dual, images):
    dual.set_base_classes(CLASSES[:3])
    dual.task, dual.union = "union", "chain"
    base, every = (scores.double() for scores in dual.union_scores(images))
    together = dual(images).double().softmax(1)
    of_p = every.softmax(1)
    torch.testing.assert_close(together[:, 3:], of_p[:, 3:], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(
        together[:, :3], of_p[:, :3].sum(1, keepdim=True) * base.softmax(1), rtol=1e-4, atol=1e-7
    )


@torch.no_grad()
def test_gate_never_takes_a_picture_from_a_new_class(dual, images):
    """Which side wins, and which new class, is what P says."""
    dual.set_base_classes(CLASSES[:3])
    many = torch.randn(40, 3, 32, 32)
    dual.task, dual.union = "union", "gate"
    joint, (_, every) = dual(many), dual.union_scores(many)
    assert torch.equal(joint.argmax(1) >= 3, every.argmax(1) >= 3)
    new = every.argmax(1) >= 3
    assert torch.equal(joint.argmax(1)[new], every.argmax(1)[new])


@torch.no_grad()
def test_union_of_base_classes_alone_is_the_told_task_under_none_and_follows_its_prompts(dual, images):
    dual.set_base_classes(CLASSES)
    dual.task, dual.union = "union", "none"
    first = dual(images)
    dual.task = "base"
    assert torch.allclose(first, dual(images), atol=1e-4)
    dual.task = "union"
    dual.omega_b = 0.9  # the kept class matrices must not survive this
    assert not torch.allclose(first, dual(images), atol=1e-3)


def test_union_without_base_classes_says_what_is_missing(dual, images):
    dual.task = "union"
    with pytest.raises(ValueError, match="needs to know the base classes"), torch.no_grad():
        dual(images)


@torch.no_grad()
def test_class_matrix_of_the_union_has_both(dual):
    dual.set_base_classes(CLASSES[:2])
    matrices = {}
    for dual.task in ("base", "new", "union"):
        matrices[dual.task] = dual.class_features()
    torch.testing.assert_close(matrices["union"][:2], matrices["base"][:2])
    torch.testing.assert_close(matrices["union"][2:], matrices["new"][2:])
