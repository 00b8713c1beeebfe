"""Every way into a checkpoint compares its run's settings: evaluation, models without a trainer, DPC, teachers, starts."""

import json
import re
from pathlib import Path

import pytest
import torch

import dassl_prompts
from dassl_prompts.engine import TRAINER_REGISTRY, build_trainer, load_checkpoint
from dassl_prompts.engine.config import flatten
from dassl_prompts.predict.run import load_run
from tests.trainers import plain

FOUR = ("TRAINER.COOP.N_CTX", 4)
CSC = (*FOUR, "TRAINER.COOP.CSC", True)
TCP = (*FOUR, "TRAINER.TCP.TEMPLATE", "a photo of a {}.", "TRAINER.TCP.STUDENT", "X X X X {}.")
DEPTH = tuple(x for side in ("TEXT", "VISION") for x in (f"TRAINER.PROMPTSRC.PROMPT_DEPTH_{side}", 2))
CLASSES = [name.replace("_", " ") for name in plain.CLASSES]


@pytest.fixture
def evaluate(make_cfg, tmp_path):
    """``evaluate("CoOp", KEY, value, ...)``: a trainer with the checkpoint of ``run`` read into it."""

    def run(trainer, *opts):
        built = build_trainer(make_cfg(trainer, *opts, output="evaluation"))
        built.load_model(str(tmp_path / "run"))
        return built

    return run


def test_another_method_is_refused_though_its_tensors_fit(train, evaluate):
    train("CoCoOp", "TRAINER.COCOOP.N_CTX", 4, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1)
    with pytest.raises(ValueError, match="--model-dir .*run is a run of CoCoOp, not of CoOp"):
        evaluate("CoOp", *FOUR)


