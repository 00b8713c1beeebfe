"""Config helpers: defaults, merging, errors that name keys."""

import pytest
from yacs.config import CfgNode

from dassl_prompts.engine import (
    add_defaults,
    clean_cfg,
    config_differences,
    extend_cfg,
    get_cfg_default,
    merge_file,
    merge_opts,
)
from dassl_prompts.engine.config import (
    ENGINE_DEFAULTS,
    assign_flat,
    dump,
    flatten,
    read_yaml,
    refuse_pairs,
    with_engine_defaults,
)
from dassl_prompts.engine.resume import flat_config


def test_defaults_are_dassls():
    cfg = get_cfg_default()
    assert cfg.OUTPUT_DIR == "./output" and cfg.SEED == -1 and cfg.INPUT.SIZE == (224, 224)
    assert cfg.OPTIM.LR == 0.0003 and cfg.OPTIM.WARMUP_TYPE == "linear" and cfg.OPTIM.STEPSIZE == (-1,)
    assert cfg.DATALOADER.TRAIN_U.SAME_AS_X and cfg.TEST.FINAL_MODEL == "last_step"
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 1
    assert get_cfg_default().DATALOADER.TRAIN_X.BATCH_SIZE == 32


def test_add_defaults_only_adds_what_is_missing():
    cfg = get_cfg_default()
    add_defaults(cfg, "TRAINER.COOP", {"N_CTX": 16, "DEEP": {"A": 1}})
    cfg.TRAINER.COOP.N_CTX = 4
    cfg.freeze()
    add_defaults(cfg, "TRAINER.COOP", {"N_CTX": 16, "CSC": False, "DEEP": {"A": 2, "B": 3}})
    assert cfg.TRAINER.COOP == CfgNode({"N_CTX": 4, "CSC": False, "DEEP": {"A": 1, "B": 3}})
    assert cfg.is_frozen() and cfg.TRAINER.COOP.is_frozen()
    with pytest.raises(ValueError, match="TRAINER.COOP.N_CTX is a value"):
        add_defaults(cfg, "TRAINER.COOP", {"N_CTX": {"A": 1}})
    with pytest.raises(ValueError, match="SEED is a value"):
        add_defaults(cfg, "SEED.X", {"A": 1})
    with pytest.raises(ValueError, match="TRAINER.COOP is a node"):
        add_defaults(cfg, "TRAINER", {"COOP": 1})


def test_foreign_configs_get_the_engines_keys():
    foreign = CfgNode({"DATASET": {"NAME": "X"}, "DATALOADER": {"MAX_CORRUPT": 3}, "TRAIN": {}})
    foreign.freeze()
    full = with_engine_defaults(foreign)
    assert full.DATALOADER.MAX_CORRUPT == 3 and full.TRAIN.RESUME_FREQ == ENGINE_DEFAULTS["TRAIN"]["RESUME_FREQ"]
    assert "RESUME_FREQ" not in foreign.TRAIN and full.is_frozen()
    assert with_engine_defaults(full) is full
    extend_cfg(foreign)
    assert foreign == full


def test_merge_opts():
    cfg = get_cfg_default()
    merge_opts(
        cfg,
        ["OPTIM.LR", "1", "INPUT.SIZE", "(8, 9)", "OPTIM.WARMUP_CONS_LR", "1e-6", "DATASET.NAME", "Food101"],
    )
    merge_opts(
        cfg,
        ["INPUT.TRANSFORMS", ["normalize"], "INPUT.PIXEL_MEAN", "(0, 0, 0)", "USE_CUDA", "False", "SEED", 3],
    )
    merge_opts(cfg, ["OUTPUT_DIR", "2024", "MODEL.INIT_WEIGHTS", "'quoted'"])
    assert cfg.OUTPUT_DIR == "2024" and cfg.MODEL.INIT_WEIGHTS == "quoted"
    assert cfg.OPTIM.LR == 1.0 and type(cfg.OPTIM.LR) is float
    assert cfg.INPUT.SIZE == (8, 9) and cfg.OPTIM.WARMUP_CONS_LR == 1e-6 and cfg.DATASET.NAME == "Food101"
    assert cfg.INPUT.TRANSFORMS == ("normalize",) and cfg.INPUT.PIXEL_MEAN == [0, 0, 0]
    assert cfg.USE_CUDA is False and cfg.SEED == 3


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        (["OPTIM.LRR", "1"], "unknown config key OPTIM.LRR; did you mean OPTIM.LR?"),
        (
            ["DATALOADER.BATCH_SIZE", "4"],
            "unknown config key DATALOADER.BATCH_SIZE; did you mean .*BATCH_SIZE",
        ),
        (["TRAINER.NOPE.X", "4"], "unknown config key TRAINER.NOPE.X"),
        (["OPTIM.LR"], "'OPTIM.LR' has no value"),
        (["OPTIM.MAX_EPOCH", "2.5"], "OPTIM.MAX_EPOCH is a int .*2.5 of type float"),
        (["OPTIM.LR", "True"], "OPTIM.LR is a float .*True of type bool"),
        (["USE_CUDA", "yes"], "USE_CUDA is a bool .*'yes'"),
        (["OPTIM", "3"], "OPTIM is a node"),
        (["SEED.X", "3"], "unknown config key SEED.X"),
    ],
)
def test_wrong_options_name_the_key(opts, text):
    with pytest.raises(ValueError, match=text):
        merge_opts(get_cfg_default(), opts)


