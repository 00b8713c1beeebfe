"""Own data and own modules as command lines: names of folders, flags, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from dassl_prompts.run import __main__ as command
from dassl_prompts.run import scheduler
from dassl_prompts.run.job import Job
from dassl_prompts.run.protocols import PROTOCOLS
from dassl_prompts.run.sweep import build
from tests.datasets.test_own import folders
from tests.run.fake import InProcess


def steps(protocol, trainer, dataset, root, **more):
    return PROTOCOLS[protocol].steps(Job(trainer, dataset, 1, root="data", output=root / "out", **more))


@pytest.mark.parametrize("protocol", ["base2new", "fewshot"])
def test_folders_have_the_name_of_the_data(tmp_path, protocol):
    for step in steps(protocol, "DPC_CoOp", f"folder:{tmp_path}/my pictures", tmp_path, cfg="open_tiny"):
        assert step.output.relative_to(tmp_path / "out").parts[2] == "my pictures"
        cfg = step.config()
        assert (cfg.DATASET.NAME, cfg.DATASET.ROOT) == ("OwnPictures", f"{tmp_path}/my pictures")
        assert cfg.INPUT.ORIENTATION == "camera" and cfg.MODEL.BACKBONE.NAME == "open-tiny"


def test_a_yaml_by_absolute_path_leaves_the_output_root_alone(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("DATASET:\n  NAME: Emoji\n")
    for step in steps("base2new", "CoOp", str(own), tmp_path, cfg="open_tiny"):
        assert step.output.relative_to(tmp_path / "out").parts[2] == "mine"
    target = steps("xd", "CoOp", "emoji", tmp_path, targets=(str(own), f"folder:{tmp_path}/pets"))
    assert [step.output.relative_to(tmp_path / "out").parts[2] for step in target[1:]] == ["mine", "pets"]
    assert target[2].config().DATASET.ROOT == f"{tmp_path}/pets" and target[0].config().DATASET.NAME == "Emoji"


def test_words_of_the_data_reach_all_its_runs(tmp_path):
    names = tmp_path / "names.yaml"
    names.write_text("a: b\n")
    more = {"template": "a drawing of a {}.", "class_names": str(names), "cfg": "open_tiny", "imports": ("json",)}
    for step in steps("base2new", "DPC_KgCoOp", f"folder:{tmp_path}", tmp_path, **more):
        cfg = step.config()
        assert cfg.DATASET.TEMPLATE == "a drawing of a {}." and cfg.DATASET.CLASS_NAMES_FILE == str(names)
        assert step.args[:2] == ("--import", "json")


def test_captions_of_a_list_in_the_retrieval_protocol(tmp_path):
    (step,) = steps("retrieval", "DCAR", f"csv:{tmp_path}/x.csv", tmp_path, cfg="emoji_tiny")
    cfg = step.config()
    assert (cfg.DATASET.NAME, cfg.DATASET.ROOT) == ("OwnCaptions", f"{tmp_path}/x.csv") and "/x/" in str(step.output)
    with pytest.raises(ValueError, match="has no captions"):
        steps("retrieval", "DCAR", f"folder:{tmp_path}", tmp_path)


@pytest.mark.parametrize(
    "job, message",
    [
        ({"dataset": "folder:"}, "own data is given as folder:PATH, csv:PATH"),
        ({"dataset": "foldr:/x"}, "own data is given as folder:PATH, csv:PATH"),
        ({"dataset": "dtd", "class_names": "x"}, "renames classes of own data"),
        ({"dataset": "/my/pictures"}, "a path of own pictures is given as folder:/my/pictures"),
        ({"dataset": "my/labels.csv"}, "a path of own pictures is given as csv:my/labels.csv"),
        ({"dataset": "dtd", "template": "a photo"}, "--template 'a photo' has to hold {} once for the class name"),
    ],
)
def test_what_is_refused(job, message):
    with pytest.raises(ValueError, match=message):
        Job("CoOp", seed=1, **job)


def test_targets_belong_to_transfer(tmp_path):
    given = {"protocol": "fewshot", "trainer": "CoOp", "dataset": "emoji", "targets": ["dtd"]}
    with pytest.raises(ValueError, match="targets are what xd and dg test on"):
        build(given, {}, "data", tmp_path)


LAB = """
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.trainers.coop import CoOp

