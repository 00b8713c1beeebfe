"""An index that grows: what is encoded, what is taken over, what a killed update leaves."""

import os
import random
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_prompts.composed import asked_models, index_files, index_update, search
from dassl_prompts.composed.index import ImageIndex
from dassl_prompts.composed.index_table import NUMBER, Row, Table, list_root, start_of
from dassl_prompts.composed.index_update import update_index
from tests.datasets.cir_trees import picture


class Named:
    def __call__(self, image):
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).float()

    def __repr__(self):
        return "toy"


class Encoder:
    """Features that are sums of pixels, and the number of images that were encoded."""

    def __init__(self):
        self.count = 0

    def __call__(self, images):
        self.count += len(images)
        flat = images.flatten(1)
        return torch.stack([(flat[:, start::7].sum(1) * 37) % 101 - 50 for start in range(5)], 1)


@pytest.fixture
def photos(tmp_path):
    for i in range(6):
        picture(tmp_path / "photos" / ("sub" if i % 2 else "") / f"{i}.png", i)
    return tmp_path / "photos"


def update(place, *roots, **options):
    """The index, what was done, and how many images the encoder saw."""
    encoder = Encoder()
    files = {start_of(str(root)): list_root(str(root)) for root in roots}
    options = {"weights": "w", "width": 5, "model": {"backbone": "toy"}, **options}
    index, done = update_index(place, files, encoder, Named(), **options)
    assert encoder.count == done.encoded
    return index, done


def content(index):
    """Everything that a question can see."""
    table, features = index.table, np.array(index.features[:])
    return [(table.path(i), table.shown(i), features[i].tobytes()) for i in range(len(table))], index.copies.tolist()


def age(folder):
    """As if the files had been there for a while."""
    for path in folder.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))


def test_only_what_changed_is_encoded(photos, tmp_path):
    age(photos)
    assert update(tmp_path / "i", photos)[1].encoded == 6
    assert vars(update(tmp_path / "i", photos)[1]) == {"encoded": 0, "kept": 6, "removed": 0, "unreadable": []}
    picture(photos / "new" / "deep" / "7.png", 7)
    picture(photos / "0.png", 70)
    (photos / "2.png").unlink()
    os.rename(photos / "sub" / "3.png", photos / "moved.png")
    (photos / "bad.jpg").write_bytes(b"no picture")
    os.utime(photos / "4.png")
    index, done = update(tmp_path / "i", photos)
    assert (done.encoded, done.kept, done.removed) == (2, 4, 2) and done.unreadable == [str(photos / "bad.jpg")]
    assert content(index) == content(update(tmp_path / "anew", photos)[0])


def test_a_known_file_is_not_even_read(photos, tmp_path, monkeypatch):
    age(photos)
    update(tmp_path / "i", photos)
    monkeypatch.setattr(index_update, "read_bytes", lambda path: pytest.fail(f"{path} was read"))
    update(tmp_path / "i", photos)


