"""Dassl's ``randaugment``: n of 16 operations at one magnitude, drawn from Python's and numpy's generators.

It is not torchvision's RandAugment, which has 14 operations, other ranges and draws from torch's generator (in another order in
its version 2). Dassl's own fails with numpy 1.24 and newer. The draws and pictures of Dassl 0.6.3 are those of
https://github.com/ildoonet/pytorch-randaugment.
"""

from __future__ import annotations

import random

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

#: colour of a cut-out square: ImageNet's mean
GREY = (125, 123, 114)
LARGEST = 30


def _signed(value: float) -> float:
    return -value if random.random() > 0.5 else value


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


def shear_x(image, value):
    return _affine(image, 1, _signed(value), 0, 0, 1, 0)


def shear_y(image, value):
    return _affine(image, 1, 0, 0, _signed(value), 1, 0)


def translate_x(image, value):
    return _affine(image, 1, 0, _signed(value), 0, 1, 0)


def translate_y(image, value):
    return _affine(image, 1, 0, 0, 0, 1, _signed(value))


def rotate(image, value):
    return image.rotate(_signed(value))


def posterize(image, value):
    return ImageOps.posterize(image, int(value))


def solarize_add(image, value):
    brighter = np.clip(np.asarray(image).astype(int) + value, 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), 128)


def cutout(image, value):
    width, height = image.size
    x, y = np.random.uniform(width), np.random.uniform(height)
    left, top = int(max(0, x - value / 2)), int(max(0, y - value / 2))
    image = image.copy()
    ImageDraw.Draw(image).rectangle((left, top, min(width, left + value), min(height, top + value)), GREY)
    return image


#: operation, its value at magnitude 0 and at LARGEST; the order belongs to the draw
OPERATIONS = (
    (lambda image, _: ImageOps.autocontrast(image), 0, 1),
    (lambda image, _: ImageOps.equalize(image), 0, 1),
    (lambda image, _: ImageOps.invert(image), 0, 1),
    (rotate, 0, 30),
    (posterize, 4, 8),
    (ImageOps.solarize, 0, 256),
    (solarize_add, 0, 110),
    (lambda image, value: ImageEnhance.Color(image).enhance(value), 0.1, 1.9),
    (lambda image, value: ImageEnhance.Contrast(image).enhance(value), 0.1, 1.9),
    (lambda image, value: ImageEnhance.Brightness(image).enhance(value), 0.1, 1.9),
    (lambda image, value: ImageEnhance.Sharpness(image).enhance(value), 0.1, 1.9),
    (shear_x, 0.0, 0.3),
    (shear_y, 0.0, 0.3),
    (cutout, 0, 40),
    (translate_x, 0.0, 100),
    (translate_y, 0.0, 100),
)


class Described:
    """A transform whose ``repr`` is its class and settings, so that what it makes of a picture can be kept."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class RandAugment(Described):
    """``n`` operations, drawn with replacement, at magnitude ``m`` of 30; translations and cut-outs are in pixels.

    Args:
        n: ``INPUT.RANDAUGMENT_N``.
        m: ``INPUT.RANDAUGMENT_M``.

    Raises:
        ValueError: one of them is out of range.
    """

    def __init__(self, n: int = 2, m: float = 10):
        if n < 0 or not 0 <= m <= LARGEST:
            raise ValueError(
                f"INPUT.RANDAUGMENT_N is {n}, INPUT.RANDAUGMENT_M {m}: give N >= 0 and 0 <= M <= {LARGEST}"
            )
        self.n, self.m = n, m

    def __call__(self, image: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(OPERATIONS, k=self.n):
            image = operation(image, self.m / LARGEST * (high - low) + low)
        return image
