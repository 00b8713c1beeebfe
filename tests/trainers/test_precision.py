"""Both stages of every method in half precision and under autocast, on a CPU that is made to accept them."""

import pytest
import torch

from dassl_prompts.engine import build_trainer
from tests.trainers.test_backbone_runs import METHODS, teacher_options

NODES = {
    "CoOp": "COOP",
    "CoCoOp": "COCOOP",
    "IVLP": "IVLP",
    "MaPLe": "MAPLE",
    "PromptSRC": "PROMPTSRC",
    "PromptKD": "PROMPTKD",
    "KgCoOp": "COOP",
    "ProGrad": "COOP",
    "TCP": "COOP",
    "CoPrompt": "CoPrompt",
}


@pytest.fixture(params=["fp16", "amp"])
def precision(request, monkeypatch):
    monkeypatch.setattr("dassl_prompts.models.resolve_precision", lambda precision, device: precision)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    return request.param


def options(name, precision, teacher_file, teacher_clip, tmp_path):
    opts = ["TRAINER.COOP.N_CTX", 4] if name == "CoOp" else list(METHODS[name][0])
    if name == "PromptKD":
        opts += teacher_options(teacher_file, teacher_clip, tmp_path)
    return [*opts, f"TRAINER.{NODES[name]}.PREC", precision, "OPTIM.MAX_EPOCH", 1]


def check_dtypes(trainer, precision):
    assert trainer.precision == precision
    assert trainer.model.clip.dtype == (torch.float16 if precision == "fp16" else torch.float32)
    learned = list(trainer.model.checkpoint_module.parameters())
    assert all(p.dtype == torch.float32 for p in learned if p.requires_grad)


@torch.no_grad()
def logits(trainer, images):
    trainer.set_model_mode("eval")
    return trainer.model_inference(images)


@pytest.mark.parametrize("precision", ["fp16"], indirect=True)  # bfloat16 is too coarse for these tolerances
@pytest.mark.parametrize("name", NODES)
def test_a_step_is_close_to_that_in_fp32(
    make_cfg, precision, name, images, labels, teacher_file, teacher_clip, tmp_path
):
    """Same initial prompts, same batch: loss and the direction of the whole gradient."""
    opts = options(name, precision, teacher_file, teacher_clip, tmp_path)
    results, initial = [], None
    for prec in ("fp32", precision):
        trainer = build_trainer(make_cfg(name, *opts, f"TRAINER.{NODES[name]}.PREC", prec, output=prec))
        check_dtypes(trainer, prec)
        learned = [p for p in trainer.model.checkpoint_module.parameters() if p.requires_grad]
        initial = initial or [p.detach().clone() for p in learned]
        with torch.no_grad():
            for parameter, value in zip(learned, initial, strict=True):
                parameter.copy_(value)
        trainer.teacher_cache = None
        trainer.set_model_mode("train")
        if name == "CoPrompt":  # the frozen tower looks at an augmentation of its own
            trainer.second_view = images
        with trainer.autocast():
            loss = trainer.loss(images, labels)["loss"]
        loss.backward()
        results.append((loss.detach(), torch.cat([p.grad.flatten() for p in learned]), logits(trainer, images)))
    (loss, gradient, z), (loss_half, gradient_half, z_half) = results
    assert z_half.dtype == torch.float32
    torch.testing.assert_close(loss_half, loss, rtol=0.05, atol=0.05)
    torch.testing.assert_close(z_half, z, rtol=0, atol=0.5)
    assert float(torch.cosine_similarity(gradient, gradient_half, dim=0)) > 0.95


@pytest.mark.parametrize("name", ["CoOp", "MaPLe", "PromptSRC", "PromptKD"])
def test_new_classes_of_dpc_equal_the_backbone_bit_for_bit(
    train, make_cfg, precision, name, images, teacher_file, teacher_clip, tmp_path
):
    opts = options(name, precision, teacher_file, teacher_clip, tmp_path)
    base, new = (["DATASET.SUBSAMPLE_CLASSES", which] for which in ("base", "new"))
    train(name, *opts, *([] if name == "PromptKD" else base), output="stage1")
    dpc = ["TRAINER.DPC.CKPT_DIR", str(tmp_path / "stage1"), "TRAINER.DPC.TOPK", 3]
    check_dtypes(train(f"DPC_{name}", *opts, *base, *dpc, output="stage2"), precision)
    pair = []
    for trainer, run in ((name, "stage1"), (f"DPC_{name}", "stage2")):
        built = build_trainer(make_cfg(trainer, *opts, *new, *dpc, output=f"new_{run}"))
        built.load_model(str(tmp_path / run))
        pair.append(logits(built, images))
    assert torch.equal(*pair)
