"""Optimisers by name."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import RAdam

AVAILABLE = ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def build_optimizer(model: nn.Module | Iterable, optim_cfg, param_groups=None) -> torch.optim.Optimizer:
    """The optimiser ``optim_cfg.NAME`` (cfg.OPTIM, Dassl's keys).

    Args:
        model: a module (all its parameters; frozen ones get no gradient and stay) or an iterable of
            parameters.
        optim_cfg: settings.
        param_groups: groups instead of the parameters of ``model``; ``STAGED_LR`` then has no effect.

    Raises:
        ValueError: unknown optimiser.
        TypeError: ``STAGED_LR`` with something that is not a module.
    """
    name = optim_cfg.NAME
    if name not in AVAILABLE:
        raise ValueError(f"OPTIM.NAME: optim must be one of {AVAILABLE}, but got {name}")
    if param_groups is not None and optim_cfg.STAGED_LR:
        warnings.warn(
            "staged_lr will be ignored, if you need to use staged_lr, please bind it with param_groups yourself."
        )
    if param_groups is None:
        if optim_cfg.STAGED_LR:
            param_groups = _staged_groups(model, optim_cfg)
        else:
            param_groups = model.parameters() if isinstance(model, nn.Module) else model
    common = {"lr": optim_cfg.LR, "weight_decay": optim_cfg.WEIGHT_DECAY}
    betas = (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)
    if name in ("adam", "amsgrad"):
        return torch.optim.Adam(param_groups, betas=betas, amsgrad=name == "amsgrad", **common)
    if name == "adamw":
        return torch.optim.AdamW(param_groups, betas=betas, **common)
    if name == "radam":
        # Dassl's copy of RAdam decays the weights directly
        return RAdam(param_groups, betas=betas, decoupled_weight_decay=True, **common)
    if name == "rmsprop":
        return torch.optim.RMSprop(param_groups, momentum=optim_cfg.MOMENTUM, alpha=optim_cfg.RMSPROP_ALPHA, **common)
    return torch.optim.SGD(
        param_groups,
        momentum=optim_cfg.MOMENTUM,
        dampening=optim_cfg.SGD_DAMPNING,
        nesterov=optim_cfg.SGD_NESTEROV,
        **common,
    )


def _staged_groups(model: nn.Module, optim_cfg) -> list[dict]:
    if not isinstance(model, nn.Module):
        raise TypeError("OPTIM.STAGED_LR: the model given to build_optimizer() must be an instance of nn.Module")
    model = model.module if isinstance(model, nn.DataParallel) else model
    new_layers = optim_cfg.NEW_LAYERS
    new_layers = [new_layers] if isinstance(new_layers, str) else new_layers
    if not new_layers:
        warnings.warn("new_layers is empty, therefore, staged_lr is useless")
    base, new = [], []
    for name, module in model.named_children():
        (new if name in new_layers else base).extend(module.parameters())
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
