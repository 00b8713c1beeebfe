"""Which file of configs/trainers is a method's recipe, by protocol."""

from __future__ import annotations

from pathlib import Path

from dassl_prompts.configs.own_data import SCHEMES, config_name, split_scheme

#: default configuration file per trainer and protocol; "*" serves every other protocol
RECIPES: dict[str, dict[str, str]] = {
    "ZeroshotCLIP": {"*": "vit_b16"},
    "ZeroshotCLIP2": {"*": "vit_b16"},
    "CoOp": {"base2new": "vit_b16_ctxv1", "xd": "vit_b16_ep50_ctxv1", "dg": "vit_b16_ep50_ctxv1", "*": "vit_b16"},
    "CoCoOp": {"*": "vit_b16_c4_ep10_batch1_ctxv1"},
    "IVLP": {"xd": "vit_b16_c2_ep2_batch4_2+2ctx_cross_datasets", "dg": "vit_b16_c2_ep2_batch4_2+2ctx_cross_datasets",
             "*": "vit_b16_c2_ep5_batch4_2+2ctx"},
    "MaPLe": {"xd": "vit_b16_c2_ep5_batch4_2ctx_cross_datasets", "dg": "vit_b16_c2_ep5_batch4_2ctx_cross_datasets",
              "*": "vit_b16_c2_ep5_batch4_2ctx"},
    "PromptSRC": {"xd": "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets", "dg": "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets",
                  "fewshot": "vit_b16_c2_ep50_batch4_4+4ctx_few_shot", "*": "vit_b16_c2_ep20_batch4_4+4ctx"},
    "PromptKD": {"xd": "vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets", "dg": "vit_b16_c2_ep20_batch8_4+4ctx_cross_datasets",
                 "*": "vit_b16_c2_ep20_batch8_4+4ctx"},
    "KgCoOp": {"*": "vit_b16_ep100_ctxv1"},
    "ProGrad": {"*": "vit_b16_ep100_ctxv1"},
    "TCP": {"*": "vit_b16_ep100_ctxv1"},
    "DePT_CoOp": {"*": "vit_b16_ep10_bs4_lr35"},
    "DePT_CoCoOp": {"*": "vit_b16_c4_ep10_batch1_ctxv1"},
    "DePT_KgCoOp": {"*": "vit_b16_ep10_bs4_lr35"},
    "DePT_MaPLe": {"*": "vit_b16_ep10_bs4_lr35"},
    "DePT_PromptSRC": {"*": "vit_b16_c2_ep20_batch4_4+4ctx"},
    "CoPrompt": {"*": "vit_b16_ep8_batch4"},
    "CLIPAdapter": {"*": "vit_b16"},
    "TipAdapter": {"*": "vit_b16"},
    "TipAdapterF": {"*": "vit_b16"},
    "LinearProbe": {"*": "vit_b16"},
    "AttriPrompt": {"xd": "vit_b16_ep5_batch4_cross_datasets", "dg": "vit_b16_ep5_batch4_cross_datasets",
                    "fewshot": "vit_b16_ep50_batch4_few_shot", "*": "vit_b16_ep20_batch4"},
    "DPC_CoOp": {"xd": "vit_b16_ep20_xd", "dg": "vit_b16_ep20_xd", "*": "vit_b16_ep20"},
    "DPC_MaPLe": {"xd": "vit_b16_ep20_xd", "dg": "vit_b16_ep20_xd", "*": "vit_b16_ep20"},
    "DPC_PromptSRC": {"xd": "vit_b16_ep20_xd", "dg": "vit_b16_ep20_xd", "*": "vit_b16_ep20"},
    "DPC_PromptKD": {"*": "vit_b16_ep20"},
    "DPC_IVLP": {"xd": "vit_b16_ep20_xd", "dg": "vit_b16_ep20_xd", "*": "vit_b16_ep20"},
    "DPC_KgCoOp": {"*": "vit_b16_ep20"},
    "DPC_ProGrad": {"*": "vit_b16_ep20"},
    "DPC_TCP": {"*": "vit_b16_ep20"},
    "DPC_CoPrompt": {"*": "vit_b16_ep20"},
}  # fmt: skip
#: the recipe with which a backbone is trained as stage 1 of DPC (specs/dpc.md 4.9); across datasets it is the backbone's own
STAGE1_RECIPES = {
    "CoOp": "vit_b16_ep20_lr35",
    "MaPLe": "vit_b16_c2_ep20_batch32_2ctx",
    "PromptSRC": "vit_b16_c2_ep20_batch32_4+4ctx",
    "PromptKD": "vit_b16_c2_ep20_batch32_4+4ctx",
    "IVLP": "vit_b16_c2_ep5_batch4_2+2ctx",
    "KgCoOp": "vit_b16_ep100_ctxv1",
    "ProGrad": "vit_b16_ep100_ctxv1",
    "TCP": "vit_b16_ep100_ctxv1",
    "CoPrompt": "vit_b16_ep8_batch4",
}
#: the same on ViT-L/14
STAGE1_RECIPES_L14 = {
    "CoOp": "vit_l14_ep20_lr35",
    "MaPLe": "vit_l14_c2_ep20_batch32_2ctx",
    "PromptSRC": "vit_l14_c2_ep20_batch32_4+4ctx",
    "PromptKD": "vit_l14_c2_ep20_batch32_4+4ctx",
    "IVLP": "vit_l14_c2_ep5_batch4_2+2ctx",
}
#: datasets of small embedded pictures, by the beginning of their names -> the recipe on the embedded backbone for them
EMBEDDED_RECIPES = dict.fromkeys(("emoji", "quickdraw", "icon_park", "clipart"), "open_tiny")


