"""Runs with a store of frozen image features, empty and filled, against runs without: equal to the bit."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import transforms as T

from dassl_prompts.engine import (
    TRAINER_REGISTRY,
    build_trainer,
    learned_tensors,
    register_trainer,
    set_random_seed,
)
from dassl_prompts.engine.builtin import loading
from dassl_prompts.engine.files import DiskFullError
from dassl_prompts.engine.resume import FREE_KEYS
from dassl_prompts.features import store
from dassl_prompts.features.frozen import FrozenLoader
from dassl_prompts.images import ImageReadError
from dassl_prompts.results.runs import FREE
from dassl_prompts.trainers.coop import CoOp
from tests.trainers import contract
from tests.trainers.contract import TRAINERS

FROZEN = [name for name in TRAINERS if vars(TRAINER_REGISTRY.get(name)).get("frozen_image_side")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return contract.prepare(tmp_path_factory.mktemp("frozen"))


@pytest.fixture
def reads(monkeypatch):
    """Paths of the pictures that were decoded since the list was emptied."""
    seen, read = [], loading.read_image
    monkeypatch.setattr(loading, "read_image", lambda path, *rest: seen.append(path) or read(path, *rest))
    return seen


def run(folder, name, output, where, *more):
    """A finished run, and all that it leaves behind."""
    only_text = ("TRAINER.IVLP.PROMPT_DEPTH_VISION", 0) if name.endswith("IVLP") else ()
    set_random_seed(1)
    cfg = contract.config(name, folder, output, "FEATURES.DIR", str(where), *only_text, *more)
    trainer = build_trainer(cfg)
    trainer.test() if name in contract.UNTRAINED else trainer.train()
    return trainer, left_by(trainer)


def left_by(trainer):
    out = Path(trainer.output_dir)
    results = json.loads((out / "results.json").read_text())
    predictions = dict(np.load(out / "predictions_test.npz"))
    epochs = (out / "epochs.json").read_text() if (out / "epochs.json").exists() else ""
    tensors = {f"{name}.{key}": t for name, m in trainer._models.items() for key, t in learned_tensors(m).items()}
    return {"test": results["test"], "epochs": epochs, "rng": torch.get_rng_state()}, predictions, tensors


def assert_equal(one, other):
    for key in one[0]:
        same = torch.equal if key == "rng" else lambda a, b: a == b
        assert same(one[0][key], other[0][key]), key
    for kind, equal in ((1, np.array_equal), (2, torch.equal)):
        assert one[kind].keys() == other[kind].keys()
        assert all(equal(one[kind][key], other[kind][key]) for key in one[kind])


def test_these_methods_have_a_frozen_image_side():
    assert len(FROZEN) == 21 and {"CoOp", "CoCoOp", "ZeroshotCLIP", "AttriPrompt", "DPC_CoOp"} < set(FROZEN)
    assert not {"MaPLe", "PromptSRC", "PromptKD", "CoPrompt", "DPC_MaPLe", "DePT_MaPLe"} & set(FROZEN)


@pytest.mark.parametrize("name", FROZEN)
def test_a_store_changes_nothing(name, folder, reads, tmp_path):
    first = TRAINERS[name].stage1
    if first and not (folder / "whole" / first).exists():
        run(folder, first, f"whole/{first}", "off")
    _, without = run(folder, name, f"off/{name}", "off")
    _, empty = run(folder, name, f"empty/{name}", tmp_path / "store")
    assert_equal(without, empty)
    reads.clear()
    _, filled = run(folder, name, f"filled/{name}", tmp_path / "store")
    assert_equal(without, filled)
    assert reads == []


def test_methods_and_numbers_of_threads_share_rows(folder, reads, tmp_path):
    threads = torch.get_num_threads()
    try:
        _, without = run(folder, "CoCoOp", "threads/off", "off")
        torch.set_num_threads(3)
        run(folder, "CoOp", "threads/CoOp", tmp_path / "store", "DATALOADER.TRAIN_X.BATCH_SIZE", 5)
        assert torch.get_num_threads() == 3
        torch.set_num_threads(threads)
        reads.clear()
        _, found = run(folder, "CoCoOp", "threads/CoCoOp", tmp_path / "store")
    finally:
        torch.set_num_threads(threads)
    left_out = 28 % 5 + 28 % 7  # the last batch of CoOp's epochs is left out, CoCoOp's views may be those
    assert len(reads) <= 2 * left_out
    assert_equal(without, found)


def test_worker_processes_change_nothing(folder, tmp_path):
    _, without = run(folder, "CoOp", "workers/off", "off")
    _, found = run(folder, "CoOp", "workers/two", tmp_path / "store", "DATALOADER.NUM_WORKERS", 2)
    assert_equal(without, found)


@pytest.mark.parametrize(
    "keys",
    [("SEED", 2), ("INPUT.PIXEL_STD", [0.3, 0.3, 0.3]), ("INPUT.RRCROP_SCALE", (0.080001, 1.0))],
    ids=["seed", "colours", "a crop that a repr rounds"],
)
def test_other_views_are_not_mistaken_for_these(keys, folder, tmp_path):
    name = "views/" + keys[0]
    run(folder, "CoOp", f"{name}/first", tmp_path / "store")
    _, without = run(folder, "CoOp", f"{name}/off", "off", *keys)
    _, found = run(folder, "CoOp", f"{name}/on", tmp_path / "store", *keys)
    assert_equal(without, found)


def test_other_weights_are_not_mistaken_for_these(folder, tmp_path):
    run(folder, "ZeroshotCLIP", "weights/first", tmp_path / "store")
    other = ("MODEL.BACKBONE.NAME", str(folder / "teacher.pt"))
    _, without = run(folder, "ZeroshotCLIP", "weights/off", "off", *other)
    _, found = run(folder, "ZeroshotCLIP", "weights/on", tmp_path / "store", *other)
    assert_equal(without, found)


def evaluation(folder, output, where, change=None):
    """Logits of the test images, after ``change`` of the files."""
    trainer = build_trainer(contract.config("ZeroshotCLIP", folder, output, "FEATURES.DIR", str(where)))
    if change:
        change([item.impath for item in trainer.dm.dataset.test])
    return contract.features(trainer)[0]


def test_a_changed_picture_is_computed_anew(folder, reads, tmp_path):
    first = evaluation(folder, "changed/first", tmp_path / "store")

    def change(paths):
        """The first picture becomes the last, with its own name, size and time of modification."""
        old = Path(paths[0]).stat()
        Path(paths[0]).write_bytes(Path(paths[-1]).read_bytes())
        os.utime(paths[0], ns=(old.st_atime_ns, old.st_mtime_ns))

    reads.clear()
    found = evaluation(folder, "changed/on", tmp_path / "store", change)
    assert reads == []  # the other picture's row is there already
    torch.testing.assert_close(found[0], found[-1])
    assert not torch.allclose(found[0], first[0])
    assert torch.equal(found, evaluation(folder, "changed/off", "off", change))


def test_a_moved_folder_is_found(folder, reads, tmp_path, monkeypatch):
    first = evaluation(folder, "moved/first", tmp_path / "store")
    (folder / "elsewhere").mkdir()
    reads.clear()
    trainer = build_trainer(
        contract.config(
            "ZeroshotCLIP",
            folder,
            "moved/on",
            "FEATURES.DIR",
            str(tmp_path / "store"),
            "DATASET.ROOT",
            str(folder / "elsewhere"),
        )
    )
    assert torch.equal(contract.features(trainer)[0], first) and reads == []


def test_an_unreadable_training_picture_is_replaced_and_told_as_without_a_store(folder, tmp_path, monkeypatch, capsys):
    read = loading.read_image

    def broken(path, *rest):
        if path.endswith("train_2_1.png"):
            raise ImageReadError(f"cannot read image {path}")
        return read(path, *rest)

    monkeypatch.setattr(loading, "read_image", broken)
    keys = ("DATALOADER.MAX_CORRUPT", 1)
    said = []
    for output, where in (("off", "off"), ("empty", tmp_path / "store"), ("filled", tmp_path / "store")):
        capsys.readouterr()
        said.append((run(folder, "CoOp", f"corrupt/{output}", where, *keys)[1], capsys.readouterr().out))
    assert_equal(said[0][0], said[1][0])
    assert_equal(said[0][0], said[2][0])
    assert all(text.count("Skipping unreadable training image") == 1 for _, text in said)
    with pytest.raises(ImageReadError, match="train_2_1.png"):
        run(folder, "CoOp", "corrupt/none", tmp_path / "store")


@pytest.mark.parametrize(
    "keys, reason",
    [(("DATALOADER.SEED_ITEMS", False), "SEED_ITEMS False"), (("DATALOADER.K_TRANSFORMS", 2), "several views")],
)
def test_views_that_nobody_can_name_are_read_as_ever(keys, reason, folder, tmp_path, capsys):
    trainer = build_trainer(contract.config("CoOp", folder, "bypass", "FEATURES.DIR", str(tmp_path), *keys))
    assert trainer.epoch_loader() is trainer.train_loader_x
    assert trainer.epoch_loader() is trainer.train_loader_x
    assert capsys.readouterr().out.count(reason) == 1
    assert isinstance(trainer.choose_split("test")[1], FrozenLoader)


def test_a_transform_that_does_not_say_what_it_does_is_not_kept(folder, tmp_path, capsys):
    trainer = build_trainer(contract.config("CoOp", folder, "silent", "FEATURES.DIR", str(tmp_path / "store")))
    test = trainer.test_loader.dataset
    test.transform = T.Compose([*test.transform.transforms, T.Lambda(lambda image: image + 1)])
    trainer.test()
    assert "repr of a transform" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()


def test_a_subclass_looks_at_pixels_unless_it_says_otherwise(folder):
    name = "PixelCoOp"
    if name not in TRAINER_REGISTRY.registered_names():
        register_trainer(type(name, (CoOp,), {"loss": lambda self, images, labels: CoOp.loss(self, images, labels)}))
    cfg = contract.config("CoOp", folder, "pixels").clone()
    cfg.defrost()
    cfg.TRAINER.NAME = name
    cfg.freeze()
    trainer = build_trainer(cfg)
    assert next(iter(trainer.epoch_loader()))["img"].shape[1:] == (3, 32, 32)


def test_a_visual_prompt_needs_pixels(folder):
    trainer = build_trainer(contract.config("IVLP", folder, "visual"))
    assert trainer.epoch_loader() is trainer.train_loader_x


def test_a_store_too_small_for_a_run_is_told_of(folder, tmp_path, capsys):
    run(folder, "CoOp", "small", tmp_path / "store", "FEATURES.MAX_GB", 20e-6)
    said = capsys.readouterr().out
    assert "Features of training images are not kept" in said and "FEATURES.MAX_GB 2e-05" in said
    assert (tmp_path / "store").exists()


def test_a_full_disk_ends_the_keeping_and_not_the_run(folder, tmp_path, monkeypatch, capsys):
    def full(path, records):
        raise DiskFullError(28, f"cannot write {path}: No space left on device")

    _, without = run(folder, "CoOp", "full/off", "off")
    monkeypatch.setattr(store, "write_records", full)
    capsys.readouterr()
    _, found = run(folder, "CoOp", "full/on", tmp_path / "store")
    assert capsys.readouterr().out.count("this run keeps no more features") <= 2  # one of each transform
    assert_equal(without, found)


def test_the_place_and_size_of_the_store_are_not_part_of_a_run(folder, tmp_path):
    assert {"FEATURES.DIR", "FEATURES.MAX_GB"} <= set(FREE_KEYS) & FREE
