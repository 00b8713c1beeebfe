"""Exact search in chunks, the index folder, the command line, the contact sheet."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dassl_prompts.composed import search
from dassl_prompts.composed.asked_models import load_model, transform_of
from dassl_prompts.composed.index import ImageIndex, chunked_topk
from dassl_prompts.composed.index_table import NUMBER, list_root, read_manifest
from dassl_prompts.ranking.sheet import Row, contact_sheet
from tests.datasets.cir_trees import picture
from tests.models.test_blip import write_tiny_blip


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return str(write_tiny_blip(tmp_path_factory.mktemp("blip")))


def answers(index, queries, k, exclude=()):
    """Paths and scores."""
    hidden = [index.table.find(path) for path in exclude]
    return [[(index.table.path(row), s) for row, s in found] for found in index.search(queries, k, hidden)]


def paths_of(index):
    return list(map(index.table.path, range(len(index.table))))


def full_sort(queries, gallery, k):
    rows = []
    for scores in (queries.double() @ torch.from_numpy(gallery.astype(np.float64)).T).tolist():
        rows.append(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])
    return rows


@pytest.mark.parametrize("chunk", [1, 7, 100, 1000])
@pytest.mark.parametrize("k", [1, 5, 100])
def test_equals_full_sort(chunk, k):
    gallery = np.random.default_rng(0).normal(size=(100, 16)).astype(np.float16)
    queries = torch.randn(4, 16)
    scores, rows = chunked_topk(queries, gallery, k, chunk)
    assert rows.tolist() == full_sort(queries, gallery, k)
    expected = torch.stack(
        [queries[i] @ torch.from_numpy(gallery[r].astype(np.float32)).T for i, r in enumerate(rows.numpy())]
    )
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_ties_go_to_the_smaller_row(chunk):
    gallery = np.repeat(np.eye(4, dtype=np.float16), 5, axis=0)[np.random.default_rng(1).permutation(20)]
    queries = torch.eye(4)
    assert chunked_topk(queries, gallery, 8, chunk)[1].tolist() == full_sort(queries, gallery, 8)


@pytest.mark.parametrize(
    ("k", "chunk", "match"), [(0, 5, "0 results"), (11, 5, "holds 10 images"), (3, 0, "chunk is 0")]
)
def test_wrong_arguments(k, chunk, match):
    with pytest.raises(ValueError, match=match):
        chunked_topk(torch.randn(2, 4), np.zeros((10, 4), np.float16), k, chunk)


# -- the index -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where contact sheets go
    for i in range(9):
        picture(tmp_path / "images" / ("sub" if i % 2 else "") / f"{i}.png", i)
    (tmp_path / "images" / "note.txt").write_text("no image")
    (tmp_path / "images" / "broken.jpg").write_bytes(b"nothing")
    return tmp_path / "images"


def lines(capsys):
    return [line.split()[-1] for line in capsys.readouterr().out.splitlines() if line[:3].strip().isdigit()]


def test_index_and_ask(folder, blip, tmp_path, capsys):
    index = str(tmp_path / "index")
    assert search.main(["index", str(folder), "--index", index, "--backbone", blip]) == 0
    assert "Indexed 9 images" in (out := capsys.readouterr().out) and "broken.jpg" in out
    query = str(folder / "0.png")
    sheet = tmp_path / "found.png"
    assert search.main(["ask", index, "--image", query, "--text", "a red dog", "-k", "4", "--sheet", str(sheet)]) == 0
    found = lines(capsys)
    assert len(found) == 4 and query not in found
    assert Image.open(sheet).size[0] > 4 * 128

    encoder, ask, ratio = load_model({"backbone": blip, "query": "image+text"})
    transform = transform_of(encoder, ratio)
    paths = [p for p in map(str, sorted(folder.rglob("*.png"))) if p != query]
    with torch.no_grad():
        features = {p: F.normalize(encoder.image_features(transform(Image.open(p))[None]), dim=-1)[0] for p in paths}
        wanted = ask(["a red dog"], encoder.image_tokens(transform(Image.open(query))[None]))[0]
    assert found == sorted(paths, key=lambda p: -float(features[p] @ wanted))[:4]


def test_same_image_with_itself_and_single_parts(folder, blip, tmp_path, capsys):
    index = str(tmp_path / "index")
    search.main(["index", str(folder), "--index", index, "--backbone", blip])
    query = str(folder / "sub" / "3.png")
    capsys.readouterr()
    assert search.main(["ask", index, "--image", query, "--keep-query"]) == 0
    assert lines(capsys)[0] == query
    assert search.main(["ask", index, "--text", "two", "-k", "99"]) == 0
    assert len(lines(capsys)) == 9


def test_contact_sheet_is_written_unless_refused(folder, blip, tmp_path, capsys):
    index, sheet = str(tmp_path / "index"), tmp_path / "found.png"
    search.main(["index", str(folder), "--index", index, "--backbone", blip])
    assert search.main(["ask", index, "--text", "two", "--no-sheet"]) == 0 and not sheet.exists()
    assert "Contact sheet" not in capsys.readouterr().out
    assert search.main(["ask", index, "--text", "two", "-k", "4"]) == 0
    assert "Contact sheet: found.png" in capsys.readouterr().out and Image.open(sheet).size[0] > 4 * 128
    with pytest.raises(SystemExit):
        search.main(["ask", index, "--text", "two", "--sheet", "a.png", "--no-sheet"])


@pytest.mark.parametrize("orientation", ["camera", "stored"])
def test_index_and_question_see_pictures_turned_alike(tmp_path, monkeypatch, blip, capsys, orientation):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "images" / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "images" / "stored.png")
    Image.fromarray(pixels[::-1, ::-1]).save(tmp_path / "images" / "upright.png")
    (tmp_path / "images" / "x.heic").touch()
    words = ["index", str(tmp_path / "images"), "--index", "index", "--backbone", blip, "--query", "image"]
    assert search.main([*words, "--orientation", orientation]) == 0
    assert "Left out 1 files of formats that are not read: 1 .heic" in capsys.readouterr().out
    assert search.main(["ask", "index", "--image", "images/turned.png", "--no-sheet"]) == 0
    same, other = capsys.readouterr().out.strip().splitlines()[-2:]
    assert same.endswith({"camera": "upright.png", "stored": "stored.png"}[orientation])
    assert float(same.split()[1]) == pytest.approx(1, abs=2e-3)
    assert float(other.split()[1]) < float(same.split()[1])


def test_a_second_indexing_encodes_nothing(folder, blip, tmp_path, monkeypatch):
    from dassl_prompts.models.blip import BlipTokens

    args = ["index", str(folder), "--index", str(tmp_path / "index"), "--backbone", blip]
    search.main(args)
    monkeypatch.setattr(BlipTokens, "image_tokens", lambda self, x: pytest.fail("encoded again"))
    assert search.main(args) == 0


def test_trained_run(folder, blip, tmp_path, capsys):
    from tests.datasets import cir_trees
    from tests.trainers.pvlf.test_pvlf import run

    for tree in (cir_trees.cirr, cir_trees.laion_cir):
        tree(tmp_path / "data")
    trainer, _ = run("PVLF", blip, tmp_path / "data", tmp_path / "run", "TRAINER.PVLF.BACKBONE.TUNE", "both")
    index = str(tmp_path / "index")
    assert search.main(["index", str(folder), "--index", index, "--run", str(tmp_path / "run")]) == 0
    query = str(folder / "0.png")
    capsys.readouterr()
    assert search.main(["ask", index, "--image", query, "--text", "two"]) == 0
    found = lines(capsys)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        transform = trainer.transform
        wanted = trainer.query(["two"], trainer.encoder.image_tokens(transform(Image.open(query))[None]))[0]
        score = {
            p: float(F.normalize(trainer.encoder.image_features(transform(Image.open(p))[None]), dim=-1)[0] @ wanted)
            for p in found
        }
    assert len(found) == 8 and found == sorted(found, key=lambda p: -score[p])
    assert search.main(["ask", index, "--text", "two"]) == 2


def test_index_is_asked_from_another_folder(folder, blip, tmp_path, monkeypatch, capsys):
    """Backbone and pictures were given by relative paths."""
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(blip)
    assert search.main(["index", "images", "--index", "index", "--backbone", "model"]) == 0
    monkeypatch.chdir("/")
    capsys.readouterr()
    assert search.main(["ask", str(tmp_path / "index"), "--text", "two", "-k", "2", "--no-sheet"]) == 0
    assert all(os.path.isfile(path) for path in lines(capsys))


def test_index_of_other_weights(folder, blip, tmp_path, capsys):
    search.main(["index", str(folder), "--index", str(tmp_path / "index"), "--backbone", blip])
    opened = ImageIndex.open(tmp_path / "index")
    opened.manifest["settings"]["weights"] = "other"
    from dassl_prompts.engine.files import write_sealed

    write_sealed(opened.manifest, tmp_path / "index" / "index.json")
    assert search.main(["ask", str(tmp_path / "index"), "--text", "two"]) == 2
    assert "index again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (["index", "nowhere", "--index", "i"], "there is no folder"),
        (["ask", "nowhere", "--text", "x"], "not an index"),
        (["ask", "nowhere"], "--image, --text, or both"),
        (["ask", "nowhere", "--text", "x", "-k", "0"], "-k is 0"),
    ],
)
def test_command_line_errors(args, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert search.main(args) == 2
    assert match in capsys.readouterr().err


def test_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no images"):
        list_root(tmp_path)


def test_faiss_finds_what_exact_search_finds(folder, blip, tmp_path):
    pytest.importorskip("faiss")
    search.main(["index", str(folder), "--index", str(tmp_path / "a"), "--backbone", blip])
    search.main(["index", str(folder), "--index", str(tmp_path / "b"), "--backbone", blip, "--faiss", "HNSW16"])
    queries = F.normalize(torch.randn(3, 16), dim=-1)
    exact, approximate = (answers(ImageIndex.open(tmp_path / name), queries, 5) for name in "ab")
    assert [[p for p, _ in row] for row in exact] == [[p for p, _ in row] for row in approximate]


@pytest.fixture
def repeated(folder, blip, tmp_path):
    """``repeated(factory)``: an index of 300 pictures, of which 200 are copies of one and 40 of another; and their order."""
    for path in folder.rglob("*.*"):
        path.unlink()
    kinds = [0 if i % 3 else 1 if i % 7 == 0 else i for i in range(300)]
    for i, kind in enumerate(kinds):
        picture(folder / f"{i:03d}.png", kind)

    def make(factory):
        index = tmp_path / f"index{factory}"
        args = ["index", str(folder), "--index", str(index), "--backbone", blip]
        assert search.main([*args, *(["--faiss", factory] if factory else [])]) == 0
        return ImageIndex.open(index)

    return make


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("factory", ["", "Flat", "HNSW16"])
def test_copies_of_a_picture_come_in_the_order_of_the_folder(repeated, factory, dtype):
    """FAISS has them in descending order, and its first answer depends on k; so does torch.topk's."""
    pytest.importorskip("faiss")
    index = repeated(factory)
    features = torch.from_numpy(np.array(index.features)).float()
    queries = F.normalize(features[[1, 0, 9]] + 0.01 * torch.randn(3, 16), dim=-1).to(dtype)
    first, kinds = {}, []  # pictures with equal pixels have equal scores
    for path in paths_of(index):
        kinds.append(first.setdefault(Path(path).read_bytes(), len(kinds)))
    assert sorted(map(kinds.count, set(kinds)))[-2:] > [10, 150]
    scores = (queries.double() @ features.double().t())[:, kinds]
    wanted = [[paths_of(index)[i] for i in row[:30]] for row in full_sort_of(scores)]
    for k in (1, 5, 10, 30):
        found = answers(index, queries, k)
        assert [[path for path, _ in row] for row in found] == [row[:k] for row in wanted]
        assert len({score for _, score in found[0]}) == 1  # one score for all copies
    shown = answers(index, queries, 5, exclude=wanted[0][:1])
    assert [path for path, _ in shown[0]] == wanted[0][1:6]


