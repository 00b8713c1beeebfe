"""Composed retrieval without training: image only, text only, and their sum in both public definitions."""

from __future__ import annotations

from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.models.tokens import load_token_encoder
from dassl_prompts.retrieval.composed_trainer import ComposedTrainer
from dassl_prompts.retrieval.query import BASELINES


def extend_cfg(cfg):
    add_defaults(cfg, "TRAINER.ZEROSHOT_CIR", {
        "QUERIES": list(BASELINES),  # image, text, image+text; "image+text, normalised" is Pic2Word's definition of the sum
    })  # fmt: skip


@register_trainer
class ZeroshotCIR(ComposedTrainer):
    """Every baseline of ``TRAINER.ZEROSHOT_CIR.QUERIES`` is one entry of results.json."""

    def check_cfg(self, cfg):
        unknown = [name for name in cfg.TRAINER.ZEROSHOT_CIR.QUERIES if name not in BASELINES]
        if unknown or not cfg.TRAINER.ZEROSHOT_CIR.QUERIES:
            raise ValueError(f"TRAINER.ZEROSHOT_CIR.QUERIES has {unknown}; choose from {list(BASELINES)}")

    def build_model(self):
        print(f"Loading the backbone {self.cfg.MODEL.BACKBONE.NAME}")
        self.encoder = load_token_encoder(self.cfg.MODEL.BACKBONE.NAME, self.device)
        self.check_size()
        self.register_model("composed", self.encoder, None, None)

    def before_train(self):
        raise ValueError("ZeroshotCIR has nothing to train: use --eval-only")

    def test(self, split=None, label=""):
        values = []
        for name in self.cfg.TRAINER.ZEROSHOT_CIR.QUERIES:
            print(f"* {name}")
            self.query = BASELINES[name](self.encoder)
            values.append(super().test(split, name))
        return values[-1]
