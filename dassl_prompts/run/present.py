"""Whether a finished run's data and backbone are still those that its command would use."""

from __future__ import annotations

import contextlib
import io

from dassl_prompts.run.steps import Step

#: what a command has looked up already: all runs of a sweep share a few datasets and backbones
_known: dict[str, dict[str, str]] = {}
#: how many images are drawn, not from what
SHOTS = "DATASET.NUM_SHOTS"


def check_same_run(step: Step) -> None:
    """A finished folder may only stand in for a run with equal settings, data and weights of the backbone.

    What can no longer be looked at, such as a dataset that has been deleted, is not compared; a line says so.
    Runs of versions that noted no digests are compared by their settings alone.

    Raises:
        ValueError: names what differs.
    """
    from dassl_prompts.engine import config_differences
    from dassl_prompts.engine.digest import differences
    from dassl_prompts.engine.resume import noted_contents

    results, cfg = step.results(), step.config()
    remedy = "choose another --output or --tag, or repeat it with --force (FORCE=1 for the scripts)"
    different = config_differences(results.get("config", {}), cfg, noted_contents(results))
    if different:
        raise ValueError(f"{step.output} holds a finished run with other settings ({'; '.join(different)}): {remedy}")
    noted = results.get("digests", {})
    different = differences(noted, digests_now(cfg, step.output) if noted else {})
    if different:
        raise ValueError(
            f"{step.output} holds a finished run on other data or weights than there are now, by their digests "
            f"({'; '.join(different)}): {remedy}"
        )


def digests_now(cfg, folder) -> dict[str, str]:
    """Digests of the data and the backbone that a run with ``cfg`` would use."""
    from dassl_prompts.engine.config import flatten
    from dassl_prompts.models.backbones import digest_now

    name = cfg.MODEL.BACKBONE.NAME
    weights = look_up(f"backbone {name}", lambda: {"backbone": digest_now(name)}, folder)
    chosen = [pair for pair in flatten(cfg).items() if pair[0].startswith(("DATASET.", "CIR.")) and pair[0] != SHOTS]
    data = look_up(f"data {chosen}", lambda: data_now(cfg), folder)
    return {**data, **{key: value for key, value in weights.items() if value}}


def look_up(key: str, find, folder) -> dict[str, str]:
    """``find()``, once per command; nothing, and a line that says so, where it fails."""
    if key not in _known:
        try:
            _known[key] = find()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            _known[key] = {}
            said = " ".join(str(error).split())
            print(f"{folder} and others like it: taken as they are, not compared with what is there now ({said})")
    return _known[key]


def data_now(cfg) -> dict[str, str]:
    from dassl_prompts.classification.split_files import unkept
    from dassl_prompts.engine import DATASET_REGISTRY, build_dataset
    from dassl_prompts.engine.digest import data_digests

    found = {}
    with unkept(), contextlib.redirect_stdout(io.StringIO()):
        for name in cfg.get("CIR", {}).get("EVAL", ()):
            found |= data_digests(DATASET_REGISTRY.get(name)(cfg), cfg)
        return {**found, **data_digests(build_dataset(cfg), cfg)}
