"""DPC's configuration: its keys, the two presets, and their resolution into concrete settings."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dassl_prompts.engine import add_defaults

PRESET = "preset"

PRESETS = {
    "paper": {
        "PARAM": "parallel",
        "GRAD_SCALE": 1.0,
        "TRAIN_FORWARD": "parallel",
        "EVAL_BASE": "mixed",
        "MIX_SCOPE": "all",
        "NEW_TEXT": "mixed",
        "DEEP_INIT": "clone",
        "MINER": "tuned",
        "NEG_CAP": "k-1",
        "NEG_MIN_FILL": 0,
        "NEG_FILL_RANGE": "all",
        "NEG_TRANSFORM": "train",
        "PROJECTOR_BN": "frozen",
        "XD_RULE": "omega_n",
    },
    "official": {
        "PARAM": "parallel",
        "GRAD_SCALE": 0.0,
        "TRAIN_FORWARD": "parallel",
        "EVAL_BASE": "parallel",
        "MIX_SCOPE": "all",
        "NEW_TEXT": "mixed",
        "DEEP_INIT": "clone",
        "MINER": "tuned",
        "NEG_CAP": "k",
        "NEG_MIN_FILL": 2,
        "NEG_FILL_RANGE": "official",
        "NEG_TRANSFORM": "train",
        "PROJECTOR_BN": "train",
        "XD_RULE": "omega_n",
    },
}

CHOICES = {
    "PRESET": ("paper", "official"),
    "PARAM": ("parallel", "mixed"),
    "TRAIN_FORWARD": ("parallel", "mixed"),
    "EVAL_BASE": ("mixed", "parallel"),
    "MIX_SCOPE": ("all", "text"),
    "NEW_TEXT": ("mixed", "tuned"),
    "MAPLE_MIX": ("tokens", "leaves"),
    "DEEP_INIT": ("clone", "noise"),
    "MINER": ("tuned", "teacher", "teacher_untuned"),
    "NEG_CAP": ("k-1", "k"),
    "NEG_FILL_RANGE": ("all", "official"),
    "NEG_TRANSFORM": ("train", "test"),
    "NEG_POOL": ("shots", "full_train"),
    "DUPLICATES": ("official", "mask", "multipos", "unique"),
    "PROJECTOR_BN": ("frozen", "train"),
    "XD_RULE": ("omega_n", "parallel"),
    "TASK": ("auto", "base", "new"),
    "SELECT": ("last", "val", "official_test"),
}


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.DPC",
        {
            "PRESET": "paper",
            "CKPT_DIR": "",  # run directory of stage 1 (the backbone trained on the same classes, seed and shots)
            "CKPT_EPOCH": -1,  # -1 = the last one found
            "OMEGA_B": 0.2,  # weight of P' on base classes, in [0, 1]
            "OMEGA_N": 0.0,  # weight of P' on new classes; 0.0 returns the backbone bit for bit
            "TOPK": 8,  # candidates of the negative sampler; 1 = no negatives
            "PARAM": PRESET,  # which tensor is trained: P' itself (parallel) or theta = F(P') (mixed)
            "GRAD_SCALE": -1.0,  # factor on the gradient of the prompts that MIX_SCOPE mixes; 0.0 = 1 / OMEGA_B, -1.0 = as the preset
            "TRAIN_FORWARD": PRESET,
            "EVAL_BASE": PRESET,
            "MIX_SCOPE": PRESET,
            "NEW_TEXT": PRESET,  # tuned: new classes keep the text prompts of P whatever OMEGA_N is
            "MAPLE_MIX": "tokens",  # leaves: mix the coupling weights instead of the tokens they emit
            "DEEP_INIT": PRESET,  # noise: deep prompts restart from N(0, 0.02^2), as the released PromptKD code does
            "MINER": PRESET,  # PromptKD: teacher, or teacher_untuned, whose first text layer lost its tuned context
            "NEG_POOL": "shots",  # full_train: negatives' images from the whole training split (leaves the few-shot protocol)
            "NEG_JSON": "",  # official SPLE_<Dataset>.json instead of our own index
            "NEG_TRANSFORM": PRESET,
            "NEG_CAP": PRESET,
            "NEG_DEDUP": True,
            "NEG_MIN_FILL": -1,
            "NEG_FILL_RANGE": PRESET,
            "DUPLICATES": "official",
            # weights of the objective's terms; -1.0 = as the backbone asks (SCL 1.0 for PromptSRC under preset paper)
            "LOSS": {"CL_W": 1.0, "CE_W": 0.0, "SCL_W": -1.0, "KD_W": 0.0},
            "GPA": False,  # PromptSRC: average P' over epochs too
            "PROJECTOR_BN": PRESET,
            "XD_RULE": PRESET,
            "TASK": "auto",
            "SELECT": "last",
        },
    )


@dataclass(frozen=True)
class Settings:
    """``TRAINER.DPC`` with every "preset" value resolved."""

    preset: str
    ckpt_dir: str
    ckpt_epoch: int
    omega_b: float
    omega_n: float
    topk: int
    param: str
    grad_scale: float
    train_forward: str
    eval_base: str
    mix_scope: str
    new_text: str
    maple_mix: str
    deep_init: str
    miner: str
    neg_pool: str
    neg_json: str
    neg_transform: str
    neg_cap: str
    neg_dedup: bool
    neg_min_fill: int
    neg_fill_range: str
    duplicates: str
    gpa: bool
    projector_bn: str
    xd_rule: str
    task: str
    select: str

    @classmethod
    def from_cfg(cls, cfg, overrides: dict | None = None) -> Settings:
        """Resolve presets; ``overrides`` are what a backbone's official preset does differently.

        Raises:
            ValueError: naming the key whose value is impossible.
        """
        node = cfg.TRAINER.DPC
        if node.PRESET not in PRESETS:
            raise ValueError(f"TRAINER.DPC.PRESET is {node.PRESET!r}; choose paper or official")
        preset = {**PRESETS[node.PRESET], **(overrides or {})}
        values = {}
        for field in fields(cls):
            key = field.name.upper()
            value = node[key]
            unset = value == PRESET or (key in ("GRAD_SCALE", "NEG_MIN_FILL") and value < 0)
            values[field.name] = preset[key] if unset and key in preset else value
            if key in CHOICES and values[field.name] not in CHOICES[key]:
                raise ValueError(f"TRAINER.DPC.{key} is {value!r}; choose one of {', '.join(CHOICES[key])}")
        for name in ("omega_b", "omega_n"):
            if not 0.0 <= values[name] <= 1.0:
                raise ValueError(f"TRAINER.DPC.{name.upper()} must lie in [0, 1], got {values[name]}")
        if values["topk"] < 1:
            raise ValueError(f"TRAINER.DPC.TOPK must be at least 1, got {values['topk']}")
        if values["grad_scale"] == 0.0:
            if values["omega_b"] == 0.0:
                raise ValueError("TRAINER.DPC.GRAD_SCALE 0.0 means 1 / OMEGA_B, which OMEGA_B 0.0 does not have")
            values["grad_scale"] = 1.0 / values["omega_b"]
        return cls(**values)