def full_sort_of(scores):
    return [sorted(range(len(row)), key=lambda i: (-row[i], i)) for row in scores.tolist()]


def test_a_damaged_index_is_named_and_made_again_by_the_same_command(folder, blip, tmp_path, capsys):
    pytest.importorskip("faiss")
    place = tmp_path / "a"
    command = ["index", str(folder), "--index", str(place), "--backbone", blip, "--faiss", "HNSW16"]
    assert search.main(command) == 0
    queries = F.normalize(torch.randn(3, 16), dim=-1)
    found = ImageIndex.open(place).search(queries, 5)
    names = {path.name for path in place.iterdir()} - {".lock"}
    assert names == {"index.json", "faiss-1", *(f"{p}-1.npy" for p in ("features", "names", "places", "copies"))}
    for part in ("index.json", "features", "names", "places", "copies", "faiss"):
        for change in (
            lambda whole: whole[:-1],
            lambda whole: whole + b"0",
            lambda whole: whole[:-3] + b"xyz",
            lambda whole: b"",
            lambda whole: whole[: len(whole) // 2] + b"#" + whole[len(whole) // 2 + 1 :],
        ):
            path = place / part if part == "index.json" else ImageIndex.open(place).file(part)
            path.write_bytes(change(path.read_bytes()))
            with pytest.raises(
                ValueError, match=f"{path.name} is .*: index the images again|{path.name}.*; index the images again"
            ):
                ImageIndex.open(place).search(queries, 5)
            assert search.main(command) == 0
            assert ImageIndex.open(place).search(queries, 5) == found
    path = ImageIndex.open(place).file("names")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks its file {path.name}: index the images again"):
        ImageIndex.open(place)
    assert search.main(command) == 0


def test_the_files_of_an_earlier_index_of_the_folder_go(folder, blip, tmp_path):
    command = ["index", str(folder), "--index", str(tmp_path / "a"), "--backbone", blip]
    search.main(command)
    for name in ("copies.npy", "faiss.index.tmp", "images-0123456789abcdef.partial.npy", "names-7.npy", "faiss-7"):
        (tmp_path / "a" / name).write_bytes(b"of an earlier version, or a killed run")
    (tmp_path / "a" / "notes.npy").write_bytes(b"somebody's own")
    picture(folder / "new.png", 1)
    search.main(command)
    own = {f"{part}-2.npy" for part in ("features", "names", "places", "copies")}
    assert {path.name for path in (tmp_path / "a").iterdir()} == own | {".lock", "index.json", "notes.npy"}


def test_faiss_that_finds_too_few(folder, blip, tmp_path, monkeypatch):
    """FAISS fills up with -1; nothing is made up for it."""
    search.main(["index", str(folder), "--index", str(tmp_path / "a"), "--backbone", blip])
    index = ImageIndex.open(tmp_path / "a")
    index.manifest["faiss"] = "HNSW16"

    class Few:
        ntotal = 10

        def search(self, queries, k):
            found = np.full((2, k), -1)
            found[0, :2], found[1, :3] = [4, 3], [1, 2, 7]
            return None, found

    index.faiss_index = Few()
    queries = F.normalize(torch.randn(2, 16), dim=-1)
    numbers = index.table.places[:, NUMBER].tolist()
    paths = {number: index.table.path(row) for row, number in enumerate(numbers)}
    rows = answers(index, queries, 4)
    assert [{p for p, _ in row} for row in rows] == [{paths[4], paths[3]}, {paths[1], paths[2], paths[7]}]


def test_faiss_missing(folder, blip, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert (
        search.main(["index", str(folder), "--index", str(tmp_path / "a"), "--backbone", blip, "--faiss", "HNSW16"])
        == 2
    )
    assert "dassl-prompts[faiss]" in capsys.readouterr().err
    assert not (tmp_path / "a" / "index.json").exists()


def test_contact_sheet(tmp_path, folder):
    right = str(folder / "2.png")
    contact_sheet(
        [
            Row(str(folder / "0.png"), "in red", [right, str(folder / "4.png")], ["1", "2"], right=[right]),
            Row("", "a long caption " * 5, [right], ["x" * 40]),
        ],
        tmp_path / "s.png",
    )
    colours = {c for _, c in Image.open(tmp_path / "s.png").getcolors(10**6)}
    assert (0, 140, 60) in colours and (150, 150, 150) in colours
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], tmp_path / "s.png")
    with pytest.raises(ValueError, match="end its name"):
        contact_sheet([Row("", "x", [right], ["1"])], tmp_path / "s.txt")


def test_what_is_not_said_of_an_index_stays_as_it_was(folder, blip, tmp_path, capsys):
    index = str(tmp_path / "index")
    own = ["--backbone", blip, "--query", "text", "--orientation", "stored"]
    assert search.main(["index", str(folder), "--index", index, *own]) == 0
    (folder / "more.png").write_bytes((folder / "0.png").read_bytes())
    assert search.main(["index", str(folder), "--index", index]) == 0
    assert ": 0 encoded, " in capsys.readouterr().out  # by the same towers, and as a copy of what they know
    manifest = read_manifest(Path(index))
    assert manifest["model"] == {"backbone": blip, "query": "text"} and manifest["settings"]["orientation"] == "stored"
    assert search.main(["index", str(folder), "--index", index, "--query", "image"]) == 0
    assert read_manifest(Path(index))["model"] == {"backbone": blip, "query": "image"}
