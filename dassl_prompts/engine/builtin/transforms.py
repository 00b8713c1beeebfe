"""Image transforms by name, in Dassl's fixed order (torchvision is imported when they are built)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from dassl_prompts.engine.builtin.randaugment import Described, RandAugment
from dassl_prompts.engine.images import central_part

AVAILABLE = [
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    "center_crop",
    "cutout",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
    "randaugment",
]
#: policy augmentations of Dassl that fail there on current numpy and that no prompt-learning recipe uses
LEFT_OUT = [
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment_fixmatch",
    "randaugment2",
]


def interpolation_mode(name: str):
    """torchvision's mode for ``INPUT.INTERPOLATION``.

    Raises:
        ValueError: not bilinear, bicubic or nearest.
    """
    from torchvision.transforms.functional import InterpolationMode

    modes = {
        "bilinear": InterpolationMode.BILINEAR,
        "bicubic": InterpolationMode.BICUBIC,
        "nearest": InterpolationMode.NEAREST,
    }
    if name not in modes:
        raise ValueError(f"INPUT.INTERPOLATION must be one of {list(modes)}, got {name!r}")
    return modes[name]


class Resize:
    """torchvision's ``Resize(size)`` in front of ``CenterCrop(crop)``, with bounded memory for very long pictures."""

    def __init__(self, size: int, crop, interpolation):
        from torchvision import transforms as T
        from torchvision.transforms.functional import pil_modes_mapping

        self.whole = T.Resize(size, interpolation=interpolation)
        self.size, self.crop, self.resample = size, tuple(crop), pil_modes_mapping[interpolation]

    def __call__(self, img):
        part = central_part(img, self.size, self.crop, self.resample)
        return self.whole(img) if part is None else part

    def __repr__(self) -> str:  # caches of the same pictures keep their names
        return repr(self.whole)


class Random2DTranslation(Described):
    """Enlarge to 1.125 times the size and crop at a random place, with probability ``p``; else resize.

    Args:
        height: of the result.
        width: of the result.
        p: probability of the crop.
        interpolation: torchvision mode.
    """

    def __init__(self, height: int, width: int, p: float = 0.5, interpolation=None):
        self.height, self.width, self.p = height, width, p
        self.interpolation = interpolation or interpolation_mode("bilinear")

    def __call__(self, img):
        from torchvision.transforms import functional as F

        if random.uniform(0, 1) > self.p:
            return F.resize(img, [self.height, self.width], interpolation=self.interpolation)
        new_width, new_height = int(round(self.width * 1.125)), int(round(self.height * 1.125))
        resized = F.resize(img, [new_height, new_width], interpolation=self.interpolation)
        x1 = int(round(random.uniform(0, new_width - self.width)))
        y1 = int(round(random.uniform(0, new_height - self.height)))
        return F.crop(resized, y1, x1, self.height, self.width)


class InstanceNormalization(Described):
    """Zero mean and unit deviation per channel of each image ``[C, H, W]``."""

    def __init__(self, eps: float = 1e-8):
        self.eps = eps

    def __call__(self, img: Tensor) -> Tensor:
        flat = img.reshape(img.shape[0], -1)
        mean, std = flat.mean(1)[:, None, None], flat.std(1)[:, None, None]
        return (img - mean) / (std + self.eps)


class Cutout(Described):
    """Zero ``n_holes`` squares of side ``length`` in an image ``[C, H, W]``."""

    def __init__(self, n_holes: int = 1, length: int = 16):
        self.n_holes, self.length = n_holes, length

    def __call__(self, img: Tensor) -> Tensor:
        import numpy as np

        height, width = img.shape[1:]
        mask = torch.ones(height, width)
        for _ in range(self.n_holes):
            y, x = np.random.randint(height), np.random.randint(width)
            half = self.length // 2
            rows = slice(max(y - half, 0), min(y + half, height))
            mask[rows, max(x - half, 0) : min(x + half, width)] = 0.0
        return img * mask


class GaussianNoise(Described):
    """Add noise with probability ``p``."""

    def __init__(self, mean: float = 0.0, std: float = 0.15, p: float = 0.5):
        self.mean, self.std, self.p = mean, std, p

    def __call__(self, img: Tensor) -> Tensor:
        if random.uniform(0, 1) > self.p:
            return img
        return img + torch.randn(img.size()) * self.std + self.mean


