"""The front door: overview, dispatch, listing, completion; reading arguments imports no torch."""

import signal
import subprocess
import sys

import pytest

from dassl_prompts import __main__ as front
from dassl_prompts.commands import BY_NAME, COMMANDS
from dassl_prompts.composed.query import BASELINES
from dassl_prompts.composed.search import QUERIES
from dassl_prompts.datasets.testbed import read_splits
from dassl_prompts.engine import TRAINER_REGISTRY

#: a module finder that ends the process where torch is imported
NO_TORCH = """
import sys
class Guard:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise SystemExit("torch was imported")
sys.meta_path.insert(0, Guard())
sys.orig_argv[:] = [sys.executable, "-m", "dassl_prompts"]
"""


@pytest.mark.parametrize(
    "words",
    [
        [],
        *([name, "--help"] for name in BY_NAME),
        ["run", "nowhere"],
        ["predict"],
        ["list", "nothing"],
        ["completion", "bash"],
    ],
    ids=" ".join,
)
def test_help_and_errors_of_arguments_answer_without_torch(words):
    code = f"{NO_TORCH}\nfrom dassl_prompts.__main__ import main\nsys.exit(main({words!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "torch was imported" not in run.stderr
    good = not words or words[-1] in ("--help", "bash")
    assert run.returncode == (0 if good else 2), run.stderr
    assert (run.stdout if good else run.stderr).strip()


def test_the_overview_names_every_command_with_an_example(capsys):
    assert front.main([]) == 0
    shown = capsys.readouterr().out
    for command in COMMANDS:
        assert f"dassl-prompts {command.name} {command.example}".rstrip() in shown


def test_every_command_is_a_module_too():
    for command in COMMANDS:
        run = subprocess.run(
            [sys.executable, "-m", f"dassl_prompts.{command.name}", "--help"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0 and "usage:" in run.stdout, run.stderr


def test_an_unknown_command_is_told_with_the_nearest_one(capsys):
    assert front.main(["reprot"]) == 2
    assert "did you mean report?" in capsys.readouterr().err


def test_list_shows_what_is_registered_and_shipped(capsys):
    assert front.main(["list"]) == 0
    shown = capsys.readouterr().out
    for word in (
        "DPC_CoOp",
        "caltech101",
        "4,128",
        "base2new",
        "ViT-B/16",
        "emoji-tiny",
        "CC BY-SA 4.0",
        "folder:PATH",
    ):
        assert word in shown
    assert "a second prompt for the base classes" in shown
    (row,) = [line.split() for line in shown.splitlines() if line.startswith("icon_park ")]
    assert row[2:] == ["19", *(f"{n:,}" for n in map(len, read_splits("icons"))), "embedded", "Apache-2.0"]
    assert front.main(["list", "recipes"]) == 0
    assert "vit_b16_ep50_ctxv1" in capsys.readouterr().out


def test_every_method_is_described_in_a_line_for_people():
    import dassl_prompts
    from dassl_prompts.list import WIDEST, methods

    for row in methods():
        if TRAINER_REGISTRY.get(row["method"]).__module__.startswith(dassl_prompts.__name__):
            words = row["what it does"]
            assert 0 < len(words) <= WIDEST and words.endswith(".") and "`" not in words and " = " not in words, row


@pytest.mark.parametrize("words", [("list", "datasets"), ("completion", "bash")])
def test_a_reader_that_has_seen_enough_is_no_error(words):
    command = [sys.executable, "-m", "dassl_prompts", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 128 + signal.SIGPIPE


def test_info_names_engine_device_and_data(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("DATA", str(tmp_path))
    assert front.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert str(tmp_path) in shown and "engine" in shown and "torch " in shown and "not there" not in shown


def test_completion_knows_the_flags_of_the_commands(capsys):
    pytest.importorskip("shtab", reason="shtab is not installed: pip install shtab")
    assert front.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--dataset" in script and "predict" in script
    assert front.main(["completion", "fish"]) == 2


def test_the_queries_that_search_offers_are_those_there_are():
    assert set(QUERIES) == set(BASELINES)
