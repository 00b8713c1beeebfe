"""Train the open backbones on permissively licensed drawings with names (docs/open_backbones.md).

    python tools/build_drawings.py --cache DIR
    python tools/train_open_clip.py open-tiny --cache DIR                 # as many iterations as the recipe says
    python tools/train_open_clip.py open-tiny --cache DIR --minutes 60    # as many as fit; the log records how many

One file: a script with its recipe, read from top to bottom. Four stages, each resumed from its checkpoint in DIR/<name> after an interruption:

1. vision: the image tower against sentence features of the names behind a small learned map, so that every picture is
   contrasted with thousands of names and not one caption has to be encoded;
2. text: the text tower learns to say the same with CLIP's tokens, from captions of pictures (whose features are kept) and from
   the mapped sentence features of names and of common words that no drawing has;
3. joint: both towers together, on captions that also name the looks of a drawing;
4. further: more of the same, at twice the rate and batch.

Writes dassl_prompts/assets/models/<name>.safetensors.xz and beside it <name>.json: recipe, seed, hashes, curve, hours.
"""

from __future__ import annotations

import argparse
import json
import math
import socket
import sys
import time
from collections import Counter
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from dassl_prompts.ranking.exact import ordered_topk

sys.path.insert(0, str(Path(__file__).resolve().parent))
import clip_training as clip
from drawings import LONG, LOOKS, SHORT, Drawings
from sentence_features import WheelError, cached_features, common_words, fetch_wheel

RECIPES = {
    "open-tiny": {
        "vision": {"iterations": 2368, "batch": 384, "lr": 1.5e-3, "negatives": 1536, "share": 0.4},
        "text": {"iterations": 482, "batch": 768, "lr": 1.5e-3, "share": 0.12},
        "joint": {"iterations": 500, "batch": 384, "lr": 5e-4, "share": 0.15},
        "further": {"iterations": 442, "batch": 768, "lr": 1e-3, "share": 0.33},
        "weight_decay": 0.1,
        "warmup": 0.04,
        "patch_dropout": 0.0,
        "start_from": None,
        "words": 8000,
        "seed": 1,
        "workers": 2,
    },
}
RECIPES["open-base"] = {**RECIPES["open-tiny"], "patch_dropout": 0.5, "start_from": "open-tiny"}
STAGES = ("vision", "text", "joint", "further")


