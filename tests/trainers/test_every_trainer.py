"""Every trainer of the registry: a training step on the CPU, a run on a pretended GPU; a new one has to be added here."""

import functools

import pytest
import torch

from dassl_prompts.engine import TRAINER_REGISTRY, build_trainer
from dassl_prompts.engine.registration import _ours
from dassl_prompts.models import load_clip
from tests.datasets import cir_trees
from tests.models.test_blip import write_tiny_blip
from tests.pretend_cuda import pretend_cuda
from tests.trainers import plain, retrieval_tree
from tests.trainers.pvlf import test_pvlf
from tests.trainers.test_backbone_runs import METHODS, teacher_options

TEMPLATE = "a photo of a {}."
CLASSIFIERS = {
    "CoOp": ["TRAINER.COOP.N_CTX", 4],
    "AttriPrompt": ["TRAINER.ATTRIPROMPT.TEMPLATE", TEMPLATE],
    **{name: opts for name, (opts, _) in METHODS.items()},
    "CLIPAdapter": ["TRAINER.CLIP_ADAPTER.TEMPLATE", TEMPLATE],
    "TipAdapterF": ["TRAINER.TIP_ADAPTER.TEMPLATE", TEMPLATE],
    "LinearProbe": ["TRAINER.LP.TEMPLATE", TEMPLATE],
}
CLASSIFIERS |= {f"DePT_{name}": CLASSIFIERS[name] for name in ("CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC")}
CACHED = {"TipAdapter": ["TRAINER.TIP_ADAPTER.TEMPLATE", TEMPLATE]}  # trained without a gradient
ZEROSHOT = ["TRAINER.ZSCLIP.TEMPLATE", TEMPLATE]
DPC = [f"DPC_{name}" for name in ("CoOp", "IVLP", "MaPLe", "PromptSRC", "PromptKD")]  # two stages each
RETRIEVAL, COMPOSED = ["CoOpITR", "CLIPAdapterITR", "MaPLeITR", "DCAR"], ["PVLF", "TransAgg"]
UNTRAINED = ["ZeroshotCLIP", "ZeroshotCLIP2", "ZeroshotITR", "ZeroshotCIR"]  # tested in their families' files
TRAINED = [*CLASSIFIERS, *RETRIEVAL, *COMPOSED]
SHORT = ["OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True]


def test_no_trainer_is_left_out():
    ours = {
        name: cls for name, cls in _ours["trainer"].items() if cls.__module__.startswith("dassl_prompts.")
    }  # not a test's
    assert sorted([*TRAINED, *CACHED, *DPC, *UNTRAINED]) == sorted(ours)
    assert all(TRAINER_REGISTRY.get(name) is cls for name, cls in ours.items())


@pytest.fixture(scope="module")
def load_once():
    """Not once: towers that stay on the CPU are no use on a GPU."""
    return load_clip


@pytest.fixture
def classifier(make_cfg, teacher_file, teacher_clip, tmp_path):
    """``classifier("CoOp")``: built on the toy colours."""

    def options(name):
        if name == "PromptKD":
            return CLASSIFIERS[name] + teacher_options(teacher_file, teacher_clip, tmp_path)
        if name == "AttriPrompt":  # wants one width for texts and joint space
            path = tmp_path / "square.pt"
            torch.save(plain.openai_state(embed=64, text_width=64, vision_width=64, patch=8), path)
            return [*CLASSIFIERS[name], "MODEL.BACKBONE.NAME", str(path)]
        return (CLASSIFIERS | CACHED).get(name, ZEROSHOT)

    def build(name, *opts):
        if name not in DPC:
            return build_trainer(make_cfg(name, *options(name), *SHORT, *opts))
        backbone = [*options(name.removeprefix("DPC_")), *SHORT, *opts]
        build_trainer(make_cfg(name.removeprefix("DPC_"), *backbone, output="stage1")).train()
        return build_trainer(
            make_cfg(name, *backbone, "TRAINER.DPC.CKPT_DIR", str(tmp_path / "stage1"), "TRAINER.DPC.TOPK", 3)
        )

    return build


@pytest.fixture
def retrieval(clip_file, tmp_path):
    def build(name, *opts):
        root, opts = retrieval_tree.make_tree(tmp_path / "data"), [*SHORT, *opts]
        return retrieval_tree.make_trainer(root, clip_file, tmp_path / "run", name, **dict(zip(opts[::2], opts[1::2])))

    return build


@pytest.fixture
def composed(tmp_path):
    for tree in (cir_trees.cirr, cir_trees.laion_cir):
        tree(tmp_path / "data")
    blip = write_tiny_blip(tmp_path / "blip")

    def build(name, *opts):
        return build_trainer(test_pvlf.config(name, blip, tmp_path / "data", tmp_path / "run", *SHORT, *opts))

    return build


@pytest.fixture
def build(request, name):
    """``build(KEY, value, ...)``: the trainer that the test is about."""
    family = (
        "retrieval"
        if name.endswith(("ITR", "DCAR"))
        else "composed"
        if name in (*COMPOSED, "ZeroshotCIR")
        else "classifier"
    )
    return functools.partial(request.getfixturevalue(family), name)


@pytest.mark.parametrize("name", TRAINED)
def test_one_step(name, build):
    trainer = build()
    learned = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in learned.items()}
    assert before and trainer.device.type == "cpu"
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}

    whole, steps = trainer.run_batches, []

    def first_batch(batches, step):
        trainer.num_batches = 1
        whole(batches, lambda batch: steps.append(step(batch)) or steps[-1])

    trainer.run_batches = first_batch
    trainer.train()
    assert len(steps) == 1 and steps[0]  # the engine refuses values that are not finite
    assert any(not torch.equal(p, before[n]) for n, p in learned.items())
    assert all(p.isfinite().all() for p in learned.values())


@pytest.mark.parametrize("name", [*TRAINED, *CACHED, *DPC, *UNTRAINED])
def test_run_on_a_pretended_gpu(name, build):
    with pretend_cuda() as gpu:
        trainer = build("USE_CUDA", True, "TEST.NO_TEST", False)
        assert trainer.device.type == "cuda"
        trainer.train() if name not in UNTRAINED else trainer.test()
    parameters = list((trainer.encoder if name == "ZeroshotCIR" else trainer.model).parameters())
    assert parameters and all(gpu.holds(parameter) for parameter in parameters)


OPTIONS = {  # name of the node's keys -> values away from the default that keep, move or mix tensors
    "AttriPrompt": [
        ("CACHE.DIR", "queries", "CACHE.VIEWS", 2),
        ("POOL.KEY", "learned", "RETRIEVAL.WEIGHTING", "softmax"),
        ("COMPOSE", "accumulate"),
        ("TEXT.SHARE_PREFIX", False),
    ],
    "PromptKD": [("TEACHER_CACHE", "teacher.pt")],
    "PVLF": [("BACKBONE.TUNE", "text"), ("BACKBONE.TUNE", "both")],
    "DCAR": [("DTR.SOURCE", "prompted"), ("DTR.CACHE", False)],
}


@pytest.mark.parametrize("name, options", [(name, options) for name, several in OPTIONS.items() for options in several])
def test_options_on_a_pretended_gpu(name, options, build, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [f"TRAINER.{name.upper()}.{value}" if i % 2 == 0 else value for i, value in enumerate(options)]
    with pretend_cuda():
        build("USE_CUDA", True, "TEST.NO_TEST", False, *options).train()
