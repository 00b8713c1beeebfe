"""Reading images: plain files, archive members, damage, forked readers; finding missing images."""

import errno
import multiprocessing
import os
import struct
import zipfile
from collections import Counter

import numpy as np
import PIL
import pytest
from PIL import Image, ImageOps

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


# -- depth, orientation, formats, size -----------------------------------------------------------------------

RAMP = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)


def tiff(pixels: bytes, width: int, height: int, bits: int, white_is_zero: bool = False) -> bytes:
    """An uncompressed grey TIFF, for depths that Pillow reads and does not write."""
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, int(not white_is_zero)), (273, 8)]
    entries += [(277, 1), (278, height), (279, len(pixels))]
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    start = 8 + len(pixels)
    return b"II*\0" + struct.pack("<I", start) + pixels + struct.pack("<H", len(entries)) + table + bytes(4)


@pytest.mark.parametrize("suffix", ["png", "tif", "jp2"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path, suffix):
    Image.fromarray(RAMP).save(tmp_path / f"x.{suffix}", **({"irreversible": False} if suffix == "jp2" else {}))
    read = np.asarray(read_image(tmp_path / f"x.{suffix}"))
    assert np.array_equal(read, np.repeat((RAMP // 256)[..., None], 3, 2))


def test_big_endian_wide_and_short_depths_keep_their_upper_eight(tmp_path):
    Image.fromarray(RAMP.astype(">u2")).save(tmp_path / "big.tif")
    assert np.array_equal(np.asarray(read_image(tmp_path / "big.tif"))[..., 0], RAMP // 256)
    (tmp_path / "x.pgm").write_bytes(b"P5 64 48 65535\n" + RAMP.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.pgm"))[..., 0], RAMP // 256)
    twelve = (RAMP // 16).reshape(-1, 2).astype(np.uint32)
    packed = twelve[:, 0] << 12 | twelve[:, 1]
    content = np.stack([packed >> 16, packed >> 8, packed], 1).astype(np.uint8).tobytes()
    (tmp_path / "12.tif").write_bytes(tiff(content, 64, 48, 12))
    assert np.array_equal(np.asarray(read_image(tmp_path / "12.tif"))[..., 0], RAMP // 256)


def test_white_stored_as_zero_is_white_with_sixteen_bits_as_with_eight(tmp_path):
    for bits, pixels in ((8, RAMP // 256), (16, RAMP)):
        content = pixels.astype(f"<u{bits // 8}").tobytes()
        (tmp_path / f"{bits}.tif").write_bytes(tiff(content, 64, 48, bits, white_is_zero=True))
        assert np.array_equal(np.asarray(read_image(tmp_path / f"{bits}.tif"))[..., 0], 255 - RAMP // 256)


def test_grey_of_sixteen_bits_is_read_as_colour_of_sixteen_bits(tmp_path):
    for magic, pixels in ((b"P5", RAMP), (b"P6", np.repeat(RAMP[..., None], 3, 2))):
        (tmp_path / f"{magic.decode()}.pnm").write_bytes(magic + b" 64 48 65535\n" + pixels.astype(">u2").tobytes())
    grey, colour = (np.asarray(read_image(tmp_path / f"{name}.pnm")).astype(int) for name in ("P5", "P6"))
    assert np.abs(grey - colour).max() <= 1  # Pillow rounds where it scales a PPM


@pytest.mark.parametrize("mode, dtype", [("F", np.float32), ("I", np.int32)])
def test_pixels_without_a_range_are_refused_with_file_and_mode(tmp_path, mode, dtype):
    Image.fromarray(np.ones((8, 8), dtype)).save(tmp_path / "x.tif")
    with pytest.raises(ImageReadError, match=rf"x.tif: its pixels \(TIFF, mode {mode}\).*8 or 16 bits") as caught:
        read_image(tmp_path / "x.tif")
    assert caught.value.path == str(tmp_path / "x.tif") and "corrupt" not in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "1"])
@pytest.mark.parametrize("orientation", images.ORIENTATIONS)
def test_eight_bits_are_converted_to_the_bit_as_pillow_does(tmp_path, mode, orientation, pixels):
    first = Image.fromarray(pixels)
    stored = first.convert("P").convert("PA") if mode == "PA" else first.convert("RGB").convert(mode)
    suffix = "tif" if mode in ("PA", "RGBX", "CMYK", "YCbCr") else "png"
    stored.save(tmp_path / f"x.{suffix}")
    with Image.open(tmp_path / f"x.{suffix}") as image:
        try:
            expected = np.asarray(image.convert("RGB"))
        except OSError:
            if mode != "YCbCr" or not PIL.__version__.startswith("12."):
                raise
            pytest.skip("Pillow 12 does not read the YCbCr TIFF that it writes")
    assert np.array_equal(np.asarray(read_image(tmp_path / f"x.{suffix}", orientation)), expected)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "avif"])
def test_camera_orientation_is_followed_only_where_asked(tmp_path, suffix, turn, pixels):
    if f".{suffix}" not in images.IMAGE_SUFFIXES:
        pytest.skip(f"this Pillow does not read {suffix}")
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels).save(tmp_path / f"x.{suffix}", exif=exif)
    with Image.open(tmp_path / f"x.{suffix}") as image:
        stored = np.asarray(image.convert("RGB"))
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(np.asarray(read_image(tmp_path / f"x.{suffix}")), stored)
    assert np.array_equal(np.asarray(read_image(tmp_path / f"x.{suffix}", "camera")), upright)
    assert (stored.shape != upright.shape) == (turn > 4)


def test_tiff_is_turned_by_pillow_either_way(tmp_path, pixels):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "x.tif", exif=exif)
    upright = np.rot90(pixels, -1)
    for orientation in images.ORIENTATIONS:
        assert np.array_equal(np.asarray(read_image(tmp_path / "x.tif", orientation)), upright)


def test_damaged_exif_does_not_cost_the_picture(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert np.array_equal(np.asarray(read_image(tmp_path / "x.png", "camera")), pixels)


def test_unknown_orientation_is_refused(tmp_path):
    with pytest.raises(ValueError, match="orientation is 'upright'; choose one of stored, camera"):
        read_image(tmp_path / "x.png", "upright")


@pytest.mark.parametrize("suffix", ["eps", "tga", "ico", "pdf", "sgi"])
def test_formats_outside_the_field_are_not_opened(tmp_path, suffix, pixels):
    Image.fromarray(pixels).save(tmp_path / f"x.{suffix}")
    (tmp_path / f"x.{suffix}").rename(tmp_path / "x.png")  # the content counts, not the name
    with pytest.raises(ImageReadError, match="x.png: it is none of PNG, JPEG, .*TIFF.*converted"):
        read_image(tmp_path / "x.png")


def test_every_format_of_the_list_is_read(tmp_path, pixels):
    suffixes = [s for s in images.IMAGE_SUFFIXES if s not in (".jpx", ".pbm", ".pgm", ".pnm")]
    assert {".png", ".jpg", ".webp", ".gif", ".bmp", ".tif", ".ppm"} <= set(suffixes)
    for suffix in suffixes:
        Image.fromarray(pixels).save(tmp_path / f"x{suffix}")
        assert read_image(tmp_path / f"x{suffix}").size == (10, 12)


def test_a_picture_over_the_limit_is_not_called_corrupt(tmp_path, monkeypatch, pixels):
    Image.fromarray(pixels).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(ImageReadError, match="x.png: it has more than 100 pixels, the limit; scale it down") as caught:
        read_image(tmp_path / "x.png")
    assert "corrupt" not in str(caught.value)


def test_a_failing_disk_is_not_called_corrupt(tmp_path, monkeypatch, pixels):
    Image.fromarray(pixels).save(tmp_path / "x.png")

    def fail(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(images.Image, "open", fail)
    with pytest.raises(OSError, match="Too many open files.*x.png") as caught:
        read_image(tmp_path / "x.png")
    assert not isinstance(caught.value, ImageReadError)


@pytest.mark.parametrize("error", [TypeError, KeyError, AssertionError, OverflowError, RuntimeError])
def test_any_error_of_a_decoder_names_the_file(tmp_path, monkeypatch, pixels, error):
    Image.fromarray(pixels).save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "load", lambda self: exec("raise error", {"error": error}))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: exec("raise error", {"error": error}))
    with pytest.raises(ImageReadError, match=f"x.png: {error.__name__}"):
        read_image(tmp_path / "x.png")


def test_a_member_that_unpacks_to_too_much_is_not_unpacked(tmp_path, archive, monkeypatch):
    monkeypatch.setattr(images, "MAX_MEMBER_BYTES", 10)
    with pytest.raises(ImageReadError, match=r"all.zip::sub/a.png: it unpacks to \d+ bytes, the limit is 10"):
        read_image(f"{archive}::sub/a.png")


@pytest.mark.parametrize("size", [(3, 600), (600, 3), (40, 3000), (25, 500)])
def test_a_very_long_picture_is_resized_only_where_it_is_cropped(size):
    from torchvision import transforms as T

    from dassl_prompts.engine.builtin.transforms import Resize

    width, height = size
    wave = np.add.outer(np.sin(np.arange(height) / 5), np.cos(np.arange(width) / 5))
    image = Image.fromarray(np.uint8(128 + 60 * wave)).convert("RGB")
    mode, crop = T.InterpolationMode.BICUBIC, T.CenterCrop((32, 32))
    whole, part = T.Resize(32, mode)(image), Resize(32, (32, 32), mode)(image)
    assert part.size == (32, 32) and max(whole.size) >= 20 * 32
    assert np.abs(np.asarray(crop(whole)).astype(int) - np.asarray(crop(part))).max() <= 1


def test_ordinary_pictures_are_resized_to_the_bit_as_torchvision_does(pixels):
    from torchvision import transforms as T

    from dassl_prompts.engine.builtin.transforms import Resize

    mode = T.InterpolationMode.BICUBIC
    for image in (Image.fromarray(pixels), Image.fromarray(pixels[:, :1]).resize((19, 1))):
        own, theirs = Resize(24, (24, 24), mode), T.Resize(24, mode)
        assert np.array_equal(np.asarray(own(image)), np.asarray(theirs(image))) and repr(own) == repr(theirs)


def test_folders_are_walked_in_order_and_other_files_are_counted(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "x.heic", "y.heic", "sub/notes.txt", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    left_out = Counter()
    found = [os.path.relpath(path, tmp_path) for path in images.walk_images(tmp_path, left_out)]
    assert found == ["a.PNG", "b.jpg", os.path.join("sub", "c.webp")]
    line = images.describe_left_out(left_out)
    assert line.startswith("left out 4 files of formats that are not read: 2 .heic, ")
    assert "1 .txt" in line and "1 without suffix" in line
