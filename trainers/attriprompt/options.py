"""Which settings of AttriPrompt are possible together, checked before anything is built."""

from __future__ import annotations

from dassl_prompts.engine.config import refuse_pairs
from dassl_prompts.features.view_cache import DTYPES
from dassl_prompts.trainers.attriprompt import attributes, kmeans, pool

NODE = "TRAINER.ATTRIPROMPT"
#: keys that decide how a checkpoint is read; the template follows the dataset and is none of them
READING = (
    "CTX_INIT",
    "CTX.LEARNABLE",
    "PROMPT_DEPTH",
    "COMPOSE",
    "N_CTX_VISION",
    "PROMPT_DEPTH_VISION",
    "CLUSTER",
    "POOL.SIZE",
    "POOL.LENGTH",
    "POOL.PER_LAYER",
    "POOL.KEY",
    "RETRIEVAL",
)
#: regularisers and the weight that REG.WEIGHT -1 stands for
REG_WEIGHTS = {"l1": 25.0, "cos": 8.0, "mse": 1.0, "none": 0.0}
CHOICES = {
    "CLUSTER.TOKENS": attributes.TOKENS,
    "CLUSTER.SPACE": attributes.SPACES,
    "CLUSTER.METHOD": attributes.METHODS,
    "CLUSTER.METRIC": kmeans.METRICS,
    "POOL.KEY": pool.KEYS,
    "RETRIEVAL.QUERY": attributes.QUERIES,
    "RETRIEVAL.MODE": pool.MODES,
    "RETRIEVAL.WEIGHTING": pool.WEIGHTINGS,
    "COMPOSE": ("replace", "accumulate"),
    "DUAL.MODE": ("cls+inst", "cls_symmetric", "prompted+plain", "cls_only"),
    "REG.TYPE": tuple(REG_WEIGHTS),
    "REG.SCOPE": ("all", "target"),
    "REG.TEMPLATES": ("single", "ensemble"),
    "CACHE.DTYPE": DTYPES,
}
POSITIVE = ("CLUSTER.K", "POOL.SIZE", "POOL.LENGTH", "POOL.INIT_STD", "RETRIEVAL.TOP_K", "RETRIEVAL.TEMPERATURE")
NOT_NEGATIVE = (
    "CLUSTER.ITERS",
    "POOL.KEY_LOSS_WEIGHT",
    "DUAL.WEIGHT",
    "PROMPT_DEPTH",
    "N_CTX_VISION",
    "PROMPT_DEPTH_VISION",
    "TEXT.CHUNK_TOKENS",
    "TEXT.MEMO_MB",
    "CACHE.VIEWS",
)


def value(node, key: str):
    """``node.A.B`` from ``"A.B"``."""
    for part in key.split("."):
        node = node[part]
    return node


def check_options(node) -> None:
    """Refuse settings that contradict each other or would learn nothing; ``node`` is cfg.TRAINER.ATTRIPROMPT.

    Raises:
        ValueError: names the key and what to set.
    """
    for key, choices in CHOICES.items():
        if value(node, key) not in choices:
            raise ValueError(f"{NODE}.{key} is {value(node, key)!r}; choose one of {', '.join(choices)}")
    for key in POSITIVE:
        if value(node, key) <= 0:
            raise ValueError(f"{NODE}.{key} is {value(node, key)}; it must be positive")
    for key in NOT_NEGATIVE:
        if value(node, key) < 0:
            raise ValueError(f"{NODE}.{key} is {value(node, key)}; it cannot be negative")
    if node.REG.WEIGHT < 0 and node.REG.WEIGHT != -1:
        raise ValueError(f"{NODE}.REG.WEIGHT is {node.REG.WEIGHT}; give 0 or more, or -1 for the type's default")
    refuse_pairs(node, NODE, contradictions(node))
    if node.RETRIEVAL.MODE != "static":
        check_retrieval(node)
    if (node.N_CTX_VISION > 0) != (node.PROMPT_DEPTH_VISION > 0):
        raise ValueError(
            f"{NODE}: N_CTX_VISION {node.N_CTX_VISION} and PROMPT_DEPTH_VISION {node.PROMPT_DEPTH_VISION} "
            "must both be 0 (frozen image tower) or both positive"
        )
    if node.CACHE.DIR and node.N_CTX_VISION:
        raise ValueError(f"{NODE}.CACHE.DIR needs a frozen image tower: set N_CTX_VISION 0 and PROMPT_DEPTH_VISION 0")
    if node.CACHE.VIEWS and not node.CACHE.DIR:
        raise ValueError(
            f"{NODE}.CACHE.VIEWS is {node.CACHE.VIEWS} but CACHE.DIR is empty: say where to keep the views"
        )


