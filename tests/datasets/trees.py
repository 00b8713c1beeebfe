"""Small dataset trees in the real layouts: what each dataset's archives and CoOp's additions unpack to."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE = Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.save(path)


def lines(path: Path, *content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(content) + "\n")


def split_json(path: Path, **parts) -> None:
    """A split file in CoOp's format; parts are lists of (relative path, label, class name)."""
    path.write_text(json.dumps({part: [list(entry) for entry in entries] for part, entries in parts.items()}))


def folders(root: Path, classes: dict[str, int]) -> None:
    """``classes`` maps a folder name to its number of images."""
    for name, count in classes.items():
        for i in range(count):
            picture(root / name / f"{name}_{i:04d}.jpg")


def caltech101(root: Path) -> None:
    classes = {
        "airplanes": 10,
        "Faces": 12,
        "Faces_easy": 10,
        "BACKGROUND_Google": 10,
        "Leopards": 10,
        "lotus": 11,
    }
    folders(root / "caltech-101" / "101_ObjectCategories", classes)


def dtd(root: Path) -> None:
    folders(root / "dtd" / "images", {"banded": 10, "zigzagged": 10})


def food101(root: Path) -> None:
    folders(root / "food-101" / "images", {"apple_pie": 10, "waffles": 10})


def eurosat(root: Path) -> None:
    folders(root / "eurosat" / "2750", {"AnnualCrop": 10, "Forest": 10, "SeaLake": 10})


def oxford_pets(root: Path) -> None:
    base = root / "oxford_pets"
    breeds = [("Abyssinian", 1, 1), ("american_bulldog", 2, 2), ("Bengal", 3, 1)]
    for part, numbers in (("trainval", range(1, 11)), ("test", range(101, 104))):
        lines(
            base / "annotations" / f"{part}.txt",
            *(f"{breed}_{n} {label} {species} 1" for breed, label, species in breeds for n in numbers),
        )
        for breed, _, _ in breeds:
            for n in numbers:
                picture(base / "images" / f"{breed}_{n}.jpg")


def stanford_cars(root: Path) -> None:
    from scipy.io import savemat

    base = root / "stanford_cars"
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array([names], dtype=object)})
    kinds = [("fname", object), ("class", object)]
    for folder, path, count in (
        ("cars_train", "devkit/cars_train_annos.mat", 10),
        ("cars_test", "cars_test_annos_withlabels.mat", 4),
    ):
        rows = np.empty((1, count), dtype=kinds)
        for i in range(count):
            rows[0, i] = (f"{i + 1:05d}.jpg", np.array([[i % 2 + 1]], dtype=np.uint8))
            picture(base / folder / f"{i + 1:05d}.jpg")
        savemat(base / path, {"annotations": rows})


def oxford_flowers(root: Path) -> None:
    from scipy.io import savemat

    base = root / "oxford_flowers"
    labels = [1] * 10 + [2] * 10
    for i in range(1, 21):
        picture(base / "jpg" / f"image_{i:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    (base / "cat_to_name.json").write_text(json.dumps({"1": "pink primrose", "2": "hard-leaved pocket orchid"}))


def fgvc_aircraft(root: Path) -> None:
    base = root / "fgvc_aircraft"
    variants = ["707-320", "F/A-18", "Global Express"]
    lines(base / "variants.txt", *variants)
    number = 0
    for part, count in (("train", 3), ("val", 2), ("test", 2)):
        entries = []
        for variant in reversed(variants):  # the lists are not in the order of variants.txt
            for _ in range(count):
                number += 1
                entries.append(f"{number:07d} {variant}")
                picture(base / "images" / f"{number:07d}.jpg")
        lines(base / f"images_variant_{part}.txt", *entries)


def sun397(root: Path) -> None:
    base = root / "sun397"
    scenes = ["/a/abbey", "/a/apartment_building/outdoor"]
    lines(base / "ClassName.txt", *scenes)
    for part, numbers in (("Training_01", range(10)), ("Testing_01", range(10, 13))):
        entries = [f"{scene}/sun_{n:04d}.jpg" for scene in scenes for n in numbers]
        lines(base / f"{part}.txt", *entries)
        for entry in entries:
            picture(base / "SUN397" / entry[1:])


def ucf101(root: Path) -> None:
    base = root / "ucf101"
    actions = ["ApplyEyeMakeup", "Archery"]
    lines(base / "ucfTrainTestlist" / "classInd.txt", *(f"{i} {a}" for i, a in enumerate(actions, 1)))
    for part, groups in (("train", range(8, 18)), ("test", range(1, 4))):
        entries = []
        for i, (action, folder) in enumerate(zip(actions, ("Apply_Eye_Makeup", "Archery")), 1):
            for group in groups:
                video = f"v_{action}_g{group:02d}_c01"
                entries.append(f"{action}/{video}.avi" + (f" {i}" if part == "train" else ""))
                picture(base / "UCF-101-midframes" / folder / f"{video}.jpg")
        lines(base / "ucfTrainTestlist" / f"{part}list01.txt", *entries)


WNIDS = {"n01440764": "tench", "n01443537": "goldfish", "n02012849": "crane bird"}


def classnames(folder: Path) -> None:
    lines(folder / "classnames.txt", *(f"{wnid} {name}" for wnid, name in WNIDS.items()))


def imagenet(root: Path) -> None:
    base = root / "imagenet"
    classnames(base)
    folders(base / "images" / "train", dict.fromkeys(WNIDS, 6))
    folders(base / "images" / "val", dict.fromkeys(WNIDS, 2))


def imagenetv2(root: Path) -> None:
    base = root / "imagenetv2"
    classnames(base)
    folders(base / "imagenetv2-matched-frequency-format-val", dict.fromkeys("012", 2))


def imagenet_sketch(root: Path) -> None:
    base = root / "imagenet-sketch"
    classnames(base)
    folders(base / "images", dict.fromkeys(WNIDS, 2))


def imagenet_a(root: Path) -> None:
    base = root / "imagenet-adversarial"
    classnames(base)
    folders(base / "imagenet-a", dict.fromkeys(list(WNIDS)[:2], 2))
    lines(base / "imagenet-a" / "README.txt", "not a class")


def imagenet_r(root: Path) -> None:
    base = root / "imagenet-rendition"
    classnames(base)
    folders(base / "imagenet-r", dict.fromkeys(list(WNIDS)[1:], 2))
    lines(base / "imagenet-r" / "README.txt", "not a class")


#: registered name -> what builds its tree below a data root
TREES = {
    "Caltech101": caltech101,
    "OxfordPets": oxford_pets,
    "StanfordCars": stanford_cars,
    "OxfordFlowers": oxford_flowers,
    "Food101": food101,
    "FGVCAircraft": fgvc_aircraft,
    "SUN397": sun397,
    "DescribableTextures": dtd,
    "EuroSAT": eurosat,
    "UCF101": ucf101,
    "ImageNet": imagenet,
    "ImageNetV2": imagenetv2,
    "ImageNetSketch": imagenet_sketch,
    "ImageNetA": imagenet_a,
    "ImageNetR": imagenet_r,
}


def make_tree(name: str, root: Path) -> Path:
    """Build the tree of dataset ``name`` below ``root`` and return ``root``."""
    TREES[name](root)
    return root
