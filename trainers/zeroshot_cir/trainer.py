"""Composed retrieval without training: image only, text only, their sum in both public definitions; given
weights, Pic2Word and SEARLE."""

from __future__ import annotations

from dassl_prompts.composed.query import BASELINES, QueryFunction
from dassl_prompts.composed.trainer import ComposedTrainer
from dassl_prompts.engine import add_defaults, register_trainer
from dassl_prompts.models.backbones import load_token_encoder
from dassl_prompts.trainers.zeroshot_cir.oti import OTI, read_phrases
from dassl_prompts.trainers.zeroshot_cir.textual_inversion import (
    check_clip,
    check_fits,
    inversion_query,
    load_inversion,
)

OTI_QUERY = "oti"


def extend_cfg(cfg):
    add_defaults(
        cfg,
        "TRAINER.ZEROSHOT_CIR",
        {
            "QUERIES": list(
                BASELINES
            ),  # image, text, image+text; "image+text, normalised" is Pic2Word's definition of the sum
            "PIC2WORD": "",  # file with a trained Pic2Word network; also evaluated when given
            "SEARLE": "",  # file with a trained SEARLE network (Phi); also evaluated when given
            "LINCIR": "",  # file with a trained LinCIR network (Phi); also evaluated when given
            "OTI": {  # query "oti": SEARLE's optimisation of a word for every reference
                "STEPS": 350,
                "LR": 2e-2,
                "WEIGHT_DECAY": 0.01,
                "EMA": 0.99,  # decay of the moving average of the word, which is the answer
                "BATCH": 32,  # references optimised at once
                "PHRASES": "",  # JSON file {concept: [phrase that names it, ...]}; "" = no regularisation by phrases
                "PHRASE_WEIGHT": 0.5,  # of the phrases against 1 of the picture
                "CONCEPTS": 15,  # most similar concepts of a reference, from whose phrases is drawn
            },
        },
    )


@register_trainer
class ZeroshotCIR(ComposedTrainer):
    """Composed retrieval without training: image alone, text alone, their sums, given inversion networks.

    Every baseline of ``TRAINER.ZEROSHOT_CIR.QUERIES`` is one entry of results.json.
    """

    def check_cfg(self, cfg):
        choices = [*BASELINES, OTI_QUERY]
        unknown = [name for name in cfg.TRAINER.ZEROSHOT_CIR.QUERIES if name not in choices]
        if unknown or not cfg.TRAINER.ZEROSHOT_CIR.QUERIES:
            raise ValueError(f"TRAINER.ZEROSHOT_CIR.QUERIES has {unknown}; choose from {choices}")

    def build_model(self):
        print(f"Loading the backbone {self.cfg.MODEL.BACKBONE.NAME}")
        backbone = self.cfg.MODEL.BACKBONE
        activation = backbone.get("ACTIVATION", "")
        self.use_encoder(load_token_encoder(backbone.NAME, self.device, activation=activation))
        self.register_model("composed", self.encoder, None, None)

    def before_train(self):
        raise ValueError("ZeroshotCIR has nothing to train: use --eval-only")

    def test(self, split=None, label="", more=False):
        queries, values = self.queries(), []
        for name, self.query in queries.items():
            print(f"* {name}")
            values.append(super().test(split, name, more or len(values) < len(queries) - 1))
        return values[-1]

    def queries(self) -> dict[str, QueryFunction]:
        """Name -> query function of everything that is evaluated."""
        node = self.cfg.TRAINER.ZEROSHOT_CIR
        queries = {name: self.oti() if name == OTI_QUERY else BASELINES[name](self.encoder) for name in node.QUERIES}
        for method, path in (("pic2word", node.PIC2WORD), ("searle", node.SEARLE), ("lincir", node.LINCIR)):
            if path:
                network = load_inversion(path, method).to(self.device)
                check_fits(self.encoder, network, method)
                queries[method] = inversion_query(self.encoder, network, method)
        return queries

    def oti(self) -> QueryFunction:
        node = self.cfg.TRAINER.ZEROSHOT_CIR.OTI
        check_clip(self.encoder, OTI_QUERY)
        words = OTI(
            self.encoder,
            steps=node.STEPS,
            lr=node.LR,
            weight_decay=node.WEIGHT_DECAY,
            ema=node.EMA,
            batch=node.BATCH,
            phrase_weight=node.PHRASE_WEIGHT,
            concepts=node.CONCEPTS,
            phrases=read_phrases(node.PHRASES) if node.PHRASES else {},
            seed=max(self.cfg.SEED, 0),
        )
        return inversion_query(self.encoder, words, OTI_QUERY)
