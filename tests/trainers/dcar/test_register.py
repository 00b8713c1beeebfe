"""Defaults of DCAR's register of open choices (docs/dcar.md): a changed default changes what a bare recipe means."""

from dassl_prompts.engine import get_cfg_default
from dassl_prompts.trainers.dcar import extend_cfg
from tests.trainers.attriprompt.test_register import plain

#: key -> default, as the page's table has them
REGISTER = {
    "N_CTX": 4,
    "CTX_INIT": "a photo of a",
    "PROMPT_DEPTH": 1,
    "COUPLING": "linear",
    "PROMPTS": "dual",
    "PREC": "amp",
    "DTR": {
        "ENABLED": True,
        "TOKEN_FEAT": "context",
        "IMAGE_FEAT": "global",
        "BLANK": "white",
        "NORM": "mean1",
        "BETA": 1.0,
        "CLAMP": (0.2, 3.0),
        "SOURCE": "frozen",
        "SCOPE": "pair",
        "PROB": 1.0,
        "GROUP_WORDS": False,
        "CACHE": True,
    },
    "CAA": {
        "ENABLED": True,
        "MODULE": "adapter",
        "HIDDEN": 128,
        "RATIO": 0.2,
        "N_NEG": 4,
        "N_ATTR": 1,
        "ATTR": "caption",
        "SWAP": "similar",
        "META_FILE": "",
        "NEG_SOURCE": "generate",
        "ALPHA": 0.5,
        "WEIGHT_MODE": "prob",
        "WEIGHT_POS": True,
        "IN_BATCH": False,
    },
    "LOSS": {"DIRECTION": "both", "CATE_WEIGHT": 1.0, "DEDUP": True},
    "TEST": {"BRANCH": "prompt", "DTR": "off", "RERANK": 50},
}


def test_defaults_are_those_of_the_register():
    cfg = get_cfg_default()
    extend_cfg(cfg)
    assert plain(cfg.TRAINER.DCAR) == REGISTER
