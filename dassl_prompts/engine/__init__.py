"""The seam to the toolbox: everything that touches Dassl is imported from here.

If the real Dassl can be imported its registries and base classes are used, else the built-in engine with the
same names and behaviour (see :mod:`dassl_prompts.engine.seam`). Schedules, checkpoints, resume, logger and
file helpers are ours on both.
"""

from dassl_prompts.engine.alias import install_alias
from dassl_prompts.engine.backend import (
    DATASET_REGISTRY,
    EVALUATOR_REGISTRY,
    TRAINER_REGISTRY,
    DataManager,
    DatasetBase,
    DatasetWrapper,
    Datum,
    EvaluatorBase,
    Registry,
    SimpleTrainer,
    TrainerBase,
    TrainerX,
    TrainerXU,
    build_dataset,
    build_evaluator,
    build_optimizer,
    build_trainer,
    build_transform,
    check_availability,
    clean_cfg,
    get_cfg_default,
)
from dassl_prompts.engine.builtin.meters import (
    AverageMeter,
    MetricMeter,
    compute_accuracy,
    count_num_param,
    open_all_layers,
    open_specified_layers,
)
from dassl_prompts.engine.checkpoint import (
    learned_tensors,
    load_checkpoint,
    load_learned_tensors,
    load_pretrained_weights,
    read_learned,
    resume_from_checkpoint,
    save_checkpoint,
)
from dassl_prompts.engine.config import add_defaults, extend_cfg, merge_file, merge_opts
from dassl_prompts.engine.files import (
    check_isfile,
    listdir_nohidden,
    mkdir_if_missing,
    read_json,
    tolist_if_not,
    write_json,
)
from dassl_prompts.engine.images import ImageReadError, read_image
from dassl_prompts.engine.logger import close_logger, setup_logger
from dassl_prompts.engine.randomness import collect_env_info, set_random_seed
from dassl_prompts.engine.registration import (
    register_all,
    register_dataset,
    register_evaluator,
    register_trainer,
)
from dassl_prompts.engine.resume import CannotResume, config_differences
from dassl_prompts.engine.run_folder import FolderInUse
from dassl_prompts.engine.schedule import build_lr_scheduler
from dassl_prompts.engine.seam import ENGINE, ENGINE_NAME
from dassl_prompts.engine.trainer import PromptTrainer
from dassl_prompts.engine.unpickle import UnsafePickleError, read_pickle

__all__ = [
    "AverageMeter",
    "CannotResume",
    "DATASET_REGISTRY",
    "DataManager",
    "DatasetBase",
    "DatasetWrapper",
    "Datum",
    "ENGINE",
    "ENGINE_NAME",
    "EVALUATOR_REGISTRY",
    "EvaluatorBase",
    "FolderInUse",
    "ImageReadError",
    "MetricMeter",
    "PromptTrainer",
    "Registry",
    "SimpleTrainer",
    "TRAINER_REGISTRY",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
    "UnsafePickleError",
    "add_defaults",
    "build_dataset",
    "build_evaluator",
    "build_lr_scheduler",
    "build_optimizer",
    "build_trainer",
    "build_transform",
    "check_availability",
    "check_isfile",
    "clean_cfg",
    "close_logger",
    "collect_env_info",
    "compute_accuracy",
    "config_differences",
    "count_num_param",
    "extend_cfg",
    "get_cfg_default",
    "install_alias",
    "learned_tensors",
    "listdir_nohidden",
    "load_checkpoint",
    "load_learned_tensors",
    "load_pretrained_weights",
    "merge_file",
    "merge_opts",
    "mkdir_if_missing",
    "open_all_layers",
    "open_specified_layers",
    "read_image",
    "read_json",
    "read_learned",
    "read_pickle",
    "register_all",
    "register_dataset",
    "register_evaluator",
    "register_trainer",
    "resume_from_checkpoint",
    "save_checkpoint",
    "set_random_seed",
    "setup_logger",
    "tolist_if_not",
    "write_json",
]
