"""Every configuration file is merged once with every kind of dataset file it can meet, and its trainer accepts it."""

from pathlib import Path

import pytest

import dassl_prompts
from dassl_prompts.engine import TRAINER_REGISTRY, get_cfg_default, merge_file
from dassl_prompts.engine.config import dump
from dassl_prompts.engine.resume import flat_config
from dassl_prompts.models.weights import EMBEDDED
from dassl_prompts.train import parser, setup_cfg

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
METHODS = sorted((CONFIGS / "trainers").glob("*/*.yaml"))
DATASETS = sorted((CONFIGS / "datasets").glob("*.yaml"))


def comes_back(cfg, folder):
    """Whether the configuration in a log is a file for --config-file that gives the same one."""
    (folder / "logged.yaml").write_text(dump(cfg), encoding="utf-8")
    read = get_cfg_default()
    dassl_prompts.extend_cfg(read)
    merge_file(read, folder / "logged.yaml")
    return flat_config(read) == flat_config(cfg)


@pytest.mark.parametrize("path", METHODS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_method_files(path, tmp_path):
    name = path.parent.name
    dataset = CONFIGS / "datasets" / "emoji.yaml"
    cfg = setup_cfg(
        parser().parse_args(
            ["--trainer", name, "--config-file", str(path), "--dataset-config-file", str(dataset), "--seed", "1"]
        )
    )
    trainer = TRAINER_REGISTRY.get(name)
    trainer.check_cfg(trainer.__new__(trainer), cfg)
    assert comes_back(cfg, tmp_path)
    assert cfg.MODEL.BACKBONE.NAME
    size = 64 if cfg.MODEL.BACKBONE.NAME in EMBEDDED else 224
    assert tuple(cfg.INPUT.SIZE) in ((size, size), (384, 384))


@pytest.mark.parametrize("path", DATASETS, ids=lambda p: p.stem)
def test_dataset_files(path, tmp_path):
    from dassl_prompts.engine import DATASET_REGISTRY

    cfg = setup_cfg(parser().parse_args(["--trainer", "CoOp", "--dataset-config-file", str(path)]))
    assert cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
    assert comes_back(cfg, tmp_path)


def test_shipped_files_are_those_of_the_recipes():
    from dassl_prompts.run import job

    for trainer, table in job.RECIPES.items():
        for name in table.values():
            assert (CONFIGS / "trainers" / trainer / f"{name}.yaml").is_file(), (trainer, name)


@pytest.mark.parametrize("ending, protocols", [("_cross_datasets", {"xd", "dg"}), ("_few_shot", {"fewshot"})])
def test_files_of_a_protocol_are_its_recipes(ending, protocols):
    from dassl_prompts.run import job

    for path in METHODS:
        if path.stem.endswith(ending):
            table = job.RECIPES[path.parent.name]
            assert {name for name, recipe in table.items() if recipe == path.stem} == protocols, path
