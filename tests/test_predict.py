"""Trained runs as classifiers: scores equal to the trainer's, unseen classes, streaming, export, words. One file: all share its runs."""

import csv
import json
import re
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dassl_prompts.engine.checkpoint import find_checkpoint
from dassl_prompts.predict import __main__ as command
from dassl_prompts.predict.export import export, write_safetensors
from dassl_prompts.predict.run import batches, load_run, read_config
from dassl_prompts.predict.words import nearest_words
from tests.trainers import plain
from tests.trainers.conftest import clip_file, load_once, make_cfg, state, train  # noqa: F401  (fixtures)

#: the toy backbone has four layers
SHALLOW = ("TRAINER.MAPLE.PROMPT_DEPTH", 3) + tuple(
    item
    for node in ("IVLP", "PROMPTSRC")
    for side in ("TEXT", "VISION")
    for item in (f"TRAINER.{node}.PROMPT_DEPTH_{side}", 3)
)
#: CLIP's own preparation of pictures, which open_clip's transform has
CLIP_PIXELS = (
    "INPUT.INTERPOLATION",
    "bicubic",
    "INPUT.PIXEL_MEAN",
    [0.48145466, 0.4578275, 0.40821073],
    "INPUT.PIXEL_STD",
    [0.26862954, 0.26130258, 0.27577711],
)
CLASSES = [name.replace("_", " ") for name in plain.CLASSES]


@pytest.fixture
def pictures(tmp_path):
    """Five small pictures in a folder and a folder in it."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    g = torch.Generator().manual_seed(3)
    for i in range(5):
        pixels = torch.randint(0, 255, (40, 48, 3), generator=g).byte().numpy()
        Image.fromarray(pixels).save(folder / ("more" if i > 2 else "") / f"{i}.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def read_csv(text):
    return list(csv.DictReader(text.splitlines()))


@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp", "MaPLe", "IVLP", "PromptSRC"])
def test_scores_are_those_of_the_trainer(train, trainer):
    built = train(trainer, *SHALLOW)
    run = load_run(built.output_dir, device="cpu")
    assert run.classnames == run.trained == list(plain.CLASSES) or run.classnames == CLASSES
    correct = total = 0
    built.set_model_mode("eval")
    for batch in built.test_loader:
        images = [Image.open(path).convert("RGB") for path in batch["impath"]]
        with torch.no_grad():
            expected = built.model_inference(batch["img"]).float().softmax(1)
        found = run.scores(images)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        correct += (found.argmax(1) == batch["label"]).sum().item()
        total += len(images)
    assert 100 * correct / total == pytest.approx(run.results["test"]["accuracy"])


def test_dpc_mixes_for_its_own_classes_and_keeps_the_backbone_for_new_ones(train, pictures):
    first = train("CoOp", output="stage1")
    second = train("DPC_CoOp", "TRAINER.DPC.CKPT_DIR", first.output_dir, "TRAINER.DPC.TOPK", 2, output="stage2")
    image = [Image.open(pictures / "0.png").convert("RGB")]
    own = load_run(second.output_dir, CLASSES[:3], device="cpu")
    coop = load_run(first.output_dir, CLASSES[:3], device="cpu")
    p, p_prime = coop.model.prompt_learner.ctx, second.model.parallel.prompt_learner.ctx
    assert not torch.equal(p, p_prime)
    assert torch.equal(own.model.emit().text, p_prime)
    new = ["zebra", "violin"]
    torch.testing.assert_close(
        load_run(second.output_dir, new, device="cpu").scores(image),
        load_run(first.output_dir, new, device="cpu").scores(image),
    )


def test_dpc_scores_its_own_and_unknown_classes_together_each_under_its_own_prompts(train, pictures):
    """Nobody says which kind a picture is of: base classes by P', where P puts the base classes together, new ones by P."""
    first = train("CoOp", output="stage1")
    second = train("DPC_CoOp", "TRAINER.DPC.CKPT_DIR", first.output_dir, "TRAINER.DPC.TOPK", 2, output="stage2")
    images = [Image.open(path).convert("RGB") for path in sorted(pictures.rglob("*.png"))]
    names = ["zebra", CLASSES[2], "violin", CLASSES[0].replace(" ", "_")]
    mixed = load_run(second.output_dir, names, device="cpu")
    assert mixed.model.task == "union" and mixed.model.is_base.tolist() == [False, True, False, True]
    base = load_run(second.output_dir, [CLASSES[2], CLASSES[0]], device="cpu")
    backbone = load_run(first.output_dir, names, device="cpu")
    pixels = torch.stack([mixed.transform(image) for image in images])
    with torch.no_grad():
        got, by_p, by_p_prime = mixed.model(pixels), backbone.model(pixels), base.model(pixels)
    torch.testing.assert_close(got[:, [0, 2]], by_p[:, [0, 2]])
    for row, own, tuned in zip(got[:, [1, 3]], by_p_prime, by_p[:, [1, 3]]):
        torch.testing.assert_close(row, own - own.max() + tuned.max(), rtol=1e-4, atol=1e-3)


