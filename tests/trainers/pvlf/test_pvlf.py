"""PVLF and TransAgg as trainers: on generated trees in the real layouts with a tiny random BLIP.

One file: its cases share one tiny BLIP and one generated tree; keys and presets are in test_register.py.
"""

import json
import math
import os

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dassl_prompts import extend_cfg
from dassl_prompts.composed.query import BASELINES, mean_over_wordings
from dassl_prompts.composed.trainer import StepCosine
from dassl_prompts.engine import build_trainer, get_cfg_default, merge_opts
from dassl_prompts.images import read_image
from dassl_prompts.models.tokens import TokenEncoder
from tests.datasets import cir_trees
from tests.models.test_blip import write_tiny_blip


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    return write_tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for tree in (cir_trees.cirr, cir_trees.fashioniq, cir_trees.laion_cir):
        tree(root)
    return root


def config(trainer, blip, data, output, *opts, evaluate='["CIRR"]', dataset="LaionCIR"):
    cfg = get_cfg_default()
    extend_cfg(cfg)
    node = {"PVLF": "PVLF", "TransAgg": "TRANSAGG"}.get(trainer)
    small = (
        [
            f"TRAINER.{node}.{k}" if k.isupper() else k
            for k in ("FUSION.FF_DIM", "24", "FUSION.HEADS", "2", "AGG.HIDDEN_MULT", "2")
        ]
        if node
        else []
    )
    if trainer == "PVLF":
        small += ["TRAINER.PVLF.PROMPT.LENGTH", "3"]
    merge_opts(
        cfg,
        [
            "TRAINER.NAME",
            trainer,
            "DATASET.NAME",
            dataset,
            "CIR.EVAL",
            evaluate,
            "DATASET.ROOT",
            str(data),
            "OUTPUT_DIR",
            str(output),
            "MODEL.BACKBONE.NAME",
            str(blip),
            "OPTIM.NAME",
            "adamw",
            "OPTIM.LR",
            "1e-3",
            "OPTIM.WEIGHT_DECAY",
            "0.05",
            "OPTIM.MAX_EPOCH",
            "2",
            "DATALOADER.TRAIN_X.BATCH_SIZE",
            "4",
            "DATALOADER.TEST.BATCH_SIZE",
            "5",
            "DATALOADER.NUM_WORKERS",
            "0",
            "SEED",
            "1",
            "INPUT.SIZE",
            "(32, 32)",
            *small,
            *opts,
        ],
    )
    torch.manual_seed(1)
    return cfg


def run(trainer, blip, data, output, *opts, **more):
    built = build_trainer(config(trainer, blip, data, output, *opts, **more))
    built.train()
    return built, json.loads((output / "results.json").read_text())


def count_images(monkeypatch):
    """Number of images that the vision tower sees, by class of towers."""
    from dassl_prompts.models.blip import BlipTokens

    seen = []
    original = BlipTokens.image_tokens
    monkeypatch.setattr(BlipTokens, "image_tokens", lambda self, x: (seen.append(len(x)), original(self, x))[1])
    return seen


@pytest.mark.parametrize("trainer", ["PVLF", "TransAgg"])
@pytest.mark.parametrize("tune", ["none", "text", "both"])
def test_training_and_results(blip, data, tmp_path, trainer, tune):
    node = {"PVLF": "PVLF", "TransAgg": "TRANSAGG"}[trainer]
    built, results = run(trainer, blip, data, tmp_path, f"TRAINER.{node}.BACKBONE.TUNE", tune)
    values = results["last CIRR val"]
    assert set(values) == {"mean", "R@1", "R@5", "R@10", "R@50", "Rs@1", "Rs@2", "Rs@3", "average"}
    assert values["Rs@3"] > 0 and results["finished"]
    assert (tmp_path / "sheet-last-CIRR-val.png").stat().st_size > 1000
    saved = torch.load(tmp_path / "composed" / "model.pth.tar-2", weights_only=True)["state_dict"]
    parts = {name.split(".")[0] + "." + name.split(".")[1] for name in saved}
    towers = {"none": set(), "text": {"encoder.text_encoder", "encoder.text_proj"}}
    towers["both"] = towers["text"] | {"encoder.vision_model", "encoder.vision_proj"}
    assert parts == {"head.fusion", "head.aggregation"} | towers[tune]
    assert built.sched.last_epoch == 2 * 2 and built.optim.param_groups[-1]["lr"] == (
        1e-6 if tune != "none" else pytest.approx(1e-5)
    )


