"""The table behind test_contract.py: what a toy run of every registered trainer needs and leaves behind.

A new trainer gets the whole contract by one row of :data:`TRAINERS`. As a script this file is the fresh process that
reloads runs: it reads one request per line, see :func:`main`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import traceback
import types
from dataclasses import dataclass
from pathlib import Path

if "tests" not in sys.modules:  # as a script; tests/conftest.py does the same for pytest
    sys.path.pop(0)
    tests = types.ModuleType("tests")
    tests.__path__ = [str(Path(__file__).resolve().parent.parent)]
    sys.modules["tests"] = tests

import torch

from dassl_prompts import extend_cfg
from dassl_prompts.captions.trainer import RetrievalTrainer
from dassl_prompts.composed.trainer import ComposedTrainer
from dassl_prompts.engine import TRAINER_REGISTRY, build_trainer, get_cfg_default, merge_opts
from tests.datasets import cir_trees
from tests.models.test_blip import write_tiny_blip
from tests.trainers import conftest, plain, retrieval_tree  # noqa: F401  (conftest registers the toy colours)

TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Row:
    """One trainer of the registry.

    Attributes:
        keys: KEY, value, ... of a toy run beside those of its family (:data:`FAMILIES`); no keys of classes or backbones.
        folder: the checkpoint's folder, official where there is official code. "" where nothing is trained.
        tensors: names in the checkpoint, official where there is official code; a final ``*`` stands for any rest.
        stage1: for a second stage, the trainer of the first.
        still: tensors of the model that a checkpoint holds and this training leaves alone. clip: whether the backbone is the
            toy CLIP in a family with another one.
    """

    keys: tuple = ()
    folder: str = ""
    tensors: tuple[str, ...] = ()
    stage1: str = ""
    still: tuple[str, ...] = ()
    clip: bool = False


def deep(pattern: str, *layers: int) -> tuple[str, ...]:
    return tuple(pattern.format(layer) for layer in layers)


def second_stage(name: str, *more: str, still: tuple[str, ...] = ()) -> Row:
    """DPC on a row: P' under the official names, P beside it; ``more`` are tensors that only stage 2 has."""
    first = CLASSIFIERS[name]
    own = (*first.tensors, *more)
    return Row(first.keys, first.folder, (*own, *(f"tuned.{tensor}" for tensor in own)), name, still)


TEXT_LAYERS = "text_encoder.transformer.resblocks.{}.VPT_shallow"
IMAGE_LAYERS = "image_encoder.transformer.resblocks.{}.VPT_shallow"
COUPLED = (
    "prompt_learner.ctx",
    "prompt_learner.proj.weight",
    "prompt_learner.proj.bias",
    "prompt_learner.compound_prompts_text.0",
    "prompt_learner.compound_prompt_projections.0.weight",
    "prompt_learner.compound_prompt_projections.0.bias",
)
BOTH_TOWERS = ("prompt_learner.ctx", *deep(TEXT_LAYERS, 1, 2), "image_encoder.VPT", *deep(IMAGE_LAYERS, 1))
STATISTICS = tuple(f"VPT_image_trans.conv1.1.{kind}" for kind in ("running_mean", "running_var", "num_batches_tracked"))
PROJECTOR = (*(f"VPT_image_trans.conv1.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")), *STATISTICS)
#: sizes of the fusion of PVLF and TransAgg
SMALL_FUSION = ("FUSION.FF_DIM", 24, "FUSION.HEADS", 2, "AGG.HIDDEN_MULT", 2, "BACKBONE.TUNE", "text")


def under(node: str, *keys) -> tuple:
    """Keys of a node with their full names."""
    return tuple(f"TRAINER.{node}.{key}" if i % 2 == 0 else key for i, key in enumerate(keys))


#: the second head of DePT
HEAD = tuple(f"{part}.*" for part in ("linear_probe_proj", "film_lp_img", "film_lp_text"))
N_CTX = under("COOP", "N_CTX", 4)
TIP_ADAPTER = under("TIP_ADAPTER", "TEMPLATE", TEMPLATE, "SEARCH_STEP", (5, 4), "AUGMENT_EPOCH", 2)
CACHE = ("keys", "labels", "alpha", "beta")


