"""The views of the training images depend on seed, epoch and image alone, not on the method that looks at them."""

import torch

from dassl_prompts.engine.randomness import view_seed
from tests.engine.toy import make_images, toy_trainer


def views(images, out, *opts, draws=0):
    """By (epoch, image) the view that a run trained on; ``draws`` random numbers are drawn before it starts."""
    trainer = toy_trainer(images, out, *opts)
    seen, step = {}, trainer.forward_backward

    def note(batch):
        seen.update({(trainer.epoch, int(i)): image for i, image in zip(batch["index"], batch["img"])})
        return step(batch)

    trainer.forward_backward = note
    torch.rand(draws)  # what another method draws for its initial weights
    trainer.train()
    return seen


CROPS = ("INPUT.TRANSFORMS", ("random_resized_crop", "random_flip"), "OPTIM.MAX_EPOCH", 2)


def test_methods_that_draw_other_numbers_see_the_same_views(tmp_path):
    images = make_images(tmp_path / "data")
    one, other = views(images, tmp_path / "one", *CROPS), views(images, tmp_path / "other", *CROPS, draws=7)
    common = one.keys() & other.keys()
    assert len(common) > 12 and {epoch for epoch, _ in common} == {0, 1}
    assert all(torch.equal(one[key], other[key]) for key in common)
    image = next(i for epoch, i in common if epoch == 0 and (1, i) in common)
    assert not torch.equal(one[0, image], one[1, image])


def test_the_streams_are_pinned():
    """A store of features is keyed by them, so they stay from release to release."""
    assert [view_seed(1, 0), view_seed(1, 1), view_seed(2, 0)] == PINNED


PINNED = [173080129836617042, 1742228182920068829, 184908555323199682]
