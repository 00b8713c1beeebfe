"""Methods whose checkpoints hold something for every class of training: a classifier's rows, cached images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dassl_prompts.classification.trainer import ClassificationTrainer


def rows_among(classnames: Sequence[str], trained: Sequence[str]) -> Tensor:
    """``[C]``: the place of every class among the ``trained`` ones, -1 where it is none of them.

    >>> rows_among(["red_panda", "dog"], ["cat", "red panda"])
    tensor([ 1, -1])
    """
    places = {name.replace("_", " "): row for row, name in enumerate(trained)}
    return torch.tensor([places.get(name.replace("_", " "), -1) for name in classnames])


class ClassBoundTrainer(ClassificationTrainer):
    """Tells the model, before a checkpoint is loaded into it, which classes the run that wrote it was trained on.

    The model keeps them in ``trained``; an empty list stands for a checkpoint that does not say (of official code), which is
    taken to be of the model's own classes.
    """

    def load_model(self, directory, epoch=None):
        if directory:
            self.model.trained = list(self.read_run(directory).get("classnames", ()))
        super().load_model(directory, epoch)

    @classmethod
    def load_net(cls, model, directory, epoch=None, cfg=None):
        model.trained = list(cls.read_run(directory).get("classnames", ()))
        super().load_net(model, directory, epoch, cfg)
