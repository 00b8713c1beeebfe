"""Running averages, accuracy and parameter counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class AverageMeter:
    """Latest value, sum, count and average.

    Args:
        ema: average with a decay of 0.9 instead of the mean.
    """

    def __init__(self, ema: bool = False):
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val: float | Tensor, n: int = 1) -> None:
        """Add a value that stands for ``n`` items."""
        val = val.item() if isinstance(val, Tensor) else val
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.avg * 0.9 + val * 0.1 if self.ema else self.sum / self.count


class MetricMeter:
    """Averages by name; ``str()`` gives ``name value (average)`` with four decimals.

    Args:
        delimiter: between the metrics.
    """

    def __init__(self, delimiter: str = " "):
        self.meters: defaultdict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: dict[str, float | Tensor] | None) -> None:
        """Add one value per name; None adds nothing.

        Raises:
            TypeError: not a dictionary.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise TypeError(f"Input to MetricMeter.update() must be a dictionary, got {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())


@torch.no_grad()
def compute_accuracy(output: Tensor, target: Tensor, topk: Iterable[int] = (1,)) -> list[Tensor]:
    """Top-k accuracies in percent; equal scores count by the smaller class.

    Args:
        output: logits [B, C] (a list or tuple: its first element).
        target: labels [B].
        topk: values of k.

    Returns:
        one tensor of one element per k.
    """
    topk = tuple(topk)
    output = output[0] if isinstance(output, (tuple, list)) else output
    # not torch.topk, which orders equal scores by chance
    predicted = output.float().argsort(dim=1, descending=True, stable=True)[:, : max(topk)]
    hits = predicted.eq(target[:, None])
    return [hits[:, :k].any(dim=1).float().mean().mul(100.0).reshape(1) for k in topk]


def count_num_param(model: nn.Module | None = None, params=None) -> int:
    """Number of elements in the parameters of ``model``, or in ``params`` (parameters or groups).

    Raises:
        ValueError: neither is given.
    """
    if model is not None:
        return sum(p.numel() for p in model.parameters())
    if params is None:
        raise ValueError("model and params must provide at least one.")
    return sum(sum(q.numel() for q in p["params"]) if isinstance(p, dict) else p.numel() for p in params)


def open_all_layers(model: nn.Module) -> None:
    """Train all parameters."""
    model.train()
    model.requires_grad_(True)


def open_specified_layers(model: nn.Module, open_layers: str | Iterable[str]) -> None:
    """Train only the named children of ``model``; the others are frozen and in evaluation mode.

    Raises:
        ValueError: there is no child of that name.
    """
    model = model.module if isinstance(model, nn.DataParallel) else model
    open_layers = [open_layers] if isinstance(open_layers, str) else list(open_layers)
    children = dict(model.named_children())
    for layer in open_layers:
        if layer not in children:
            raise ValueError(f"{layer} is not a child of the model; it has {list(children)}")
    for name, module in children.items():
        module.train(name in open_layers)
        module.requires_grad_(name in open_layers)
