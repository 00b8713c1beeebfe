"""What a protocol sets for a method: every plan on the embedded data merges, and per-dataset settings arrive."""

import pytest

from dassl_prompts.engine import TRAINER_REGISTRY
from dassl_prompts.run.job import RECIPES, Job
from dassl_prompts.run.protocols import PROTOCOLS

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
        assert cfg.MODEL.BACKBONE.NAME.startswith("emoji-") and tuple(cfg.INPUT.SIZE) == (64, 64), step.title
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
