"""What a run will roughly take where none of its kind has finished: counts of pictures, steps and operations over a measured speed.

Rough, which is what a reader wants to know before a night of runs; tables mark it with ``~``.
"""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

#: seconds that a process takes to start, load a backbone and write its files; reading and transforming a picture, per pixel of S x S
START, READ = 1.5, 1.2e-7
#: tokens of a class prompt that are computed for it alone: its name and the end, for what stands before is computed once for all
TOKENS = 8
#: forward and backward, in forward passes
STEP = 3
#: share of the speed of a large matrix product that towers reach; operations a second where a GPU computes
EFFICIENCY, GPU_SPEED = 0.8, 2e13
#: products that are timed, of which the fastest counts: the first ones are slow, and so are all while other programs compute
TRIES = 40
#: bytes of a run's logs and tables; of its predictions, per picture; copies of the learned tensors (best, last, to resume)
FILES, PREDICTION, COPIES = 90_000, 60, 4
#: methods that encode the classes for every picture; whose prompts for the image tower are projected from those for text
PER_IMAGE, COUPLED = ("CoCoOp", "AttriPrompt"), ("MaPLe", "CoPrompt", "DCAR")


@dataclass(frozen=True)
class Sizes:
    """Operations of one picture and of one class through the frozen towers, and the towers' widths."""

    image: float
    text: float
    text_width: int
    vision_width: int


def transformer(layers: int, width: int, tokens: int) -> float:
    """Operations of a forward pass: 12 w^2 weights a layer and token, and the attention between tokens."""
    return layers * tokens * (24 * width**2 + 4 * tokens * width)


@functools.cache
def sizes(backbone: str) -> Sizes | None:
    """Of a backbone that is known by name; None for files."""
    from dassl_prompts.models.clip import named_config

    try:
        config = named_config(backbone.partition(":")[0])
        vision, text = config["vision_cfg"], config["text_cfg"]
        side, layers = vision["image_size"], vision["layers"]
        if isinstance(layers, list):  # a ResNet; 12e9 operations of RN50 scaled by depth, width and pixels
            image = 12e9 * sum(layers) / 16 * (vision["width"] / 64) ** 2 * (side / 224) ** 2
        else:
            image = transformer(layers, vision["width"], (side // vision["patch_size"]) ** 2 + 1)
        return Sizes(image, transformer(text["layers"], text["width"], TOKENS), text["width"], vision["width"])
    except (ValueError, KeyError, TypeError):
        return None


@functools.cache
def speed() -> float:
    """Operations a second of what runs will compute on; a product of matrices is timed on a CPU, a GPU is not opened."""
    import torch

    if torch.cuda.device_count():
        return GPU_SPEED
    a, tries = torch.ones(512, 512), []
    for _ in range(TRIES):
        start = time.perf_counter()
        a @ a
        tries.append(time.perf_counter() - start)
    return EFFICIENCY * 2 * 512**3 / min(tries)


def rough_cost(step) -> tuple[float, float] | None:
    """Seconds and bytes of a run, from counts; None where its data or backbone is not known, or for composed retrieval.

    Args:
        step: :class:`~dassl_prompts.run.steps.Step` whose data has been looked up or can be.
    """
    from dassl_prompts.composed.trainer import ComposedTrainer
    from dassl_prompts.engine import TRAINER_REGISTRY
    from dassl_prompts.run.ahead import data_counts

    try:
        cfg = step.config()
        trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
        if issubclass(trainer, ComposedTrainer):
            return None
    except (ValueError, KeyError, OSError):
        return None
    size, data = sizes(cfg.MODEL.BACKBONE.NAME), data_counts(cfg)
    if size is None or data is None:
        return None
    name, rate = cfg.TRAINER.NAME, speed()
    half = 0.5 if cfg.DATASET.SUBSAMPLE_CLASSES in ("base", "new") else 1.0
    classes, shots = math.ceil(half * len(data.train)), cfg.DATASET.NUM_SHOTS
    per_image = any(word in name for word in PER_IMAGE)
    test, read = half * data.test, READ * math.prod(cfg.INPUT.SIZE)
    texts = (test if per_image else 1) * (classes or 1) if data.train else test
    seconds = START + test * (read + size.image / rate) + texts * size.text / rate
    size_of = FILES + PREDICTION * test
    if step.is_training:
        train = half * sum(min(count, shots) if shots > 0 else count for count in data.train.values()) or data.all_train
        drawn, batch = train, cfg.DATALOADER.TRAIN_X.BATCH_SIZE
        if name.startswith("DPC_"):  # a picture brings its hardest classes' with it, of each class one in a step
            shown = max(batch, min(batch * cfg.TRAINER.DPC.TOPK, classes))
            train, batch = train / batch * shown, shown
        encoded = train * classes if per_image else train / batch * min(classes, batch) if data.train else train
        frozen = bool(vars(trainer).get("frozen_image_side"))
        views = min(train, drawn) if frozen else train  # their features are kept: a view is encoded once an epoch
        operations = views * (1 if frozen else STEP) * size.image + encoded * STEP * size.text
        seconds += cfg.OPTIM.MAX_EPOCH * (views * read + operations / rate)
        learned = 16 * size.text_width
        if any(word in name for word in COUPLED):
            learned += 9 * size.text_width * size.vision_width
        size_of += COPIES * 4 * learned
    return seconds, size_of
