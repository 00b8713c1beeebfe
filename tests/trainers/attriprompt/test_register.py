"""Defaults of AttriPrompt's register of open choices (docs/attriprompt.md): a changed default changes what a bare recipe means."""

from yacs.config import CfgNode

from dassl_prompts.trainers.attriprompt import extend_cfg

#: key -> default, as the page's table has them
REGISTER = {
    "PREC": "amp",
    "TEMPLATE": "",
    "CTX_INIT": "",
    "CTX": {"LEARNABLE": False},
    "PROMPT_DEPTH": 0,
    "COMPOSE": "replace",
    "N_CTX_VISION": 0,
    "PROMPT_DEPTH_VISION": 0,
    "CLUSTER": {
        "METHOD": "kmeans",
        "K": 4,
        "ITERS": 10,
        "METRIC": "l2",
        "TOKENS": "patch",
        "SPACE": "layer",
    },
    "POOL": {
        "SIZE": 32,
        "LENGTH": 2,
        "PER_LAYER": False,
        "KEY": "prompt",
        "KEY_LOSS_WEIGHT": 0.5,
        "INIT_STD": 0.02,
    },
    "RETRIEVAL": {
        "MODE": "per_cluster",
        "TOP_K": 1,
        "QUERY": "head",
        "CENTER": True,
        "WEIGHTING": "none",
        "TEMPERATURE": 0.1,
    },
    "DUAL": {"MODE": "cls+inst", "WEIGHT": 1.0},
    "REG": {"TYPE": "l1", "WEIGHT": -1.0, "SCOPE": "all", "TEMPLATES": "single"},
    "TEXT": {
        "SHARE_PREFIX": True,
        "TRIM": True,
        "MEMO": True,
        "MEMO_MB": 512,
        "CHUNK_TOKENS": 0,
        "CHECKPOINT": False,
    },
    "CACHE": {"DIR": "", "VIEWS": 0, "DTYPE": "float32"},
}
#: weight that REG.WEIGHT -1 stands for
REG_WEIGHTS = {"l1": 25.0, "cos": 8.0, "mse": 1.0, "none": 0.0}


def plain(node):
    return {key: plain(value) if isinstance(value, CfgNode) else value for key, value in node.items()}


def test_defaults_are_those_of_the_register():
    from dassl_prompts.trainers.attriprompt import options

    cfg = CfgNode()
    extend_cfg(cfg)
    assert plain(cfg.TRAINER.ATTRIPROMPT) == REGISTER
    assert options.REG_WEIGHTS == REG_WEIGHTS
