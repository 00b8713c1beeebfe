"""CLIP models by name or file, behind one interface.

Everything that touches open_clip is here: building, weights, tokenizer. A :class:`CLIP` is frozen and always in evaluation
mode; methods reach its towers through ``text`` and ``vision``.
"""

from __future__ import annotations

import warnings
from importlib import resources
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.engine.reading import read_json
from dassl_prompts.models.activation import GELU, QUICKGELU, Description, describe_file, settle
from dassl_prompts.models.blocks import is_quick_gelu
from dassl_prompts.models.class_prompts import ClassPrompts
from dassl_prompts.models.sizes import infer_config, set_heads
from dassl_prompts.models.text import TextTower
from dassl_prompts.models.vision import ResNetTower, VisionTower
from dassl_prompts.models.weights import (
    SCALARS,
    WEIGHT_SUFFIXES,
    embedded_weights,
    read_clip,
    read_state_dict,
    weights_digest,
    weights_file,
)

#: OpenAI's names; all of them were trained with QuickGELU
OPENAI_NAMES = {
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "RN50x4": "RN50x4-quickgelu",
    "RN50x16": "RN50x16-quickgelu",
    "RN50x64": "RN50x64-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
#: the setting that says the activation where a weight file does not
ACTIVATION_KEY = "MODEL.BACKBONE.ACTIVATION"
#: tokens of CLIP's tokenizer
VOCABULARY = 49408
#: who says the activation of a model that open_clip has weights for
OPEN_CLIP = "open_clip's model of this name"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class CLIP(nn.Module):
    """Two frozen towers and a temperature.

    Attributes:
        text, vision: the towers.
        logit_scale: 0-dim fp32; ``exp`` of it multiplies cosines.
        embed_dim: width E of the joint space.
        image_size: side of the input in pixels.
        is_vit: whether the image tower takes prompts.
        dtype: of the towers' matrix weights.
        digest: of the weights as they were loaded; "" for random ones.
        activation: "quickgelu" or "gelu". activation_source: who says so.
        preprocess_mean, preprocess_std: of the pictures that it was trained on. squashed: whether these were resized to a square
            without keeping their sides' ratio.
        preprocess_known: whether somebody says these; files of the user's do not.
    """

    preprocess_mean, preprocess_std = MEAN, STD
    squashed = preprocess_known = False
    digest = ""
    activation_source = ""

    def __init__(self, model: nn.Module):
        super().__init__()
        from open_clip.tokenizer import SimpleTokenizer

        self.text = TextTower(model, SimpleTokenizer())
        self.is_vit = hasattr(model.visual, "class_embedding")
        self.vision = VisionTower(model.visual) if self.is_vit else ResNetTower(model.visual)
        self.register_buffer("logit_scale", model.logit_scale.detach().float().reshape(()))
        projection = model.text_projection
        self.activation = QUICKGELU if is_quick_gelu(self.text.blocks[0]) else GELU
        self.embed_dim = projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]
        self.image_size = self.vision.image_size
        self.requires_grad_(False)
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        return self.text.dtype

    def train(self, mode: bool = True) -> CLIP:
        """Stays in evaluation mode: Dassl switches whatever a trainer registers, and a ResNet's BatchNorm must not move."""
        return super().train(False)

    def tokenize(self, texts: list[str], truncate: bool = False) -> Tensor:
        """Token ids ``[N, 77]``.

        Raises:
            ValueError: a text does not fit and ``truncate`` is off; names it.
        """
        return self.text.tokenize(texts, truncate)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features ``[N, E]`` of token ids ``[N, 77]``, not normalised, fp32."""
        eot = tokens.argmax(dim=-1)
        return self.text(ClassPrompts(tokens, eot, 0, 1, eot - 1))

    def encode_image(self, images: Tensor) -> Tensor:
        """Features ``[B, E]`` of images ``[B, 3, S, S]``, not normalised, fp32."""
        return self.vision(images)


# -- building ---------------------------------------------------------------------------------------------------------


def build_clip(config: dict | str, seed: int | None = None, precision: str = "fp32", device="cpu") -> CLIP:
    """A CLIP with random weights, for tests and benchmarks.

    Args:
        config: ``{"embed_dim", "vision_cfg", "text_cfg"[, "quick_gelu"]}`` as in open_clip's JSON files, or a name.
        seed: of the weights.
    """
    if isinstance(config, str):
        config = named_config(config)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = build_model(config)
    return finish(model, precision, device)


def build_model(config: dict) -> nn.Module:
    """open_clip's CLIP module for a configuration."""
    from open_clip.model import CLIP as OpenCLIP

    config = {"quick_gelu": True, **{k: v for k, v in config.items() if k not in ("weights", "custom_text")}}
    return OpenCLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"], quick_gelu=config["quick_gelu"])


