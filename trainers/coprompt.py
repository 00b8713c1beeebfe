"""CoPrompt: consistency-guided prompt learning (Roy & Etemad, ICLR 2024, arXiv 2306.01195).

MaPLe's prompts and two adapters, held near the frozen CLIP on perturbed inputs: sentences about the classes, a second view of
the images.
"""

from __future__ import annotations

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl_prompts.classification.prompted import normalize
from dassl_prompts.classification.templates import PROMPTSRC_TEMPLATES
from dassl_prompts.engine import add_defaults, read_json, register_trainer
from dassl_prompts.engine.config import one_of
from dassl_prompts.trainers.clip_adapter import Adapter
from dassl_prompts.trainers.ivlp import refuse_unused_prompts
from dassl_prompts.trainers.maple import MaPLe, MaPLeModel

#: registered dataset -> its file in the authors' folder gpt_file
SENTENCE_FILES = {
    "Caltech101": "caltech",
    "DescribableTextures": "dtd",
    "EuroSAT": "eurosat",
    "FGVCAircraft": "fgvc",
    "Food101": "food101",
    "ImageNet": "imagenet",
    "ImageNetA": "imagenet_a",
    "ImageNetR": "imagenet_r",
    "ImageNetSketch": "imagenet_sketch",
    "ImageNetV2": "imagenetv2",
    "OxfordFlowers": "oxford_flowers",
    "OxfordPets": "oxford_pets",
    "StanfordCars": "stanford_cars",
    "SUN397": "sun397",
    "UCF101": "ucf101",
}


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.CoPrompt",
        {
            "N_CTX": 2,  # tokens per layer in either tower
            "CTX_INIT": "a photo of a",  # starts the first text layer; words beyond N_CTX stay as fixed words
            "PREC": "amp",  # fp16, fp32, amp
            "PROMPT_DEPTH": 9,  # layers with own tokens; 1 = shallow
            "IMAGE_ADAPTER": 0.1,  # share of the image adapter's output; a constant of the official code
            "TEXT_ADAPTER": 0.2,  # share of the text adapter's output; likewise
            "SENTENCES": "",  # JSON file {class: [sentences]}, or a folder of such files as in the authors' repository; "" = 60 templates
        },
    )
    add_defaults(
        cfg,
        "TRAINER",
        {
            "W": 8.0,  # CoPrompt's weight of the two consistency terms
            "DISTILL": "cosine",  # CoPrompt's distance: cosine, or mse of the normalised features
        },
    )


