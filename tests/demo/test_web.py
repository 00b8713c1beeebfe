"""HTTP: answers equal to `search ask`, everything else refused in one line."""

import base64
import json

import pytest

gradio = pytest.importorskip("gradio", reason="the extra dassl-prompts[demo] is not installed")

from fastapi.testclient import TestClient  # noqa: E402

from dassl_prompts.composed import search  # noqa: E402
from dassl_prompts.demo.page import mount  # noqa: E402
from dassl_prompts.demo.web import MAX_BODY, build_app  # noqa: E402
from tests.demo import hostile  # noqa: E402
from tests.trainers.conftest import clip_file, load_once, make_cfg, state, train  # noqa: E402, F401  (fixtures)


@pytest.fixture
def client(service):
    """Of the application with its page."""
    app = mount(build_app(service), service, None)
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


def test_a_question_is_answered_as_by_ask(client, place, capsys):
    image = str(place / "images" / "sub" / "3.png")
    words = [
        "ask",
        str(place / "index"),
        "--image",
        image,
        "--text",
        "two dogs",
        "--weight",
        "0.3",
        "-k",
        "4",
        "--json",
    ]
    assert search.main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    question = {"image": "sub/3.png", "text": "two dogs", "weight": 0.3, "k": 4}
    asked = client.get("/search", params=question), client.post("/search", json=question)
    assert [(one.status_code, one.json()) for one in asked] == [(200, printed)] * 2
    assert asked[0].headers["server-timing"].startswith("encode;dur=")


def test_a_picture_that_is_sent(client, service, place):
    content = (place / "images" / "2.png").read_bytes()
    data = client.post("/search", json={"picture": base64.b64encode(content).decode(), "k": 1}).json()
    assert data["answers"]["image"] == [{"rank": 1, "path": "2.png", "score": pytest.approx(1, abs=2e-3)}]
    assert data["answers"]["text"] is None


def test_what_can_be_asked_and_pictures(client):
    assert client.get("/about").json() == {
        "images": 10,
        "methods": ["image", "text", "image+text", "image+text, normalised"],
        "default": "image+text",
        "runs": [],
    }
    shown = client.get("/image", params={"path": "sub/1.png"})
    assert shown.headers["content-type"] == "image/png" and shown.content[:4] == b"\x89PNG"


def test_classification(service, train, place):
    from dassl_prompts.demo.classify import Classifier
    from dassl_prompts.demo.service import Service

    one = Classifier(train("CoOp").output_dir)
    client = TestClient(build_app(Service(service.answerer, [one])), base_url="http://127.0.0.1")
    request = {"image": "0.png", "classes": ["cat", "dog"], "top": 2}
    found = client.post("/classify", json=request)
    assert (
        found.json() == one.answer(service.reference("0.png").picture, ["cat", "dog"], 2) and found.status_code == 200
    )
    for wrong in ({}, {"image": "0.png", "run": "x"}, {"image": "0.png", "classes": ["a", "a"]}, {**request, "top": 0}):
        refused = client.post("/classify", json=wrong)
        assert 400 <= refused.status_code < 500 and list(refused.json()) == ["error"]


@pytest.mark.parametrize("request_", hostile.requests(), ids=lambda one: one.name)
def test_hostile_requests_are_refused(client, request_, place):
    """Of Gradio's own routes the answers are Gradio's; nothing tells where the server's files are."""
    _, method, url, content, headers = request_
    answer = client.request(method, url, content=content, headers=headers)
    assert 400 <= answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text and str(place) not in answer.text and "root:" not in answer.text
    if not url.startswith(("/gradio_api", "/file", "/static", "/..", "/%2e")) and "host" not in headers:
        (line,) = answer.json().values()
        assert 0 < len(line) <= 500 and "\n" not in line


def test_there_are_a_hundred():
    assert len(hostile.requests()) == 100


def test_a_body_without_its_length_is_cut_too(client):
    def endless():
        for _ in range(2 * MAX_BODY // (1 << 20)):
            yield b"x" * (1 << 20)

    answer = client.post("/search", content=endless(), headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413)


def test_an_error_of_ours_is_told_to_the_owner_alone(client, service, monkeypatch, capsys):
    monkeypatch.setattr(service.answerer, "answer", lambda question: 1 / 0)
    answer = client.get("/search", params={"text": "x"})
    assert answer.status_code == 500 and answer.json() == {"error": "an error of the server, whose log says more"}
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_another_host_is_heard_where_the_owner_wants_it(service):
    client = TestClient(build_app(service, ("*",)), base_url="http://lab.example")
    assert client.get("/about").status_code == 200
