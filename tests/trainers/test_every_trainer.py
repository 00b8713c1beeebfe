"""One training step on a CPU in fp32 with every trainer of the registry; a new one has to be added here."""

import pytest
import torch

from dassl_prompts.engine import TRAINER_REGISTRY, build_trainer
from dassl_prompts.engine.registration import _ours
from tests.datasets import cir_trees
from tests.models.test_blip import write_tiny_blip
from tests.trainers import plain, retrieval_tree, test_pvlf
from tests.trainers.test_backbone_runs import METHODS, teacher_options

TEMPLATE = "a photo of a {}."
CLASSIFIERS = {
    "CoOp": ["TRAINER.COOP.N_CTX", 4],
    "AttriPrompt": ["TRAINER.ATTRIPROMPT.TEMPLATE", TEMPLATE],
    **{name: opts for name, (opts, _) in METHODS.items()},
}
DPC = [f"DPC_{name}" for name in CLASSIFIERS if name not in ("CoCoOp", "AttriPrompt")]  # two stages each: test_dpc.py trains them
RETRIEVAL, COMPOSED = ["CoOpITR", "CLIPAdapterITR", "MaPLeITR", "DCAR"], ["PVLF", "TransAgg"]
UNTRAINED = ["ZeroshotCLIP", "ZeroshotCLIP2", "ZeroshotITR", "ZeroshotCIR"]  # tested in their families' files
TRAINED = [*CLASSIFIERS, *RETRIEVAL, *COMPOSED]
SHORT = ["OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True]


def test_no_trainer_is_left_out():
    ours = {name: cls for name, cls in _ours["trainer"].items() if cls.__module__.startswith("dassl_prompts.")}  # not a test's
    assert sorted([*TRAINED, *DPC, *UNTRAINED]) == sorted(ours)
    assert all(TRAINER_REGISTRY.get(name) is cls for name, cls in ours.items())


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
        return CLASSIFIERS[name]

    def build(name):
        return build_trainer(make_cfg(name, *options(name), *SHORT))

    return build


@pytest.fixture
def retrieval(clip_file, tmp_path):
    def build(name):
        root = retrieval_tree.make_tree(tmp_path / "data")
        return retrieval_tree.make_trainer(root, clip_file, tmp_path / "run", name, **dict(zip(SHORT[::2], SHORT[1::2])))

    return build


@pytest.fixture
def composed(tmp_path):
    def build(name):
        for tree in (cir_trees.cirr, cir_trees.laion_cir):
            tree(tmp_path / "data")
        blip = write_tiny_blip(tmp_path / "blip")
        return build_trainer(test_pvlf.config(name, blip, tmp_path / "data", tmp_path / "run", *SHORT))

    return build


@pytest.mark.parametrize("name", TRAINED)
def test_one_step(name, request):
    family = "retrieval" if name in RETRIEVAL else "composed" if name in COMPOSED else "classifier"
    trainer = request.getfixturevalue(family)(name)
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