def test_a_change_in_the_same_moment_is_noticed(photos, tmp_path):
    """Size and time are the same; only somebody who knew that the time was fresh can see it."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(photos / "0.bmp")
    before = os.stat(photos / "0.bmp")
    update(tmp_path / "i", photos)
    Image.fromarray(pixels + 9).save(photos / "0.bmp")
    os.utime(photos / "0.bmp", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.stat(photos / "0.bmp").st_size == before.st_size
    assert update(tmp_path / "i", photos)[1].encoded == 1


@pytest.mark.parametrize("seed", range(4))
def test_after_any_changes_it_equals_an_index_made_anew(photos, tmp_path, seed):
    draw = random.Random(seed)
    roots = [photos, tmp_path / "more"]
    picture(roots[1] / "a.png", 50)
    for step in range(6):
        for _ in range(draw.randint(1, 4)):
            files = [path for root in roots for path in root.rglob("*.png")]
            one, place = draw.choice(files), draw.choice(roots) / draw.choice(["", "x", "sub"])
            place.mkdir(exist_ok=True)
            match draw.choice(["new", "change", "remove", "move", "copy", "old"]):
                case "new":
                    picture(place / f"{draw.randrange(99)}.png", draw.randrange(9))
                case "change":
                    picture(one, draw.randrange(99))
                case "remove" if len([path for path in files if roots[0] in path.parents]) > 3:
                    if roots[0] in one.parents:
                        one.unlink()
                case "move" if roots[0] in one.parents:
                    shutil.move(one, place / f"m{step}.png")
                case "copy":
                    shutil.copy(one, place / f"c{step}.png")
                case "old":
                    age(draw.choice(roots))
        shown = draw.sample(roots, 2)
        assert content(update(tmp_path / "i", *shown)[0]) == content(update(tmp_path / f"anew{step}", *shown)[0])


class Killed(BaseException):
    """The process is gone."""


def test_killed_at_any_moment_it_is_the_former_or_the_new_one(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(index_files, "PART_IMAGES", 2)
    before = content(update(tmp_path / "i", photos)[0])
    whole = tmp_path / "whole"
    shutil.copytree(tmp_path / "i", whole)
    picture(photos / "9.png", 9)
    (photos / "0.png").unlink()
    after = content(update(tmp_path / "i", photos)[0])
    assert before != after
    moments, kinds = 0, set()
    while True:
        shutil.rmtree(tmp_path / "i")
        shutil.copytree(whole, tmp_path / "i")
        calls = iter(range(1000))

        def until(real, *args, calls=calls, last=moments, **options):
            if next(calls) >= last:
                raise Killed
            return real(*args, **options)

        with monkeypatch.context() as patch:
            for module, name in ((os, "replace"), (os, "unlink"), (Path, "unlink"), (shutil, "rmtree")):
                real = getattr(module, name)
                patch.setattr(module, name, lambda *a, real=real, until=until, **o: until(real, *a, **o))
            try:
                update(tmp_path / "i", photos)
                break
            except Killed:
                pass
        kinds.add(str(found := content(ImageIndex.open(tmp_path / "i"))))
        assert found in (before, after)
        assert content(update(tmp_path / "i", photos)[0]) == after
        moments += 1
    assert moments > 8 and len(kinds) == 2


def test_an_interrupted_run_goes_on_where_it_was(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(index_files, "PART_IMAGES", 2)
    encoded = []

    class Stopped(Encoder):
        def __call__(self, images):
            encoded.append(len(images))
            if len(encoded) == 5:
                raise KeyboardInterrupt
            return super().__call__(images)

    files = {start_of(str(photos)): list_root(str(photos))}
    options = {"weights": "w", "width": 5, "model": {}, "batch_size": 1}
    with pytest.raises(KeyboardInterrupt):
        update_index(tmp_path / "i", files, Stopped(), Named(), **options)
    assert update(tmp_path / "i", photos, model={})[1].encoded == 2
    assert sorted(path.name for path in (tmp_path / "i").iterdir())[1:] == sorted(
        ["index.json", *(f"{part}-1.npy" for part in ("copies", "features", "names", "places"))]
    )


def test_damaged_features_cost_only_their_neighbours(photos, tmp_path, monkeypatch, capsys):
    for module in ("index", "index_files"):
        monkeypatch.setattr(f"dassl_prompts.composed.{module}.CHECKED", 2)
    age(photos)
    index, _ = update(tmp_path / "i", photos)
    before = content(index)
    with open(index.file("features"), "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"~")
    index = ImageIndex.open(tmp_path / "i")
    assert len(index.features[:4]) == 4
    with pytest.raises(ValueError, match="features-1.npy is damaged.*index the images again"):
        index.features[np.array([5])]
    healed, done = update(tmp_path / "i", photos)
    assert done.encoded == 2 and content(healed) == before


@pytest.mark.parametrize(
    "other", [{"weights": "v"}, {"orientation": "stored"}, {"model": {"backbone": "toy", "query": "text"}}]
)
def test_other_settings(photos, tmp_path, other):
    update(tmp_path / "i", photos)
    index, done = update(tmp_path / "i", photos, **other)
    assert done.encoded == (0 if "model" in other else 6)
    assert index.manifest["model"] == other.get("model", {"backbone": "toy"})


def test_a_file_that_vanishes_meanwhile(photos, tmp_path, monkeypatch):
    real = index_update.read_bytes

    def vanish(path):
        (photos / "2.png").unlink(missing_ok=True)
        return real(path)

    monkeypatch.setattr(index_update, "read_bytes", vanish)
    index, done = update(tmp_path / "i", photos)
    assert done.encoded == 5 and index.table.find(str(photos / "2.png")) is None


# -- names ---------------------------------------------------------------------------------------------------


def test_names_are_found_and_shown(photos, tmp_path):
    (tmp_path / "other" / "photos").mkdir(parents=True)
    picture(tmp_path / "other" / "photos" / "é ü.png", 3)
    odd = os.fsdecode(b"\xff.png")
    picture(tmp_path / "other" / "photos" / odd, 4)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(photos / "0.png", "inside/0.png")
        archive.writestr("note.txt", "x")
    index, _ = update(tmp_path / "i", photos, tmp_path / "other" / "photos", tmp_path / "a.zip")
    table = index.table
    shown = [table.shown(row) for row in range(len(table))]
    assert shown[:2] == ["photos/0.png", "photos/2.png"] and shown[-1] == "a.zip/inside/0.png"
    assert shown[-3:-1] == ["2-photos/é ü.png", f"2-photos/{odd}"]
    for row in range(len(table)):
        assert table.find(table.path(row)) == row == table.find_shown(table.shown(row))
    assert [8, 0] in index.copies.tolist() and table.path(8) == f"{tmp_path / 'a.zip'}::inside/0.png"
    for wrong in ("", "photos", "photos/", "photos/../photos/0.png", "/etc/passwd", "photos/0.pn", "photos/0.pngx"):
        assert table.find(wrong) is None and table.find_shown(wrong) is None
    alone = update(tmp_path / "j", photos)[0].table
    assert alone.shown(0) == "0.png" and alone.find_shown("sub/5.png") == 5


def test_a_table_gives_back_its_rows():
    rows = [Row(0, b"a", 1, 2, bytes(range(16)), True, 5), Row(0, b"b/c", 3, -1, bytes(16), False, 4)]
    table = Table.of(["/x/"], rows)
    assert list(table) == rows and table.unreadable.tolist() == [1]


# -- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """``command(*words)``: exit code, and what was said."""
    from types import SimpleNamespace

    encoder = SimpleNamespace(image_features=Encoder(), image_fingerprint=lambda: "w", width=5)
    monkeypatch.setattr(asked_models, "load_model", lambda model, device: (encoder, None, 0))
    monkeypatch.setattr(asked_models, "transform_of", lambda encoder, ratio: Named())

    def run(*words):
        code = search.main(list(map(str, words)))
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


def test_another_folder_needs_a_word(photos, tmp_path, command):
    more, place = tmp_path / "more", tmp_path / "i"
    picture(more / "a.png", 20)
    assert command("index", photos, "--index", place)[0] == 0
    code, told = command("index", more, "--index", place)
    assert code == 2 and f"is an index of {photos}" in told and "--replace" in told and "search add" in told
    assert len(ImageIndex.open(place)) == 6
    code, told = command("add", more, "--index", place)
    assert code == 0 and "Indexed 7 images" in told and "1 encoded, 6 kept, 0 removed" in told
    assert command("add", more, "--index", place)[1].count("0 encoded, 7 kept") == 1
    code, told = command("index", more, "--index", place, "--replace")
    assert code == 0 and "0 encoded, 1 kept, 6 removed" in told and len(ImageIndex.open(place)) == 1
    assert command("add", more, "--index", tmp_path / "none")[0] == 2


def test_a_folder_in_another_one_is_refused(photos, tmp_path, command):
    for roots in ((photos, photos / "sub"), (photos / "sub", photos)):
        code, told = command("index", *roots, "--index", tmp_path / "i")
        assert code == 2 and "whose sub-folders are indexed too" in told
    os.symlink(photos, tmp_path / "same")
    assert command("index", photos, tmp_path / "same", "--index", tmp_path / "i")[0] == 2


def test_a_root_that_is_gone_does_not_empty_the_index(photos, tmp_path, command):
    picture(tmp_path / "more" / "a.png", 20)
    command("index", photos, tmp_path / "more", "--index", tmp_path / "i")
    shutil.rmtree(photos)
    code, told = command("add", tmp_path / "more", "--index", tmp_path / "i")
    assert code == 2 and f"there is no folder {photos}" in told
    assert len(ImageIndex.open(tmp_path / "i")) == 7


def test_an_index_of_an_earlier_version_is_made_anew(photos, tmp_path, command):
    from dassl_prompts.engine.files import write_sealed

    (tmp_path / "i").mkdir()
    write_sealed({"format": 2, "paths": []}, tmp_path / "i" / "index.json")
    code, told = command("index", photos, "--index", tmp_path / "i")
    assert code == 0 and "written by another version" in told and "6 encoded" in told


# -- FAISS ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
def test_faiss_grows_too(photos, tmp_path, factory, monkeypatch):
    """What is new is added under its number; what is gone is not found; copies stand in for their original."""
    pytest.importorskip("faiss")
    for i in range(20, 60):
        picture(photos / f"{i}.png", i)
    shutil.copy(photos / "0.png", photos / "copy.png")
    index, _ = update(tmp_path / "i", photos, faiss=factory)
    numbers = index.table.places[:, NUMBER].tolist()
    (photos / "0.png").unlink()
    (photos / "2.png").unlink()
    picture(photos / "new.png", 99)
    monkeypatch.setattr(index_files, "new_faiss", lambda *args: pytest.fail("it was built anew"))
    grown, done = update(tmp_path / "i", photos, faiss=factory)
    assert done.encoded == 1 and set(grown.table.places[:, NUMBER].tolist()) - set(numbers) == {max(numbers) + 1}
    exact, _ = update(tmp_path / "exact", photos)
    queries = torch.from_numpy(np.array(exact.features[:])).float()
    assert [[row for row, _ in found] for found in grown.search(queries, 4)] == [
        [row for row, _ in found] for found in exact.search(queries, 4)
    ]
    monkeypatch.undo()
    for path in list(photos.glob("[2345]?.png"))[:30]:  # much is gone: FAISS's index has no holes again
        path.unlink()
    small, _ = update(tmp_path / "i", photos, faiss=factory)
    assert small.faiss_index.ntotal == len(small.table) - len(small.single_out)


def test_faiss_alone_is_made_again(photos, tmp_path):
    pytest.importorskip("faiss")
    age(photos)
    index, _ = update(tmp_path / "i", photos, faiss="Flat")
    index.file("faiss").write_bytes(b"damaged")
    again, done = update(tmp_path / "i", photos, faiss="Flat")
    assert done.encoded == 0 and again.faiss_index.ntotal == 6
    assert update(tmp_path / "i", photos)[0].manifest["faiss"] == "" and not list((tmp_path / "i").glob("faiss*"))


def test_faiss_that_is_not_installed_costs_nothing(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="dassl-prompts\\[faiss\\]"):
        update(tmp_path / "i", photos, faiss="Flat")
    assert not (tmp_path / "i").exists()


def test_copies_are_encoded_once_and_have_equal_features(photos, tmp_path):
    for number in range(5):
        shutil.copy(photos / "0.png", photos / f"z{number}.png")
    index, done = update(tmp_path / "i", photos, batch_size=2)
    assert done.encoded == 6 and index.copies.tolist() == [[row, 0] for row in range(6, 11)]
