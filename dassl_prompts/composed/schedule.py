"""The rate of composed-retrieval training, set per optimiser step."""

from __future__ import annotations

import math

from torch.optim.lr_scheduler import LRScheduler


class StepCosine(LRScheduler):
    """Cosine decay per optimiser step: step s uses ``end + (lr - end) (1 + cos(pi s / total)) / 2``.

    Groups with ``constant: True`` keep their rate, as the encoders' groups do in TransAgg (there lr and end
        are both 1e-6).

    Args:
        epochs: of the whole run. steps: per epoch; may be set later, before the first step. end_ratio: end /
            lr. warmup: steps in which the rate rises linearly from ``lr / warmup``; the cosine follows them.
    """

    def __init__(self, optimizer, epochs: int, steps: int = 0, end_ratio: float = 0.01, warmup: int = 0):
        self.epochs, self.steps, self.end_ratio, self.warmup = epochs, steps, end_ratio, warmup
        super().__init__(optimizer)

    def load_state_dict(self, state: dict) -> None:
        """Also takes ``{"last_epoch": epochs done}``, with which the engine resumes from a checkpoint without
        a resume file."""
        if "steps" not in state:
            state = {"last_epoch": state["last_epoch"] * self.steps}
        super().load_state_dict(state)

    def get_lr(self) -> list[float]:
        total = self.epochs * self.steps - self.warmup
        progress = min((self.last_epoch - self.warmup) / total, 1.0) if total > 0 else 0.0
        factor = self.end_ratio + (1 - self.end_ratio) * (1 + math.cos(math.pi * progress)) / 2
        if self.last_epoch < self.warmup:
            factor = (self.last_epoch + 1) / self.warmup
        groups = zip(self.base_lrs, self.optimizer.param_groups)
        return [base if group.get("constant") else base * factor for base, group in groups]