def finish(model: nn.Module, precision: str, device) -> CLIP:
    """Wrap a model in its precision and on its device.

    With fp16 the matrix weights are half; layer norms, embeddings and the temperature stay fp32, as in OpenAI's code.
    """
    clip = CLIP(model)
    if precision == "fp16":
        for module in clip.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
                module.half()
        for tower, name in ((clip.text, "text_projection"), (clip.vision, "proj")):
            weight = getattr(tower, name, None)
            if isinstance(weight, nn.Parameter):
                weight.data = weight.data.half()
        if not clip.is_vit:
            clip.vision.half()
    return clip.to(device)


def named_config(name: str) -> dict:
    """Architecture of a name: our JSON files, then open_clip's.

    Raises:
        ValueError: unknown; lists what there is.
    """
    own = Path(str(resources.files("dassl_prompts.configs"))) / "backbones"
    if (own / f"{name}.json").is_file():
        return read_json(own / f"{name}.json")
    import open_clip

    known = OPENAI_NAMES.get(name, name)
    config = open_clip.get_model_config(known)
    if config is None:
        ours = [p.stem for p in sorted(own.glob("*.json"))]
        raise ValueError(
            f"unknown backbone {name!r}. Known: {', '.join([*ours, *OPENAI_NAMES])}, every open_clip model "
            "(python -c 'import open_clip; print(open_clip.list_models())'), a JSON model configuration, or a file with weights"
        )
    return {**config, "quick_gelu": config.get("quick_gelu", False)}


# -- weights ----------------------------------------------------------------------------------------------------------


def load_clip(
    name: str, precision: str = "fp32", device="cpu", activation: str = "", key: str = ACTIVATION_KEY
) -> CLIP:
    """A pretrained CLIP.

    Args:
        name: ``ViT-B/16``, ``RN50`` ... (OpenAI's weights); an open_clip name, with a tag behind a colon for other weights
            (``ViT-B-16:laion2b_s34b_b88k``); ``open-tiny``, ``emoji-tiny`` or ``emoji-base`` (embedded); a JSON model configuration
            (weights from the file that its key ``weights`` names, else random ones); or a file with a state dict of OpenAI's,
            open_clip's or Hugging Face's names, whose sizes are read off its tensors.
        precision: ``fp32``, ``amp`` (fp32 weights) or ``fp16``.
        activation: ``quickgelu`` or ``gelu`` for a file of which nothing tells it . key: what messages call it.

    Raises:
        ValueError: unknown name, tensors that are not such a model's, or an activation that nobody says or that contradicts
            what is known.
        FileNotFoundError: weights that are neither on disk nor can be downloaded; says what to give instead.
    """
    if not name:
        raise ValueError("MODEL.BACKBONE.NAME is empty: give a backbone, e.g. --backbone ViT-B/16")
    path = Path(name).expanduser()
    if name.endswith(WEIGHT_SUFFIXES):
        model, source = from_file(path, name, activation, key)
    else:
        if path.suffix == ".json":
            model, source = from_json(path, activation), path.name
        elif (embedded := embedded_weights(name)) is not None:
            model, source = build_model(named_config(name)), "an embedded backbone"
            load_strict(model, read_state_dict(embedded), str(embedded))
        else:
            model, source = from_open_clip(name), OPEN_CLIP
        own = QUICKGELU if is_quick_gelu(model.transformer.resblocks[0]) else GELU
        settle(activation, Description(own, source), name, key)
    model = model.float()
    random = path.suffix == ".json" and weights_file(name) is None
    digest = "" if random else weights_digest(model.state_dict())
    clip = finish(model, precision, device)
    clip.digest, clip.activation_source = digest, source
    if source == OPEN_CLIP:
        note_pictures(clip, name)
    return clip


def from_file(path: Path, name: str, activation: str, key: str) -> tuple[nn.Module, str]:
    """The model of a weight file, and who says which activation it has."""
    found = read_clip(path)
    known = describe_file(path, found.state)
    config = infer_config(found.state, name)
    if config["text_cfg"]["vocab_size"] != VOCABULARY:
        raise ValueError(
            f"{name}: its text tower knows {config['text_cfg']['vocab_size']} tokens, CLIP's tokenizer has {VOCABULARY}: it was "
            "trained with another one, which is not supported"
        )
    set_heads(config, known, name)
    chosen, source = settle(activation, known, name, key)
    config["quick_gelu"] = chosen == QUICKGELU
    model = build_model(config)
    load_strict(model, found.state, name)
    return model, source


def from_json(path: Path, activation: str = "") -> nn.Module:
    """A model from an open_clip JSON configuration of the user's; ``activation`` where that says none."""
    if not path.is_file():
        raise FileNotFoundError(f"no model configuration {path}")
    config = read_json(path, dict)
    try:
        if activation and "quick_gelu" not in config:
            config["quick_gelu"] = activation == QUICKGELU
        if config.get("weights") and "quick_gelu" not in config:
            raise ValueError(
                f'{path} must say "quick_gelu": true (OpenAI\'s weights) or false: the wrong activation is silent'
            )
        model = build_model(config)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not an open_clip model configuration (embed_dim, vision_cfg, text_cfg): {error!r}"
        ) from error
    if config.get("weights"):
        weights = path.parent / config["weights"]
        load_strict(model, read_state_dict(weights), str(weights))
    else:
        warnings.warn(f"{path} names no weights: the backbone is random", stacklevel=2)
    return model


