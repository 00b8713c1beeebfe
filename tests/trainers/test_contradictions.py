"""Pairs of settings that ask for two things of which one can be had: refused with both keys, before anything is built."""

import pytest

from dassl_prompts.engine import TRAINER_REGISTRY, get_cfg_default, merge_opts

ATTRI, DCAR, PVLF = "TRAINER.ATTRIPROMPT", "TRAINER.DCAR", "TRAINER.PVLF"
STATIC = f"{ATTRI}.RETRIEVAL.MODE", "static"
RETRIEVAL = "TEST.EVALUATOR", "Retrieval"
#: trainer, settings, the two keys that its message names
PAIRS = [
    (
        "CoOp",
        ["TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "a photo of a"],
        ["TRAINER.COOP.CSC", "TRAINER.COOP.CTX_INIT"],
    ),
    (
        "DPC_CoOp",
        ["TRAINER.COOP.CSC", True, "TRAINER.COOP.CTX_INIT", "a"],
        ["TRAINER.COOP.CSC", "TRAINER.COOP.CTX_INIT"],
    ),
    (
        "DPC_CoOp",
        ["TRAINER.DPC.CKPT_DIR", "stage1", "MODEL.INIT_WEIGHTS", "a.pth"],
        ["TRAINER.DPC.CKPT_DIR", "MODEL.INIT_WEIGHTS"],
    ),
    ("ZeroshotCLIP", ["MODEL.INIT_WEIGHTS", "a.pth"], ["MODEL.INIT_WEIGHTS", "TRAINER.NAME"]),
    ("ZeroshotITR", [*RETRIEVAL, "MODEL.INIT_WEIGHTS", "a.pth"], ["MODEL.INIT_WEIGHTS", "TRAINER.NAME"]),
    ("CoOp", ["OPTIM.STAGED_LR", True], ["OPTIM.STAGED_LR", "TRAINER.NAME"]),
    ("PVLF", ["OPTIM.STAGED_LR", True], ["OPTIM.STAGED_LR", "TRAINER.NAME"]),
    ("AttriPrompt", [*STATIC, f"{ATTRI}.POOL.KEY", "learned"], [f"{ATTRI}.POOL.KEY", STATIC[0]]),
    ("AttriPrompt", [*STATIC, f"{ATTRI}.RETRIEVAL.QUERY", "raw"], [f"{ATTRI}.RETRIEVAL.QUERY", STATIC[0]]),
    ("AttriPrompt", [*STATIC, f"{ATTRI}.RETRIEVAL.WEIGHTING", "sim"], [f"{ATTRI}.RETRIEVAL.WEIGHTING", STATIC[0]]),
    (
        "AttriPrompt",
        [f"{ATTRI}.REG.TYPE", "none", f"{ATTRI}.REG.WEIGHT", 5.0],
        [f"{ATTRI}.REG.WEIGHT", f"{ATTRI}.REG.TYPE"],
    ),
    (
        "AttriPrompt",
        [f"{ATTRI}.TEMPLATE", "a {}.", f"{ATTRI}.CTX_INIT", "my"],
        [f"{ATTRI}.TEMPLATE", f"{ATTRI}.CTX_INIT"],
    ),
    (
        "AttriPrompt",
        [f"{ATTRI}.TEMPLATE", "a {}.", f"{ATTRI}.CTX.LEARNABLE", True],
        [f"{ATTRI}.TEMPLATE", f"{ATTRI}.CTX.LEARNABLE"],
    ),
    ("AttriPrompt", [f"{ATTRI}.CACHE.DTYPE", "float16"], [f"{ATTRI}.CACHE.DTYPE", f"{ATTRI}.CACHE.DIR"]),
    ("DCAR", [*RETRIEVAL, f"{DCAR}.CAA.META_FILE", "m.json"], [f"{DCAR}.CAA.META_FILE", f"{DCAR}.CAA.SWAP"]),
    (
        "DCAR",
        [*RETRIEVAL, f"{DCAR}.CAA.META_FILE", "m.json", f"{DCAR}.CAA.SWAP", "meta", f"{DCAR}.CAA.NEG_SOURCE", "json"],
        [f"{DCAR}.CAA.META_FILE", f"{DCAR}.CAA.NEG_SOURCE"],
    ),
    (
        "PVLF",
        [f"{PVLF}.LOSS.STOPGRAD_TARGET", True, f"{PVLF}.BACKBONE.TUNE", "text"],
        [f"{PVLF}.LOSS.STOPGRAD_TARGET", f"{PVLF}.BACKBONE.TUNE"],
    ),
    ("PVLF", [f"{PVLF}.PROMPT.LENGTH", 0], [f"{PVLF}.PROMPT.MODE", f"{PVLF}.PROMPT.LENGTH"]),
]


def settings(trainer, opts):
    import dassl_prompts

    cfg = get_cfg_default()
    dassl_prompts.extend_cfg(cfg)
    merge_opts(cfg, ["TRAINER.NAME", trainer, "DATASET.NAME", "ImageNet", *opts])
    return cfg


def check(trainer, cfg):
    cls = TRAINER_REGISTRY.get(trainer)
    cls.check_cfg(cls.__new__(cls), cfg)


@pytest.mark.parametrize("trainer, opts, keys", PAIRS, ids=lambda value: value if isinstance(value, str) else "")
def test_both_keys_are_named(trainer, opts, keys):
    with pytest.raises(ValueError) as refused:
        check(trainer, settings(trainer, opts))
    text = str(refused.value)
    assert "contradict each other" in text and all(f"{key} " in text for key in keys)


@pytest.mark.parametrize("trainer, opts, keys", PAIRS, ids=lambda value: value if isinstance(value, str) else "")
def test_one_of_the_two_is_fine(trainer, opts, keys):
    for left_out in range(0, len(opts), 2):
        if opts[left_out] not in keys:
            continue
        rest = [*opts[:left_out], *opts[left_out + 2 :]]
        try:
            check(trainer, settings(trainer, rest))
        except ValueError as error:  # what remains may lack something else, such as a file
            assert "contradict" not in str(error) or len(rest) > 2


def test_validation_that_never_happens_cannot_choose_the_model(make_cfg):
    from dassl_prompts.engine import build_trainer

    cfg = make_cfg("CoOp", "TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", True)
    with pytest.raises(ValueError, match="TEST.FINAL_MODEL 'best_val' and TEST.NO_TEST True contradict"):
        build_trainer(cfg)


def test_a_template_that_imagenets_ensemble_does_not_use_is_refused():
    cls = TRAINER_REGISTRY.get("ZeroshotCLIP2")
    cfg = settings("ZeroshotCLIP2", ["TRAINER.ZSCLIP.TEMPLATE", "a {}."])
    with pytest.raises(ValueError, match="TRAINER.ZSCLIP.TEMPLATE 'a {}.' and TRAINER.NAME 'ZeroshotCLIP2' contradict"):
        cls.templates(cfg)


@pytest.mark.parametrize(
    "trainer, opts, line",
    [
        (
            "CoOp",
            ["TRAINER.COOP.CTX_INIT", "a photo of a"],
            "gives 4 context tokens, TRAINER.COOP.N_CTX 16 is not used",
        ),
        ("CoCoOp", ["TRAINER.COCOOP.CTX_INIT", "a photo", "TRAINER.COCOOP.N_CTX", 4], "gives 2 context tokens"),
        (
            "MaPLe",
            ["TRAINER.MAPLE.N_CTX", 5, "TRAINER.MAPLE.PROMPT_DEPTH", 2],
            "is not used with 5 context tokens, more than 4",
        ),
    ],
)
def test_initial_words_and_a_number_of_tokens_that_do_not_agree_are_told(make_cfg, capsys, trainer, opts, line):
    from dassl_prompts.engine import build_trainer

    build_trainer(make_cfg(trainer, *opts))
    assert line in capsys.readouterr().out
