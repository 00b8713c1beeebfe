"""Which engine is used, and that a run is the same on both."""

import importlib.util
import os
import re
import subprocess
import sys
import textwrap

import pytest

from tests.engine.toy import make_images
from tests.engine.vendored import make_dassl

REPORT = """
    from dassl_prompts.engine import ENGINE, ENGINE_NAME, TRAINER_REGISTRY, TrainerX, PromptTrainer
    print(ENGINE_NAME, "|", ENGINE, "|", TrainerX.__module__, "|", issubclass(PromptTrainer, TrainerX))
"""

#: an interpreter that finds a Dassl in its own folder or on PYTHONPATH, but no installed one
WITHOUT_INSTALLED = """
import os, sys
from importlib.machinery import PathFinder
class Hiding:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name != "dassl":
            return self.finder.find_spec(name, path, target)
        given = ["", *os.environ["PYTHONPATH"].split(os.pathsep)]
        return PathFinder.find_spec(name, [p for p in sys.path if p in given]) if self.finder is PathFinder else None
sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
"""


def python(code, *paths, engine=None, cwd=None, check=True, installed=True):
    """Run code in a fresh interpreter with ``paths`` first on its path; returns stdout (or stderr of a
    failure). It does not see an installed Dassl unless ``installed``."""
    env = {key: value for key, value in os.environ.items() if key != "engine"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(str(path) for path in paths)}
    if engine:
        env["engine"] = engine
    run = subprocess.run(
        [sys.executable, "-c", ("" if installed else WITHOUT_INSTALLED) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
    )
    if not check:
        return run.stderr
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def vendored(tmp_path_factory):
    return make_dassl(tmp_path_factory.mktemp("lab"))


def test_a_bare_folder_called_dassl_is_not_dassl(tmp_path):
    (tmp_path / "dassl" / "engine").mkdir(parents=True)
    code = "import dassl\n" + textwrap.dedent(REPORT)  # even when something has imported the empty folder
    name, line, module, _ = python(code, cwd=tmp_path, installed=False).split(" | ")
    assert name == "builtin" and line.startswith("builtin ") and module.startswith("dassl_prompts.engine.builtin")


def test_a_vendored_dassl_is_used(vendored):
    name, line, module, is_subclass = python(REPORT, cwd=vendored).split(" | ")
    assert name == "dassl" and line == f"dassl 0.6.3 at {vendored / 'dassl'}"
    assert module.startswith("dassl.") and is_subclass.strip() == "True"


def test_the_environment_variable_decides(vendored):
    assert python(REPORT, vendored, engine="builtin").startswith("builtin | builtin ")
    assert python(REPORT, vendored, engine="dassl").startswith("dassl | dassl 0.6.3")
    error = python(REPORT, engine="fast", check=False)
    assert "ValueError: environment variable engine=fast: choose one of auto, builtin, dassl" in error


def test_a_dassl_that_was_imported_before_is_always_used(vendored):
    line = python("import dassl\n" + textwrap.dedent(REPORT), vendored, engine="builtin")
    assert line.startswith("dassl | dassl 0.6.3") and "engine=builtin has no effect" in line


def test_a_broken_dassl_is_named_and_left_alone(tmp_path):
    (tmp_path / "dassl").mkdir()
    (tmp_path / "dassl" / "__init__.py").write_text("import wilds_or_so\n")
    report = textwrap.dedent(REPORT) + "import sys; print([m for m in sys.modules if m.split('.')[0] == 'dassl'])"
    out = python(report, tmp_path)
    assert out.startswith("builtin | builtin ") and out.endswith("[]\n")
    assert f"(dassl at {tmp_path}/dassl/__init__.py cannot be imported: No module named 'wilds_or_so')" in out
    error = python(REPORT, tmp_path, engine="dassl", check=False)
    assert "engine=dassl" in error and "wilds_or_so" in error and "--no-build-isolation" in error


def test_asking_for_dassl_without_one(tmp_path):
    error = python(REPORT, engine="dassl", check=False, installed=False)
    assert "no importable package dassl" in error and "--no-build-isolation" in error


TRAIN = """
    import importlib.util, sys
    spec = importlib.util.spec_from_file_location("toy", {toy!r})
    toy = importlib.util.module_from_spec(spec)
    sys.modules["toy"] = toy
    spec.loader.exec_module(toy)
    trainer = toy.toy_trainer({images!r}, {out!r}, "TEST.PER_CLASS_RESULT", "True", "DATASET.NUM_SHOTS", 3)
    trainer.train()
    print(trainer.history, trainer.model.ctx.tolist())
    print(type(trainer).__mro__[2].__module__)
"""


def without_times(log, out):
    log = re.sub(r"(time|data) \d+\.\d+ \(\d+\.\d+\)", r"\1", log.replace(str(out), "OUT"))
    return re.sub(r"(eta|Elapsed:) [\d:]+", r"\1", log).splitlines()


def real_or_vendored(vendored):
    """Path entries for an interpreter with a Dassl: the installed one, else the stand-in."""
    return () if importlib.util.find_spec("dassl") else (vendored,)


def test_a_run_is_the_same_on_both_engines(vendored, tmp_path):
    """Log, losses and weights, line for line; only timings and the engine's name differ."""
    images = make_images(tmp_path / "images")
    toy = str(os.path.join(os.path.dirname(__file__), "toy.py"))
    logs = {}
    for engine in ("builtin", "dassl"):
        out = tmp_path / engine
        code = TRAIN.format(toy=toy, images=str(images), out=str(out))
        logs[engine] = without_times(python(code, *real_or_vendored(vendored), engine=engine), out)
    assert logs["builtin"].pop() == "dassl_prompts.engine.builtin.trainer"
    assert logs["dassl"].pop().startswith("dassl.")
    assert "engine: builtin" in logs["builtin"][1] and "engine: dassl" in logs["dassl"][1]
    del logs["builtin"][1], logs["dassl"][1]
    assert len(logs["builtin"]) > 40 and logs["builtin"] == logs["dassl"]


def test_registering_in_a_labs_dassl(vendored):
    """Our classes are found by Dassl's own build_trainer; names that the lab has stay the lab's."""
    code = """
        import dassl.engine
        from dassl.engine import TRAINER_REGISTRY
        class CoOp: pass
        TRAINER_REGISTRY.register(CoOp)
        from dassl_prompts.engine import register_all, register_trainer, TRAINER_REGISTRY as seen
        assert seen is TRAINER_REGISTRY and TRAINER_REGISTRY.get("CoOp") is CoOp
        from dassl.config import get_cfg_default
        import dassl_prompts
        cfg = get_cfg_default()
        dassl_prompts.extend_cfg(cfg)
        assert cfg.TRAIN.RESUME_FREQ == 1 and "COOP" in cfg.TRAINER
        print(TRAINER_REGISTRY.get("MaPLe").__module__)
    """
    out = python(code, vendored)
    assert "trainer CoOp stays the one of" in out and out.endswith("dassl_prompts.trainers.maple\n")


def test_a_labs_names_and_defaults_are_one_line_each_and_in_the_log(vendored, tmp_path):
    code = f"""
        from dassl.config import get_cfg_default
        from dassl.engine import TRAINER_REGISTRY
        from yacs.config import CfgNode
        for name in ("CoOp", "CoCoOp", "MaPLe"):
            TRAINER_REGISTRY.register(type(name, (), {{}}))
        cfg = get_cfg_default()
        cfg.TRAINER.COOP = CfgNode({{"N_CTX": 16, "CSC": False, "PREC": "fp16"}})
        import dassl_prompts
        dassl_prompts.extend_cfg(cfg)
        assert cfg.TRAINER.COOP.PREC == "fp16"
        dassl_prompts.engine.setup_logger({str(tmp_path)!r})
    """
    printed = python(code, vendored)
    engine, names, values = (tmp_path / "log.txt").read_text().splitlines()
    assert engine.startswith("engine: dassl")
    assert names.startswith("trainer CoOp stays the one of") and names.endswith("; likewise trainer CoCoOp, MaPLe")
    assert values == "values of your configuration stay where ours differ: TRAINER.COOP.PREC 'fp16' (ours 'amp')"
    assert printed.startswith(f"{names}\n{values}\n")  # at once, too


def test_importing_the_engine_is_light():
    heavy = "torchvision sklearn open_clip transformers matplotlib tensorboard tabulate"
    code = f"""
        import sys, torch
        import dassl_prompts.engine
        print([name for name in {heavy.split()!r} if name in sys.modules])
    """
    assert python(code, engine="builtin") == "[]\n"


def test_both_engines_offer_the_same_names(vendored):
    code = """
        import dassl_prompts.engine.real as real
        from dassl_prompts.engine.builtin import names
        assert sorted(real.__all__) == sorted(names.__all__)
        assert all(hasattr(real, name) for name in real.__all__)
    """
    python(code, *real_or_vendored(vendored), engine="dassl")
