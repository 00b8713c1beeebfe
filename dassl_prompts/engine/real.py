"""The real Dassl under the names of the seam, with the differences between its forks evened out."""

from __future__ import annotations

from dassl.config import clean_cfg
from dassl.config import get_cfg_default as _get_cfg_default
from dassl.data import DataManager
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from dassl.data.datasets import DatasetBase as _DatasetBase
from dassl.data.datasets import Datum as _Datum
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.engine.trainer import SimpleTrainer, TrainerBase, TrainerXU
from dassl.evaluation import build_evaluator
from dassl.evaluation.build import EVALUATOR_REGISTRY
from dassl.evaluation.evaluator import EvaluatorBase
from dassl.optim import build_optimizer
from dassl.utils import Registry, check_availability

from dassl_prompts.engine.builtin import datasets as builtin
from dassl_prompts.engine.builtin import transforms
from dassl_prompts.engine.builtin.loading import DatasetWrapper
from dassl_prompts.engine.builtin.registry import build_named
from dassl_prompts.engine.config import extend_cfg

__all__ = [
    "DATASET_REGISTRY",
    "DataManager",
    "DatasetBase",
    "DatasetWrapper",
    "Datum",
    "EVALUATOR_REGISTRY",
    "EvaluatorBase",
    "Registry",
    "SimpleTrainer",
    "TRAINER_REGISTRY",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "build_dataset",
    "build_evaluator",
    "build_optimizer",
    "build_trainer",
    "build_transform",
    "check_availability",
    "check_transforms",
    "clean_cfg",
    "get_cfg_default",
]


class Datum(_Datum):
    """Dassl's ``Datum`` without its ``stat`` per image, which also refuses members of archives."""

    __init__ = builtin.Datum.__init__
    __repr__ = builtin.Datum.__repr__


class DatasetBase(_DatasetBase):
    """Dassl's ``DatasetBase``, with the few-shot sampling of Dassl 0.6.3 in every fork."""

    def __init__(self, train_x=None, train_u=None, val=None, test=None):
        if not train_x:
            raise ValueError(f"{type(self).__name__}: there is no training image (train_x is empty)")
        super().__init__(train_x=train_x, train_u=train_u, val=val, test=test)

    generate_fewshot_dataset = builtin.DatasetBase.generate_fewshot_dataset
    _draw = builtin.DatasetBase._draw
    split_dataset_by_label = builtin.DatasetBase.split_dataset_by_label


def get_cfg_default():
    """Dassl's config tree with the keys that our parts of the engine read."""
    cfg = _get_cfg_default()
    extend_cfg(cfg)
    return cfg


def check_transforms(choices) -> None:
    """:func:`~dassl_prompts.engine.builtin.transforms.check_transforms` for what Dassl knows; its own assertion has no words."""
    from dassl.data.transforms import transforms as dassls

    known = getattr(dassls, "AVAI_CHOICES", None)  # a fork may have none
    if known is not None:
        transforms.check_transforms(choices, known)


def build_trainer(cfg):
    """The trainer ``cfg.TRAINER.NAME``.

    Raises:
        ValueError: no such trainer; lists the known ones.
    """
    return build_named(TRAINER_REGISTRY, "trainer", cfg.TRAINER.NAME, cfg)