def test_merge_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("OPTIM:\n  LR: 1\n  WARMUP_CONS_LR: 1e-5\nINPUT:\n  SIZE: (32, 32)\n  TRANSFORMS: ['normalize']\n")
    cfg = get_cfg_default()
    merge_file(cfg, path)
    assert cfg.OPTIM.LR == 1.0 and cfg.OPTIM.WARMUP_CONS_LR == 1e-5 and cfg.INPUT.SIZE == (32, 32)
    assert cfg.INPUT.TRANSFORMS == ("normalize",)
    path.write_text("")
    merge_file(cfg, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("OPTIM:\n  LRATE: 1\n", "c.yaml: unknown config key OPTIM.LRATE"),
        ("OPTIM: {LR: fast}\n", "c.yaml: OPTIM.LR is a float"),
        ("OPTIM: 3\n", "c.yaml: OPTIM is a node"),
        ("SEED: {A: 1}\n", "c.yaml: SEED is a int"),
        ("- a\n- b\n", "c.yaml: a config file is a mapping"),
        ("OPTIM: {LR: [\n", "c.yaml is not valid YAML"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        merge_file(get_cfg_default(), tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("INPUT: {PIXEL_STD: [2e-1, 2.5e-01, 0.3]}", "INPUT.PIXEL_STD", [0.2, 0.25, 0.3]),
        ("OPTIM: {STEPSIZE: [1e1, 20]}", "OPTIM.STEPSIZE", (10, 20)),
        ("BIAS: [2e-1, 0, 1e-3]", "BIAS", [0.2, 0, 0.001]),
        ("NAMES: [2e-1, '007', 12e45]", "NAMES", ["2e-1", "007", "12e45"]),
        ("INPUT: {TRANSFORMS: ['1e5']}", "INPUT.TRANSFORMS", ("1e5",)),
    ],
)
def test_numbers_of_a_list_are_numbers_and_words_stay_words(tmp_path, text, key, value):
    """YAML reads ``2e-1`` as text; only a list of numbers takes it for one."""
    path = tmp_path / "c.yaml"
    path.write_text(text)
    cfg = get_cfg_default()
    add_defaults(cfg, "", {"BIAS": [], "NAMES": []})
    merge_file(cfg, path)
    found = flatten(cfg)[key]
    assert found == value and [type(item) for item in found] == [type(item) for item in value]


def test_text_in_a_list_of_numbers_names_the_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("INPUT: {PIXEL_STD: [0.2, two, 0.3]}")
    with pytest.raises(ValueError, match=r"c.yaml: INPUT.PIXEL_STD is a list of numbers .*, 'two' is none"):
        merge_file(get_cfg_default(), path)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("OPTIM: {LR: 0.1}\nSEED: 1\nOPTIM: {MAX_EPOCH: 3}\n", "'OPTIM' stands twice, in lines 1 and 3"),
        ("OPTIM:\n  LR: 0.1\n  MAX_EPOCH: 3\n  LR: 0.2\n", "'LR' stands twice, in lines 2 and 4"),
    ],
)
def test_a_key_that_stands_twice_is_refused_by_name(tmp_path, text, where):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    cfg = get_cfg_default()
    with pytest.raises(ValueError, match=f"c.yaml is not valid YAML: the key {where}: make it one block"):
        merge_file(cfg, path)
    assert cfg == get_cfg_default()


