"""The resume file: everything a run needs to go on as if it had never stopped.

``<run>/resume.pt`` is replaced atomically at the end of an epoch. It holds the learned tensors of the
registered models, optimisers, schedules, the loss scaler, the trainer's ``extra_state()``, all random
generators, the best validation result, the resolved config, a fingerprint of the training set and the digests
of data and backbone. It loads with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from dassl_prompts.engine import places
from dassl_prompts.engine.checkpoint import learned_tensors, load_checkpoint, require_finite, write_tensors
from dassl_prompts.engine.config import differing_keys, flatten
from dassl_prompts.engine.digest import differences
from dassl_prompts.engine.randomness import rng_state
from dassl_prompts.engine.reading import DamagedFile, reading, require

FILE = "resume.pt"
FORMAT = 1
#: what a resume file of this format holds
PARTS = {
    "epoch": int,
    "trainer": str,
    "config": dict,
    "data": str,
    "torch": str,
    "best_result": float,
    "corrupt": list,
    "elapsed": (int, float),
    "models": dict,
    "optims": dict,
    "scheds": dict,
    "scaler": (dict, type(None)),
    "extra": dict,
    "rng": dict,
}
#: keys that may differ between the two halves of a run: they do not change its weights
FREE_KEYS = (
    *places.FREE_PLACES,
    "VERBOSE",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.MAX_CORRUPT",
    "FEATURES.MAX_GB",
    "TRAIN.LOG_TO",
    "TRAIN.PRINT_FREQ",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.RESUME_FREQ",
    "TRAIN.CHECKPOINT_FULL",
    "TEST.PER_CLASS_RESULT",
    "TEST.COMPUTE_CMAT",
    "TEST.NO_TEST",
    "TEST.SPLIT",
    "TEST.EVALUATOR",
)


class CannotResume(ValueError):
    """There is a resume file, but it does not belong to this run."""


def flat_config(cfg: CfgNode) -> dict[str, str]:
    """All leaves of a config as text, by their full key."""
    return {key: repr(value) for key, value in flatten(cfg).items()}


def config_differences(old: dict[str, str], cfg: CfgNode, noted: dict[str, str] | None = None) -> list[str]:
    """``KEY: old -> new`` for every key whose value changes the result; a file or folder that moved is the same one.

    Args:
        old: a stored config: ``results["config"]`` of results.json, or of a resume file.
        cfg: the present config.
        noted: :func:`noted_contents` of the stored run.
    """
    noted = noted or {}
    ignore = (*FREE_KEYS, *foreign_keys([*old, *flat_config(cfg)], cfg.get("TRAINER", {}).get("NAME", "")))
    changed = differing_keys(old, flat_config(cfg), ignore=ignore)
    return [
        f"{key}: {before} -> {now}"
        for key, (before, now) in changed.items()
        if not places.same_place(key, before, now, noted.get(key, ""))
    ]


def noted_contents(run: dict[str, Any]) -> dict[str, str]:
    """What results.json or a resume file notes of the files and folders that its configuration names, by key."""
    return {places.BACKBONE: run.get("digests", {}).get("backbone", ""), **run.get("contents", {})}


def text_values(config: dict[str, str]) -> dict[str, str]:
    """The keys of a flat config whose value is a text, with that text."""
    return {key: text for key, value in config.items() if (text := places.text_of(value))}


def foreign_keys(keys: Iterable[str], trainer: str) -> set[str]:
    """Those of ``keys`` that only other methods read: ``TRAINER.<NODE>.*`` of nodes that belong to them.

    Their defaults may change between versions without a change of this run. A method reads its own node and those of the
    methods that it derives from or builds on.
    """
    from dassl_prompts.engine.backend import TRAINER_REGISTRY

    methods = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    if trainer not in methods:
        return set()
    own, others = nodes_of(methods[trainer]), set().union(*map(nodes_of, methods.values()))
    return {key for key in keys if key.startswith(tuple(f"TRAINER.{node}." for node in others - own))}


def nodes_of(method: type | None) -> set[str]:
    """Names below ``cfg.TRAINER`` that a trainer class reads."""
    if method is None:
        return set()
    named = {vars(cls).get("config_node", "") for cls in method.__mro__}
    return (named | nodes_of(getattr(method, "backbone", None))) - {""}


def fingerprint(items: Iterable, root: str) -> str:
    """Digest of a list of ``Datum``: paths relative to ``root``, labels, order."""
    digest = hashlib.sha256()
    root = os.path.join(os.path.abspath(root), "")
    for item in items:
        digest.update(f"{item.impath.removeprefix(root)}\t{item.label}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def pack(trainer, epochs_done: int) -> dict[str, Any]:
    """State of ``trainer`` after ``epochs_done`` epochs."""
    scaler = getattr(trainer, "scaler", None)
    return {
        "format": FORMAT,
        "epoch": epochs_done,
        "trainer": trainer.cfg.TRAINER.NAME,
        "config": flat_config(trainer.cfg),
        "data": fingerprint(trainer.dm.dataset.train_x, trainer.cfg.DATASET.ROOT),
        "digests": trainer.digests(),
        "contents": trainer.contents(),
        "torch": str(torch.__version__),
        "best_result": float(trainer.best_result),
        "corrupt": sorted(trainer.corrupt_images),
        "elapsed": trainer.elapsed(),
        "models": {name: learned_tensors(model) for name, model in trainer._models.items()},
        "optims": {name: None if o is None else o.state_dict() for name, o in trainer._optims.items()},
        "scheds": {name: None if s is None else s.state_dict() for name, s in trainer._scheds.items()},
        "scaler": None if scaler is None else scaler.state_dict(),
        "extra": trainer.extra_state(),
        "rng": rng_state(),
    }


def write(trainer, epochs_done: int) -> None:
    """Replace the resume file of the trainer's output folder."""
    write_tensors(pack(trainer, epochs_done), Path(trainer.output_dir) / FILE)


