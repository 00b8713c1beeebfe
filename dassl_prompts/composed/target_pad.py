"""The image transform of CLIP4Cir, SEARLE and TransAgg: padding towards a square before the centre crop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps
from torch import Tensor

from dassl_prompts.images import EXTREME_RATIO, central_part

#: pixels of the longer side to which a very long picture is scaled down before it is padded
MAX_LINE = 4096


def target_pad(image: Image.Image, ratio: float = 1.25) -> Image.Image:
    """Pad with black until the longer side is at most ``ratio`` times the shorter one (640 x 480 -> 640 x
    512)."""
    width, height = image.size
    if max(width, height) / min(width, height) < ratio:
        return image
    if max(width, height) > max(MAX_LINE, EXTREME_RATIO * min(width, height)):  # padding would multiply its pixels
        shrink = MAX_LINE / max(width, height)
        image = image.resize([max(1, round(side * shrink)) for side in image.size], Image.Resampling.BICUBIC)
        width, height = image.size
    side = max(width, height) / ratio
    horizontal, vertical = max(int((side - width) / 2), 0), max(int((side - height) / 2), 0)
    return ImageOps.expand(image, border=(horizontal, vertical), fill=0)


@dataclass(frozen=True)
class TargetPadTransform:
    """RGB image -> normalised tensor [3, size, size]; the same for training and evaluation.

    Attributes:
        size: side of the square in pixels. mean, std: per channel. ratio: of :func:`target_pad`; 0 turns
            padding off (Pic2Word).
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    ratio: float = 1.25

    def __call__(self, image: Image.Image) -> Tensor:
        from torchvision.transforms import functional as T

        if self.ratio:
            image = target_pad(image, self.ratio)
        part = central_part(image, self.size, (self.size, self.size), Image.Resampling.BICUBIC)
        image = T.resize(image, self.size, interpolation=T.InterpolationMode.BICUBIC) if part is None else part
        return T.normalize(T.to_tensor(T.center_crop(image, self.size)), self.mean, self.std)
