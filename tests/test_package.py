"""What an installed copy looks like from outside."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import dassl_prompts

ROOT = Path(__file__).resolve().parent.parent


def run(code, cwd):
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)


def test_trainers_and_datasets_stay_off_the_import_path(tmp_path):
    for name in ("trainers", "datasets", "configs"):
        assert "ModuleNotFoundError" in run(f"import {name}", tmp_path).stderr, name
    assert (
        run(
            "import dassl_prompts.trainers.coop, dassl_prompts.datasets.caltech101, dassl_prompts.configs", tmp_path
        ).returncode
        == 0
    )


def test_train_py_hides_its_own_folder():
    code = "import runpy, sys; sys.argv = ['train.py', '--help']\ntry: runpy.run_path('train.py')\nfinally: import datasets"
    assert "No module named 'datasets'" in run(code, ROOT).stderr


def test_importing_loads_nothing_heavy(tmp_path):
    code = (
        "import sys, dassl_prompts\n"
        "heavy = {'open_clip', 'torchvision', 'transformers', 'sklearn', 'matplotlib', 'tensorboard'} & set(sys.modules)\n"
        "print(sorted(heavy))"
    )
    result = run(code, tmp_path)
    assert result.stdout.strip() == "[]", result.stdout + result.stderr


def test_import_registers_all_trainers_and_opens_no_connection(tmp_path):
    code = (
        "import socket\n"
        "def refuse(*a): raise AssertionError('network at import')\n"
        "socket.socket.connect = refuse\n"
        "import dassl_prompts\n"
        "from dassl_prompts.engine import TRAINER_REGISTRY, DATASET_REGISTRY\n"
        "print(*TRAINER_REGISTRY.registered_names(), *DATASET_REGISTRY.registered_names())"
    )
    names = run(code, tmp_path).stdout.split()
    wanted = (
        "ZeroshotCLIP ZeroshotCLIP2 CoOp CoCoOp IVLP MaPLe PromptSRC PromptKD DPC_CoOp DPC_MaPLe DPC_PromptSRC DPC_PromptKD "
        "AttriPrompt DCAR TransAgg PVLF Caltech101 OxfordPets StanfordCars OxfordFlowers Food101 FGVCAircraft SUN397 "
        "DescribableTextures EuroSAT UCF101 ImageNet ImageNetV2 ImageNetSketch ImageNetA ImageNetR Emoji FDRD CIRR FashionIQ LaionCIR"
    )
    assert not set(wanted.split()) - set(names)


def test_two_lines_in_a_foreign_coop_checkout(tmp_path):
    """Somebody's train.py on somebody's Dassl: their CoOp stays, DPC_CoOp is there and builds on ours."""
    from tests.engine.vendored import make_dassl

    make_dassl(tmp_path)
    (tmp_path / "lab.py").write_text(
        "from dassl.config import get_cfg_default\n"
        "from dassl.engine import TRAINER_REGISTRY, TrainerX\n"
        "from yacs.config import CfgNode as CN\n"
        "@TRAINER_REGISTRY.register()\n"
        "class CoOp(TrainerX): pass\n"
        "cfg = get_cfg_default()\n"
        "cfg.TRAINER.COOP = CN({'N_CTX': 4})\n"
        "import dassl_prompts\n"
        "dassl_prompts.extend_cfg(cfg)\n"
        "assert TRAINER_REGISTRY.get('CoOp') is CoOp\n"
        "dpc = TRAINER_REGISTRY.get('DPC_CoOp')\n"
        "assert issubclass(dpc, TrainerX) and dpc.backbone is not CoOp\n"
        "assert cfg.TRAINER.COOP.N_CTX == 4 and cfg.TRAINER.COOP.CSC is False and cfg.TRAINER.DPC.PRESET == 'full_move'\n"
    )
    result = subprocess.run([sys.executable, "lab.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "trainer CoOp stays the one of" in result.stdout


def test_our_train_py_runs_our_trainer_where_a_fork_has_one_of_that_name(tmp_path):
    """The other way round than in a lab's train.py: `--trainer CoOp` of this command is ours."""
    from tests.engine.vendored import make_dassl

    make_dassl(tmp_path)
    with open(tmp_path / "dassl" / "engine" / "__init__.py", "a") as init:
        init.write(
            "\n@TRAINER_REGISTRY.register()\n"
            "class CoOp(TrainerX):\n"
            "    def __init__(self, cfg): raise SystemExit('the CoOp of the fork')\n"
        )
    files = [
        "--dataset-config-file",
        "configs/datasets/emoji.yaml",
        "--config-file",
        "configs/trainers/CoOp/open_tiny.yaml",
    ]
    result = subprocess.run(
        [sys.executable, "train.py", "--trainer", "CoOp", *files, "TRAINER.COOP.PREC", "fp8"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert "PREC is 'fp8'" in result.stderr, result.stderr  # ours has looked at the configuration
    assert f"engine: dassl 0.6.3 at {tmp_path}" in result.stdout
    assert f"trainer CoOp is now the one of {ROOT / 'trainers' / 'coop.py'}" in result.stdout


def test_a_wheel_carries_every_configuration_and_asset(monkeypatch):
    """What setup.py names as package data, against the files that git has."""
    import setuptools

    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kwargs: given.update(kwargs))
    runpy.run_path(str(ROOT / "setup.py"))
    carried = set()
    for package, patterns in given["package_data"].items():
        folder = ROOT / given["package_dir"].get(package, package.replace(".", "/"))
        carried |= {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    assert "dassl_prompts" in given["packages"] and set(given["package_data"]) <= set(given["packages"])
    wanted = {p for p in (ROOT / "configs").rglob("*") if p.suffix in (".yaml", ".json")}
    wanted |= {p for p in (ROOT / "dassl_prompts" / "assets").rglob("*") if p.is_file()}
    wanted.add(ROOT / "dassl_prompts" / "VERSION")
    assert len(wanted) > 50 and not wanted - carried
    # nothing but Python beside them that the code could want to read
    code = {
        p
        for name in ("dassl_prompts", "trainers", "datasets", "configs")
        for p in (ROOT / name).rglob("*")
        if p.is_file()
    }
    assert {p for p in code - carried if p.suffix not in (".py", ".pyc")} == set()


def test_loading_the_emoji_data_takes_little_memory(tmp_path):
    """Peak of the process, over that of the imports: the archives are read picture by picture."""
    code = (
        "import resource, dassl_prompts, dassl_prompts.datasets.emoji\n"
        "from yacs.config import CfgNode\n"
        "from dassl_prompts.engine import DATASET_REGISTRY\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "cfg = CfgNode({'SEED': 1, 'DATASET': {'ROOT': '', 'NUM_SHOTS': 16, 'SUBSAMPLE_CLASSES': 'all'}})\n"
        "data = DATASET_REGISTRY.get('Emoji')(cfg)\n"
        "assert data.num_classes == 35\n"
        "print(round(peak() - before))"
    )
    result = run(code, tmp_path)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-1]) < 300


def test_version():
    assert dassl_prompts.__version__ == (ROOT / "dassl_prompts" / "VERSION").read_text().strip()


def requirements():
    """Name -> lower bound of setup.py's direct dependencies."""
    declared = re.search(r"install_requires=\[(.*?)\]", (ROOT / "setup.py").read_text(), re.S).group(1)
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)"', declared)), declared.count('"') // 2


def constraints(which):
    lines = (ROOT / "constraints" / f"{which}.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def numbers(version):
    return [int(part) for part in version.split(".")]


def test_the_declared_bounds_are_the_versions_that_the_oldest_test_runs_on():
    declared, count = requirements()
    oldest, newest = constraints("oldest"), constraints("newest")
    assert count == len(declared)  # nothing is without a bound
    assert declared.keys() == oldest.keys() == newest.keys()
    for name, bound in declared.items():
        assert numbers(oldest[name])[: len(numbers(bound))] == numbers(bound), name
        assert not any(numbers(oldest[name])[len(numbers(bound)) :]), name
        assert numbers(newest[name]) >= numbers(oldest[name]), name
