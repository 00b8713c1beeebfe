"""Whether a run is the first stage that a DPC run needs, and the command that makes one."""

from __future__ import annotations

import shlex

from dassl_prompts.configs.recipes import config_file, stage1_recipe
from dassl_prompts.engine import get_cfg_default, merge_file
from dassl_prompts.engine.config import flatten

#: keys of a method's node that decide the shapes of its prompts, or the teacher that it learns from
SHAPE_KEYS = ("N_CTX", "CTX_INIT", "CSC", "CLASS_TOKEN_POSITION", "PROMPT_DEPTH", "TEACHER_")


def check_run(run: dict, directory: str, trainer: str, cfg, digest: str) -> None:
    """P must be prompts of ``trainer`` on the backbone of this run; what a run does not say is taken as right.

    Args:
        run: results.json of stage 1, empty for runs of official code.
        directory: where it is. trainer: the method that DPC builds on. digest: of this run's backbone.

    Raises:
        ValueError: another method, or another CLIP.
    """
    where = f"TRAINER.DPC.CKPT_DIR {directory}"
    if run.get("trainer") not in (None, trainer):
        raise ValueError(f"{where} is a run of {run['trainer']}, not of {trainer}")
    noted, name, own = run.get("digests", {}).get("backbone"), run.get("backbone"), cfg.MODEL.BACKBONE.NAME
    if noted and digest:  # tells the same weights under two names, and other weights under one
        if noted != digest:
            raise ValueError(
                f"{where} was trained on other weights of the backbone ({name}) than this run loads ({own})"
            )
    elif name not in (None, own):
        raise ValueError(f"{where} was trained on the backbone {name}, this run has {own}")


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

    Args:
        trainer: the method that DPC builds on. node: its node under ``cfg.TRAINER``. data: keys that it wants otherwise
            than stage 2 has them.
    """
    import dassl_prompts

    recipe = get_cfg_default()
    dassl_prompts.extend_cfg(recipe)
    words = ["python", "-m", "dassl_prompts.train", "--trainer", trainer]
    try:
        dataset = "emoji" if cfg.MODEL.BACKBONE.NAME.startswith("emoji") else cfg.DATASET.NAME
        path = config_file("trainers", trainer, stage1_recipe(trainer, dataset))
        merge_file(recipe, path)
        words += ["--config-file", path]
    except ValueError:  # a method of the user's own: without a recipe
        pass
    theirs, ours = flatten(recipe), flatten(cfg) | data
    prefixes = ("DATASET.", "INPUT.", "MODEL.BACKBONE.", "SEED", *(f"TRAINER.{node}.{key}" for key in SHAPE_KEYS))
    changed = [key for key in ours if key.startswith(prefixes) and str(ours[key]) != str(theirs.get(key))]
    words += ["--output-dir", "STAGE1_DIR", *(str(word) for key in changed for word in (key, ours[key]))]
    return " ".join(map(shlex.quote, words))
