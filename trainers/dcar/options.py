"""Which settings of DCAR are possible together, checked before anything is built."""

from __future__ import annotations

from dassl_prompts.captions.losses import DIRECTIONS, WEIGHT_MODES
from dassl_prompts.engine.config import refuse_pairs
from dassl_prompts.trainers.dcar.reweighting import BLANKS, IMAGE_FEATS, NORMS

#: closed choices, by key
CHOICES = {
    "PROMPTS": ("dual", "text", "image"),
    "COUPLING": ("linear", "mlp", "independent"),
    "DTR.TOKEN_FEAT": ("context", "isolated"),
    "DTR.IMAGE_FEAT": IMAGE_FEATS,
    "DTR.BLANK": BLANKS,
    "DTR.NORM": NORMS,
    "DTR.SOURCE": ("frozen", "prompted"),
    "DTR.SCOPE": ("pair", "vocab"),
    "CAA.MODULE": ("adapter", "linear", "mlp", "none"),
    "CAA.ATTR": ("caption", "words"),
    "CAA.SWAP": ("meta", "similar", "uniform"),
    "CAA.NEG_SOURCE": ("generate", "json"),
    "CAA.WEIGHT_MODE": WEIGHT_MODES,
    "LOSS.DIRECTION": DIRECTIONS,
    "TEST.BRANCH": ("prompt", "caa", "sum"),
    "TEST.DTR": ("off", "vocab", "rerank"),
}


def check_node(node) -> None:
    """Refuse values that no switch has, and combinations that contradict each other.

    Raises:
        ValueError: names the key and the choices.
    """
    for key, choices in CHOICES.items():
        value = node
        for part in key.split("."):
            value = value[part]
        if value not in choices:
            hint = " (weights from a caption's own image would give the answer away)" if key == "TEST.DTR" else ""
            raise ValueError(f"TRAINER.DCAR.{key} is {value!r}; choose one of {', '.join(choices)}{hint}")
    caa, unread = node.CAA, "leave it empty, or set CAA.SWAP meta with CAA.NEG_SOURCE generate"
    not_meta = bool(caa.META_FILE) and (caa.SWAP != "meta" or caa.NEG_SOURCE == "json")
    refuse_pairs(
        node,
        "TRAINER.DCAR",
        [
            (not_meta, "CAA.META_FILE", "CAA.SWAP" if caa.SWAP != "meta" else "CAA.NEG_SOURCE", unread),
            (
                node.PROMPTS == "text" and node.COUPLING != "linear",
                "COUPLING",
                "PROMPTS",
                "leave it at linear: there are no image prompts to make",
            ),
        ],
    )
    if not 0 <= node.DTR.PROB <= 1:
        raise ValueError(f"TRAINER.DCAR.DTR.PROB is {node.DTR.PROB}; it is a share between 0 and 1")
    if node.DTR.SCOPE == "vocab" and node.DTR.SOURCE == "prompted":
        raise ValueError("TRAINER.DCAR.DTR.SCOPE vocab averages weights once, so it needs DTR.SOURCE frozen")
    low, high = node.DTR.CLAMP
    if not 0 <= low <= high:
        raise ValueError(f"TRAINER.DCAR.DTR.CLAMP is {(low, high)}; give (low, high) with 0 <= low <= high")
    if node.CAA.ENABLED and node.CAA.N_NEG < 1 and not node.CAA.IN_BATCH:
        raise ValueError("TRAINER.DCAR.CAA.N_NEG is 0: give negatives, or CAA.IN_BATCH True, or CAA.ENABLED False")
    if node.CAA.ALPHA <= -1:
        raise ValueError(f"TRAINER.DCAR.CAA.ALPHA is {node.CAA.ALPHA}: the weight 1 + ALPHA must be positive")
    if node.TEST.BRANCH != "prompt" and not node.CAA.ENABLED:
        raise ValueError(f"TRAINER.DCAR.TEST.BRANCH {node.TEST.BRANCH} needs the module that CAA.ENABLED trains")
    if node.TEST.RERANK < 1:
        raise ValueError(f"TRAINER.DCAR.TEST.RERANK is {node.TEST.RERANK}; give at least 1")
