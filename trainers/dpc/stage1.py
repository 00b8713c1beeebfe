"""Whether a run is the first stage that a DPC run needs, and the command that makes one."""

from __future__ import annotations

import shlex
import sys

from dassl_prompts.configs.recipes import config_file, stage1_recipe
from dassl_prompts.engine import get_cfg_default, merge_file
from dassl_prompts.engine.config import flatten
from dassl_prompts.engine.origin import Origin, Reader
from dassl_prompts.engine.registration import is_ours

#: keys of a method's node that decide the shapes of its prompts, or the teacher that it learns from
SHAPE_KEYS = (
    "N_CTX",
    "CTX_INIT",
    "CSC",
    "CLASS_TOKEN_POSITION",
    "PROMPT_DEPTH",
    "TEACHER_",
    "IMAGE_ADAPTER",
    "TEXT_ADAPTER",
)
#: keys whose defaults in a program of the user's own are not ours: given in any case
SAID_KEYS = (
    "DATASET.NAME",
    "DATASET.ROOT",
    "DATASET.NUM_SHOTS",
    "DATASET.SUBSAMPLE_CLASSES",
    "INPUT.SIZE",
    "MODEL.BACKBONE.NAME",
    "SEED",
)


def check_run(run: dict, directory: str, trainer: str, cfg, digest: str, frozen: dict | None = None, keys=()) -> None:
    """P must be prompts of ``trainer`` on the backbone of this run; what a run does not say is taken as right.

    Args:
        run: results.json of stage 1, empty for runs of official code.
        directory: where it is. trainer: the method that DPC builds on. digest: of this run's backbone.
        frozen: digests of the other frozen networks. keys: of ``trainer``, that decide how its tensors are read.

    Raises:
        ValueError: another method or CLIP, or tensors that were read otherwise.
    """
    reader = Reader(
        trainer=trainer,
        backbone=cfg.MODEL.BACKBONE.NAME,
        config=flatten(cfg),
        keys=tuple(keys),
        frozen={**(frozen or {}), "backbone": digest},
    )
    Origin(f"TRAINER.DPC.CKPT_DIR {directory}", run).check(reader)


def warn_of_other_draw(run: dict, directory: str, seed: int, shots: int) -> None:
    """Another seed or number of shots fits, but P has then seen other images than P' will."""
    all_images = lambda n: max(n, 0)
    for name, own, same in (
        ("seed", seed, run.get("seed") == seed),
        ("shots", shots, all_images(run.get("shots", shots)) == all_images(shots)),
    ):
        if name in run and not same:
            print(
                f"Warning: TRAINER.DPC.CKPT_DIR {directory} was trained with {name} {run[name]}, stage 2 wants {name} {own}"
            )


def command(cfg, trainer: str, node: str, data: dict[str, str]) -> str:
    """The command line that makes stage 1 for a DPC run with ``cfg``.

    It calls the program that runs now where the dataset is known to that program alone, such as a CoOp checkout's train.py.

    Args:
        trainer: the method that DPC builds on. node: its node under ``cfg.TRAINER``. data: keys that it wants otherwise
            than stage 2 has them.
    """
    import dassl_prompts

    recipe = get_cfg_default()
    dassl_prompts.extend_cfg(recipe)
    foreign = not is_ours("dataset", cfg.DATASET.NAME)
    program = [sys.argv[0]] if foreign else ["-m", "dassl_prompts.train"]
    words = ["python", *program, "--trainer", trainer]
    try:
        dataset = "emoji" if cfg.MODEL.BACKBONE.NAME.startswith("emoji") else cfg.DATASET.NAME
        path = config_file("trainers", trainer, stage1_recipe(trainer, dataset))
        merge_file(recipe, path)
        words += ["--config-file", path]
    except ValueError:  # a method of the user's own: without a recipe
        pass
    theirs, ours = flatten(recipe), flatten(cfg) | data
    shape = tuple(f"TRAINER.{node}.{key}" for key in SHAPE_KEYS)
    prefixes = ("DATASET.", "INPUT.", "MODEL.BACKBONE.", "SEED", *shape)
    said = lambda key: str(ours[key]) != str(theirs.get(key)) or (foreign and key.startswith((*SAID_KEYS, *shape)))
    if trainer.upper() != node:  # methods that share CoOp's node have what is theirs under their own
        prefixes = (*prefixes, f"TRAINER.{trainer.upper()}.")
    changed = [key for key in ours if key.startswith(prefixes) and said(key)]
    words += ["--output-dir", "STAGE1_DIR", *(str(word) for key in changed for word in (key, ours[key]))]
    return " ".join(map(shlex.quote, words))


def other_way(cfg, backbone: type) -> str:
    """What else leads to stage 1: our script for our data; a word about a class of the user's own that stands for the method."""
    from dassl_prompts.models.clip import OPENAI_NAMES

    name = backbone.__name__
    if is_ours("dataset", cfg.DATASET.NAME):
        return "; or let scripts/dpc/base2new.sh run both stages"
    if is_ours("trainer", name) or cfg.MODEL.BACKBONE.NAME in OPENAI_NAMES:
        return ""
    return (
        f" ({name} is your own class there: if it cannot load {cfg.MODEL.BACKBONE.NAME}, call "
        'dassl_prompts.register_all(on_conflict={"trainer": "replace"}) before)'
    )
