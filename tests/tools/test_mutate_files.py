"""Files of every kind, changed at random: ``python tools/mutate_files.py`` with few changes, and what it would find."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is not installed: pip install -e .[dev]")
TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))
    import mutate_files

    yield mutate_files
    sys.path.remove(str(TOOLS))


def test_no_traceback_nothing_executed_and_no_other_result_where_a_digest_exists(tool):
    table, faults = tool.run(examples=8 * len(tool.KINDS))
    assert len(tool.KINDS) >= 15 and not faults, table + "\n" + "\n".join(faults)


def test_the_same_seed_draws_the_same_changes(tool):
    kind = [next(kind for kind in tool.KINDS if "YAML" in kind.name)]
    assert tool.run(20, 3, kinds=kind) == tool.run(20, 3, kinds=kind)


def test_faults_are_found(tool, tmp_path):
    """A reader that runs pickles, one that takes anything, one that lets libraries' errors through."""
    import json
    import pickle

    few_shot = next(kind for kind in tool.KINDS if "pickle" in kind.name)
    runs = replace(few_shot, read=lambda path: pickle.loads(path.read_bytes()), digest=True)
    counts, faults = tool.run_kind(runs, 150, 0, tmp_path / "kept")
    assert counts["executed"] and counts["tracebacks"] and len(list((tmp_path / "kept").iterdir())) == len(faults)
    split = next(kind for kind in tool.KINDS if "split" in kind.name)
    takes = replace(split, read=lambda path: path.read_bytes(), digest=True)
    assert tool.run_kind(takes, 10, 0)[0]["accepted, other"] > 5
    unnamed = replace(split, read=lambda path: json.loads(path.read_bytes()))
    assert tool.run_kind(unnamed, 30, 0)[0]["tracebacks"] > 5
