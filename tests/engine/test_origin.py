"""A checkpoint under other settings than it was written with: refused, told, or rearranged."""

import json

import pytest
import torch

from dassl_prompts.engine.origin import Origin, Reader, match_rows

RUN = {
    "trainer": "CoOp",
    "backbone": "ViT-B/16",
    "digests": {"backbone": "aa", "class names": "1"},
    "frozen": {"backbone": "aa", "activation": "quickgelu"},
    "classnames": ["cat", "polar_bear", "dog"],
    "config": {
        "TRAINER.COOP.CLASS_TOKEN_POSITION": "'middle'",
        "TRAINER.COOP.CTX_INIT": "'a_photo_of_a'",
        "TRAINER.COOP.PREC": "'amp'",
        "TRAINER.COOP.W": "1.0",
        "INPUT.PIXEL_MEAN": "[0.5, 0.5, 0.5]",
        "OPTIM.LR": "0.1",
    },
}
SAME = {
    "TRAINER.COOP.CLASS_TOKEN_POSITION": "middle",
    "TRAINER.COOP.CTX_INIT": "a photo of a",
    "TRAINER.COOP.PREC": "fp32",
    "TRAINER.COOP.W": 1,
    "INPUT.PIXEL_MEAN": (0.5, 0.5, 0.5),
    "OPTIM.LR": 0.5,
    "TRAINER.COOP.NEW_KEY": 3,
}


def reader(trainer="CoOp", backbone="ViT-B/16", frozen=None, **changed):
    config = {**SAME, **{f"TRAINER.COOP.{key}": value for key, value in changed.items()}}
    keys = ("TRAINER.COOP.CLASS_TOKEN_POSITION", "TRAINER.COOP.CTX_INIT")
    frozen = {"backbone": "aa", "activation": "quickgelu"} if frozen is None else frozen
    return Reader(trainer, backbone, config, keys, ("TRAINER.COOP",), frozen)


def test_the_same_settings_pass_without_a_word(capsys):
    Origin("--model-dir D", RUN).check(reader())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "mine, message",
    [
        (reader("CoCoOp"), "^--model-dir D is a run of CoOp, not of CoCoOp"),
        (
            reader(frozen={"backbone": "bb"}),
            "other weights of the backbone ViT-B/16 than are loaded now .digest aa, now bb",
        ),
        (reader(frozen={"backbone": "aa", "activation": "gelu"}), "another activation than .*quickgelu, now gelu"),
        (reader(CLASS_TOKEN_POSITION="end"), "TRAINER.COOP.CLASS_TOKEN_POSITION 'middle' there, 'end' here"),
        (reader(CTX_INIT="a picture of"), "TRAINER.COOP.CTX_INIT 'a_photo_of_a' there, 'a picture of' here"),
    ],
)
def test_what_changes_the_meaning_of_the_tensors_is_refused(mine, message):
    with pytest.raises(ValueError, match=message):
        Origin("--model-dir D", RUN).check(mine)


def test_all_differing_keys_are_named_at_once():
    with pytest.raises(ValueError, match="POSITION 'middle' there, 'end' here; TRAINER.COOP.CTX_INIT"):
        Origin("D", RUN).check(reader(CLASS_TOKEN_POSITION="end", CTX_INIT=""))


def test_the_same_weights_under_another_name_pass_and_unknown_ones_are_told(capsys):
    Origin("D", RUN).check(reader(backbone="/weights/b16.pt"))
    assert capsys.readouterr().out == ""
    old = {key: value for key, value in RUN.items() if key not in ("digests", "frozen")}  # of a version without digests
    with pytest.raises(ValueError, match="D was trained on the backbone ViT-B/16, this run has RN50"):
        Origin("D", old).check(reader(backbone="RN50"))
    Origin("D", old).check(reader(backbone="random.json", frozen={"backbone": ""}))
    assert "Note: D was trained on the backbone ViT-B/16, this run has random.json" in capsys.readouterr().out


def test_other_settings_of_the_method_and_of_the_pictures_are_told(capsys):
    mine = reader(W=2.0)
    mine.config["INPUT.PIXEL_MEAN"] = (0.4, 0.4, 0.4)
    Origin("D", RUN).check(mine)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "Note: D was trained with other settings: TRAINER.COOP.W 1.0 there, 2.0 here; INPUT.PIXEL_MEAN"
    )
    assert "OPTIM.LR" not in line and "PREC" not in line


def test_official_runs_say_nothing_and_are_taken_as_right():
    Origin("D", {}).check(reader("CoCoOp", CLASS_TOKEN_POSITION="end"))


def test_what_a_run_only_starts_from_is_told_and_not_refused(capsys):
    mine = reader("CoCoOp", frozen={"backbone": "bb"}, CLASS_TOKEN_POSITION="end")
    Origin("MODEL.INIT_WEIGHTS F", RUN).tell_start(mine)
    lines = capsys.readouterr().out.splitlines()
    assert [
        text in line for text, line in zip(("a run of CoOp, not of CoCoOp", "other weights", "'middle' there"), lines)
    ]
    assert len(lines) == 3


def test_results_json_is_found_beside_a_run_folder_and_its_checkpoint_files(tmp_path):
    folder = tmp_path / "run" / "prompt_learner"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "results.json").write_text(json.dumps(RUN))
    (folder / "model.pth.tar-5").touch()
    (tmp_path / "copied.pth").touch()
    assert Origin.of(tmp_path / "run").run == Origin.of(folder / "model.pth.tar-5").run == RUN
    assert Origin.of(tmp_path / "copied.pth").run == {} and Origin.of(tmp_path / "nowhere").run == {}
    own = Origin.of(tmp_path / "copied.pth").with_checkpoint({"trainer": "MaPLe", "classnames": ["a"], "epoch": 3})
    assert own.run == {"trainer": "MaPLe", "classnames": ["a"]}
    (tmp_path / "run" / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="results.json must hold a JSON object, not a list"):
        Origin.of(tmp_path / "run")


# -- classes ------------------------------------------------------------------------------------------------


def test_rows_follow_the_names_of_the_classes():
    state = {"module.ctx": torch.arange(3.0)[:, None], "shared": torch.arange(5.0)}
    found = Origin("D", RUN).arrange(state, {"ctx"}, ["dog", "polar bear"])
    assert found["ctx"].flatten().tolist() == [2, 1] and torch.equal(found["shared"], state["shared"])
    untouched = Origin("D", RUN).arrange(state, (), ["zebra"])
    assert torch.equal(untouched["ctx"], state["module.ctx"])


def test_classes_that_were_not_trained_are_refused_by_name():
    with pytest.raises(
        ValueError, match="D holds class-specific tensors .ctx. of its own 3 classes, and 1 of the 2 .*zebra"
    ):
        Origin("D", RUN).arrange({"ctx": torch.zeros(3, 1)}, {"ctx"}, ["dog", "zebra"])
    with pytest.raises(ValueError, match="ctx has 4 rows, but the run names 3 classes"):
        Origin("D", RUN).arrange({"ctx": torch.zeros(4, 1)}, {"ctx"}, ["dog"])


def test_official_files_do_not_name_their_classes_which_is_told(capsys):
    state = {"ctx": torch.arange(2.0)[:, None]}
    assert torch.equal(Origin("D", {}).arrange(state, {"ctx"}, ["dog", "cat"])["ctx"], state["ctx"])
    assert "Note: D does not name the classes that its ctx belongs to" in capsys.readouterr().out


def test_names_that_stand_twice_are_matched_in_order():
    assert match_rows(["crane", "missile", "crane"], ["crane", "crane", "missile", "crane"]) == [0, 2, 1, None]
