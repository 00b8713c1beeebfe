"""TargetPad against torchvision's building blocks."""

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_prompts.composed.target_pad import TargetPadTransform, target_pad
from dassl_prompts.images import read_image


def noise(width, height):
    return Image.fromarray(np.random.default_rng(width).integers(0, 255, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (640, 512)),
        ((1000, 400), (1000, 800)),
        ((300, 900), (720, 900)),
        ((501, 333), (501, 399)),
        ((100, 100), (100, 100)),
        ((120, 100), (120, 100)),
    ],
)
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
    expected = T.Compose(
        [
            T.Pad([pad[0], pad[1], pad[0], pad[1]], 0),
            T.Resize(32, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(32),
            T.ToTensor(),
            T.Normalize(mean, std),
        ]
    )(image)
    assert torch.equal(TargetPadTransform(32, mean, std)(image), expected)


def test_without_padding():
    image = noise(100, 40)
    assert not torch.equal(
        TargetPadTransform(32, (0,) * 3, (1,) * 3, ratio=0)(image),
        TargetPadTransform(32, (0,) * 3, (1,) * 3)(image),
    )


def stored(path, mode):
    """A picture of that mode in a file; its colours worked out from what the file holds."""
    if mode == "P":
        noise(100, 40).quantize(16).save(path)
    elif mode == "RGBA":  # half transparent: the colours below count, as in the official code
        alpha = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 100), dtype=np.uint8))
        image = noise(100, 40)
        image.putalpha(alpha)
        image.save(path)
    else:
        noise(100, 40).convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
        pixels = np.asarray(image).astype(int)
        if mode == "L":
            return np.stack([pixels] * 3, -1)
        if mode == "P":
            return np.array(image.getpalette()).reshape(-1, 3)[pixels]
        if mode == "CMYK":
            return np.rint((255 - pixels[..., :3]) * (255 - pixels[..., 3:]) / 255).astype(int)
        return pixels[..., :3]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_pictures_of_every_mode_are_read_as_their_colours(tmp_path, mode):
    """Read first, padded then: a palette or a fourth channel never reaches the padding or the resampling."""
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    colours = stored(path, mode)
    image = read_image(path)
    assert image.mode == "RGB" and np.abs(np.asarray(image) - colours).max() <= (1 if mode == "CMYK" else 0)
    transform = TargetPadTransform(32, (0.5,) * 3, (0.25,) * 3)
    expected = transform(Image.fromarray(colours.astype(np.uint8)))
    assert expected.shape == (3, 32, 32) and (expected[:, 0] == -2).all()  # black above
    torch.testing.assert_close(transform(image), expected, rtol=0, atol=0.05 if mode == "CMYK" else 0)


def test_adobe_cmyk_jpeg_is_not_inverted(tmp_path):
    path = tmp_path / "red.jpg"
    Image.new("RGB", (64, 48), (220, 20, 20)).convert("CMYK").save(path, quality=95)
    assert np.abs(np.asarray(read_image(path)).mean((0, 1)) - (220, 20, 20)).max() < 8
