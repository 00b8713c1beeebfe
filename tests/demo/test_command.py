"""The command: what it refuses, the embedded emoji, and that it listens and ends."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from dassl_prompts.composed.answers import Answerer, Question
from dassl_prompts.demo import __main__ as command
from dassl_prompts.demo import emoji_set


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--port", "-1"], "--port is -1; give a number from 0 to 65535"),
        (["--results", "nowhere"], "--results nowhere is not a folder"),
        (["--index", "nowhere"], "nowhere is not an index"),
        (["--classify", "nowhere"], "nowhere has no results.json"),
    ],
)
def test_wrong_words(words, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "require_packages", lambda: None)
    assert command.main(words) == 2
    assert match in capsys.readouterr().err


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert command.main([]) == 2
    assert "gradio is not installed: pip install 'dassl-prompts[demo]'" in capsys.readouterr().err


def test_the_emoji_are_asked_about_with_known_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = emoji_set.default_place()
    targets = emoji_set.make_index(place)
    assert place.is_relative_to(tmp_path)
    answerer = Answerer.open(place)
    questions = emoji_set.task().queries
    assert len(answerer.index) == 2093 and sum(map(len, targets.values())) == len(questions) == 1461
    assert all(answerer.row_of(name) >= 0 for right in targets.values() for name in right)
    (image, text), right = next(iter(targets.items()))
    found = answerer.answer(Question(answerer.reference_of_shown(image), text, k=2093)).data["answers"]["composed"]
    assert right[0] in [row["path"] for row in found] and image not in [row["path"] for row in found]


def test_it_listens_to_this_machine_and_ends(place):
    pytest.importorskip("gradio", reason="the extra dassl-prompts[demo] is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "dassl_prompts.demo", "--index", str(place / "index"), "--port", str(port)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            told = next(line for line in server.stdout if line.startswith("Listening"))
            assert f"http://127.0.0.1:{port} " in told
            while True:  # the line comes before the port is open
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/about") as answer:
                    assert json.load(answer)["images"] == 10
                    break
            # an open page holds such a connection as long as it is open
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/gradio_api/heartbeat/page")
        finally:
            server.send_signal(signal.SIGINT)
        assert server.wait(30) == 0 and "Traceback" not in server.stderr.read()
        page.close()
