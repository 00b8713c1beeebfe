"""FDRD files: both families, every way in which a file can be broken, image rules, and the real files'
counts.
"""

import json
import os

import pytest

from dassl_prompts.captions.records import FDRDError, Record, read_records, usable_negatives
from dassl_prompts.fdrd.domains import DOMAINS, ImageFinder, find_file, get_domain

INTER = {
    "file_name": "a.jpg",
    "class_name": "banded",
    "file_path": "YOUR_IMAGE_PATH",
    "positive": " A photo. ",
    "negative": [],
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_both_families_read(tmp_path):
    pets = {
        "file_name": "Sphynx_43",
        "file_path": "/x/Sphynx_43.jpg",
        "positive": "A Sphynx.",
        "negative": ["A cat.", "A cat."],
    }
    first, second = read_records(write(tmp_path / "f.json", {"a.jpg": INTER, "Sphynx_43": pets}))
    assert (first.caption, first.class_name, first.has_path) == ("A photo.", "banded", False)
    assert (second.class_name, second.negatives, second.has_path) == ("", ("A cat.", "A cat."), True)


@pytest.mark.parametrize("content", ["", "\r\n", "  \n"])
def test_emptied_upload_is_explained(tmp_path, content):
    with pytest.raises(FDRDError, match=r"f\.json is empty .*git history"):
        read_records(write(tmp_path / "f.json", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": {', "not valid JSON"),
        ("[1, 2]", "one JSON object"),
        ({"a": "text"}, "record 'a': expected an object"),
        ({"a": {"class_name": "x"}}, "record 'a': no caption"),
        ({"a": {**INTER, "positive": "  "}}, "record 'a': the caption is empty"),
        ({"a": {**INTER, "negative": "no"}}, "record 'a': .*negative must be a list"),
        ({"": {"positive": "A photo."}}, "record '': names no image"),
        ('{"a": {"positive": "x"}, "a": {"positive": "y"}}', "record 'a': the key occurs twice"),
        ({}, "holds no record"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    with pytest.raises(FDRDError, match=message) as error:
        read_records(write(tmp_path / "f.json", content))
    assert "f.json" in str(error.value)


def test_usable_negatives_are_filtered_and_unique():
    assert usable_negatives("a cat", ["a dog", "a cat", "a dog ", " ", "a cow"]) == ["a dog", "a cow"]


@pytest.mark.parametrize(
    ("domain", "record", "path", "classname"),
    [
        (
            "caltech",
            Record("Faces_image_0426.jpg", "c", class_name="face", file_name="Faces_image_0426.jpg"),
            "caltech-101/101_ObjectCategories/Faces/image_0426.jpg",
            "face",
        ),
        (
            "stanford_cars",
            Record("cars_train_00012.jpg", "c", class_name="2012 Audi A5"),
            "stanford_cars/cars_train/00012.jpg",
            "2012 Audi A5",
        ),
        ("DTD", Record("banded_0060.jpg", "c", class_name="banded"), "dtd/images/banded/banded_0060.jpg", "banded"),
        (
            "ucf101",
            Record("v_ApplyEyeMakeup_g01_c01.jpg", "c", class_name="Apply_Eye_Makeup"),
            "ucf101/UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg",
            "Apply_Eye_Makeup",
        ),
        (
            "flowers",
            Record("moon_orchid_image_00007", "c", class_name="moon_orchid", number="00007", file_path="/root/x.jpg"),
            "oxford_flowers/jpg/image_00007.jpg",
            "moon orchid",
        ),
        (
            "pets",
            Record("german_shorthaired_105", "c", file_name="german_shorthaired_105", file_path="/root/x.jpg"),
            "oxford_pets/images/german_shorthaired_105.jpg",
            "german shorthaired",
        ),
        (
            "plane",
            Record("F-16A_B_0810303", "c", file_name="0810303", file_path="/root/x.jpg"),
            "fgvc_aircraft/images/0810303.jpg",
            "F-16A/B",
        ),
        ("plane", Record("F_A-18_0810304", "c", file_name="0810304"), "fgvc_aircraft/images/0810304.jpg", "F/A-18"),
    ],
)
def test_resolver_rules(domain, record, path, classname):
    found = get_domain(domain)
    assert ImageFinder(found, "/data")(record) == f"/data/{path}"
    assert found.class_of(record) == classname


def test_food_images_are_looked_up_by_name(tmp_path):
    folder = tmp_path / "food-101" / "images"
    for name in ("apple_pie/1.jpg", "pho/2.jpg", "ramen/2.jpg"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    find = ImageFinder(get_domain("Food101"), tmp_path)
    assert find(Record("1.jpg", "c", class_name="apple_pie")) == str(folder / "apple_pie/1.jpg")
    assert find(Record("9", "c", file_path="food-101/images/x/9.jpg")) == str(folder / "x/9.jpg")
    with pytest.raises(FDRDError, match="occurs 2 times"):
        find(Record("2", "c"))
    with pytest.raises(FDRDError, match="leaves the dataset folder"):
        find(Record("2", "c", file_path="../secret.jpg"))


def test_unknown_domain_lists_the_nine():
    with pytest.raises(ValueError, match="did you mean OxfordPets") as error:
        get_domain("OxfordPet")
    assert len(DOMAINS) == 9 and all(name in str(error.value) for name in DOMAINS)


def test_files_are_found_in_either_naming_and_whole_ones_first(tmp_path):
    folder = tmp_path / "FDRD" / "train"
    folder.mkdir(parents=True)
    write(folder / "dtd_train.json", "\r\n")
    write(folder / "inter_dtd_train.json", {"a": INTER})
    assert find_file(get_domain("dtd"), "train", tmp_path).name == "inter_dtd_train.json"
    with pytest.raises(FileNotFoundError, match=r"domain SUN397.*inter_sun397_test\.json.*DATASET\.FDRD_TEST"):
        find_file(get_domain("sun397"), "test", tmp_path)


@pytest.mark.parametrize(
    ("name", "count", "classes"),
    [
        ("test/flower_test", 2463, 102),
        ("test/pets_test", 3669, 37),
        ("test/plane_test", 3333, 100),
        ("test/inter_caltech-101_test", 2465, 100),
        ("test/inter_dtd_test", 1692, 47),
        ("train/inter_caltech-101_train", 5777, 100),
        ("train/inter_dtd_train", 3948, 47),
    ],
)
def test_real_files_parse_completely(shared_data, name, count, classes):
    from dassl_prompts.fdrd.check import guess_domain

    path = shared_data / "fdrd" / f"{name}.json"
    domain, records = guess_domain(path), read_records(path)
    find = ImageFinder(domain, "/data")
    assert len(records) == count
    assert len({domain.class_of(r) for r in records}) == classes
    paths = {find(r) for r in records}
    assert len(paths) == count and all(p.startswith("/data/") and p.endswith(".jpg") for p in paths)
    assert not any(os.sep + os.sep in p for p in paths)
