"""The advice how to make DPC's first stage: a command that gives the right run, in our program and in a lab's checkout."""

import argparse
import shlex
import sys

import pytest
from yacs.config import CfgNode

import dassl_prompts
from dassl_prompts.configs import recipes
from dassl_prompts.engine import TRAINER_REGISTRY, get_cfg_default, merge_opts
from dassl_prompts.train import parser, setup_cfg
from dassl_prompts.trainers.coop import CoOp
from dassl_prompts.trainers.dpc.stage1 import command, other_way

SAME = ("DATASET.NAME", "DATASET.ROOT", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "SEED", "INPUT.SIZE")
SAME += ("MODEL.BACKBONE.NAME", "TRAINER.COOP.N_CTX", "TRAINER.COOP.CSC", "TRAINER.COOP.CLASS_TOKEN_POSITION")


def value(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def lab_defaults():
    """A configuration as CoOp's train.py makes it: its own node first, then our line."""
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CfgNode(
        {"N_CTX": 4, "CSC": True, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "middle"}
    )
    dassl_prompts.extend_cfg(cfg)
    return cfg


def lab_program(words):
    """CoOp's train.py up to its frozen configuration, merging with yacs itself."""
    p = argparse.ArgumentParser()
    for flag in ("--root", "--output-dir", "--config-file", "--dataset-config-file", "--trainer", "--backbone"):
        p.add_argument(flag, default="")
    p.add_argument("--seed", type=int, default=-1)
    p.add_argument("opts", default=None, nargs=argparse.REMAINDER)
    args, cfg = p.parse_args(words), lab_defaults()
    for file in (args.dataset_config_file, args.config_file):
        if file:
            cfg.merge_from_file(file)
    cfg.SEED, cfg.TRAINER.NAME, cfg.OUTPUT_DIR = args.seed, args.trainer, args.output_dir
    cfg.merge_from_list(args.opts)
    return cfg


def wanted(cfg, dataset, **other):
    settings = {
        "TRAINER.NAME": "DPC_CoOp",
        "DATASET.NAME": dataset,
        "DATASET.ROOT": "/data sets",
        "DATASET.NUM_SHOTS": 16,
        "DATASET.SUBSAMPLE_CLASSES": "base",
        "SEED": 3,
        "INPUT.SIZE": "(32, 32)",
        "MODEL.BACKBONE.NAME": "ViT-B/16",
        "TRAINER.COOP.N_CTX": 16,  # our default, not the lab's
        "TRAINER.COOP.CSC": False,
        "TRAINER.COOP.CLASS_TOKEN_POSITION": "end",
        **other,
    }
    merge_opts(cfg, [str(part) for pair in settings.items() for part in pair])
    return cfg


def advised(cfg):
    return shlex.split(command(cfg, "CoOp", "COOP", {}))


def test_in_our_program_the_command_gives_the_stage_1_of_the_run():
    cfg = get_cfg_default()
    dassl_prompts.extend_cfg(cfg)
    words = advised(wanted(cfg, "Caltech101"))
    assert words[:3] == ["python", "-m", "dassl_prompts.train"]
    made = setup_cfg(parser().parse_args(words[3:]))
    assert made.TRAINER.NAME == "CoOp" and [value(made, k) for k in SAME] == [value(cfg, k) for k in SAME]


def test_in_a_labs_checkout_it_is_the_labs_program_and_its_defaults_do_not_count(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--trainer", "DPC_CoOp"])
    cfg = wanted(lab_defaults(), "ToyColours")  # registered by these tests, not by the package
    words = advised(cfg)
    assert words[:2] == ["python", "train.py"]
    made = lab_program(words[2:])
    assert made.TRAINER.NAME == "CoOp" and [value(made, k) for k in SAME] == [value(cfg, k) for k in SAME]
    assert lab_defaults().TRAINER.COOP.N_CTX == 4  # else nothing was tested


def test_a_class_of_the_labs_that_may_not_know_the_backbone_is_told(monkeypatch):
    cfg = wanted(lab_defaults(), "ToyColours", **{"MODEL.BACKBONE.NAME": "emoji-tiny"})
    assert other_way(cfg, CoOp) == ""
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "CoOp", type("CoOp", (), {"__module__": "trainers.coop"}))
    assert "CoOp is your own class" in other_way(cfg, CoOp) and "emoji-tiny" in other_way(cfg, CoOp)
    assert other_way(wanted(cfg, "ToyColours"), CoOp) == ""  # OpenAI's backbones every CoOp knows
    advice = other_way(wanted(cfg, "Emoji", **{"MODEL.BACKBONE.NAME": "emoji-tiny"}), CoOp)
    assert advice == "; or let scripts/dpc/base2new.sh run both stages"


def recipe_files():
    from pathlib import Path

    return sorted(Path(recipes.__file__).parent.glob("*/**/*.yaml"))


@pytest.mark.parametrize("path", recipe_files(), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_recipe_merges_in_a_labs_program_with_yacs_itself(path):
    lab_defaults().merge_from_file(str(path))
