"""The seam to the toolbox: everything that touches Dassl is imported from here.

If the real Dassl can be imported its registries and base classes are used, else the built-in engine with the
same names and behaviour (see :mod:`dassl_prompts.engine.seam`). Schedules, checkpoints, resume, logger and
file helpers are ours on both.

Names are looked up when they are asked for: reading a command's arguments or a finished run's files does not import torch.
"""

from __future__ import annotations

import importlib

#: module of this package -> what it offers under the engine's name
_MODULES = {
    "alias": ["install_alias"],
    "backend": [
        "DATASET_REGISTRY",
        "EVALUATOR_REGISTRY",
        "TRAINER_REGISTRY",
        "DataManager",
        "DatasetBase",
        "DatasetWrapper",
        "Datum",
        "EvaluatorBase",
        "Registry",
        "SimpleTrainer",
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
    ],
    "builtin.meters": [
        "AverageMeter",
        "MetricMeter",
        "compute_accuracy",
        "count_num_param",
        "open_all_layers",
        "open_specified_layers",
    ],
    "checkpoint": [
        "learned_tensors",
        "load_checkpoint",
        "load_learned_tensors",
        "load_pretrained_weights",
        "read_learned",
        "resume_from_checkpoint",
        "save_checkpoint",
    ],
    "config": ["add_defaults", "extend_cfg", "merge_file", "merge_opts"],
    "files": ["check_isfile", "listdir_nohidden", "mkdir_if_missing", "tolist_if_not", "write_json"],
    "images": ["ImageReadError", "read_image"],
    "logger": ["close_logger", "log_only", "setup_logger"],
    "randomness": ["collect_env_info", "set_random_seed"],
    "reading": ["DamagedFile", "read_json"],
    "registration": ["register_all", "register_dataset", "register_evaluator", "register_trainer"],
    "resume": ["CannotResume", "config_differences"],
    "run_folder": ["FolderInUse"],
    "schedule": ["build_lr_scheduler"],
    "seam": ["ENGINE", "ENGINE_NAME"],
    "trainer": ["PromptTrainer"],
    "unpickle": ["UnsafePickleError", "read_pickle"],
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
