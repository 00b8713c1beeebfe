"""CONTRIBUTING.md: its code blocks run as they stand there, in a process of their own; the 30-line method trains on emoji."""

import json
import re
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)
#: new files in the order of their blocks, then the files whose imports the other blocks use
FILES = ["smooth_coop.py", "anchored_coop.py"]
PLACES = ["dassl_prompts.trainers.dpc.combinations", "dassl_prompts.datasets.caltech101", "dassl_prompts.run.protocols"]

SCRIPT = """
import importlib, json, sys
from pathlib import Path

import dassl_prompts
from dassl_prompts.run.__main__ import main as run
from dassl_prompts.train import main as train

work, places = Path(sys.argv[1]), json.loads(sys.argv[2])
dassl_prompts.trainers.__path__.append(str(work / "trainers"))  # as if the new files stood in trainers/
dassl_prompts.register_all()
method = importlib.import_module("dassl_prompts.trainers.anchored_coop")
for place, code in places.items():
    namespace = vars(importlib.import_module(place))
    namespace["AnchoredCoOp"] = method.AnchoredCoOp
    exec(compile(code, "CONTRIBUTING.md", "exec"), namespace)


def execute(trainer, config, *more):
    train(["--trainer", trainer, "--config-file", f"configs/trainers/{config}/open_tiny.yaml", "--seed", "1",
           "--dataset-config-file", "configs/datasets/emoji.yaml", "--output-dir", str(work / trainer),
           "DATASET.NUM_SHOTS", "4", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "3", *more])


execute("SmoothCoOp", "CoOp")
execute("AnchoredCoOp", "CoOp")
execute("DPC_AnchoredCoOp", "DPC_CoOp", "TRAINER.DPC.CKPT_DIR", str(work / "AnchoredCoOp"))
from dassl_prompts.engine import build_dataset, get_cfg_default, merge_opts

cfg = get_cfg_default()
dassl_prompts.extend_cfg(cfg)
merge_opts(cfg, ["DATASET.NAME", "Fruit", "DATASET.ROOT", str(work), "DATASET.MAKE_SPLIT", 1, "DATASET.NUM_SHOTS", 2])
print("classes", build_dataset(cfg).classnames)
assert run(["shots", "--trainer", "CoOp", "--dataset", "emoji", "--output", str(work / "plan"), "--dry-run"]) == 0
"""


def test_the_page_is_shorter_than_two_screens_and_opens_with_ten_lines():
    assert len(PAGE.splitlines()) <= 120 and max(map(len, PAGE.splitlines())) <= 140
    lines = [len([line for line in block.splitlines() if line]) for block in BLOCKS]
    assert lines[0] <= 10 and lines[1] <= 32 and lines[2] == 3 and lines[3] == 3 and lines[4] <= 12


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    work = tmp_path_factory.mktemp("contributing")
    assert len(BLOCKS) == len(FILES) + len(PLACES)
    (work / "trainers").mkdir()
    for name, code in zip(FILES, BLOCKS):
        assert f"`trainers/{name}`" in PAGE
        (work / "trainers" / name).write_text(code)
    for fruit in ("apple", "pear"):
        (work / "fruit" / "images" / fruit).mkdir(parents=True)
        for i in range(10):
            Image.new("RGB", (20, 20), (9 * i, 80, 80)).save(work / "fruit" / "images" / fruit / f"{i}.png")
    places = json.dumps(dict(zip(PLACES, BLOCKS[len(FILES) :])))
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(work), places], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return work, run.stdout


def results(work, name):
    return json.loads((work / name / "results.json").read_text())


def test_the_methods_train_on_emoji(executed):
    work, said = executed
    losses = [float(loss) for loss in re.findall(r"epoch \[\d/3\].* loss (\d+\.\d+) \(", said)]
    assert len(losses) >= 3
    for name in ("SmoothCoOp", "AnchoredCoOp", "DPC_AnchoredCoOp"):
        assert results(work, name)["finished"] and results(work, name)["test"]["accuracy"] > 20, name  # chance: 6 %
    assert (work / "AnchoredCoOp" / "prompt_learner" / "model.pth.tar-3").is_file()


def test_the_dataset_and_the_protocol_are_known(executed):
    _, said = executed
    assert "classes ['apple', 'pear']" in said
    assert all(f"shots_{shots}/CoOp/open_tiny/seed1" in said for shots in (1, 4, 16))


def test_the_other_commands_of_the_page_exist():
    for script in re.findall(r"scripts/[\w/]+\.sh", PAGE):
        assert (ROOT / script).is_file(), script
    for path in re.findall(r"`((?:tests|configs|docs|trainers|dassl_prompts)/[\w./]+)`", PAGE):
        new = path.startswith(
            ("configs/trainers/AnchoredCoOp", "configs/datasets/fruit", *(f"trainers/{f}" for f in FILES))
        )
        assert new or (ROOT / path).exists(), path
    version = (ROOT / "dassl_prompts" / "VERSION").read_text().strip()
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
