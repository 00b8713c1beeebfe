"""Runs of single prompt-learning backbones: what is theirs alone; what all trainers share is in test_contract.py."""

import pytest
import torch

from dassl_prompts.engine import build_trainer, load_checkpoint
from tests.trainers import plain

#: keys of a small run, and the folder that the official code writes
METHODS = {
    "CoCoOp": (["TRAINER.COCOOP.CTX_INIT", "a photo of a"], "prompt_learner"),
    "IVLP": (["TRAINER.IVLP.PROMPT_DEPTH_TEXT", 3, "TRAINER.IVLP.PROMPT_DEPTH_VISION", 2], "VLPromptLearner"),
    "MaPLe": (["TRAINER.MAPLE.PROMPT_DEPTH", 3], "MultiModalPromptLearner"),
    "PromptSRC": (
        [
            "TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT",
            3,
            "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION",
            2,
            "TRAINER.PROMPTSRC.GPA_MEAN",
            2,
        ],
        "VLPromptLearner",
    ),
    "KgCoOp": (["TRAINER.KGCOOP.TEMPLATE", "a photo of a {}.", "TRAINER.COOP.N_CTX", 4], "prompt_learner"),
    "ProGrad": (["TRAINER.PROGRAD.TEMPLATE", "a photo of a {}.", "TRAINER.COOP.N_CTX", 4], "prompt_learner"),
    "TCP": (
        [
            "TRAINER.TCP.TEMPLATE",
            "a photo of a {}.",
            "TRAINER.TCP.STUDENT",
            "X X X X {}.",
            "TRAINER.TCP.LAYER",
            2,
            "TRAINER.COOP.N_CTX",
            4,
        ],
        "prompt_learner",
    ),
    "CoPrompt": (
        ["TRAINER.CoPrompt.PROMPT_DEPTH", 3, "TRAINER.W", 1.0, "DATALOADER.K_TRANSFORMS", 2],
        "MultiModalPromptLearner",
    ),
    "PromptKD": (["TRAINER.PROMPTKD.PROMPT_DEPTH_VISION", 3], "VLPromptLearner"),
}


def teacher_options(teacher_file, teacher_clip, tmp_path):
    from dassl_prompts.trainers.ivlp import IVLPModel

    torch.manual_seed(3)
    tuned = IVLPModel(teacher_clip, plain.CLASSES, 4, 4, 2, 2)
    folder = tmp_path / "teacher" / "VLPromptLearner"
    folder.mkdir(parents=True)
    state = {n: p.detach() for n, p in tuned.named_parameters() if not n.startswith("clip.")}
    torch.save({"state_dict": state, "epoch": 20}, folder / "model.pth.tar-20")
    return [
        "TRAINER.PROMPTKD.TEACHER_NAME",
        str(teacher_file),
        "TRAINER.PROMPTKD.TEACHER_DIR",
        str(tmp_path / "teacher"),
    ]


@pytest.mark.parametrize(
    "name, key",
    [
        ("IVLP", "TRAINER.IVLP.PROMPT_DEPTH_TEXT"),
        ("MaPLe", "TRAINER.MAPLE.PROMPT_DEPTH"),
        ("PromptSRC", "TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION"),
    ],
)
def test_checkpoints_with_more_layers_than_the_model_are_refused(train, make_cfg, name, key, tmp_path):
    train(name, *METHODS[name][0])
    shallow = build_trainer(make_cfg(name, *METHODS[name][0], key, 1, output="shallow"))
    with pytest.raises(ValueError, match="no place for.*PROMPT_DEPTH"):
        shallow.load_model(str(tmp_path / "run"))


def test_half_precision_falls_back_on_a_cpu(train):
    trainer = train("MaPLe", *METHODS["MaPLe"][0], "TRAINER.MAPLE.PREC", "fp16", "OPTIM.MAX_EPOCH", 1)
    assert trainer.precision == "fp32" and trainer.model.clip.dtype == torch.float32


def test_unknown_precision_is_refused(make_cfg):
    with pytest.raises(ValueError, match="PREC.*fp8"):
        build_trainer(make_cfg("PromptSRC", "TRAINER.PROMPTSRC.PREC", "fp8"))


# -- PromptSRC -----------------------------------------------------------------------------------------------


