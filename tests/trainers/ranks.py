"""Trains the toy runs of :mod:`tests.trainers.contract` and notes all that has to be equal with any number of processes.

As a script: ``ranks.py FOLDER OUTPUT NAME...``, alone or under torchrun; a run ``NAME:2`` ends after two epochs, in the folder stopped.
"""

from __future__ import annotations

import functools
import sys
import traceback
import types
from pathlib import Path

if "tests" not in sys.modules:  # as a script; tests/conftest.py does the same for pytest
    sys.path.pop(0)
    tests = types.ModuleType("tests")
    tests.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["tests"] = tests

import torch
import torch.distributed as dist

import dassl_prompts.models
from dassl_prompts.engine import build_trainer, distributed, learned_tensors, set_random_seed
from tests.trainers import contract

STEPS = 20
#: that make as many steps
EPOCHS = {"classification": 5, "captions": 10, "composed": 10, "LinearProbe": 20, "LinCIR": 20, "Pic2Word": 20}
#: Adam divides by a gradient's own size: where that is nothing but rounding, the step is as large as any other
SETTINGS = ("OPTIM.NAME", "sgd", "OPTIM.LR", 0.002)


class Stopped(Exception):
    """The run has had its epochs."""


def one(name: str, folder: Path, output: str, stop: int = 0) -> dict:
    """Losses of the first steps, learned tensors at the end, and the result of the test.

    Raises:
        Stopped: after ``stop`` epochs.
    """
    set_random_seed(1)
    own = distributed.own_folder(folder / output / name)
    first = contract.TRAINERS[name].stage1  # the same one for all
    more = ("TRAINER.DPC.CKPT_DIR", str(folder / "one" / first)) if first else ()
    epochs = EPOCHS.get(name) or EPOCHS[contract.family(name)]
    if name == "PVLF":  # without dropout its text tower can be asked for a part of the batch
        more = ("TRAINER.PVLF.BACKBONE.TEXT_DROPOUT", 0.0)
    cfg = contract.config(name, folder, own, *SETTINGS, "OPTIM.MAX_EPOCH", epochs, *more)
    for turn in range(distributed.count()):  # the toy data writes its pictures when it is built
        if turn == distributed.rank():
            trainer = build_trainer(cfg)
        if distributed.count() > 1:
            dist.barrier()
    losses = []
    step = trainer._checked_step

    def watched(batch):
        if stop and trainer.epoch == stop:
            raise Stopped
        found = step(batch)
        losses.append({key: float(value) for key, value in (found or {}).items()})
        return found

    trainer._checked_step = watched
    result = trainer.train() if name in contract.TRAINED else trainer.test()
    tensors = {
        f"{part}.{key}": value.detach().clone()
        for part, model in trainer._models.items()
        for key, value in learned_tensors(model).items()
    }
    said = ("config", "digests", "contents", "frozen")
    test = {
        key: value for key, value in trainer.folder.results().items() if isinstance(value, dict) and key not in said
    }
    return {"losses": losses[:STEPS], "tensors": tensors, "result": result, "test": test}


def in_double(load):
    """``load_clip`` that reads a file once and computes in double precision."""

    @functools.cache
    def load_once(*args, **kwargs):
        with torch.random.fork_rng(devices=[]):
            return load(*args, **kwargs).double()

    return load_once


def main() -> None:
    folder, output, *names = sys.argv[1:]
    distributed.start(use_cuda=False)
    dassl_prompts.models.load_clip = in_double(dassl_prompts.models.load_clip)
    for word in names:
        name, _, stop = word.partition(":")
        try:
            found = one(name, Path(folder), "stopped" if stop else output, int(stop or 0))
        except Stopped:
            continue
        except Exception:
            found = {"error": traceback.format_exc()}
        if distributed.rank() == 0:
            Path(folder, output).mkdir(exist_ok=True)
            torch.save(found, Path(folder, output, f"{name}.pt"))


if __name__ == "__main__":
    main()
