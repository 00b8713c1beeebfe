"""A GPU that is not there: tensors stay on the CPU, and those that the code moved to "cuda" say they are on it.

    with pretend_cuda():
        trainer = build_trainer(cfg)      # trainer.device is cuda
        trainer.train()

An operation on tensors of both devices raises what a GPU raises, as does reading one of the GPU's through numpy. Values are the
CPU's. What happens on a tensor is told by its storage, so views, parameters and buffers follow what they show. Not covered:
kernels, half precision of a GPU, streams, and what runs inside a backward pass.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily
from torch.utils._pytree import tree_leaves

from dassl_prompts.models import backbones

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
#: functions that take tensors of both devices: copies between them
CROSSING = {"copy_", "__set__", "backward", "grad", "_has_compatible_shallow_copy_type", "__deepcopy__"}
TO_NUMPY = {"numpy", "__array__", "__dlpack__"}


class PretendCuda(TorchFunctionMode):
    """Keeps which storages are on the GPU and checks every torch function that is called while it is active."""

    def __init__(self):
        super().__init__()
        self.storages: dict[int, StorageWeakRef] = {}

    # -- where a tensor is -----------------------------------------------------------------------------------

    def holds(self, tensor: torch.Tensor) -> bool:
        reference = self.storages.get(tensor.untyped_storage()._cdata)
        return reference is not None and not reference.expired()

    def put(self, result) -> None:
        """Say of every tensor in a result that it is on the GPU."""
        for tensor in tensors(result):
            storage = tensor.untyped_storage()
            self.storages[storage._cdata] = StorageWeakRef(storage)
        if len(self.storages) > 100_000:
            self.storages = {key: ref for key, ref in self.storages.items() if not ref.expired()}

    # -- calls -----------------------------------------------------------------------------------------------

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "")
        if name == "__get__" and tensors(args):
            return self.attribute(function, args)
        if name in TO_NUMPY and self.holds(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if name in ("to", "cuda", "cpu"):
            return self.move(name, args, kwargs)
        if name == "pin_memory":  # needs a driver
            return args[0]

        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        if asked is not None and asked.type == "cuda":
            kwargs["device"] = CPU
        placed = [self.holds(tensor) for tensor in tensors((args, kwargs))]
        if name not in CROSSING:
            self.check(name, args, kwargs)
        result = function(*args, **kwargs)
        if name == "__set__":  # .data and .grad: what is shown is where it was
            return result
        if asked.type == "cuda" if asked else placed and self.decides(name, args, placed):
            self.put(result)
        return result

    def decides(self, name: str, args, placed: list[bool]) -> bool:
        """Whether results are on the GPU: an index or a copied tensor does not move what it is put into."""
        return placed[0] if name in ("__getitem__", "__setitem__", "copy_", "__deepcopy__") else any(placed)

    def check(self, name: str, args, kwargs) -> None:
        shaped = [tensor for tensor in tensors((args, kwargs)) if tensor.dim()]
        if name in ("__getitem__", "__setitem__"):  # indices of the CPU may pick from a tensor on the GPU
            if not self.holds(args[0]) and any(self.holds(tensor) for tensor in tensors(args[1])):
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
            return
        if len({self.holds(tensor) for tensor in shaped}) > 1:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"
            )

    def attribute(self, function, args):
        here = self.holds(args[0])
        what = function.__self__.__name__
        if what == "device":
            return GPU if here else CPU
        if what == "is_cuda":
            return here
        result = function(*args)
        if here:  # .T, .grad, .data, ...
            self.put(result)
        return result

    def move(self, name: str, args, kwargs):
        """``to``, ``cuda`` and ``cpu``: a change of place makes a copy, as it does with a GPU."""
        tensor, target = args[0], None
        if tensor.is_meta:
            return getattr(tensor, name)(*args[1:], **kwargs)
        if name != "to":
            target, args, kwargs = torch.device(name), args[:1], {}
        else:
            rest = []
            for value in (*args[1:], kwargs.pop("device", None)):
                if isinstance(value, (str, torch.device)):
                    target = torch.device(value)
                elif isinstance(value, torch.Tensor):
                    target = GPU if self.holds(value) else CPU
                    rest.append(value.dtype)
                elif isinstance(value, torch.dtype):
                    rest.append(value)
            args = (tensor, *rest)
        if target is not None and target.type == "meta":
            return tensor.to(*args[1:], target)
        here = self.holds(tensor)
        there = here if target is None else target.type == "cuda"
        dtype = next(iter(args[1:]), kwargs.get("dtype")) or tensor.dtype
        result = tensor.to(dtype, copy=kwargs.get("copy", False))
        if there != here and result.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
            result = result.clone()
        if there:
            self.put(result)
        return result


def tensors(values) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


class Autocast(torch.autocast):
    """Autocast of the GPU on the CPU."""

    def __init__(self, device_type: str, **kwargs):
        super().__init__("cpu", **kwargs)


def outside(load):
    """``load`` without the mode: transformers leaves buffers of BLIP empty while a torch function mode is active."""

    def run(*args, **kwargs):
        with _pop_mode_temporarily():
            return load(*args, **kwargs)

    return run


@contextlib.contextmanager
def pretend_cuda() -> Iterator[PretendCuda]:
    """Everything inside sees one CUDA device."""
    said = {
        "is_available": True,
        "is_current_stream_capturing": False,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "pretended GPU",
        "is_bf16_supported": True,
        "synchronize": None,
        "manual_seed_all": None,
        "get_rng_state_all": [],
        "set_rng_state_all": None,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
        "max_memory_allocated": 0,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in said.items():
            patch.setattr(torch.cuda, name, lambda *args, value=value, **kwargs: value)
        patch.setattr(torch, "autocast", Autocast)
        patch.setattr(
            torch.optim.Optimizer, "_accelerator_graph_capture_health_check", lambda self: None, raising=False
        )
        patch.setattr(backbones, "load_blip", outside(backbones.load_blip))
        with PretendCuda() as mode:
            yield mode
