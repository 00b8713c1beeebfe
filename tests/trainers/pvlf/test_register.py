"""Defaults, shipped presets, and every key of the register of PVLF and TransAgg."""

import pytest
import torch
import torch.nn.functional as F

from tests.trainers.pvlf.test_pvlf import blip, config, data, one_step_of, run  # noqa: F401  (fixtures)


def test_presets_and_ablation_keys(blip, data, tmp_path):
    """Every key of the register reaches the model."""
    opts = {
        "FUSION.NUM_LAYERS": 3,
        "FUSION.BLOCK": "post_ln",
        "FUSION.FINAL_NORM": True,
        "FUSION.MASK_MODE": "official_bias",
        "FUSION.SEPARATOR": True,
        "FUSION.TYPE_EMBED": True,
        "FUSION.POS_EMBED": True,
        "FUSION.ACT": "relu",
        "PROMPT.DEPTH": 1,
        "PROMPT.INIT_STD": 2.0,
        "AGG.MLP_INPUT": "encoder",
        "AGG.RESIDUAL": "fused",
        "AGG.WEIGHT_ACT": "softmax",
        "AGG.WEIGHT_BIAS_INIT": "[1., 0., 1.]",
        "AGG.NORMALIZE_INPUTS": True,
        "AGG.DROPOUT": 0.25,
    }
    flat = [x for k, v in opts.items() for x in (f"TRAINER.PVLF.{k}", str(v))]
    head = one_step_of("PVLF", blip, data, tmp_path, *flat).model.head
    f, a = head.fusion, head.aggregation
    assert (len(f.layers), f.layers[2].block, f.mask_mode, len(f.prompts)) == (
        3,
        "post_ln",
        "official_bias",
        1,
    )
    assert None not in (f.norm, f.sep_token, f.type_embed, f.text_pos) and f.layers[0].act is F.relu
    assert 1 < f.prompts[0].std() < 3 and f.text_pos.shape[0] == 35 and f.image_pos.shape[0] == 5
    assert (a.mlp_input, a.residual, a.weight_act, a.normalize_inputs, a.dropout.p) == (
        "encoder",
        "fused",
        "softmax",
        True,
        0.25,
    )
    assert a.weighted_layer.bias.tolist() == [1, 0, 1]


#: the table of specs/pvlf.md 1.10 and 1.11: key -> default
REGISTER = {
    "FUSION": {
        "NUM_LAYERS": 2,
        "HEADS": 8,
        "FF_DIM": 2048,
        "DROPOUT": 0.5,
        "ACT": "gelu",
        "BLOCK": "pre_ln",
        "FINAL_NORM": False,
        "MASK_MODE": "bool",
        "SEPARATOR": False,
        "TYPE_EMBED": False,
        "POS_EMBED": False,
    },
    "PROMPT": {"LENGTH": 25, "MODE": "deep", "DEPTH": 2, "INIT_STD": 0.02},
    "AGG": {
        "HIDDEN_MULT": 8,
        "DROPOUT": 0.5,
        "MLP_INPUT": "fused",
        "RESIDUAL": "encoder",
        "WEIGHT_ACT": "none",
        "WEIGHT_BIAS_INIT": [],
        "NORMALIZE_INPUTS": False,
    },
    "LOSS": {
        "NAME": "focal",
        "ALPHA": 1.0,
        "GAMMA": 2.0,
        "TAU": 0.01,
        "SYMMETRIC": False,
        "MASK_DUP_TARGETS": False,
        "STOPGRAD_TARGET": False,
    },
    "BACKBONE": {"TUNE": "both", "LR": 1e-6, "TEXT_DROPOUT": 0.1, "FROZEN_DROPOUT": False},
    "OPTIM": {"ETA_MIN_RATIO": 0.01, "GRAD_CLIP": 5.0, "DECAY_ALL": True},
    "PREC": "amp",
}


def test_defaults_are_those_of_the_register():
    from dassl_prompts.trainers.pvlf import trainer as pvlf
    from dassl_prompts.trainers.pvlf import transagg

    assert pvlf.DEFAULTS == REGISTER
    changed = {
        "FUSION": {"SEPARATOR": True},
        "PROMPT": {"MODE": "none", "LENGTH": 0, "DEPTH": 0},
        "LOSS": {"NAME": "ce"},
        "BACKBONE": {"TUNE": "text"},
    }
    expected = {k: v | changed.get(k, {}) if isinstance(v, dict) else v for k, v in REGISTER.items()}
    assert transagg.DEFAULTS == expected


