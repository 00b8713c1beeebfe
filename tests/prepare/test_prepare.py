"""The command end to end against a local server, its checks, and the table of sources.

One file: its cases share one local server and the archives that it serves.
"""

import collections
import dataclasses
import inspect
import re
import shutil
import subprocess
import sys
import tarfile
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dassl_prompts.prepare import __main__ as command
from dassl_prompts.prepare import check as check_module
from dassl_prompts.prepare import fetch, layout
from dassl_prompts.prepare.check import check, dataset_classes
from dassl_prompts.prepare.download import file_md5
from dassl_prompts.prepare.links import parse_page
from dassl_prompts.prepare.sources import SOURCES, File
from tests.datasets import trees
from tests.prepare.server import serve

PAGE = """\
### EuroSAT
- Download `split_zhou_EuroSAT.json` from [here](https://drive.google.com/file/d/1-Euro_sat/view?usp=sharing).
- Download the `classnames.txt` to `$DATA/imagenet/` from [here](https://drive.google.com/file/d/1Names/view).
- Download `split_zhou_DescribableTextures.json` from [here](https://drive.google.com/file/d/1dtd/view?usp=s).
"""


@pytest.fixture
def site():
    with serve() as site:
        site.files["/page.md"] = PAGE.encode()
        yield site


@pytest.fixture
def drive(monkeypatch):
    """A stand-in for gdown that hands out what is put into it: id -> content, or an error."""
    drive = types.ModuleType("gdown")
    drive.content, drive.asked = {}, []

    class Refused(Exception):
        pass

    def download(id, output, resume):
        drive.asked.append(id)
        content = drive.content[id]
        if isinstance(content, Exception):
            raise content
        Path(output).write_bytes(content)
        return output

    drive.download, drive.Refused = download, Refused
    drive.exceptions = types.SimpleNamespace(FileURLRetrievalError=Refused)
    monkeypatch.setitem(sys.modules, "gdown", drive)
    return drive


@pytest.fixture
def textures(site, drive, tmp_path, monkeypatch):
    """The DTD of the test trees, served as its archive, with sources that point at the local server."""
    tree = trees.make_tree("DescribableTextures", tmp_path / "theirs") / "dtd"
    images = sorted(tree.rglob("*.jpg"))
    parts = {"train": images[::3], "val": images[1::3], "test": images[2::3]}
    split = {
        part: [(str(p.relative_to(tree / "images")), int(p.parent.name == "zigzagged"), p.parent.name) for p in paths]
        for part, paths in parts.items()
    }
    trees.split_json(tree / "split.json", **split)
    drive.content["1dtd"] = (tree / "split.json").read_bytes()
    with tarfile.open(tmp_path / "dtd.tar.gz", "w:gz") as file:
        file.add(tree / "images", "dtd/images")
    site.files["/dtd.tar.gz"] = (tmp_path / "dtd.tar.gz").read_bytes()
    site.etags["/dtd.tar.gz"] = '"1"'

    source = SOURCES["DescribableTextures"]
    archive = dataclasses.replace(
        source.files[0], urls=(site.url("/dtd.tar.gz"),), md5=file_md5(tmp_path / "dtd.tar.gz")
    )
    counts = tuple(len(paths) for paths in parts.values())

    def point_to(**changes):
        files = (dataclasses.replace(archive, **changes), source.files[1])
        monkeypatch.setitem(
            SOURCES, "DescribableTextures", dataclasses.replace(source, files=files, classes=2, counts=counts)
        )

    point_to()
    site.point_to = point_to
    return site


def run(site, root, *words):
    return command.main([*words, "--root", str(root), "--coop-page", site.url("/page.md")])


# -- getting -----------------------------------------------------------------------------------------------


def test_a_dataset_is_laid_out_and_a_second_run_fetches_nothing(textures, drive, tmp_path, capsys):
    root = tmp_path / "data"
    assert run(textures, root, "dtd") == 0
    assert "DescribableTextures ok       2 classes  train 7  val 7  test 6" in capsys.readouterr().out
    assert sorted(p.name for p in (root / "dtd").iterdir()) == [
        "images",
        "split_zhou_DescribableTextures.json",
    ]
    before = len(textures.requests), len(drive.asked)
    assert run(textures, root, "DescribableTextures") == 0
    assert (len(textures.requests), len(drive.asked)) == before


