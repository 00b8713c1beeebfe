"""Answers as data: columns, methods, the weight, and that `ask --json` prints them."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dassl_prompts.composed import answers, search
from dassl_prompts.composed.answers import Answerer, Question
from dassl_prompts.composed.asked_models import transform_of
from dassl_prompts.composed.query import BASELINES, image_text_sum
from tests.datasets.cir_trees import picture
from tests.models.test_blip import write_tiny_blip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an index of nine pictures."""
    place = tmp_path_factory.mktemp("answers")
    for i in range(9):
        picture(place / "images" / ("sub" if i % 2 else "") / f"{i}.png", i)
    blip = write_tiny_blip(place)
    search.main(["index", str(place / "images"), "--index", str(place / "index"), "--backbone", str(blip)])
    return place


@pytest.fixture
def answerer(place):
    return Answerer.open(place / "index")


def by_hand(answerer, query, without=None):
    """(path, score) of all pictures, from their stored features."""
    table = answerer.index.table
    scores = torch.from_numpy(np.array(answerer.index.features[:])).double() @ query[0].double()
    rows = sorted(range(len(table)), key=lambda row: -float(scores[row]))
    return [(table.shown(row), float(scores[row])) for row in rows if table.shown(row) != without]


@pytest.mark.parametrize("method", BASELINES)
@pytest.mark.parametrize("weight", [0.5, 0.2])
def test_three_columns(answerer, place, method, weight):
    reference = answerer.reference_of_shown("sub/3.png")
    data = answerer.answer(Question(reference, "a red dog", method, weight, k=20)).data
    encoder = answerer.encoder
    with torch.no_grad():
        picture = Image.open(place / "images" / "sub" / "3.png").convert("RGB")
        image = encoder.image_tokens(transform_of(encoder, 1.25)(picture)[None])[:, 0]
        text = encoder.text_tokens(["a red dog"]).features
        first = F.normalize if method.endswith("normalised") else lambda x: x
        mixed = {"image": image, "text": text}.get(method, weight * first(text) + (1 - weight) * first(image))
    for column, query in (("text", text), ("image", image), ("composed", mixed)):
        wanted = by_hand(answerer, F.normalize(query, dim=-1), "sub/3.png")
        found = data["answers"][column]
        assert [(row["rank"], row["path"]) for row in found] == [(i, p) for i, (p, _) in enumerate(wanted, 1)]
        assert [row["score"] for row in found] == pytest.approx([score for _, score in wanted], abs=1e-5)
    summed = "+" in method
    assert data["question"] == {
        "image": "sub/3.png",
        "digest": reference.digest.hex(),
        "text": "a red dog",
        "method": method,
        "weight": weight if summed else None,
        "k": 20,
    }


def test_the_weight_of_a_sum(answerer):
    """One half is the plain sum to the bit, none the image, one the text."""
    tokens, texts = torch.randn(1, 1, answerer.encoder.width), ["two"]
    with torch.no_grad():
        for first in (False, True):
            text = answerer.encoder.text_tokens(texts).features
            plain = F.normalize(F.normalize(text) + F.normalize(tokens[:, 0]) if first else text + tokens[:, 0])
            assert torch.equal(image_text_sum(answerer.encoder, first)(texts, tokens), plain)
            for weight, part in ((0.0, "image"), (1.0, "text")):
                mixed = image_text_sum(answerer.encoder, first, weight)(texts, tokens)
                torch.testing.assert_close(mixed, BASELINES[part](answerer.encoder)(texts, tokens))


def test_a_part_alone(answerer):
    data = answerer.answer(Question(text="two", k=3)).data
    assert len(data["answers"]["text"]) == 3 and data["answers"]["image"] is data["answers"]["composed"] is None
    answer = answerer.answer(Question(answerer.reference_of_shown("0.png"), k=3))
    assert answer.data["answers"]["text"] is None and answer.column == "image"


def test_a_picture_that_was_sent_is_the_same_picture(answerer, place):
    content = (place / "images" / "2.png").read_bytes()
    sent, own = answerer.reference_of_bytes(content), answerer.reference_of_file(str(place / "images" / "2.png"))
    assert sent.row is None and own.row == answerer.index.table.find_shown("2.png") and sent.digest == own.digest
    first = answerer.answer(Question(sent, "two", k=20)).data["answers"]["composed"]
    second = answerer.answer(Question(own, "two", k=20, keep_reference=True)).data["answers"]["composed"]
    assert first == second and len(first) == 9