@pytest.mark.parametrize("trainer", ["PVLF", "TransAgg"])
@pytest.mark.parametrize("backbone", ["blip", "vit_b32", "vit_l14"])
def test_shipped_presets(trainer, backbone):
    """repro differs from default in the padding, the reported epoch and, where there is one (BLIP), the dropout of a
    frozen text tower; in nothing else."""
    from dassl_prompts.engine import config_differences
    from dassl_prompts.engine.resume import flat_config
    from dassl_prompts.run.job import config_file
    from dassl_prompts.train import parser, setup_cfg

    default, repro = (
        setup_cfg(
            parser().parse_args(
                [
                    "--trainer",
                    trainer,
                    "--config-file",
                    config_file("trainers", trainer, name),
                    "--dataset-config-file",
                    config_file("datasets", "laion_cir"),
                ]
            )
        )
        for name in (backbone, f"{backbone}_repro")
    )
    node = trainer.upper()
    differences = " ".join(config_differences(flat_config(default), repro))
    assert len(config_differences(flat_config(default), repro)) == (3 if backbone == "blip" else 2), differences
    assert (f"TRAINER.{node}.BACKBONE.FROZEN_DROPOUT" in differences) == (backbone == "blip")
    assert f"TRAINER.{node}.FUSION.MASK_MODE" in differences and "TEST.FINAL_MODEL" in differences
    for cfg, mask, final in ((default, "bool", "last_step"), (repro, "official_bias", "best_val")):
        own = cfg.TRAINER[node]
        assert (own.FUSION.MASK_MODE, cfg.TEST.FINAL_MODEL) == (mask, final)
        assert own.BACKBONE.TUNE == {"PVLF": "both", "TransAgg": "text"}[trainer]
        assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WEIGHT_DECAY, cfg.OPTIM.MAX_EPOCH) == ("adamw", 1e-4, 0.05, 100)
        assert cfg.DATALOADER.TRAIN_X.BATCH_SIZE == 64 and cfg.CIR.TARGETPAD_RATIO == 1.25


@pytest.mark.parametrize(
    ("key", "value", "read", "expected"),
    [
        ("FUSION.HEADS", 4, lambda t: t.model.head.fusion.layers[0].self_attn.heads, 4),
        ("FUSION.FF_DIM", 20, lambda t: t.model.head.fusion.layers[1].linear1.out_features, 20),
        (
            "FUSION.DROPOUT",
            0.3,
            lambda t: {t.model.head.fusion.layers[1].dropout.p, t.model.head.fusion.layers[1].self_attn.dropout},
            {0.3},
        ),
        ("PROMPT.LENGTH", 5, lambda t: [len(p) for p in t.model.head.fusion.prompts], [5, 5]),
        ("PROMPT.MODE", "none", lambda t: len(t.model.head.fusion.prompts), 0),
        ("PROMPT.MODE", "shallow", lambda t: len(t.model.head.fusion.prompts), 1),
        ("AGG.HIDDEN_MULT", 3, lambda t: t.model.head.aggregation.combiner_layer.out_features, 3 * 16),
        ("BACKBONE.LR", 1e-5, lambda t: t.optim.param_groups[-1]["lr"], 1e-5),
        (
            "BACKBONE.TEXT_DROPOUT",
            0.2,
            lambda t: {m.p for m in t.encoder.text_encoder.modules() if isinstance(m, torch.nn.Dropout)},
            {0.2},
        ),
        ("OPTIM.ETA_MIN_RATIO", 0.05, lambda t: t.sched.end_ratio, 0.05),
    ],
)
def test_keys_that_set_sizes_and_rates(blip, data, tmp_path, key, value, read, expected):
    assert read(one_step_of("PVLF", blip, data, tmp_path, f"TRAINER.PVLF.{key}", str(value))) == expected


