"""The house: files of a readable size, old module names that answer, floors and style checked by tools."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from dassl_prompts.moved import MOVED

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("dassl_prompts", "trainers", "datasets", "configs", "benchmarks", "tools", "tests")


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_file_past_400_lines_says_why_it_is_one(folder):
    silent = []
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400 and "One file" not in (ast.get_docstring(ast.parse(text)) or ""):
            silent.append(str(path.relative_to(ROOT)))
    assert not silent


def test_every_table_leaves_text_that_looks_like_a_number_as_it_is():
    """tabulate reprints it otherwise: the tag 83.10 as 83.1, the class 007 as 7, 1234e56 as a float."""
    loose = []
    for path in (path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tabulate":
                given = {word.arg: word.value for word in node.keywords}
                if getattr(given.get("disable_numparse"), "value", None) is not True:
                    loose.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert not loose


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_name_gives_the_module_at_its_new_place(old, capsys):
    assert importlib.import_module(old) is importlib.import_module(MOVED[old])
    assert importlib.import_module(MOVED[old]).__spec__.name == MOVED[old]
    sys.modules.pop(old)


@pytest.mark.parametrize("old", ["attributes", "retrieval.search", "run.dpc_study", "data.cir_report", "run.retrieval"])
def test_an_old_command_runs_and_names_its_new_place(old):
    run = subprocess.run(
        [sys.executable, "-m", f"dassl_prompts.{old}", "--help"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0 and "usage:" in run.stdout
    assert run.stderr == f"dassl_prompts.{old} is now {MOVED[f'dassl_prompts.{old}']}\n"


def test_a_name_that_never_was_stays_unknown():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("dassl_prompts.retrieval.never")


def test_style_and_floors():
    """``bash scripts/lint.sh``: ruff and import-linter."""
    for tool in ("ruff", "importlinter"):
        pytest.importorskip(tool, reason=f"{tool} is not installed: pip install -e .[dev]")
    run = subprocess.run(["bash", "scripts/lint.sh"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
