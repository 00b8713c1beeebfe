"""The pure parts of the build script; fetching needs a network and is not run here."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

spec = importlib.util.spec_from_file_location("build_emoji", Path(__file__).parents[2] / "tools" / "build_emoji.py")
build_emoji = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_emoji)


@pytest.mark.parametrize(
    "codes, expected",
    [
        ("1F3C3-200D-2640", ("1F3C3", "woman", None, None)),
        ("1F3C3-200D-2642-200D-27A1", ("1F3C3", "man", None, "right")),
        ("1F469-200D-1F692", ("1F9D1-1F692", "woman", None, None)),
        ("1F468-200D-1F9B0", ("1F9D1-1F9B0", "man", "red hair", None)),
        ("1F471-200D-2640", ("1F9D1-1F471", "woman", "blond hair", None)),
        ("1F478", ("1FAC5", "woman", None, None)),
        ("1F98A", ("1F98A", None, None, None)),
    ],
)
def test_person_attributes(codes, expected):
    assert build_emoji.person_attributes(codes) == expected


@pytest.mark.parametrize(
    "rgb, word",
    [
        ((255, 0, 0), "red"),
        ((0, 0, 255), "blue"),
        ((0, 160, 0), "green"),
        ((255, 255, 0), "yellow"),
        ((255, 140, 0), "orange"),
        ((128, 0, 160), "purple"),
        ((255, 150, 180), "pink"),
        ((120, 70, 20), "brown"),
        ((0, 0, 0), "black"),
        ((128, 128, 128), "grey"),
        ((255, 255, 255), "white"),
    ],
)
def test_colour_names(rgb, word):
    assert build_emoji.colour_name(rgb) == word


def test_colour_words_ignore_the_ground_and_skin():
    image = Image.new("RGB", (64, 64), "white")
    image.paste((0, 0, 255), (0, 0, 32, 32))
    image.paste((255, 200, 60), (32, 0, 64, 32))
    assert set(build_emoji.colour_words(image, person=False, outlined=False)) == {"blue", "yellow"}
    assert build_emoji.colour_words(image, person=True, outlined=False) == ["blue"]


def test_splits_keep_families_together_and_are_large_enough():
    concepts = [{"class": None, "subgroup": "heart", "family": f"h{i}"} for i in range(10)]
    for name in build_emoji.CLASSES:
        concepts += [{"class": name, "subgroup": "", "family": f"{name}{i // 3}"} for i in range(36)]
    build_emoji.assign_splits(concepts)
    families = Counter((c["family"], c["split"]) for c in concepts)
    assert len(families) == len({f for f, _ in families})
    sizes = Counter((c["class"], c["split"]) for c in concepts)
    assert all(sizes[n, "train"] >= 16 and sizes[n, "test"] >= 10 for n in build_emoji.CLASSES)


def test_too_small_a_class_is_an_error():
    with pytest.raises(ValueError, match="class happy face"):
        build_emoji.assign_splits([{"class": "happy face", "subgroup": "", "family": str(i)} for i in range(20)])


def test_package_with_another_hash_is_refused(tmp_path):
    (tmp_path / "iconify-json-noto-1.0.tgz").write_bytes(b"something else")
    with pytest.raises(build_emoji.FetchError, match="expected abc: delete it"):
        build_emoji.fetch(tmp_path, "@iconify-json/noto", "1.0", "abc")


def test_missing_npm_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        build_emoji.FetchError, match="npm is not installed: install it, or put iconify-json-noto-1.0.tgz"
    ):
        build_emoji.fetch(tmp_path, "@iconify-json/noto", "1.0", "abc")


def test_fixed_time_stamps_make_archives_repeatable(tmp_path):
    import zipfile

    made = []
    for name in ("a.zip", "b.zip"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            build_emoji.add(archive, "x.webp", b"123")
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


def test_mirrored_alias_is_drawn_mirrored():
    resvg = pytest.importorskip("resvg_py", reason="resvg-py (only needed to build the data) is not installed")
    assert resvg
    artist = build_emoji.Artist.__new__(build_emoji.Artist)
    artist.icons = {
        "icons": {"half": {"body": '<path fill="red" d="M0 0h8v16H0z"/>'}},
        "aliases": {"flip": {"parent": "half", "hFlip": True}},
    }
    artist.names = {"A": "half", "B": "flip"}
    left, right = artist.draw("A"), artist.draw("B")
    assert left.getpixel((5, 30)) == (255, 0, 0) and left.getpixel((60, 30)) == (255, 255, 255)
    assert right.getpixel((5, 30)) == (255, 255, 255) and right.getpixel((60, 30)) == (255, 0, 0)