def test_another_backbone_of_equal_width_is_refused(train, evaluate, tmp_path):
    train("CoOp", *FOUR, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1)
    torch.save(plain.openai_state(seed=9), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other weights of the backbone .*other.pt than are loaded now"):
        evaluate("CoOp", *FOUR, "MODEL.BACKBONE.NAME", str(tmp_path / "other.pt"))


def test_another_place_of_the_class_name_is_refused_and_the_right_one_repeats_the_result(train, evaluate):
    middle = (*FOUR, "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle")
    trained = train("CoOp", *middle)
    with pytest.raises(
        ValueError, match="CLASS_TOKEN_POSITION 'middle' there, 'end' here.: give the values of that run"
    ):
        evaluate("CoOp", *FOUR)
    assert evaluate("CoOp", *middle).test() == trained._final_result


def test_precision_and_training_settings_may_differ(train, evaluate, capsys):
    train("CoOp", *FOUR, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1)
    capsys.readouterr()
    evaluate("CoOp", *FOUR, "TRAINER.COOP.PREC", "fp32", "OPTIM.LR", 0.5, "SEED", 3)
    assert "Note:" not in capsys.readouterr().out


def test_without_results_json_the_checkpoint_says_its_method(train, evaluate, tmp_path):
    train("CoCoOp", "TRAINER.COCOOP.N_CTX", 4, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1)
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(ValueError, match="is a run of CoCoOp, not of CoOp"):
        evaluate("CoOp", *FOUR)


@pytest.mark.parametrize(
    "trainer, key, there, here, refused",
    [("TCP", "TRAINER.TCP.LAYER", 2, 1, True), ("DePT_CoOp", "TRAINER.LINEAR_PROBE.WEIGHT", 0.7, 0.2, False)],
)
def test_settings_outside_the_backbones_node_are_compared_too(
    train, evaluate, capsys, trainer, key, there, here, refused
):
    opts = TCP if trainer == "TCP" else ()
    train(trainer, *opts, key, there, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1)
    capsys.readouterr()
    if refused:
        with pytest.raises(ValueError, match=f"{key} {there} there, {here} here"):
            evaluate(trainer, *opts, key, here)
    else:
        evaluate(trainer, *opts, key, here)
        assert f"{key} {there} there, {here} here" in capsys.readouterr().out


def test_reading_keys_of_every_trainer_exist(make_cfg):
    known = flatten(make_cfg("CoOp"))
    for name in TRAINER_REGISTRY.registered_names():
        method = TRAINER_REGISTRY.get(name)
        for key in (*getattr(method, "reading_keys", ()), *getattr(method, "told_keys", ())):
            assert any(k == key or k.startswith(f"{key}.") for k in known), f"{name}: {key}"


# -- class-specific contexts --------------------------------------------------------------------------------


@pytest.fixture
def csc(train):
    return train("CoOp", *CSC)


def order_of_classes(monkeypatch, order):
    """The toy data with its classes in another order."""
    from tests.trainers import conftest

    make = conftest.ToyColours.__init__

    def permuted(self, cfg):
        make(self, cfg)
        place = {old: new for new, old in enumerate(order)}
        for item in (*self.train_x, *self.val, *self.test):
            item._label = place[item.label]
        self._lab2cname, self._classnames = self.get_lab2cname(self.train_x)

    monkeypatch.setattr(conftest.ToyColours, "__init__", permuted)


def test_class_specific_contexts_follow_the_names_when_the_labels_are_permuted(csc, evaluate, monkeypatch):
    order = [3, 0, 6, 1, 5, 2, 4]
    order_of_classes(monkeypatch, order)
    again = evaluate("CoOp", *CSC)
    assert again.dm.dataset.classnames == [plain.CLASSES[i] for i in order]
    assert torch.equal(again.model.prompt_learner.ctx, csc.model.prompt_learner.ctx[order])
    assert again.test() == csc._final_result


def test_class_specific_contexts_refuse_new_classes(train, evaluate):
    # 7 classes: 4 base, 3 new; as many rows are taken from a file that is cut to fit
    train("CoOp", *CSC, "DATASET.SUBSAMPLE_CLASSES", "base", "TEST.NO_TEST", True)
    with pytest.raises(
        ValueError, match="of its own 4 classes, and 3 of the 3 classes here are not among them .such as tea pot"
    ):
        evaluate("CoOp", *CSC, "DATASET.SUBSAMPLE_CLASSES", "new")


def test_class_specific_contexts_score_some_of_their_classes_and_no_others(csc, make_cfg, images):
    some = [CLASSES[5], CLASSES[2]]
    run = load_run(csc.output_dir, some, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(run.model(images), csc.model.eval()(images)[:, [5, 2]], rtol=0, atol=1e-4)
    model = dassl_prompts.build_model(make_cfg("CoOp", *CSC, output="x"), some, csc.output_dir)
    assert torch.equal(model.prompt_learner.ctx, csc.model.prompt_learner.ctx[[5, 2]])
    others = ["zebra", *CLASSES[1:]]
    with pytest.raises(ValueError, match="1 of the 7 classes here are not among them .such as zebra"):
        load_run(csc.output_dir, others, device="cpu")
    with pytest.raises(ValueError, match="such as zebra"):
        dassl_prompts.build_model(make_cfg("CoOp", *CSC, output="x"), others, csc.output_dir)


def test_class_specific_first_stage_of_dpc_follows_the_names(csc, make_cfg, tmp_path, monkeypatch, capsys):
    opts = (*CSC, "TRAINER.DPC.CKPT_DIR", csc.output_dir, "TRAINER.DPC.TOPK", 2, "OPTIM.MAX_EPOCH", 1)
    dpc = build_trainer(make_cfg("DPC_CoOp", *opts, output="dpc"))
    dpc.train()
    order = [6, 5, 4, 3, 2, 1, 0]
    order_of_classes(monkeypatch, order)
    again = build_trainer(make_cfg("DPC_CoOp", *opts, output="evaluation"))
    again.load_model(dpc.output_dir)
    for mine, theirs in ((again.model.tuned, dpc.model.tuned), (again.model.parallel, dpc.model.parallel)):
        assert torch.equal(mine.prompt_learner.ctx, theirs.prompt_learner.ctx[order])
    again.load_stage1()
    assert torch.equal(again.model.tuned.prompt_learner.ctx, csc.model.prompt_learner.ctx[order])


def test_checkpoints_name_their_classes_for_whoever_copies_them(csc, make_cfg, tmp_path):
    path = tmp_path / "copied.pth.tar"
    path.write_bytes((Path(csc.output_dir) / "prompt_learner" / "model.pth.tar-2").read_bytes())
    assert load_checkpoint(path)["classnames"] == plain.CLASSES
    base = ("DATASET.SUBSAMPLE_CLASSES", "new", "MODEL.INIT_WEIGHTS", str(path))
    started = build_trainer(make_cfg("CoOp", *CSC, *base, output="start"))
    assert torch.equal(started.model.prompt_learner.ctx, csc.model.prompt_learner.ctx[4:])


# -- models without a trainer, DPC, teachers, starts --------------------------------------------------------


def test_build_model_compares_the_run(train, make_cfg, tmp_path):
    folder = train("CoOp", *FOUR, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1).output_dir
    cfg = make_cfg("CoOp", *FOUR, "TRAINER.COOP.CLASS_TOKEN_POSITION", "front", output="x")
    with pytest.raises(
        ValueError, match="the checkpoint of .*run was trained with .*POSITION 'end' there, 'front' here"
    ):
        dassl_prompts.build_model(cfg, plain.OTHERS, folder)
    torch.save(plain.openai_state(seed=9), tmp_path / "other.pt")
    cfg = make_cfg("CoOp", *FOUR, "MODEL.BACKBONE.NAME", str(tmp_path / "other.pt"), output="x")
    with pytest.raises(ValueError, match="other weights of the backbone"):
        dassl_prompts.build_model(cfg, plain.OTHERS, folder)


def test_the_first_stage_of_dpc_is_read_as_it_was_trained(train, make_cfg):
    middle = (*FOUR, "TRAINER.COOP.CLASS_TOKEN_POSITION", "middle")
    folder = train("CoOp", *middle, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1).output_dir
    trainer = build_trainer(make_cfg("DPC_CoOp", *FOUR, "TRAINER.DPC.CKPT_DIR", folder, output="dpc"))
    with pytest.raises(
        ValueError, match="TRAINER.DPC.CKPT_DIR .*TRAINER.COOP.CLASS_TOKEN_POSITION 'middle' there, 'end' here"
    ):
        trainer.train()


def test_dpc_may_be_mixed_anew_at_a_test_which_is_told(train, make_cfg, evaluate, capsys):
    first = train("CoOp", *FOUR, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1, output="stage1").output_dir
    opts = (*FOUR, "TRAINER.DPC.CKPT_DIR", first, "TRAINER.DPC.TOPK", 2, "OPTIM.MAX_EPOCH", 1)
    train("DPC_CoOp", *opts, "TEST.NO_TEST", True)
    capsys.readouterr()
    assert evaluate("DPC_CoOp", *opts, "TRAINER.DPC.OMEGA_B", 0.7).model.omega_b == 0.7
    assert re.search("Note: .*TRAINER.DPC.OMEGA_B .* there, 0.7 here", capsys.readouterr().out)


@pytest.fixture
def taught(train, teacher_file, tmp_path):
    """A PromptSRC run on the teacher's CLIP, and PromptKD's options for it."""
    opts = ("MODEL.BACKBONE.NAME", str(teacher_file), "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1)
    folder = train("PromptSRC", *DEPTH, *opts, output="teacher").output_dir
    student = ("TRAINER.PROMPTKD.TEACHER_NAME", str(teacher_file), "TRAINER.PROMPTKD.PROMPT_DEPTH_VISION", 2)
    return Path(folder), (*student, "TRAINER.PROMPTKD.TEACHER_DIR", folder)


def test_the_teacher_is_read_as_it_was_trained(taught, make_cfg, tmp_path):
    folder, opts = taught
    build_trainer(make_cfg("PromptKD", *opts))
    file = next((folder / "VLPromptLearner").glob("model.pth.tar-*"))
    torch.save(
        plain.openai_state(embed=96, text_width=192, vision_width=256, vision_layers=5, seed=4), tmp_path / "o.pt"
    )
    for place in (folder, file):  # results.json lies beside both
        given = (*opts, "TRAINER.PROMPTKD.TEACHER_DIR", str(place))
        with pytest.raises(ValueError, match="TRAINER.PROMPTKD.TEACHER_DIR .* other weights of the backbone .*o.pt"):
            build_trainer(make_cfg("PromptKD", *given, "TRAINER.PROMPTKD.TEACHER_NAME", str(tmp_path / "o.pt")))
        with pytest.raises(
            ValueError, match="TRAINER.PROMPTSRC.CTX_INIT 'a photo of a', but TRAINER.PROMPTKD.CTX_INIT is"
        ):
            build_trainer(make_cfg("PromptKD", *given, "TRAINER.PROMPTKD.CTX_INIT", "a picture of my"))
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, "trainer": "MaPLe"}))
    with pytest.raises(ValueError, match="TEACHER_DIR .* is a run of MaPLe, not of PromptSRC or IVLP"):
        build_trainer(make_cfg("PromptKD", *opts))


