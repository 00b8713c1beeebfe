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
import copy
import json
import math
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent))
from clip_training import (
    MEAN,
    MODELS,
    STD,
    Vocabulary,
    build,
    check_finite,
    contrastive_loss,
    cosine,
    encode_image,
    encode_text,
    export,
    fast_cpu,
    jitter,
    pad,
    parameter_groups,
    random_affine,
    start_from,
)

from dassl_prompts.classification.templates import PROMPTSRC_TEMPLATES
from dassl_prompts.emoji import archives as emoji
from dassl_prompts.images import read_image

TRAIN_STYLES = tuple(s for s in emoji.STYLES if s != emoji.HELD_OUT)

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
        words = Vocabulary()
        self.templates = templates  # for captions that name the class
        self.tokens, self.vocabulary = words.tokens, words.ids

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
    images = pixels.float() / 255
    grid = F.affine_grid(random_affine(len(images), flip, generator), images.shape, align_corners=False)
    images = 1 - F.grid_sample(1 - images, grid, align_corners=False)
    return jitter(images, generator)


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


def learning_rate(step, recipe):
    if step < recipe["warmup"]:
        return recipe["lr"] * (step + 1) / recipe["warmup"]
    done = (step - recipe["warmup"]) / (recipe["iterations"] - recipe["warmup"])
    return recipe["lr"] * cosine(done)


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
        start_from(model, captions.vocabulary, MODELS / f"{recipe['grow_from']}.safetensors.xz")
    average = copy.deepcopy(model)
    image_tower, text_tower = (torch.compile(f, dynamic=False) if compiled else f for f in (encode_image, encode_text))
    optimiser, start, running = (
        torch.optim.AdamW(
            parameter_groups(model, recipe["weight_decay"]), lr=recipe["lr"], betas=(0.9, 0.98), eps=1e-6
        ),
        time.time(),
        None,
    )
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
        check_finite(loss, step)
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
