"""What the page and HTTP share: pictures that are served, pictures that are sent, answers."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_prompts.composed.answers import Question
from dassl_prompts.demo import service as module
from dassl_prompts.demo.classify import Classifier
from dassl_prompts.demo.service import NotFound, Service
from tests.demo.hostile import pictures
from tests.trainers.conftest import clip_file, load_once, make_cfg, state, train  # noqa: F401  (fixtures)


def test_an_answer_is_that_of_the_answerer_with_the_right_pictures(service):
    answer, right = service.search("0.png", "two", "image+text", 0.3, 4)
    reference = service.answerer.reference_of_shown("0.png")
    assert answer.data == service.answerer.answer(Question(reference, "two", "image+text", 0.3, 4)).data
    assert right == ["sub/3.png"] and service.search("0.png", "three")[1] == []


def test_thumbnails(service, place):
    Image.fromarray(np.zeros((500, 300, 3), np.uint8)).save(place / "images" / "large.png")
    with pytest.raises(NotFound):
        service.thumbnail("large.png", 128)  # it is not in the index
    shown = Image.open(io.BytesIO(service.thumbnail("0.png", 128)))
    assert np.array_equal(np.asarray(shown), np.asarray(Image.open(place / "images" / "0.png")))
    content = (place / "images" / "large.png").read_bytes()
    assert Image.open(io.BytesIO(service.thumbnail(service.keep(content), 128))).size == (77, 128)
    (place / "images" / "large.png").unlink()
    with pytest.raises(ValueError, match="size is 7; choose 128 or 256"):
        service.thumbnail("0.png", 7)


def test_a_link_that_leads_out_is_not_followed(service):
    assert service.answerer.index.table.find_shown("link.png") is not None
    for ask in (lambda: service.thumbnail("link.png", 128), lambda: service.search("link.png")):
        with pytest.raises(NotFound, match="no picture 'link.png'"):
            ask()


def test_a_picture_that_went_away(service, place):
    content = (place / "images" / "2.png").read_bytes()
    (place / "images" / "2.png").unlink()
    for ask in (lambda: service.thumbnail("2.png", 128), lambda: service.search("2.png")):
        with pytest.raises(NotFound, match="'2.png' is not there any more"):
            ask()
    (place / "images" / "2.png").write_bytes(content)


def test_pictures_that_were_sent_are_kept_and_not_without_end(service, monkeypatch):
    monkeypatch.setattr(module, "KEPT_SENT", 2)

    def sent(colour):
        out = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(out, "PNG")
        return service.keep(out.getvalue())

    names = [sent(colour) for colour in ("red", "green", "red", "blue")]
    assert names[0] == names[2] and len(service.sent) == 2
    assert service.search(names[0])[0].data["question"]["image"] is None
    with pytest.raises(NotFound, match="send it again"):
        service.search(names[1])
    monkeypatch.setattr(module, "KEPT_BYTES", 1)
    assert list((sent("white"), service.sent)[1]) == [sent("white")]


@pytest.mark.parametrize("name", pictures())
def test_pictures_that_are_none(service, name):
    with pytest.raises(OSError, match="cannot read image \\(sent\\)"):
        service.keep(pictures()[name])
    assert not service.sent


def test_too_many_bytes(service, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(ValueError, match="11 bytes, the limit is 10"):
        service.keep(b"x" * 11)


# -- classification ------------------------------------------------------------------------------------------


@pytest.fixture
def picture_of_noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8))


def test_the_likeliest_classes(train, picture_of_noise, place):
    from dassl_prompts.predict.run import load_run

    built = train("CoOp")
    one = Classifier(built.output_dir)
    service = Service(None, [one, Classifier(built.output_dir)])
    assert list(service.classifiers) == [one.name, f"{one.name} #2"]
    for classes in ([], ["cat", "polar bear"], ["polar_bear", "dog"]):
        run = load_run(built.output_dir, classes or None, device="cpu")
        scores = run.scores([picture_of_noise])[0]
        data = one.answer(picture_of_noise, classes, 2)
        order = scores.argsort(descending=True)[:2].tolist()
        assert [row["label"] for row in data["answers"]["prediction"]] == [run.classnames[i] for i in order]
        assert [row["score"] for row in data["answers"]["prediction"]] == pytest.approx(
            scores[order].tolist(), abs=1e-5
        )
        assert list(data["answers"]) == ["prediction"] and data["words"] is None and one.sheet(picture_of_noise) is None
    assert len(one.kept) == 3


def test_dpc_shows_both_prompts(train, picture_of_noise):
    first = train("CoOp", output="stage1")
    second = train("DPC_CoOp", "TRAINER.DPC.CKPT_DIR", first.output_dir, "TRAINER.DPC.TOPK", 2, output="stage2")
    found = Classifier(second.output_dir).answer(picture_of_noise, top=9)["answers"]
    assert found["prompt of base classes"] == found["prediction"]  # the classes of the training are base classes
    plain = Classifier(first.output_dir).answer(picture_of_noise, top=9)["answers"]["prediction"]
    assert found["prompt of new classes"] == plain != found["prediction"]  # omega_n is 0: the prompt of stage 1
    other = Classifier(second.output_dir).answer(picture_of_noise, ["cat", "bear"])["answers"]
    assert other["prompt of new classes"] == other["prediction"]


def test_attriprompt_shows_what_it_looked_at(train, picture_of_noise):
    node = "TRAINER.ATTRIPROMPT."
    built = train("AttriPrompt", f"{node}TEMPLATE", "a photo of a {}.", f"{node}POOL.KEY", "learned")
    assert Classifier(built.output_dir).sheet(picture_of_noise).width > 200


def test_dcar_compares_sentences_and_weights_their_words(clip_file, tmp_path, picture_of_noise):
    from dassl_prompts.trainers.dcar.reweighting import TokenReweighter
    from tests.trainers.retrieval_tree import make_trainer, make_tree

    trainer = make_trainer(make_tree(tmp_path / "data"), clip_file, tmp_path / "run", "DCAR")
    trainer.train()
    sentences = ["a red square on the left", "two dogs"]
    one = Classifier(tmp_path / "run")
    found = one.answer(picture_of_noise, sentences)
    run = one.run_of(tuple(sentences))
    pixels, model = run.transform(picture_of_noise)[None], trainer.model.eval()
    with torch.no_grad():
        image, text = model(pixels, model.tokenize(sentences))
        wanted = (model.scale * image @ text.T).softmax(1)[0]
        reweighter = TokenReweighter(
            model.clip, trainer.node.DTR, trainer.cfg.INPUT.PIXEL_MEAN, trainer.cfg.INPUT.PIXEL_STD
        )
        captions = model.clip.text.prompts_from_texts(["two dogs"])
        weights = reweighter.pair_weights(captions, reweighter.image_features(pixels))[0].tolist()
    scores = {row["label"]: row["score"] for row in found["answers"]["prediction"]}
    assert [scores[sentence] for sentence in sentences] == pytest.approx(wanted.tolist(), abs=1e-5)
    words = {row["sentence"]: row["words"] for row in found["words"]}
    assert [word["word"] for word in words["two dogs"]] == ["two", "dogs"]
    assert [word["weight"] for word in words["two dogs"]] == pytest.approx(weights, abs=1e-3)
    with pytest.raises(ValueError, match="compares pictures with sentences"):
        one.answer(picture_of_noise)


@pytest.mark.parametrize(
    ("classes", "top", "match"),
    [
        (["a", "a"], 1, "given twice"),
        (["a"] * 501, 1, "501 classes were given, the limit is 500"),
        (["a" * 201], 1, "more than 200 letters"),
        ([], 0, "top is 0"),
    ],
)
def test_wrong_classes(train, picture_of_noise, classes, top, match):
    with pytest.raises(ValueError, match=match):
        Classifier(train("CoOp").output_dir).answer(picture_of_noise, classes, top)


def test_no_such_run(service):
    with pytest.raises(NotFound, match="--classify RUN_DIR"):
        service.classify("", "0.png")
