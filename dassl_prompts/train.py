"""Train or evaluate one run: CoOp's command line on top of the engine."""

from __future__ import annotations

import argparse
import functools
import sys
import traceback
from contextlib import suppress
from pathlib import Path

import dassl_prompts
from dassl_prompts import engine, plugins
from dassl_prompts.check import TorchMismatch, check_torch_pair
from dassl_prompts.configs.own_data import is_own
from dassl_prompts.configs.recipes import data_flags
from dassl_prompts.engine.ending import describe, message
from dassl_prompts.images import ImageReadError

EPILOG = """\
Trailing KEY VALUE pairs change the configuration, e.g. DATASET.NUM_SHOTS 16 TRAINER.COOP.N_CTX 4

exit codes: 0 done, 1 the run failed on its way (a loss that is not finite, an unreadable image), 2 wrong input
(nothing was started), 6 the disk is full, 9 not enough memory or a process that reads was killed, 130 interrupted; after
the last three the same command goes on
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="train.py",
        description="Train or evaluate one method on one dataset with one seed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--root", default="", help="folder that holds the datasets")
    p.add_argument("--output-dir", default="", help="folder of this run: log, checkpoints, results.json")
    p.add_argument("--resume", default="", help="folder of an unfinished run to continue from")
    p.add_argument("--seed", type=int, default=-1, help="0 or larger fixes all random streams")
    p.add_argument("--source-domains", nargs="+", default=None, help="source domains (Dassl)")
    p.add_argument("--target-domains", nargs="+", default=None, help="target domains (Dassl)")
    p.add_argument("--transforms", nargs="+", default=None, help="names of the training transforms")
    p.add_argument("--config-file", default="", help="YAML of the method")
    p.add_argument("--dataset-config-file", default="", help="YAML of the dataset")
    p.add_argument(
        "--dataset",
        default="",
        help="instead of it: a name in configs/datasets, or own pictures as folder:PATH or csv:PATH",
    )
    p.add_argument(
        "--import",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="Python modules or files with trainers and datasets of your own",
    )
    p.add_argument("--trainer", default="", help="name of the trainer, e.g. CoOp or DPC_CoOp")
    p.add_argument("--backbone", default="", help="e.g. ViT-B/16, RN50, emoji-tiny or a file with weights")
    p.add_argument("--head", default="", help="name of the head (Dassl)")
    p.add_argument(
        "--eval-only", action="store_true", help="only evaluate: the checkpoint in --model-dir, or a zero-shot method"
    )
    p.add_argument("--model-dir", default="", help="run folder to load for --eval-only")
    p.add_argument("--load-epoch", type=int, default=None, help="epoch of the checkpoint to load; default the newest")
    p.add_argument("--no-train", action="store_true", help="build everything, do not train")
    p.add_argument("opts", nargs=argparse.REMAINDER, default=None, help="KEY VALUE pairs")
    return p


def data_of(args) -> tuple[str, str]:
    """Where the data is, and the YAML file of the dataset.

    Raises:
        ValueError: two flags name the data.
    """
    if not args.dataset:
        return args.root, args.dataset_config_file
    if args.dataset_config_file:
        raise ValueError("--dataset and --dataset-config-file both name the data: give one of them")
    if args.root and is_own(args.dataset):
        raise ValueError(f"--dataset {args.dataset} says itself where the data is: leave out --root {args.root}")
    return data_flags(args.dataset, args.root)[1::2]


@functools.cache
def defaults(others: tuple):
    """All keys with their defaults, not to be changed; ``others``: the modules of plug-ins that bring some."""
    cfg = engine.get_cfg_default()
    dassl_prompts.extend_cfg(cfg)
    return cfg


def setup_cfg(args):
    """The resolved, frozen configuration: defaults < dataset file < method file < flags < KEY VALUE pairs."""
    root, dataset_file = data_of(args)
    cfg = defaults(tuple(plugins.modules())).clone()
    for path in (dataset_file, args.config_file):
        if path:
            engine.merge_file(cfg, path)
    flags = {
        "DATASET.ROOT": root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
    }
    given = [item for key, value in flags.items() if value for item in (key, value)]
    if args.seed >= 0:
        given += ["SEED", args.seed]
    engine.merge_opts(cfg, given)
    engine.merge_opts(cfg, [opt for opt in args.opts or [] if opt != "--"])
    for key, flag in (("TRAINER.NAME", "--trainer"), ("DATASET.NAME", "--dataset")):
        section, leaf = key.split(".")
        if not cfg[section][leaf]:
            raise ValueError(f"{key} is empty: give {flag}")
    cfg.freeze()
    return cfg


def check_flags(args) -> None:
    """Refuse flags that would be given and not read.

    Raises:
        ValueError: names both.
    """
    if args.model_dir and not args.eval_only:
        raise ValueError(
            "--model-dir is read with --eval-only alone: add it, or start a training from a checkpoint file with "
            "MODEL.INIT_WEIGHTS, or go on with an unfinished run with --resume"
        )
    if args.load_epoch is not None and not args.model_dir:
        raise ValueError(f"--load-epoch {args.load_epoch} chooses a checkpoint of --model-dir, which is not given")
    if args.eval_only and args.resume:
        raise ValueError("--eval-only and --resume contradict each other: evaluate a run with --model-dir")


def headline(cfg) -> str:
    """What this run is, in a line."""
    parts = [f"{cfg.TRAINER.NAME} on {cfg.DATASET.NAME} ({cfg.DATASET.SUBSAMPLE_CLASSES} classes)", f"seed {cfg.SEED}"]
    parts += [cfg.MODEL.BACKBONE.NAME] if cfg.MODEL.BACKBONE.NAME else []
    return f"{', '.join(parts)}; {Path(cfg.OUTPUT_DIR, 'log.txt')} has all settings"


def different_from_defaults(cfg) -> str:
    """The keys that this method reads and files or flags have changed, a line each."""
    from dassl_prompts.engine.config import differing_keys
    from dassl_prompts.engine.resume import flat_config, foreign_keys

    defaults = engine.get_cfg_default()
    dassl_prompts.extend_cfg(defaults)
    changed = differing_keys(flat_config(defaults), flat_config(cfg))
    foreign = foreign_keys(changed, cfg.TRAINER.NAME)
    return "\n".join(f"{key}: {now} (default {before})" for key, (before, now) in changed.items() if key not in foreign)


def in_its_place(cfg):
    """The configuration of this process, when torchrun has started several for the run.

    Raises:
        ValueError: they would draw different random numbers, or there are too few GPUs.
    """
    from dassl_prompts.engine import distributed  # torch is imported when work starts

    if distributed.wanted() == 1:
        return cfg
    if cfg.SEED < 0:
        raise ValueError("several processes work on this run and have to draw the same random numbers: give --seed")
    distributed.start(cfg.USE_CUDA)
    cfg = cfg.clone()
    cfg.defrost()
    engine.merge_opts(cfg, ["OUTPUT_DIR", distributed.own_folder(cfg.OUTPUT_DIR)])
    cfg.freeze()
    return cfg


def run(args) -> float | None:
    """Execute the parsed command; returns the final metric, or None when nothing was evaluated."""
    import torch

    from dassl_prompts.engine.config import dump
    from dassl_prompts.engine.resume import FILE as RESUME_FILE

    check_flags(args)
    check_torch_pair()
    plugins.load(getattr(args, "import"))
    # a fork of Dassl may bring a CoOp or Caltech101 of its own; this command promises ours
    dassl_prompts.register_all("replace")
    cfg = in_its_place(setup_cfg(args))
    if cfg.SEED >= 0:
        engine.set_random_seed(cfg.SEED)
    # a restarted run goes on in its own log, where CoOp's result parser looks
    engine.setup_logger(cfg.OUTPUT_DIR, append=Path(cfg.OUTPUT_DIR, RESUME_FILE).exists())
    if torch.cuda.is_available() and cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True

    print(headline(cfg))
    with engine.log_only():
        print(f"** Differs from the defaults **\n{different_from_defaults(cfg)}")
        print("***************\n** Arguments **\n***************")
        for key, value in sorted(vars(args).items()):
            print(f"{key}: {value}")
        print(f"************\n** Config **\n************\n{dump(cfg)}")
        print(f"Collecting env info ...\n** System info **\n{engine.collect_env_info()}\n")

    trainer = engine.build_trainer(cfg)
    if args.eval_only:
        if args.model_dir:
            trainer.load_model(args.model_dir, epoch=args.load_epoch)
        elif any(engine.learned_tensors(model) for model in trainer._models.values()):
            raise ValueError(
                f"--eval-only without --model-dir would evaluate the untrained prompts of {cfg.TRAINER.NAME}: "
                "give --model-dir, the folder of its training run"
            )
        return trainer.test()
    if not args.no_train:
        return trainer.train()
    return None


def main(argv: list[str] | None = None) -> None:
    """Command line; what the user can mend ends with one readable line and an exit code (the traceback is in the log)."""
    args = parser().parse_args(argv)
    try:
        run(args)
    except (Exception, KeyboardInterrupt) as error:
        failed = isinstance(error, (FloatingPointError, ImageReadError))
        described = (1, f"error: {message(error)}") if failed else describe(error)
        if isinstance(error, TorchMismatch):
            described = (2, f"error: {error}")
        if described is None:
            raise
        code, line = described
        if args.output_dir and Path(args.output_dir, "log.txt").is_file():
            with suppress(OSError), open(Path(args.output_dir, "log.txt"), "a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
        print(line, file=sys.stderr)
        raise SystemExit(code) from error


if __name__ == "__main__":
    main()
