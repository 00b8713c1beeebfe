"""Work that is killed at random moments: ``python tools/kill_runs.py`` with few kills, and what it would find."""

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="work starts as a fork")


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(TOOLS))
    import kill_runs

    yield kill_runs
    sys.path.remove(str(TOOLS))


def test_nothing_broken_and_nothing_left(tool):
    pytest.importorskip("faiss")
    works = [work for work in tool.WORKS if work.name in tool.QUICK]
    table, faults = tool.run(kills=4 * len(works), works=works)
    assert not faults, table + "\n" + "\n".join(faults)


def test_faults_are_found(tool):
    """Work that writes under its final name and leaves temporary files of its own."""
    import time

    def careless(folder):
        (folder / "out").mkdir(exist_ok=True)
        temporary = folder / "out" / f"note{time.monotonic_ns()}.tmp"
        temporary.write_text("x")
        with open(folder / "out" / "a.json", "w") as file:
            for character in '{"a": [1, 2, 3]}':
                file.write(character)
                file.flush()
                time.sleep(0.02)
        temporary.unlink()

    table, faults = tool.run(6, works=[tool.Work("careless", careless)])
    assert any("broken: a.json" in fault for fault in faults) and any("leftovers: note" in fault for fault in faults)
