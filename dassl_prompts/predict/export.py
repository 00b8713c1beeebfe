"""Class embeddings and prompts of a trained run as files that open_clip alone can use."""

from __future__ import annotations

import json
from pathlib import Path

from dassl_prompts.configs.own_data import called
from dassl_prompts.engine.checkpoint import require_finite
from dassl_prompts.engine.files import atomic_path, write_text
from dassl_prompts.predict.run import TrainedRun

CLASSES, PROMPTS, CARD = "classes.safetensors", "prompts.safetensors", "card.json"
BACKBONE = "backbone"


def export(
    run: TrainedRun, folder: str | Path, with_backbone: bool = False, *, hub: bool = False, onnx: bool = False
) -> list[Path]:
    """Write the class matrix, the learned tensors and a card that says how to use them.

    Args:
        folder: made if needed; files in it are replaced, each at once.
        with_backbone: write the frozen CLIP as well, for backbones that open_clip does not know.
        hub: write what ``load_run`` needs and a model card, so that the folder can be pushed to the Hugging Face hub.
        onnx: write ``classifier.onnx``, see :func:`~dassl_prompts.predict.onnx_file.write_onnx`; the run has to be on the CPU.

    Returns:
        the files: ``classes.safetensors`` (``classes [C, E]``, normalised, fp32; left out where scores are
        more than cosines with one matrix), ``prompts.safetensors``, ``card.json``, and ``backbone.json`` with
        ``backbone.safetensors``.

    Raises:
        ValueError: ``with_backbone`` for a CLIP that open_clip's layout cannot hold; a number that is not finite; ``onnx`` for
            a method whose class features depend on the picture.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = run.model
    written = []
    if onnx:  # first: it is what may be refused
        from dassl_prompts.predict.onnx_file import ONNX, write_onnx

        written.append(write_onnx(run, folder / ONNX, card_of(run)))
    text_fixed, cosines, image_frozen = independence(run)
    if cosines:
        written.append(write_safetensors(folder / CLASSES, {"classes": model.class_features()}))
    # buffers too: a projector's batch statistics and the mean of a pool's queries are as much of the method as its prompts
    learned = {n: t for n, t in model.state_dict().items() if not {"clip", "teacher"} & set(n.split("."))}
    written.append(write_safetensors(folder / PROMPTS, learned))
    names = open_clip_name(run)
    if with_backbone:
        written += write_backbone(model.clip, folder)
        names = {"model": BACKBONE, "pretrained": f"{BACKBONE}.safetensors"}
    pixels = (run.cfg.INPUT.INTERPOLATION, tuple(run.cfg.INPUT.PIXEL_MEAN), tuple(run.cfg.INPUT.PIXEL_STD))
    same_pixels = pixels == ("bicubic", model.clip.preprocess_mean, model.clip.preprocess_std)
    card = {
        **card_of(run),
        "text": "fixed" if text_fixed else "per image",
        "scores": "cosines" if cosines else "the method's own",
        "image_tower": "frozen" if image_frozen else "prompted",
        "open_clip": names,
        "usable_with_open_clip_alone": bool(cosines and image_frozen and same_pixels and names),
    }
    if hub:
        from dassl_prompts.predict.hub import write_hub

        written += write_hub(run, folder)
    write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", folder / CARD)
    return [*written, folder / CARD]


def independence(run: TrainedRun) -> tuple[bool, bool, bool]:
    """Whether class features are the same for all images, scores their cosines, and image features the frozen tower's; measured."""
    import torch

    from dassl_prompts.classification.prompted import normalize
    from dassl_prompts.predict.onnx_file import text_is_per_image

    model, size = run.model, run.model.clip.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)).to(run.device)
    with torch.no_grad():
        if text_is_per_image(run, images):
            return False, False, True
        logits, frozen = model(images), normalize(model.clip.encode_image(images))
        prompts, classes = model.emit(), model.class_features()
        features = model.encode_images(images, prompts)
        # a method with a classifier, a cache or a second prompt beside them has no class matrix to give away
        cosines = model.scale * features @ classes.t()
        same_scores = torch.allclose(cosines, logits, atol=1e-3, rtol=1e-4)
        same_images = features.shape == frozen.shape and torch.allclose(features, frozen, atol=1e-4)
    return True, same_scores, same_images


