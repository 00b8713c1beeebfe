"""Publishing the built-in engine as ``dassl``, so that a lab's own trainer files run without Dassl.

Only on request: nothing is published by importing this package.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

from dassl_prompts.engine import registration, seam

_PACKAGE = "dassl_prompts.engine."

#: modules of Dassl, and where in our engine their names come from
LAYOUT = {
    "": (),
    "config": ("builtin.config",),
    "config.defaults": ("builtin.config",),
    "data": ("builtin.loading", "builtin.datasets"),
    "data.data_manager": ("builtin.loading",),
    "data.datasets": ("builtin.datasets", "builtin.registry"),
    "data.datasets.base_dataset": ("builtin.datasets",),
    "data.datasets.build": ("builtin.datasets", "builtin.registry"),
    "data.samplers": ("builtin.samplers",),
    "data.transforms": ("builtin.transforms",),
    "data.transforms.transforms": ("builtin.transforms",),
    "engine": ("builtin.trainer", "builtin.registry"),
    "engine.build": ("builtin.trainer", "builtin.registry"),
    "engine.trainer": ("builtin.trainer", "builtin.meters"),
    "evaluation": ("builtin.evaluation", "builtin.registry"),
    "evaluation.build": ("builtin.evaluation", "builtin.registry"),
    "evaluation.evaluator": ("builtin.evaluation",),
    "metrics": ("builtin.meters",),
    "metrics.accuracy": ("builtin.meters",),
    "optim": ("builtin.optim", "schedule"),
    "optim.optimizer": ("builtin.optim",),
    "optim.lr_scheduler": ("schedule",),
    "optim.radam": ("builtin.optim",),
    "utils": ("files", "images", "randomness", "logger", "checkpoint", "builtin.registry", "builtin.meters"),
    "utils.tools": ("files", "images", "randomness", "builtin.registry"),
    "utils.logger": ("logger",),
    "utils.meters": ("builtin.meters",),
    "utils.registry": ("builtin.registry",),
    "utils.torchtools": ("checkpoint", "builtin.meters"),
}


def install_alias() -> None:
    """Publish the built-in engine under Dassl's module names; a second call does nothing.

    The modules carry ``__builtin_engine__ = True``. Classes keep their own module names, so that what is
    pickled loads without the alias. Trainers and datasets that are registered from now on under names of ours take
    these names, as a CoOp checkout has a ``CoOp`` and a ``Caltech101`` of its own.

    Raises:
        RuntimeError: the real Dassl is there; the alias would hide it.
    """
    if getattr(sys.modules.get("dassl"), "__builtin_engine__", False):
        return
    if seam.ENGINE_NAME == "dassl" or seam.is_real(sys.modules.get("dassl")):
        raise RuntimeError("the real Dassl is in use; an alias of the built-in engine would hide it")
    origin = seam.installed()
    if origin is not None:
        raise RuntimeError(f"there is a package dassl at {origin}; an alias of the built-in engine would hide it")
    for name, sources in LAYOUT.items():
        _publish(f"dassl.{name}".rstrip("."), sources)
    registration.give_way()
    for name in LAYOUT:
        parent, _, child = f"dassl.{name}".rstrip(".").rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[f"{parent}.{child}"])


def _publish(name: str, sources: tuple[str, ...]) -> None:
    module = ModuleType(name, f"{name} of the engine built into dassl_prompts")
    module.__spec__ = ModuleSpec(name, loader=None, origin="dassl_prompts", is_package=True)
    module.__path__ = []
    module.__builtin_engine__ = True
    if name == "dassl":
        module.__version__ = "0.6.3"
    if name == "dassl.engine.trainer":
        module.__getattr__ = _summary_writer
    for source in sources:
        content = importlib.import_module(_PACKAGE + source)
        for key, value in vars(content).items():
            if not key.startswith("_") and key != "annotations":
                setattr(module, key, value)
    sys.modules[name] = module


def _summary_writer(name: str):
    """Dassl's trainer module also hands out tensorboard's writer, and DePT takes it from there; imported when asked for."""
    if name != "SummaryWriter":
        raise AttributeError(f"module 'dassl.engine.trainer' has no attribute {name!r}")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter
