"""What the training tools of the embedded backbones share: model, towers, loss, augmentation, optimiser, export.

A plain contrastive training of open_clip's CLIP on a CPU: captions are tokenised once into a compact vocabulary, the text tower
sees only the positions up to the longest caption of the batch (exact: its attention is causal), bfloat16 autocast.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import math
import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "dassl_prompts" / "assets" / "models"
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
TOKENS = 49408  # rows of CLIP's token table


class Vocabulary:
    """Compact ids for the tokens that occur in training: the token table has only their rows while it is trained.

    Attributes:
        ids: CLIP's token id -> row, in the order in which tokens were met; start and end of text come first.
    """

    def __init__(self):
        import open_clip

        self.tokenizer = open_clip.get_tokenizer("ViT-B-32")
        self.cache = {}
        self.ids = {self.tokenizer.sot_token_id: 0, self.tokenizer.eot_token_id: 1}

    def tokens(self, text: str) -> list[int]:
        """Compact ids of start + text + end; the vocabulary grows as words are met."""
        if text not in self.cache:
            t = self.tokenizer
            ids = [t.sot_token_id, *t.encode(text), t.eot_token_id]
            self.cache[text] = [self.ids.setdefault(i, len(self.ids)) for i in ids]
        return self.cache[text]


def build(name: str, vocabulary: int, patch_dropout: float = 0.0):
    """open_clip's CLIP by ``configs/backbones/<name>.json`` with a token table of `vocabulary` rows."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config = json.loads((ROOT / "configs" / "backbones" / f"{name}.json").read_text())
    vision = CLIPVisionCfg(**config["vision_cfg"], patch_dropout=patch_dropout)
    text = CLIPTextCfg(**{**config["text_cfg"], "vocab_size": vocabulary})
    return CLIP(config["embed_dim"], vision, text, quick_gelu=config["quick_gelu"])


def start_from(model, vocabulary: dict[int, int], path: Path):
    """Start `model` from a smaller exported one of the same widths (`path`): the function hardly changes at first.

    Patch filters and positions are resized (a filter keeps its response to a flat patch); layers that the small model lacks
    add nothing to the residual stream until trained; words that it never met keep their random vectors.

    Returns:
        [len(vocabulary)] whether the exported model has met the token.
    """
    from safetensors.torch import load

    exported = {k: v.float() for k, v in load(lzma.decompress(path.read_bytes())).items()}
    state = model.state_dict()
    for key, tensor in exported.items():
        if key == "token_embedding.weight":
            rows = tensor[torch.tensor(list(vocabulary))]
            met = (rows != tensor.median(0).values).any(1)  # the others, more than half of the table, are one vector
            state[key][: len(rows)][met] = rows[met]
        elif key == "visual.conv1.weight":
            size = state[key].shape[-1]
            resized = F.interpolate(tensor, size=(size, size), mode="area")
            state[key] = resized * (tensor.shape[-1] / size) ** 2
        elif key == "visual.positional_embedding":
            old, new = (round((len(t) - 1) ** 0.5) for t in (tensor, state[key]))
            grid = tensor[1:].T.reshape(1, -1, old, old)
            grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
            state[key] = torch.cat([tensor[:1], grid.flatten(2)[0].T])
        else:
            state[key] = tensor
    for key, tensor in state.items():
        if key not in exported and {"out_proj", "c_proj"} & set(key.split(".")):
            tensor.zero_()
    model.load_state_dict(state)
    return met