class NameHead(torch.nn.Module):
    """Sentence features [B,384] -> joint space [B,D] of unit length: a linear map and a small correction."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = torch.nn.Linear(384, dim)
        self.correction = torch.nn.Sequential(torch.nn.Linear(384, 512), torch.nn.GELU(), torch.nn.Linear(512, dim))

    def forward(self, features):
        return F.normalize(self.linear(features) + self.correction(features), dim=-1)


class Run:
    """What the stages share: data, model, the name head, random numbers, the record.

    Several workers of one thread each hold the same model and average their gradients, each on batches of its own: on a
    busy machine two threads of one process wait for each other at every operation, two workers only once per iteration.
    """

    def __init__(self, name: str, cache: Path, recipe: dict, minutes: float | None, worker: int = 0):
        self.name, self.recipe, self.minutes, self.worker, self.folder = name, recipe, minutes, worker, cache / name
        self.workers = dist.get_world_size() if dist.is_initialized() else 1
        self.folder.mkdir(exist_ok=True)
        torch.manual_seed(recipe["seed"])
        self.drawings = Drawings(cache / "drawings")
        self.vocabulary = clip.Vocabulary()
        words = common_words(fetch_wheel(cache), self.vocabulary.tokenizer.encode, recipe["words"])
        known = set(self.drawings.sentences)
        self.sentences = self.drawings.sentences + [w for w in words if w not in known]
        self.targets = torch.from_numpy(cached_features(cache, self.sentences))
        for text in (*self.sentences, *(t.format("") for t in (*SHORT, *LONG, *sum(LOOKS.values(), ())))):
            self.vocabulary.tokens(text.strip())
        self.model = clip.build(name, len(self.vocabulary.ids), recipe["patch_dropout"])
        self.head = NameHead(self.model.visual.output_dim)
        if recipe["start_from"]:
            self.start_from(clip.MODELS / f"{recipe['start_from']}.safetensors.xz")
        else:
            self.start_fresh()
        self.record = {
            "name": name,
            "recipe": recipe,
            "torch": torch.__version__,
            "drawings": len(self.drawings),
            "sentences": len(known),
            "common_words": len(self.sentences) - len(known),
            "tokens": len(self.vocabulary.ids),
            "stages": {},
            "curve": [],
        }

    def single_tokens(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(rows of the token table, ids of sentences) of the sentences that are one token."""
        single = {rows[1]: i for i, s in enumerate(self.sentences) if len(rows := self.vocabulary.tokens(s)) == 3}
        return torch.tensor(list(single)), torch.tensor(list(single.values()))

    @torch.no_grad()
    def start_fresh(self) -> None:
        """Start from random towers; only words begin where they belong.

        Token vectors of whole words and the map of names into the joint space begin as the leading directions in which
        the sentence features differ, so that words of like meaning begin side by side.
        """
        features = self.targets.float()
        mean = features.mean(0)
        values, vectors = torch.linalg.eigh((features - mean).T @ (features - mean) / len(features))
        spread, directions = values.flip(0).clamp(min=1e-6).sqrt(), vectors.flip(1).T  # rows, the leading one first
        table, head = self.model.token_embedding.weight, self.head.linear
        rows, sentences = self.single_tokens()
        width = table.shape[1]
        table[rows] = table.std() * (features[sentences] - mean) @ (directions / spread[:, None])[:width].T
        head.weight.copy_(directions[: head.out_features])
        head.bias.copy_(-head.weight @ mean)
        self.correct_nothing()

    def correct_nothing(self) -> None:
        """The name head begins as its linear map."""
        for parameter in self.head.correction[-1].parameters():
            parameter.data.zero_()

    @torch.no_grad()
    def start_from(self, path: Path) -> None:
        """Start from a smaller vocabulary: its towers, and two linear maps from sentence features, fitted on what it knows.

        One gives words that it never met their place among its token vectors, the other names theirs in its joint space.
        """
        met = clip.start_from(self.model, self.vocabulary.ids, path)
        table, features = self.model.token_embedding.weight, self.targets.float()
        row, sentence = self.single_tokens()
        known = met[row]
        weight, bias = clip.ridge(features[sentence[known]], table[row[known]])
        table[row[~known]] = features[sentence[~known]] @ weight.T + bias
        readable = [i for i, s in enumerate(self.sentences) if all(met[t] for t in self.vocabulary.tokens(s))][:4000]
        text = torch.cat(
            [
                clip.encode_text(self.model, *self.caption(readable[i : i + 256], ["a photo of a {}."] * 256))
                for i in range(0, len(readable), 256)
            ]
        )
        weight, bias = clip.ridge(features[readable], text)
        self.head.linear.weight.copy_(weight)
        self.head.linear.bias.copy_(bias)
        self.correct_nothing()
        self.model.logit_scale.fill_(math.log(20))  # so many more names deserve less confidence at first

    # -- one stage's loop ----------------------------------------------------------------------------------

    def parameters(self, stage: str) -> list[tuple[str, torch.nn.Parameter]]:
        """The parameters that a stage trains; the others lose their gradient."""
        named = [*self.model.named_parameters(), *((f"head.{n}", p) for n, p in self.head.named_parameters())]
        trained = {
            "vision": lambda n: n.startswith(("visual.", "head.")) or n == "logit_scale",
            "text": lambda n: not n.startswith(("visual.", "head.")),
        }.get(stage, lambda n: not n.startswith("head."))
        for n, p in named:
            p.requires_grad_(trained(n))
        return [(n, p) for n, p in named if trained(n)]

    def optimisers(self, named, rate: float) -> list[torch.optim.Optimizer]:
        """Muon for the matrices of the transformer blocks, AdamW for the rest."""
        blocks = [p for n, p in named if "resblocks" in n and p.ndim == 2]
        rest = [p for n, p in named if not ("resblocks" in n and p.ndim == 2)]
        return [
            torch.optim.Muon(blocks, lr=rate, weight_decay=self.recipe["weight_decay"], adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0),
        ]

    def average(self, parameters) -> None:
        """The mean of the workers' gradients."""
        if self.workers > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(gradients, flat.div_(self.workers).split([g.numel() for g in gradients])):
                gradient.copy_(part.view_as(gradient))

    def agree(self, value: float) -> float:
        """The first worker's value, in all workers."""
        value = torch.tensor([value], dtype=torch.float64)
        if self.workers > 1:
            dist.broadcast(value, 0)
        return value.item()

    def train(self, stage: str, loss_of) -> None:
        """Run a stage to its end, from its checkpoint where there is one; `loss_of(batch)` is its loss."""
        settings, path = self.recipe[stage], self.folder / f"{stage}.pt"
        named = self.parameters(stage)
        optimisers = self.optimisers(named, settings["lr"])
        step, spent, finished = self.resume(path, optimisers)
        if finished:
            return
        self.generator = torch.Generator().manual_seed(1000 * self.recipe["seed"] + 100 * step + self.worker)
        batches = self.drawings.batches(settings["batch"] // self.workers, self.generator)
        budget = self.minutes and self.minutes * 60 * settings["share"]
        started, noted, saved, running = time.time() - spent, time.time(), time.time(), None
        while (done := self.agree((time.time() - started) / budget if budget else step / settings["iterations"])) < 1:
            factor = min(1.0, done / self.recipe["warmup"] + 0.02) * clip.cosine(done)
            for optimiser in optimisers:
                for group in optimiser.param_groups:
                    group["lr"] = settings["lr"] * factor
                optimiser.zero_grad()
            loss = loss_of(next(batches))
            clip.check_finite(loss, step)
            loss.backward()
            self.average([p for _, p in named])
            for optimiser in optimisers:
                optimiser.step()
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, math.log(100))
            step += 1
            running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
            if self.worker == 0 and (step % 20 == 0 or step < 4):
                print(f"{stage} {step} {done:.3f} loss {running:.3f} {time.time() - started:.0f} s", flush=True)
            if self.worker == 0 and time.time() - noted > 900:
                self.note(stage, step, time.time() - started, running)
                noted = time.time()
            if self.worker == 0 and time.time() - saved > 180:
                self.save(path, step, time.time() - started, optimisers)
                saved = time.time()
        spent, pictures = round(time.time() - started), step * settings["batch"]
        self.record["stages"][stage] = {"iterations": step, "seconds": spent, "pictures": pictures}
        if self.worker == 0:
            self.note(stage, step, spent, running)
            self.save(path, step, spent, [])
        self.agree(0)  # the others wait until the checkpoint is there

    def resume(self, path: Path, optimisers) -> tuple[int, float, bool]:
        """(iterations, seconds, whether the stage is finished) of a stage's checkpoint, which is loaded."""
        if not path.exists():
            return 0, 0.0, False
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        self.record = {**json.loads((self.folder / "record.json").read_text()), "recipe": self.recipe}
        for optimiser, saved in zip(optimisers, state["optimisers"]):
            optimiser.load_state_dict(saved)
        return state["step"], state["seconds"], not state["optimisers"]

    def note(self, stage: str, step: int, seconds: float, loss: float | None) -> None:
        """One point of the curve, measured on drawings of the training sets that are never trained on."""
        point = {"stage": stage, "iteration": step, "seconds": round(seconds), "loss": loss and round(loss, 3)}
        point.update(self.validate(stage))
        self.record["curve"].append(point)
        print(json.dumps(point), flush=True)

    def save(self, path: Path, step: int, seconds: float, optimisers) -> None:
        """The stage's checkpoint; without optimisers it counts as finished."""
        state = {"model": self.model.state_dict(), "head": self.head.state_dict(), "step": step, "seconds": seconds}
        state["optimisers"] = [o.state_dict() for o in optimisers]
        temporary = path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(path)
        clip.write_atomically(self.folder / "record.json", (json.dumps(self.record, indent=1) + "\n").encode())

    # -- losses --------------------------------------------------------------------------------------------

    def fits(self, index, sentences):
        """[B,C] two masks: which of the sentences (ids [C]) fit the drawings, and which say nothing about them."""
        own, parts = (t[index][:, :, None] == sentences for t in (self.drawings.own, self.drawings.parts))
        fits = own.any(1)
        return fits, parts.any(1) & ~fits

    def vision_loss(self, index):
        """Pictures against mapped names: those of the batch and random others."""
        chosen = self.drawings.choose_words(index, self.generator)
        others = torch.randint(
            len(self.drawings.sentences), (self.recipe["vision"]["negatives"],), generator=self.generator
        )
        own = chosen.unique()
        candidates = torch.cat([own, others])
        fits, neither = self.fits(index, candidates)
        image = clip.encode_image(self.model, self.drawings.augmented(index, self.generator))
        names = self.head(self.targets[candidates].float())
        logits = (self.model.logit_scale.exp() * image @ names.T).masked_fill(neither, -1e4)
        rows = fits.float() / fits.sum(1, keepdim=True)
        columns = fits[:, : len(own)].float()
        columns = columns / columns.sum(0, keepdim=True)
        to_names = -(rows * logits.log_softmax(1)).sum(1).mean()
        to_images = -(columns * logits[:, : len(own)].log_softmax(0)).sum(0).mean()
        return 0.5 * (to_names + to_images)

    def caption(self, sentences: list[int], templates: list[str]):
        """Padded tokens of the sentences in templates."""
        rows = [self.vocabulary.tokens(t.format(self.sentences[s]))[:32] for s, t in zip(sentences, templates)]
        end = self.vocabulary.tokens("")[-1]
        rows = [row if row[-1] == end else [*row[:-1], end] for row in rows]
        return clip.pad(rows, 8)

    def pick(self, pool: tuple[str, ...], count: int) -> list[str]:
        return [pool[i] for i in torch.randint(len(pool), (count,), generator=self.generator).tolist()]

    def text_loss(self, index):
        """Captions against mapped sentence features: three quarters names, a quarter common words that no drawing has."""
        words = torch.randint(len(self.sentences), (len(index) // 4,), generator=self.generator)
        sentences = torch.cat([self.drawings.choose_words(index[len(words) :], self.generator), words])
        pool = SHORT if torch.rand(1, generator=self.generator) < 0.5 else LONG
        text = clip.encode_text(self.model, *self.caption(sentences.tolist(), self.pick(pool, len(sentences))))
        with torch.no_grad():
            names = self.head(self.targets[sentences].float())
        same = sentences[:, None] == sentences
        loss = clip.contrastive_loss(names, text, same, self.model.logit_scale.exp().detach())
        return loss + 5 * (1 - (names * text).sum(1).mean())

    def joint_loss(self, index):
        """Augmented pictures against captions; half of these name the looks and fit only pictures that look so."""
        chosen = self.drawings.choose_words(index, self.generator)
        looks, named = self.drawings.looks[index], torch.rand(len(index), generator=self.generator) < 0.4
        pools = tuple(LOOKS.values())
        plain = self.pick(SHORT + LONG, len(index))
        templates = [self.pick(pools[k], 1)[0] if n else t for k, n, t in zip(looks.tolist(), named.tolist(), plain)]
        ids, eot = self.caption(chosen.tolist(), templates)
        image = clip.encode_image(self.model, self.drawings.augmented(index, self.generator))
        text = clip.encode_text(self.model, ids, eot)
        with torch.no_grad():
            names = self.head(self.targets[chosen].float())
        fits, _ = self.fits(index, chosen)
        fits &= ~named | (looks[:, None] == looks)
        scale = self.model.logit_scale.exp()
        return clip.contrastive_loss(image, text, fits, scale) + 2 * (1 - (names * text).sum(1).mean())

    further_loss = joint_loss

    # -- validation ----------------------------------------------------------------------------------------

    @torch.no_grad()
    def validate(self, stage: str, pictures: int = 500, distractors: int = 3000) -> dict:
        """Rank of the right name among thousands, in percent, for drawings that are not trained on."""
        index = self.drawings.val[:: max(1, len(self.drawings.val) // pictures)]
        generator = torch.Generator().manual_seed(0)
        others = torch.randint(len(self.drawings.sentences), (distractors,), generator=generator)
        candidates = torch.cat([self.drawings.own[index][:, 0], others]).unique()
        self.model.eval()
        if stage == "vision":
            names = self.head(self.targets[candidates].float())
        else:
            parts = [self.caption(part.tolist(), ["a photo of a {}."] * len(part)) for part in candidates.split(256)]
            names = torch.cat([clip.encode_text(self.model, *part) for part in parts])
        images = torch.cat([clip.encode_image(self.model, self.drawings.plain(part)) for part in index.split(250)])
        self.model.train()
        top = candidates[ordered_topk(images @ names.T, min(10, len(candidates)))[1]]
        hit = (top[:, :, None] == self.drawings.own[index][:, None]).any(2).float()
        return {
            "name_r1": round(100 * hit[:, 0].mean().item(), 2),
            "name_r10": round(100 * hit.amax(1).mean().item(), 2),
        }


def work(worker: int, name: str, cache: Path, recipe: dict, out: Path, minutes: float | None, port: int) -> None:
    """One worker: all stages; the first one writes the weights and the record."""
    torch.set_num_threads(1)
    if recipe["workers"] > 1:
        dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=worker, world_size=recipe["workers"])
    run = Run(name, cache, recipe, minutes, worker)
    for stage in STAGES:
        run.train(stage, getattr(run, f"{stage}_loss"))
    if worker == 0:
        run.record["file"] = clip.export(run.model, run.vocabulary.ids, out)
        meta = json.loads((cache / "drawings" / "drawings.json").read_text(encoding="utf-8"))
        count = Counter(row["set"] for row in meta["drawings"])
        run.record["sets"] = {prefix: {**entry, "drawings": count[prefix]} for prefix, entry in meta["sets"].items()}
        run.record["dropped_as_held_out"] = sum(meta["dropped_as_held_out"].values())
        log = out.with_suffix("").with_suffix(".json")
        clip.write_atomically(log, (json.dumps(run.record, indent=1) + "\n").encode())
    if dist.is_initialized():
        dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--cache", type=Path, required=True, help="folder of tools/build_drawings.py")
    parser.add_argument("--minutes", type=float, help="spend this long instead of the recipe's iterations")
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="default: dassl_prompts/assets/models/<name>.safetensors.xz")
    args = parser.parse_args()
    recipe = {**RECIPES[args.name], "workers": args.workers or RECIPES[args.name]["workers"]}
    out = args.out or clip.MODELS / f"{args.name}.safetensors.xz"
    if not (args.cache / "drawings" / "drawings.json").is_file():
        sys.exit(
            f"error: {args.cache / 'drawings'} holds no drawings: make them with tools/build_drawings.py --cache {args.cache}"
        )
    first = recipe["start_from"] and clip.MODELS / f"{recipe['start_from']}.safetensors.xz"
    if first and not first.is_file():
        sys.exit(f"error: {args.name} starts from {first}, which is missing: train {recipe['start_from']} first")
    try:
        fetch_wheel(args.cache)
    except WheelError as error:
        sys.exit(f"error: {error}")
    rest = (args.name, args.cache, recipe, out, args.minutes, free_port())
    if recipe["workers"] == 1:
        work(0, *rest)
    else:
        torch.multiprocessing.spawn(work, rest, nprocs=recipe["workers"])


if __name__ == "__main__":
    main()
