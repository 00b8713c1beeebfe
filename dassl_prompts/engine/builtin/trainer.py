"""Trainers: the life cycle with its hooks in Dassl's order.

One file: the four classes inherit from each other and are read together, as Dassl keeps them.
"""

from __future__ import annotations

import datetime
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dassl_prompts.engine.builtin.evaluation import build_evaluator
from dassl_prompts.engine.builtin.loading import DataManager
from dassl_prompts.engine.builtin.meters import AverageMeter, MetricMeter
from dassl_prompts.engine.builtin.registry import TRAINER_REGISTRY, build_named, check_availability
from dassl_prompts.engine.checkpoint import BEST, load_checkpoint, resume_from_checkpoint, save_checkpoint
from dassl_prompts.engine.config import flatten
from dassl_prompts.engine.files import tolist_if_not
from dassl_prompts.engine.writers import DEFAULT, Writers


class TrainerBase:
    """Registered models with their optimisers and schedules, and the training loop."""

    def __init__(self):
        self._models: OrderedDict[str, nn.Module] = OrderedDict()
        self._optims: OrderedDict[str, Any] = OrderedDict()
        self._scheds: OrderedDict[str, Any] = OrderedDict()
        self._writer = None

    # -- registered models ------------------------------------------------------------------------------

    def register_model(self, name: str = "model", model: nn.Module | None = None, optim=None, sched=None) -> None:
        """Make a model part of mode switching, optimisation and checkpoints under ``name``.

        Raises:
            AttributeError: called before ``super().__init__()``.
            AssertionError: the name is taken (Dassl's type).
        """
        if "_models" not in self.__dict__:
            raise AttributeError("Cannot assign model before super().__init__() call")
        if name in self._models:
            raise AssertionError(f"Found duplicate model names: {name}")
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names: str | list[str] | None = None) -> list[str]:
        """All registered names, or ``names`` after checking that they are registered."""
        known = list(self._models)
        if names is None:
            return known
        for name in tolist_if_not(names):
            check_availability(name, known)
        return tolist_if_not(names)

    def set_model_mode(self, mode: str = "train", names=None) -> None:
        """Switch the registered models to "train" or "eval" (or "test") mode."""
        if mode not in ("train", "eval", "test"):
            raise KeyError(f"mode must be train, eval or test, got {mode!r}")
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names=None) -> None:
        """Advance the schedules; trainers call it once per epoch, at the last batch."""
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def get_current_lr(self, names=None) -> float:
        """Learning rate of the first group of the first model."""
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]

    # -- checkpoints ------------------------------------------------------------------------------------

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name="") -> None:
        """Write a checkpoint of every registered model below ``directory``; ``epoch`` is 0-based."""
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
            }
            save_checkpoint(state, Path(directory) / name, is_best=is_best, model_name=model_name)

    def resume_model_if_exist(self, directory) -> int:
        """Resume all models from ``directory`` if all are there; returns the epoch to start with."""
        folders = {name: Path(directory) / name for name in self.get_model_names()}
        if not folders or not all((folder / "checkpoint").exists() for folder in folders.values()):
            print("No checkpoint found, train from scratch")
            return 0
        print(f"Found checkpoint at {directory} (will resume training)")
        epochs = [
            resume_from_checkpoint(folder, self._models[name], self._optims[name], self._scheds[name])
            for name, folder in folders.items()
        ]
        return epochs[-1]

    def load_model(self, directory, epoch=None) -> None:
        """Load all models from ``directory``: the best ones, or those of ``epoch`` (1-based).

        Raises:
            FileNotFoundError: there is no such checkpoint.
        """
        if not directory:
            print(
                "Note that load_model() is skipped as no pretrained model is given (ignore this if it's done on purpose)"
            )
            return
        file = BEST if epoch is None else f"model.pth.tar-{epoch}"
        for name in self.get_model_names():
            path = Path(directory) / name / file
            if not path.exists():
                raise FileNotFoundError(f"No model at {path}")
            checkpoint = load_checkpoint(path)
            result = checkpoint.get("val_result")
            shown = "none" if result is None else f"{result:.1f}"
            print(f"Load {path} to {name} (epoch={checkpoint['epoch']}, val_result={shown})")
            self._models[name].load_state_dict(checkpoint["state_dict"])

    # -- one step ---------------------------------------------------------------------------------------

    def detect_anomaly(self, loss: Tensor) -> None:
        """Stop on a loss that is not finite.

        Raises:
            FloatingPointError: it is infinite or NaN.
        """
        if not torch.isfinite(loss).all():
            raise FloatingPointError("Loss is infinite or NaN!")

    def model_zero_grad(self, names=None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss: Tensor) -> None:
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names=None) -> None:
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss: Tensor, names=None) -> None:
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    # -- scalars ----------------------------------------------------------------------------------------

    def init_writer(self, log_dir) -> None:
        """Open what ``TRAIN.LOG_TO`` names; tensorboard only where the package is installed.

        Args:
            log_dir: Dassl's tensorboard folder, in the run's folder.
        """
        if self._writer is not None:
            return
        cfg = getattr(self, "cfg", None)  # a trainer of somebody else's may have none
        names = cfg.TRAIN.get("LOG_TO", DEFAULT) if cfg else DEFAULT
        self._writer = Writers(names, Path(log_dir).parent, flatten(cfg) if cfg else {})

    def close_writer(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write to what ``TRAIN.LOG_TO`` names, if it is open."""
        if self._writer is not None:
            self._writer.add_scalar(tag, scalar_value, global_step)

    # -- loop and hooks ---------------------------------------------------------------------------------

    def train(self, start_epoch: int, max_epoch: int) -> None:
        """Run the epochs; ``self.epoch`` is 0-based."""
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self) -> None:
        pass

    def after_train(self) -> None:
        pass

    def before_epoch(self) -> None:
        pass

    def after_epoch(self) -> None:
        pass

    def run_epoch(self) -> None:
        raise NotImplementedError

    def test(self, split=None) -> float:
        raise NotImplementedError

    def parse_batch_train(self, batch):
        raise NotImplementedError

    def parse_batch_test(self, batch):
        raise NotImplementedError

    def forward_backward(self, batch):
        raise NotImplementedError

    def model_inference(self, input):
        raise NotImplementedError


class SimpleTrainer(TrainerBase):
    """Trainer of a run: ``check_cfg``, data, ``build_model``, evaluator, then train and test.

    Args:
        cfg: frozen config.
    """

    def __init__(self, cfg):
        super().__init__()
        self.check_cfg(cfg)
        use_cuda = torch.cuda.is_available() and cfg.USE_CUDA
        self.device = torch.device("cuda" if use_cuda else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.build_data_loader()
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = -np.inf

    def check_cfg(self, cfg) -> None:
        """Check the config before anything is built; ``self.cfg`` does not exist yet."""

    def build_data_loader(self) -> None:
        """Set ``dm``, the four loaders, ``num_classes``, ``num_source_domains`` and ``lab2cname``."""
        self.use_data_manager(DataManager(self.cfg))

    def use_data_manager(self, dm) -> None:
        """Publish the loaders and class names of ``dm`` as attributes."""
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self) -> None:
        """Build and register the model."""
        raise NotImplementedError(f"{type(self).__name__} has to define build_model()")

    def train(self) -> None:
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self) -> None:
        """Resume if there is something to resume, open the writer, start the clock."""
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.cfg.OUTPUT_DIR)
        self.init_writer(Path(self.output_dir) / "tensorboard")
        self.time_start = time.time()

    def after_train(self) -> None:
        """Final test, elapsed time."""
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                print("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        elapsed = str(datetime.timedelta(seconds=round(time.time() - self.time_start)))
        print(f"Elapsed: {elapsed}")
        self.close_writer()

    def after_epoch(self) -> None:
        """Validate and keep the best model (``best_val``); write the epoch's checkpoint when due."""
        cfg = self.cfg
        last_epoch = self.epoch + 1 == self.max_epoch
        freq = cfg.TRAIN.CHECKPOINT_FREQ
        if cfg.TEST.FINAL_MODEL == "best_val" and not cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)
        if last_epoch or (freq > 0 and (self.epoch + 1) % freq == 0):
            self.save_model(self.epoch, self.output_dir)

    def choose_split(self, split: str | None) -> tuple[str, Any]:
        """Name and loader of ``split`` (default ``TEST.SPLIT``); test stands in for a missing val."""
        split = split or self.cfg.TEST.SPLIT
        if split == "val" and self.val_loader is not None:
            return split, self.val_loader
        return "test", self.test_loader

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on ``split``; returns the evaluator's first value."""
        from tqdm import tqdm

        self.set_model_mode("eval")
        self.evaluator.reset()
        split, loader = self.choose_split(split)
        print(f"Evaluate on the *{split}* set")
        for batch in tqdm(loader):
            input, label = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(input), label)
        results = self.evaluator.evaluate()
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        return next(iter(results.values()))

    def model_inference(self, input):
        return self.model(input)

    def parse_batch_test(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    # -- one epoch --------------------------------------------------------------------------------------

    def run_batches(self, batches: Iterator, step: Callable[[Any], dict | None]) -> None:
        """``self.num_batches`` steps with progress lines and scalars; leaves the means in ``self.epoch_means``.

        Args:
            batches: yields what ``step`` takes; waiting for it counts as data time.
            step: one training step, returns values to log by name, or None.
        """
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        end = time.time()
        for self.batch_idx in range(self.num_batches):
            batch = next(batches)
            data_time.update(time.time() - end)
            losses.update(step(batch))
            batch_time.update(time.time() - end)
            freq = self.cfg.TRAIN.PRINT_FREQ
            if freq > 0 and ((self.batch_idx + 1) % freq == 0 or self.num_batches < freq):  # 0: no progress lines
                print(self.progress_line(losses, batch_time, data_time))
            if self._writer is not None:
                n_iter = self.epoch * self.num_batches + self.batch_idx
                for name, meter in losses.meters.items():
                    self.write_scalar(f"train/{name}", meter.avg, n_iter)
                self.write_scalar("train/lr", self.get_current_lr(), n_iter)
            end = time.time()
        self.epoch_means = {name: meter.avg for name, meter in losses.meters.items()}

    def progress_line(self, losses: MetricMeter, batch_time: AverageMeter, data_time: AverageMeter) -> str:
        """Dassl's progress line of the current batch."""
        remaining = self.num_batches - self.batch_idx - 1
        remaining += (self.max_epoch - self.epoch - 1) * self.num_batches
        eta = str(datetime.timedelta(seconds=int(batch_time.avg * remaining)))
        return (
            f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
            f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) data {data_time.val:.3f} ({data_time.avg:.3f}) "
            f"{losses} lr {self.get_current_lr():.4e} eta {eta}"
        )


