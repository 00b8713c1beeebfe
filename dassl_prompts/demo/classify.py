"""One picture and a trained run: the likeliest classes, DPC's two prompts side by side, what the method looked at."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dassl_prompts.predict.run import TrainedRun, load_run, read_config, read_results
from dassl_prompts.ranking.exact import ordered_topk

#: sets of class names that are kept ready for questions, the least recently used go first
KEPT = 4
#: class names, and letters of one, that a question may give
MAX_CLASSES, MAX_NAME = 500, 200
#: names of the two prompts of DPC in answers, by the task that uses them
DPC_VIEWS = {"base": "prompt of base classes", "new": "prompt of new classes"}


class Classifier:
    """A trained run by its folder; may be used by several threads.

    Attributes:
        name: of the method, with folder. trained: the classes of the training (DCAR: none). retrieves: classes are sentences.
    """

    def __init__(self, folder: str | Path):
        results = read_results(Path(folder))
        self.folder, self.method = Path(folder), results["trainer"]
        self.name = f"{self.method} {self.folder.name}"
        self.retrieves = self.method == "DCAR"
        self.trained = [] if self.retrieves else [name.replace("_", " ") for name in results["classnames"]]
        self.kept: OrderedDict[tuple[str, ...], Any] = OrderedDict()
        self.lock = threading.Lock()

    def check(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Class names as they are used, those of the training where none are given.

        Raises:
            ValueError: too many, one too long, one twice, or none at all.
        """
        names = tuple(name.strip().replace("_", " ") for name in classes if name.strip()) or tuple(self.trained)
        if not names:
            raise ValueError(f"{self.name} compares pictures with sentences: give some as classes")
        if len(names) > max(MAX_CLASSES, len(self.trained)):
            raise ValueError(f"{len(names):,} classes were given, the limit is {MAX_CLASSES}")
        if len(set(names)) < len(names):
            raise ValueError("a class name was given twice")
        if any(len(name) > MAX_NAME for name in names):
            raise ValueError(f"a class name has more than {MAX_NAME} letters")
        return names

    def run_of(self, names: tuple[str, ...]) -> Any:
        """The run with these classes; under the lock."""
        run = self.kept.pop(names, None)
        if run is None:
            run = load_sentences(self.folder, names) if self.retrieves else load_run(self.folder, list(names))
        self.kept[names] = run
        if len(self.kept) > KEPT:
            self.kept.popitem(last=False)
        return run

    def answer(self, picture: Image.Image, classes: Sequence[str] = (), top: int = 5) -> dict[str, Any]:
        """The likeliest classes: ``{"run", "classes", "answers": {view: [{"rank", "label", "score"}]}, "words"}``.

        One view, ``prediction``; of DPC also those of its two prompts. ``words``: of DCAR, the weight of every word of the
        likeliest sentences.

        Raises:
            ValueError: class names or ``top`` cannot be.
        """
        names = self.check(classes)
        if not 1 <= top <= MAX_CLASSES:
            raise ValueError(f"top is {top}; ask for 1 to {MAX_CLASSES} classes")
        with self.lock:
            run = self.run_of(names)
            views = {"prediction": run.scores([picture])[0]}
            if self.method.startswith("DPC_"):
                views |= self.dpc_views(run, picture)
            found = {view: self.ranked(scores, names, top) for view, scores in views.items()}
            words = run.words(picture, [row["label"] for row in found["prediction"]]) if self.retrieves else None
        return {"run": self.name, "classes": len(names), "answers": found, "words": words}

    @staticmethod
    def ranked(scores: torch.Tensor, names: Sequence[str], top: int) -> list[dict[str, Any]]:
        values, indices = ordered_topk(scores, min(top, len(names)))
        pairs = zip(indices.tolist(), values.tolist())
        return [{"rank": r, "label": names[i], "score": round(s, 6)} for r, (i, s) in enumerate(pairs, 1)]

    @staticmethod
    def dpc_views(run: TrainedRun, picture: Image.Image) -> dict[str, torch.Tensor]:
        """Scores of all classes under the prompt of base classes, and under that of new ones."""
        before, views = run.model.task, {}
        try:
            for run.model.task, view in DPC_VIEWS.items():
                views[view] = run.scores([picture])[0]
        finally:
            run.model.task = before
        return views

    def sheet(self, picture: Image.Image, classes: Sequence[str] = ()) -> Image.Image | None:
        """What the attribute prompts of AttriPrompt looked at; None for other methods, and without retrieval."""
        if self.method != "AttriPrompt":
            return None
        from dassl_prompts.trainers.attriprompt.sheet import draw, sightings

        with self.lock:
            run = self.run_of(self.check(classes))
            if run.model.static:
                return None
            pixels = run.transform(picture)[None]
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (run.cfg.INPUT.PIXEL_MEAN, run.cfg.INPUT.PIXEL_STD))
            shown = pixels * std + mean if "normalize" in run.cfg.INPUT.TRANSFORMS else pixels
            found = sightings(run.model, pixels, shown, run.model.depth - 1)
        return draw(found, f"text layer {run.model.depth}: {len(found)} prompts retrieved", 8, 1)


class Sentences:
    """A run of DCAR with sentences in the place of classes."""

    def __init__(self, model, cfg, names: Sequence[str]):
        from dassl_prompts.engine import build_transform
        from dassl_prompts.trainers.dcar.reweighting import TokenReweighter

        self.model, self.names = model, list(names)
        self.transform = build_transform(cfg, is_train=False)
        self.reweighter = TokenReweighter(model.clip, cfg.TRAINER.DCAR.DTR, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)

    @property
    def device(self):
        return self.model.clip.logit_scale.device

    def pixels(self, picture: Image.Image) -> torch.Tensor:
        return self.transform(picture)[None].to(self.device)

    @torch.no_grad()
    def scores(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Probabilities [B, sentences], as of classes."""
        pixels = torch.cat([self.pixels(picture) for picture in pictures])
        images, texts = self.model(pixels, self.model.tokenize(self.names))
        return (self.model.scale * images.float() @ texts.float().T).softmax(1).cpu()

    @torch.no_grad()
    def words(self, picture: Image.Image, sentences: Sequence[str]) -> list[dict[str, Any]]:
        """The tokens of sentences with their weights for this picture, 1 where a word counts as without them."""
        clip = self.model.clip
        captions = clip.text.prompts_from_texts(list(sentences), truncate=True)
        weights = self.reweighter.pair_weights(
            captions, self.reweighter.image_features(self.pixels(picture)).expand(len(sentences), -1)
        )
        rows = []
        for sentence, ids, row, content in zip(
            sentences, self.reweighter.ids(captions), weights, self.reweighter.content(captions)
        ):
            pairs = [
                {"word": clip.text.tokenizer.decode([token]).strip(), "weight": round(weight, 3)}
                for token, weight, is_word in zip(ids.tolist(), row.tolist(), content.tolist())
                if is_word
            ]
            rows.append({"sentence": sentence, "words": pairs})
        return rows


def load_sentences(folder: Path, names: Sequence[str]) -> Sentences:
    """A run of DCAR; see :class:`Sentences`."""
    import dassl_prompts

    cfg = read_config(read_results(folder)["config"], str(folder / "results.json"))
    return Sentences(dassl_prompts.build_model(cfg, [], str(folder)), cfg, names)
