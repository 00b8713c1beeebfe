"""The shell scripts: all of them parse and explain themselves; each family's main script runs on the embedded data."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "scripts").rglob("*.sh"))
WITH_ARGUMENTS = [
    s for s in SCRIPTS if re.search(r'^usage ".*" [1-9] "\$@"$', (ROOT / s).read_text(), re.M)
]  # that need some
#: one epoch with one shot through the script's own command
SHORT = {
    "scripts/coop/base2new.sh": ["emoji", "1", "1", "", "OPTIM.MAX_EPOCH", "1"],
    "scripts/dpc/base2new.sh": ["emoji", "1", "CoOp", "1", "--common", "OPTIM.MAX_EPOCH", "1"],
    "scripts/zsclip/base2new.sh": ["emoji", "1"],
    "scripts/zsclip/zeroshot.sh": ["emoji"],
}


def run(script, *args, **env):
    return subprocess.run(
        ["bash", script, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHON": sys.executable, **env},
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_syntax(script):
    assert subprocess.run(["bash", "-n", ROOT / script], check=False).returncode == 0


@pytest.mark.parametrize("script", WITH_ARGUMENTS)
def test_missing_arguments_print_the_usage(script):
    result = run(script)
    assert result.returncode == 2 and f"usage: bash {script}" in result.stderr


#: notes what it is called with
NOTING_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$NOTES"
"""


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_prints_the_usage_and_does_nothing(script, flag, tmp_path):
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(NOTING_PYTHON)
    python.chmod(0o755)
    result = run(script, flag, PYTHON=str(python), NOTES=str(notes), VENV=str(tmp_path / "venv"))
    assert result.returncode == 0 and result.stdout.startswith(f"usage: bash {script}"), result.stderr
    assert result.stdout.count("\n") == 1 and not notes.exists() and not (tmp_path / "venv").exists()


#: fails for one dataset
FAILING_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$NOTES"
case "$*" in *" caltech101 "*|*" sun397 "*) exit 2 ;; esac
"""


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.endswith("dpc/all.sh")])
def test_all_datasets_are_tried_and_failures_listed_at_the_end(script, tmp_path):
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(FAILING_PYTHON)
    python.chmod(0o755)
    result = run(script, PYTHON=str(python), NOTES=str(notes))
    assert result.returncode == 1 and len(notes.read_text().splitlines()) == 11
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: 2 of 11 datasets failed") and last.endswith("caltech101 sun397")


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.count("/") > 1])
def test_options_and_output_reach_the_program(script, tmp_path):
    """The words behind a script's own arguments, and the folder in $OUTPUT."""
    text = re.search(r'^usage "\S+ (.*)" \d+ "\$@"$', (ROOT / script).read_text(), re.M).group(1)
    own = re.sub(r"\[(OPTIONS|KEY VALUE \.\.\.)\]$", "", text)
    assert own != text, f"{script} says nothing of options"
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(NOTING_PYTHON)
    python.chmod(0o755)
    words = ["1"] * len(own.split())
    result = run(script, *words, "OPTIM.LR", "7", PYTHON=str(python), NOTES=str(notes), OUTPUT="/else/where")
    assert result.returncode == 0, result.stderr
    for line in notes.read_text().splitlines():
        assert line.endswith(" OPTIM.LR 7") and "/else/where" in line and " output" not in line


@pytest.mark.parametrize("script", SHORT)
def test_main_scripts_on_the_embedded_data(script, tmp_path):
    first = run(script, *SHORT[script], OUTPUT=str(tmp_path))
    assert first.returncode == 0, first.stderr[-2000:]
    table = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert any("HM" in line or "accuracy" in line for line in table) and len(table) > 2
    again = run(script, *SHORT[script], OUTPUT=str(tmp_path))
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == table
    assert "epoch [" not in again.stdout


def test_coop_eval_repeats_the_test_of_coop_main(tmp_path):
    short = ["OPTIM.MAX_EPOCH", "1"]
    trained = run(
        "scripts/coop/main.sh",
        "emoji",
        "open_tiny",
        "end",
        "4",
        "1",
        "False",
        "--seed",
        "1",
        *short,
        OUTPUT=str(tmp_path),
    )
    assert trained.returncode == 0, trained.stderr[-2000:]
    (folder,) = [path.parent for path in tmp_path.rglob("results.json")]
    assert "nctx4_cscFalse_ctpend" in str(folder)
    again = run(
        "scripts/coop/eval.sh", str(folder), "emoji", "open_tiny", "1", "DATASET.NUM_SHOTS", "1", OUTPUT=str(tmp_path)
    )
    assert again.returncode == 0, again.stderr[-2000:]
    evaluated = json.loads((tmp_path / "evaluation/CoOp/open_tiny/emoji/seed1/results.json").read_text())
    assert evaluated["test"] == json.loads((folder / "results.json").read_text())["test"]


#: stands for every Python: `-m venv DIR` puts it into DIR, everything else is noted
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
    "-c "*) exit 0 ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *) echo "$* [$PYTHONWARNINGS]" >>"$NOTES" ;;
esac
case "$*" in *"-e "*) exit "${FAIL:-0}" ;; esac
"""


def test_set_up_installs_once_for_a_folder_and_its_setup_py(tmp_path):
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    for name in ("here", "moved"):
        (tmp_path / name / "scripts").mkdir(parents=True)
        (tmp_path / name / "scripts" / "lib.sh").write_text((ROOT / "scripts" / "lib.sh").read_text())
        (tmp_path / name / "setup.py").write_text("1")

    def set_up(name="here", **env):
        notes.write_text("")
        result = subprocess.run(
            ["bash", "-c", f"source {tmp_path}/{name}/scripts/lib.sh; set_up"],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHON": str(python), "VENV": str(tmp_path / "venv"), "NOTES": str(notes), **env},
        )
        return result, [line for line in notes.read_text().splitlines() if " -e " in line]

    failed, _ = set_up(FAIL="1")
    assert failed.returncode == 1
    _, installs = set_up()
    # pip resolves everything in one call, without setuptools' remark on editable installations
    assert installs == [f"-m pip install --quiet -e {tmp_path}/here[dev] [ignore:Editable installation]"]
    again, installs = set_up()
    assert not installs and "is ready" in again.stdout and "dassl_prompts.check" in notes.read_text()
    (tmp_path / "here" / "setup.py").write_text("2")
    assert set_up()[1]
    assert set_up("moved")[1]