def card_of(run: TrainedRun) -> dict:
    """What a reader of the files has to know."""
    model, results, cfg = run.model, run.results, run.cfg
    return {
        "trainer": results["trainer"],
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "classes": run.classnames,
        "trained_on": {
            "dataset": called(results.get("dataset", ""), cfg.DATASET.ROOT),
            "classes": run.trained,
            "shots": results.get("shots"),
            "seed": results.get("seed"),
        },
        "results": results.get("test", {}),
        "scale": float(model.scale),
        "embed_dim": model.clip.embed_dim,
        "image_size": list(cfg.INPUT.SIZE),
        "mean": list(cfg.INPUT.PIXEL_MEAN),
        "std": list(cfg.INPUT.PIXEL_STD),
        "interpolation": cfg.INPUT.INTERPOLATION,
        "dassl_prompts": results.get("dassl_prompts"),
    }


def open_clip_name(run: TrainedRun) -> dict[str, str] | None:
    """``model`` and ``pretrained`` for open_clip's factory; None for a backbone that it does not know."""
    import open_clip

    from dassl_prompts.models.clip import OPENAI_NAMES

    base, _, tag = run.cfg.MODEL.BACKBONE.NAME.partition(":")
    name, tag = OPENAI_NAMES.get(base, base), tag or "openai"
    if tag == "openai":
        name = name if name.endswith("-quickgelu") else f"{name}-quickgelu"
    if name in open_clip.list_models() and tag in open_clip.list_pretrained_tags_by_model(name):
        return {"model": name, "pretrained": tag}
    return None


def write_safetensors(path: Path, tensors: dict) -> Path:
    """Write tensors as fp32, atomically.

    Raises:
        ValueError: one is not finite; names file and tensor.
    """
    from safetensors.torch import save

    require_finite(tensors, str(path))
    content = save({name: t.detach().float().cpu().contiguous() for name, t in tensors.items()})
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
    return path


def write_backbone(clip, folder: Path) -> list[Path]:
    """The frozen CLIP in open_clip's layout: a model configuration and its weights."""
    if not clip.is_vit:
        raise ValueError("only ViT backbones can be exported: a ResNet is named in the card instead")
    text, vision = clip.text, clip.vision
    config = {
        "embed_dim": clip.embed_dim,
        "quick_gelu": clip.activation == "quickgelu",
        "vision_cfg": {
            "image_size": clip.image_size,
            "layers": vision.layers,
            "width": vision.width,
            "head_width": vision.width // vision.blocks[0].attn.num_heads,
            "patch_size": vision.patch_size,
        },
        "text_cfg": {
            "context_length": text.context_length,
            "vocab_size": text.token_embedding.num_embeddings,
            "width": text.width,
            "heads": text.heads,
            "layers": text.layers,
        },
    }
    state = {name: value for name, value in text.state_dict().items()}
    state |= {f"visual.{name}": value for name, value in vision.state_dict().items()}
    state["logit_scale"] = clip.logit_scale
    from dassl_prompts.models.clip import build_model

    reference = build_model(config).state_dict()
    missing = [n for n in reference if n != "attn_mask" and (n not in state or state[n].shape != reference[n].shape)]
    if missing:
        raise ValueError(f"this backbone does not fit open_clip's layout: {missing[0]}")
    write_text(json.dumps(config, indent=2) + "\n", folder / f"{BACKBONE}.json")
    weights = write_safetensors(
        folder / f"{BACKBONE}.safetensors",
        {n: state[n] for n in reference if n in state and n != "attn_mask"},
    )
    return [folder / f"{BACKBONE}.json", weights]
