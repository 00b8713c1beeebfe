"""A random CLIP in OpenAI's file format and a toy dataset for the trainers' tests."""

import functools

import pytest
import torch
from PIL import Image

from dassl_prompts.classification.splits import subsample_classes
from dassl_prompts.engine import DatasetBase, Datum, get_cfg_default, merge_opts, register_dataset
from tests.trainers import plain


@register_dataset
class ToyColours(DatasetBase):
    """One noisy colour per class of ``plain.CLASSES``: 4 training, 2 validation and 3 test images each."""

    def __init__(self, cfg):
        g = torch.Generator().manual_seed(0)
        colours = torch.randint(40, 216, (len(plain.CLASSES), 3, 1, 1), generator=g)
        parts = []
        for part, count in (("train", 4), ("val", 2), ("test", 3)):
            items = []
            for label, name in enumerate(plain.CLASSES):
                for i in range(count):
                    path = f"{cfg.DATASET.ROOT}/{part}_{label}_{i}.png"
                    pixels = (colours[label] + torch.randint(-40, 40, (3, 40, 40), generator=g)).byte()
                    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
                    items.append(Datum(impath=path, label=label, classname=name))
            parts.append(items)
        train, val, test = subsample_classes(*parts, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        super().__init__(train_x=train, val=val, test=test)


@pytest.fixture(scope="session")
def load_once():
    """``load_clip`` that reads a file once: the frozen towers are the same for all runs of a session."""
    from dassl_prompts.models import load_clip

    return functools.cache(load_clip)


@pytest.fixture
def make_cfg(tmp_path, clip_file, load_once, monkeypatch):
    """``make_cfg("MaPLe", KEY, value, ...)``: a short run on the toy data with the random CLIP."""
    import dassl_prompts

    monkeypatch.setattr("dassl_prompts.models.load_clip", load_once)

    def make(trainer, *opts, output="run"):
        cfg = get_cfg_default()
        dassl_prompts.extend_cfg(cfg)
        (tmp_path / "data").mkdir(exist_ok=True)
        merge_opts(
            cfg,
            [
                "TRAINER.NAME",
                trainer,
                "DATASET.NAME",
                "ToyColours",
                "DATASET.ROOT",
                str(tmp_path / "data"),
                "OUTPUT_DIR",
                str(tmp_path / output),
                "SEED",
                1,
                "MODEL.BACKBONE.NAME",
                str(clip_file),
                "INPUT.SIZE",
                (32, 32),
                "INPUT.TRANSFORMS",
                ("random_resized_crop", "random_flip", "normalize"),
                "DATALOADER.NUM_WORKERS",
                0,
                "DATALOADER.TRAIN_X.BATCH_SIZE",
                7,
                "DATALOADER.TEST.BATCH_SIZE",
                10,
                "OPTIM.LR",
                0.01,
                "OPTIM.MAX_EPOCH",
                2,
                "USE_CUDA",
                False,
                *opts,
            ],
        )
        cfg.freeze()
        return cfg

    return make


@pytest.fixture
def train(make_cfg):
    """``train("MaPLe", KEY, value, ...)``: a finished trainer."""
    from dassl_prompts.engine import build_trainer, set_random_seed

    def run(trainer, *opts, output="run"):
        set_random_seed(1)
        built = build_trainer(make_cfg(trainer, *opts, output=output))
        built.train()
        return built

    return run


@pytest.fixture(scope="session")
def state():
    """Random weights under OpenAI's names."""
    return plain.openai_state()


@pytest.fixture(scope="session")
def clip_file(state, tmp_path_factory):
    """The same weights as a file that MODEL.BACKBONE.NAME may name."""
    path = tmp_path_factory.mktemp("clip") / "random.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def clip(clip_file):
    """The package's frozen CLIP with these weights."""
    from dassl_prompts.models import load_clip

    return load_clip(str(clip_file))


@pytest.fixture(scope="session")
def teacher_state():
    """A wider random CLIP."""
    return plain.openai_state(embed=96, text_width=192, vision_width=256, vision_layers=5, seed=1)


@pytest.fixture(scope="session")
def teacher_file(teacher_state, tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "teacher.pt"
    torch.save(teacher_state, path)
    return path


@pytest.fixture(scope="session")
def teacher_clip(teacher_file):
    from dassl_prompts.models import load_clip

    return load_clip(str(teacher_file))


@pytest.fixture
def images():
    return torch.randn(5, 3, 32, 32)


@pytest.fixture
def labels():
    return torch.tensor([0, 3, 6, 3, 1])


@pytest.fixture(scope="session")
def resnet(resnet_file):
    """A random ResNet CLIP: the package's, and the open_clip model with the same weights."""
    from dassl_prompts.models import load_clip

    path, model = resnet_file
    return load_clip(str(path)), model


@pytest.fixture(scope="session")
def resnet_file(tmp_path_factory):
    """A file that MODEL.BACKBONE.NAME may name, and the open_clip model with its weights."""
    from open_clip.model import CLIP as OpenCLIP

    vision = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    text = {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": plain.LAYERS}
    torch.manual_seed(7)
    model = OpenCLIP(64, vision, text, quick_gelu=True).eval().requires_grad_(False)
    path = tmp_path_factory.mktemp("clip") / "resnet.pt"
    torch.save({**model.state_dict(), "input_resolution": torch.tensor(64), "context_length": torch.tensor(77)}, path)
    return path, model