def extend_cfg(cfg):
    add_defaults(cfg, "TRAINER.LAB", {"SCALE": 2.0})

@register_trainer
class LabCoOp(CoOp):
    pass
"""


def test_own_pictures_with_a_trainer_of_a_lab_from_run_to_prediction(tmp_path, monkeypatch, capsys):
    """In this process: run trains and tests, report names the data, predict labels pictures."""
    from dassl_prompts.predict.__main__ import main as predict
    from dassl_prompts.report.__main__ import main as report

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scheduler, "subprocess", SimpleNamespace(Popen=InProcess, DEVNULL=None, STDOUT=None))
    monkeypatch.setattr("dassl_prompts.engine.collect_env_info", lambda: "")
    folders(tmp_path / "pets", ("cat", "dog"), 6)
    Path("lab.py").write_text(LAB)
    words = "fewshot --trainer LabCoOp --dataset folder:pets --import lab.py --shots 2 --epochs 1 TRAINER.LAB.SCALE 3"
    assert (
        command.main([*words.split(), "--cfg", str(Path(__file__).parents[2] / "configs/trainers/CoOp/open_tiny.yaml")])
        == 0
    )
    assert "pets" in capsys.readouterr().out
    (folder,) = Path("output").rglob("seed1")
    assert report(["output"]) == 0
    shown = capsys.readouterr().out
    assert "LabCoOp" in shown and "pets" in shown
    assert report(["output", "--errors", "errors"]) == 0
    assert "| LabCoOp open_tiny_epochs1 on pets (all classes), seed 1 |" in Path("errors/errors.md").read_text()
    words = [str(folder), "pets/cat/000.png", "--device", "cpu", "--import", "lab.py", "--export", "exported", "--hub"]
    assert predict(words) == 0
    out, err = capsys.readouterr()
    assert "pets/cat/000.png," in out and "resize" not in err
    assert json.loads(Path("exported/card.json").read_text())["trained_on"]["dataset"] == "pets"
    assert "# LabCoOp on pets" in Path("exported/README.md").read_text()


def test_a_list_of_own_captions_is_trained_and_ranked(tmp_path, monkeypatch, capsys):
    """One epoch of DCAR by its recipe for small data, test and table; the label is the caption where none is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scheduler, "subprocess", SimpleNamespace(Popen=InProcess, DEVNULL=None, STDOUT=None))
    monkeypatch.setattr("dassl_prompts.engine.collect_env_info", lambda: "")
    folders(tmp_path / "pets", ("cat", "dog"), 8)
    lines = ["path,caption,split"]
    for name in ("cat", "dog"):
        for i, path in enumerate(sorted(Path("pets", name).iterdir())):
            lines.append(f"{path},a {name} in picture {i},{'train' if i < 5 else 'test'}")
    Path("captions.csv").write_text("\n".join(lines) + "\n")
    words = "retrieval --trainer DCAR --dataset csv:captions.csv --cfg emoji_tiny --shots 4 --epochs 1 --seed 1"
    assert command.main(words.split()) == 0, capsys.readouterr().err
    shown = capsys.readouterr().out
    (folder,) = Path("output").rglob("seed1")
    results = json.loads((folder / "results.json").read_text())
    assert results["finished"] and results["trainer"] == "DCAR" and results["max_epoch"] == 1
    assert folder.parts[-5:-1] == ("captions", "shots_4", "DCAR", "emoji_tiny_epochs1")
    row = [cell.strip() for cell in shown.splitlines()[-2 if shown.endswith("\n\n") else -1].split("|")]
    assert row[1:3] == ["captions", "DCAR"] and float(row[5]) == pytest.approx(results["test"]["i2t_r1"], abs=0.01)


