"""Dassl's config tree with its defaults (the method nodes of its domain-adaptation trainers are left out)."""

from __future__ import annotations

from yacs.config import CfgNode

from dassl_prompts.engine.config import add_defaults, extend_cfg

_LOADER = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}

DEFAULTS = {
    "VERSION": 1,
    "OUTPUT_DIR": "./output",
    # folder of a run to resume from
    "RESUME": "",
    # negative: do not seed
    "SEED": -1,
    "USE_CUDA": True,
    "VERBOSE": True,
    "INPUT": {
        "SIZE": (224, 224),
        "INTERPOLATION": "bilinear",
        # names of transforms; their order has no effect
        "TRANSFORMS": (),
        "NO_TRANSFORM": False,
        "PIXEL_MEAN": [0.485, 0.456, 0.406],
        "PIXEL_STD": [0.229, 0.224, 0.225],
        "CROP_PADDING": 4,
        "RRCROP_SCALE": (0.08, 1.0),
        "CUTOUT_N": 1,
        "CUTOUT_LEN": 16,
        "GN_MEAN": 0.0,
        "GN_STD": 0.15,
        "RANDAUGMENT_N": 2,
        "RANDAUGMENT_M": 10,
        "COLORJITTER_B": 0.4,
        "COLORJITTER_C": 0.4,
        "COLORJITTER_S": 0.4,
        "COLORJITTER_H": 0.1,
        "RGS_P": 0.2,
        "GB_P": 0.5,
        "GB_K": 21,
    },
    "DATASET": {
        "ROOT": "",
        "NAME": "",
        "SOURCE_DOMAINS": (),
        "TARGET_DOMAINS": (),
        "NUM_LABELED": -1,
        # training images per class; < 1 = all
        "NUM_SHOTS": -1,
        "VAL_PERCENT": 0.1,
        "STL10_FOLD": -1,
        "CIFAR_C_TYPE": "",
        "CIFAR_C_LEVEL": 1,
        "ALL_AS_UNLABELED": False,
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,
        # augmented copies of every training image
        "K_TRANSFORMS": 1,
        # also return the image without augmentation as "img0"
        "RETURN_IMG0": False,
        "TRAIN_X": _LOADER,
        "TRAIN_U": {"SAME_AS_X": True, **_LOADER},
        "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
    },
    "MODEL": {
        "INIT_WEIGHTS": "",
        "BACKBONE": {"NAME": "", "PRETRAINED": True},
        "HEAD": {"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0},
    },
    "OPTIM": {
        "NAME": "adam",
        "LR": 0.0003,
        "WEIGHT_DECAY": 5e-4,
        "MOMENTUM": 0.9,
        "SGD_DAMPNING": 0,
        "SGD_NESTEROV": False,
        "RMSPROP_ALPHA": 0.99,
        "ADAM_BETA1": 0.9,
        "ADAM_BETA2": 0.999,
        # other learning rate (LR * BASE_LR_MULT) for all layers but NEW_LAYERS
        "STAGED_LR": False,
        "NEW_LAYERS": (),
        "BASE_LR_MULT": 0.1,
        "LR_SCHEDULER": "single_step",
        "STEPSIZE": (-1,),
        "GAMMA": 0.1,
        "MAX_EPOCH": 10,
        "WARMUP_EPOCH": -1,
        "WARMUP_TYPE": "linear",
        "WARMUP_CONS_LR": 1e-5,
        "WARMUP_MIN_LR": 1e-5,
        # start the decay after the warm-up instead of at epoch 0
        "WARMUP_RECOUNT": True,
    },
    "TRAIN": {
        # epochs between checkpoints; 0 = only the last one
        "CHECKPOINT_FREQ": 0,
        # batches between progress lines
        "PRINT_FREQ": 10,
        # length of an epoch of TrainerXU: train_x, train_u or smaller_one
        "COUNT_ITER": "train_x",
    },
    "TEST": {
        "EVALUATOR": "Classification",
        "PER_CLASS_RESULT": False,
        "COMPUTE_CMAT": False,
        "NO_TEST": False,
        "SPLIT": "test",
        # last_step or best_val
        "FINAL_MODEL": "last_step",
    },
    "TRAINER": {"NAME": ""},
}


def get_cfg_default() -> CfgNode:
    """A fresh config tree with Dassl's defaults."""
    cfg = CfgNode()
    add_defaults(cfg, "", DEFAULTS)
    extend_cfg(cfg)
    return cfg


def clean_cfg(cfg: CfgNode, trainer: str) -> None:
    """Drop the ``TRAINER`` nodes of all methods but ``trainer``."""
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            cfg.TRAINER.pop(key)