def test_anchors_may_be_merged_and_their_keys_set_anew(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("OPTIM: &o {LR: 0.1, MAX_EPOCH: 3}\nTRAIN: {PRINT_FREQ: 7}\n")
    assert read_yaml(path.read_text(), "c") == {"OPTIM": {"LR": 0.1, "MAX_EPOCH": 3}, "TRAIN": {"PRINT_FREQ": 7}}
    assert read_yaml("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\n", "c")["b"] == {"x": 1, "y": 3}


def test_clean_cfg_drops_other_methods():
    cfg = get_cfg_default()
    add_defaults(cfg, "TRAINER", {"COOP": {"A": 1}, "MAPLE": {"A": 1}})
    clean_cfg(cfg, "CoOp")
    assert set(cfg.TRAINER) == {"NAME", "COOP"}


def test_config_differences_leave_out_what_does_not_change_the_result():
    cfg = get_cfg_default()
    stored = flat_config(cfg)
    cfg.OUTPUT_DIR, cfg.DATASET.ROOT, cfg.DATALOADER.NUM_WORKERS, cfg.TRAIN.PRINT_FREQ = "x", "/moved", 0, 1
    assert config_differences(stored, cfg) == []
    cfg.OPTIM.LR, cfg.SEED = 0.1, 2
    add_defaults(cfg, "TRAINER.NEW", {"KEY": 1})  # unknown to the older run
    assert config_differences(stored, cfg) == ["OPTIM.LR: 0.0003 -> 0.1", "SEED: -1 -> 2"]


def test_defaults_of_other_methods_are_no_difference_of_a_run():
    """What a version changes in DPC's node leaves the runs of CoOp as they are; DPC on CoOp reads both nodes."""
    import dassl_prompts

    def differences(trainer):
        cfg = get_cfg_default()
        dassl_prompts.extend_cfg(cfg)
        merge_opts(cfg, ["TRAINER.NAME", trainer])
        stored = flat_config(cfg)
        changes = [
            "TRAINER.DPC.TOPK",
            3,
            "TRAINER.COOP.N_CTX",
            2,
            "TRAINER.MAPLE.N_CTX",
            5,
            "TRAINER.IVLP.N_CTX_TEXT",
            7,
        ]
        merge_opts(cfg, changes)
        return [line.split(":")[0] for line in config_differences(stored, cfg)]

    assert differences("CoOp") == ["TRAINER.COOP.N_CTX"]
    assert differences("DPC_CoOp") == ["TRAINER.COOP.N_CTX", "TRAINER.DPC.TOPK"]
    assert differences("ZeroshotCLIP") == []
    # a trainer that nobody knows may read any node
    assert len(differences("TheirOwn")) == 4


# -- what is written is read again ---------------------------------------------------------------------------

WORDS = [
    "2024",
    "None",
    "12e45",
    "1e-3",
    "true",
    "null",
    "~",
    "0x10",
    "1_000",
    "'quoted'",
    "a: b",
    "#1",
    "",
    " ",
    "é\n",
    "- x",
]


@pytest.mark.parametrize("word", WORDS)
def test_texts_that_look_like_something_else_come_back_as_texts(word, tmp_path):
    cfg = CfgNode({"A": {"NAME": word, "TEXTS": [word, "b"], "PAIR": (word, 1)}})
    path = tmp_path / "cfg.yaml"
    path.write_text(dump(cfg), encoding="utf-8")
    read = CfgNode({"A": {"NAME": "default", "TEXTS": ["c"], "PAIR": ("c", 0)}})
    merge_file(read, path)
    assert read == cfg and isinstance(read.A.PAIR, tuple)


def test_numbers_come_back_as_they_are(tmp_path):
    cfg = CfgNode({"F": 1e-05, "G": 12e45, "I": 0, "B": False, "N": [0.1, 1e-20], "T": (224, 224), "X": 3.0})
    (tmp_path / "cfg.yaml").write_text(dump(cfg))
    read = CfgNode({"F": 1.0, "G": 1.0, "I": 1, "B": True, "N": [], "T": (), "X": 1.0})
    merge_file(read, tmp_path / "cfg.yaml")
    assert read == cfg and all(type(read[key]) is type(cfg[key]) for key in cfg)


def test_a_text_of_a_yaml_file_is_no_python(tmp_path):
    (tmp_path / "cfg.yaml").write_text("NAME: \"'x'\"\nSIZE: (3, 4)\n")
    cfg = CfgNode({"NAME": "", "SIZE": (1, 1)})
    merge_file(cfg, tmp_path / "cfg.yaml")
    assert cfg.NAME == "'x'" and cfg.SIZE == (3, 4)  # CoOp's files write tuples as texts


def test_contradicting_pairs_are_named_with_both_values():
    cfg = CfgNode({"TRAINER": {"NAME": "X", "X": {"A": 1, "B": {"C": "on"}}}, "OPTIM": {"LR": 0.1}})
    refuse_pairs(cfg, "TRAINER.X", [(False, "A", "B.C", "")])
    with pytest.raises(ValueError, match="^TRAINER.X.A 1 and TRAINER.X.B.C 'on' contradict each other: choose$"):
        refuse_pairs(cfg, "TRAINER.X", [(True, "A", "B.C", "choose")])
    with pytest.raises(ValueError, match="^OPTIM.LR 0.1 and TRAINER.NAME 'X' contradict"):
        refuse_pairs(cfg, "OPTIM", [(True, "LR", "TRAINER.NAME", "choose")])
    with pytest.raises(ValueError, match="^TRAINER.X.A 1 and TRAINER.X.B.C 'on' contradict"):
        refuse_pairs(cfg.TRAINER.X, "TRAINER.X", [(True, "A", "B.C", "choose")])


@pytest.mark.parametrize("word", WORDS)
def test_results_json_gives_texts_back_as_texts(word):
    cfg = CfgNode({"A": {"NAME": word, "PAIR": (word, 1)}})
    read = CfgNode({"A": {"NAME": "default", "PAIR": ()}})
    assert assign_flat(read, {**flat_config(cfg), "A.GONE": "1"}) == ["A.GONE"] and read == cfg
    with pytest.raises(ValueError, match="the value of A.NAME, '<object>', cannot be read"):
        assign_flat(read, {"A.NAME": "<object>"})
