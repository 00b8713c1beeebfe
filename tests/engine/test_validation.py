"""Validation changes nothing in the training: the same random numbers, order of images, losses and weights."""

import random

import numpy as np
import pytest
import torch

from tests.engine.toy import ToyTrainer, make_images, toy_trainer

SETTINGS = {
    "stock Dassl's streams": ("DATALOADER.SEED_ITEMS", "False"),
    "a stream per item": ("DATALOADER.SEED_ITEMS", "True"),
    "a worker": ("DATALOADER.NUM_WORKERS", 1),
    "shuffled evaluation": ("DATALOADER.TEST.SAMPLER", "RandomSampler"),
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images"))


def trained(images, out, *opts):
    """Losses and the last epoch's learned tensors of a run."""
    trainer = toy_trainer(images, out, *opts)
    trainer.train()
    return trainer.history, torch.load(out / "prompt_learner" / "model.pth.tar-4")["state_dict"]


def assert_validation_changes_nothing(images, folder, *opts):
    (losses, weights), (other_losses, other_weights) = (
        trained(images, folder / final, "TEST.FINAL_MODEL", final, *opts) for final in ("last_step", "best_val")
    )
    assert (folder / "best_val" / "prompt_learner" / "model-best.pth.tar").exists()  # there was a validation
    assert losses == other_losses and len(losses) == 12
    assert weights.keys() == other_weights.keys()
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)


@pytest.mark.parametrize("setting", SETTINGS)
def test_runs_with_and_without_validation_are_equal_to_the_bit(images, tmp_path, setting):
    assert_validation_changes_nothing(images, tmp_path, *SETTINGS[setting])


def test_whatever_an_evaluation_draws_does_not_change_the_training(images, tmp_path, monkeypatch):
    plain = ToyTrainer.model_inference

    def noisy(self, input):
        random.random(), np.random.rand(), torch.rand(1)
        return plain(self, input)

    monkeypatch.setattr(ToyTrainer, "model_inference", noisy)
    assert_validation_changes_nothing(images, tmp_path)


def test_an_evaluation_before_the_training_draws_no_random_number_of_it(images, tmp_path):
    trainer = toy_trainer(images, tmp_path, "DATALOADER.TEST.SAMPLER", "RandomSampler")
    before = torch.get_rng_state()
    trainer.test("val"), trainer.test("test")
    assert torch.equal(torch.get_rng_state(), before)
    list(trainer.train_loader_x)  # the training's loader does draw: the comparison above could fail
    assert not torch.equal(torch.get_rng_state(), before)


def test_a_generator_that_an_evaluation_loader_has_is_kept():
    from dassl_prompts.engine.loading import draw_apart

    given = torch.Generator()
    loader = torch.utils.data.DataLoader([1, 2], generator=given)
    draw_apart(loader)
    assert loader.generator is given
    for no_loader in (None, [1, 2]):
        draw_apart(no_loader)
