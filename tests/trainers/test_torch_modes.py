"""What torch does otherwise by mode, and our fusion and prompt code does not.

``nn.TransformerEncoder`` takes another path as soon as no parameter needs a gradient, where a float mask hides every key that is
not zero in it; a sample whose keys are all hidden is NaN or not, by mode and kind of mask; inside one autocast block the
half-precision copy of a trained weight stays what it was before an optimiser step. Here every mode gives the documented values.
"""

import contextlib

import pytest
import torch
from torch import nn

from dassl_prompts.engine import build_trainer, set_random_seed
from dassl_prompts.models.backbones import load_token_encoder
from tests.trainers import contract
from tests.trainers.pvlf.test_fusion import build, slow_fusion, tokens

#: mode -> (training, gradients, frozen)
MODES = {
    "train": (True, True, False),
    "train, frozen": (True, True, True),
    "eval": (False, True, False),
    "eval, frozen": (False, True, True),
    "no_grad": (False, False, False),
    "no_grad, frozen": (False, False, True),
}
half = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
PRECISIONS = {"fp32": (contextlib.nullcontext, 1e-5), "autocast": (half, 0.05)}
every_mode = pytest.mark.parametrize("mode", MODES)
both_precisions = pytest.mark.parametrize("precision", PRECISIONS)


@contextlib.contextmanager
def in_mode(module, mode):
    training, gradients, frozen = MODES[mode]
    before = {p: p.requires_grad for p in module.parameters()}
    module.train(training)
    if frozen:
        module.requires_grad_(False)
    with torch.set_grad_enabled(gradients):
        yield
    module.eval()
    for parameter, learned in before.items():
        parameter.requires_grad_(learned)


def relative(found, wanted):
    return float((found - wanted).detach().norm() / wanted.norm())


# -- fusion -----------------------------------------------------------------------------------------------------------


@every_mode
@both_precisions
@pytest.mark.parametrize("mask_mode", ["bool", "official_bias", "none"])
@pytest.mark.parametrize("options", [{}, {"prompt_mode": "none"}], ids=["PVLF", "no prompts"])
def test_fusion_means_one_thing_in_every_mode(mask_mode, options, precision, mode):
    """Padding is hidden, biased by +1 or visible as FUSION.MASK_MODE says; a query whose text is padding all over is fused
    from what is left."""
    torch.manual_seed(0)
    fusion = build(torch.float32, mask_mode=mask_mode, **options)
    text, row, pad, image = tokens(dtype=torch.float32)
    pad[1] = True
    with torch.no_grad():
        wanted = torch.stack(slow_fusion(fusion, text, row, pad, image))
    context, tolerance = PRECISIONS[precision]
    with in_mode(fusion, mode), context():
        found = torch.stack(fusion(text, row, pad, image)).float()
    assert found.isfinite().all()
    assert relative(found, wanted) < tolerance


def test_torch_itself_differs():
    """Why we do not use its encoder: the same float mask with and without gradients."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    x, mask = torch.randn(2, 4, 8), torch.zeros(2, 4)
    mask[:, 3] = 1.0
    with torch.no_grad():
        fused = encoder(x, src_key_padding_mask=mask)
    assert not torch.allclose(encoder(x, src_key_padding_mask=mask)[:, 0], fused[:, 0], atol=1e-4)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    folder = contract.prepare(tmp_path_factory.mktemp("encoders"))
    return {
        "BLIP": load_token_encoder(str(folder / "blip"), "cpu"),
        "CLIP": load_token_encoder(str(folder / "clip.pt"), "cpu"),
    }


@every_mode
@both_precisions
@pytest.mark.parametrize("name", ["BLIP", "CLIP"])
def test_a_blank_caption_has_finite_tokens_in_every_mode(encoders, name, precision, mode):
    """It is the start and end token, whatever stands beside it in the batch."""
    encoder = encoders[name]
    with torch.no_grad():
        alone = encoder.text_tokens([""])
    context, tolerance = PRECISIONS[precision]
    with in_mode(encoder, mode), context():
        found = encoder.text_tokens(["a red dog in snow", "", "two"])
    assert found.pad[1].tolist() == [False, False] + [True] * (found.pad.shape[1] - 2)
    assert found.tokens.isfinite().all()
    assert relative(found.tokens[1, :2].float(), alone.tokens[0]) < tolerance


# -- prompts ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return contract.prepare(tmp_path_factory.mktemp("modes"))


CLASSIFIERS = ["CoOp", "CoCoOp", "IVLP", "MaPLe", "PromptSRC", "PromptKD", "AttriPrompt"]


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_logits_are_the_same_in_every_mode(name, folder):
    """Training moves what it should: BatchNorm of PromptKD's projector and the running mean of AttriPrompt's queries."""
    model = build_trainer(contract.config(name, folder, f"run/{name}")).model.eval()
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        wanted = model(images)
    for mode in MODES:
        if MODES[mode][0] and name in ("PromptKD", "AttriPrompt"):
            continue
        for context, tolerance in PRECISIONS.values():
            with in_mode(model, mode), context():
                found = model(images)
            assert found.dtype == torch.float32 and found.isfinite().all()
            centred = lambda z: z - z.mean(1, keepdim=True)
            assert relative(centred(found), centred(wanted)) < max(tolerance, 1e-4) * 4, mode


@pytest.mark.parametrize("name", ["CoOp", "MaPLe", "PromptKD", "AttriPrompt", "DCAR", "PVLF"])
def test_a_step_sees_the_weights_of_the_step_before_under_autocast(name, folder, monkeypatch, tmp_path):
    """Two runs in bfloat16: with autocast's cache of half-precision weights, and without it."""
    monkeypatch.setattr("dassl_prompts.models.resolve_precision", lambda precision, device: precision)
    monkeypatch.setattr("dassl_prompts.trainers.pvlf.trainer.resolve_precision", lambda precision, device: precision)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    node, losses = name.upper(), []
    for cached in (True, False):
        monkeypatch.setattr("torch.is_autocast_cache_enabled", lambda cached=cached: cached)
        set_random_seed(1)
        keys = (f"TRAINER.{node}.PREC", "amp", "OPTIM.LR", 0.02, "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True)
        trainer = build_trainer(contract.config(name, folder, str(tmp_path / f"{name}{cached}"), *keys))
        assert trainer.autocast_dtype is torch.bfloat16
        seen, step = [], trainer.forward_backward
        trainer.forward_backward = lambda batch: seen.append(step(batch)["loss"]) or {"loss": seen[-1]}
        trainer.train()
        losses.append(seen)
    assert len(losses[0]) > 1 and losses[0] == losses[1]