def contradictions(node) -> list[tuple[bool, str, str, str]]:
    """Pairs of keys of which one asks for something that the other switches off, see ``refuse_pairs``."""
    static, none = node.RETRIEVAL.MODE == "static", node.REG.TYPE == "none"
    nothing = "nothing is retrieved; set RETRIEVAL.MODE per_cluster or union, or leave the key at its default"
    weight = "there is no such term; set the weight back to its default, or choose another type"
    words = "both say the words around the class name; give one of them"
    return [
        (static and node.POOL.KEY == "learned", "POOL.KEY", "RETRIEVAL.MODE", nothing),
        (static and node.RETRIEVAL.QUERY == "raw", "RETRIEVAL.QUERY", "RETRIEVAL.MODE", nothing),
        (static and node.RETRIEVAL.WEIGHTING != "none", "RETRIEVAL.WEIGHTING", "RETRIEVAL.MODE", nothing),
        (none and node.REG.WEIGHT > 0, "REG.WEIGHT", "REG.TYPE", weight),
        (bool(node.TEMPLATE and node.CTX_INIT), "TEMPLATE", "CTX_INIT", words),
        (
            bool(node.TEMPLATE and node.CTX.LEARNABLE),
            "TEMPLATE",
            "CTX.LEARNABLE",
            f"{words}, CTX_INIT with learned words",
        ),
        (
            node.CACHE.DTYPE != "float32" and not node.CACHE.DIR,
            "CACHE.DTYPE",
            "CACHE.DIR",
            "nothing is kept on disk; name a folder, or leave DTYPE float32",
        ),
    ]


def check_retrieval(node) -> None:
    r, p = node.RETRIEVAL, node.POOL
    clusters = node.CLUSTER.K if node.CLUSTER.METHOD == "kmeans" else 1
    needed = r.TOP_K * (clusters if r.MODE == "union" else 1)
    if p.SIZE < needed:
        raise ValueError(
            f"{NODE}.POOL.SIZE is {p.SIZE}, but RETRIEVAL takes {needed} different prompts "
            f"(MODE {r.MODE}, TOP_K {r.TOP_K}): enlarge the pool or lower TOP_K"
        )
    if p.KEY == "learned" and r.WEIGHTING == "none" and p.KEY_LOSS_WEIGHT == 0:
        raise ValueError(
            f"{NODE}.POOL.KEY is learned, but no gradient would reach the keys: set POOL.KEY_LOSS_WEIGHT above 0 "
            "or RETRIEVAL.WEIGHTING sim or softmax"
        )
    if r.WEIGHTING == "softmax" and (r.TOP_K != 1 or r.MODE != "per_cluster"):
        raise ValueError(
            f"{NODE}.RETRIEVAL.WEIGHTING softmax mixes the whole pool for every cluster: set TOP_K 1 and MODE "
            "per_cluster"
        )
    if r.QUERY == "raw" and (p.KEY != "learned" or node.CLUSTER.SPACE != "layer"):
        raise ValueError(
            f"{NODE}.RETRIEVAL.QUERY raw compares tokens of the image tower with keys: set POOL.KEY learned and "
            "CLUSTER.SPACE layer"
        )
