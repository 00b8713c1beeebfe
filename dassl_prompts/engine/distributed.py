"""One run on several devices: ``torchrun --nproc-per-node N train.py ...``.

Every process has the whole batch; of what the towers compute each has a part of the rows, which are then gathered, with their
gradients. All that follows (heads, losses over the batch, miners, running means, optimiser) every process does on all rows, and
so does what one process would do: same batch, order, views and random numbers, negatives of all processes, exact gradients. This
is the pair of conjugate operators of Megatron-LM (Shoeybi et al. 2019, section 3) over the rows of a batch: a tensor that enters
a sharded part has its gradients summed, one that leaves it is gathered.

Checkpoints, log and results are those of the first process; the others work in temporary folders.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_map

#: of a run folder, what the other processes need of a run that goes on
KEPT = ("*.json", "*.pt", "model*.pth.tar*", "checkpoint")
#: relative difference of learned tensors between processes above which they no longer train one model
APART = 1e-3

_this_thread = threading.local()


# -- processes --------------------------------------------------------------------------------------------


def wanted() -> int:
    """How many processes torchrun has started for this run; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def count() -> int:
    """How many processes work on this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if count() > 1 else 0


def start(use_cuda: bool) -> None:
    """Join the processes that torchrun has started; nothing without it. On GPUs each takes the one of its local number.

    Raises:
        ValueError: fewer GPUs than processes on this machine.
    """
    if wanted() == 1 or count() > 1:
        return
    backend = "gloo"
    if use_cuda and torch.cuda.is_available():
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}: this machine shows {torch.cuda.device_count()} GPUs; "
                "start as many processes, or give USE_CUDA False"
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend)
    atexit.register(dist.destroy_process_group)


def own_folder(output: str | os.PathLike) -> str:
    """Where this process writes: ``output`` itself for the first; for the others a temporary folder with what a run that goes on
    needs, and their printed lines go nowhere."""
    if count() == 1:
        return str(output)
    folder = str(output)
    if rank():
        folder = tempfile.mkdtemp(prefix=f"dassl-rank{rank()}-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for pattern in KEPT:
            for path in (found for deep in ("", "*/") for found in Path(output).glob(deep + pattern)):
                target = Path(folder, path.relative_to(output))
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        sys.stdout = sys.stderr = open(os.devnull, "w")
    dist.barrier()  # the first writes only when the others have read
    return folder


def agree(models: Iterable[nn.Module]) -> None:
    """Give all processes the learned tensors of the first.

    They compute the same numbers on equal machines; on others the last bits differ, and would drift apart.

    Raises:
        RuntimeError: they differ by more than rounding; names the tensor.
    """
    if count() == 1:
        return
    for model in models:
        for name, tensor in model.named_parameters():
            if not tensor.requires_grad:
                continue
            own = tensor.detach()
            first = own.clone()
            dist.broadcast(first, 0)
            apart = ((own - first).abs().max() / first.abs().max().clamp_min(1e-12)).reshape(1).float()
            dist.all_reduce(apart, dist.ReduceOp.MAX)  # all stop, or none
            if not apart.item() <= APART:
                raise RuntimeError(
                    f"{name} differs between the processes of this run by {apart.item():.1e}: start it on one device, and report this"
                )
            own.copy_(first)


# -- a part of the rows -----------------------------------------------------------------------------------


@contextmanager
def _sharding(on: bool) -> Iterator[None]:
    before, _this_thread.on = getattr(_this_thread, "on", False), on
    try:
        yield
    finally:
        _this_thread.on = before


def sharded():
    """Towers that are asked in this block, by this thread, compute a part of the rows; all processes have to come here."""
    return _sharding(True)


def part(module: nn.Module, rows: Sized) -> slice | None:
    """This process' rows of ``module``'s input ``rows``; None: it has to take all.

    That is so outside :func:`sharded`, with fewer rows than processes, and where a row depends on the others or on random numbers
    (batch normalisation and dropout in training mode), which would not be those of one process.
    """
    # the length last: an export to other formats must not be asked for it
    if not getattr(_this_thread, "on", False) or count() == 1 or len(rows) < count():
        return None
    if any(
        m.training and (isinstance(m, _BatchNorm) or isinstance(m, _DropoutNd) and m.p > 0) for m in module.modules()
    ):
        return None
    return slice(rank() * len(rows) // count(), (rank() + 1) * len(rows) // count())


def enter(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Tensors that all processes share, for use in a sharded part: their gradients are summed over the processes."""
    learning = [t for t in tensors if t is not None and t.requires_grad]
    if not learning or not torch.is_grad_enabled():
        return tensors
    entered = iter(_Enter.apply(*learning))
    return tuple(next(entered) if t is not None and t.requires_grad else t for t in tensors)


def run(module: nn.Module, own: slice, rows: int, *args: Any, dim: int = 0, **kwargs: Any) -> Any:
    """All rows of ``module``'s output, of which this process computes its own.

    Args:
        own: from :func:`part`. rows: of all processes. args, kwargs: of the module, own rows alone; what is shared has come through
        :func:`enter`. dim: that holds the rows in every tensor of the output.
    """
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    with _sharding(False):
        if learning:
            shared = dict(zip(learning, enter(*learning.values())))
            output = torch.func.functional_call(module, shared, args, kwargs)
        else:
            output = module(*args, **kwargs)
    return tree_map(lambda t: _Leave.apply(t, own, rows, dim) if isinstance(t, Tensor) else t, output)


def by_rows(module: nn.Module, **batch: Tensor) -> Any:
    """``module(**batch)``, where every tensor in and out has a row for each item; a part of them here, if that is possible."""
    first = next(iter(batch.values()))
    own = part(module, first)
    if own is None:
        return module(**batch)
    return run(module, own, len(first), **{name: t[own] for name, t in zip(batch, enter(*batch.values()))})


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *tensors):
        return tuple(t.view_as(t) for t in tensors)

    @staticmethod
    def backward(ctx, *grads):
        grads = [grad.contiguous().clone() for grad in grads]
        for grad in grads:
            dist.all_reduce(grad)
        return tuple(grads)


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, own, total, dim):
        ctx.own, ctx.dim = own, dim
        shape = list(rows.shape)
        shape[dim] = total
        full = rows.new_zeros(shape)
        full.narrow(dim, own.start, own.stop - own.start).copy_(rows)
        dist.all_reduce(full)  # the others' rows are zeros here: nothing is rounded
        return full

    @staticmethod
    def backward(ctx, grad):
        return grad.narrow(ctx.dim, ctx.own.start, ctx.own.stop - ctx.own.start), None, None, None
