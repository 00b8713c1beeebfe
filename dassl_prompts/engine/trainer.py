"""``PromptTrainer``: the base of our trainers on either engine.

It keeps Dassl's hooks, attributes and printed lines, and owns what stock Dassl gets wrong or lacks: safe and
atomic checkpoints of the learned tensors, exact resume, results.json, a test loop that stops on NaN, data
errors with a name. One file: it is one class, the life of a run from start to results.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dassl_prompts.engine import distributed, epochs, resume
from dassl_prompts.engine.backend import DataManager, TrainerX, check_transforms
from dassl_prompts.engine.builtin.trainer import SimpleTrainer
from dassl_prompts.engine.checkpoint import (
    find_checkpoint,
    learned_tensors,
    load_checkpoint,
    load_learned_tensors,
    read_checkpoint,
    save_checkpoint,
)
from dassl_prompts.engine.config import flatten, refuse_pairs, with_engine_defaults
from dassl_prompts.engine.digest import data_digests
from dassl_prompts.engine.loading import PromptDatasetWrapper, check_labels, count_corrupt, draw_apart
from dassl_prompts.engine.origin import Origin, Reader
from dassl_prompts.engine.places import contents
from dassl_prompts.engine.predictions import Collector, file_name
from dassl_prompts.engine.randomness import kept_streams, set_rng_state, view_seed
from dassl_prompts.engine.reading import read_json, reading
from dassl_prompts.engine.run_folder import RESULTS, RunFolder
from dassl_prompts.engine.seam import ENGINE, VERSION, announce
from dassl_prompts.engine.writers import check_kinds

TEST_CHOICES = {"SPLIT": ("test", "val"), "FINAL_MODEL": ("last_step", "best_val")}


class PromptTrainer(TrainerX):
    """Trainer of one run.

    Subclasses define ``check_cfg(cfg)``, ``build_model()`` (which calls ``register_model``) and
    ``forward_backward(batch) -> dict``, as for Dassl's ``TrainerX``; ``update_lr()`` at the last batch of an
    epoch is their duty. They may extend the hooks of the life cycle, and say what a checkpoint holds
    (:meth:`learned_state`) and what else a resumed run needs (:meth:`extra_state`).

    Args:
        cfg: frozen config.

    Raises:
        OSError: the output folder cannot be written.
        ValueError: the labels of the dataset have gaps, a transform is unknown, or keys of ``cfg.TEST`` are unknown or contradict
            each other.
    """

    def __init__(self, cfg):
        cfg = with_engine_defaults(cfg)
        for key, known in TEST_CHOICES.items():  # Dassl takes anything it does not know for the first of them
            if cfg.TEST[key] not in known:
                raise ValueError(f"TEST.{key} is {cfg.TEST[key]!r}; choose one of {', '.join(known)}")
        never = cfg.TEST.FINAL_MODEL == "best_val" and cfg.TEST.NO_TEST
        remedy = "no epoch is validated without tests; set FINAL_MODEL last_step or NO_TEST False"
        refuse_pairs(cfg, "TEST", [(never, "FINAL_MODEL", "NO_TEST", remedy)])
        check_kinds(cfg.TRAIN.LOG_TO)
        check_transforms(cfg.INPUT.TRANSFORMS)
        announce()
        self.folder = RunFolder(cfg.OUTPUT_DIR, run_identity(cfg))
        self.corrupt_images: set[str] = set()
        self.elapsed_before = 0.0
        self.time_start = time.time()
        self._rng = None
        self._training = False
        self._contents: dict[str, str] | None = None
        self.epoch_means: dict[str, float] = {}  # what run_batches leaves of an epoch
        super().__init__(cfg)

    # -- data -------------------------------------------------------------------------------------------

    def build_data_loader(self) -> None:
        """Dassl's data manager over :class:`~dassl_prompts.engine.loading.PromptDatasetWrapper`."""
        self.use_data_manager(DataManager(self.cfg, dataset_wrapper=PromptDatasetWrapper))
        check_labels(self.dm.dataset)

    def use_data_manager(self, dm) -> None:
        """Publish the loaders and class names of ``dm``; what evaluates draws no random number of the training."""
        SimpleTrainer.use_data_manager(self, dm)
        for loader in (self.val_loader, self.test_loader):
            draw_apart(loader)

    # -- training ---------------------------------------------------------------------------------------

    def train(self) -> float | None:
        """Train, or go on training, then test.

        Returns:
            the final test result, None with ``TEST.NO_TEST``.

        Raises:
            FolderInUse: another run writes to the output folder.
            CannotResume: the output folder (or ``cfg.RESUME``) holds another run.
            FloatingPointError: a loss is not finite; names epoch and batch.
        """
        self._final_result = None
        with self.folder.lock():
            self._training = True
            try:
                self.before_train()
                self.epoch = max(self.start_epoch - 1, 0)
                self._settle_start()
                for self.epoch in range(self.start_epoch, self.max_epoch):
                    self.before_epoch()
                    self.run_epoch()
                    distributed.agree(self._models.values())
                    self.note_epoch()
                    self.after_epoch()
                    self.save_resume_state()
                self.after_train()
            finally:
                self._training = False
            self.write_results({"finished": True, "seconds": round(self.elapsed(), 1)})
        return self._final_result

    def _settle_start(self) -> None:
        """The state that the first epoch starts from; after all hooks, so that their draws do not count."""
        if self._rng is not None:
            set_rng_state(self._rng)
        if self.cfg.TRAIN.RESUME_FREQ > 0 and not (Path(self.output_dir) / resume.FILE).exists():
            resume.write(self, self.start_epoch)

    def before_train(self) -> None:
        """Resume, claim the output folder, open tensorboard, start the clock."""
        self.time_start = time.time()
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME)
        self._epochs = [entry for entry in epochs.read(self.output_dir) if entry["epoch"] <= self.start_epoch]
        self.write_results({**self.description(), "kind": "training", "finished": False})
        self.init_writer(Path(self.output_dir) / "tensorboard")

    def run_epoch(self) -> None:
        """One pass over ``train_loader_x``."""
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        wrapper = getattr(self.dm.train_loader_x, "dataset", None)
        if self.cfg.DATALOADER.SEED_ITEMS and isinstance(wrapper, PromptDatasetWrapper):
            wrapper.epoch_seed = view_seed(self.cfg.SEED, self.epoch)
        self.run_batches(iter(self.epoch_loader()), self._checked_step)

    def epoch_loader(self):
        """What an epoch's batches come from: ``train_loader_x``, or a loader of as many batches in its place."""
        return self.train_loader_x

    def note_epoch(self) -> None:
        """Add the epoch's mean losses to ``epochs.json``, from which curves are drawn."""
        self._epochs.append({"epoch": self.epoch + 1, "train": self.epoch_means})
        epochs.write(self.output_dir, self._epochs)

    def _checked_step(self, batch: Any) -> dict[str, float] | None:
        count_corrupt(batch, self.corrupt_images, self.cfg.DATALOADER.MAX_CORRUPT)
        with distributed.sharded():
            losses = self.forward_backward(batch)
        bad = [name for name, value in (losses or {}).items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(self._not_finite(", ".join(bad)))
        return losses

    def detect_anomaly(self, loss: Tensor) -> None:
        """Stop on a loss that is not finite, before it reaches the weights.

        Raises:
            FloatingPointError: names epoch and batch, and the last good checkpoint.
        """
        if not torch.isfinite(loss).all():
            raise FloatingPointError(self._not_finite("loss"))

    def _not_finite(self, what: str) -> str:
        batch = getattr(self, "batch_idx", -1) + 1
        kept = Path(self.output_dir) / resume.FILE
        state = f"the state after epoch {self.epoch} is kept in {kept}" if kept.exists() else "nothing was saved"
        return (
            f"Loss is infinite or NaN! ({what} in epoch {self.epoch + 1}/{self.max_epoch}, "
            f"batch {batch}/{self.num_batches}; {state}). Try a smaller OPTIM.LR or PREC fp32"
        )

    # pinned to the built-in versions: the forks of Dassl differ here
    run_batches = SimpleTrainer.run_batches
    progress_line = SimpleTrainer.progress_line
    choose_split = SimpleTrainer.choose_split
    init_writer = SimpleTrainer.init_writer
    close_writer = SimpleTrainer.close_writer
    write_scalar = SimpleTrainer.write_scalar
    model_inference = SimpleTrainer.model_inference
    parse_batch_test = SimpleTrainer.parse_batch_test

    def after_epoch(self) -> None:
        """Validate and write checkpoints; training goes on from the random numbers that it would have without."""
        with kept_streams():
            SimpleTrainer.after_epoch(self)

    def after_train(self) -> None:
        """Final test, elapsed time."""
        SimpleTrainer.after_train(self)

    # -- test -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on ``split`` (default ``TEST.SPLIT``) and note the results in results.json.

        Returns:
            the evaluator's first value.

        Raises:
            FloatingPointError: NaN among the logits; names split and batch.
            ImageReadError: an image cannot be read; evaluation never skips one.
            ValueError: the output folder holds the results of another run.
        """
        from tqdm import tqdm

        with self.folder.lock():
            self.folder.check_owner()
            self.set_model_mode("eval")
            self.evaluator.reset()
            split, loader = self.choose_split(split)
            print(f"Evaluate on the *{split}* set")
            answers = Collector(self.cfg.DATASET.ROOT)
            for number, batch in enumerate(tqdm(loader), 1):
                input, label = self.parse_batch_test(batch)
                with distributed.sharded():
                    output = self.model_inference(input)
                if isinstance(output, Tensor) and output.isnan().any():
                    raise FloatingPointError(
                        f"NaN among the logits of the {split} set, batch {number} of {len(loader)}"
                    )
                self.evaluator.process(output, label)
                if isinstance(output, Tensor) and output.dim() == 2 and "impath" in batch:
                    answers.add(batch["impath"], output, label)
            results = self.evaluator.evaluate()
            answers.write(Path(self.output_dir) / file_name(split))
            return self.record(split, results)

    #: whether the evaluation under way is not the last of its command, which is finished with the last one only
    more_evaluations = False

    def record(self, split: str, results: dict[str, float]) -> float:
        """Note the results of an evaluation in results.json and tensorboard; returns the first of them."""
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        values = {key: float(value) for key, value in results.items()}
        entry = {split: values}
        if not self._training and self.folder.results().get("kind") != "training":
            # an evaluation on its own is finished with its result; what a training run says of itself stays
            took = {"seconds": round(time.time() - self.time_start, 1)}
            entry = {**self.description(), **entry, "kind": "evaluation", "finished": not self.more_evaluations, **took}
        self.write_results(entry)
        self._final_result = next(iter(values.values()))
        return self._final_result

    # -- results.json -----------------------------------------------------------------------------------

    #: digest of the frozen backbone's weights, from ``build_model``; "" where there is none to compare
    backbone_digest = ""

    def digests(self) -> dict[str, str]:
        """Digests of what the result rests on besides the configuration: class names, data, backbone."""
        found = data_digests(self.dm.dataset, self.cfg)
        return {**found, "backbone": self.backbone_digest} if self.backbone_digest else found

    def contents(self) -> dict[str, str]:
        """Digests of the files and run folders that the configuration names, as they were when the run began."""
        if self._contents is None:
            config = resume.flat_config(self.cfg)
            foreign = resume.foreign_keys(config, self.cfg.TRAINER.NAME)
            self._contents = contents({key: value for key, value in config.items() if key not in foreign})
        return self._contents

    def description(self) -> dict[str, Any]:
        """What results.json says about the run besides its results."""
        return {
            "config": resume.flat_config(self.cfg),
            "classnames": list(getattr(self.dm.dataset, "classnames", ())),
            "digests": self.digests(),
            "contents": self.contents(),
            "frozen": {part: digest for part, digest in self.frozen_digests().items() if digest},
            "max_epoch": self.max_epoch,
            "engine": ENGINE,
            "dassl_prompts": VERSION,
            "torch": str(torch.__version__),
            "device": str(self.device),
        }

    def write_results(self, values: dict[str, Any]) -> None:
        """Merge ``values`` into ``OUTPUT_DIR/results.json``."""
        self.folder.write(values)

    @staticmethod
    def read_run(directory: str | Path) -> dict[str, Any]:
        """results.json of another run; empty if it has none (runs of official code)."""
        path = Path(directory) / RESULTS
        return read_json(path, dict) if path.exists() else {}

    def elapsed(self) -> float:
        """Seconds of training so far, over all parts of a resumed run."""
        return self.elapsed_before + time.time() - self.time_start

    # -- checkpoints ------------------------------------------------------------------------------------

    #: keys that decide how a checkpoint's tensors are read, or nodes of such keys; a run with other values is refused
    reading_keys: tuple[str, ...] = ()
    #: nodes of the method besides ``TRAINER.<config_node>``: a run with other values there is read, and told of
    told_keys: tuple[str, ...] = ()

    @classmethod
    def reader(cls, cfg, frozen: dict[str, str]) -> Reader:
        """What a checkpoint is compared with before it is read under ``cfg``; ``frozen`` as in :meth:`frozen_digests`."""
        node = getattr(cls, "config_node", "")
        return Reader(
            trainer=cfg.TRAINER.NAME,
            backbone=cfg.MODEL.BACKBONE.NAME,
            config=flatten(cfg),
            keys=tuple(cls.reading_keys),
            told=(*([f"TRAINER.{node}"] if node else ()), *cls.told_keys),
            frozen=frozen,
        )

    def frozen_digests(self) -> dict[str, str]:
        """Digests of the frozen networks that the learned tensors belong to, by name; "" where there is none to compare."""
        return {"backbone": self.backbone_digest}

    def arrange(self, name: str, state: dict[str, Tensor], origin: Origin) -> dict[str, Tensor]:
        """The tensors of a checkpoint in the order of this run's classes; as they are where no tensor belongs to a class."""
        return state

    def learned_state(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """Tensors of a checkpoint: the learned ones, or all of them with ``TRAIN.CHECKPOINT_FULL``."""
        return module.state_dict() if self.cfg.TRAIN.CHECKPOINT_FULL else learned_tensors(module)

    def load_learned_state(self, name: str, module: nn.Module, state: dict[str, Tensor]) -> None:
        """Put the tensors of a checkpoint into a registered model.

        Raises:
            ValueError: they do not fit; names the tensors.
        """
        load_learned_tensors(module, state, source=f"the checkpoint of {name}")

    def load_init_weights(self, module: nn.Module, path: str | Path) -> None:
        """Start from the learned tensors of a checkpoint file (``MODEL.INIT_WEIGHTS``).

        What its run had otherwise is printed: it is where this run begins, not what it reports.

        Raises:
            FileNotFoundError: no such file.
            ValueError: its tensors do not fit, or belong to other classes; names file and tensors.
        """
        checkpoint = load_checkpoint(path)
        origin = Origin.of(path, f"MODEL.INIT_WEIGHTS {path}").with_checkpoint(checkpoint)
        origin.tell_start(self.reader(self.cfg, self.frozen_digests()))
        state = self.arrange("", checkpoint.get("state_dict", checkpoint), origin)
        load_learned_tensors(module, state, source=str(path))
        print(f"Initialised from {path}")

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name="") -> None:
        """Write ``directory/<name>/model.pth.tar-<epoch + 1>`` (or ``model_name``) of every model."""
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self.learned_state(name, self._models[name]),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                "trainer": self.cfg.TRAINER.NAME,
                "classnames": list(getattr(self.dm.dataset, "classnames", ())),
            }
            save_checkpoint(state, Path(directory) / name, is_best=is_best, model_name=model_name)

    def load_model(self, directory, epoch: int | None = None) -> None:
        """Load the registered models from ``directory``, which may be a run of official code.

        Args:
            directory: run folder; empty does nothing but say so.
            epoch: 1-based; None takes ``model-best.pth.tar``, else the newest epoch.

        Raises:
            FileNotFoundError: no such checkpoint; lists those that are there.
            ValueError: a checkpoint does not fit the model, or its run had other settings that decide how it is read.
        """
        if not directory:
            print(
                "Note that load_model() is skipped as no pretrained model is given (ignore this if it's done on purpose)"
            )
            return
        self._read_models(
            Path(directory), f"--model-dir {directory}", lambda name: read_checkpoint(directory, name, epoch)
        )

    def _read_models(self, directory: Path, where: str, read) -> dict[str, dict]:
        """Load every registered model from ``read(name)`` after a comparison of settings; returns the checkpoints."""
        origin, reader = Origin.of(directory, where), self.reader(self.cfg, self.frozen_digests())
        if origin.run:  # before a file is looked for: another method's lies under another name
            origin.check(reader)
        checkpoints = {}
        for name in self.get_model_names():
            checkpoint = checkpoints[name] = read(name)
            known = origin.with_checkpoint(checkpoint)
            if not origin.run:
                known.check(reader)
            state = self.arrange(name, checkpoint["state_dict"], known)
            self.load_learned_state(name, self._models[name], state)
        return checkpoints

    # -- resume -----------------------------------------------------------------------------------------

    def extra_state(self) -> dict[str, Any]:
        """What a resumed run needs besides models, optimisers and schedules: tensors and plain values."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`extra_state` returned."""

    def save_resume_state(self) -> None:
        """Write resume.pt if it is due after this epoch."""
        freq, done = self.cfg.TRAIN.RESUME_FREQ, self.epoch + 1
        if freq > 0 and (done % freq == 0 or done == self.max_epoch):
            resume.write(self, done)

    def resume_model_if_exist(self, directory) -> int:
        """Go on with the unfinished run in the output folder, or with the one in ``directory``.

        The output folder's own resume file comes first, so that the same command can be given again after
        every interruption. A new run writes a resume file before its first epoch.

        Args:
            directory: ``cfg.RESUME``; a run folder of this package, or of stock Dassl (weights, optimiser and
                schedule only).

        Returns:
            the number of epochs done.

        Raises:
            CannotResume: the folder belongs to another run, or holds checkpoints without a resume file.
            FileNotFoundError: ``directory`` has nothing to resume from.
        """
        own = Path(self.output_dir) / resume.FILE
        if own.exists():
            return self._resume_from(own)
        left = [
            str(p) for n in self.get_model_names() for p in sorted((Path(self.output_dir) / n).glob("model*.pth.tar*"))
        ]
        if left and Path(directory or "").resolve() != Path(self.output_dir).resolve():
            raise resume.CannotResume(
                f"{self.output_dir} holds checkpoints ({left[0]}) but no {resume.FILE}: training here would replace them. "
                "Choose another --output-dir, go on from them with --resume, or delete the folder"
            )
        self.folder.check_owner()
        if not directory:
            print("No checkpoint found, train from scratch")
            return 0
        if (Path(directory) / resume.FILE).exists():
            return self._resume_from(Path(directory) / resume.FILE)
        return self._resume_plain(Path(directory))

    def _resume_from(self, path: Path) -> int:
        state = resume.read(path)
        resume.check(state, self, path)
        with reading(path, "a resume file of this run", "delete it to start the run anew"):
            done = resume.unpack(state, self)
        self._rng = state["rng"]
        if done >= self.max_epoch:
            print(f"The run in {path.parent} is finished ({done} epochs), nothing left to train")
        elif done > 0:
            print(f"Found checkpoint at {path.parent} (will resume training)\nPrevious epoch: {done}")
        else:
            print("No epoch was finished, train from scratch")
        return done

    def _resume_plain(self, directory: Path) -> int:
        """Resume from model.pth.tar-E files, which hold neither random generators nor config."""
        done = set()
        read = lambda name: load_checkpoint(find_checkpoint(directory / name, None, best=False))
        for name, checkpoint in self._read_models(directory, f"--resume {directory}", read).items():
            with reading(directory / name, "a folder of a checkpoint that can be gone on from"):
                if self._optims[name] is not None and checkpoint.get("optimizer") is not None:
                    self._optims[name].load_state_dict(checkpoint["optimizer"])
                if self._scheds[name] is not None:
                    self._scheds[name].load_state_dict({"last_epoch": checkpoint["epoch"]})
                done.add(checkpoint["epoch"])
        if len(done) != 1:
            raise resume.CannotResume(f"the checkpoints in {directory} are of different epochs {sorted(done)}")
        print(f"Found checkpoint at {directory} (will resume training)\nPrevious epoch: {max(done)}")
        print("It holds no random state: the result will not be bit-identical to an uninterrupted run")
        return max(done)


def run_identity(cfg) -> dict[str, Any]:
    """The entries of results.json that say which run it is."""
    return {
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "classes": cfg.DATASET.SUBSAMPLE_CLASSES,
        "shots": cfg.DATASET.NUM_SHOTS,
        "seed": cfg.SEED,
        "backbone": cfg.MODEL.BACKBONE.NAME,
    }