def test_the_last_checkpoint_holds_the_aggregated_prompts(train, tmp_path):
    opts = [*METHODS["PromptSRC"][0], "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1]
    trainer = train("PromptSRC", *opts)
    folder = tmp_path / "run" / "VLPromptLearner"
    states = [load_checkpoint(folder / f"model.pth.tar-{e}")["state_dict"] for e in (1, 2, 3)]
    weights = trainer.aggregation.weights
    for key in states[0]:
        # the third epoch's own prompts are not kept: solve for them, they must lie near the second epoch's
        third = (states[2][key] - weights[0] * states[0][key] - weights[1] * states[1][key]) / weights[2]
        assert (third - states[1][key]).abs().max() < 0.1
        assert not torch.equal(states[2][key], states[1][key])


# -- PromptKD ------------------------------------------------------------------------------------------------


@pytest.fixture
def kd(teacher_file, teacher_clip, tmp_path):
    return [*METHODS["PromptKD"][0], *teacher_options(teacher_file, teacher_clip, tmp_path)]


def test_labels_do_not_enter_the_distillation(make_cfg, kd, images):
    trainer = build_trainer(make_cfg("PromptKD", *kd))
    trainer.teacher_cache = None
    trainer.set_model_mode("eval")
    losses = {trainer.loss(images, labels)["loss"].item() for labels in (torch.zeros(5).long(), torch.arange(5))}
    assert len(losses) == 1


def test_projector_weights_of_linear_layers_load(train, make_cfg, kd, tmp_path, images):
    trainer = train("PromptKD", *kd)
    path = tmp_path / "run" / "VLPromptLearner" / "model.pth.tar-2"
    checkpoint = load_checkpoint(path)
    for key in ("VPT_image_trans.conv1.0.weight", "VPT_image_trans.conv1.3.weight"):
        checkpoint["state_dict"][key] = checkpoint["state_dict"][key][:, :, 0, 0]
    torch.save(checkpoint, path)
    again = build_trainer(make_cfg("PromptKD", *kd, output="again"))
    again.load_model(str(tmp_path / "run"))
    trainer.set_model_mode("eval")
    again.set_model_mode("eval")
    with torch.no_grad():
        assert torch.equal(again.model(images), trainer.model(images))


def test_base_and_new_evaluations_use_rows_of_the_teachers_classes(train, make_cfg, kd, tmp_path):
    train("PromptKD", *kd)
    count = 0
    for classes in ("base", "new"):
        part = build_trainer(make_cfg("PromptKD", *kd, "DATASET.SUBSAMPLE_CLASSES", classes, output=classes))
        part.load_model(str(tmp_path / "run"))
        part.test()
        count += len(part.model.class_features())
    assert count == len(plain.CLASSES)


def test_selecting_on_test_images_needs_two_keys_and_warns(train, make_cfg, kd, capsys, tmp_path):
    with pytest.raises(ValueError, match="FINAL_MODEL best_val"):
        build_trainer(make_cfg("PromptKD", *kd, "TRAINER.PROMPTKD.SELECT", "official_test"))
    trainer = train("PromptKD", *kd, "TRAINER.PROMPTKD.SELECT", "official_test", "TEST.FINAL_MODEL", "best_val")
    assert "chooses the epoch on TEST images" in capsys.readouterr().out
    assert (tmp_path / "run" / "VLPromptLearner" / "model-best.pth.tar").exists()
    base = build_trainer(make_cfg("PromptKD", *kd, "DATASET.SUBSAMPLE_CLASSES", "base", output="base"))
    base.load_model(str(tmp_path / "run"))
    assert base.test() == pytest.approx(trainer.best_result)


def test_the_teacher_cache_is_reused_and_checked(train, make_cfg, kd, tmp_path):
    cache = ["TRAINER.PROMPTKD.TEACHER_CACHE", str(tmp_path / "cache.pt")]
    trainer = train("PromptKD", *kd, *cache, output="first")
    calls = []
    trainer.model.teacher_image_features = lambda images: calls.append(1)
    trainer.batch_index = torch.tensor([3, 0])
    assert trainer.teacher_features(torch.zeros(2, 3, 32, 32)).shape == (2, 96) and not calls
    found = train("PromptKD", *kd, *cache, output="second")
    filled = train("PromptKD", *kd, cache[0], str(tmp_path / "another.pt"), output="filled")
    ours, theirs = (t.model.checkpoint_module.state_dict() for t in (found, filled))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # filling the cache draws no random number
    with pytest.raises(ValueError, match="another number of images"):
        train("PromptKD", *kd, *cache, "DATASET.SUBSAMPLE_CLASSES", "base", output="third")
    with pytest.raises(ValueError, match="is a folder: name the file"):
        train("PromptKD", *kd, cache[0], str(tmp_path), output="fourth")


def test_a_teacher_for_other_classes_is_refused(train, kd, tmp_path):
    (tmp_path / "teacher" / "results.json").write_text('{"classnames": ["fig", "dog"]}')
    with pytest.raises(ValueError, match="other classes.*fig"):
        train("PromptKD", *kd)


def test_single_image_batches_are_refused(train, kd):
    with pytest.raises(ValueError, match="BATCH_SIZE must be at least 2"):
        train("PromptKD", *kd, "DATALOADER.TRAIN_X.BATCH_SIZE", 1)


def test_a_missing_teacher_stops_the_run(make_cfg, teacher_file, tmp_path):
    opts = [
        "TRAINER.PROMPTKD.TEACHER_NAME",
        str(teacher_file),
        "TRAINER.PROMPTKD.TEACHER_DIR",
        str(tmp_path / "none"),
    ]
    with pytest.raises(FileNotFoundError, match="teacher.sh"):
        build_trainer(make_cfg("PromptKD", *opts))


def test_a_teacher_of_another_image_size_is_refused(make_cfg, kd, tmp_path):
    torch.save(plain.openai_state(image=64), tmp_path / "big.pt")
    with pytest.raises(ValueError, match="64 px.*32 px"):
        build_trainer(make_cfg("PromptKD", *kd, "TRAINER.PROMPTKD.TEACHER_NAME", str(tmp_path / "big.pt")))