def test_archives_can_be_kept(textures, tmp_path):
    assert run(textures, tmp_path / "data", "dtd", "--keep-archives") == 0
    assert (tmp_path / "data" / "dtd" / ".download" / "dtd-r1.0.1.tar.gz").exists()


def test_archive_that_a_person_fetched_is_used_and_kept(textures, tmp_path):
    textures.point_to(urls=())
    folder = tmp_path / "data" / "dtd"
    folder.mkdir(parents=True)
    shutil.copy(tmp_path / "dtd.tar.gz", folder / "dtd-r1.0.1.tar.gz")
    assert run(textures, tmp_path / "data", "dtd") == 0
    assert (folder / "dtd-r1.0.1.tar.gz").exists() and (folder / "images" / "banded").is_dir()


def test_second_address_is_tried(textures, tmp_path):
    textures.point_to(urls=(textures.url("/gone.tar.gz"), textures.url("/dtd.tar.gz")))
    assert run(textures, tmp_path / "data", "dtd") == 0


def test_interrupted_command_continues(textures, tmp_path, monkeypatch, capsys):
    textures.cut_after["/dtd.tar.gz"] = [100]

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("dassl_prompts.prepare.download.time.sleep", interrupted)
    assert run(textures, tmp_path / "data", "dtd") == 130
    assert "run the same command again" in capsys.readouterr().err
    monkeypatch.undo()
    textures.point_to()
    monkeypatch.setitem(sys.modules, "gdown", None)  # the rest by hand, to see both
    assert run(textures, tmp_path / "data", "dtd") == 3
    assert ("/dtd.tar.gz", "bytes=100-") in textures.requests
    assert (tmp_path / "data" / "dtd" / "images" / "banded").is_dir()


# -- what goes wrong ---------------------------------------------------------------------------------------


def test_exit_codes(textures, drive, tmp_path, monkeypatch, capsys):
    textures.point_to(urls=(textures.url("/gone.tar.gz"),))
    assert run(textures, tmp_path / "a", "dtd") == 4
    assert f"put it at {tmp_path}/a/dtd/dtd-r1.0.1.tar.gz" in capsys.readouterr().err

    textures.point_to(md5="0" * 32)
    assert run(textures, tmp_path / "b", "dtd") == 5

    textures.files["/bad.tar.gz"] = b"<html>moved</html>"
    textures.point_to(urls=(textures.url("/bad.tar.gz"),), md5="")
    assert run(textures, tmp_path / "c", "dtd") == 4
    textures.files["/bad.tar.gz"] = b"neither a page nor an archive"
    assert run(textures, tmp_path / "c", "dtd") == 7
    textures.point_to()
    assert run(textures, tmp_path / "c", "dtd") == 0  # the bad archive was not kept

    textures.point_to()
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr("dassl_prompts.prepare.download.shutil.disk_usage", lambda path: usage(10, 10, 0))
    assert run(textures, tmp_path / "d", "dtd") == 6
    monkeypatch.undo()