def test_labels_for_classes_never_trained_on(train, pictures, capsys):
    folder = train("CoOp").output_dir
    capsys.readouterr()
    words = [
        folder,
        str(pictures),
        "--classes",
        "polar bear",
        "sea_horse",
        "violin",
        "--top",
        "0",
        "--device",
        "cpu",
    ]
    assert command.main(words) == 0
    out, err = capsys.readouterr()
    rows = read_csv(out)
    assert [Path(r["image"]).name for r in rows] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    for row in rows:
        assert {row[f"label_{k}"] for k in (1, 2, 3)} == {"polar bear", "sea horse", "violin"}
        scores = [float(row[f"score_{k}"]) for k in (1, 2, 3)]
        assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1, abs=1e-5)
    assert "5/5" in err and "Loading weights" in err


def test_files_and_their_formats(train, pictures, tmp_path, capsys):
    folder = train("CoOp").output_dir
    (pictures / "broken.png").write_bytes(b"no picture")
    names = tmp_path / "classes.txt"
    names.write_text("zebra\n\nviolin\n")
    base = [folder, str(pictures), "--classes-file", str(names), "--device", "cpu", "--batch-size", "2"]
    capsys.readouterr()
    assert command.main([*base, "--output", str(tmp_path / "out" / "a.json"), "--top", "2"]) == 3
    assert "1 of 6 images could not be read" in capsys.readouterr().err
    items = json.loads((tmp_path / "out" / "a.json").read_text())
    assert len(items) == 6 and "cannot read image" in next(i for i in items if "broken" in i["image"])["error"]
    assert items[0]["label"] in ("zebra", "violin") and sum(items[0]["scores"].values()) == pytest.approx(1, abs=1e-5)
    assert command.main([*base, "--output", str(tmp_path / "a.csv")]) == 3
    rows = read_csv((tmp_path / "a.csv").read_text())
    assert [r["label"] for r in rows if r["label"]] == [i["label"] for i in items if "label" in i]
    assert not list(tmp_path.glob("**/.*.tmp"))


def test_equal_scores_are_listed_in_the_order_of_the_classes(tmp_path, capsys):
    names = [f"class {i}" for i in range(1000)]
    run = SimpleNamespace(
        classnames=names, predict=lambda paths, size, **_: ((path, torch.full((1000,), 1e-3)) for path in paths)
    )
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    for top in (1, 5, 10):
        args = command.parser().parse_args(["RUN", str(tmp_path / "a.png"), "--top", str(top)])
        assert command.label_images(run, args) == 0
        (row,) = read_csv(capsys.readouterr().out)
        assert [row[c] for c in row if c.startswith("label")] == names[:top]


