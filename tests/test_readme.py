"""Every code block of README.md runs from an empty folder. What stands in for what cannot be had in a test:

- quickstart: a new environment's Python is this one, without installing; its six runs take one shot and one epoch each;
- test: the same; the suite and the style check are noted instead of run within themselves;
- prepare: `--check` beside its own words, on small trees in the datasets' real layouts, as nothing is fetched;
- run: on these trees, with the small embedded backbone; the plan whole, executed with one seed, shot and epoch;
- report, predict: as they stand, on what `run` left; RUN_DIR and pictures/ are such a run and two pictures;
- Python: as it stands; `cfg` is the configuration that the reader's train.py has there.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from tests.conftest import ROOT
from tests.datasets.trees import make_tree

PAGE = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
#: stands for every Python: an environment is a copy of it, nothing is installed, runs are short
STAND_IN = f"""#!/usr/bin/env bash
case "$*" in
    "-c "*) exit 0 ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m dassl_prompts.run "*) exec {shlex.quote(sys.executable)} "$@" --shots 1 --epochs 1 ;;
    "-m dassl_prompts.report "*) exec {shlex.quote(sys.executable)} "$@" ;;
    *) echo "$*" >>"$NOTES" ;;
esac
"""


def block(language, word):
    (found,) = [text for kind, text in BLOCKS if kind == language and word in text]
    return found


def commands(text):
    """The commands of a shell block, without comments."""
    return [shlex.split(line, comments=True) for line in text.strip().splitlines()]


def execute(words, folder, code=0, **env):
    """Run a command as a reader would; returns what it said."""
    words = [sys.executable if word == "python" else word for word in words]
    environment = {**os.environ, "MPLBACKEND": "Agg", **env}
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def test_every_block_has_its_test_here():
    assert [(kind, text.split()[:2]) for kind, text in BLOCKS] == [
        ("bash", ["bash", "scripts/quickstart.sh"]),
        ("python", ["import", "dassl_prompts"]),
        ("bash", ["python", "-m"]),
        ("python", ["import", "dassl_prompts"]),
    ]


@pytest.fixture
def clone(tmp_path):
    """What the scripts need of a clone."""
    shutil.copytree(ROOT / "scripts", tmp_path / "clone" / "scripts")
    shutil.copy(ROOT / "setup.py", tmp_path / "clone")
    return tmp_path / "clone"


def test_quickstart_and_test_script(clone, tmp_path):
    python, notes = tmp_path / "python", tmp_path / "notes"
    python.write_text(STAND_IN)
    python.chmod(0o755)
    first, second = commands(block("bash", "quickstart"))
    env = {"PYTHON": str(python), "NOTES": str(notes), "VENV": str(tmp_path / "venv"), "OUTPUT": "output"}
    said = execute(first, clone, **env)
    assert len(said.splitlines()) < 120 and "creating" in said
    assert re.search(r"^\| Emoji +\| DPC_CoOp ", said, re.M), said
    assert "-m pip install" in notes.read_text() and (clone / "output" / "report.txt").is_file()
    following = [line for line in said.partition("Next:")[2].splitlines() if line]
    assert len(following) == 3 and all("-m dassl_prompts." in line for line in following)
    said = execute(second, clone, **env)
    assert "is ready" in said and notes.read_text().splitlines()[-1].startswith("-m pytest ")


def test_two_lines_in_a_coop_checkout(tmp_path):
    before = "from dassl_prompts.engine import get_cfg_default\n\ncfg = get_cfg_default()\n"
    after = "assert cfg.TRAINER.DPC.PRESET and cfg.TRAINER.COOP.N_CTX == 16\n"
    (tmp_path / "lab.py").write_text(before + block("python", "registers the trainers") + after)
    execute(["python", "lab.py"], tmp_path)


def test_a_model_in_python(tmp_path):
    after = "import torch\nprint(tuple(model.eval()(torch.zeros(3, 3, 64, 64)).shape))\n"
    (tmp_path / "model.py").write_text(block("python", "build_model") + after)
    assert execute(["python", "model.py"], tmp_path).splitlines()[-1] == "(3, 2)"


def test_data_sweeps_results_prediction(tmp_path):
    prepare, run, report, predict = commands(block("bash", "dassl_prompts.prepare"))
    for name in ("Caltech101", "DescribableTextures"):
        make_tree(name, tmp_path / "data")
    said = execute([*prepare, "--check", "--fast"], tmp_path, code=8)  # the trees are too small for the real counts
    assert "Caltech101" in said and "DescribableTextures" in said
    common = ["--cfg", "open_tiny", "--shots", "1", "--epochs", "1", "--common", "DATASET.MAKE_SPLIT", "1"]
    assert "of 36 runs" in execute([*run, *common, "--dry-run"], tmp_path)
    short = [word for word in run if word not in ("dtd", "2", "3")]
    execute([*short, *common], tmp_path)
    table = execute(report, tmp_path)
    assert all(re.search(rf"^Caltech101 +{name} ", table, re.M) for name in ("CoOp", "MaPLe", "DPC_CoOp")), table
    (folder,) = tmp_path.glob("output/base2new/train_base/caltech101/*/DPC_CoOp/*/seed1")
    folder.rename(tmp_path / "RUN_DIR")
    (tmp_path / "pictures").mkdir()
    for i in range(2):
        pixels = torch.randint(0, 255, (40, 40, 3), generator=torch.Generator().manual_seed(i)).byte().numpy()
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
    rows = [line.split(",") for line in execute(predict, tmp_path).splitlines() if line.startswith("pictures/")]
    assert len(rows) == 2 and {label for _, label, *_ in rows} <= {"cat", "dog", "red panda"}