def two_heads(name: str) -> Row:
    """DePT on a row: the backbone's whole model, and a head that knows the classes of the run."""
    first = CLASSIFIERS[name]
    inner = first.folder == "prompt_learner"
    tensors = [f"prompt_learner.{tensor}" if inner else tensor for tensor in first.tensors]
    return Row(first.keys, "PromptLearner" if inner else first.folder, (*tensors, *HEAD))


CLASSIFIERS = {
    "CoOp": Row(N_CTX, "prompt_learner", ("ctx",)),
    "CoCoOp": Row(
        under("COCOOP", "CTX_INIT", "a photo of a"), "prompt_learner", ("ctx", *deep("meta_net.linear{}.*", 1, 2))
    ),
    "IVLP": Row(under("IVLP", "PROMPT_DEPTH_TEXT", 3, "PROMPT_DEPTH_VISION", 2), "VLPromptLearner", BOTH_TOWERS),
    "MaPLe": Row(under("MAPLE", "PROMPT_DEPTH", 2), "MultiModalPromptLearner", COUPLED),
    "PromptSRC": Row(
        under("PROMPTSRC", "PROMPT_DEPTH_TEXT", 3, "PROMPT_DEPTH_VISION", 2, "GPA_MEAN", 2),
        "VLPromptLearner",
        BOTH_TOWERS,
    ),
    "PromptKD": Row(
        under("PROMPTKD", "PROMPT_DEPTH_VISION", 2),
        "VLPromptLearner",
        ("image_encoder.VPT", *deep(IMAGE_LAYERS, 1), *PROJECTOR),
    ),
    "AttriPrompt": Row(
        under("ATTRIPROMPT", "TEMPLATE", TEMPLATE),
        "PromptPool",
        ("pool.prompts", "pool.centre", "pool.centre_count"),
    ),
    "KgCoOp": Row((*under("KGCOOP", "TEMPLATE", TEMPLATE), *N_CTX), "prompt_learner", ("ctx",)),
    "ProGrad": Row((*under("PROGRAD", "TEMPLATE", TEMPLATE), *N_CTX), "prompt_learner", ("ctx",)),
    "TCP": Row(
        (*under("TCP", "TEMPLATE", TEMPLATE, "STUDENT", "X X X X {}.", "LAYER", 2), *N_CTX),
        "prompt_learner",
        ("ctx", *deep("meta_net.linear{}.*", 1, 2)),
    ),
    "CoPrompt": Row(
        (*under("CoPrompt", "PROMPT_DEPTH", 2), "TRAINER.W", 1.0, "DATALOADER.K_TRANSFORMS", 2),
        "MultiModalPromptLearner",
        (*COUPLED, *(f"adapter_{side}.fc.{i}.weight" for side in ("image", "text") for i in (0, 2))),
    ),
    "CLIPAdapter": Row(under("CLIP_ADAPTER", "TEMPLATE", TEMPLATE), "clip_adapter", deep("fc.{}.weight", 0, 2)),
    "TipAdapter": Row(TIP_ADAPTER, "tip_adapter", CACHE),
    "TipAdapterF": Row(TIP_ADAPTER, "tip_adapter", CACHE, still=("cache.labels",)),
    "LinearProbe": Row(
        under("LP", "TEMPLATE", TEMPLATE, "ALPHA_EVERY", 1),
        "linear_probe",
        ("classifier.weight", "classifier.bias", "alpha"),
    ),
}
TRAINERS = {
    **CLASSIFIERS,
    **{f"DePT_{name}": two_heads(name) for name in ("CoOp", "CoCoOp", "KgCoOp", "MaPLe", "PromptSRC")},
    **{
        f"DPC_{name}": second_stage(name) for name in ("CoOp", "IVLP", "MaPLe", "PromptSRC", "KgCoOp", "ProGrad", "TCP")
    },
    "DPC_CoPrompt": dataclasses.replace(
        second_stage("CoPrompt"), keys=(*CLASSIFIERS["CoPrompt"].keys, "DATALOADER.K_TRANSFORMS", 1)
    ),
    "DPC_PromptKD": second_stage(
        "PromptKD",
        *("prompt_learner.ctx", *deep(TEXT_LAYERS, 1)),
        still=tuple(f"parallel.{statistic}" for statistic in STATISTICS),
    ),
    "CoOpITR": Row(under("COOPITR", "N_CTX", 4), "prompt_learner", ("ctx",)),
    "CLIPAdapterITR": Row((), "clip_adapter", ("mlp.0.weight", "mlp.2.weight")),
    "MaPLeITR": Row(under("MAPLEITR", "PROMPT_DEPTH", 2), "MultiModalPromptLearner", COUPLED),
    "DCAR": Row((), "dcar", (*COUPLED[:3], "caa.mlp.0.weight", "caa.mlp.2.weight")),
    "PVLF": Row(
        under("PVLF", *SMALL_FUSION, "PROMPT.LENGTH", 3),
        "composed",
        (
            *deep("head.fusion.layers.{}.*", 0, 1),
            *deep("head.fusion.prompts.{}", 0, 1),
            *(f"head.aggregation.{part}_layer.*" for part in ("combiner", "output", "weighted")),
            *("encoder.text_encoder.*", "encoder.text_proj.*"),
        ),
    ),
    "TransAgg": Row(
        under("TRANSAGG", *SMALL_FUSION),
        "composed",
        (
            *deep("head.fusion.layers.{}.*", 0, 1),
            "head.fusion.sep_token",
            *(f"head.aggregation.{part}_layer.*" for part in ("combiner", "output", "weighted")),
            *("encoder.text_encoder.*", "encoder.text_proj.*"),
        ),
    ),
    "ZeroshotCLIP": Row(under("ZSCLIP", "TEMPLATE", TEMPLATE)),
    "ZeroshotCLIP2": Row(under("ZSCLIP", "TEMPLATE", TEMPLATE)),
    "ZeroshotITR": Row(),
    "Pic2Word": Row(
        under("PIC2WORD", "HIDDEN", 8, "WARMUP", 2),
        "composed",
        ("network.layers.0.0.*", "network.layers.1.0.*", "network.fc_out.*"),
        clip=True,
    ),
    "LinCIR": Row(under("LINCIR", "HIDDEN_MULT", 1), "composed", deep("network.layers.{}.*", 0, 3, 6), clip=True),
    "ZeroshotCIR": Row(),
}
TRAINED = [name for name, row in TRAINERS.items() if row.folder]
UNTRAINED = [name for name, row in TRAINERS.items() if not row.folder]