def test_deviation_of_the_prompts_reaches_the_model(blip, data, tmp_path):
    stds = {"default": 0.02, "0.5": 0.5}
    for given, std in stds.items():
        opts = [] if given == "default" else ["TRAINER.PVLF.PROMPT.INIT_STD", given]
        built = one_step_of("PVLF", blip, data, tmp_path / given, "TRAINER.PVLF.PROMPT.LENGTH", "40", *opts)
        assert [float(p.std()) for p in built.model.head.fusion.prompts] == pytest.approx([std, std], rel=0.1)


def test_dropout_acts_in_every_training_step(blip, data, tmp_path):
    """Of both fusion layers and of the aggregation, with the default 0.5; not in evaluation."""
    built = one_step_of("PVLF", blip, data, tmp_path, "TRAINER.PVLF.BACKBONE.TUNE", "none")
    head, images = built.model.head, torch.randn(2, 5, 16)
    seen = []
    for name, module in head.named_modules():
        if isinstance(module, torch.nn.Dropout):
            hook = lambda m, args, out, name=name: seen.append((name, bool(((out == 0) & (args[0] != 0)).any())))
            module.register_forward_hook(hook)
    ask = lambda: built.query(["a red dog", "two"], images)
    assert torch.equal(ask(), ask()) and not any(dropped for _, dropped in seen)
    seen.clear()
    built.set_model_mode("train")
    assert not torch.equal(ask(), ask())
    places = ["fusion.layers.0.dropout", "fusion.layers.1.dropout", "aggregation.dropout"]
    assert {name for name, dropped in seen if dropped} == set(places)


@pytest.mark.parametrize("tune", ["none", "text", "both"])
@pytest.mark.parametrize("frozen", ["True", "False"])
def test_dropout_of_the_text_tower(blip, data, tmp_path, tune, frozen):
    """TransAgg's code puts everything into training mode; frozen towers are in evaluation mode here unless asked."""
    keys = ("TRAINER.PVLF.BACKBONE.TUNE", tune, "TRAINER.PVLF.BACKBONE.FROZEN_DROPOUT", frozen)
    encoder = one_step_of("PVLF", blip, data, tmp_path, *keys).model.encoder
    ask = lambda: encoder.text_tokens(["a red dog", "two"]).features
    assert torch.equal(ask(), ask())
    encoder.train()
    assert torch.equal(ask(), ask()) == (tune == "none" and frozen == "False")
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(encoder.image_tokens(images), encoder.image_tokens(images))  # the image tower has none
    encoder.eval()
    assert torch.equal(ask(), ask())


@pytest.mark.parametrize(
    ("opts", "options"),
    [
        ({}, {}),
        ({"NAME": "ce"}, {"gamma": 0.0}),
        ({"GAMMA": 1.0}, {"gamma": 1.0}),
        ({"ALPHA": 0.5}, {"alpha": 0.5}),
        ({"TAU": 0.2}, {"tau": 0.2}),
        ({"SYMMETRIC": True}, {"symmetric": True}),
        ({"MASK_DUP_TARGETS": True}, {"masked": True}),
    ],
)
def test_keys_of_the_loss(blip, data, tmp_path, opts, options):
    """Each key against a loop over rows; it must differ from the default's value."""
    flat = [x for k, v in opts.items() for x in (f"TRAINER.PVLF.LOSS.{k}", str(v))]
    built = one_step_of("PVLF", blip, data, tmp_path, *flat)
    noise = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    # close to one vector: probabilities between 0 and 1 in spite of the temperature
    q, t = (F.normalize(1 + 0.1 * (noise[0] + x), dim=-1) for x in noise[1:])
    ids = torch.tensor([5, 7, 5, 9])

    def slow(tau=0.01, alpha=1.0, gamma=2.0, symmetric=False, masked=False):
        def one_way(a, b):
            total = 0.0
            for i in range(4):
                kept = [j for j in range(4) if j == i or not masked or ids[i] != ids[j]]
                logp = (a[i] @ b[i] / tau).double() - torch.stack(
                    [(a[i] @ b[j] / tau).double() for j in kept]
                ).logsumexp(0)
                total -= alpha * (1 - float(logp.exp())) ** gamma * float(logp)
            return total / 4

        return (one_way(q, t) + one_way(t, q)) / 2 if symmetric else one_way(q, t)

    assert float(built.loss(q, t, ids)) == pytest.approx(slow(**options), rel=1e-5)
    assert not opts or slow(**options) != pytest.approx(slow(), rel=1e-3)
