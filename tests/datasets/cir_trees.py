"""Small composed-retrieval trees in the real layouts: eight images per split, one image set."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

WORDS = [
    "red",
    "green",
    "blue",
    "two dogs",
    "a larger one",
    "without the hat",
    "in the snow",
    "seen from above",
]


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def dump(path: Path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def cirr(root: Path, layout: str = "official") -> None:
    """``layout``: official (img_raw), searle (images beside the annotation folder) or transagg (an NLVR2
    folder)."""
    base = root / ("cirr_dataset" if layout == "searle" else "") / "cirr"
    images = {
        "official": base / "img_raw",
        "searle": root / "cirr_dataset",
        "transagg": root / "nlvr2" / "images",
    }[layout]
    for split, prefix, folder in (
        ("train", "train", "train/7"),
        ("val", "dev", "dev"),
        ("test1", "test1", "test1"),
    ):
        names = [f"{prefix}-{i}-0-img{i % 2}" for i in range(8)]
        dump(
            base / "image_splits" / f"split.rc2.{split}.json",
            {name: f"./{folder}/{name}.png" for name in names},
        )
        for i, name in enumerate(names):
            picture(images / folder / f"{name}.png", i)
        entries = []
        for i in range(6):
            entry = {
                "pairid": 100 + i,
                "reference": names[i],
                "caption": WORDS[i],
                "target_hard": names[(i + 1) % 6],
                "target_soft": {},
                "img_set": {"id": 3, "members": names[:6], "reference_rank": i, "target_rank": i},
            }
            if split == "test1":
                entry.pop("target_hard"), entry.pop("target_soft")
                entry["caption"] = " " if i == 2 else WORDS[i]  # the real file has a blank one
            entries.append(entry)
        dump(base / "captions" / f"cap.rc2.{split}.json", entries)


def fashioniq(root: Path, suffix: str = ".jpg") -> None:
    base = root / "fashioniq"
    for c, category in enumerate(("dress", "shirt", "toptee")):
        # toptee shares an image with shirt, as in the real data
        names = [f"B{max(c, 1) if i == 0 and c == 2 else c}{i:03d}" for i in range(8)]
        if category == "toptee":
            names[0] = "B1000"
        for split in ("train", "val", "test"):
            dump(base / "image_splits" / f"split.{category}.{split}.json", names)
            entries = [
                {"candidate": names[i], "target": names[i + 1], "captions": [f" is {WORDS[i]}.", f"{WORDS[i + 1]}, "]}
                for i in range(5)
            ]
            entries[3]["captions"][1] = ""
            dump(
                base / "captions" / f"cap.{category}.{split}.json",
                [{k: v for k, v in e.items() if k != "target"} if split == "test" else e for e in entries],
            )
        for i, name in enumerate(names):
            picture(base / "images" / f"{name}{suffix}", 10 * c + i)


def laion_cir(root: Path) -> None:
    base = root / "laion_cir"
    template = [{"ref_image_id": str(i), "relative_cap": WORDS[i], "tgt_image_id": str(i + 1)} for i in range(6)]
    template[4]["tgt_image_id"] = 5  # full target statements have numbers
    dump(base / "laion_template_info.json", template)
    llm = {str(i): {"tgt_image_id": str(i + 2), "relative_cap": WORDS[i + 1], "tgt_cap": "x"} for i in range(4)}
    dump(base / "laion_llm_info.json", llm)
    for i in range(8):
        picture(base / "images" / f"{i:07d}.png", i)


def circo(root: Path) -> None:
    """Twelve pictures, listed in another order than their numbers; two to four right answers per query."""
    base = root / "circo"
    coco = base / "COCO2017_unlabeled"
    numbers = [581929, 37, 1001, 205, 99, 4500, 77, 12, 300000, 8, 613, 21]
    images = [{"license": 1, "file_name": f"{n:012d}.jpg", "id": n, "height": 12, "width": 16} for n in numbers]
    dump(coco / "annotations" / "image_info_unlabeled2017.json", {"info": {}, "images": images})
    for i, image in enumerate(images):
        picture(coco / "unlabeled2017" / image["file_name"], i)
    aspects = [["cardinality"], ["addition", "viewpoint"], ["addition"], ["negation", "cardinality"], ["viewpoint"]]
    val = [
        {
            "reference_img_id": numbers[i],
            "target_img_id": numbers[i + 1],
            "relative_caption": WORDS[i],
            "shared_concept": "noise",
            "gt_img_ids": numbers[i + 1 : i + 3 + i % 3],
            "id": i,
            "semantic_aspects": aspects[i],
        }
        for i in range(5)
    ]
    dump(base / "annotations" / "val.json", val)
    hidden = ("target_img_id", "gt_img_ids", "semantic_aspects")
    test = [{k: v for k, v in entry.items() if k not in hidden} for entry in val[1:]]
    dump(base / "annotations" / "test.json", [{**entry, "id": i} for i, entry in enumerate(test)])