def check(state: dict[str, Any], trainer, path: Path) -> None:
    """Check that ``state`` belongs to the run that ``trainer`` is set up for.

    Raises:
        CannotResume: other format, config, models or training images; names what differs and what to do.
    """
    if state.get("format") != FORMAT:
        raise CannotResume(
            f"{path} has format {state.get('format')}, this version reads {FORMAT}: start in a new folder"
        )
    remedy = "choose another --output-dir, or delete the folder to start anew"
    different = config_differences(state["config"], trainer.cfg, noted_contents(state))
    if different:
        raise CannotResume(f"{path} belongs to a run with other settings ({'; '.join(different)}): {remedy}")
    if state["data"] != fingerprint(trainer.dm.dataset.train_x, trainer.cfg.DATASET.ROOT):
        seed = "; SEED is negative, so every start draws other images: give --seed" if trainer.cfg.SEED < 0 else ""
        raise CannotResume(f"{path} belongs to a run on other training images{seed}: {remedy}")
    different = differences(state.get("digests", {}), trainer.digests())
    if different:
        raise CannotResume(
            f"{path} belongs to a run on other data or weights, by their digests ({'; '.join(different)}): {remedy}"
        )
    if list(state["models"]) != trainer.get_model_names():
        raise CannotResume(f"{path} holds the models {list(state['models'])}, this run has {trainer.get_model_names()}")
    for name, model in trainer._models.items():
        own = {key: tuple(value.shape) for key, value in learned_tensors(model).items()}
        saved = {key: tuple(value.shape) for key, value in state["models"][name].items()}
        if own != saved:
            keys = sorted(key for key in own.keys() | saved.keys() if own.get(key) != saved.get(key))
            raise CannotResume(f"{path}: the learned tensors {keys} of {name} differ from this run's: {remedy}")


def unpack(state: dict[str, Any], trainer) -> int:
    """Put ``state`` into ``trainer``, all but the random generators; returns the epochs done."""
    for name, model in trainer._models.items():
        own = learned_tensors(model)
        with torch.no_grad():
            for key, value in state["models"][name].items():
                own[key].copy_(value)
        if trainer._optims[name] is not None:
            trainer._optims[name].load_state_dict(state["optims"][name])
        if trainer._scheds[name] is not None:
            trainer._scheds[name].load_state_dict(state["scheds"][name])
    if state["scaler"] is not None and getattr(trainer, "scaler", None) is not None:
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.best_result = state["best_result"]
    trainer.corrupt_images = set(state["corrupt"])
    trainer.elapsed_before = state["elapsed"]
    trainer.load_extra_state(state["extra"])
    if state["torch"] != str(torch.__version__):
        print(
            f"Note: the run began on torch {state['torch']}, this is {torch.__version__}; results may differ slightly"
        )
    return state["epoch"]


def read(path: str | os.PathLike) -> dict[str, Any]:
    """Read a resume file.

    Raises:
        ValueError: it is damaged, or not a resume file.
    """
    state = load_checkpoint(path)
    if not isinstance(state, dict) or "rng" not in state:
        raise DamagedFile(f"{path} is not a resume file")
    if state.get("format") != FORMAT:
        return state  # :func:`check` says so
    with reading(path, "a whole resume file", "delete it to start the run anew"):
        for key, kind in PARTS.items():
            require(isinstance(state[key], kind), f"its entry {key} is a {type(state[key]).__name__}")
        require(all(isinstance(part, dict) for part in state["models"].values()), "its models are no tensors by name")
    for name, model in state["models"].items():
        require_finite(model, f"{path}, {name}")
    return state
