"""The models that an index is made and asked with: a backbone and a training-free query, or a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dassl_prompts.composed.query import QueryFunction
    from dassl_prompts.composed.target_pad import TargetPadTransform
    from dassl_prompts.composed.trainer import ComposedTrainer
    from dassl_prompts.models.tokens import TokenEncoder


def load_model(model: dict, device="cpu") -> tuple[TokenEncoder, QueryFunction, float]:
    """Encoder, query function and padding ratio.

    Args:
        model: ``{"run": folder}`` of a trained PVLF or TransAgg, or ``{"backbone": name, "query": a
            baseline}``.
    """
    if model.get("run"):
        return load_run(model["run"], device)
    from dassl_prompts.composed.query import BASELINES
    from dassl_prompts.models.backbones import load_token_encoder

    encoder = load_token_encoder(model["backbone"], device, activation=model.get("activation", ""), key="--activation")
    return encoder, BASELINES[model["query"]](encoder), 1.25


def trained_methods() -> dict[str, type[ComposedTrainer]]:
    """The registered methods of composed retrieval that are trained, by name."""
    from dassl_prompts.composed.trainer import ComposedTrainer
    from dassl_prompts.engine import TRAINER_REGISTRY

    known = {name: TRAINER_REGISTRY.get(name) for name in TRAINER_REGISTRY.registered_names()}
    return {k: v for k, v in known.items() if issubclass(v, ComposedTrainer) and v.config_node}


def load_run(run: str, device="cpu") -> tuple[TokenEncoder, QueryFunction, float]:
    """The trained model of a run folder, from its results.json and newest (or best) checkpoint.

    Raises:
        FileNotFoundError, ValueError: not a finished run of PVLF or TransAgg.
    """
    from dassl_prompts import extend_cfg
    from dassl_prompts.engine import PromptTrainer, get_cfg_default, load_checkpoint, load_learned_tensors
    from dassl_prompts.engine.config import assign_flat
    from dassl_prompts.engine.origin import Origin, Reader
    from dassl_prompts.engine.trainer import find_checkpoint

    cfg = get_cfg_default()
    extend_cfg(cfg)
    results, methods = PromptTrainer.read_run(run), trained_methods()
    if results.get("trainer") not in methods:
        raise ValueError(
            f"{run} is not a run of {' or '.join(methods)} (its results.json says {results.get('trainer')})"
        )
    method = methods[results["trainer"]]
    node = f"TRAINER.{method.config_node}."
    wanted = {
        k: v
        for k, v in results["config"].items()
        if k.startswith((node, "MODEL.BACKBONE.NAME", "MODEL.BACKBONE.ACTIVATION", "CIR.TARGETPAD_RATIO"))
    }
    assign_flat(cfg, wanted)
    model = method.build_net(cfg, device)
    Origin.of(run, run).check(
        Reader(
            results["trainer"],
            cfg.MODEL.BACKBONE.NAME,
            {},
            frozen={"backbone": model.encoder.digest, "activation": model.encoder.activation},
        )
    )
    path = find_checkpoint(Path(run) / "composed", None)
    load_learned_tensors(model, load_checkpoint(path)["state_dict"], source=str(path))
    return model.eval().encoder, model.query, cfg.CIR.TARGETPAD_RATIO


def transform_of(encoder: TokenEncoder, ratio: float) -> TargetPadTransform:
    from dassl_prompts.composed.target_pad import TargetPadTransform
    from dassl_prompts.models.tokens import MEAN, STD

    return TargetPadTransform(encoder.image_size, MEAN, STD, ratio)