@pytest.mark.parametrize(
    "protocol, trainer, dataset", [("retrieval", "DCAR", "fdrd_emoji"), ("composed", "PVLF", "emoji")]
)
def test_epochs_and_imports_reach_every_protocol(tmp_path, protocol, trainer, dataset):
    (step,) = steps(protocol, trainer, dataset, tmp_path, epochs=3, imports=("json",))
    assert step.config().OPTIM.MAX_EPOCH == 3 and step.args[:2] == ("--import", "json")
    assert "epochs3" in step.output.parent.name
    (other,) = steps(protocol, trainer, dataset, tmp_path, epochs=3, tag="lr")
    assert other.output.parent.name.endswith("epochs3_lr")


def test_an_import_that_fails_is_named(tmp_path, capsys):
    (tmp_path / "broken.py").write_text("import nothing_like_that\n")
    words = f"fewshot --trainer CoOp --dataset emoji --import {tmp_path}/broken.py"
    assert command.main(words.split()) == 2
    assert "broken.py: ModuleNotFoundError: No module named 'nothing_like_that'" in capsys.readouterr().err


def test_modules_that_packages_announce(monkeypatch, tmp_path, capsys):
    from dassl_prompts import plugins

    class Point:
        name, module = "lab", "json"

    class Broken:
        name, module = "broken", "nothing_like_that"

    monkeypatch.setattr(plugins, "_announced", None)
    monkeypatch.setattr(
        plugins.metadata, "entry_points", lambda group: [Point, Broken] if group == "dassl_prompts" else []
    )
    import json

    assert plugins.announced() == [json]
    assert "entry point broken" in capsys.readouterr().err


def plan_of(words, tmp_path, capsys):
    """Exit code and lines of ``--dry-run``."""
    code = command.main([*words, "--cfg", "open_tiny", "--output", str(tmp_path / "out"), "--dry-run"])
    return code, capsys.readouterr().out.splitlines()


def test_a_plan_with_refused_runs_ends_with_an_error_and_no_cost(tmp_path, capsys):
    folders(tmp_path / "pets", ("cat",))
    words = ["base2new", "--trainer", "CoOp", "--dataset", f"folder:{tmp_path}/pets", "--seed", "1", "2"]
    code, lines = plan_of(words, tmp_path, capsys)
    assert code == 2 and [line.split()[0] for line in lines].count("REFUSED") == 4
    assert sum("has one class, 'cat'" in line for line in lines) == 1 and "? " not in "\n".join(lines)
    assert lines.count("          for the same reason") == 3
    assert lines[-1].startswith("error: 4 of 4 runs are REFUSED, as told above")


def test_a_plan_names_the_classes_with_fewer_pictures_than_shots(tmp_path, capsys):
    folders(tmp_path / "pets", ("cat", "cow", "dog"), 10)
    for n in range(4):
        (tmp_path / "pets" / "cow" / f"{10 + n:03}.png").unlink()
    words = ["base2new", "--trainer", "CoOp", "--dataset", f"folder:{tmp_path}/pets", "--shots"]
    code, lines = plan_of([*words, "4"], tmp_path, capsys)
    said = "pets: 1 classes have fewer than 4 training images and give all they have: 'cow' 3"
    assert code == 0 and lines.count(said) == 1
    assert not list(tmp_path.rglob("split_*"))  # looked at, not worked on
    code, lines = plan_of([*words, "3"], tmp_path, capsys)
    assert code == 0 and not any("fewer than" in line for line in lines)


def test_class_names_that_are_not_there_are_told_once(tmp_path, capsys):
    folders(tmp_path / "pets")
    words = [
        "fewshot",
        "--trainer",
        "CoOp",
        "--dataset",
        f"folder:{tmp_path}/pets",
        "--class-names",
        f"{tmp_path}/no.yaml",
    ]
    code, lines = plan_of(words, tmp_path, capsys)
    assert code == 2 and sum("no.yaml" in line for line in lines) == 1
