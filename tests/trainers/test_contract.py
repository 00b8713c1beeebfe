"""The contract of every registered trainer, one toy run of each: see tests/trainers/contract.py for the table.

Build, one step, frozen weights unchanged, official names, reload in a fresh process, other classes, resume equal, evaluation
in batches of another size equal, export, and a run on a pretended GPU.
"""

import functools
import json
import subprocess
import sys
from fnmatch import fnmatchcase
from types import SimpleNamespace

import pytest
import torch

import dassl_prompts
from dassl_prompts.classification.class_bound import ClassBoundTrainer
from dassl_prompts.engine import (
    TRAINER_REGISTRY,
    build_trainer,
    learned_tensors,
    load_checkpoint,
    set_random_seed,
)
from dassl_prompts.engine.registration import _ours
from dassl_prompts.models import load_clip
from dassl_prompts.predict.export import export
from dassl_prompts.predict.run import load_run
from tests.pretend_cuda import pretend_cuda
from tests.trainers import contract, plain
from tests.trainers.contract import TRAINED, TRAINERS, UNTRAINED

LAST = "model.pth.tar-2"
CLASSIFIERS = [name for name in TRAINED if contract.family(name) == "classification"]
#: of these a run scores any classes; the others hold something of every class of training
FREE = [name for name in CLASSIFIERS if not issubclass(TRAINER_REGISTRY.get(name), ClassBoundTrainer)]
every_trained = pytest.mark.parametrize("name", TRAINED)


def test_no_trainer_is_left_out():
    ours = {
        name: cls for name, cls in _ours["trainer"].items() if cls.__module__.startswith("dassl_prompts.")
    }  # not a test's
    assert sorted(TRAINERS) == sorted(ours)
    assert all(TRAINER_REGISTRY.get(name) is cls for name, cls in ours.items())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return contract.prepare(tmp_path_factory.mktemp("contract"))


@pytest.fixture
def load_once(monkeypatch, cached):
    monkeypatch.setattr("dassl_prompts.models.load_clip", cached)


@pytest.fixture(scope="module")
def cached():
    """``load_clip`` that reads a file once: the frozen towers are the same for all runs.

    Building a CLIP draws random numbers; a run that meets a loaded one must not start otherwise for that.
    """

    @functools.cache
    def load(*args, **kwargs):
        with torch.random.fork_rng(devices=[]):
            return load_clip(*args, **kwargs)

    return load


@pytest.fixture
def build(folder, load_once):
    """``build("CoOp", "run", KEY, value, ...)``"""
    return lambda name, output, *more: build_trainer(contract.config(name, folder, output, *more))


