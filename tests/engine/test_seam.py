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


def python(code, *paths, engine=None, cwd=None, check=True):
    """Run code in a fresh interpreter with ``paths`` first on its path; returns stdout (or stderr of a
    failure)."""
    env = {key: value for key, value in os.environ.items() if key != "engine"}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(str(path) for path in paths)}
    if engine:
        env["engine"] = engine
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, env=env, cwd=cwd
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
    name, line, module, _ = python(code, cwd=tmp_path).split(" | ")
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


@pytest.mark.skipif(importlib.util.find_spec("dassl") is not None, reason="Dassl is installed")
def test_asking_for_dassl_without_one(tmp_path):
    error = python(REPORT, engine="dassl", check=False)
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