def test_a_student_is_scored_with_the_teacher_that_taught_it(taught, train, evaluate, teacher_file):
    folder, opts = taught
    train("PromptKD", *opts, "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1)
    evaluate("PromptKD", *opts)
    on = ("MODEL.BACKBONE.NAME", str(teacher_file), "TEST.NO_TEST", True, "OPTIM.MAX_EPOCH", 1, "OPTIM.LR", 0.5)
    other = train("PromptSRC", *DEPTH, *on, output="other").output_dir
    with pytest.raises(ValueError, match="was trained with another teacher than is used now"):
        evaluate("PromptKD", *opts, "TRAINER.PROMPTKD.TEACHER_DIR", other)


def test_an_epoch_of_a_teacher_that_is_one_file_is_refused(taught, make_cfg):
    folder, opts = taught
    file = next((folder / "VLPromptLearner").glob("model.pth.tar-*"))
    opts = (*opts, "TRAINER.PROMPTKD.TEACHER_DIR", str(file), "TRAINER.PROMPTKD.TEACHER_EPOCH", 1)
    with pytest.raises(ValueError, match="TEACHER_EPOCH 1 and TRAINER.PROMPTKD.TEACHER_DIR .* contradict each other"):
        build_trainer(make_cfg("PromptKD", *opts))


def test_a_start_from_other_prompts_is_told_and_goes_on(train, make_cfg, capsys):
    folder = train(
        "CoOp", *FOUR, "TRAINER.COOP.CLASS_TOKEN_POSITION", "front", "OPTIM.MAX_EPOCH", 1, "TEST.NO_TEST", True
    )
    path = Path(folder.output_dir) / "prompt_learner" / "model.pth.tar-1"
    capsys.readouterr()
    started = build_trainer(make_cfg("CoOp", *FOUR, "MODEL.INIT_WEIGHTS", str(path), output="start"))
    assert torch.equal(started.model.prompt_learner.ctx, folder.model.prompt_learner.ctx)
    assert (
        f"Note: MODEL.INIT_WEIGHTS {path} was trained with other settings: TRAINER.COOP.CLASS_TOKEN"
        in capsys.readouterr().out
    )
