"""What all few-shot retrieval methods share as Dassl trainers: captions, frozen features, one step, the test
both ways.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dassl_prompts.captions.data import CaptionDatum, CaptionWrapper
from dassl_prompts.captions.evaluation import Retrieval
from dassl_prompts.captions.features import encode_sorted
from dassl_prompts.captions.gallery import NEGATIVE_KINDS
from dassl_prompts.captions.losses import DIRECTIONS, contrastive
from dassl_prompts.captions.negatives import given_negatives
from dassl_prompts.classification.prompted import normalize
from dassl_prompts.classification.trainer import ClassificationTrainer, method_node
from dassl_prompts.engine import DataManager, build_transform, distributed

#: transforms that give the same picture every time
FIXED_TRANSFORMS = ("normalize", "center_crop", "instance_norm")


class CaptionTexts:
    """Texts, and their token ids behind the prompt slots (``prompts``) and without them (``raw``).

    Args:
        texts: captions.
        model: whose :meth:`tokenize` counts the slots.
    """

    def __init__(self, texts: list[str], model):
        self.texts = texts
        self.prompts = model.tokenize(texts)
        self.raw = model.clip.text.prompts_from_texts(texts, truncate=True) if model.n_ctx else self.prompts


class Captions(CaptionTexts):
    """The captions of one split: texts, token ids behind the prompt slots, ids of pairs that match, labels, images.

    ``image [M]`` counts the distinct images from 0, ``first [N]`` is the first caption of each. ``groups [M]`` are
    ids of captions with equal texts or of one image: each describes the images of the others.

    Args:
        items: the split's data.
        model: whose :meth:`tokenize` counts the slots.
        device: where the ids live.
    """

    def __init__(self, items: list[CaptionDatum], model, device):
        super().__init__([item.caption for item in items], model)
        self.labels = torch.tensor([item.label for item in items], device=device)
        paths = [item.impath for item in items]
        number = {path: i for i, path in enumerate(dict.fromkeys(paths))}
        self.image = torch.tensor([number[path] for path in paths], device=device)
        first = {path: i for i, path in reversed(list(enumerate(paths)))}
        self.first = torch.tensor([first[path] for path in number], device=device)
        self.groups = torch.tensor(linked(self.texts, paths), device=device)


class AnnotatedNegatives(CaptionTexts):
    """The negative captions of a split's records: distinct texts, and what each pair of captions is.

    ``place [K]`` is a negative's text, ``caption [K]`` the item that it stands against, ``kind [K]`` an index into
    ``NEGATIVE_KINDS``: another category where it names a class that the caption does not, else other attributes.
    """

    def __init__(self, items: list[CaptionDatum], classnames: Sequence[str], model):
        own, place, caption, kind = (NEGATIVE_KINDS.index("attributes"), [], [], [])
        number: dict[str, int] = {}
        for index, item in enumerate(items):
            for text, label in given_negatives(item.caption, item.negatives, item.label, classnames):
                place.append(number.setdefault(text, len(number)))
                caption.append(index)
                kind.append(own if label == item.label else NEGATIVE_KINDS.index("category"))
        super().__init__(list(number), model)
        self.place, self.caption, self.kind = (torch.tensor(x) for x in (place, caption, kind))


def linked(*keys: Sequence[str]) -> list[int]:
    """For every item the first one that it is linked to by an equal key, directly or through others."""
    root = list(range(len(keys[0])))

    def find(i: int) -> int:
        while root[i] != i:
            i = root[i]
        return i

    for values in keys:
        seen: dict[str, int] = {}
        for i, value in enumerate(values):
            one, other = sorted((find(i), find(seen.setdefault(value, i))))
            root[other] = one
    return [find(i) for i in range(len(root))]


class RetrievalTrainer(ClassificationTrainer):
    """Trains a :class:`~dassl_prompts.captions.model.RetrievalModel` on captioned images.

    A method sets ``config_node`` and implements ``build_net``; its node has ``PREC`` and ``LOSS.DIRECTION``,
    ``LOSS.DEDUP``. Features of frozen towers are computed once per run. The test encodes every caption once,
    without looking at images.

    Raises:
        ValueError: the dataset has no captions, or ``TEST.EVALUATOR`` is not ``Retrieval``.
    """

    # -- set-up ----------------------------------------------------------------------------------------------

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.TEST.EVALUATOR != Retrieval.__name__:
            raise ValueError(
                f"TEST.EVALUATOR is {cfg.TEST.EVALUATOR!r}: {cfg.TRAINER.NAME} is measured with "
                "TEST.EVALUATOR Retrieval"
            )
        loss = method_node(cfg, self.config_node).get("LOSS", {})
        if loss and loss.DIRECTION not in DIRECTIONS:
            raise ValueError(
                f"TRAINER.{self.config_node}.LOSS.DIRECTION is {loss.DIRECTION!r}; choose one of "
                f"{', '.join(DIRECTIONS)}"
            )

    def build_data_loader(self):
        cfg = self.cfg
        test = build_transform(cfg, is_train=False)
        self.images_are_fixed = all(name in FIXED_TRANSFORMS for name in cfg.INPUT.TRANSFORMS)
        # Dassl's training transform without a random crop squeezes the picture; captions describe the whole
        # of it
        train = test if self.images_are_fixed else None
        self.use_data_manager(DataManager(cfg, train, test, dataset_wrapper=CaptionWrapper))
        if not isinstance(self.dm.dataset.train_x[0], CaptionDatum):
            raise ValueError(f"dataset {cfg.DATASET.NAME} has no captions: {cfg.TRAINER.NAME} needs one such as FDRD")

    def build_model(self):
        super().build_model()
        data = self.dm.dataset
        self.items = {
            split: items for split, items in (("train", data.train_x), ("val", data.val), ("test", data.test)) if items
        }
        self.captions: dict[str, CaptionTexts] = {
            split: Captions(items, self.model, self.device) for split, items in self.items.items()
        }
        for split, captions in self.captions.items():
            if captions.prompts.truncated:
                print(
                    f"{captions.prompts.truncated} of {len(captions.texts)} {split} captions are too long "
                    "and were cut (EOT kept)"
                )
        self.train_loader_x.dataset.tokens = self.captions["train"].prompts.tokens.cpu()
        self._frozen: dict[str, Tensor] = {}
        self.trains_on_features = self.images_are_fixed and self.model.image_side_is_frozen
        self.train_loader_x.dataset.load_images = not self.trains_on_features

    # -- features of frozen towers, computed once ------------------------------------------------------------

    def frozen_images(self, split: str = "train") -> Tensor:
        """Normalised features ``[N, E]`` of the frozen image tower, un-augmented."""
        return self._once(
            f"images {split}",
            lambda: self.over_images(split, lambda x: normalize(self.model.clip.encode_image(x))),
        )

    def frozen_captions(self, split: str = "train") -> Tensor:
        """Normalised features ``[N, E]`` of the raw captions."""
        raw, text = self.captions[split].raw, self.model.clip.text
        return self._once(
            f"captions {split}", lambda: self.encode_sorted(raw.eot, lambda i: normalize(text(raw.select(i))))
        )

    def _once(self, name: str, compute) -> Tensor:
        if name not in self._frozen:
            self._frozen[name] = compute()
        return self._frozen[name]

    @torch.no_grad()
    def over_images(self, split: str, encode) -> Tensor:
        """``encode(images)`` over the un-augmented images of a split, in the order of its items."""
        from tqdm import tqdm

        out = []
        for batch in tqdm(self.image_loader(split), desc=f"images of the {split} set", leave=False):
            with self.autocast(), distributed.sharded():
                out.append(encode(batch["img"].to(self.device)))
        return torch.cat(out)

    def image_loader(self, split: str):
        """A loader over the images of a split, in order and un-augmented."""
        if split != "train":
            return self.choose_split(split)[1]
        reference = self.test_loader
        data = CaptionWrapper(self.cfg, self.dm.dataset.train_x, transform=reference.dataset.transform)
        return torch.utils.data.DataLoader(
            data, batch_size=reference.batch_size, num_workers=self.cfg.DATALOADER.NUM_WORKERS
        )

    def encode_sorted(self, lengths: Tensor, encode) -> Tensor:
        """Like :func:`~dassl_prompts.captions.features.encode_sorted`, in the run's precision."""
        with self.autocast(), distributed.sharded():
            return encode_sorted(lengths, encode, self.cfg.DATALOADER.TEST.BATCH_SIZE)

    # -- training --------------------------------------------------------------------------------------------

    def before_train(self):
        super().before_train()
        # here and not at the first batch: loaders draw from the random streams that a resumed run has to
        # continue
        self.prepare_training()

    def prepare_training(self) -> None:
        """Compute what stays the same for the whole training."""
        if self.trains_on_features:
            self.frozen_images()

    def parse_batch_train(self, batch):
        """Images (or, where the image tower stays frozen, their features) and the indices of the pairs."""
        index = batch["index"].to(self.device)
        images = self.frozen_images()[index] if self.trains_on_features else batch["img"].to(self.device)
        return images, index

    def encode_pair(self, images: Tensor, index: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalised image and caption features ``[B, E]`` of the training pairs ``index``."""
        model, prompts = self.model, self.model.emit()
        u = images if self.trains_on_features else model.encode_images(images, prompts)
        if prompts.text is None and weights is None:
            return model.refine_images(u), self.frozen_captions()[index]
        return model.refine_images(u), model.encode_captions(
            self.captions["train"].prompts.select(index), prompts, weights
        )

    def contrast(self, u: Tensor, z: Tensor, index: Tensor) -> Tensor:
        """L_con of a batch, as ``LOSS.DIRECTION`` and ``LOSS.DEDUP`` say."""
        node = method_node(self.cfg, self.config_node).LOSS
        groups = self.captions["train"].groups[index] if node.DEDUP else None
        return contrastive(u, z, self.model.scale, groups, node.DIRECTION)

    def loss(self, images: Tensor, index: Tensor) -> dict[str, Tensor]:
        return {"loss": self.contrast(*self.encode_pair(images, index), index)}

    # -- test ------------------------------------------------------------------------------------------------

    def image_features(self, split: str) -> Tensor:
        """Normalised ``[N, E]`` with the learned prompts."""
        model, prompts = self.model, self.model.emit()
        if not prompts.has_vision:
            return model.refine_images(self.frozen_images(split))
        return self.over_images(split, lambda x: model.refine_images(model.encode_images(x, prompts)))

    def text_features(self, split: str) -> Tensor:
        """Normalised ``[M, E]``: each caption by itself, no image in sight."""
        model, prompts, captions = self.model, self.model.emit(), self.captions[split].prompts
        if prompts.text is None:
            return self.frozen_captions(split)
        return self.encode_sorted(captions.eot, lambda i: model.encode_captions(captions.select(i), prompts))

    def negatives(self, split: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Features of the split's annotated negative captions and what they are, as the evaluator takes them; nothing where
        the records have none.
        """
        items, name = self.items[split], f"{split} negatives"
        if not any(item.negatives for item in items):
            return {}, {}
        if name not in self.captions:  # captions like others to text_features and the store of frozen features
            names = self.dm.dataset.lab2cname
            self.captions[name] = AnnotatedNegatives(items, [names[i] for i in sorted(names)], self.model)
        found = self.captions[name]
        features = self.text_features(name)[found.place.to(self.device)]
        return {"negative": features}, {"negative_caption": found.caption, "negative_kind": found.kind}

    def reranker(self, split: str, images: Tensor):
        """``(R, score)`` to order the first R candidates anew, or None."""
        return None

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Rank all images and captions of ``split`` both ways; results go to results.json.

        Returns:
            mean R@1 of both directions.

        Raises:
            FloatingPointError: NaN among the features; names side and split.
        """
        with self.folder.lock():
            self.folder.check_owner()
            self.set_model_mode("eval")
            split, _ = self.choose_split(split)
            print(f"Evaluate on the *{split}* set")
            negatives, against = self.negatives(split)
            features = {"image": self.image_features(split), "text": self.text_features(split), **negatives}
            for side, values in features.items():
                if values.isnan().any():
                    raise FloatingPointError(f"NaN among the {side} features of the {split} set")
            captions = self.captions[split]
            self.evaluator.reset()
            first = captions.first  # an image that has several captions is one of the gallery
            self.evaluator.process(
                {**features, "image": features["image"][first]},
                {"label": captions.labels[first], "caption": captions.texts, "image": captions.image, **against},
            )
            if rerank := self.reranker(split, features["image"]):
                size, score = rerank
                self.evaluator.rerank = size, lambda image, text: score(first[image], text)
            results = self.evaluator.evaluate()
            self.evaluator.save(split)
            return self.record(split, results)
