"""What would keep a run from starting is found before the first run starts, also by --dry-run."""

import pytest
import torch

from dassl_prompts.models import availability
from dassl_prompts.models.availability import weights_problem
from dassl_prompts.run import __main__ as command
from dassl_prompts.run import ahead


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(ahead, "_known", {})


@pytest.fixture
def nothing_starts(monkeypatch):
    """A run that starts fails the test."""
    monkeypatch.setattr(
        "dassl_prompts.run.launchers.local.subprocess.Popen", lambda *a, **k: pytest.fail("a run was started")
    )


WRONG = {
    "a mistyped key": (["OPTIM.MAX_EPOC", "3"], "unknown config key OPTIM.MAX_EPOC; did you mean OPTIM.MAX_EPOCH?"),
    "a mistyped key of stage 2": (["TRAINER.DPC.OMEGA_BB", "1"], "did you mean TRAINER.DPC.OMEGA_B?"),
    "a missing backbone file": (["--common", "MODEL.BACKBONE.NAME", "/nowhere/clip.pt"], "/nowhere/clip.pt"),
    "a mistyped transform": (["--common", "INPUT.TRANSFORMS", "['random_flop']"], "unknown transform 'random_flop'"),
    "a mistyped backbone": (["--common", "MODEL.BACKBONE.NAME", "ViT-B-16x"], "unknown backbone 'ViT-B-16x'"),
    "settings that contradict each other": (["TRAINER.DPC.PRESET", "fullmove"], "TRAINER.DPC.PRESET is 'fullmove'"),
    "a setting that the method refuses": (["TRAINER.COOP.PREC", "fp17"], "TRAINER.COOP.PREC is 'fp17'; choose one of"),
    "a missing first stage": (
        ["TRAINER.DPC.CKPT_DIR", "/nowhere/run"],
        "TRAINER.DPC.CKPT_DIR: there is no /nowhere/run",
    ),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("dry", [False, True])
def test_wrong_input_is_found_before_stage_1_is_trained(what, dry, tmp_path, capsys, nothing_starts):
    opts, said = WRONG[what]
    words = ["base2new", "--trainer", "DPC_CoOp", "--dataset", "emoji", "--output", str(tmp_path / "out"), *opts]
    assert command.main([*words, *(["--dry-run"] if dry else [])]) == 2
    out, err = capsys.readouterr()
    assert said in (out if dry else err) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [False, True])
def test_missing_data_of_a_later_run_is_found_before_the_first(dry, tmp_path, capsys, nothing_starts):
    words = ["fewshot", "--trainer", "CoOp", "--dataset", "emoji", "dtd", "eurosat", "--root", str(tmp_path / "data")]
    common = ["--common", "MODEL.BACKBONE.NAME", "emoji-tiny"]
    code = command.main([*words, "--output", str(tmp_path / "out"), *common, *(["--dry-run"] if dry else [])])
    out, err = capsys.readouterr()
    said = out if dry else err
    assert code == 2 and "dtd does not exist" in said and "eurosat does not exist" in said
    assert "emoji (" not in err and not (tmp_path / "data").exists()


def test_weights_that_are_nowhere_are_one_question_for_a_whole_sweep(tmp_path, capsys, monkeypatch, nothing_starts):
    asked = []

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(availability.urllib.request, "urlopen", refuse)
    words = ["fewshot", "--trainer", "CoOp", "--dataset", "emoji", "--seed", "1", "2", "3", "--output", str(tmp_path)]
    assert command.main([*words, "--common", "MODEL.BACKBONE.NAME", "ViT-B/16"]) == 2
    err = capsys.readouterr().err
    assert "and 2 more: the weights of ViT-B/16 are not on this machine and cannot be downloaded" in err
    assert len(asked) == 1 and "no network" in err


def test_weights_in_the_cache_or_on_a_server_are_no_problem(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: str(tmp_path))
    assert weights_problem("ViT-B/16") == "" == weights_problem("blip-itm-base-coco")
    assert weights_problem("emoji-tiny") == ""
    torch.save({}, tmp_path / "clip.pt")
    assert weights_problem(str(tmp_path / "clip.pt")) == "" != weights_problem(str(tmp_path / "other.pt"))
    assert "no weights 'nonsense' for ViT-B-16" in weights_problem("ViT-B-16:nonsense")