def read_sentences(path: str, dataset: str, classnames: list[str]) -> list[list[str]]:
    """Sentences of every class, ``[S][C]``, from a JSON file or the file of ``dataset`` in a folder.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a class without sentences, or with another number of them than the first; names it.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / f"{SENTENCE_FILES.get(dataset, dataset.lower())}_prompt.json"
    if not file.is_file():
        raise FileNotFoundError(f"TRAINER.CoPrompt.SENTENCES: no file {file}")
    found = {str(name).replace("_", " "): texts for name, texts in read_json(file, dict).items()}
    for name in classnames:
        texts = found.get(name)
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"TRAINER.CoPrompt.SENTENCES: {file} has no list of sentences for the class {name!r}")
        if len(texts) != len(found[classnames[0]]):
            raise ValueError(
                f"TRAINER.CoPrompt.SENTENCES: {file} has {len(found[classnames[0]])} sentences for {classnames[0]!r} but "
                f"{len(texts)} for {name!r}; one index is drawn for all classes, so give all of them as many"
            )
    return [list(row) for row in zip(*(found[name] for name in classnames))]


class CoPromptModel(MaPLeModel):
    """MaPLe's model with an adapter behind either tower: ``(1 - r) f + r A(f)`` on un-normalised features.

    Args:
        sentences: ``[S][C]`` texts, S about every class.
    """

    def __init__(self, clip, classnames, *args, image_adapter=0.1, text_adapter=0.2, sentences=None, **kwargs):
        super().__init__(clip, classnames, *args, node="CoPrompt", **kwargs)
        self.adapter_image = Adapter(clip.embed_dim, image_adapter)
        self.adapter_text = Adapter(clip.embed_dim, text_adapter)
        self.sentences = sentences
        self._frozen_text: dict[int, Tensor] = {}

    def image_features(self, images, prompts):
        return self.adapter_image(super().image_features(images, prompts))

    def text_features(self, prompts, index=None):
        return self.adapter_text(super().text_features(prompts, index))

    @torch.no_grad()
    def sentence_features(self, j: int) -> Tensor:
        """Frozen normalised features ``[C, E]`` of the j-th sentence about every class; kept."""
        if j not in self._frozen_text:
            with torch.autocast(self.scale.device.type, enabled=False):
                texts = self.clip.text.prompts_from_texts(self.sentences[j])
                self._frozen_text[j] = normalize(self.clip.text(texts))
        return self._frozen_text[j]

    @torch.no_grad()
    def frozen_image_features(self, images: Tensor) -> Tensor:
        """Normalised features ``[B, E]`` of the un-prompted image tower."""
        return normalize(self.clip.encode_image(images))


def consistency(learned: Tensor, frozen: Tensor, kind: str) -> Tensor:
    """Mean distance of normalised rows ``[N, E]``: 1 - cosine, or mean squared difference of the elements."""
    with torch.autocast(learned.device.type, enabled=False):
        learned, frozen = learned.float(), frozen.float()
        if kind == "mse":
            return F.mse_loss(learned, frozen)
        return 1.0 - F.cosine_similarity(learned, frozen, dim=-1).mean()


@register_trainer
class CoPrompt(MaPLe):
    """CoPrompt: MaPLe with adapters, held consistent with the frozen CLIP.

    L = CE + W (d(t, sentence) + d(v(view 1), v_frozen(view 2))); prompts, couplings and adapters are learned.
    """

    config_node = "CoPrompt"
    reading_keys = ("TRAINER.CoPrompt.CTX_INIT",)

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        one_of(cfg.TRAINER.DISTILL, ("cosine", "mse"), "TRAINER.DISTILL")
        if cfg.DATALOADER.K_TRANSFORMS not in (1, 2):
            raise ValueError(
                f"DATALOADER.K_TRANSFORMS is {cfg.DATALOADER.K_TRANSFORMS}: CoPrompt compares two views of an image (2), "
                "or a view with itself (1)"
            )

    @classmethod
    def model_class(cls):
        return CoPromptModel

    @classmethod
    def build_net(cls, cfg, classnames, clip):
        node = cfg.TRAINER.CoPrompt
        names = [name.replace("_", " ") for name in classnames]
        if (
            node.SENTENCES and cfg.DATASET.SUBSAMPLE_CLASSES != "new"
        ):  # of classes that are only tested nothing is needed
            sentences = read_sentences(node.SENTENCES, cfg.DATASET.NAME, names)
        else:
            sentences = [[template.format(name) for name in names] for template in PROMPTSRC_TEMPLATES]
        return cls.model_class()(
            clip,
            classnames,
            node.N_CTX,
            node.CTX_INIT,
            node.PROMPT_DEPTH,
            image_adapter=node.IMAGE_ADAPTER,
            text_adapter=node.TEXT_ADAPTER,
            sentences=sentences,
        )

    @classmethod
    def load_state(cls, model, state, source):
        refuse_unused_prompts(model, state, source, "TRAINER.CoPrompt.PROMPT_DEPTH")
        super().load_state(model, state, source)

    def parse_batch_train(self, batch):
        views = batch["img"] if isinstance(batch["img"], (list, tuple)) else [batch["img"]]
        self.second_view = views[-1].to(self.device)
        return super().parse_batch_train({**batch, "img": views[0]})

    def regularisers(self, images, image, text):
        model, kind, weight = self.model, self.cfg.TRAINER.DISTILL, self.cfg.TRAINER.W
        sentence = model.sentence_features(random.randrange(len(model.sentences)))
        frozen = model.frozen_image_features(self.second_view)
        return {
            "loss_text": weight * consistency(text, sentence, kind),
            "loss_image": weight * consistency(image, frozen, kind),
        }
