"""What the built-in engine offers to the seam; ``engine.real`` offers the same from Dassl."""

from dassl_prompts.engine.builtin.config import clean_cfg, get_cfg_default
from dassl_prompts.engine.builtin.datasets import DatasetBase, Datum, build_dataset
from dassl_prompts.engine.builtin.evaluation import EvaluatorBase, build_evaluator
from dassl_prompts.engine.builtin.loading import DataManager, DatasetWrapper
from dassl_prompts.engine.builtin.optim import build_optimizer
from dassl_prompts.engine.builtin.registry import (
    DATASET_REGISTRY,
    EVALUATOR_REGISTRY,
    TRAINER_REGISTRY,
    Registry,
    check_availability,
)
from dassl_prompts.engine.builtin.trainer import (
    SimpleTrainer,
    TrainerBase,
    TrainerX,
    TrainerXU,
    build_trainer,
)
from dassl_prompts.engine.builtin.transforms import build_transform, check_transforms

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
