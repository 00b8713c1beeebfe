"""BLIP (image-text retrieval, base) through transformers, with the settings of the original model.

transformers' defaults differ from BLIP's in three places that change features without any error; all three
are set and then checked on the loaded modules: 12 text heads (not 8), LayerNorm eps 1e-6 in the vision tower
(not 1e-5), text dropout 0.1 (not 0).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.engine import distributed
from dassl_prompts.engine.checkpoint import require_finite
from dassl_prompts.engine.reading import read_json, reading
from dassl_prompts.models.tokens import TextTokens, TokenEncoder
from dassl_prompts.models.weights import weights_digest

HUB_NAMES = {"blip-itm-base-coco": "Salesforce/blip-itm-base-coco"}
VISION_EPS = 1e-6
TEXT_HEAD_WIDTH = 64  # BERT's, for every size
MAX_TEXT = 35


def is_blip(name: str) -> bool:
    """Whether ``name`` means a BLIP: a known or hub name with "blip" in it, or a folder whose config.json
    says so."""
    config = Path(name) / "config.json"
    if config.is_file():
        return read_json(config, dict).get("model_type") == "blip"
    return "blip" in name.lower() and not Path(name).exists()


def load_blip(name: str, text_dropout: float = 0.1) -> BlipTokens:
    """Load ``BlipForImageTextRetrieval`` and its tokenizer.

    Args:
        name: "blip-itm-base-coco", another hub name, or a folder written by ``save_pretrained`` (model and
            tokenizer).
        text_dropout: of the text tower while it is trained.

    Raises:
        FileNotFoundError: not in the folder, not in the cache, and no network; says what to fetch.
        ValueError: wrong number of text heads, damaged files, a weight that is not finite.
    """
    from transformers import AutoTokenizer, BlipConfig, BlipForImageTextRetrieval

    source = HUB_NAMES.get(name, name)
    try:
        with reading(source, "a BLIP that can be read (damaged or cut short?)", named=(OSError,)):
            config = BlipConfig.from_pretrained(source)
            set_original(config, text_dropout)
            model = BlipForImageTextRetrieval.from_pretrained(source, config=config)
            tokenizer = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise FileNotFoundError(
            f"BLIP {name} cannot be loaded ({str(error).splitlines()[0]}). Without network: download {source} elsewhere "
            f"(`hf download {HUB_NAMES.get(name, 'Salesforce/blip-itm-base-coco')} --local-dir FOLDER`) and give the folder "
            "as MODEL.BACKBONE.NAME"
        ) from error
    check_original(model, text_dropout)
    require_finite(model.state_dict(), f"BLIP {name}")
    digest = weights_digest(model.state_dict())  # before the parts that are not used go
    blip = BlipTokens(model, tokenizer)
    blip.digest = digest
    return blip


def set_original(config, text_dropout: float) -> None:
    """Set what is not stored in the weights and wrong by default; heads come from the file and are checked
    later."""
    config.vision_config.layer_norm_eps = VISION_EPS
    config.text_config.hidden_dropout_prob = text_dropout
    config.text_config.attention_probs_dropout_prob = text_dropout


def check_original(model: nn.Module, text_dropout: float) -> None:
    """Check heads, eps and dropout on the built modules.

    Raises:
        ValueError: one of them is not BLIP's; says which.
    """
    text = model.config.text_config
    heads = text.hidden_size // TEXT_HEAD_WIDTH
    built = {m.num_attention_heads for m in model.text_encoder.modules() if hasattr(m, "num_attention_heads")}
    if built != {heads}:
        raise ValueError(
            f"this BLIP checkpoint's config.json gives {sorted(built)} text attention heads, the original has {heads} "
            f'(width {text.hidden_size}); set "num_attention_heads": {heads} in "text_config" (old conversions say 8)'
        )
    eps = {m.eps for m in model.vision_model.modules() if isinstance(m, nn.LayerNorm)}
    if eps != {VISION_EPS}:
        raise ValueError(
            f"BLIP's vision LayerNorms have eps {sorted(eps)} instead of {VISION_EPS}: transformers ignored the setting"
        )
    dropout = {m.p for m in model.text_encoder.modules() if isinstance(m, nn.Dropout)}
    if dropout != {text_dropout}:
        raise ValueError(
            f"BLIP's text dropouts are {sorted(dropout)} instead of {text_dropout}: transformers ignored the setting"
        )


class BlipTokens(TokenEncoder):
    """Token features of BLIP's unimodal towers (projected width 256); the matching head and cross-attention
    are dropped.

    Args:
        model: ``BlipForImageTextRetrieval``. tokenizer: its tokenizer. max_text: tokens per caption (official
            35).
    """

    def __init__(self, model: nn.Module, tokenizer, max_text: int = MAX_TEXT):
        super().__init__()
        self.vision_model, self.vision_proj = model.vision_model, model.vision_proj
        self.text_encoder, self.text_proj = model.text_encoder, model.text_proj
        # unused in unimodal mode; parameters without gradient would be optimised, stored and confuse DDP
        for layer in self.text_encoder.encoder.layer:
            layer.crossattention = None
        self.tokenizer, self.max_text = tokenizer, max_text
        vision = model.config.vision_config
        self.width, self.image_size = model.config.image_text_hidden_size, vision.image_size
        self.n_image = (vision.image_size // vision.patch_size) ** 2 + 1
        self.tune("none")
        self.eval()

    def text_tokens(self, captions: Sequence[str], trim: bool = True) -> TextTokens:
        # trim pads to the longest caption of the batch, else to max_text as TransAgg does
        batch = self.tokenizer(
            list(captions),
            padding="longest" if trim else "max_length",
            truncation=True,
            max_length=self.max_text,
            return_tensors="pt",
        ).to(self.text_proj.weight.device)
        hidden = distributed.by_rows(
            self.text_encoder, input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).last_hidden_state
        row = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
        return TextTokens(self.text_proj(hidden), row, batch.attention_mask == 0)

    def image_tokens(self, images: Tensor) -> Tensor:
        # not pooler_output, to which transformers applies the final norm twice
        return self.vision_proj(distributed.by_rows(self.vision_model, pixel_values=images).last_hidden_state)

    def text_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.text_encoder.parameters()
        yield from self.text_proj.parameters()

    def image_parameters(self) -> Iterator[nn.Parameter]:
        yield from self.vision_model.parameters()
        yield from self.vision_proj.parameters()
