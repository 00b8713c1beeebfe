"""A captioned domain of coloured squares in DTD's layout, and runs on it with a small random CLIP."""

import json

from PIL import Image, ImageDraw

from dassl_prompts import extend_cfg
from dassl_prompts.engine import build_trainer, get_cfg_default, merge_opts, set_random_seed

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}
CLASSES = ("ball", "red_box", "cone")
NODES = {
    "DCAR": "DCAR",
    "CoOpITR": "COOPITR",
    "CLIPAdapterITR": "CLIPADAPTERITR",
    "MaPLeITR": "MAPLEITR",
    "ZeroshotITR": "ZEROSHOTITR",
}


def make_tree(root):
    """Three classes in four colours; train and test differ in the shade."""
    for split, shade in (("train", 1.0), ("test", 0.8)):
        records = {}
        for c, name in enumerate(CLASSES):
            for i, (word, rgb) in enumerate(COLOURS.items()):
                key = f"{name}_{split}{i}.jpg"
                path = root / "dtd" / "images" / name / key
                path.parent.mkdir(parents=True, exist_ok=True)
                image = Image.new("RGB", (40, 40), (90, 90, 90))
                draw = ImageDraw.Draw(image)
                box = (4 + 6 * c, 4, 20 + 6 * c, 34 - 6 * c)
                (draw.ellipse if c == 0 else draw.rectangle)(box, fill=tuple(int(v * shade) for v in rgb))
                image.save(path, quality=95)
                caption = f"This is a {name.replace('_', ' ')} lacquered in {word}." + (" It stands there." * c)
                records[key] = {
                    "file_name": key,
                    "class_name": name,
                    "file_path": "YOUR_IMAGE_PATH",
                    "positive": caption,
                    "negative": [f"This is a cone lacquered in {word}." + " It stands there." * c, caption],
                }
        folder = root / "FDRD" / split
        folder.mkdir(parents=True)
        (folder / f"inter_dtd_{split}.json").write_text(json.dumps(records))
    return root


def config(root, clip_file, output, trainer, **keys):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    values = {
        "DATASET.NAME": "FDRD",
        "DATASET.ROOT": str(root),
        "DATASET.FDRD_DOMAIN": "DTD",
        "DATASET.NUM_SHOTS": 4,
        "SEED": 1,
        "VERBOSE": False,
        "USE_CUDA": False,
        "OUTPUT_DIR": str(output),
        "TRAINER.NAME": trainer,
        "MODEL.BACKBONE.NAME": str(clip_file),
        "INPUT.SIZE": (32, 32),
        "INPUT.TRANSFORMS": ("normalize",),
        "DATALOADER.NUM_WORKERS": 0,
        "TEST.EVALUATOR": "Retrieval",
        "DATALOADER.TRAIN_X.BATCH_SIZE": 6,
        "DATALOADER.TEST.BATCH_SIZE": 5,
        "OPTIM.MAX_EPOCH": 1,
        "OPTIM.NAME": "sgd",
        "OPTIM.LR": 0.01,
        f"TRAINER.{NODES[trainer]}.PREC": "fp32",
    }
    if trainer == "MaPLeITR":
        values["TRAINER.MAPLEITR.PROMPT_DEPTH"] = 2
    merge_opts(cfg, [x for item in {**values, **keys}.items() for x in item])
    return cfg


def make_trainer(*args, **keys):
    cfg = config(*args, **keys)
    set_random_seed(cfg.SEED)
    return build_trainer(cfg)
