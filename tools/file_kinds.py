"""Small valid files of every kind that the package reads, and what reads them; for ``tools/mutate_files.py``.

One file, because a kind is but a few lines: what makes a valid one, and the reader whose name it ends with.
"""

from __future__ import annotations

import argparse
import json
import lzma
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of its row. make: writes a valid one into a folder and returns its path. read: what the package makes of it.
        digest: whether any other content has to be noticed.
    """

    name: str
    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    digest: bool = False


# -- valid files ---------------------------------------------------------------------------------------------


def picture(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (12, 10, 3), np.uint8)).save(path)
    return path


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return make


def tensors() -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return {"ctx": torch.randn(4, 8, generator=drawn), "scale": torch.tensor(3.0), "count": torch.arange(3)}


def clip_state() -> dict[str, torch.Tensor]:
    """Names of OpenAI's, as far as reading a weight file goes."""
    drawn = torch.Generator().manual_seed(0)
    names = ("token_embedding.weight", "ln_final.weight", "visual.conv1.weight")
    return {name: torch.randn(5, 4, generator=drawn) for name in names}


def checkpoint(folder: Path) -> Path:
    from dassl_prompts.engine import save_checkpoint

    state = {
        "state_dict": tensors(),
        "epoch": 2,
        "optimizer": None,
        "scheduler": {"last_epoch": 2},
        "classnames": ["cat", "dog"],
    }
    save_checkpoint(state, folder / "prompt_learner")
    return folder / "prompt_learner" / "model.pth.tar-2"


def read_checkpoint(path: Path) -> Any:
    from dassl_prompts.engine.checkpoint import read_checkpoint

    return read_checkpoint(path.parent.parent, "prompt_learner")


def resume_file(folder: Path) -> Path:
    from dassl_prompts.engine.checkpoint import write_tensors
    from dassl_prompts.engine.randomness import rng_state
    from dassl_prompts.engine.resume import FORMAT

    state = {
        "format": FORMAT,
        "epoch": 1,
        "trainer": "CoOp",
        "config": {"SEED": "1"},
        "data": "0",
        "torch": "2",
        "best_result": 0.0,
    }
    state |= {"corrupt": [], "elapsed": 1.0, "models": {"p": tensors()}, "optims": {"p": None}, "scheds": {"p": None}}
    write_tensors({**state, "scaler": None, "extra": {}, "rng": rng_state()}, folder / "resume.pt")
    return folder / "resume.pt"


def read_resume(path: Path) -> Any:
    from dassl_prompts.engine import resume

    return resume.read(path)


def few_shot(folder: Path) -> Path:
    from dassl_prompts.engine import Datum

    data = [Datum(impath=f"a/{i}.jpg", label=i, classname=f"class {i}") for i in range(3)]
    numbers = {"means": np.arange(4.0), "count": np.int64(3)}
    (folder / "shot_1-seed_1.pkl").write_bytes(pickle.dumps({"train": data, "val": data[:1], **numbers}))
    return folder / "shot_1-seed_1.pkl"


def read_few_shot(path: Path) -> Any:
    from dassl_prompts.engine import read_pickle

    return read_pickle(path)


def results(folder: Path) -> Path:
    from dassl_prompts.engine import write_json

    content = {"trainer": "CoOp", "dataset": "Emoji", "classes": "all", "shots": 4, "seed": 1, "backbone": "emoji-tiny"}
    content |= {
        "config": {"SEED": "1", "INPUT.SIZE": "(32, 32)"},
        "digests": {"backbone": "ab"},
        "classnames": ["cat", "dog"],
    }
    write_json({**content, "test": {"accuracy": 50.0}, "finished": True, "params": 12}, folder / "results.json")
    return folder / "results.json"


def read_results(path: Path) -> Any:
    from dassl_prompts.predict.run import read_config, read_results
    from dassl_prompts.results.runs import read_run

    found = read_results(path.parent)
    read_run(path.parent, path.parent)
    return found, str(read_config(found["config"], str(path)))


