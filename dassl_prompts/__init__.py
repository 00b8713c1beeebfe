"""Prompt learning for vision-language models as a plugin for the Dassl/CoOp toolbox.

In a CoOp checkout of your own, two lines in its train.py are enough::

    import dassl_prompts               # registers our trainers and datasets in Dassl's registries
    dassl_prompts.extend_cfg(cfg)      # adds the config nodes that are missing

Where a name is taken already (your own ``CoOp``, your own ``Caltech101``), yours stays and a line says so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dassl_prompts import moved, plugins

__version__ = (Path(__file__).parent / "VERSION").read_text(encoding="utf-8").strip()
__all__ = ["__version__", "build_model", "extend_cfg", "register_all"]


def _plugin_modules():
    """The modules of trainers/, datasets/, what they share, and those of others, imported."""
    from dassl_prompts import datasets, trainers

    return [*trainers.import_all(), *datasets.import_all(), *plugins.modules()]


def extend_cfg(cfg) -> None:
    """Add every config node of this package that ``cfg`` lacks; values that are there stay.

    One line names the methods' keys whose value is not our default: a lab's ``PREC`` decides how our trainers compute, too.
    """
    from dassl_prompts import engine
    from dassl_prompts.engine.config import theirs

    extensions = [m.extend_cfg for m in [engine, *_plugin_modules()] if hasattr(m, "extend_cfg")]
    said = theirs(cfg, extensions)
    for extend in extensions:
        extend(cfg)
    if said:
        print(said)
        engine.seam.notes.append(lambda: said)


def build_model(cfg, classnames: Sequence[str], checkpoint: str = "", epoch: int | None = None):
    """A method's model without data or trainer.

    Args:
        cfg: a configuration with ``TRAINER.NAME`` and ``MODEL.BACKBONE.NAME``.
        classnames: the classes to score, also ones never trained on.
        checkpoint: run folder whose learned tensors are loaded; "" leaves the initial ones. Its results.json is compared with
            ``cfg``: another method, backbone or reading of the tensors is a ValueError.
        epoch: which of its checkpoints; default the newest.

    Returns:
        A module in evaluation mode: ``forward(images [B, 3, H, W]) -> logits [B, C]``; its learnable tensors have the
        official names.
    """
    import torch

    from dassl_prompts.engine import TRAINER_REGISTRY, check_availability

    check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    trainer.check_method(cfg)
    device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
    model = trainer.build_net(cfg, [*classnames], trainer.load_backbone(cfg, device)).to(device)
    if checkpoint:
        trainer.load_net(model, checkpoint, epoch, cfg)
    return model.eval()


def register_all(on_conflict: str = "keep"):
    """Import all trainers and datasets and settle names that are taken; see ``engine.register_all``."""
    from dassl_prompts import engine

    _plugin_modules()
    return engine.register_all(on_conflict)


def _is_own_command() -> bool:
    """Whether Python was started for one of our commands, which register when their work starts.

    Reading arguments, ``--help`` and finished runs then need no torch, whose import takes seconds.
    """
    words = iter(sys.orig_argv[1:])
    for word in words:
        if word == "-m":
            return next(words, "").split(".")[0] == __name__
        if not word.startswith("-"):
            return Path(word).name in ("dassl-prompts", "fdrd-check", "fdrd-build")
    return False


moved.install()
if not _is_own_command():
    register_all()
