"""DPC's configuration: its keys, the presets, and their resolution into concrete settings."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dassl_prompts.engine import add_defaults

PRESET = "preset"

#: the sampler and the small print as the note and the poster describe them
AS_DESCRIBED = {
    "PARAM": "parallel",
    "TRAIN_FORWARD": "parallel",
    "MIX_SCOPE": "all",
    "NEW_TEXT": "mixed",
    "DEEP_INIT": "clone",
    "MINER": "tuned",
    "NEG_CAP": "k-1",
    "NEG_DEDUP": "none",
    "NEG_IMAGES": "class",
    "NEG_MIN_FILL": 0,
    "NEG_FILL_RANGE": "all",
    "NEG_TRANSFORM": "train",
    "PROJECTOR_BN": "frozen",
    "XD_RULE": "omega_n",
}
PRESETS = {
    # the optimisation of the released code (omega_b is a step size, base classes are scored by all of P') without its defects
    "full_move": {**AS_DESCRIBED, "OMEGA_B": 1.0, "GRAD_SCALE": 5.0},
    # the formulas read literally: train P', score base classes with omega_b P' + (1 - omega_b) P
    "mixture": {**AS_DESCRIBED, "OMEGA_B": 0.2, "GRAD_SCALE": 1.0},
    # the framework figure read literally: the mixture is also what is trained
    "through_mixture": {**AS_DESCRIBED, "OMEGA_B": 0.2, "GRAD_SCALE": 1.0, "TRAIN_FORWARD": "mixed"},
    # what the released code executes, defects included
    "released": {
        **AS_DESCRIBED,
        "OMEGA_B": 1.0,
        "GRAD_SCALE": 5.0,
        "NEG_CAP": "k",
        "NEG_DEDUP": "step",
        "NEG_IMAGES": "pair",
        "NEG_MIN_FILL": 2,
        "NEG_FILL_RANGE": "official",
        "PROJECTOR_BN": "train",
    },
}
#: names that presets had: they go on meaning what they meant
OLD_PRESETS = {"paper": "mixture", "official": "released"}

CHOICES = {
    "PARAM": ("parallel", "mixed"),
    "TRAIN_FORWARD": ("parallel", "mixed"),
    "MIX_SCOPE": ("all", "text"),
    "NEW_TEXT": ("mixed", "tuned"),
    "MAPLE_MIX": ("tokens", "leaves"),
    "DEEP_INIT": ("clone", "noise"),
    "MINER": ("tuned", "teacher", "teacher_untuned"),
    "NEG_CAP": ("k-1", "k"),
    "NEG_DEDUP": ("none", "step"),
    "NEG_IMAGES": ("class", "pair"),
    "NEG_FILL_RANGE": ("all", "official"),
    "NEG_TRANSFORM": ("train", "test"),
    "NEG_POOL": ("shots", "full_train"),
    "DUPLICATES": ("official", "mask", "multipos", "unique"),
    "PROJECTOR_BN": ("frozen", "train"),
    "XD_RULE": ("omega_n", "parallel"),
    "TASK": ("auto", "base", "new", "union"),
    "UNION": ("none", "chain", "gate"),
    "SELECT": ("last", "val", "official_test"),
}
#: numbers that a negative value leaves to the preset
NUMBERS = ("OMEGA_B", "GRAD_SCALE", "NEG_MIN_FILL")


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.DPC",
        {
            "PRESET": "full_move",  # full_move, mixture, through_mixture, released: which reading of the method (docs/dpc.md)
            "CKPT_DIR": "",  # run directory of stage 1 (the backbone trained on the same classes, seed and shots)
            "CKPT_EPOCH": -1,  # -1 = the last one found
            "OMEGA_B": -1.0,  # weight of P' on base classes, in [0, 1]; -1.0 = as the preset
            "OMEGA_N": 0.0,  # weight of P' on new classes; 0.0 returns the backbone bit for bit
            "TOPK": 8,  # candidates of the negative sampler; 1 = no negatives
            "PARAM": PRESET,  # which tensor is trained: P' itself (parallel) or theta = F(P') (mixed)
            "GRAD_SCALE": -1.0,  # factor on the gradient of the prompts that MIX_SCOPE mixes; -1.0 = as the preset
            "TRAIN_FORWARD": PRESET,
            "MIX_SCOPE": PRESET,
            "NEW_TEXT": PRESET,  # tuned: new classes keep the text prompts of P whatever OMEGA_N is
            "MAPLE_MIX": "tokens",  # leaves: mix the coupling weights instead of the tokens they emit
            "DEEP_INIT": PRESET,  # noise: deep prompts restart from N(0, 0.02^2), as the released PromptKD code does
            "MINER": PRESET,  # PromptKD: teacher, or teacher_untuned, whose first text layer lost its tuned context
            "NEG_POOL": "shots",  # full_train: negatives' images from the whole training split (leaves the few-shot protocol)
            "NEG_JSON": "",  # official SPLE_<Dataset>.json instead of our own index
            "NEG_TRANSFORM": PRESET,
            "NEG_CAP": PRESET,
            "NEG_DEDUP": PRESET,  # step: no class twice in a step, so that it has fewer than B x K pairs
            "NEG_IMAGES": PRESET,  # class: one image per class of a step; pair: one per negative, drawn anew
            "NEG_MIN_FILL": -1,
            "NEG_FILL_RANGE": PRESET,
            "DUPLICATES": "official",
            # weights of the objective's terms; -1.0 = as the backbone asks (SCL 1.0 for PromptSRC but in preset released)
            "LOSS": {"CL_W": 1.0, "CE_W": 0.0, "SCL_W": -1.0, "KD_W": 0.0},
            "GPA": False,  # PromptSRC: average P' over epochs too
            "PROJECTOR_BN": PRESET,
            "XD_RULE": PRESET,
            "TASK": "auto",  # base, new, or union: base and unknown classes together; auto = as DATASET.SUBSAMPLE_CLASSES says
            "UNION": "gate",  # how scores under two prompts are made comparable in TASK union (docs/dpc.md)
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
    mix_scope: str
    new_text: str
    maple_mix: str
    deep_init: str
    miner: str
    neg_pool: str
    neg_json: str
    neg_transform: str
    neg_cap: str
    neg_dedup: str
    neg_images: str
    neg_min_fill: int
    neg_fill_range: str
    duplicates: str
    gpa: bool
    projector_bn: str
    xd_rule: str
    task: str
    union: str
    select: str

    @classmethod
    def from_cfg(cls, cfg, overrides: dict[str, dict] | None = None) -> Settings:
        """Resolve presets.

        Args:
            overrides: by preset, what it has otherwise on one backbone.

        Raises:
            ValueError: naming the key whose value is impossible, or two keys of which one has no effect beside the other.
        """
        node = cfg.TRAINER.DPC
        name = preset_name(node.PRESET)
        preset = {**PRESETS[name], **(overrides or {}).get(name, {}), **old_omega_b(node)}
        values = {"preset": name}
        for field in fields(cls)[1:]:
            key = field.name.upper()
            value = node[key]
            if key == "NEG_DEDUP" and isinstance(value, bool):  # of a run that an earlier version made
                value = "step" if value else "none"
            unset = value == PRESET or (key in NUMBERS and value < 0) or key in old_omega_b(node)
            values[field.name] = preset[key] if unset and key in preset else value
            if key in CHOICES and values[field.name] not in CHOICES[key]:
                raise ValueError(f"TRAINER.DPC.{key} is {value!r}; choose one of {', '.join(CHOICES[key])}")
        for key in ("OMEGA_B", "OMEGA_N"):
            if not 0.0 <= values[key.lower()] <= 1.0:
                raise ValueError(f"TRAINER.DPC.{key} must lie in [0, 1], got {values[key.lower()]}")
        if values["topk"] < 1:
            raise ValueError(f"TRAINER.DPC.TOPK must be at least 1, got {values['topk']}")
        if values["grad_scale"] <= 0:
            raise ValueError(f"TRAINER.DPC.GRAD_SCALE must be positive, got {values['grad_scale']}; 1 / 0.2 is 5.0")
        settings = cls(**values)
        settings.check_contradictions(node)
        return settings

    def check_contradictions(self, node) -> None:
        """
        Raises:
            ValueError: a key that was set would silently do nothing, or undo another.
        """
        for wrong, message in (
            (
                self.neg_json and self.neg_pool != "shots",
                "NEG_JSON names the images of negatives, so NEG_POOL full_train has no effect: set one of them",
            ),
            (
                node.NEG_FILL_RANGE != PRESET and self.neg_min_fill == 0,
                f"NEG_FILL_RANGE {node.NEG_FILL_RANGE} has no effect at NEG_MIN_FILL 0, which draws no class at random",
            ),
            (
                self.train_forward == "mixed" and self.omega_b == 0,
                "TRAIN_FORWARD mixed at OMEGA_B 0.0 trains nothing: the mixture is P",
            ),
            (
                self.param == "mixed" and self.omega_b == 0,
                "PARAM mixed cannot recover P' at OMEGA_B 0.0: use PARAM parallel",
            ),
            (
                node.DUPLICATES != "official" and node.LOSS.CL_W == 0,
                f"DUPLICATES {node.DUPLICATES} is about the contrastive loss, which LOSS.CL_W 0.0 turns off",
            ),
            (
                self.gpa and self.select != "last",
                f"GPA averages all epochs and SELECT {self.select} takes one of them: set one of the two",
            ),
        ):
            if wrong:
                raise ValueError(f"TRAINER.DPC.{message}")


def preset_name(name: str) -> str:
    """A preset's present name.

    Raises:
        ValueError: unknown.
    """
    name = OLD_PRESETS.get(name, name)
    if name not in PRESETS:
        raise ValueError(f"TRAINER.DPC.PRESET is {name!r}; choose one of {', '.join(PRESETS)}")
    return name


def old_omega_b(node) -> dict[str, float]:
    """What OMEGA_B meant under the old name ``official``: the divisor of the gradient, while base classes were scored by P'.

    Returns:
        the weight, and the factor unless that is set itself; nothing under the present names.

    Raises:
        ValueError: OMEGA_B 0.0 has no factor.
    """
    if node.PRESET != "official" or node.OMEGA_B < 0:
        return {}
    if node.OMEGA_B == 0:
        raise ValueError("TRAINER.DPC.PRESET official divides by OMEGA_B, which may not be 0.0; see PRESET released")
    factor = {} if node.GRAD_SCALE > 0 else {"GRAD_SCALE": 1.0 / node.OMEGA_B}
    return {"OMEGA_B": 1.0, **factor}
