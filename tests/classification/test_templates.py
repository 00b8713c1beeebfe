"""Templates against their sources."""

import pytest
from yacs.config import CfgNode

from dassl_prompts.classification.templates import (
    CUSTOM_TEMPLATES,
    ENSEMBLE_TEMPLATES,
    KGCOOP_TEMPLATES,
    PROGRAD_TEMPLATES,
    PROMPTSRC_TEMPLATES,
    TCP_STUDENT_TEMPLATES,
    TCP_TEMPLATES,
    template_for,
)


def test_promptsrc_averages_the_first_60_of_clips_80():
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    clips = [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]
    assert list(PROMPTSRC_TEMPLATES) == clips[:60]
    assert set(ENSEMBLE_TEMPLATES) <= set(clips) and len(set(ENSEMBLE_TEMPLATES)) == 7


def test_every_template_has_one_slot_and_ends_with_a_stop():
    for template in (*CUSTOM_TEMPLATES.values(), *ENSEMBLE_TEMPLATES, *PROMPTSRC_TEMPLATES):
        assert template.count("{}") == 1 and template.endswith(".")


def test_template_for_unknown_dataset_lists_the_known():
    cfg = CfgNode({"DATASET": {"NAME": "OxfordPets"}})
    assert template_for(cfg) == "a photo of a {}, a type of pet."
    cfg.DATASET.NAME = "Nothing"
    with pytest.raises(ValueError, match="'Nothing'.*OxfordPets"):
        template_for(cfg)


def test_every_method_has_a_text_for_every_dataset():
    for table in (KGCOOP_TEMPLATES, TCP_TEMPLATES, TCP_STUDENT_TEMPLATES, PROGRAD_TEMPLATES):
        assert set(table) == set(CUSTOM_TEMPLATES)
    for name in ("IconPark", "QuickDraw", "ClipArt", "OwnPictures", "OwnCaptions"):
        assert TCP_STUDENT_TEMPLATES[name] == "X X X X {}."
    assert TCP_STUDENT_TEMPLATES["Emoji"] == "X X X X {}, a type of emoji."