def embedded_recipe(dataset: str, cfg: str = "") -> str:
    """The recipe for a dataset that is embedded in the package, or for any by a recipe ``cfg`` of the embedded backbones; "" for
    the others."""
    if cfg.startswith("open_tiny"):
        return "open_tiny"
    return next((recipe for name, recipe in EMBEDDED_RECIPES.items() if config_name(dataset).startswith(name)), "")


def stage1_recipe(trainer: str, dataset: str, protocol: str = "base2new", cfg: str = "") -> str:
    """The recipe of a backbone that DPC builds on.

    Args:
        protocol: "transfer" is cross-dataset or domain generalisation. cfg: of DPC itself, which tells ViT-L/14 from ViT-B/16.

    Raises:
        ValueError: no such backbone.
    """
    if embedded := embedded_recipe(dataset, cfg):
        return embedded
    if trainer not in STAGE1_RECIPES:
        raise ValueError(f"DPC has no recipe for the backbone {trainer}; known: {', '.join(STAGE1_RECIPES)}")
    if cfg.startswith("vit_l14"):
        if trainer not in STAGE1_RECIPES_L14:
            raise ValueError(f"DPC has no ViT-L/14 recipe for {trainer}; known: {', '.join(STAGE1_RECIPES_L14)}")
        return STAGE1_RECIPES_L14[trainer]
    if protocol == "transfer":
        return RECIPES[trainer].get("xd", RECIPES[trainer]["*"])
    return STAGE1_RECIPES[trainer]


#: CoPrompt's depth, tokens and weight of the consistency terms per dataset (trainers/constants.py of the authors)
COPROMPT = {
    "imagenet": (12, 4, 8.0), "caltech101": (12, 4, 4.0), "oxford_pets": (12, 2, 0.1), "stanford_cars": (12, 4, 4.0),
    "oxford_flowers": (9, 4, 8.0), "food101": (9, 4, 0.5), "fgvc_aircraft": (9, 4, 2.0), "sun397": (12, 4, 8.0),
    "dtd": (12, 2, 8.0), "eurosat": (12, 2, 0.1), "ucf101": (12, 4, 2.0),
}  # fmt: skip


def dataset_options(trainer: str, dataset: str, shots: int) -> tuple[str, ...]:
    """KEY VALUE pairs by which the authors' runs of a method on a dataset differ from the recipe."""
    if trainer == "ProGrad" and dataset in ("oxford_flowers", "dtd", "eurosat") and shots >= 8:
        return "LOSS.LAMBDA", "0.8"
    if trainer == "CoPrompt" and dataset in COPROMPT:
        depth, n_ctx, weight = COPROMPT[dataset]
        node = "TRAINER.CoPrompt"
        opts = (f"{node}.PROMPT_DEPTH", str(depth), f"{node}.N_CTX", str(n_ctx), "TRAINER.W", str(weight))
        return (*opts, "OPTIM.MAX_EPOCH", "5") if dataset == "food101" else opts
    return ()


def data_flags(dataset: str, root: str) -> tuple[str, str, str, str]:
    """``--root`` and ``--dataset-config-file`` of a run on ``dataset``; ``root`` is the folder of the benchmarks' data."""
    own = split_scheme(dataset)
    name, root = (SCHEMES[own[0]], own[1]) if own else (dataset, root)
    return "--root", root, "--dataset-config-file", config_file("datasets", name)


def config_file(*parts: str) -> str:
    """Path of a shipped YAML file, or of a user's own.

    Raises:
        ValueError: listing what there is.
    """
    own = Path(parts[-1])
    if own.suffix == ".yaml" and own.is_file():
        return str(own)
    folder = Path(__file__).parent.joinpath(*parts[:-1])
    path = folder / f"{parts[-1]}.yaml"
    if not path.is_file():
        known = sorted({p.stem for p in folder.glob("*.yaml")} - {*SCHEMES.values()}) if folder.is_dir() else []
        raise ValueError(f"no configuration {path}; known: {', '.join(known) or 'none'}")
    return str(path)