def test_cache_leaves_no_image_pass_for_training(blip, data, tmp_path, monkeypatch):
    seen = count_images(monkeypatch)
    built = build_trainer(
        config(
            "PVLF",
            blip,
            data,
            tmp_path,
            "TRAINER.PVLF.BACKBONE.TUNE",
            "text",
            "TEST.NO_TEST",
            "True",
            "OPTIM.MAX_EPOCH",
            "3",
        )
    )
    built.train()
    assert sum(seen) == 6 + 6  # references and targets of the triplets, once
    seen.clear()
    built.test()
    built.test()
    assert sum(seen) == 6 + 8  # references and gallery of the evaluation, once for both calls


def one_step(blip, data, output, *opts):
    built = build_trainer(
        config(
            "PVLF",
            blip,
            data,
            output,
            "TRAINER.PVLF.FUSION.DROPOUT",
            "0.0",
            "TRAINER.PVLF.AGG.DROPOUT",
            "0.0",
            "TRAINER.PVLF.BACKBONE.TEXT_DROPOUT",
            "0.0",
            *opts,
        )
    )
    built.before_train()
    built.set_model_mode("train")
    return built


def test_cached_step_equals_live_step(blip, data, tmp_path):
    """The same batch from the cache (fp32) and from images gives the same loss and gradients."""
    results = []
    for cache in ("True", "False"):
        built = one_step(
            blip,
            data,
            tmp_path / cache,
            "CIR.CACHE",
            cache,
            "CIR.CACHE_DTYPE",
            "fp32",
            "TRAINER.PVLF.BACKBONE.TUNE",
            "text",
        )
        triplets = built.dm.dataset.train_x[:4]
        images = {
            k: torch.stack([built.transform(read_image(getattr(t, k))) for t in triplets])
            for k in ("reference", "target")
        }
        if cache == "True":
            loader, rows = built.train_loader_x, built.train_loader_x.rows[:4]
            images = {
                "reference": torch.from_numpy(np.array(loader.references[[r for r, _, _ in rows]])),
                "target": torch.from_numpy(np.array(loader.targets[[t for _, t, _ in rows]])),
            }
        reference, target = built.image_side(images["reference"], images["target"])
        queries = built.model([t.caption for t in triplets], reference)
        loss = built.loss(queries, F.normalize(target, dim=-1), torch.arange(4))
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in built.model.named_parameters() if p.requires_grad}))
    (a, grads_a), (b, grads_b) = results
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert grads_a.keys() == grads_b.keys() and "head.fusion.prompts.1" in grads_a
    for name in grads_a:
        torch.testing.assert_close(grads_a[name], grads_b[name], atol=1e-4, rtol=1e-3)


def test_gradient_reaches_targets_unless_stopped(blip, data, tmp_path):
    grads = {}
    for stop in ("True", "False"):
        built = one_step(blip, data, tmp_path / stop, "TRAINER.PVLF.LOSS.STOPGRAD_TARGET", stop)
        built.model.encoder.vision_proj.weight.grad = None
        target = torch.randn(4, 3, 32, 32)
        reference, features = built.image_side(torch.randn(4, 3, 32, 32), target)
        grads[stop] = (reference.requires_grad, features.requires_grad)
    assert grads == {"True": (True, False), "False": (True, True)}