def clone(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@pytest.fixture(scope="module")
def runs():
    return {}


@pytest.fixture
def whole(build, runs):
    """``whole("CoOp")``: an uninterrupted run, trained once for all tests: the trainer, states before and after the first
    step and at the end, the values that the first step returned."""

    def run(name):
        if name in runs:
            return runs[name]
        if TRAINERS[name].stage1:
            run(TRAINERS[name].stage1)
        set_random_seed(1)
        trainer = build(name, f"whole/{name}")
        found = SimpleNamespace(trainer=trainer, first=None)
        step = trainer._checked_step

        def watched(batch):
            if found.first is not None:
                return step(batch)
            found.before = clone(trainer.model.state_dict())
            found.first = step(batch)
            found.after_first = clone(trainer.model.state_dict())
            return found.first

        trainer._checked_step = watched
        found.result = trainer.train()
        found.after = clone(trainer.model.state_dict())
        runs[name] = found
        return found

    return run


def checkpoint(folder, output, name):
    return load_checkpoint(folder / output / TRAINERS[name].folder / LAST)["state_dict"]


# -- training ---------------------------------------------------------------------------------------------------------


@every_trained
def test_a_step_on_the_cpu_learns(name, whole):
    run = whole(name)
    assert run.trainer.device.type == "cpu" and run.first.get("loss", 1.0)
    assert {p.dtype for p in run.trainer.model.parameters()} == {torch.float32}
    learned = list(learned_tensors(run.trainer.model))
    assert learned and any(not torch.equal(run.after_first[n], run.before[n]) for n in learned)
    assert all(run.after[n].isfinite().all() for n in learned)


@every_trained
def test_training_changes_every_learned_tensor_and_nothing_else(name, whole):
    run = whole(name)
    learned = set(learned_tensors(run.trainer.model)) - set(TRAINERS[name].still)
    assert {n for n in run.before if not torch.equal(run.before[n], run.after[n])} == learned


@every_trained
def test_a_resumed_run_equals_an_uninterrupted_one(name, whole, build, folder, monkeypatch):
    class Interrupted(Exception):
        pass

    set_random_seed(1)
    result = whole(name).result
    set_random_seed(1)
    first = build(name, f"parts/{name}")
    before_epoch = first.before_epoch

    def stop():
        if first.epoch == 1:
            raise Interrupted
        before_epoch()

    monkeypatch.setattr(first, "before_epoch", stop)
    with pytest.raises(Interrupted):
        first.train()
    set_random_seed(2)
    second = build(name, f"parts/{name}")
    assert second.train() == result
    a, b = (checkpoint(folder, f"{part}/{name}", name) for part in ("whole", "parts"))
    assert a.keys() == b.keys()
    assert not [key for key in a if not torch.equal(a[key], b[key])]


# -- checkpoints ------------------------------------------------------------------------------------------------------


@every_trained
def test_the_checkpoint_has_the_official_names(name, whole, folder):
    whole(name)
    held, patterns = checkpoint(folder, f"whole/{name}", name), TRAINERS[name].tensors
    assert not [key for key in held if not any(fnmatchcase(key, pattern) for pattern in patterns)]
    assert not [pattern for pattern in patterns if not any(fnmatchcase(key, pattern) for key in held)]


@pytest.fixture(scope="module")
def fresh_process(folder):
    """``fresh_process("CoOp", run)``: result and features in another Python, started once, that never saw the training."""
    process = subprocess.Popen(
        [sys.executable, contract.__file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(name, run):
        output = f"fresh/{name}"
        process.stdin.write(json.dumps([name, str(folder), str(run), output]) + "\n")
        process.stdin.flush()
        error = json.loads(process.stdout.readline() or '"the process died"')
        assert not error, error
        return torch.load(folder / output / "evaluation.pt")

    yield ask
    process.stdin.close()
    process.wait(60)


@every_trained
def test_a_fresh_process_reloads_the_run(name, whole, folder, fresh_process):
    run = whole(name)
    found = fresh_process(name, folder / "whole" / name)
    assert found["result"] == run.result
    for theirs, ours in zip(found["features"], contract.features(run.trainer), strict=True):
        assert torch.equal(theirs, ours)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_scores_go_with_the_class_and_not_with_its_place(name, whole, folder, load_once):
    trainer, images = whole(name).trainer, torch.randn(3, 3, 32, 32)
    cfg, run = contract.config(name, folder, "unused"), str(folder / "whole" / name)
    backwards = dassl_prompts.build_model(cfg, plain.CLASSES[::-1], checkpoint=run)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        torch.testing.assert_close(backwards(images).flip(1), trainer.model(images), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", FREE)
def test_the_run_scores_classes_it_never_saw(name, whole, folder, load_once):
    """Also with what an official file holds besides: frozen weights, tokens of its own classes."""
    trainer, images = whole(name).trainer, torch.randn(3, 3, 32, 32)
    cfg, cls = contract.config(name, folder, "unused"), TRAINER_REGISTRY.get(name)
    model = dassl_prompts.build_model(cfg, plain.OTHERS, checkpoint=str(folder / "whole" / name))
    # the trained tensors, moved over by hand, are the reference
    net = cls.build_net(cfg, plain.OTHERS, trainer.model.clip)
    trained = trainer.model.state_dict()
    with torch.no_grad():
        for key, tensor in net.state_dict().items():
            if "clip." not in key and "teacher." not in key:
                tensor.copy_(trained[key])
        wanted = net.eval()(images)
        assert wanted.shape == (3, len(plain.OTHERS)) and torch.equal(model(images), wanted)
        official = checkpoint(folder, f"whole/{name}", name)
        official["prompt_learner.token_prefix"] = torch.randn(len(plain.CLASSES), 1, 64)
        official["token_suffix"] = torch.randn(len(plain.CLASSES), 72, 64)
        official["image_encoder.conv1.weight"] = torch.randn(4, 3, 2, 2)
        again = cls.build_net(cfg, plain.OTHERS, trainer.model.clip)
        cls.load_state(again, official, "an official file")
        assert torch.equal(again.eval()(images), wanted)


# -- evaluation and export --------------------------------------------------------------------------------------------


@every_trained
def test_evaluation_does_not_depend_on_its_batches(name, whole, build, folder):
    run = whole(name)
    one_by_one = build(name, f"single/{name}", "DATALOADER.TEST.BATCH_SIZE", 1)
    one_by_one.load_model(str(folder / "whole" / name))
    for single, batched in zip(contract.features(one_by_one), contract.features(run.trainer), strict=True):
        torch.testing.assert_close(single, batched, rtol=1e-4, atol=1e-4)


@every_trained
def test_a_classifier_is_exported_and_others_say_that_they_have_no_classes(name, whole, folder, load_once):
    from safetensors.torch import load_file

    trainer, run_folder = whole(name).trainer, folder / "whole" / name
    if name not in CLASSIFIERS:
        with pytest.raises(ValueError, match=f"{name}, which retrieves and has no classes to choose from"):
            load_run(run_folder, device="cpu")
        return
    run = load_run(run_folder, device="cpu")
    written = {path.name for path in export(run, folder / "exported" / name)}
    learned = load_file(folder / "exported" / name / "prompts.safetensors")
    model = trainer.model.state_dict()
    assert {n for n in learned_tensors(trainer.model)} <= set(learned)
    assert all(torch.equal(tensor, model[n].float()) for n, tensor in learned.items())
    if "classes.safetensors" in written:
        classes = load_file(folder / "exported" / name / "classes.safetensors")["classes"]
        torch.testing.assert_close(classes, trainer.model.class_features(), rtol=0, atol=1e-6)


# -- what is not trained ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", UNTRAINED)
def test_training_nothing_is_refused(name, build):
    with pytest.raises(ValueError, match="nothing to train: .*--eval-only"):
        build(name, f"refused/{name}").train()


# -- a pretended GPU --------------------------------------------------------------------------------------------------


@pytest.fixture
def build_on_gpu(folder):
    """As ``build``, with towers of its own: those that stay on the CPU are no use on a GPU."""
    gpu = ("USE_CUDA", True, "OPTIM.MAX_EPOCH", 1)
    return lambda name, output, *more: build_trainer(contract.config(name, folder, output, *gpu, *more))


@pytest.mark.parametrize("name", [*TRAINED, *UNTRAINED])
def test_run_on_a_pretended_gpu(name, whole, build_on_gpu, tmp_path):
    if TRAINERS[name].stage1:
        whole(TRAINERS[name].stage1)
    with pretend_cuda() as gpu, pytest.MonkeyPatch.context() as patch:
        patch.setattr("dassl_prompts.models.load_clip", load_clip)
        trainer = build_on_gpu(name, f"gpu/{name}")
        assert trainer.device.type == "cuda"
        trainer.train() if name in TRAINED else trainer.test()
    parameters = list((trainer.encoder if name == "ZeroshotCIR" else trainer.model).parameters())
    assert parameters and all(gpu.holds(parameter) for parameter in parameters)


OPTIONS = {  # name of the node's keys -> values away from the default that keep, move or mix tensors
    "AttriPrompt": [
        ("CACHE.DIR", "queries", "CACHE.VIEWS", 2),
        ("POOL.KEY", "learned", "RETRIEVAL.WEIGHTING", "softmax"),
        ("COMPOSE", "accumulate"),
        ("TEXT.SHARE_PREFIX", False),
    ],
    "PromptKD": [("TEACHER_CACHE", "teacher.pt")],
    "PVLF": [("BACKBONE.TUNE", "none"), ("BACKBONE.TUNE", "both")],
    "DCAR": [("DTR.SOURCE", "prompted"), ("DTR.CACHE", False)],
}


@pytest.mark.parametrize(
    "number, name, options",
    [(number, name, options) for name, several in OPTIONS.items() for number, options in enumerate(several)],
)
def test_options_on_a_pretended_gpu(number, name, options, build_on_gpu, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = contract.under(name.upper(), *options)
    with pretend_cuda():
        build_on_gpu(name, f"options/{name}{number}", *keys).train()