SPLIT = {"train": [["a/1.jpg", 0, "cat"], ["b/2.jpg", 1, "dog"]], "val": [], "test": [["a/3.jpg", 0, "cat"]]}
CAPTIONS = {
    "1.jpg": {"file_name": "1.jpg", "class_name": "cat", "positive": "a cat", "negative": ["a dog"], "number": "1"}
}
CONFIG = 'DATASET:\n  NAME: "Emoji"\n  NUM_SHOTS: 16\nOPTIM:\n  LR: 0.002\n  STEPSIZE: [-1]\nINPUT:\n  SIZE: [32, 32]\n'
SWEEP = "trainer: [CoOp, MaPLe]\ndataset: emoji\nseed: [1, 2]\nruns:\n  - {shots: 4}\n  - {shots: [8, 16]}\n"


def read_split(path: Path) -> Any:
    from dassl_prompts.classification.split_files import read_split

    return [(d.impath, d.label, d.classname) for part in read_split(path, path.parent) for d in part]


def read_records(path: Path) -> Any:
    from dassl_prompts.captions.records import read_records

    return read_records(path)


def read_config_file(path: Path) -> Any:
    from dassl_prompts.engine import get_cfg_default, merge_file
    from dassl_prompts.engine.config import dump

    cfg = get_cfg_default()
    merge_file(cfg, path)
    return dump(cfg)


def read_sweep(path: Path) -> Any:
    from dassl_prompts.run.sweep import read_file

    return read_file(path)


def csv_list(folder: Path) -> Path:
    for number in (1, 2):
        picture(folder / "images" / f"{number}.png", number)
    return text("list.csv", 'path,class,split\nimages/1.png,cat,train\nimages/2.png,"dog, small",test\n')(folder)


def read_csv_list(path: Path) -> Any:
    from dassl_prompts.fdrd.__main__ import items_from_csv

    return items_from_csv(path, str(path.parent))


def own_list(folder: Path) -> Path:
    for number in (1, 2):
        picture(folder / "images" / f"{number}.png", number)
    return text("own.csv", "path;label\nimages/1.png;cat\nimages/2.png;polar bear\n")(folder)


def read_own_list(path: Path) -> Any:
    from dassl_prompts.classification.own_lists import read_list

    return read_list(str(path))


def read_caption_lines(path: Path) -> Any:
    from dassl_prompts.fdrd.captioners import CaptionFile

    return CaptionFile(path, ["a/1.png", "a/2.png"]).captions


def safetensors(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(clip_state(), folder / "clip.safetensors")
    return folder / "clip.safetensors"


def packed_safetensors(folder: Path) -> Path:
    (folder / "clip.safetensors.xz").write_bytes(lzma.compress(safetensors(folder).read_bytes()))
    return folder / "clip.safetensors.xz"


class Module(torch.nn.Module):
    """What an archive of OpenAI's has: tensors and a method."""

    def __init__(self):
        super().__init__()
        for name, value in clip_state().items():
            part, _, leaf = name.rpartition(".")
            child = torch.nn.Module()
            child.register_buffer(leaf, value)
            self.add_module(part.replace(".", "_"), child)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def torchscript(folder: Path) -> Path:
    torch.jit.save(torch.jit.script(Module()), str(folder / "clip.pt"))
    return folder / "clip.pt"


def read_torchscript(path: Path) -> Any:
    from dassl_prompts.models.weights import read_torch_file

    return dict(read_torch_file(path))


def read_weights(path: Path) -> Any:
    from dassl_prompts.models.weights import read_clip

    return read_clip(path)


def npz(folder: Path) -> Path:
    np.savez(
        folder / "features.npz",
        image=np.ones((3, 4), np.float32),
        text=np.eye(4, dtype=np.float32)[:3],
        owner=np.arange(3),
    )
    return folder / "features.npz"


def read_npz(path: Path) -> Any:
    from dassl_prompts.captions.evaluation import load_features

    return load_features(path)


def encode(images: torch.Tensor) -> torch.Tensor:
    return torch.stack([images.mean((1, 2, 3)), images.std((1, 2, 3))], 1)


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).float()


def pictures_of(folder: Path) -> list[str]:
    return [str(picture(folder / "images" / f"{number}.png", number)) for number in range(4)]


