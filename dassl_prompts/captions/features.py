"""Encoding many captions and images: caption batches sorted by length, so that trimming the context pays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dassl_prompts.classification.prompted import normalize

#: CLIP's pixel statistics
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def length_sorted(lengths: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Index batches over all items, short ones first: a batch is as long as its longest member."""
    yield from lengths.argsort(stable=True).split(batch_size)


@torch.no_grad()
def encode_sorted(lengths: Tensor, encode: Callable[[Tensor], Tensor], batch_size: int = 256) -> Tensor:
    """``encode(index) -> [len(index), ...]`` over all items in length-sorted batches, put back into order.

    Raises:
        ValueError: there is nothing to encode.
    """
    if not len(lengths):
        raise ValueError("there is no caption to encode")
    out = None
    for index in length_sorted(lengths, batch_size):
        features = encode(index)
        if out is None:
            out = features.new_empty(len(lengths), *features.shape[1:])
        out[index] = features
    return out


def encode_texts(clip, texts: Sequence[str], batch_size: int = 256) -> Tensor:
    """Normalised features ``[N, E]`` of raw texts, truncated with EOT kept where they are too long."""
    prompts = clip.text.prompts_from_texts(list(texts), truncate=True)
    return encode_sorted(prompts.eot, lambda index: normalize(clip.text(prompts.select(index))), batch_size)


@torch.no_grad()
def encode_image_files(clip, paths: Sequence[str | os.PathLike], batch_size: int = 64) -> Tensor:
    """Normalised features ``[N, E]`` of image files, upright: shorter edge resized, centre crop, CLIP's statistics."""
    from torchvision import transforms as T

    from dassl_prompts.engine.builtin.transforms import Resize
    from dassl_prompts.images import read_image

    size = clip.image_size
    transform = T.Compose(
        [
            Resize(size, (size, size), T.InterpolationMode.BICUBIC),
            T.CenterCrop(size),
            T.ToTensor(),
            T.Normalize(MEAN, STD),
        ]
    )
    device = clip.logit_scale.device
    features = []
    for start in range(0, len(paths), batch_size):
        images = torch.stack([transform(read_image(path, "camera")) for path in paths[start : start + batch_size]])
        features.append(normalize(clip.encode_image(images.to(device))))
    return torch.cat(features)
