"""The embedded downstream sets of the testbed: archives, splits, and what damaged archives say."""

import hashlib
import json
import shutil
import zipfile

import pytest
from yacs.config import CfgNode

from dassl_prompts.datasets import testbed
from dassl_prompts.engine import DATASET_REGISTRY
from dassl_prompts.images import read_image

SETS = {"QuickDraw": "sketches", "IconPark": "icons", "ClipArt": "clipart"}


def build(name, shots=16, seed=1, subsample="all"):
    dataset = {"ROOT": "/nowhere", "NUM_SHOTS": shots, "SUBSAMPLE_CLASSES": subsample}
    return DATASET_REGISTRY.get(name)(CfgNode({"SEED": seed, "DATASET": dataset}))


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the archives that a test may damage."""
    folder = tmp_path / "testbed"
    shutil.copytree(testbed.ASSETS, folder)
    monkeypatch.setattr(testbed, "ASSETS", folder)
    forget = [testbed.read_index.cache_clear, testbed.read_archive.cache_clear]
    for clear in forget:
        clear()
    yield folder
    for clear in forget:
        clear()


@pytest.mark.parametrize("name", SETS)
def test_sixteen_shots_and_three_hundred_test_pictures_per_half(name):
    halves = {half: build(name, subsample=half) for half in ("base", "new")}
    for dataset in halves.values():
        assert len(dataset.test) >= 300
        shots = [sum(d.label == label for d in dataset.train_x) for label in range(dataset.num_classes)]
        assert min(shots) == max(shots) == 16
    assert not set(halves["base"].classnames) & set(halves["new"].classnames)
    assert len(build(name).classnames) == sum(d.num_classes for d in halves.values())


@pytest.mark.parametrize("name, archive", SETS.items())
def test_splits_share_no_picture_and_hold_what_the_index_counts(name, archive):
    splits = testbed.read_splits(archive)
    paths = [{d.impath for d in part} for part in splits]
    assert sum(map(len, paths)) == len(set.union(*paths))
    counts = testbed.read_index()[archive]["classes"]
    for part, items in splits._asdict().items():
        for classname, count in counts.items():
            assert sum(d.classname == classname for d in items) == count[part], (part, classname)


def test_drawings_of_one_concept_stay_in_one_split():
    parts = {}
    for part, items in testbed.read_splits("icons")._asdict().items():
        for item in items:
            concept = item.classname, item.impath.rsplit("/", 1)[1].rsplit("-", 1)[0]
            assert parts.setdefault(concept, part) == part, concept


@pytest.mark.parametrize("archive", SETS.values())
def test_archives_are_small_those_of_the_index_and_carry_their_terms(archive):
    path, _ = testbed.read_archive(archive)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == testbed.read_index()[archive]["sha256"]
    assert path.stat().st_size < 2e6
    with zipfile.ZipFile(path) as opened:
        assert any(word in opened.read("NOTICE").decode() for word in ("CC BY 4.0", "Apache", "public domain"))


@pytest.mark.parametrize("archive, side", [("sketches", 32), ("icons", 64), ("clipart", 64)])
def test_pictures_are_on_white(archive, side):
    image = read_image(testbed.read_splits(archive).train[0].impath)
    assert image.mode == "RGB" and image.size == (side, side)
    assert max(image.getdata()) >= (250, 250, 250)


def test_a_damaged_archive_is_named_with_what_restores_it(copied):
    path = copied / "icons-v1.zip"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(testbed.TestbedError, match=r"icons-v1\.zip is damaged .*git checkout"):
        build("IconPark")
    path.unlink()
    with pytest.raises(testbed.TestbedError, match=r"icons-v1\.zip is missing"):
        build("IconPark")


def test_an_index_of_another_version_is_refused(copied):
    (copied / "testbed-v1.json").write_text(json.dumps({"version": 2}))
    with pytest.raises(testbed.TestbedError, match="version 2, this code reads version 1"):
        testbed.read_index()
    (copied / "testbed-v1.json").write_text("{")
    testbed.read_index.cache_clear()
    with pytest.raises(testbed.TestbedError, match="restore it"):
        testbed.read_index()