def ridge(x, y, strength: float = 1.0):
    """(weight [D,K], bias [D]) of the regularised linear map from rows x [N,K] to rows y [N,D]."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    weight = torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1]), x.T @ y).T
    return weight, mean_y - weight @ mean_x


def pad(rows: list[list[int]], multiple: int = 16):
    """(ids [B,L], eot [B]) of token id lists; L is the longest one rounded up, so that few shapes get compiled."""
    ids = torch.zeros(len(rows), -(-max(map(len, rows)) // multiple) * multiple, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, torch.tensor([len(r) - 1 for r in rows])


def encode_text(model, ids, eot):
    """Normalised features [B,D]; only the first L positions are computed."""
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(ids)), eot])
    return F.normalize((x @ model.text_projection).float(), dim=-1)


def encode_image(model, images):
    """Normalised features [B,D] of normalised pictures [B,3,S,S]."""
    return F.normalize(model.visual(images).float(), dim=-1)


@contextlib.contextmanager
def fast_cpu():
    """bfloat16 autocast and plain attention: on a CPU the fused kernel's backward is slower for such short sequences."""
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel([SDPBackend.MATH]):
        yield


def contrastive_loss(image, text, fits, scale):
    """Cross-entropy in both directions; the target of a row is uniform over the entries of `fits` [B,C] (UniCL)."""
    logits = scale * image @ text.T
    fits = fits.float()
    rows, columns = fits / fits.sum(1, keepdim=True), fits / fits.sum(0, keepdim=True)
    return -0.5 * ((rows * logits.log_softmax(1)).sum(1).mean() + (columns * logits.log_softmax(0)).sum(0).mean())


def random_affine(b: int, flip, generator, scales=(0.85, 1.4)):
    """[B,2,3] random maps for affine_grid: turn, zoom, stretch, shift, and a mirror for half of those that may `flip` [B]."""

    def uniform(low, high, *shape):
        return torch.rand(b, *shape, generator=generator) * (high - low) + low

    angle, scale = uniform(-0.25, 0.25), uniform(*scales)
    mirror = torch.where(flip & (uniform(0, 1) < 0.5), -1.0, 1.0)
    stretch, shift = uniform(0.9, 1.1), uniform(-0.15, 0.15, 2)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = scale * stretch * mirror * angle.cos(), -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = scale / stretch * mirror * angle.sin(), scale / stretch * angle.cos()
    theta[:, :, 2] = shift
    return theta


def jitter(images, generator):
    """Random saturation, tint and sharpness of pictures [B,3,S,S] in 0..1, then CLIP's normalisation."""
    b = len(images)

    def uniform(low, high, *shape):
        return torch.rand(b, *shape, generator=generator) * (high - low) + low

    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * uniform(0.6, 1.4, 1, 1, 1)
    images = 1 - (1 - images) * uniform(0.7, 1.3, 3, 1, 1)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + (images - blurred) * uniform(-1.0, 1.0, 1, 1, 1)
    return (images.clamp(0, 1) - MEAN) / STD


def parameter_groups(model, weight_decay: float) -> list[dict]:
    """Weight decay on matrices, none on embeddings, biases and norms."""
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and "embedding" not in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim > 1 and "embedding" not in n)]
    return [{"params": decay, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]


def check_finite(loss, step: int) -> None:
    if not torch.isfinite(loss):
        raise RuntimeError(f"the loss is {loss.item()} at iteration {step}: lower the learning rate")


def write_atomically(path: Path, data: bytes) -> None:
    """All of `data` or the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def export(model, vocabulary: dict[int, int], path: Path) -> dict:
    """Write fp16 tensors under OpenAI's names as <path>.safetensors.xz; rows of words never met are one constant vector.

    Returns bytes, sha256 and parameter counts of the file.
    """
    from safetensors.torch import save

    state = {k: v.detach().clone() for k, v in model.state_dict().items() if k != "attn_mask"}
    small = state["token_embedding.weight"]
    table = small.mean(0).expand(TOKENS, -1).clone()
    table[torch.tensor(list(vocabulary))] = small[: len(vocabulary)]
    state["token_embedding.weight"] = table
    data = lzma.compress(save({k: v.half().contiguous() for k, v in sorted(state.items())}), preset=6)
    write_atomically(path, data)
    count = sum(v.numel() for v in state.values())
    return {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "parameters": count,
        "parameters_without_token_table": count - table.numel(),
    }


def cosine(done: float) -> float:
    """Factor of the learning rate after the share `done` of a run: 1 to 0.01."""
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