COMMON = {
    "SEED": 1,
    "USE_CUDA": False,
    "INPUT.SIZE": (32, 32),
    "DATALOADER.NUM_WORKERS": 0,
    "DATALOADER.TEST.BATCH_SIZE": 10,
    "OPTIM.LR": 0.01,
    "OPTIM.MAX_EPOCH": 2,
}
FAMILIES = {
    "classification": {
        "DATASET.NAME": "ToyColours",
        "INPUT.TRANSFORMS": ("random_resized_crop", "random_flip", "normalize"),
        "DATALOADER.TRAIN_X.BATCH_SIZE": 7,
    },
    "captions": {
        "DATASET.NAME": "FDRD",
        "DATASET.FDRD_DOMAIN": "DTD",
        "DATASET.NUM_SHOTS": 4,
        "INPUT.TRANSFORMS": ("normalize",),
        "DATALOADER.TRAIN_X.BATCH_SIZE": 6,
        "TEST.EVALUATOR": "Retrieval",
    },
    "composed": {
        "DATASET.NAME": "LaionCIR",
        "CIR.EVAL": ["CIRR"],
        "CIR.CACHE_DTYPE": "fp32",
        "DATALOADER.TRAIN_X.BATCH_SIZE": 4,
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 1e-3,
    },
}


def family(name: str) -> str:
    """Which data and which backbone a trainer takes."""
    cls = TRAINER_REGISTRY.get(name)
    if issubclass(cls, ComposedTrainer):
        return "composed"
    return "captions" if issubclass(cls, RetrievalTrainer) else "classification"