def test_one_adamw_step_equals_plain_formula(blip, data, tmp_path):
    """D13: two groups, decay on everything, clipped gradient, first step of the cosine."""
    built = one_step(blip, data, tmp_path, "TRAINER.PVLF.BACKBONE.TUNE", "text", "TRAINER.PVLF.OPTIM.GRAD_CLIP", "0.5")
    before = {n: p.detach().clone() for n, p in built.model.named_parameters() if p.requires_grad}
    batch = next(iter(built.train_loader_x))
    built.forward_backward(batch)
    grads = {n: p.grad for n, p in built.model.named_parameters() if p.requires_grad}
    assert math.sqrt(sum(float((g.double() ** 2).sum()) for g in grads.values())) == pytest.approx(0.5, rel=1e-4)
    for name, parameter in built.model.named_parameters():
        if name in before:
            lr = 1e-6 if name.startswith("encoder.") else 1e-3
            g = grads[name]
            expected = before[name] * (1 - lr * 0.05) - lr * g / (g.abs() + 1e-8)  # Adam's first step, bias-corrected
            torch.testing.assert_close(parameter.detach(), expected, atol=1e-6, rtol=0)


def test_exempting_norms_biases_and_prompts(blip, data, tmp_path):
    built = one_step(blip, data, tmp_path, "TRAINER.PVLF.OPTIM.DECAY_ALL", "False")
    names = {id(p): n for n, p in built.model.named_parameters()}
    groups = built.optim.param_groups
    assert [g["weight_decay"] for g in groups] == [0.05, 0.0, 0.05, 0.0]
    assert all(
        "bias" in n or "norm" in n or "prompts" in n or "embedding" in n.lower() or "LayerNorm" in n
        for g in groups[1::2]
        for n in (names[id(p)] for p in g["params"])
    )
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in built.model.parameters() if p.requires_grad}


def test_cosine_per_step():
    head, tower = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optim = torch.optim.AdamW([{"params": [head], "lr": 1e-4}, {"params": [tower], "lr": 1e-6, "constant": True}])
    sched = StepCosine(optim, epochs=3, steps=7)
    for step in range(21):
        expected = 1e-6 + (1e-4 - 1e-6) * (1 + math.cos(math.pi * (step / 7) / 3)) / 2
        assert abs(optim.param_groups[0]["lr"] - expected) < 1e-15
        assert optim.param_groups[1]["lr"] == 1e-6
        optim.step()
        sched.step()
    assert optim.param_groups[0]["lr"] == pytest.approx(1e-6)
    plain = StepCosine(torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-4), epochs=3, steps=7)
    plain.load_state_dict({"last_epoch": 2})
    assert plain.last_epoch == 14


def test_last_and_best_are_both_reported(blip, data, tmp_path, capsys):
    _, results = run("TransAgg", blip, data, tmp_path, "TEST.FINAL_MODEL", "best_val")
    assert {"last CIRR val", "best CIRR val"} <= set(results)
    assert results["best CIRR val"]["mean"] >= results["last CIRR val"]["mean"]
    assert "the last epoch's numbers are the honest ones" in capsys.readouterr().out


def test_evaluation_of_a_checkpoint_on_both_benchmarks(blip, data, tmp_path):
    opts = ("TRAINER.PVLF.BACKBONE.TUNE", "both")
    _, results = run("PVLF", blip, data, tmp_path / "train", *opts, evaluate='["CIRR", "FashionIQ"]')
    assert set(results["last FashionIQ val"]) == {"mean", "R@10", "R@50", "average"} | {
        f"{c} R@{k}" for c in ("dress", "shirt", "toptee") for k in (10, 50)
    }
    built = build_trainer(config("PVLF", blip, data, tmp_path / "eval", *opts, dataset="CIRR", evaluate="[]"))
    built.load_model(tmp_path / "train")
    assert built.test() == results["last CIRR val"]["mean"]
    assert json.loads((tmp_path / "eval" / "results.json").read_text())["CIRR val"] == results["last CIRR val"]


