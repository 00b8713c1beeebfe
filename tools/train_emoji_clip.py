"""Train the embedded backbones on the emoji styles that are not held out.

One file: a script with its recipes, read from top to bottom.

    python tools/train_emoji_clip.py emoji-tiny
    python tools/train_emoji_clip.py emoji-base

Each writes dassl_prompts/assets/models/<name>.safetensors.xz and beside it <name>.json: recipe, loss curve,
results on the held-out style, seconds.

A plain contrastive training of open_clip's CLIP: pictures are decoded once into a uint8 tensor, captions
tokenised once, the text tower sees only the positions up to the longest caption of the batch (exact: its
attention is causal), bfloat16 autocast. emoji-base is grown from the finished emoji-tiny: patches half as
wide, two more layers in each tower that start as the identity, then trained on. Captions of several levels
are drawn for a picture (class, concept, concept with tone, full caption), so a caption may fit several
pictures of a batch: the targets are uniform over the fitting pictures (as in UniCL). The exported weights
are an exponential moving average. Fluent pictures are used for evaluation only.
"""

import argparse
import contextlib
import copy
import hashlib
import json
import lzma
import math
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dassl_prompts.classification.templates import PROMPTSRC_TEMPLATES
from dassl_prompts.emoji import archives as emoji
from dassl_prompts.images import read_image

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "dassl_prompts" / "assets" / "models"
TRAIN_STYLES = tuple(s for s in emoji.STYLES if s != emoji.HELD_OUT)
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

# `iterations` is the length of the cosine schedule; `stop` ends the run earlier (the moving average needs
# no annealed end).
RECIPES = {
    "emoji-tiny": {
        "iterations": 2600,
        "stop": 1200,
        "batch": 384,
        "lr": 1.5e-3,
        "weight_decay": 0.1,
        "warmup": 200,
        "ema": 0.998,
        "patch_dropout": 0.0,
        "seed": 1,
        "more_templates": False,
        "grow_from": None,
    },
    "emoji-base": {
        "iterations": 800,
        "stop": 400,
        "batch": 384,
        "lr": 1.0e-3,
        "weight_decay": 0.1,
        "warmup": 50,
        "ema": 0.995,
        "patch_dropout": 0.5,
        "seed": 1,
        "more_templates": True,
        "grow_from": "emoji-tiny",
    },
}
# Fixed words around a class or a concept. The photo ones are the usual prompt templates; the change ones
# make the
# modification texts of composed retrieval known words.
PHOTO = (
    "a photo of a {}.",
    "an emoji of a {}.",
    "a photo of a {}, a type of emoji.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
    "a drawing of a {}.",
    "a picture of the {}.",
    "a {} emoji",
    "an image of a {}",
)
CHANGE = (
    "change it to {}",
    "make it {}",
    "show {} instead",
    "is {} instead",
    "replace it with {}",
    "the same but {}",
)


class Captions:
    """Draws captions. A caption comes with the key of the pictures that it fits: (level, class | concept |
    picture).
    """

    def __init__(self, templates):
        import open_clip

        self.templates = templates  # for captions that name the class
        self.encode = open_clip.get_tokenizer("ViT-B-32")
        self.cache, self.vocabulary = {}, {self.encode.sot_token_id: 0, self.encode.eot_token_id: 1}

    def tokens(self, text):
        """Compact ids of SOT + text + EOT; the vocabulary grows as words are met."""
        if text not in self.cache:
            ids = [self.encode.sot_token_id, *self.encode.encode(text), self.encode.eot_token_id]
            self.cache[text] = [self.vocabulary.setdefault(i, len(self.vocabulary)) for i in ids]
        return self.cache[text]

    def draw(self, picture, rng):
        c, dice = picture.concept, rng.random()
        if dice < 0.15:
            return rng.choice(self.templates).format(emoji.category(c)), (0, emoji.category(c))
        if dice < 0.45:
            return self.concept_text(c, rng), (1, c.id)
        if dice < 0.75:
            what = emoji.description(picture)
            template = rng.choice(("{}", "{}", *PHOTO, *CHANGE))
            if c.colours[picture.style] and rng.random() < 0.3:
                what += f", in {emoji.join_words(c.colours[picture.style])}"
            if rng.random() < 0.2:
                what += f", drawn in {emoji.STYLE_WORDS[picture.style]} style"
            return template.format(what), (2, (c.id, picture.tone))
        return emoji.caption(picture), (3, (c.id, picture.tone, picture.style))

    @staticmethod
    def concept_text(c, rng):
        tags = [t for t in c.tags if t not in c.name]
        rng.shuffle(tags)
        dice = rng.random()
        if dice < 0.45 or not tags:
            return rng.choice(("{}", *PHOTO)).format(c.name)
        if dice < 0.75:
            return ", ".join([c.name, *tags[:2]])
        if dice < 0.85:
            return " ".join(tags[:4]) if len(tags) > 2 else f"{c.name} {tags[0]}"
        return f"{c.name}, a kind of {emoji.category(c)}"

    @staticmethod
    def keys(picture):
        c = picture.concept
        return {
            (0, emoji.category(c)),
            (1, c.id),
            (2, (c.id, picture.tone)),
            (3, (c.id, picture.tone, picture.style)),
        }

    def fill(self, pictures):
        """Meet every word that `draw` can produce."""
        rng = random.Random(0)
        for p in pictures:
            for _ in range(3):
                self.tokens(self.draw(p, rng)[0])
            for text in (*p.concept.tags, p.concept.name, emoji.category(p.concept), emoji.caption(p)):
                self.tokens(text)
        for template in (*self.templates, *CHANGE):
            self.tokens(template.replace("{}", "").strip())
        for words in (
            "a photo of a",
            "change the skin tone to",
            "has",
            "remove",
            "and",
            "not",
            "facing right",
            "the other way",
            *emoji.STYLE_WORDS.values(),
        ):
            self.tokens(words)