class TrainerX(SimpleTrainer):
    """Trains on labelled data."""

    def run_epoch(self) -> None:
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        self.run_batches(iter(self.train_loader_x), self.forward_backward)

    def parse_batch_train(self, batch):
        return tuple(batch[key].to(self.device) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Trains on labelled and unlabelled data; ``TRAIN.COUNT_ITER`` says which of them is one epoch."""

    def run_epoch(self) -> None:
        self.set_model_mode("train")
        sizes = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        sizes["smaller_one"] = min(sizes.values())
        count = self.cfg.TRAIN.COUNT_ITER
        if count not in sizes:
            raise ValueError(f"TRAIN.COUNT_ITER must be one of {list(sizes)}, got {count!r}")
        self.num_batches = sizes[count]
        pairs = zip(_forever(self.train_loader_x), _forever(self.train_loader_u))
        self.run_batches(pairs, lambda batches: self.forward_backward(*batches))

    def forward_backward(self, batch_x, batch_u):
        raise NotImplementedError

    def parse_batch_train(self, batch_x, batch_u):
        labelled = tuple(batch_x[key].to(self.device) for key in ("img", "label", "domain"))
        return (*labelled, batch_u["img"].to(self.device))


def _forever(loader) -> Iterator:
    while True:
        yield from loader


def build_trainer(cfg):
    """The trainer ``cfg.TRAINER.NAME``.

    Raises:
        ValueError: no such trainer; lists the known ones.
    """
    return build_named(TRAINER_REGISTRY, "trainer", cfg.TRAINER.NAME, cfg)
