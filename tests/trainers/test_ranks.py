"""Two processes train the model that one trains: losses, tensors, results; see :mod:`dassl_prompts.engine.distributed`.

Every registered trainer has its test; without ``DASSL_PROMPTS_RANKS=all`` only those run that stand for a mechanism. The frozen towers
compute in double precision: what is compared is the method, and not how matrix products of other sizes round.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dassl_prompts.configs.recipes import config_file
from dassl_prompts.models import load_clip
from dassl_prompts.run.launchers.local import Scheduler
from dassl_prompts.run.plan import plan
from dassl_prompts.run.steps import Step
from dassl_prompts.train import parser, run
from tests.run.fake import InProcess
from tests.trainers import contract
from tests.trainers.ranks import STEPS, in_double
from tests.trainers.ranks import one as train_here

#: text side; a context per picture; teacher and batch normalisation; miner and two prompts, after the first stage; negatives of
#: captions; triplets
STANDING = ("CoOp", "CoCoOp", "PromptKD", "DPC_CoOp", "DCAR", "PVLF")
#: the loss of the one is large, BLIP's towers are not in double precision in the other
ROUNDED = ("PromptKD", "PVLF")
ALL = os.environ.get("DASSL_PROMPTS_RANKS") == "all"
NAMES = [name for name in contract.TRAINERS if ALL or name in STANDING]
#: a bias before batch normalisation: its gradient is 0, and what is computed of it nothing but rounding
NO_GRADIENT = ("conv1.0.bias", "conv1.1.running_mean")
SCRIPT = Path(__file__).parent / "ranks.py"
SEVERAL = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def ranks(count, *words):
    before = [*SEVERAL, str(count)] if count > 1 else [sys.executable]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*before, SCRIPT, *map(str, words)], env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


def read(folder, output, name):
    found = torch.load(folder / output / f"{name}.pt", weights_only=True)
    assert "error" not in found, found["error"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = contract.prepare(tmp_path_factory.mktemp("ranks"))
    ranks(1, folder, "one", *NAMES)
    ranks(2, folder, "two", *NAMES, "CoOp:2")
    return folder


def close(one, two):
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        if name.endswith(NO_GRADIENT):
            continue
        apart = (tensor - two[name]).abs().max() / tensor.abs().max().clamp_min(1e-12)
        assert apart <= 1e-5, (name, float(apart))


@pytest.mark.parametrize("name", contract.TRAINERS)
def test_two_processes_train_what_one_trains(folder, name):
    if name not in NAMES:
        pytest.skip("DASSL_PROMPTS_RANKS=all runs every trainer")
    one, two = read(folder, "one", name), read(folder, "two", name)
    assert len(one["losses"]) == len(two["losses"]) == (STEPS if name in contract.TRAINED else 0)
    for step, (expected, found) in enumerate(zip(one["losses"], two["losses"])):
        limit = 3e-6 if name in ROUNDED else 1e-6
        assert found == pytest.approx(expected, rel=limit, abs=1e-6), step
    close(one["tensors"], two["tensors"])
    assert two["result"] == one["result"] and two["test"] == one["test"]
    assert not [path for path in (folder / "two").iterdir() if "rank" in path.name]


def test_a_run_goes_on_with_another_number_of_processes(folder, monkeypatch):
    done = json.loads((folder / "stopped/CoOp/epochs.json").read_text())
    assert [entry["epoch"] for entry in done] == [1, 2]
    monkeypatch.setattr("dassl_prompts.models.load_clip", in_double(load_clip))
    expected, found = read(folder, "one", "CoOp"), train_here("CoOp", folder, "stopped")
    assert len(found["losses"]) == STEPS * 3 // 5
    close(expected["tensors"], found["tensors"])
    assert found["result"] == expected["result"]


def test_the_command_of_a_plan(tmp_path):
    files = ("--config-file", config_file("trainers", "CoOp", "open_tiny"))
    files += ("--dataset-config-file", config_file("datasets", "emoji"), "--trainer", "CoOp", "--seed", "1")
    args = (*files, "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1")
    several = Step("two", tmp_path / "two", args, resources=(("processes", "2"),))
    assert Scheduler(plan([[several]])).run() == []
    InProcess(Step("one", tmp_path / "one", args).command())
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert all(two[key] == one[key] for key in ("test", "digests", "classnames"))
    one, two = ({path.name for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert two == one | {"console.txt"}
    assert (tmp_path / "two" / "log.txt").read_text().count("Finish training") == 1


def test_processes_draw_the_same_random_numbers(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--trainer", "CoOp", "--dataset", "emoji"]
    with pytest.raises(
        ValueError, match="several processes work on this run and have to draw the same .*: give --seed"
    ):
        run(parser().parse_args(words))
