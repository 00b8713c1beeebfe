"""The shell scripts: all of them parse and explain themselves; each family's main script runs on the embedded data."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "scripts").rglob("*.sh"))
WITH_ARGUMENTS = [s for s in SCRIPTS if "usage " in (ROOT / s).read_text() and s != "scripts/lib.sh" and not s.endswith("all.sh")]
#: one epoch with one shot through the script's own command
SHORT = {
    "scripts/coop/base2new.sh": ["emoji", "1", "1", "", "OPTIM.MAX_EPOCH", "1"],
    "scripts/dpc/base2new.sh": ["emoji", "1", "CoOp", "1", "--common", "OPTIM.MAX_EPOCH", "1"],
    "scripts/zsclip/base2new.sh": ["emoji", "1"],
}


def run(script, *args, **env):
    return subprocess.run(
        ["bash", script, *args], cwd=ROOT, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHON": sys.executable, **env},
    )  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_syntax(script):
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0


@pytest.mark.parametrize("script", WITH_ARGUMENTS)
def test_missing_arguments_print_the_usage(script):
    result = run(script)
    assert result.returncode == 2 and f"usage: bash {script}" in result.stderr


@pytest.mark.parametrize("script", SHORT)
def test_main_scripts_on_the_embedded_data(script, tmp_path):
    first = run(script, *SHORT[script], OUTPUT=str(tmp_path))
    assert first.returncode == 0, first.stderr[-2000:]
    table = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert any("HM" in line for line in table)
    again = run(script, *SHORT[script], OUTPUT=str(tmp_path))
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == table
    assert "epoch [" not in again.stdout
