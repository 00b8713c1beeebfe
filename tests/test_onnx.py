"""Runs as ONNX files: onnxruntime gives the model's logits for every batch size; text that depends on the picture is refused."""

import json
import sys

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from dassl_prompts.predict import __main__ as command
from dassl_prompts.predict import onnx_file
from dassl_prompts.predict.export import export
from dassl_prompts.predict.run import load_run
from tests.test_predict import CLASSES, SHALLOW
from tests.trainers.conftest import clip_file, load_once, make_cfg, state, train  # noqa: F401  (fixtures)


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def assert_agrees(file, run):
    """The file's outputs are the model's, of batches that were not traced."""
    opened = session(file)
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        logits, probabilities = opened.run(None, {"images": images.numpy()})
        with torch.no_grad():
            expected = run.model(images)
        assert logits.shape == (count, len(run.classnames))
        np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4, rtol=0)
        np.testing.assert_allclose(probabilities, expected.softmax(1).numpy(), atol=1e-4, rtol=0)
    return opened


@pytest.mark.parametrize("trainer", ["CoOp", "MaPLe"])
def test_onnxruntime_gives_the_logits_of_the_run(train, tmp_path, trainer):
    run = load_run(train(trainer, *SHALLOW).output_dir, ["zebra", "polar bear", "violin"], device="cpu")
    with torch.no_grad():  # of one epoch on random weights the prompts would hardly matter
        for parameter in run.model.prompt_parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    files = export(run, tmp_path, onnx=True)
    assert tmp_path / "classifier.onnx" in files
    opened = assert_agrees(tmp_path / "classifier.onnx", run)
    noted = {name: json.loads(value) for name, value in opened.get_modelmeta().custom_metadata_map.items()}
    assert noted["classes"] == ["zebra", "polar bear", "violin"] and noted["mean"] == list(run.cfg.INPUT.PIXEL_MEAN)
    assert [type(opened.get_inputs()[0].shape[0]), *opened.get_inputs()[0].shape[1:]] == [str, 3, 32, 32]
    assert not list(tmp_path.glob("*.data")) and not list(tmp_path.glob(".*"))
    assert run.model.class_features().shape[0] == 3  # the model goes on as it was
    other = load_run(run.folder, ["zebra", "polar bear", "violin"], device="cpu")
    with pytest.raises(RuntimeError, match="differ by"):  # another model than the file's: the check can fail
        onnx_file.compare(other, tmp_path / "classifier.onnx", [torch.ones(2, 3, 32, 32)])


def test_dpc_of_both_tasks_and_of_both_at_once(train, tmp_path):
    first = train("MaPLe", *SHALLOW, output="stage1")
    stage1 = ("TRAINER.DPC.CKPT_DIR", first.output_dir)
    folder = train("DPC_MaPLe", *SHALLOW, *stage1, "TRAINER.DPC.TOPK", 2, output="stage2").output_dir
    kinds = {"base": CLASSES, "new": ["zebra", "violin"], "union": ["zebra", CLASSES[2], "violin", CLASSES[0]]}
    for task, names in kinds.items():
        run = load_run(folder, names, device="cpu")
        assert run.model.task == task
        with torch.no_grad():
            for parameter in run.model.parallel.prompt_parameters():
                parameter += 0.1
        export(run, tmp_path / task, onnx=True)
        assert_agrees(tmp_path / task / "classifier.onnx", run)


@pytest.mark.parametrize("trainer", ["CoCoOp", "AttriPrompt"])
def test_text_that_depends_on_the_picture_is_refused_by_name(train, tmp_path, capsys, trainer):
    keys = ("DATASET.TEMPLATE", "a photo of a {}.", "TRAINER.ATTRIPROMPT.POOL.KEY", "learned")
    folder = train(trainer, *keys).output_dir
    capsys.readouterr()
    assert command.main([folder, "--export", str(tmp_path / "out"), "--onnx"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and f"{trainer} encodes the classes anew for every picture" in last
    assert not list((tmp_path / "out").glob("*"))


def test_the_lines_of_the_docs_label_a_picture(train, tmp_path, monkeypatch, capsys):
    from tests.test_docs import python_blocks

    folder = train("CoOp").output_dir
    assert (
        command.main([folder, "--export", str(tmp_path / "exported"), "--onnx", "--classes", "cat", "red panda"]) == 0
    )
    assert "classifier.onnx" in capsys.readouterr().out
    image = Image.effect_noise((40, 48), 80).convert("RGB")
    image.save(tmp_path / "cat.png")
    (code,) = [block for block in python_blocks("docs/running.md") if "classifier.onnx" in block]
    assert "dassl_prompts" not in code and "torch" not in code
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/running.md", "exec"), {})
    label, score = capsys.readouterr().out.rsplit(maxsplit=1)
    run = load_run(folder, ["cat", "red panda"], device="cpu")
    scores = run.scores([image])[0]
    assert label == run.classnames[scores.argmax()] and float(score) == pytest.approx(float(scores.max()), abs=1e-4)


def test_a_missing_package_is_named_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxruntime" else object())
    assert command.main(["no_run", "--export", str(tmp_path), "--onnx"]) == 2
    assert "needs onnxruntime: pip install 'dassl-prompts[onnx]'" in capsys.readouterr().err
