"""Learning-rate schedules, in closed form.

The same traces as Dassl's nested warm-up schedulers, which fail to construct on torch >= 2.7 and freeze the
learning rate after a resume. Here the learning rate is a function of the epoch alone, so the state is flat
and a resumed run follows the uninterrupted one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

SCHEDULES = ["single_step", "multi_step", "cosine"]
WARMUPS = ["constant", "linear"]


class EpochSchedule(LRScheduler):
    """Optional warm-up followed by a decay; one ``step()`` per epoch.

    During epoch e (0-based, W warm-up epochs, decay factor f with f(0) = 1) the rate of a group with base
    rate lr is

    * e < W, constant: ``warmup_lr``; linear: ``warmup_lr`` at e = 0, then ``lr * e / W``;
    * e >= W: ``lr * f(e - W)`` if ``recount`` (the decay starts after the warm-up), else ``lr * f(e) /
      f(W)``.

    Args:
        optimizer: its groups' current rates are the base rates.
        decay: factor f of the number of epochs.
        warmup_epoch: W, values <= 0 mean no warm-up.
        warmup_type: "constant" or "linear".
        warmup_lr: the constant rate, or the first rate of the linear warm-up.
        recount: see above (Dassl's WARMUP_RECOUNT).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        decay: Callable[[int], float],
        warmup_epoch: int = -1,
        warmup_type: str = "constant",
        warmup_lr: float = 1e-5,
        recount: bool = True,
    ):
        self.decay = decay
        self.warmup_epoch = max(warmup_epoch, 0)
        self.warmup_type = warmup_type
        self.warmup_lr = warmup_lr
        self.recount = recount
        super().__init__(optimizer)

    def rate(self, base_lr: float, epoch: int) -> float:
        """Learning rate in force during ``epoch`` (0-based) for a group with base rate ``base_lr``."""
        warmup = self.warmup_epoch
        if epoch < warmup:
            linear = self.warmup_type == "linear" and epoch > 0
            return base_lr * epoch / warmup if linear else self.warmup_lr
        if self.recount or epoch == warmup:
            return base_lr * self.decay(epoch - warmup if self.recount else 0)
        return base_lr * self.decay(epoch) / self.decay(warmup)

    def get_lr(self) -> list[float]:
        return [self.rate(base_lr, self.last_epoch) for base_lr in self.base_lrs]

    def state_dict(self) -> dict:
        """Numbers only: epochs done, base and current rates."""
        return {
            "last_epoch": self.last_epoch,
            "_step_count": self._step_count,
            "base_lrs": [float(lr) for lr in self.base_lrs],
            "_last_lr": [float(lr) for lr in self._last_lr],
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Continue at the epoch of ``state_dict`` and set the groups' rates to match.

        States of Dassl's warm-up schedulers are understood too: there the outer counter stops at the end of
        the warm-up and the wrapped scheduler counts on.
        """
        epoch = state_dict["last_epoch"]
        successor = state_dict.get("successor")
        if successor is not None and epoch >= self.warmup_epoch:
            counted = successor.last_epoch
            epoch = counted + (self.warmup_epoch if self.recount else 0)
        self.base_lrs = list(state_dict.get("base_lrs", self.base_lrs))
        self.last_epoch = epoch
        self._step_count = epoch + 1
        self._last_lr = self.get_lr()
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def _single_step(optim_cfg) -> Callable[[int], float]:
    step = optim_cfg.STEPSIZE
    step = step[-1] if isinstance(step, (list, tuple)) else step
    if not isinstance(step, int):
        raise TypeError(f"OPTIM.STEPSIZE: for single_step the (last) step must be an integer, got {step!r}")
    step = step if step > 0 else optim_cfg.MAX_EPOCH
    return lambda k: optim_cfg.GAMMA ** (k // step)


def _multi_step(optim_cfg) -> Callable[[int], float]:
    milestones = optim_cfg.STEPSIZE
    if not isinstance(milestones, (list, tuple)):
        raise TypeError(f"OPTIM.STEPSIZE: multi_step needs a list of epochs, got {milestones!r}")
    milestones = sorted(milestones)
    return lambda k: optim_cfg.GAMMA ** bisect_right(milestones, k)


def _cosine(optim_cfg) -> Callable[[int], float]:
    return lambda k: (1 + math.cos(math.pi * k / optim_cfg.MAX_EPOCH)) / 2


def build_lr_scheduler(optimizer: Optimizer, optim_cfg) -> EpochSchedule:
    """Schedule named by ``optim_cfg.LR_SCHEDULER`` with the ``WARMUP_*`` settings (cfg.OPTIM, Dassl's keys).

    Raises:
        ValueError: unknown schedule or warm-up type.
        TypeError: STEPSIZE does not fit the schedule.
    """
    name = optim_cfg.LR_SCHEDULER
    if name not in SCHEDULES:
        raise ValueError(f"OPTIM.LR_SCHEDULER: scheduler must be one of {SCHEDULES}, but got {name}")
    decay = {"single_step": _single_step, "multi_step": _multi_step, "cosine": _cosine}[name](optim_cfg)
    if optim_cfg.WARMUP_EPOCH <= 0:
        return EpochSchedule(optimizer, decay)
    kind = optim_cfg.WARMUP_TYPE
    if kind not in WARMUPS:
        raise ValueError(f"OPTIM.WARMUP_TYPE: warm-up must be one of {WARMUPS}, but got {kind}")
    return EpochSchedule(
        optimizer,
        decay,
        warmup_epoch=optim_cfg.WARMUP_EPOCH,
        warmup_type=kind,
        warmup_lr=optim_cfg.WARMUP_CONS_LR if kind == "constant" else optim_cfg.WARMUP_MIN_LR,
        recount=optim_cfg.WARMUP_RECOUNT,
    )