def load_pixels(pictures):
    return (
        torch.from_numpy(np.stack([np.asarray(read_image(p.path)) for p in pictures])).permute(0, 3, 1, 2).contiguous()
    )


def augment(pixels, flip, generator):
    """uint8 [B,3,64,64] -> normalised float, after a random affine map (white outside), flip, colour and
    blur.

    flip [B] bool: whether the mirrored picture still fits its caption.
    """
    b = len(pixels)

    def uniform(low, high, *shape):
        return torch.rand(b, *shape, generator=generator) * (high - low) + low

    images = pixels.float() / 255
    angle, scale = uniform(-0.25, 0.25), uniform(0.85, 1.4)
    mirror = torch.where(flip & (uniform(0, 1) < 0.5), -1.0, 1.0)
    stretch, shift = uniform(0.9, 1.1), uniform(-0.15, 0.15, 2)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = scale * stretch * mirror * angle.cos(), -scale * angle.sin()
    theta[:, 1, 0], theta[:, 1, 1] = scale / stretch * mirror * angle.sin(), scale / stretch * angle.cos()
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, images.shape, align_corners=False)
    images = 1 - F.grid_sample(1 - images, grid, align_corners=False)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * uniform(0.6, 1.4, 1, 1, 1)
    images = 1 - (1 - images) * uniform(0.7, 1.3, 3, 1, 1)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images + (images - blurred) * uniform(-1.0, 1.0, 1, 1, 1)
    return (images.clamp(0, 1) - MEAN) / STD