def test_references_are_kept_and_not_without_end(answerer, monkeypatch):
    encoder = answerer.encoder
    monkeypatch.setattr(answers, "KEPT_BYTES", 2 * 4 * encoder.n_image * encoder.width)
    encoded = []
    real = answerer.encoder.image_tokens
    monkeypatch.setattr(answerer.encoder, "image_tokens", lambda pixels: encoded.append(1) or real(pixels))
    for name, count in (("0.png", 1), ("0.png", 1), ("2.png", 2), ("0.png", 2), ("4.png", 3), ("2.png", 4)):
        answerer.answer(Question(answerer.reference_of_shown(name)))
        assert len(encoded) == count and len(answerer.kept) <= 2


@pytest.mark.parametrize(
    ("question", "match"),
    [
        ({}, "needs an image, a text"),
        ({"text": "  "}, "needs an image, a text"),
        ({"text": "x", "method": "magic"}, "no method 'magic'; there are 'image', 'text'"),
        ({"text": "x", "weight": 1.5}, "the weight is 1.5"),
        ({"text": "x", "weight": float("nan")}, "the weight is nan"),
        ({"text": "x", "k": 0}, "k is 0"),
        ({"text": "x" * 3000}, "3,000 letters, the limit is 2,000"),
    ],
)
def test_wrong_questions(answerer, question, match):
    with pytest.raises(ValueError, match=match):
        answerer.answer(Question(**question))


def test_pictures_that_are_none(answerer, monkeypatch):
    with pytest.raises(KeyError, match="no picture '../0.png'"):
        answerer.reference_of_shown("../0.png")
    with pytest.raises(OSError, match="cannot read image \\(sent\\)"):
        answerer.reference_of_bytes(b"no picture")
    monkeypatch.setattr(answers, "MAX_PIXELS", 10)
    with pytest.raises(OSError, match="more than 10 pixels"):
        answerer.reference_of_shown("0.png")


def test_ask_prints_the_same(answerer, place, capsys):
    image = str(place / "images" / "sub" / "3.png")
    words = ["ask", str(place / "index"), "--image", image, "--text", "two", "--query", "image+text, normalised"]
    assert search.main([*words, "--weight", "0.3", "-k", "4", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    reference = answerer.reference_of_shown("sub/3.png")
    assert printed == answerer.answer(Question(reference, "two", "image+text, normalised", 0.3, 4)).data
    assert search.main([*words, "--weight", "2"]) == 2 and "the weight is 2.0" in capsys.readouterr().err
    assert search.main([*words, "--run", "x"]) == 2 and "not both" in capsys.readouterr().err


def test_runs_with_the_same_towers(place, tmp_path, monkeypatch, capsys):
    """Of PVLF with frozen towers; a run whose towers were trained has other features."""
    from tests.datasets import cir_trees
    from tests.trainers.pvlf.test_pvlf import run

    monkeypatch.chdir(tmp_path)
    blip = json.loads((place / "index" / "index.json").read_text())["model"]["backbone"]
    for tree in (cir_trees.cirr, cir_trees.laion_cir):
        tree(tmp_path / "data")
    for name, tune in (("frozen", "none"), ("tuned", "both")):
        run("PVLF", blip, tmp_path / "data", tmp_path / name, "TRAINER.PVLF.BACKBONE.TUNE", tune)
    answerer = Answerer.open(place / "index", ["frozen"])
    assert list(answerer.methods) == [*BASELINES, "PVLF"] and answerer.default == "PVLF"
    reference = answerer.reference_of_shown("0.png")
    data = answerer.answer(Question(reference, "two", k=3)).data
    assert data["question"]["method"] == "PVLF" and data["question"]["weight"] is None
    method = answerer.methods["PVLF"]
    with torch.no_grad():
        query = method.query(["two"], answerer.tokens(reference))
    wanted = by_hand(answerer, F.normalize(query, dim=-1), "0.png")[:3]
    assert [row["path"] for row in data["answers"]["composed"]] == [path for path, _ in wanted]
    with pytest.raises(ValueError, match="made with other weights than tuned"):
        Answerer.open(place / "index", ["tuned"])
    image = str(place / "images" / "0.png")
    words = ["ask", str(place / "index"), "--image", image, "--text", "two", "-k", "3", "--run", "frozen", "--json"]
    capsys.readouterr()
    assert search.main(words) == 0
    assert json.loads(capsys.readouterr().out) == data