def check_transforms(choices: Sequence[str], known: Sequence[str] = AVAILABLE) -> None:
    """Refuse names that are no transform.

    Args:
        choices: ``cfg.INPUT.TRANSFORMS``. known: by the engine in use.

    Raises:
        ValueError: an unknown name; lists the known ones.
    """
    for choice in choices:
        if choice not in known:
            why = " (a policy augmentation, not offered by the built-in engine)" if choice in LEFT_OUT else ""
            raise ValueError(f"INPUT.TRANSFORMS: unknown transform {choice!r}{why}; known are {list(known)}")


def build_transform(cfg, is_train: bool = True, choices=None):
    """The transform for ``cfg.INPUT``, announced line by line.

    Args:
        cfg: config.
        is_train: training (augmented) or test transform.
        choices: names instead of ``cfg.INPUT.TRANSFORMS``; their order has no effect.

    Raises:
        ValueError: an unknown name; lists the known ones.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = cfg.INPUT.TRANSFORMS if choices is None else choices
    check_transforms(choices)
    from torchvision.transforms import Compose

    print(f"Building transform_{'train' if is_train else 'test'}")
    steps = _train_steps(cfg.INPUT, choices) if is_train else _test_steps(cfg.INPUT, choices)
    for line, _ in steps:
        print(f"+ {line}")
    return Compose([step for _, step in steps])


def _train_steps(inp, choices) -> list[tuple]:
    from torchvision import transforms as T

    size, mode = inp.SIZE, interpolation_mode(inp.INTERPOLATION)
    steps = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.append((f"resize to {size[0]}x{size[1]}", T.Resize(size, interpolation=mode)))
    if "random_translation" in choices:
        steps.append(("random translation", Random2DTranslation(size[0], size[1])))
    if "random_crop" in choices:
        steps.append((f"random crop (padding = {inp.CROP_PADDING})", T.RandomCrop(size, padding=inp.CROP_PADDING)))
    if "random_resized_crop" in choices:
        crop = T.RandomResizedCrop(size, scale=inp.RRCROP_SCALE, interpolation=mode)
        steps.append((f"random resized crop (size={size}, scale={inp.RRCROP_SCALE})", crop))
    if "random_flip" in choices:
        steps.append(("random flip", T.RandomHorizontalFlip()))
    if "randaugment" in choices:
        n, m = inp.RANDAUGMENT_N, inp.RANDAUGMENT_M
        steps.append((f"randaugment (n={n}, m={m})", RandAugment(n, m)))
    if "colorjitter" in choices:
        b, c, s, h = inp.COLORJITTER_B, inp.COLORJITTER_C, inp.COLORJITTER_S, inp.COLORJITTER_H
        line = f"color jitter (brightness={b}, contrast={c}, saturation={s}, hue={h})"
        steps.append((line, T.ColorJitter(brightness=b, contrast=c, saturation=s, hue=h)))
    if "randomgrayscale" in choices:
        steps.append(("random gray scale", T.RandomGrayscale(p=inp.RGS_P)))
    if "gaussian_blur" in choices:
        blur = T.RandomApply([T.GaussianBlur(inp.GB_K)], p=inp.GB_P)
        steps.append((f"gaussian blur (kernel={inp.GB_K})", blur))
    return steps + _tensor_steps(inp, choices, is_train=True)


def _test_steps(inp, choices) -> list[tuple]:
    from torchvision import transforms as T

    size, mode = inp.SIZE, interpolation_mode(inp.INTERPOLATION)
    resize = Resize(max(size), size, mode)
    steps = [(f"resize the smaller edge to {max(size)}", resize)]
    steps.append((f"{size[0]}x{size[1]} center crop", T.CenterCrop(size)))
    return steps + _tensor_steps(inp, choices, is_train=False)


def _tensor_steps(inp, choices, is_train: bool) -> list[tuple]:
    from torchvision import transforms as T

    steps = [("to torch tensor of range [0, 1]", T.ToTensor())]
    if is_train and "cutout" in choices:
        line = f"cutout (n_holes={inp.CUTOUT_N}, length={inp.CUTOUT_LEN})"
        steps.append((line, Cutout(inp.CUTOUT_N, inp.CUTOUT_LEN)))
    if "normalize" in choices:
        line = f"normalization (mean={inp.PIXEL_MEAN}, std={inp.PIXEL_STD})"
        steps.append((line, T.Normalize(mean=inp.PIXEL_MEAN, std=inp.PIXEL_STD)))
    if is_train and "gaussian_noise" in choices:
        steps.append((f"gaussian noise (mean={inp.GN_MEAN}, std={inp.GN_STD})", GaussianNoise(inp.GN_MEAN, inp.GN_STD)))
    if "instance_norm" in choices:
        steps.append(("instance normalization", InstanceNormalization()))
    return steps