def prepare(folder: Path) -> Path:
    """Backbones, a teacher and the data of all families below ``folder``."""
    from dassl_prompts.models import load_clip
    from dassl_prompts.trainers.ivlp import IVLPModel

    (folder / "classification").mkdir()
    retrieval_tree.make_tree(folder / "captions")
    for tree in (cir_trees.cirr, cir_trees.laion_cir):
        tree(folder / "composed")
    sizes = {"embed": 64, "text_width": 64, "text_layers": 3, "vision_layers": 3, "patch": 8}
    torch.save(plain.openai_state(**sizes, vision_width=64), folder / "clip.pt")
    torch.save(plain.openai_state(**sizes, vision_width=128, seed=1), folder / "teacher.pt")
    write_tiny_blip(folder / "blip")
    torch.manual_seed(3)
    tuned = IVLPModel(load_clip(str(folder / "teacher.pt")), plain.CLASSES, 4, 4, 2, 2)
    (folder / "teacher" / "VLPromptLearner").mkdir(parents=True)
    state = {n: p.detach() for n, p in tuned.named_parameters() if not n.startswith("clip.")}
    torch.save({"state_dict": state, "epoch": 20}, folder / "teacher" / "VLPromptLearner" / "model.pth.tar-20")
    return folder


def config(name: str, folder: Path, output: str, *more):
    """The configuration of a toy run in ``folder / output``.

    Args:
        folder: made by :func:`prepare`; a second stage finds its first in ``whole/<name>`` there.
    """
    row, kind = TRAINERS[name], family(name)
    keys = {
        "TRAINER.NAME": name,
        "DATASET.ROOT": str(folder / kind),
        "OUTPUT_DIR": str(folder / output),
        "MODEL.BACKBONE.NAME": str(folder / ("blip" if kind == "composed" and not row.clip else "clip.pt")),
        **COMMON,
        **FAMILIES[kind],
    }
    if "PromptKD" in name:
        keys |= {
            "TRAINER.PROMPTKD.TEACHER_NAME": str(folder / "teacher.pt"),
            "TRAINER.PROMPTKD.TEACHER_DIR": str(folder / "teacher"),
        }
    if row.stage1:
        keys |= {"TRAINER.DPC.CKPT_DIR": str(folder / "whole" / row.stage1), "TRAINER.DPC.TOPK": 3}
    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_opts(cfg, [item for pair in keys.items() for item in pair] + [*row.keys, *more])
    cfg.freeze()
    return cfg


@torch.no_grad()
def features(trainer) -> list[torch.Tensor]:
    """What the trainer's evaluation ranks or compares: logits, or the features of both sides."""
    trainer.set_model_mode("eval")
    if isinstance(trainer, ComposedTrainer):
        tasks = [task for dataset in trainer.eval_datasets().values() for task in dataset.tasks("val")]
        return [side for task in tasks for side in trainer.task_features(task)]
    if isinstance(trainer, RetrievalTrainer):
        return [trainer.image_features("test"), trainer.text_features("test")]
    loader = trainer.choose_split("test")[1]
    return [torch.cat([trainer.model_inference(trainer.parse_batch_test(batch)[0]) for batch in loader])]


def main() -> None:
    """For every line ``[name, folder, run, output]`` build the trainer, load the run, test it; answer with one line.

    The answer is "" or what went wrong; ``folder / output / evaluation.pt`` holds the result and the features.
    """
    answers = sys.stdout
    for line in sys.stdin:
        name, folder, run, output = json.loads(line)
        error = ""
        with contextlib.redirect_stdout(sys.stderr):
            try:
                trainer = build_trainer(config(name, Path(folder), output))
                trainer.load_model(run)
                found = {"result": trainer.test(), "features": features(trainer)}
                torch.save(found, Path(folder) / output / "evaluation.pt")
            except Exception:
                error = traceback.format_exc()
        print(json.dumps(error), file=answers, flush=True)


if __name__ == "__main__":
    main()