def test_features_equal_a_plain_loop(blip, data, tmp_path):
    """Query features in the order of the queries, whatever the batches; gallery features normalised."""
    built = build_trainer(
        config("PVLF", blip, data, tmp_path, "CIR.CACHE_DTYPE", "fp32", "CIR.FIQ_CAPTION", "both_avg")
    )
    built.set_model_mode("eval")
    for name, task in (("CIRR", 0), ("FashionIQ", 1)):
        dataset = build_trainer(config("PVLF", blip, data, tmp_path / name, dataset=name, evaluate="[]")).dm.dataset
        dataset.cfg = built.cfg
        task = dataset.tasks("val")[task]
        queries, gallery = built.task_features(task)
        for query, ours in zip(task.queries, queries):
            image = built.transform(read_image(task.gallery[query.reference]))[None]
            with torch.no_grad():
                tokens = built.encoder.image_tokens(image)
                each = torch.cat([built.model.query([text], tokens) for text in query.texts])
            torch.testing.assert_close(ours, F.normalize(each.mean(0), dim=-1), atol=1e-5, rtol=0)
        for path, ours in zip(task.gallery.values(), gallery):
            with torch.no_grad():
                plain = built.encoder.image_features(built.transform(read_image(path))[None])[0]
            torch.testing.assert_close(ours, plain / plain.norm(), atol=1e-5, rtol=0)


def test_transagg_equals_shallow_pvlf(blip, data, tmp_path):
    """D3 as trainers: the same weights give the same queries, and cross-entropy is focal loss with gamma
    0."""
    transagg = one_step_of("TransAgg", blip, data, tmp_path / "t")
    pvlf = one_step_of(
        "PVLF",
        blip,
        data,
        tmp_path / "p",
        "TRAINER.PVLF.PROMPT.MODE",
        "shallow",
        "TRAINER.PVLF.PROMPT.LENGTH",
        "1",
        "TRAINER.PVLF.LOSS.GAMMA",
        "0.0",
    )
    state = transagg.model.head.state_dict()
    state["fusion.prompts.0"] = state.pop("fusion.sep_token")[0]
    pvlf.model.head.load_state_dict(state)
    captions, images = ["a red dog", "two"], torch.randn(2, 5, 16)
    a, b = transagg.query(captions, images), pvlf.query(captions, images)
    torch.testing.assert_close(a, b, atol=1e-6, rtol=0)
    targets = F.normalize(torch.randn(2, 16), dim=-1)
    expected = F.cross_entropy(a @ targets.T / 0.01, torch.arange(2))
    for trainer in (transagg, pvlf):
        torch.testing.assert_close(trainer.loss(a, targets, torch.arange(2)), expected)


def one_step_of(name, blip, data, output, *opts):
    built = build_trainer(config(name, blip, data, output, *opts))
    built.set_model_mode("eval")
    return built


def test_official_checkpoint_of_transagg(blip, data, tmp_path):
    from dassl_prompts.engine import save_checkpoint

    built = one_step_of("TransAgg", blip, data, tmp_path / "t", "TRAINER.TRANSAGG.BACKBONE.TUNE", "none")
    head = built.model.head.state_dict()
    official = {
        name.removeprefix("aggregation.")
        if "aggregation" in name
        else name.replace("fusion.sep_token", "sep_token"): torch.randn_like(t)
        for name, t in head.items()
    }
    official["pretrained_model.visual_encoder.cls_token"] = torch.zeros(1)
    save_checkpoint({"state_dict": official, "epoch": 1}, tmp_path / "official" / "composed")
    built.load_model(tmp_path / "official")
    for name, tensor in built.model.head.state_dict().items():
        key = name.removeprefix("aggregation.").replace("fusion.sep_token", "sep_token")
        assert torch.equal(tensor, official[key])
    tuned = one_step_of("TransAgg", blip, data, tmp_path / "u", "TRAINER.TRANSAGG.BACKBONE.TUNE", "text")
    with pytest.raises(ValueError, match="TUNE none only"):
        tuned.load_model(tmp_path / "official")


def test_official_mask_needs_all_text_rows(blip, data, tmp_path):
    for mode, rows in (("official_bias", 35), ("bool", 5)):
        model = one_step_of("PVLF", blip, data, tmp_path / mode, "TRAINER.PVLF.FUSION.MASK_MODE", mode).model
        shapes = []
        model.head.fusion.register_forward_pre_hook(lambda m, args: shapes.append(args[0].shape[1]))
        model.query(["a red dog", "two"], torch.randn(2, 5, 16))
        assert shapes == [rows]