def test_zip_with_parent_paths_is_refused(textures, tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr("dtd/images/banded/1.jpg", b"1")
        file.writestr("../../evil.txt", b"evil")
    textures.files["/evil.zip"] = (tmp_path / "evil.zip").read_bytes()
    textures.point_to(urls=(textures.url("/evil.zip"),), md5="")
    assert run(textures, tmp_path / "data", "dtd") == 7
    assert "'../../evil.txt'" in capsys.readouterr().err
    assert not list(tmp_path.rglob("evil.txt")) and not (tmp_path / "data" / "dtd" / "images").exists()


def test_without_gdown_the_address_and_place_are_told(textures, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert run(textures, tmp_path / "data", "dtd") == 3
    message = capsys.readouterr().err
    assert "https://drive.google.com/file/d/1dtd/view" in message and "pip install gdown" in message
    assert f"{tmp_path}/data/dtd/split_zhou_DescribableTextures.json" in message


def test_drive_that_refuses_or_answers_with_a_page(textures, drive, tmp_path, capsys):
    split, drive.content["1dtd"] = drive.content["1dtd"], drive.Refused("quota")
    assert run(textures, tmp_path / "data", "dtd") == 4
    drive.content["1dtd"] = b"<!DOCTYPE html><html>Sign in</html>"
    assert run(textures, tmp_path / "data", "dtd") == 4
    assert "web page" in capsys.readouterr().err
    drive.content["1dtd"] = split
    assert run(textures, tmp_path / "data", "dtd") == 0


def test_links_page_that_is_gone_or_changed(textures, tmp_path, capsys):
    textures.files["/page.md"] = b"moved"
    assert run(textures, tmp_path / "data", "dtd") == 3
    assert "look for it on https://github.com/KaiyangZhou/CoOp" in capsys.readouterr().err
    del textures.files["/page.md"]
    assert run(textures, tmp_path / "data", "dtd") == 3
    assert "404" in capsys.readouterr().err


def test_other_datasets_go_on_after_a_failure(textures, tmp_path, capsys):
    assert run(textures, tmp_path / "data", "StanfordCars", "dtd") == 3
    out = capsys.readouterr()
    assert "DescribableTextures ok" in out.out and "1 of 2 datasets are ready" in out.err
    assert "cars_train" in out.err and "cars_test" in out.err  # everything that is missing in one run


@pytest.mark.parametrize(
    "words, message",
    [
        (["Caltech"], "unknown dataset 'Caltech'.*Caltech101"),
        ([], "name a dataset"),
        (["dtd", "--fast"], "belongs to --check"),
    ],
)
def test_wrong_use(words, message, capsys):
    with pytest.raises(SystemExit) as caught:
        command.main(words)
    assert caught.value.code == 2
    assert re.search(message, capsys.readouterr().err, re.S)


# -- checking ----------------------------------------------------------------------------------------------


def test_check_finds_missing_unreadable_and_miscounted(textures, tmp_path, capsys):
    root = tmp_path / "data"
    run(textures, root, "dtd")
    assert run(textures, root, "dtd", "--check") == 0
    images = sorted((root / "dtd" / "images").rglob("*.jpg"))
    images[3].write_bytes(images[3].read_bytes()[:300])
    assert run(textures, root, "dtd", "--check", "--fast") == 0
    assert run(textures, root, "dtd", "--check") == 8
    assert f"1 images cannot be read, first: cannot read image {images[3]}" in capsys.readouterr().err
    images[4].unlink()
    assert run(textures, root, "dtd", "--check", "--fast") == 8
    assert f"1 of 20 images are missing, first {images[4]}" in capsys.readouterr().err


def test_check_compares_with_published_counts(tmp_path):
    trees.make_tree("FGVCAircraft", tmp_path)
    report = check("FGVCAircraft", tmp_path)
    assert report.counts == (9, 6, 6)
    assert (
        "test: 6, commonly published are 3,333" in report.problems
        and "classes: 3, commonly published are 100" in report.problems
    )
    trees.make_tree("ImageNet", tmp_path)
    trees.make_tree("ImageNetA", tmp_path)
    assert check("ImageNet", tmp_path).counts == (18, None, 6)  # val only repeats the test set
    assert check("ImageNetA", tmp_path).counts == (None, None, 4)


def test_check_names_what_is_not_there(tmp_path):
    report = check("Caltech101", tmp_path)
    assert report.summary().endswith("not usable") and str(tmp_path / "caltech-101") in report.problems[0]


def test_several_processes_read_as_one(tmp_path, monkeypatch):
    trees.folders(tmp_path, {"a": 300})
    paths = sorted(str(p) for p in tmp_path.rglob("*.jpg"))
    Path(paths[7]).write_bytes(b"")
    for workers in (1, 2):
        found = list(check_module._decode(paths, "x", workers))
        assert [bool(error) for error, _ in found] == [i == 7 for i in range(300)]


def test_check_reports_what_is_read_otherwise_than_expected(textures, tmp_path, capsys):
    root = tmp_path / "data"
    run(textures, root, "dtd")
    images = sorted((root / "dtd" / "images").rglob("*.jpg"))
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (9, 6)).save(images[0], exif=turned)
    Image.fromarray(np.full((6, 9), 40_000, np.uint16)).save(images[1], format="PNG")
    capsys.readouterr()
    assert run(textures, root, "dtd", "--check") == 0
    out = capsys.readouterr().out
    assert "note: 1 images were taken with a turned camera" in out and str(images[0]) in out
    assert f"note: 1 images have 16 bits per channel, of which the upper 8 are read, first: {images[1]}" in out
    Image.fromarray(np.ones((6, 9), np.float32)).save(images[1], format="TIFF")
    assert run(textures, root, "dtd", "--check") == 8
    assert f"cannot read image {images[1]}: its pixels (TIFF, mode F) have no fixed range" in capsys.readouterr().err


def test_emoji_needs_no_download_and_no_root(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetch, "download", None)
    assert command.main(["emoji", "--root", str(tmp_path / "nowhere")]) == 0
    assert capsys.readouterr().out.startswith("Emoji ")
    assert not (tmp_path / "nowhere").exists()


def test_retrieval_data_is_explained_and_checked_by_its_own_report(tmp_path, capsys):
    root = ["--root", str(tmp_path)]
    assert command.main(["cirr", "laion_cir", "FashionIQ", "FDRD", *root]) == 3
    told = capsys.readouterr().err
    assert all(
        word in told
        for word in ("Cuberick-Orion/CIRR", "cirr/img_raw/dev", "laion_template_info.json", "wyf202322/DCAR")
    )
    assert command.main(["CIRR", "--check", "--fast", *root]) == 8
    assert "cirr" in capsys.readouterr().err


def test_captioned_domains_have_a_line_each(tmp_path, capsys):
    from tests.trainers.retrieval_tree import make_tree

    root = ["--root", str(make_tree(tmp_path))]
    assert command.main(["FDRD", "--check", *root]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split() == "FDRD DTD ok 3 classes train 12 test 12".split()
    next(tmp_path.glob("dtd/images/ball/*train*")).unlink()
    next(tmp_path.glob("FDRD/test/*.json")).unlink()
    assert command.main(["FDRD", "--check", *root]) == 8
    out, err = capsys.readouterr()
    assert "FDRD DTD" in out and "PROBLEM" in out
    assert "train: 1 images missing, first" in err and "no test file of FDRD's domain DTD" in err
    assert command.main(["FDRD", "--check", "--root", str(tmp_path / "nowhere")]) == 3


# -- sources and links -------------------------------------------------------------------------------------


def test_links_page_is_read_by_line():
    assert parse_page(PAGE) == {
        "split_zhou_EuroSAT.json": "1-Euro_sat",
        "classnames.txt": "1Names",
        "split_zhou_DescribableTextures.json": "1dtd",
    }
    twice = PAGE + "- `classnames.txt`: [link](https://drive.google.com/open?id=2Other)\n"
    assert "classnames.txt" not in parse_page(twice)


@pytest.mark.parametrize("name", SOURCES)
def test_sources_give_what_the_dataset_reads(name):
    cls, source = dataset_classes()[name], SOURCES[name]
    products = {path for file in source.files for path in file.products}
    assert source.folder == cls.dataset_dir
    if cls.split_file:
        assert cls.split_file in products
    if cls.image_dir:
        assert any(path.split("/")[0] == cls.image_dir for path in products)
    for file in source.files:
        assert file.urls or file.on_coop_page or file.by_hand


def test_addresses_and_checksums_are_torchvisions():
    from torchvision import datasets as tv

    theirs = "\n".join(
        inspect.getsource(sys.modules[cls.__module__])
        for cls in (
            tv.Caltech101,
            tv.OxfordIIITPet,
            tv.Flowers102,
            tv.Food101,
            tv.FGVCAircraft,
            tv.SUN397,
            tv.DTD,
            tv.EuroSAT,
        )
    )
    checked = 0
    for name in (
        "Caltech101",
        "OxfordPets",
        "OxfordFlowers",
        "Food101",
        "FGVCAircraft",
        "SUN397",
        "DescribableTextures",
        "EuroSAT",
    ):
        for file in SOURCES[name].files:
            if file.urls:
                assert file.urls[0].rpartition("/")[2] in theirs and file.urls[0].rpartition("/")[0] in theirs
                assert file.md5 in theirs
                checked += 1
    assert checked == 10


def test_imagenet_classnames_are_copied_from_a_sibling(tmp_path):
    trees.make_tree("ImageNet", tmp_path)
    file = next(f for f in SOURCES["ImageNetA"].files if f.name == "classnames.txt")
    assert fetch._find(file, tmp_path / "imagenet-adversarial").read_text().startswith("n01440764 tench")


def test_archive_in_an_archive(tmp_path):
    """Caltech-101 comes as a zip with a tar.gz inside."""
    trees.make_tree("Caltech101", tmp_path / "theirs")
    with tarfile.open(tmp_path / "101_ObjectCategories.tar.gz", "w:gz") as file:
        file.add(tmp_path / "theirs" / "caltech-101" / "101_ObjectCategories", "101_ObjectCategories")
    folder = tmp_path / "data" / "caltech-101"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "caltech-101.zip", "w") as file:
        file.write(tmp_path / "101_ObjectCategories.tar.gz", "caltech-101/101_ObjectCategories.tar.gz")
    fetch._obtain(SOURCES["Caltech101"].files[0], folder, None)
    assert sorted(p.name for p in folder.iterdir()) == [
        ".download",
        "101_ObjectCategories",
        "caltech-101.zip",
    ]
    assert (folder / "101_ObjectCategories" / "lotus").is_dir()

    other = tmp_path / "other" / "caltech-101"  # where only the inner one is at hand
    other.mkdir(parents=True)
    shutil.copy(tmp_path / "101_ObjectCategories.tar.gz", other)
    fetch._obtain(SOURCES["Caltech101"].files[0], other, None)
    assert sorted(p.name for p in other.iterdir()) == ["101_ObjectCategories", "101_ObjectCategories.tar.gz"]


def test_imagenet_archives_are_laid_out(tmp_path, monkeypatch):
    """With torchvision's own parsers on small archives of the same structure."""
    import numpy as np
    from scipy.io import savemat
    from torchvision.datasets import imagenet

    wnids = list(trees.WNIDS)
    synsets = np.array(
        [(i + 1, wnid, name, "", 0, 0, 0, 0) for i, (wnid, name) in enumerate(trees.WNIDS.items())],
        dtype=[
            ("ILSVRC2012_ID", "O"),
            ("WNID", "O"),
            ("words", "O"),
            ("gloss", "O"),
            ("num_children", "O"),
            ("children", "O"),
            ("wordnet_height", "O"),
            ("num_train_images", "O"),
        ],
    )
    kit = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    savemat(kit / "meta.mat", {"synsets": synsets})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n1\n3\n")
    for i in range(3):
        trees.picture(tmp_path / "val" / f"ILSVRC2012_val_{i + 1:08d}.JPEG")
    folder = tmp_path / "imagenet"
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as file:
        file.add(kit.parent, "ILSVRC2012_devkit_t12")
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as file:
        for path in (tmp_path / "val").iterdir():
            file.add(path, path.name)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as file:
        for wnid in wnids:
            trees.picture(tmp_path / wnid / f"{wnid}_1.JPEG")
            with tarfile.open(tmp_path / f"{wnid}.tar", "w") as inner:
                inner.add(tmp_path / wnid / f"{wnid}_1.JPEG", f"{wnid}_1.JPEG")
            file.add(tmp_path / f"{wnid}.tar", f"{wnid}.tar")

    with pytest.raises(layout.ArchiveError, match="ILSVRC2012_img_train.tar"):
        layout.imagenet(folder)  # the checksum is not the published one
    small = {part: (name, file_md5(folder / name)) for part, (name, _) in imagenet.ARCHIVE_META.items()}
    monkeypatch.setattr(imagenet, "ARCHIVE_META", small)
    layout.imagenet(folder)
    assert sorted(p.name for p in (folder / "images" / "train").iterdir()) == wnids
    assert (folder / "images" / "val" / wnids[1] / "ILSVRC2012_val_00000001.JPEG").exists()
    assert sorted(p.name for p in folder.iterdir()) == [
        "ILSVRC2012_devkit_t12.tar.gz",
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "images",
    ]


def test_help_and_list(tmp_path, capsys):
    words = [sys.executable, "-m", "dassl_prompts.prepare", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "exit codes" in done.stdout
    assert command.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert len(SOURCES) == 15 and all(f"{name}  ->" in listed for name in SOURCES)


def test_file_products():
    assert File("a.txt").products == ("a.txt",)
    assert File("a.zip", unpack={"x": "y"}).products == ("y",)
    assert File("a.zip", unpack={"b.tar": "b.tar"}, inner=File("b.tar", unpack={"c": "d"})).products == ("d",)
    assert File("a.tar", gives=("images/val",)).products == ("images/val",)


def test_documented_table_is_the_one_in_use():
    documented = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text().splitlines()
    rows = {
        cells[1]: cells
        for line in documented
        if (cells := [c.strip() for c in line.split("|")])[1:2] and len(cells) == 11
    }
    for name, source in SOURCES.items():
        numbers = ["-" if n is None else f"{n:,}" for n in (source.classes, *source.counts)]
        assert rows[name][3] == source.folder and rows[name][6:10] == numbers
