"""Unpacking: everything inside the folder or nothing at all."""

import collections
import io
import tarfile
import zipfile

import pytest

from dassl_prompts.prepare import download
from dassl_prompts.prepare import extract as module
from dassl_prompts.prepare.errors import ArchiveError, DiskFullError
from dassl_prompts.prepare.extract import extract, unpack


def make_zip(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def make_tar(path, members, mode="w:gz"):
    """``members``: name -> bytes, or a TarInfo for anything but a file."""
    with tarfile.open(path, mode) as file:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = 0 if info is content else len(content)
            file.addfile(info, None if info is content else io.BytesIO(content))
    return path


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_tar(tmp_path, mode):
    make_tar(tmp_path / "a.tar", {"./x/1.jpg": b"1", "x/2.jpg": b"22"}, mode)
    (tmp_path / "out").mkdir()
    extract(tmp_path / "a.tar", tmp_path / "out")
    assert tree(tmp_path / "out") == {"x/1.jpg": b"1", "x/2.jpg": b"22"}


def test_zip_without_what_macs_add(tmp_path):
    make_zip(tmp_path / "a.zip", **{"x/1.jpg": b"1", "__MACOSX/x/._1.jpg": b"-", "x/._2.jpg": b"-"})
    (tmp_path / "out").mkdir()
    extract(tmp_path / "a.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {"x/1.jpg": b"1"}


OUTSIDE = ["../evil", "x/../../evil", "/tmp/evil", "..\\evil", "C:/evil", "C:evil", "//server/evil"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_member_outside_is_refused_before_anything_is_written(tmp_path, name, kind):
    members = {"good.jpg": b"1", name: b"evil"}
    path = make_zip(tmp_path / "a", **members) if kind == "zip" else make_tar(tmp_path / "a", members)
    (tmp_path / "deep" / "out").mkdir(parents=True)
    with pytest.raises(ArchiveError, match="outside the folder; nothing was unpacked"):
        extract(path, tmp_path / "deep" / "out")
    assert tree(tmp_path / "deep") == {}


@pytest.mark.parametrize(
    "member",
    [
        link("x", "/etc"),
        link("x", "../.."),
        link("x", "good.jpg"),
        link("x", "/etc/passwd", tarfile.LNKTYPE),
        link("x", "", tarfile.FIFOTYPE),
        link("x", "", tarfile.CHRTYPE),
    ],
)
def test_links_and_devices_are_refused(tmp_path, member):
    make_tar(tmp_path / "a.tgz", {"good.jpg": b"1", "x": member, "x/evil": b"evil"})
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="'x' is a link or device"):
        extract(tmp_path / "a.tgz", tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("x")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(info, "/etc")
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="'x' is a link"):
        extract(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_cut_archive_is_named(tmp_path, kind):
    members = {f"{i}.jpg": bytes(range(256)) * 50 for i in range(9)}
    path = make_zip(tmp_path / "a", **members) if kind == "zip" else make_tar(tmp_path / "a", members)
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="damaged"):
        extract(path, tmp_path / "out")


def test_no_room(tmp_path, monkeypatch):
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(10, 10, 0))
    make_zip(tmp_path / "a.zip", x=b"1")
    make_tar(tmp_path / "a.tar", {"x": b"1"})
    for name in ("a.zip", "a.tar"):
        with pytest.raises(DiskFullError, match=name):
            extract(tmp_path / name, tmp_path)


def test_unpack_moves_products_into_place_and_nothing_else(tmp_path):
    make_tar(tmp_path / "a.tgz", {"top/data/images/1.jpg": b"1", "top/data/list.txt": b"l", "top/readme": b"r"})
    unpack(tmp_path / "a.tgz", tmp_path / "set", {"top/data/images": "images", "top/data/list.txt": "list.txt"})
    assert tree(tmp_path / "set") == {"images/1.jpg": b"1", "list.txt": b"l"}
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == ["images", "list.txt"]


def test_unpack_leaves_what_is_there(tmp_path):
    make_tar(tmp_path / "a.tgz", {"images/1.jpg": b"new", "list.txt": b"new"})
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "list.txt").write_bytes(b"mine")
    unpack(tmp_path / "a.tgz", tmp_path / "set", {"images": "images", "list.txt": "list.txt"})
    assert tree(tmp_path / "set") == {"images/1.jpg": b"new", "list.txt": b"mine"}


def test_interrupted_unpacking_leaves_no_half_folder_and_is_repeated(tmp_path, monkeypatch):
    make_tar(tmp_path / "a.tgz", {"images/1.jpg": b"1", "images/2.jpg": b"2"})
    products = {"images": "images"}
    copied = []

    def interrupted(source, target, length):
        if copied:
            raise KeyboardInterrupt
        copied.append(target.write(source.read()))

    monkeypatch.setattr(module.shutil, "copyfileobj", interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "a.tgz", tmp_path / "set", products)
    assert not (tmp_path / "set" / "images").exists()
    monkeypatch.undo()
    (tmp_path / "set" / ".unpack-a.tgz").mkdir()  # as after a kill
    unpack(tmp_path / "a.tgz", tmp_path / "set", products)
    assert tree(tmp_path / "set") == {"images/1.jpg": b"1", "images/2.jpg": b"2"}


def test_archive_of_something_else_is_named(tmp_path):
    make_zip(tmp_path / "a.zip", **{"other/1.jpg": b"1"})
    with pytest.raises(ArchiveError, match="holds no 'images'; is it the right archive"):
        unpack(tmp_path / "a.zip", tmp_path / "set", {"images": "images"})


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_the_checksum_of_the_packing_is_compared(tmp_path, kind):
    """It stands behind the last member, where nothing of the tar is left to be read."""
    path = make_tar(tmp_path / "a.tar", {"x": b"1" * 5000}, f"w:{kind}")
    whole = bytearray(path.read_bytes())
    at = {"gz": -6, "bz2": -3, "xz": -14}[kind]
    whole[at] ^= 1
    path.write_bytes(whole)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="a.tar is .*delete it and run the command again"):
        extract(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("place", "value", "words"), [(6, 1, "encrypted"), (8, 99, "compression method")])
def test_a_member_that_cannot_be_unpacked_is_named(tmp_path, place, value, words):
    path = make_zip(tmp_path / "a.zip", x=b"1", secret=b"2" * 100)
    content = bytearray(path.read_bytes())
    for mark, offset in (
        (b"PK\x03\x04", place),
        (b"PK\x01\x02", place + 2),
    ):  # of its own header and in the list of all
        at = content.rindex(mark)
        content[at + offset] = value
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match=f"a.zip: member 'secret' cannot be unpacked .*{words}.*unpack it by hand"):
        extract(path, tmp_path / "out")