def test_images_are_read_batch_by_batch():
    taken = []

    def paths():
        for i in range(10):
            taken.append(i)
            yield i

    stream = batches(paths(), 3)
    assert next(stream) == [0, 1, 2] and taken == [0, 1, 2]
    assert list(stream)[-1] == [9]


def test_the_stream_never_holds_more_than_a_batch(train, pictures, monkeypatch):
    run = load_run(train("CoOp").output_dir, device="cpu")
    alive, most = set(), []

    class Picture:
        def __init__(self, path, orientation):
            alive.add(id(self))
            most.append(len(alive))
            time.sleep(0.002)

        def __del__(self):
            alive.discard(id(self))

    monkeypatch.setattr("dassl_prompts.images.read_image", Picture)
    monkeypatch.setattr(run, "transform", lambda picture: torch.zeros(3, 2, 2))
    monkeypatch.setattr(run, "score", lambda pixels: torch.zeros(len(pixels), 2))
    for threads in (1, 3):
        most.clear()
        assert sum(1 for _ in run.predict((str(i) for i in range(64)), batch_size=32, threads=threads)) == 64
        assert max(most) <= threads  # pictures in full size; a batch holds what they were made of


def test_scores_and_exports_that_are_not_finite_are_refused_by_name(train, pictures, tmp_path, capsys):
    folder = Path(train("CoOp").output_dir)
    run = load_run(folder, device="cpu")
    with torch.no_grad():
        run.model.prompt_learner.ctx[0, 0] = torch.nan
    with pytest.raises(ValueError, match=f"{folder}: .* numbers of the scores are not finite"):
        run.scores([Image.new("RGB", (32, 32))])
    with pytest.raises(ValueError, match="classes.safetensors: .* numbers of classes are not finite"):
        write_safetensors(tmp_path / "classes.safetensors", {"classes": run.model.class_features()})
    assert not (tmp_path / "classes.safetensors").exists()
    path = find_checkpoint(folder / "prompt_learner", None)
    state = torch.load(path)
    state["state_dict"]["ctx"][0, 0] = torch.inf
    torch.save(state, path)
    capsys.readouterr()
    assert command.main([str(folder), str(pictures), "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert not out and f"error: {path}: 1 of " in err and "numbers of ctx are not finite" in err


def test_export_and_the_ten_lines_of_the_docs(train, pictures, tmp_path, monkeypatch, capsys):
    run = load_run(train("CoOp", *CLIP_PIXELS).output_dir, ["polar bear", "violin", "zebra"], device="cpu")
    files = export(run, tmp_path / "exported", with_backbone=True)
    assert {f.name for f in files} == {
        "classes.safetensors",
        "prompts.safetensors",
        "backbone.json",
        "backbone.safetensors",
        "card.json",
    }
    card = json.loads((tmp_path / "exported" / "card.json").read_text())
    assert card["classes"] == run.classnames and card["usable_with_open_clip_alone"]
    page = (Path(__file__).parent.parent / "docs" / "running.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "exported/card.json" in block]
    assert "dassl_prompts" not in code and len(code.strip().splitlines()) <= 10
    image = Image.open(pictures / "0.png").convert("RGB")
    image.save(tmp_path / "cat.png")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    exec(compile(code, "docs/running.md", "exec"), {})
    said = capsys.readouterr().out.split()
    scores = run.scores([image])[0]
    assert " ".join(said[:-1]) == run.classnames[scores.argmax()]
    assert float(said[-1]) == pytest.approx(scores.max().item(), abs=1e-4)


def test_the_card_says_what_the_files_cannot_do_alone(train, tmp_path):
    expected = {
        "CoOp": ("fixed", "cosines", "frozen"),
        "MaPLe": ("fixed", "cosines", "prompted"),
        "CoCoOp": ("per image", "the method's own", "frozen"),
        "TipAdapter": ("fixed", "the method's own", "frozen"),
    }
    for trainer, kind in expected.items():
        template = ("DATASET.TEMPLATE", "a photo of a {}.") if trainer == "TipAdapter" else ()
        run = load_run(train(trainer, *SHALLOW, *template, output=trainer).output_dir, device="cpu")
        export(run, tmp_path / trainer)
        card = json.loads((tmp_path / trainer / "card.json").read_text())
        assert (card["text"], card["scores"], card["image_tower"]) == kind and not card["usable_with_open_clip_alone"]
        assert (tmp_path / trainer / "classes.safetensors").exists() == (kind[1] == "cosines")


def test_nearest_words_find_the_words_a_context_started_from(train, capsys):
    built = train("CoOp", "TRAINER.COOP.CTX_INIT", "a photo of a", "OPTIM.LR", 1e-12)
    rows = nearest_words(load_run(built.output_dir, device="cpu"), 2)
    assert [row["words"][0][0] for row in rows] == ["a", "photo", "of", "a"]
    assert all(row["words"][0][1] < row["words"][1][1] for row in rows)
    capsys.readouterr()
    assert command.main([built.output_dir, "--words", "1", "--device", "cpu"]) == 0
    assert "| photo (0.000)" in capsys.readouterr().out


def test_other_weights_than_at_training_are_refused(train, state, clip_file, tmp_path):
    folder = train("CoOp").output_dir
    same = tmp_path / "same.pt"
    same.write_bytes(clip_file.read_bytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_run(folder, device="cpu", backbone=str(same))
    other = tmp_path / "other.pt"
    torch.save({key: value * 1.5 for key, value in state.items()}, other)
    with pytest.raises(ValueError, match="other weights of .*other.pt than are loaded now.*name the run's own weights"):
        load_run(folder, device="cpu", backbone=str(other))


def test_class_specific_contexts_have_words_per_class_and_refuse_other_classes(train):
    folder = train("CoOp", "TRAINER.COOP.CSC", True).output_dir
    rows = nearest_words(load_run(folder, device="cpu"), 1)
    assert len(rows) == 16 * len(CLASSES) and rows[0]["class"] == CLASSES[0]
    with pytest.raises(ValueError, match="other shapes"):
        load_run(folder, ["zebra"], device="cpu")


def test_pictures_are_labelled_as_the_camera_was_held_and_as_stored_where_asked(train, tmp_path, capsys):
    folder = train("CoOp").output_dir
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = upright.transpose(Image.Transpose.ROTATE_90)  # what a camera stores that is held turned
    turned = tmp_path / "turned"
    turned.mkdir()
    sideways.save(turned / "x.png", exif=exif)
    (turned / "x.heic").write_bytes(b"a format that is not read")
    run = load_run(folder, device="cpu")
    for words, seen in (([], upright), (["--orientation", "stored"], sideways)):
        capsys.readouterr()
        assert command.main([folder, str(turned), "--device", "cpu", *words]) == 0
        captured = capsys.readouterr()
        (row,) = read_csv(captured.out)
        assert float(row["score"]) == pytest.approx(float(run.scores([seen]).max()), abs=1e-6)
        assert "left out 1 files of formats that are not read: 1 .heic" in captured.err
    assert not torch.equal(run.scores([upright]), run.scores([sideways]))


def test_the_configuration_comes_back_from_results_json(make_cfg):
    from dassl_prompts.engine.config import flatten

    cfg = make_cfg("CoOp", "TRAINER.COOP.CSC", True, "INPUT.TRANSFORMS", ("normalize",))
    flat = {key: repr(value) for key, value in flatten(cfg).items()}
    assert flatten(read_config(flat)) == flatten(cfg)
    with pytest.warns(UserWarning, match="TRAINER.GONE.KEY"):
        read_config({**flat, "TRAINER.GONE.KEY": "1"})


def test_wrong_input_is_one_line_and_code_2(train, pictures, tmp_path, capsys, monkeypatch):
    folder = train("CoOp").output_dir
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    results = json.loads((Path(folder) / "results.json").read_text())
    (evaluation / "results.json").write_text(json.dumps({**results, "kind": "evaluation"}))
    retrieval = tmp_path / "retrieval"
    retrieval.mkdir()
    (retrieval / "results.json").write_text(json.dumps({**results, "trainer": "PVLF"}))
    half = tmp_path / "half"
    half.mkdir()
    (half / "results.json").write_text('{"trainer": "CoOp"}')
    empty = tmp_path / "empty"
    empty.mkdir()
    taken = tmp_path / "folder.csv"
    taken.mkdir()
    cases = {
        "nothing to do": [folder],
        "has no results.json": [str(tmp_path / "nowhere"), str(pictures)],
        "is an evaluation": [str(evaluation), str(pictures)],
        "retrieves": [str(retrieval), str(pictures)],
        "has no 'config'": [str(half), str(pictures)],
        "there is no image": [folder, str(pictures / "9.png")],
        "holds no images": [folder, str(empty)],
        "given twice: zebra": [folder, str(pictures), "--classes", "zebra", "zebra"],
        "not both": [folder, str(pictures), "--classes", "a", "--classes-file", "b"],
        "No such file": [folder, str(pictures), "--classes-file", str(tmp_path / "none.txt")],
        "has to end in .csv or .json": [folder, str(pictures), "--output", str(tmp_path / "a.txt")],
        "--batch-size is 0": [folder, str(pictures), "--batch-size", "0"],
        "model.pth.tar": [folder, str(pictures), "--epoch", "99"],
        "0.png is not a folder; give another one with --export": [folder, "--export", str(pictures / "0.png")],
        "--output": [folder, str(pictures), "--output", str(pictures / "0.png" / "labels.csv")],
        "folder.csv is a folder": [folder, str(pictures), "--output", str(taken)],
    }
    for message, words in cases.items():
        capsys.readouterr()
        assert command.main([*words, "--device", "cpu"]) == 2, message
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert last.startswith("error: ") and message in last


class Harmful:
    def __reduce__(self):
        return print, ("the checkpoint's code ran",)


def test_a_checkpoint_that_would_run_code_is_refused_in_one_line(train, pictures, capsys):
    folder = Path(train("CoOp").output_dir)
    for checkpoint in (folder / "prompt_learner").glob("model*"):
        torch.save({"state_dict": {}, "epoch": 2, "extra": Harmful()}, checkpoint)
    capsys.readouterr()
    assert command.main([str(folder), str(pictures), "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ") and "model" in last and "print, which is not plain data" in last
    assert "the checkpoint's code ran" not in out + err


def test_help_tells_the_exit_codes(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0 and "exit codes" in capsys.readouterr().out


def test_a_folder_for_the_hub_loads_elsewhere_and_names_no_place(train, pictures, tmp_path, monkeypatch):
    from huggingface_hub import ModelCard

    first = train("CoOp", output="stage1")
    second = train("DPC_CoOp", "TRAINER.DPC.CKPT_DIR", first.output_dir, "TRAINER.DPC.TOPK", 2, output="stage2")
    run = load_run(second.output_dir, device="cpu")
    export(run, tmp_path / "shared", hub=True)
    card = ModelCard.load(tmp_path / "shared" / "README.md")
    assert card.data.library_name == "dassl-prompts" and "DPC_CoOp" in card.data.tags
    noted = json.loads((tmp_path / "shared" / "results.json").read_text())
    assert noted["config"]["OUTPUT_DIR"] == noted["config"]["DATASET.ROOT"] == "''"
    image = [Image.open(pictures / "0.png").convert("RGB")]
    expected = run.scores(image)
    (tmp_path / "shared").rename(tmp_path / "pulled")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name: str(tmp_path / "pulled"))
    torch.testing.assert_close(load_run("hf:me/pets", device="cpu").scores(image), expected)


def test_flags_of_an_export_need_one(capsys):
    assert command.main(["run", "--hub"]) == 2
    assert "--hub is read with --export alone" in capsys.readouterr().err