# -- baselines -----------------------------------------------------------------------------------------------


class FixedEncoder(TokenEncoder):
    def text_tokens(self, captions, trim=True):
        from dassl_prompts.models.tokens import TextTokens

        tokens = torch.tensor([[[float(len(c)), 1.0, 2.0]] for c in captions])
        return TextTokens(
            tokens,
            torch.zeros(len(captions), dtype=torch.long),
            torch.zeros(len(captions), 1, dtype=torch.bool),
        )


def test_baseline_queries():
    images = torch.tensor([[[0.0, 3.0, 4.0], [9.0, 9.0, 9.0]]])
    t, v = torch.tensor([2.0, 1.0, 2.0]), torch.tensor([0.0, 3.0, 4.0])
    expected = {
        "image": v / 5,
        "text": t / 3,
        "image+text": (t + v) / (t + v).norm(),
        "image+text, normalised": (t / 3 + v / 5) / (t / 3 + v / 5).norm(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(BASELINES[name](FixedEncoder())(["ab"], images)[0], value)
    two = mean_over_wordings(BASELINES["text"](FixedEncoder()), [("ab", "abcd")], images)[0]
    other = torch.tensor([4.0, 1.0, 2.0])
    both = (t / 3 + other / other.norm()) / 2
    torch.testing.assert_close(two, both / both.norm())


def test_zeroshot_trainer(blip, data, tmp_path):
    built = build_trainer(config("ZeroshotCIR", blip, data, tmp_path))
    built.test()
    results = json.loads((tmp_path / "results.json").read_text())
    assert {f"{name} CIRR val" for name in BASELINES} <= set(results) and results["finished"]
    with pytest.raises(ValueError, match="--eval-only"):
        built.train()


@pytest.mark.parametrize("split", ["val", "test"])
def test_baselines_are_finished_with_their_last_query(blip, data, tmp_path, monkeypatch, split):
    """A run that is killed between two of its queries is not taken for finished."""
    built = build_trainer(config("ZeroshotCIR", blip, data, tmp_path, "CIR.SPLIT", split))
    states, write = [], built.folder.write
    monkeypatch.setattr(built.folder, "write", lambda values: states.append(values.get("finished")) or write(values))
    built.test()
    assert states == [False, False, False, True]


def test_every_query_of_the_baselines_has_its_own_pair_of_submission_files(blip, data, tmp_path):
    """They were written under one name: of four queries the last one's files survived."""
    built = build_trainer(config("ZeroshotCIR", blip, data, tmp_path, "CIR.SPLIT", "test"))
    for _ in range(2):  # repeating replaces them
        built.test()
    names = ("image", "text", "image+text", "image+text-normalised")
    expected = {f"cirr_ZeroshotCIR-{name}_{metric}.json" for name in names for metric in ("recall", "recall_subset")}
    assert {path.name for path in tmp_path.glob("cirr_*")} == expected
    noted = json.loads((tmp_path / "results.json").read_text())["submission"]
    assert len(noted) == 8 and {os.path.basename(path) for path in noted} == expected
    assert len({(tmp_path / f"cirr_ZeroshotCIR-{name}_recall.json").read_text() for name in names}) > 2


def test_submission_from_a_run(blip, data, tmp_path, capsys):
    built = build_trainer(config("PVLF", blip, data, tmp_path, "CIR.SPLIT", "test"))
    assert math.isnan(built.test())
    out = capsys.readouterr().out
    assert "1 blank captions" in out and "Wrote and checked" in out
    for metric, length in (("recall", 7), ("recall_subset", 3)):
        content = json.loads((tmp_path / f"cirr_PVLF_{metric}.json").read_text())
        assert len(content) == 6 + 2 and all(len(content[str(100 + i)]) == length for i in range(6))
    with pytest.raises(ValueError, match="no test server"):
        build_trainer(config("PVLF", blip, data, tmp_path / "f", "CIR.SPLIT", "test", evaluate='["FashionIQ"]')).test()


@pytest.mark.parametrize(
    ("evaluate", "final", "match"),
    [
        ('["FashionIQ"]', "last_step", "no test server"),
        ('["CIRR"]', "best_val", "best_val cannot choose an epoch"),
    ],
)
def test_evaluation_that_cannot_be_scored_is_refused_before_training(
    blip, data, tmp_path, monkeypatch, evaluate, final, match
):
    seen = count_images(monkeypatch)
    with pytest.raises(ValueError, match=match):
        run("PVLF", blip, data, tmp_path, "CIR.SPLIT", "test", "TEST.FINAL_MODEL", final, evaluate=evaluate)
    assert not seen


def test_cache_knows_the_precision_of_the_run(blip, data, tmp_path):
    """Runs that share CIR.CACHE_DIR must not read each other's half-precision features."""
    built = build_trainer(config("PVLF", blip, data, tmp_path))
    paths = [t.reference for t in built.dm.dataset.train_x[:2]]
    plain = built.cache("x", paths, tokens=False)
    built.autocast_dtype = torch.bfloat16
    half = built.cache("x", paths, tokens=False)
    assert plain.path != half.path and not np.array_equal(plain.array, half.array)


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["True", "False"])
def test_unreadable_training_image(blip, tmp_path, cache):
    cir_trees.laion_cir(tmp_path)
    cir_trees.cirr(tmp_path)
    (tmp_path / "laion_cir" / "images" / "0000003.png").write_bytes(b"nothing")
    opts = ("CIR.CACHE", cache, "TEST.NO_TEST", "True")
    with pytest.raises(OSError, match="0000003.png"):
        run("TransAgg", blip, tmp_path, tmp_path / "strict", *opts)
    built, _ = run(
        "TransAgg",
        blip,
        tmp_path,
        tmp_path / "lenient",
        *opts,
        "DATALOADER.MAX_CORRUPT",
        "1",
        "OPTIM.MAX_EPOCH",
        "4",
    )
    assert [p.rsplit("/", 1)[1] for p in built.corrupt_images] == ["0000003.png"]


def test_missing_image_in_evaluation(blip, tmp_path):
    cir_trees.laion_cir(tmp_path)
    cir_trees.cirr(tmp_path)
    (tmp_path / "cirr" / "img_raw" / "dev" / "dev-7-0-img1.png").unlink()
    with pytest.raises(FileNotFoundError, match="dev-7-0-img1.png"):
        build_trainer(config("PVLF", blip, tmp_path, tmp_path / "out")).test()


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        (("TRAINER.PVLF.LOSS.NAME", "hinge"), "TRAINER.PVLF.LOSS.NAME"),
        (("TRAINER.PVLF.BACKBONE.TUNE", "image"), "BACKBONE.TUNE"),
        (("TRAINER.PVLF.PREC", "fp8"), "TRAINER.PVLF.PREC"),
        (("CIR.CACHE_DTYPE", "int8"), "CIR.CACHE_DTYPE"),
        (("TRAINER.PVLF.PROMPT.DEPTH", "3"), "PROMPT.DEPTH"),
        (("TRAINER.PVLF.LOSS.TAU", "0.0"), "LOSS.TAU"),
        (("TRAINER.PVLF.AGG.WEIGHT_BIAS_INIT", "[1.0]"), "WEIGHT_BIAS_INIT"),
        (("INPUT.SIZE", "(224, 224)"), "INPUT.SIZE .* 32 px"),
    ],
)
def test_wrong_keys(blip, data, tmp_path, opts, match):
    with pytest.raises(ValueError, match=match):
        build_trainer(config("PVLF", blip, data, tmp_path, *opts))


def test_training_set_without_triplets(blip, data, tmp_path):
    built = build_trainer(config("PVLF", blip, data, tmp_path, evaluate='["LaionCIR"]'))
    with pytest.raises(ValueError, match="CIR.EVAL"):
        built.test()
