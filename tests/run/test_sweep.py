"""Command lines and sweep files as jobs; the chains of the protocols."""

from pathlib import Path

import pytest

from dassl_prompts.run import __main__ as command
from dassl_prompts.run.job import Job
from dassl_prompts.run.protocols import PROTOCOLS, Protocol
from dassl_prompts.run.sweep import SWITCHES, build, read_file, split_opts
from tests.run.fake import step

ALL = {"protocol": "base2new", "trainer": "CoOp", "dataset": "emoji"}


def outputs(protocol, job, root):
    return [str(s.output.relative_to(root)) for s in PROTOCOLS[protocol].steps(job)]


def test_key_value_pairs_are_found_wherever_they_stand():
    words = "base2new --trainer CoOp MaPLe TRAINER.COOP.N_CTX 4 --dataset dtd --seed 1 2 OPTIM.LR 0.1 --tag V1.2 USE_CUDA False".split()
    flags, opts = split_opts(words)
    assert flags == "base2new --trainer CoOp MaPLe --dataset dtd --seed 1 2 --tag V1.2".split()
    assert opts == "TRAINER.COOP.N_CTX 4 OPTIM.LR 0.1 USE_CUDA False".split()
    assert split_opts(["--trainer", "IVLP", "DCAR", "--", "OPTIM.LR", "1"]) == (
        ["--trainer", "IVLP", "DCAR"],
        ["OPTIM.LR", "1"],
    )
    assert split_opts(["--common", "OPTIM.LR", "1"]) == (["--common", "OPTIM.LR", "1"], [])
    with pytest.raises(ValueError, match="OPTIM.LR has no value"):
        split_opts(["base2new", "OPTIM.LR"])


def test_key_value_pairs_may_follow_a_switch():
    switches = {o for a in command.parser()._actions if a.nargs == 0 for o in a.option_strings} - {"-h", "--help"}
    assert switches == set(SWITCHES) - {"--"}
    for switch in switches:
        assert split_opts(["fewshot", switch, "OPTIM.LR", "1"]) == (["fewshot", switch], ["OPTIM.LR", "1"])


def test_every_combination_is_a_job(tmp_path):
    sweep = build({**ALL, "trainer": ["CoOp", "MaPLe"], "seed": [1, 2], "shots": [4, 16]}, {}, "data", tmp_path)
    assert len(sweep.jobs) == 8
    assert sweep.jobs[0] == ("base2new", Job("CoOp", "emoji", 1, 4, root="data", output=tmp_path))


