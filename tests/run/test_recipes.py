"""What a protocol sets for a method: every plan on the embedded data merges, and per-dataset settings arrive."""

import pytest

from dassl_prompts.engine import TRAINER_REGISTRY
from dassl_prompts.engine.config import flatten
from dassl_prompts.run import protocols
from dassl_prompts.run.job import RECIPES, Job
from dassl_prompts.run.protocols import PROTOCOLS
from dassl_prompts.trainers.dpc.stage1 import SHAPE_KEYS

CLASSIFICATION = ("base2new", "fewshot", "xd", "dg")
#: PromptKD distils on unlabelled images of every target, which some protocols have no use for
REFUSED = {("PromptKD", "fewshot"), ("DPC_PromptKD", "fewshot"), ("DPC_PromptKD", "xd"), ("DPC_PromptKD", "dg")}


@pytest.mark.parametrize("protocol", CLASSIFICATION)
@pytest.mark.parametrize("trainer", RECIPES)
def test_every_plan_on_the_embedded_data_merges(trainer, protocol, tmp_path):
    job = Job(trainer, "emoji", 1, root="", output=tmp_path)
    if (trainer, protocol) in REFUSED:
        with pytest.raises(ValueError, match="PromptKD (distils|is distilled)"):
            PROTOCOLS[protocol].steps(job)
        return
    for step in PROTOCOLS[protocol].steps(job):
        cfg = step.config()
        assert cfg.MODEL.BACKBONE.NAME == "open-tiny" and tuple(cfg.INPUT.SIZE) == (64, 64), step.title
        method = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
        method.check_cfg(method.__new__(method), cfg)


def gpa(dataset, protocol="fewshot", **job):
    """GPA_MEAN and GPA_STD of PromptSRC's training run."""
    node = PROTOCOLS[protocol].steps(Job("PromptSRC", dataset, 1, **job))[0].config().TRAINER.PROMPTSRC
    return node.GPA_MEAN, node.GPA_STD


def test_promptsrc_averages_late_epochs_on_five_datasets_in_few_shot():
    late = {"stanford_cars", "oxford_flowers", "fgvc_aircraft", "dtd", "eurosat"}
    for dataset in (*sorted(late), "caltech101", "imagenet"):
        assert gpa(dataset) == ((45, 5) if dataset in late else (30, 30)), dataset
    assert gpa("dtd", "base2new") == (15, 1)
    assert gpa("dtd", opts=("TRAINER.PROMPTSRC.GPA_MEAN", "40")) == (40, 5)
    assert gpa("dtd", cfg="vit_b16_c2_ep20_batch4_4+4ctx") == (15, 1)


BACKBONES = {"CoOp": "COOP", "MaPLe": "MAPLE", "PromptSRC": "PROMPTSRC", "IVLP": "IVLP"}


@pytest.mark.parametrize("protocol", ["base2new", "fewshot", "xd"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_second_stage_has_the_prompts_of_the_first(backbone, protocol, tmp_path):
    steps = PROTOCOLS[protocol].steps(Job(f"DPC_{backbone}", "imagenet", 1, output=tmp_path))
    first, second = (step for step in steps if step.is_training)
    first_cfg, second_cfg = first.config(), second.config()
    assert (first_cfg.TRAINER.NAME, second_cfg.TRAINER.DPC.CKPT_DIR) == (backbone, str(first.output))
    prefixes = tuple(f"TRAINER.{BACKBONES[backbone]}.{key}" for key in SHAPE_KEYS)
    shapes = [{k: v for k, v in flatten(cfg).items() if k.startswith(prefixes)} for cfg in (first_cfg, second_cfg)]
    assert shapes[0] and shapes[0] == shapes[1]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_dpc_across_datasets_builds_on_the_run_of_its_backbone_and_shows_its_row(backbone, tmp_path, monkeypatch):
    job, plain = (Job(name, "imagenet", 1, output=tmp_path) for name in (f"DPC_{backbone}", backbone))
    steps, alone = PROTOCOLS["xd"].steps(job), PROTOCOLS["xd"].steps(plain)
    assert steps[: len(alone)] == alone and len(steps) == 2 * len(alone) == 22
    monkeypatch.setattr(protocols, "accuracy", lambda step: 10.0 + step.output.parts.count(f"DPC_{backbone}"))
    rows = PROTOCOLS["xd"].rows(job)
    assert [(row["method"], row["dtd"], row["mean of targets"]) for row in rows] == [
        (backbone, 10.0, 10.0),
        (f"DPC_{backbone}", 11.0, 11.0),
    ]


def test_depth_and_average_across_datasets(tmp_path):
    """specs/dpc.md 3.2: MaPLe at depth 3, PromptSRC at 3 + 3 with GPA 6/10."""
    maple, src = (
        PROTOCOLS["xd"].steps(Job(name, "imagenet", 1, output=tmp_path))[0].config().TRAINER
        for name in ("DPC_MaPLe", "DPC_PromptSRC")
    )
    assert (maple.NAME, maple.MAPLE.PROMPT_DEPTH) == ("MaPLe", 3)
    node = src.PROMPTSRC
    assert (node.PROMPT_DEPTH_TEXT, node.PROMPT_DEPTH_VISION, node.GPA_MEAN, node.GPA_STD) == (3, 3, 6, 10)
