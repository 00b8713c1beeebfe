"""Reading images: plain files, archive members, damage, forked readers; finding missing images."""

import multiprocessing
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from dassl_prompts import images
from dassl_prompts.images import ImageReadError, check_images, missing_images, read_image


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


@pytest.fixture
def archive(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as file:
        file.write(tmp_path / "a.png", "sub/a.png")
        file.writestr("sub/broken.png", (tmp_path / "a.png").read_bytes()[:60])
    return tmp_path / "all.zip"


def test_file_and_member_decode_alike(tmp_path, archive, pixels):
    assert np.array_equal(np.asarray(read_image(tmp_path / "a.png")), pixels)
    assert np.array_equal(np.asarray(read_image(f"{archive}::sub/a.png")), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_every_mode_becomes_rgb_as_pillow_converts_it(tmp_path, mode, pixels):
    suffix = "tif" if mode == "CMYK" else "png"
    Image.fromarray(pixels).convert(mode).save(tmp_path / f"x.{suffix}")
    image = read_image(tmp_path / f"x.{suffix}")
    with Image.open(tmp_path / f"x.{suffix}") as stored:
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(stored.convert("RGB")))


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_damaged_file_is_named(tmp_path, suffix, damage, pixels):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.repeat(np.repeat(pixels, 8, 0), 8, 1)).save(path)
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes({"cut": half, "text": b"<html>404</html>", "empty": b""}[damage])
    with pytest.raises(ImageReadError, match=f"x.{suffix}") as caught:
        read_image(path)
    assert caught.value.path == str(path)


def test_damaged_member_and_damaged_archive_are_named(tmp_path, archive):
    with pytest.raises(ImageReadError, match="all.zip::sub/broken.png"):
        read_image(f"{archive}::sub/broken.png")
    content = bytearray(archive.read_bytes())
    start = content.index(b"sub/a.png") + len("sub/a.png")
    content[start + 30] ^= 0xFF  # the member no longer has its checksum
    (tmp_path / "flipped.zip").write_bytes(content)
    with pytest.raises(ImageReadError, match="flipped.zip::sub/a.png.*CRC"):
        read_image(f"{tmp_path}/flipped.zip::sub/a.png")
    (tmp_path / "cut.zip").write_bytes(archive.read_bytes()[:100])
    with pytest.raises(ImageReadError, match="cut.zip"):
        read_image(f"{tmp_path}/cut.zip::sub/a.png")


def test_what_is_not_there_is_file_not_found(tmp_path, archive):
    for path in (tmp_path / "no.png", f"{tmp_path}/no.zip::a.png", f"{archive}::no.png"):
        with pytest.raises(FileNotFoundError, match="no"):
            read_image(path)


def test_an_archive_is_opened_once(archive, monkeypatch):
    opened = []
    original = zipfile.ZipFile
    monkeypatch.setattr(images.zipfile, "ZipFile", lambda path: opened.append(path) or original(path))
    for _ in range(3):
        read_image(f"{archive}::sub/a.png")
    assert opened == [str(archive)]


def _read_many(path, reference, out):
    out.put(all(np.array_equal(np.asarray(read_image(path)), reference) for _ in range(50)))


def test_forked_readers_do_not_disturb_each_other(tmp_path, pixels):
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as file:
        for i in range(4):
            Image.fromarray(pixels ^ np.uint8(i)).save(tmp_path / f"{i}.png")
            file.write(tmp_path / f"{i}.png", f"{i}.png")
    read_image(f"{tmp_path}/many.zip::0.png")  # the parent has the archive open when it forks
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    workers = [
        context.Process(target=_read_many, args=(f"{tmp_path}/many.zip::{i}.png", pixels ^ np.uint8(i), out))
        for i in range(4)
    ]
    for worker in workers:
        worker.start()
    assert [out.get(timeout=30) for _ in workers] == [True] * 4
    for worker in workers:
        worker.join()


def test_missing_images_are_counted_and_the_first_named(tmp_path, archive):
    present = [str(tmp_path / "a.png"), f"{archive}::sub/a.png"]
    absent = [
        str(tmp_path / "b.png"),
        str(tmp_path / "no" / "c.png"),
        f"{archive}::d.png",
        f"{tmp_path}/no.zip::e.png",
    ]
    assert set(missing_images(present + absent)) == set(absent)
    check_images(present, "Toys")
    with pytest.raises(FileNotFoundError, match=r"Toys: 4 of 6 images are missing") as caught:
        check_images(present + absent, "Toys", "Fetch them.")
    assert absent[0] in str(caught.value) and str(caught.value).endswith("Fetch them.")


def test_missing_images_lists_folders_instead_of_touching_files(tmp_path, monkeypatch):
    for i in range(20):
        (tmp_path / f"{i}.jpg").touch()
    scanned = []
    original = os.scandir
    monkeypatch.setattr(images.os, "scandir", lambda path: scanned.append(path) or original(path))
    assert missing_images(str(tmp_path / f"{i}.jpg") for i in range(21)) == [str(tmp_path / "20.jpg")]
    assert scanned == [str(tmp_path)]


def test_error_survives_the_trip_from_a_worker():
    import pickle

    error = images._unreadable("x.jpg", "cut")
    assert pickle.loads(pickle.dumps(error)).path == "x.jpg"
    assert "x.jpg" in str(type(error)(str(error)))  # the way DataLoader raises it again
