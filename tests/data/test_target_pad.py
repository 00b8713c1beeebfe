"""TargetPad against torchvision's building blocks."""

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_prompts.data.target_pad import TargetPadTransform, target_pad


def noise(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("size", "expected"), [
    ((640, 480), (640, 512)), ((1000, 400), (1000, 800)), ((300, 900), (720, 900)), ((501, 333), (501, 399)),
    ((100, 100), (100, 100)), ((120, 100), (120, 100)),
])  # fmt: skip
def test_padded_sizes(size, expected):
    image = noise(*size)
    padded = target_pad(image)
    assert padded.size == expected
    left, top = (expected[0] - size[0]) // 2, (expected[1] - size[1]) // 2
    assert padded.crop((left, top, left + size[0], top + size[1])).tobytes() == image.tobytes()
    assert np.asarray(padded).astype(int).sum() == np.asarray(image).astype(int).sum()  # the rest is black


@pytest.mark.parametrize("size", [(64, 48), (100, 40), (30, 90), (50, 50)])
def test_whole_transform_equals_torchvision(size):
    from torchvision import transforms as T

    mean, std = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    image = noise(*size)
    side = max(size) / 1.25
    pad = [max(int((side - s) / 2), 0) for s in size] if max(size) / min(size) >= 1.25 else [0, 0]
    expected = T.Compose([
        T.Pad([pad[0], pad[1], pad[0], pad[1]], 0), T.Resize(32, interpolation=T.InterpolationMode.BICUBIC), T.CenterCrop(32),
        T.ToTensor(), T.Normalize(mean, std),
    ])(image)  # fmt: skip
    assert torch.equal(TargetPadTransform(32, mean, std)(image), expected)


def test_without_padding():
    image = noise(100, 40)
    assert not torch.equal(
        TargetPadTransform(32, (0,) * 3, (1,) * 3, ratio=0)(image),
        TargetPadTransform(32, (0,) * 3, (1,) * 3)(image),
    )