def open_clip_weights(name: str) -> tuple[str, str]:
    """Architecture and tag of the weights that open_clip has for a backbone's name.

    Raises:
        ValueError: it has none such, or they need another activation.
    """
    import open_clip

    base, _, tag = name.partition(":")
    architecture, tag = OPENAI_NAMES.get(base, base), tag or "openai"
    config = named_config(base)
    check_towers(name, config)
    if tag == "openai" and not config["quick_gelu"]:
        if f"{architecture}-quickgelu" not in open_clip.list_models():
            raise ValueError(f"{name}: OpenAI's weights need QuickGELU, but {architecture} is built with GELU")
        architecture = f"{architecture}-quickgelu"
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise ValueError(
            f"{name}: open_clip has no weights {tag!r} for {architecture}; it has {', '.join(tags) or 'none'}"
        )
    check_activation(name, architecture, tag)
    return architecture, tag


def note_pictures(clip: CLIP, name: str) -> None:
    """Note how open_clip's record of a tag prepares pictures: that follows the weights, not the architecture."""
    import open_clip

    record = open_clip.get_pretrained_cfg(*open_clip_weights(name)) or {}
    clip.preprocess_mean, clip.preprocess_std = (tuple(record.get(k) or v) for k, v in (("mean", MEAN), ("std", STD)))
    clip.squashed, clip.preprocess_known = record.get("resize_mode") == "squash", True


def check_towers(name: str, config: dict) -> None:
    """Refuse an architecture whose towers are not CLIP's, before its weights are downloaded.

    Raises:
        ValueError: says what is otherwise.
    """
    text, vision = config["text_cfg"], config["vision_cfg"]
    otherwise = {
        f"a text tower of Hugging Face ({text.get('hf_model_name')})": "hf_model_name" in text,
        "a text tower that also looks ahead (SigLIP, MobileCLIP)": text.get("no_causal_mask"),
        "a text tower with a summary token of its own (CoCa)": text.get("embed_cls"),
        f"an image tower of timm ({vision.get('timm_model_name')})": "timm_model_name" in vision,
        f"a tokenizer of {text.get('vocab_size')} tokens": text.get("vocab_size", VOCABULARY) != VOCABULARY,
    }
    found = [what for what, is_so in otherwise.items() if is_so]
    if found:
        raise ValueError(
            f"{name} has {' and '.join(found)}: prompts are learned here on CLIP's own towers (a ViT or ResNet, and a causal text "
            "tower). Give a CLIP, such as ViT-B/16 or ViT-B-16:laion2b_s34b_b88k"
        )


def from_open_clip(name: str) -> nn.Module:
    """A model whose weights open_clip knows how to obtain."""
    import open_clip

    architecture, tag = open_clip_weights(name)
    try:
        return open_clip.create_model(architecture, pretrained=tag, precision="fp32")
    except (OSError, RuntimeError) as error:  # huggingface_hub's errors are OSErrors
        raise FileNotFoundError(
            f"the weights {tag} of {architecture} are not on this machine and could not be downloaded "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}). Without network, give the file with the state dict "
            "(.pt or .safetensors) as MODEL.BACKBONE.NAME / --backbone"
        ) from error


def check_activation(name: str, architecture: str, tag: str) -> None:
    """Compare the activation that a tag's record asks for with the one that the architecture is built with.

    open_clip itself only warns, in words that change between its releases, after the weights were downloaded.

    Raises:
        ValueError: they differ; names the model to ask for instead.
    """
    import open_clip

    words = {True: "QuickGELU", False: "GELU"}
    wanted = bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False))
    built = bool(open_clip.get_model_config(architecture).get("quick_gelu", False))
    if wanted == built:
        return
    twin = f"{architecture}-quickgelu" if wanted else architecture.removesuffix("-quickgelu")
    remedy = (
        f"; give {twin}:{tag}" if twin != architecture and tag in open_clip.list_pretrained_tags_by_model(twin) else ""
    )
    raise ValueError(
        f"{name}: the weights {tag!r} were trained with {words[wanted]}, but {architecture} is built with {words[built]}{remedy}"
    )


def from_state_dict(state: dict[str, Tensor], source: str) -> nn.Module:
    """The model that an OpenAI-format state dict belongs to."""
    model = build_model(infer_config(state, source))
    load_strict(model, state, source)
    return model


def load_strict(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load all tensors of a state dict.

    Raises:
        ValueError: tensors are missing, left over, or of another shape; names the first.
    """
    state = {k: v for k, v in state.items() if k not in SCALARS}
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [f"{k} {tuple(state[k].shape)}" for k in own if k in state and own[k].shape != state[k].shape]
    if missing or unknown or wrong:
        raise ValueError(
            f"{source} does not fit this CLIP: missing {missing[:3]}, unknown {unknown[:3]}, other shape {wrong[:3]}"
        )
    model.load_state_dict(state)