def build(name, vocabulary, patch_dropout):
    """open_clip's CLIP with a token table of `vocabulary` rows; patches are dropped while training only."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    config = json.loads((ROOT / "configs" / "backbones" / f"{name}.json").read_text())
    vision = CLIPVisionCfg(**config["vision_cfg"], patch_dropout=patch_dropout)
    text = CLIPTextCfg(**{**config["text_cfg"], "vocab_size": vocabulary})
    return CLIP(config["embed_dim"], vision, text, quick_gelu=config["quick_gelu"])


def grow(model, vocabulary, path):
    """Start `model` from a smaller exported one of the same widths (`path`): the function hardly changes at
    first.

    Patch filters and positions are resized (a filter keeps its response to a flat patch); layers that the
    small model lacks add nothing to the residual stream until trained.
    """
    from safetensors.torch import load

    small = {k: v.float() for k, v in load(lzma.decompress(path.read_bytes())).items()}
    state = model.state_dict()
    for key, tensor in small.items():
        if key == "token_embedding.weight":
            state[key][: len(vocabulary)] = tensor[torch.tensor(list(vocabulary))]
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
        if key not in small and key.rsplit(".", 2)[-2] in ("out_proj", "c_proj"):
            tensor.zero_()
    model.load_state_dict(state)


def pad(rows):
    """(ids [B,L], eot [B]) of token id lists; L is the longest one rounded up to 16, so that few shapes get
    compiled.
    """
    ids = torch.zeros(len(rows), -(-max(map(len, rows)) // 16) * 16, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    return ids, torch.tensor([len(r) - 1 for r in rows])


def encode_text(model, ids, eot):
    """Normalised features; only the first L positions are computed."""
    length = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x[torch.arange(len(ids)), eot])
    return F.normalize((x @ model.text_projection).float(), dim=-1)


def encode_image(model, images):
    return F.normalize(model.visual(images).float(), dim=-1)


@contextlib.contextmanager
def fast_cpu():
    """bfloat16 autocast and plain attention: on a CPU the fused kernel's backward is slower for such short
    sequences.
    """
    with torch.autocast("cpu", torch.bfloat16), sdpa_kernel([SDPBackend.MATH]):
        yield


def contrastive_loss(image, text, fits, scale):
    """Cross-entropy in both directions; the target of a row is uniform over the entries of `fits` [B,B]."""
    logits = scale * image @ text.T
    fits = fits.float()
    rows, columns = fits / fits.sum(1, keepdim=True), fits / fits.sum(0, keepdim=True)
    return -0.5 * ((rows * logits.log_softmax(1)).sum(1).mean() + (columns * logits.log_softmax(0)).sum(0).mean())


def can_flip(concept):
    words = set(concept.name.replace("-", " ").split())
    return not (
        words & {"left", "right", "leftwards", "rightwards", "facing"}
        or concept.kind in ("letter or number", "button or arrow", "clock")
    )


# ---- evaluation on the held-out style --------------------------------------------------------------------


@torch.no_grad()
def evaluate(model, captions, pixels, pictures):
    """Zero-shot results on held-out pictures, in percent: class accuracy and recall of names and of full
    captions.
    """
    model.eval()
    with fast_cpu():
        images = torch.cat([encode_image(model, (p.float() / 255 - MEAN) / STD) for p in pixels.split(512)])

        def text(sentences):
            rows = [captions.tokens(s) for s in sentences]
            return torch.cat([encode_text(model, *pad(rows[i : i + 256])) for i in range(0, len(rows), 256)])

        names = list(emoji.CLASS_NAMES)  # the category words of the captions
        classes = F.normalize(sum(text([t.format(n) for n in names]) for t in PHOTO[:2]), dim=-1)
        label = torch.tensor([names.index(p.concept.kind) if p.concept.kind else -1 for p in pictures])
        base = torch.tensor([p.tone is None for p in pictures])
        test = torch.tensor([p.concept.split == "test" for p in pictures])
        chosen = base & test & (label >= 0)
        accuracy = ((images @ classes.T).argmax(1) == label)[chosen].float().mean()
        result = {"class_accuracy": accuracy}
        concept_text = text([p.concept.name for p, keep in zip(pictures, base) if keep])
        full_text = text([emoji.caption(p) for p, keep in zip(pictures, test) if keep])
        for kind, feature, target in (
            ("name", images[base], concept_text),
            ("caption", images[test], full_text),
        ):
            for direction, similarity in (("i2t", feature @ target.T), ("t2i", target @ feature.T)):
                rank = (similarity > similarity.diagonal()[:, None]).sum(1)
                for k in (1, 10):
                    result[f"{kind}_{direction}_r{k}"] = (rank < k).float().mean()
    model.train()
    return {k: round(100 * v.item(), 2) for k, v in result.items()}


# ---- export ----------------------------------------------------------------------------------------------


def export(model, vocabulary, path):
    """Write fp16 tensors under OpenAI's names as <path>.safetensors.xz; rows of words never met are one
    constant vector.
    """
    from safetensors.torch import save

    state = {k: v.detach().clone() for k, v in model.state_dict().items() if k != "attn_mask"}
    small = state["token_embedding.weight"]
    table = small.mean(0).expand(49408, -1).clone()
    table[torch.tensor(list(vocabulary))] = small[: len(vocabulary)]
    state["token_embedding.weight"] = table
    data = lzma.compress(save({k: v.half().contiguous() for k, v in sorted(state.items())}), preset=6)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    return {
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "parameters": sum(v.numel() for v in state.values()),
        "parameters_without_token_table": sum(v.numel() for v in state.values()) - table.numel(),
    }


def learning_rate(step, recipe):
    if step < recipe["warmup"]:
        return recipe["lr"] * (step + 1) / recipe["warmup"]
    done = (step - recipe["warmup"]) / (recipe["iterations"] - recipe["warmup"])
    return recipe["lr"] * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Sampler:
    """Endless batches that are balanced over (concept, style); half of a concept's draws are toned where
    tones exist.
    """

    def __init__(self, seed):
        self.rng, self.order = random.Random(seed), []
        self.pairs = [(c, s) for c in emoji.concepts() for s in TRAIN_STYLES]

    def batch(self, size):
        chosen = []
        while len(chosen) < size:
            if not self.order:
                self.order = self.rng.sample(self.pairs, len(self.pairs))
            concept, style = self.order.pop()
            toned = concept.tones and self.rng.random() < 0.5
            chosen.append(emoji.Picture(concept, style, self.rng.choice(list(concept.tones)) if toned else None))
        return chosen


def optimiser_for(model, recipe):
    decay = [p for n, p in model.named_parameters() if p.ndim > 1 and "embedding" not in n]
    rest = [p for n, p in model.named_parameters() if not (p.ndim > 1 and "embedding" not in n)]
    return torch.optim.AdamW(
        [{"params": decay, "weight_decay": recipe["weight_decay"]}, {"params": rest, "weight_decay": 0.0}],
        lr=recipe["lr"],
        betas=(0.9, 0.98),
        eps=1e-6,
    )


def train(name, recipe, out, log, save_every, compiled):
    torch.manual_seed(recipe["seed"])
    generator, rng = torch.Generator().manual_seed(recipe["seed"]), random.Random(recipe["seed"])
    seen = [p for s in TRAIN_STYLES for p in emoji.pictures(s, twins=True)]
    held_out = emoji.pictures(emoji.HELD_OUT)
    pixels, held_out_pixels = load_pixels(seen), load_pixels(held_out)
    row = {p.key: i for i, p in enumerate(seen)}
    templates = (*PHOTO, *PROMPTSRC_TEMPLATES) if recipe["more_templates"] else PHOTO
    captions, sampler = Captions(templates), Sampler(recipe["seed"])
    captions.fill(seen + held_out)
    model = build(name, len(captions.vocabulary) + 64, recipe["patch_dropout"])
    if recipe["grow_from"]:
        grow(model, captions.vocabulary, MODELS / f"{recipe['grow_from']}.safetensors.xz")
    average = copy.deepcopy(model)
    image_tower, text_tower = (torch.compile(f, dynamic=False) if compiled else f for f in (encode_image, encode_text))
    optimiser, start, running = optimiser_for(model, recipe), time.time(), None
    record = {
        "name": name,
        "recipe": recipe,
        "train_styles": TRAIN_STYLES,
        "held_out": emoji.HELD_OUT,
        "torch": torch.__version__,
        "curve": [],
    }
    for step in range(recipe["stop"]):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, recipe)
        batch = sampler.batch(recipe["batch"])
        drawn = [captions.draw(p, rng) for p in batch]
        keys = [captions.keys(p) for p in batch]
        fits = torch.tensor([[key in own for _, key in drawn] for own in keys])
        images = augment(
            pixels[[row[p.key] for p in batch]], torch.tensor([can_flip(p.concept) for p in batch]), generator
        )
        with fast_cpu():
            image = image_tower(model, images)
            text = text_tower(model, *pad([captions.tokens(t) for t, _ in drawn]))
        loss = contrastive_loss(image, text, fits, model.logit_scale.exp())
        if not torch.isfinite(loss):
            raise RuntimeError(f"the loss is {loss.item()} at iteration {step}: lower the learning rate")
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            keep = min(recipe["ema"], (step + 1) / (step + 20))
            for a, b in zip(average.parameters(), model.parameters()):
                a.lerp_(b, 1 - keep)
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        last = step + 1 == recipe["stop"]
        if (step + 1) % 100 == 0 or last:
            point = {"iteration": step + 1, "seconds": round(time.time() - start), "loss": round(running, 3)}
            if (step + 1) % save_every == 0 or last:
                point.update(evaluate(average, captions, held_out_pixels, held_out))
                record["file"] = export(average, captions.vocabulary, out)
            record["curve"].append(point)
            log.write_text(json.dumps(record, indent=1) + "\n")
            print(json.dumps(point), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--iterations", type=int)
    parser.add_argument(
        "--no-compile", action="store_true", help="without torch.compile (needs a C++ compiler): 1.7x slower"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=400)
    parser.add_argument("--out", type=Path, help="default: dassl_prompts/assets/models/<name>.safetensors.xz")
    parser.add_argument("--log", type=Path, help="default: beside the weights, <name>.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    recipe = dict(RECIPES[args.name])
    if args.iterations:
        recipe["iterations"] = recipe["stop"] = args.iterations
    out, log = args.out or MODELS / f"{args.name}.safetensors.xz", args.log or MODELS / f"{args.name}.json"
    train(args.name, recipe, out, log, args.save_every, not args.no_compile)


if __name__ == "__main__":
    main()