def cache(folder: Path) -> Any:
    from dassl_prompts.features.feature_cache import cached_features

    paths = sorted(map(str, (folder / "images").glob("*.png"))) or pictures_of(folder)
    options = {"weights": "w", "shape": (2,), "dtype": "fp32"}
    return cached_features(folder / "cache", "toy", paths, encode, to_tensor_named, **options)


class Named:
    """A transform whose name does not hold an address, as caches are found by it."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return to_tensor(image)

    def __repr__(self) -> str:
        return "to_tensor"


to_tensor_named = Named()


def cache_file(suffix: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        return Path(f"{cache(folder).path}{suffix}")

    return make


def read_cache(path: Path) -> Any:
    found = cache(path.parent.parent)
    return np.array(found.array), found.unreadable


def views(folder: Path) -> Any:
    from dassl_prompts.features.view_cache import ViewCache

    def view():
        drawn = torch.Generator().manual_seed(1)
        yield (
            SimpleNamespace(feature=torch.randn(3, 4, generator=drawn), queries=torch.randn(3, 2, generator=drawn)),
            torch.arange(3),
        )

    return ViewCache.create(folder / "views", [view], 3)


def view_file(folder: Path) -> Path:
    return views(folder).folder / "queries.npy"


def read_views(path: Path) -> Any:
    found = views(path.parent.parent)
    return np.array(found.features), np.array(found.queries), np.array(found.labels)


def stored(folder: Path) -> dict[bytes, np.ndarray]:
    """The rows of a small store of frozen features, which is filled up first."""
    from dassl_prompts.features.store import KEY, Store

    store = Store(folder / "store", {"weights": "w"}, 3, 1e9)
    keys = [bytes([number]) * KEY for number in range(4)]
    missing = [key for key in keys if key not in store.load("plain")]
    store.add("plain", missing, np.array([[key[0], 0.5, -1.0] for key in missing], np.float32))
    return store.load("plain")


def store_file(folder: Path) -> Path:
    stored(folder)
    return next((folder / "store").rglob("*.npy"))


def read_store(path: Path) -> Any:
    return {key: np.array(row) for key, row in stored(path.parents[3]).items()}


def made_index(folder: Path, faiss: str = "") -> Any:
    from dassl_prompts.composed.index_table import start_of
    from dassl_prompts.composed.index_update import update_index

    pictures_of(folder)
    files = {start_of(str(folder / "images")): [f"{number}.png" for number in range(4)]}
    options = {"weights": "w", "width": 2, "model": {"backbone": "toy"}, "faiss": faiss}
    return update_index(folder / "index", files, encode, to_tensor_named, **options)[0]


def index_file(part: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from dassl_prompts.composed.index_table import MANIFEST

        index = made_index(folder, "Flat" if part == "faiss" else "")
        return folder / "index" / MANIFEST if part == "manifest" else index.file(part)

    return make


def read_index(path: Path) -> Any:
    from dassl_prompts.composed.index import ImageIndex

    index = ImageIndex.open(path.parent)
    return [[(index.table.path(row), score) for row, score in found] for found in index.search(torch.eye(2), 3)]


def index_part(folder: Path) -> Path:
    """Features that an interrupted run left."""
    from dassl_prompts.composed.index_files import Parts

    parts = Parts(folder / "parts-0", 2)
    parts.add([bytes([number] * 16) for number in range(3)], np.arange(6, dtype=np.float16).reshape(3, 2))
    parts.flush()
    return next((folder / "parts-0").iterdir())


def read_part(path: Path) -> Any:
    """What is damaged is encoded again: no rows, or those that were written."""
    from dassl_prompts.composed.index_files import Parts

    found = {key: np.array(row) for key, row in Parts(path.parent, 2).rows.items()}
    if not found:
        index_part(path.parent.parent)
    return found or {key: np.array(row) for key, row in Parts(path.parent, 2).rows.items()}


def read_picture(path: Path) -> Any:
    from dassl_prompts.images import read_image

    return np.array(read_image(path))


def zip_of_pictures(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "data.zip", "w") as archive:
        archive.write(picture(folder / "a.png"), "images/a.png")
    return folder / "data.zip"


def tar_of_pictures(folder: Path) -> Path:
    with tarfile.open(folder / "data.tar.gz", "w:gz") as archive:
        archive.add(picture(folder / "a.png"), "images/a.png")
    return folder / "data.tar.gz"


def read_archive(path: Path) -> Any:
    from dassl_prompts.prepare.extract import unpack

    target = path.parent / "unpacked"
    shutil.rmtree(target, ignore_errors=True)
    unpack(path, target, {"images": "images"})
    return {p.name: p.read_bytes() for p in (target / "images").iterdir()}


def read_member(path: Path) -> Any:
    from dassl_prompts import images

    images._archives.clear()  # an archive is opened once per process, and here it changes
    return read_picture(f"{path}::images/a.png")


def read_classes(path: Path) -> Any:
    from dassl_prompts.predict.__main__ import class_names

    return class_names(argparse.Namespace(classes=None, classes_file=path))


def backbone(folder: Path) -> Path:
    vision = {"image_size": 32, "layers": 1, "width": 64, "head_width": 64, "patch_size": 16}
    words = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1}
    content = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": words}
    return text("backbone.json", json.dumps(content))(folder)


def read_backbone(path: Path) -> Any:
    from dassl_prompts.models.clip import from_json

    return {name: tuple(value.shape) for name, value in from_json(path).state_dict().items()}


LINES = '{"path": "a/1.png", "caption": "one"}\n{"path": "a/2.png", "caption": "two"}\n'
KINDS = [
    Kind("split file (JSON)", text("split.json", json.dumps(SPLIT)), read_split),
    Kind("results.json", results, read_results),
    Kind("captions (JSON)", text("captions.json", json.dumps(CAPTIONS)), read_records),
    Kind("caption lines (JSONL)", text("captions.jsonl", LINES), read_caption_lines),
    Kind("backbone (JSON)", backbone, read_backbone),
    Kind("configuration (YAML)", text("config.yaml", CONFIG), read_config_file),
    Kind("sweep (YAML)", text("sweep.yaml", SWEEP), read_sweep),
    Kind("image list (CSV)", csv_list, read_csv_list),
    Kind("own pictures (CSV)", own_list, read_own_list),
    Kind("class names (text)", text("classes.txt", "cat\npolar bear\n"), read_classes),
    Kind("few-shot draw (pickle)", few_shot, read_few_shot),
    Kind("checkpoint", checkpoint, read_checkpoint, digest=True),
    Kind("resume file", resume_file, read_resume, digest=True),
    Kind("weights (safetensors)", safetensors, read_weights),
    Kind("weights (safetensors.xz)", packed_safetensors, read_weights, digest=True),
    Kind("weights (TorchScript)", torchscript, read_torchscript, digest=True),
    Kind("features (npz)", npz, read_npz),
    Kind("feature cache (npy)", cache_file(".npy"), read_cache, digest=True),
    Kind("feature cache (manifest)", cache_file(".json"), read_cache, digest=True),
    Kind("view cache (npy)", view_file, read_views, digest=True),
    Kind("store of features (npy)", store_file, read_store, digest=True),
    Kind("index (manifest)", index_file("manifest"), read_index, digest=True),
    Kind("index (features)", index_file("features"), read_index, digest=True),
    Kind("index (names)", index_file("names"), read_index, digest=True),
    Kind("index (places)", index_file("places"), read_index, digest=True),
    Kind("index (part of an unfinished one)", index_part, read_part, digest=True),
    Kind("index (copies)", index_file("copies"), read_index, digest=True),
    Kind("index (FAISS)", index_file("faiss"), read_index, digest=True),
    Kind("picture (PNG)", lambda folder: picture(folder / "a.png"), read_picture),
    Kind("picture (JPEG)", lambda folder: picture(folder / "a.jpg"), read_picture),
    Kind("picture (TIFF)", lambda folder: picture(folder / "a.tif"), read_picture),
    Kind("picture in a zip", zip_of_pictures, read_member),
    Kind("archive (zip)", zip_of_pictures, read_archive),
    Kind("archive (tar.gz)", tar_of_pictures, read_archive),
]