def test_blocks_of_a_file_and_flags_over_it(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "protocol: base2new\ndataset: [emoji, dtd]\nseed: [1, 2, 3]\nopts: {OPTIM.LR: 0.1}\n"
        "runs:\n- trainer: CoOp\n- {trainer: [MaPLe, IVLP], dataset: emoji, seed: 1, tag: x}\n"
    )
    sweep = build({"seed": [7]}, read_file(path), "data", tmp_path)
    assert [(j.trainer, j.dataset, j.seed, j.tag) for _, j in sweep.jobs] == [
        ("CoOp", "emoji", 7, ""),
        ("CoOp", "dtd", 7, ""),
        ("MaPLe", "emoji", 7, "x"),
        ("IVLP", "emoji", 7, "x"),
    ]
    assert sweep.jobs[0][1].opts == ("OPTIM.LR", "0.1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainer: [CoOp", "not valid YAML"),
        ("- CoOp", "has to be a mapping"),
        ("trainers: CoOp", "unknown key 'trainers'; known: protocol, trainer"),
        ("runs: [{epoch: 1}]", "runs entry 1 has an unknown key 'epoch'"),
        ("runs: CoOp", "runs has to be a list"),
        ("seed: 1\nseed: 2", "the key 'seed' stands twice, in lines 1 and 2"),
    ],
)
def test_bad_files_are_explained(tmp_path, text, message):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trainer": None}, "use --trainer"),
        ({"protocol": None}, "no protocol is given"),
        ({"protocol": "base3new"}, "unknown protocol 'base3new'; choose one of base2new"),
        ({"seed": [-1]}, "seed has to be a whole number"),
        ({"shots": ["four"]}, "shots has to be a whole number"),
        ({"opts": ["OPTIM.LR"]}, "'OPTIM.LR' has no value"),
        ({"opts": ["SEED", "3"]}, "use --seed"),
        ({"opts": ["DATASET.SUBSAMPLE_CLASSES", "new"]}, "set by the protocol"),
    ],
)
def test_bad_values_are_explained(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        build({**ALL, **change}, {}, "data", tmp_path)


def test_dpc_shares_its_first_stage_with_the_backbone(tmp_path):
    sweep = build({**ALL, "trainer": ["DPC_MaPLe", "MaPLe"]}, {}, "data", tmp_path)
    nodes = sweep.nodes()
    assert [str(n.step.output.relative_to(tmp_path)) for n in nodes] == [
        f"base2new/{what}/emoji/shots_16/{trainer}/open_tiny/seed1"
        for trainer in ("MaPLe", "DPC_MaPLe")
        for what in ("train_base", "test_new")
    ]
    assert nodes[2].after == [nodes[0]] and nodes[3].after == [nodes[2]]
    assert [n.step.is_training for n in nodes] == [True, False, True, False]


def test_options_of_a_method_leave_its_first_stage_alone_and_common_ones_do_not(tmp_path):
    job = Job("DPC_MaPLe", "emoji", 1, output=tmp_path, opts=("OPTIM.LR", "0.1"), common=("OPTIM.MAX_EPOCH", "1"))
    first, _, second, _ = PROTOCOLS["base2new"].steps(job)
    assert "OPTIM.LR" not in first.args and "OPTIM.MAX_EPOCH" in first.args
    assert "OPTIM.LR" in second.args and "OPTIM.MAX_EPOCH" in second.args
    with pytest.raises(ValueError, match="--tag"):
        build({**ALL, "trainer": ["DPC_MaPLe", "MaPLe"], "opts": ["OPTIM.LR", "0.1"]}, {}, "data", tmp_path).nodes()


def test_coops_first_stage_on_embedded_data_is_its_own_run_and_on_vit_b16_the_milder_one(tmp_path):
    alone, first = (
        PROTOCOLS["base2new"].steps(Job(name, "emoji", 1, output=tmp_path))[0] for name in ("CoOp", "DPC_CoOp")
    )
    assert alone.output == first.output
    alone, first = (
        PROTOCOLS["base2new"].steps(Job(name, "dtd", 1, output=tmp_path))[0] for name in ("CoOp", "DPC_CoOp")
    )
    assert alone.output != first.output and first.output.parent.name == "vit_b16_ep20_lr35"


def test_promptkd_has_a_teacher_on_base_classes_and_distils_on_all(tmp_path):
    steps = PROTOCOLS["base2new"].steps(Job("PromptKD", "dtd", 1, output=tmp_path))
    teacher, student, base, new = steps
    assert teacher.output == tmp_path / "base2new/train_base/dtd/shots_16/PromptSRC/vit_l14_c2_ep20_batch8_4+4ctx/seed1"
    assert student.output.parts[-6:-4] == ("train_all", "dtd")
    assert "200.0" in student.args and all(str(teacher.output) in s.args for s in (student, base, new))
    assert student.config().TRAINER.PROMPTKD.KD_WEIGHT == 200.0 and student.config().DATASET.NUM_SHOTS == 0
    assert (student.config().DATASET.SUBSAMPLE_CLASSES, base.config().DATASET.SUBSAMPLE_CLASSES) == (
        "all",
        "base",
    )
    own = Job("PromptKD", "dtd", 1, output=tmp_path, opts=("TRAINER.PROMPTKD.TEACHER_DIR", "/mine"))
    assert [s.config().TRAINER.PROMPTKD.TEACHER_DIR for s in PROTOCOLS["base2new"].steps(own)] == ["/mine"] * 3
    stages = PROTOCOLS["base2new"].steps(Job("DPC_PromptKD", "dtd", 1, output=tmp_path))
    assert stages[-2].config().TRAINER.DPC.CKPT_DIR == str(stages[1].output) and "train_all" in str(stages[1].output)


def test_protocols_without_a_meaning_for_a_method_say_so(tmp_path):
    for protocol, trainer in (("fewshot", "PromptKD"), ("xd", "DPC_PromptKD")):
        with pytest.raises(ValueError, match="PromptKD"):
            PROTOCOLS[protocol].steps(Job(trainer, "emoji", 1, output=tmp_path))


def test_retrieval_methods_join_the_matrix(tmp_path):
    (step,) = PROTOCOLS["retrieval"].steps(
        Job("DCAR", "fdrd_emoji", 2, output=tmp_path, common=("OPTIM.MAX_EPOCH", "1"))
    )
    assert step.output == tmp_path / "retrieval/train_all/fdrd_emoji/shots_16/DCAR/emoji_tiny/seed2"
    assert step.config().OPTIM.MAX_EPOCH == 1 and step.config().SEED == 2
    sweep = build(
        {"protocol": "retrieval", "trainer": "ZeroshotITR", "dataset": "fdrd_dtd", "seed": [1, 2]},
        {},
        "data",
        tmp_path,
    )
    assert len(sweep.jobs) == 2 and len(sweep.nodes()) == 1  # no seed in zero-shot
    (step,) = PROTOCOLS["composed"].steps(Job("PVLF", "emoji", 1, output=tmp_path, tag="t"))
    assert step.output == tmp_path / "composed/emoji/PVLF/emoji_tiny_t/seed1"
    for protocol, trainer, dataset in (
        ("retrieval", "CoOp", "fdrd_dtd"),
        ("composed", "CoOp", "emoji"),
        ("composed", "PVLF", "dtd"),
    ):
        with pytest.raises(ValueError, match="known"):
            PROTOCOLS[protocol].steps(Job(trainer, dataset, 1, output=tmp_path))


def test_own_yaml_files_give_the_folder_their_name(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("OPTIM: {LR: 0.5}\n")
    steps = PROTOCOLS["fewshot"].steps(Job("CoOp", "emoji", 1, cfg=str(own), output=tmp_path / "out", tag="t"))
    assert steps[0].output == tmp_path / "out/fewshot/train_all/emoji/shots_16/CoOp/mine_t/seed1"
    assert steps[0].config().OPTIM.LR == 0.5


@pytest.mark.parametrize(
    "words",
    [
        "",
        "base2new --trainer CoOp",
        "base2new --trainer CoOp --dataset nowhere",
        "base2new --trainer NoSuch --dataset dtd",
        "--file missing.yaml",
        "base2new --trainer CoOp --dataset emoji --jobs 0",
        "base2new --trainer CoOp --dataset emoji SEED 3",
    ],
)
def test_wrong_input_is_one_line_and_code_2(words, capsys, tmp_path):
    assert command.main([*words.split(), "--output", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and errors[0].startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_dry_run_lists_and_starts_nothing(capsys, tmp_path):
    words = [
        "base2new",
        "--trainer",
        "MaPLe",
        "DPC_MaPLe",
        "--dataset",
        "emoji",
        "--seed",
        "1",
        "2",
        "--output",
        str(tmp_path / "out"),
    ]
    assert command.main([*words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[8] == "0 of 8 runs are finished" and lines[-1].startswith("8 of 8 runs to do")
    assert not (tmp_path / "out").exists()


def test_failures_are_listed_at_the_end_and_finished_jobs_have_their_table(capsys, tmp_path, monkeypatch):
    def steps(job):
        first = step(tmp_path, f"Fake/a/seed{job.seed}", code=1 if job.seed == 2 else 0)
        return [first, step(tmp_path, f"second{job.seed}", first)]

    monkeypatch.setitem(PROTOCOLS, "fake", Protocol(steps, None, "for the test"))
    words = ["fake", "--trainer", "A", "--dataset", "d", "--seed", "1", "2", "3", "--jobs", "2"]
    assert command.main(words) == 1
    out, err = capsys.readouterr()
    assert "1 runs failed" in err and "seed2: failed with exit code 1" in err and "second2: not run, it needs" in err
    (row,) = [line for line in out.splitlines() if line.startswith("| D ")]
    assert [cell.strip() for cell in row.strip("|").split("|")] == ["D", "Fake", "a", "1 3", "50.00 ± 0.00"]
    assert command.main([*words[:6], "1", "3"]) == 0
    assert capsys.readouterr().out.count("already finished") == 4


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_an_output_that_is_no_folder_is_refused_before_anything_starts(capsys, tmp_path, where):
    (tmp_path / "file").write_text("")
    words = ["base2new", "--trainer", "CoOp", "--dataset", "emoji", "--output", str(tmp_path / where)]
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'file'} is not a folder; choose another root with --output" in error
    assert error.startswith("error: cannot write to the run folder") and "Traceback" not in error


def test_a_sweep_file_that_is_a_folder_is_refused(capsys, tmp_path):
    assert command.main(["--file", str(tmp_path)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


# -- epochs of both stages, the task unknown, ViT-L/14 --------------------------------------------------------------------


def options(step):
    """KEY -> value of a step's command line, the last one counts."""
    words = [w for w in step.args if not w.startswith("--")]
    return {a: b for a, b in zip(words, words[1:]) if "." in a and a.isupper() or a.startswith(("TRAINER.", "OPTIM."))}


def test_epochs_are_those_of_both_stages_and_the_averaging_window_follows(tmp_path):
    job = Job("DPC_PromptSRC", "dtd", 1, output=tmp_path, epochs=5)
    first, *_, second = [step for step in PROTOCOLS["base2new"].steps(job) if step.is_training]
    for one in (first, second):
        chosen = options(one)
        assert chosen["OPTIM.MAX_EPOCH"] == "5" and "epochs5" in str(one.output)
        assert (
            chosen["TRAINER.PROMPTSRC.GPA_MEAN"] == "4" and chosen["TRAINER.PROMPTSRC.GPA_STD"] == "1"
        )  # 15 and 1 of 20
        cfg = one.config()
        assert (cfg.OPTIM.MAX_EPOCH, cfg.TRAINER.PROMPTSRC.GPA_MEAN) == (5, 4)
    assert first.output != second.output and second.needs(first)


def test_epochs_do_not_shorten_a_teacher(tmp_path):
    steps = [
        s
        for s in PROTOCOLS["base2new"].steps(Job("DPC_PromptKD", "dtd", 1, output=tmp_path, epochs=5))
        if s.is_training
    ]
    assert ["OPTIM.MAX_EPOCH" in s.args for s in steps] == [False, True, True]
    assert "epochs5" not in str(steps[0].output) and steps[1].needs(steps[0])


def test_epochs_beside_their_key_are_refused(tmp_path):
    with pytest.raises(ValueError, match="OPTIM.MAX_EPOCH contradicts epochs"):
        Job("CoOp", "dtd", 1, output=tmp_path, epochs=5, opts=("OPTIM.MAX_EPOCH", "3"))


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "CoOp", "PromptKD", "DPC_MaPLe", "DPC_PromptKD"])
def test_task_unknown_tests_every_method_on_all_classes_of_its_base_training(trainer, tmp_path):
    told = PROTOCOLS["base2new"].steps(Job(trainer, "emoji", 1, output=tmp_path))
    steps = PROTOCOLS["base2new"].steps(Job(trainer, "emoji", 1, output=tmp_path, task="unknown"))
    added = [step for step in steps if step not in told]
    assert [step for step in steps if step in told] == told
    assert len(added) == (2 if trainer.startswith("DPC_") else 1)
    for one in added:
        cfg = one.config()
        assert (cfg.DATASET.SUBSAMPLE_CLASSES, cfg.TEST.EVALUATOR) == ("all", "Union") and not one.is_training
        dpc = cfg.TRAINER.NAME.startswith("DPC_")
        assert cfg.TRAINER.DPC.TASK == ("union" if dpc else "auto")
        if trainer != "ZeroshotCLIP":
            model = one.args[one.args.index("--model-dir") + 1]
            assert model in [str(s.output) for s in steps if s.is_training]


def test_task_unknown_belongs_to_base2new():
    with pytest.raises(ValueError, match="task unknown is a part of base2new"):
        build(
            {"protocol": "fewshot", "trainer": "CoOp", "dataset": "emoji", "task": "unknown"},
            {},
            "data",
            Path("output"),
        )
    with pytest.raises(ValueError, match="choose one of known, unknown"):
        Job("CoOp", "emoji", 1, task="other")


@pytest.mark.parametrize("backbone", ["CoOp", "MaPLe", "PromptSRC", "PromptKD", "IVLP"])
def test_vit_l14_has_both_stages(backbone, tmp_path):
    steps = PROTOCOLS["base2new"].steps(Job(f"DPC_{backbone}", "dtd", 1, cfg="vit_l14_ep20", output=tmp_path))
    trained = [step.config() for step in steps if step.is_training]
    assert {cfg.MODEL.BACKBONE.NAME for cfg in trained} == {"ViT-L/14"}
    first, second = trained[-2:]
    node = {"CoOp": "COOP", "MaPLe": "MAPLE"}.get(backbone, backbone.upper())
    shapes = ("N_CTX", "CTX_INIT", "PROMPT_DEPTH", "CLASS_TOKEN_POSITION")
    same = {k: v for k, v in first.TRAINER[node].items() if k.startswith(shapes)}
    assert same == {k: v for k, v in second.TRAINER[node].items() if k.startswith(shapes)}


# -- what cannot be tested on other classes ------------------------------------------------------------------

CSC = ("TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.CSC", "True")


@pytest.mark.parametrize("trainer", ["CoOp", "DPC_CoOp"])
def test_class_specific_contexts_are_refused_before_a_protocol_with_other_classes_trains_them(trainer, tmp_path):
    job = Job(trainer, "emoji", 1, output=tmp_path, opts=CSC)
    with pytest.raises(
        ValueError, match="TRAINER.COOP.CSC True gives every class a context of its own, so base2new cannot"
    ):
        PROTOCOLS["base2new"].steps(job)
    other = Job(trainer, "caltech101", 1, output=tmp_path, opts=CSC)
    with pytest.raises(ValueError, match="so xd cannot test it on the classes of other datasets.*protocol fewshot"):
        PROTOCOLS["xd"].steps(other)
    for protocol in ("fewshot", "dg", "xd"):  # the same classes, the other artists' too
        assert PROTOCOLS[protocol].steps(job)


def test_the_command_refuses_them_with_one_line_and_runs_nothing(tmp_path, capsys):
    words = ["base2new", "--trainer", "CoOp", "--dataset", "emoji", "--output", str(tmp_path), *CSC]
    assert command.main(words) == 2
    assert "TRAINER.COOP.CSC True" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
