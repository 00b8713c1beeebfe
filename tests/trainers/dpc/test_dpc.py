"""DPC's second stage: loss, presets, semantics of training and inference, both stages end to end.

One file: its cases share one trained first stage.
"""

import math
import shlex

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.engine import build_trainer, load_checkpoint, set_random_seed
from dassl_prompts.trainers.dpc.combinations import DPC, DPC_CoOp, symmetric_contrastive
from dassl_prompts.trainers.dpc.settings import PRESETS, Settings
from dassl_prompts.trainers.dpc.stage1 import check_run, warn_of_other_draw
from dassl_prompts.trainers.dpc.stage1 import command as stage1_command
from tests.trainers.test_backbone_runs import METHODS, teacher_options

BACKBONES = {
    "CoOp": ["TRAINER.COOP.N_CTX", 4],
    **{name: METHODS[name][0] for name in ("MaPLe", "IVLP", "PromptSRC", "PromptKD")},
}
SCALE = torch.tensor(100.0)


# -- the loss ---------------------------------------------------------------------------------------------------------


def pairs(labels, dim=8, seed=0):
    """Images of their own, text features that depend on the class alone."""
    g = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(len(labels), dim, generator=g, dtype=torch.float64), dim=1).requires_grad_()
    classes = F.normalize(torch.randn(max(labels) + 1, dim, generator=g, dtype=torch.float64), dim=1).requires_grad_()
    return images, classes, torch.tensor(labels)


def soft_target_loss(images, texts, labels, scale):
    """Symmetric cross-entropy against targets spread evenly over equal labels, entry by entry."""
    n, total = len(labels), 0.0
    for rows, columns in ((images, texts), (texts, images)):
        for i in range(n):
            scores = torch.stack([scale * (rows[i] * columns[j]).sum() for j in range(n)])
            log_p = scores - torch.logsumexp(scores, 0)
            same = [j for j in range(n) if labels[j] == labels[i]]
            total = total - sum(log_p[j] for j in same) / len(same) / n
    return total / 2


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 1, 0, 2, 1, 0]])
def test_one_hot_targets_equal_soft_targets_in_value_and_gradient(labels):
    images, classes, y = pairs(labels)
    scale = torch.tensor(10.0, dtype=torch.float64)
    ours = symmetric_contrastive(images, classes[y], y, scale)
    reference = soft_target_loss(images, classes[y], y, scale)
    torch.testing.assert_close(ours.double(), reference, rtol=1e-5, atol=1e-6)
    for a, b in zip(torch.autograd.grad(ours, (images, classes)), torch.autograd.grad(reference, (images, classes))):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_repeated_rows_have_a_floor_that_mask_and_multipos_do_not():
    aligned = F.normalize(torch.eye(3), dim=1)
    y = torch.tensor([0, 0, 1])
    images = texts = aligned[y]
    loss = lambda how: float(symmetric_contrastive(images, texts, y, SCALE, how))
    assert loss("official") == pytest.approx(2 / 3 * math.log(2), abs=1e-6)
    assert loss("mask") == pytest.approx(0, abs=1e-6)
    assert loss("multipos") == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("how", ["mask", "multipos"])
def test_other_duplicate_policies_against_loops(how):
    labels = [0, 1, 0, 2, 1]
    images, classes, y = pairs(labels, seed=3)
    scale, expected = 10.0, 0.0
    for rows, columns in ((images, classes[y]), (classes[y], images)):
        for i in range(len(labels)):
            s = [scale * float((rows[i] * columns[j]).sum().detach()) for j in range(len(labels))]
            same = [j for j in range(len(labels)) if labels[j] == labels[i]]
            if how == "mask":
                p = math.exp(s[i]) / sum(math.exp(x) for j, x in enumerate(s) if j == i or j not in same)
            else:
                p = sum(math.exp(s[j]) for j in same) / sum(map(math.exp, s))
            expected -= math.log(p) / len(labels) / 2
    ours = symmetric_contrastive(images, classes[y], y, torch.tensor(scale), how)
    assert float(ours) == pytest.approx(expected, rel=1e-5)


# -- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("OMEGA_B", 1.5, r"OMEGA_B must lie in \[0, 1\]"),
        ("OMEGA_N", -0.1, r"OMEGA_N must lie in \[0, 1\]"),
        ("TOPK", 0, "TOPK must be at least 1"),
        ("PRESET", "mine", "choose one of full_move, mixture, through_mixture, released"),
        ("DUPLICATES", "drop", "choose one of official, mask"),
        ("GRAD_SCALE", 0.0, "GRAD_SCALE must be positive"),
        ("NEG_IMAGES", "other", "choose one of class, pair"),
    ],
)
def test_impossible_settings_name_the_key(make_cfg, key, value, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(make_cfg("DPC_CoOp", f"TRAINER.DPC.{key}", value))


def test_presets_fill_what_is_not_set(make_cfg):
    plain = Settings.from_cfg(make_cfg("DPC_CoOp"))
    assert (plain.preset, plain.omega_b, plain.grad_scale, plain.neg_cap) == ("full_move", 1.0, 5.0, "k-1")
    mixture = Settings.from_cfg(make_cfg("DPC_CoOp", "TRAINER.DPC.PRESET", "mixture"))
    assert (mixture.omega_b, mixture.grad_scale, mixture.train_forward) == (0.2, 1.0, "parallel")
    released = Settings.from_cfg(make_cfg("DPC_CoOp", "TRAINER.DPC.PRESET", "released", "TRAINER.DPC.NEG_CAP", "k-1"))
    assert (released.omega_b, released.grad_scale, released.neg_cap, released.neg_dedup) == (1.0, 5.0, "k-1", "step")
    assert all(set(preset) == set(PRESETS["mixture"]) for preset in PRESETS.values())


@pytest.mark.parametrize("omega, factor", [(-1.0, 5.0), (0.2, 5.0), (0.5, 2.0)])
def test_old_names_of_presets_mean_what_they_meant(make_cfg, omega, factor):
    """Under ``official`` OMEGA_B was the divisor of the gradient, and P' scored base classes."""
    opts = ["TRAINER.DPC.OMEGA_B", omega]
    old = Settings.from_cfg(make_cfg("DPC_CoOp", "TRAINER.DPC.PRESET", "official", *opts))
    assert (old.preset, old.omega_b, old.grad_scale) == ("released", 1.0, factor)
    paper = Settings.from_cfg(make_cfg("DPC_CoOp", "TRAINER.DPC.PRESET", "paper", *opts))
    assert (paper.preset, paper.omega_b, paper.grad_scale) == ("mixture", 0.2 if omega < 0 else omega, 1.0)


def test_the_old_official_preset_needs_a_positive_omega_b(make_cfg):
    with pytest.raises(ValueError, match="divides by OMEGA_B"):
        build_trainer(make_cfg("DPC_CoOp", "TRAINER.DPC.PRESET", "official", "TRAINER.DPC.OMEGA_B", 0.0))


def test_deduplication_was_a_yes_or_no_in_older_runs(make_cfg):
    cfg = make_cfg("DPC_CoOp")
    cfg.defrost()
    for old, new in ((True, "step"), (False, "none")):
        cfg.TRAINER.DPC.NEG_DEDUP = old
        assert Settings.from_cfg(cfg).neg_dedup == new


@pytest.mark.parametrize("opts, message", [
    (["NEG_JSON", "x.json", "NEG_POOL", "full_train"], "NEG_POOL full_train has no effect"),
    (["NEG_FILL_RANGE", "official"], "has no effect at NEG_MIN_FILL 0"),
    (["TRAIN_FORWARD", "mixed", "OMEGA_B", 0.0], "trains nothing"),
    (["PARAM", "mixed", "OMEGA_B", 0.0], "cannot recover P'"),
    (["DUPLICATES", "mask", "LOSS.CL_W", 0.0, "LOSS.CE_W", 1.0], "is about the contrastive loss"),
    (["GPA", True, "SELECT", "val"], "GPA averages all epochs"),
])  # fmt: skip
def test_settings_that_would_do_nothing_are_refused(make_cfg, opts, message):
    named = [word if i % 2 else f"TRAINER.DPC.{word}" for i, word in enumerate(opts)]
    with pytest.raises(ValueError, match=message):
        DPC_CoOp.settings(make_cfg("DPC_CoOp", *named))


def test_selection_by_dassls_key_alone_is_refused(make_cfg):
    with pytest.raises(ValueError, match="contradicts TRAINER.DPC.SELECT last"):
        build_trainer(make_cfg("DPC_CoOp", "TEST.FINAL_MODEL", "best_val"))


@pytest.mark.parametrize("task", ["new", "union"])
def test_training_with_a_task_of_testing_is_refused(make_cfg, coop_stage1, task):
    trainer = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, "TRAINER.DPC.TASK", task, output="a"))
    with pytest.raises(ValueError, match=f"TASK {task} is about testing"):
        trainer.train()


# -- both stages on toy data ----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def toy_data_is_ours(monkeypatch):
    """The advice about stage 1 names the program that knows the data set; pytest is none."""
    monkeypatch.setattr("dassl_prompts.trainers.dpc.stage1.is_ours", lambda kind, name: True)


@pytest.fixture(params=BACKBONES)
def two_stages(request, train, teacher_file, teacher_clip, tmp_path):
    """A finished stage 1, and the options of stage 2."""
    name = request.param
    opts = list(BACKBONES[name])
    classes = ["DATASET.SUBSAMPLE_CLASSES", "base"]
    if name == "PromptKD":
        opts += teacher_options(teacher_file, teacher_clip, tmp_path)
        stage1 = train(name, *opts, output="stage1")
    else:
        stage1 = train(name, *opts, *classes, output="stage1")
    ckpt = ["TRAINER.DPC.CKPT_DIR", str(tmp_path / "stage1"), "TRAINER.DPC.TOPK", 3]
    return name, [*opts, *classes, *ckpt], stage1


@torch.no_grad()
def logits(trainer, images):
    trainer.set_model_mode("eval")
    return trainer.model(images)


def test_both_stages_and_both_evaluations(two_stages, make_cfg, images, tmp_path):
    name, opts, stage1 = two_stages
    set_random_seed(1)
    dpc = build_trainer(make_cfg(f"DPC_{name}", *opts, output="stage2"))
    towers = {n: t.clone() for n, t in dpc.model.state_dict().items() if ".clip." in f".{n}"}
    dpc.train()
    folder = dpc.model.checkpoint_name

    # P is what stage 1 saved, CLIP (PromptKD's teacher included) is as before: stage 2 changed P' alone
    assert towers and all(torch.equal(t, dpc.model.state_dict()[n]) for n, t in towers.items())
    saved = load_checkpoint(next((tmp_path / "stage1" / folder).glob("model.pth.tar-2")))["state_dict"]
    tuned = dpc.model.tuned.checkpoint_module.state_dict()
    for key, value in saved.items():
        assert torch.equal(tuned[key], value), key
    moved = [
        n for n, p in dpc.model.learnable().items() if not torch.equal(p, dict(dpc.model.tuned.named_parameters())[n])
    ]
    assert len(moved) == len(dpc.model.learnable())

    # a fresh trainer on the new classes, from the checkpoint alone: equal to the backbone bit for bit
    new = ["DATASET.SUBSAMPLE_CLASSES", "new"]
    fresh = build_trainer(make_cfg(f"DPC_{name}", *opts, *new, output="dpc_new"))
    fresh.load_model(str(tmp_path / "stage2"))
    alone = build_trainer(make_cfg(name, *BACKBONES[name], *opts[len(BACKBONES[name]) : -6], *new, output="alone_new"))
    alone.load_model(str(tmp_path / "stage1"))
    assert torch.equal(logits(fresh, images), logits(alone, images))

    # and on the base classes: equal to the trained model
    base = build_trainer(make_cfg(f"DPC_{name}", *opts, output="dpc_base"))
    base.load_model(str(tmp_path / "stage2"))
    assert torch.equal(logits(base, images), logits(dpc, images))


@pytest.fixture
def coop_stage1(train, tmp_path):
    train("CoOp", *BACKBONES["CoOp"], "DATASET.SUBSAMPLE_CLASSES", "base", output="stage1")
    return [
        *BACKBONES["CoOp"],
        "DATASET.SUBSAMPLE_CLASSES",
        "base",
        "TRAINER.DPC.CKPT_DIR",
        str(tmp_path / "stage1"),
        "TRAINER.DPC.TOPK",
        3,
    ]


def ready(make_cfg, opts, *more, output):
    """A trainer with both prompts loaded and its mined loader made, before any step."""
    trainer = build_trainer(make_cfg("DPC_CoOp", *opts, *more, output=output))
    trainer.load_stage1()
    trainer.train_loader_x = trainer.mined_loader()
    trainer.set_model_mode("train")
    return trainer


def first_batch(trainer):
    """The same for every trainer."""
    torch.manual_seed(0)
    return next(iter(trainer.train_loader_x))


def steps(trainer, count):
    """P' after ``count`` steps on the first batch."""
    trainer.num_batches = count + 10  # keep the learning rate
    batch = first_batch(trainer)
    for trainer.batch_idx in range(count):
        trainer.forward_backward(dict(batch))
    return trainer.model.parallel_leaves()["prompt_learner.ctx"].detach().clone()


MIXTURE = ["TRAINER.DPC.PRESET", "mixture"]
PLAIN_SGD = ["OPTIM.NAME", "sgd", "OPTIM.MOMENTUM", 0.0, "OPTIM.WEIGHT_DECAY", 0.0, "OPTIM.WARMUP_EPOCH", -1]


def test_training_theta_equals_training_p_prime_with_lr_over_omega_squared(make_cfg, coop_stage1):
    """One SGD step (specs/dpc.md 8.6.4): semantics B and C against A."""
    mixed = ready(
        make_cfg, coop_stage1, *MIXTURE, *PLAIN_SGD, "TRAINER.DPC.PARAM", "mixed", "OPTIM.LR", 1e-4, output="a"
    )
    plain = ready(make_cfg, coop_stage1, *MIXTURE, *PLAIN_SGD, "OPTIM.LR", 1e-4 / 0.2**2, output="b")
    with torch.no_grad():  # theta = F(P') with P' = P at the start
        assert torch.equal(mixed.model.parallel.prompt_learner.ctx, plain.model.parallel.prompt_learner.ctx)
    torch.testing.assert_close(steps(mixed, 1), steps(plain, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("preset", ["full_move", "released"])
def test_the_full_move_and_the_released_preset_are_semantics_o(make_cfg, coop_stage1, preset):
    """The gradient carries 1 / omega_b, the weight decay does not; momentum and decay on (specs/dpc.md 4.8)."""
    lr, momentum, decay, omega = 0.01, 0.9, 5e-4, 0.2
    sgd = [
        "OPTIM.NAME",
        "sgd",
        "OPTIM.LR",
        lr,
        "OPTIM.MOMENTUM",
        momentum,
        "OPTIM.WEIGHT_DECAY",
        decay,
        "OPTIM.WARMUP_EPOCH",
        -1,
    ]
    trainer = ready(make_cfg, coop_stage1, *sgd, "TRAINER.DPC.PRESET", preset, output=preset)
    batch = first_batch(trainer)
    model, start = trainer.model, trainer.model.tuned.prompt_learner.ctx.detach().clone()

    ctx, velocity = start.clone(), torch.zeros_like(start)
    for _ in range(3):
        leaf = ctx.clone().requires_grad_()
        text = model.tuned.encode_classes(model.tuned.emit().map(lambda _: leaf), batch["label"])
        with torch.no_grad():
            image = model.encode_images(batch["img"], model.tuned.emit())[batch["rows"]]
        s = model.scale * image @ text.t()
        n = torch.arange(len(s))
        loss = 0.5 * (F.cross_entropy(s, n) + F.cross_entropy(s.t(), n))
        (grad,) = torch.autograd.grad(loss, leaf)
        velocity = momentum * velocity + grad / omega + decay * ctx
        ctx = ctx - lr * velocity
    torch.testing.assert_close(steps(trainer, 3), ctx, rtol=1e-4, atol=1e-6)

    # base inference uses P' alone
    assert torch.equal(model.emit().text, model.parallel.prompt_learner.ctx)


def test_training_forward_with_the_mixture_scales_the_gradient_by_omega(make_cfg, coop_stage1):
    """Semantics D: the first step from P moves P' by omega_b times as much."""
    a = ready(make_cfg, coop_stage1, *MIXTURE, *PLAIN_SGD, output="a")
    d = ready(make_cfg, coop_stage1, "TRAINER.DPC.PRESET", "through_mixture", *PLAIN_SGD, output="d")
    start = a.model.tuned.prompt_learner.ctx.detach()
    torch.testing.assert_close(steps(d, 1) - start, 0.2 * (steps(a, 1) - start), rtol=1e-3, atol=1e-7)


def test_text_is_encoded_for_the_classes_of_the_step_only(make_cfg, coop_stage1, monkeypatch):
    trainer = ready(make_cfg, coop_stage1, "TRAINER.DPC.TOPK", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 2, output="few")
    encoded = []
    original = trainer.model.parallel.encode_classes
    monkeypatch.setattr(
        trainer.model.parallel, "encode_classes", lambda p, index=None: encoded.append(index) or original(p, index)
    )
    batch = next(iter(trainer.train_loader_x))
    trainer.batch_idx, trainer.num_batches = 0, 10
    trainer.forward_backward(batch)
    [index] = encoded
    assert index.tolist() == sorted(set(batch["label"].tolist()))


def test_contrast_over_step_classes_equals_contrast_over_all_classes(make_cfg, coop_stage1):
    """Row-wise normalisation commutes with the selection of rows (the paper's feature filter)."""
    few = ready(make_cfg, coop_stage1, output="a")
    every = ready(make_cfg, coop_stage1, "TRAINER.DPC.LOSS.CE_W", 1e-12, output="b")
    batch = next(iter(few.train_loader_x))
    for trainer in (few, every):
        trainer.parse_batch_train(batch)
    torch.testing.assert_close(
        few.loss(batch["img"], batch["label"])["loss_cl"], every.loss(batch["img"], batch["label"])["loss_cl"]
    )


def test_anchor_features_of_the_miner_are_those_of_the_step(make_cfg, coop_stage1):
    trainer = ready(make_cfg, coop_stage1, output="a")
    batch = first_batch(trainer)
    images, labels = trainer.parse_batch_train(batch)
    reused = trainer.loss(images, labels)["loss"]
    trainer.anchor_features = None
    torch.testing.assert_close(reused, trainer.loss(images, labels)["loss"])


def test_negatives_come_from_the_base_training_images(make_cfg, coop_stage1):
    trainer = ready(make_cfg, coop_stage1, output="a")
    allowed = {item.impath for item in trainer.dm.dataset.train_x}
    held_out = {item.impath for item in [*trainer.dm.dataset.val, *trainer.dm.dataset.test]}
    pool = {item.impath for item in trainer.pool.dataset.data_source}
    assert pool == allowed and not pool & held_out
    for batch in trainer.train_loader_x:
        assert batch["label"].max() < len(trainer.dm.dataset.classnames)
        drawn, anchors = batch["negative_index"], set(batch["anchors"].tolist())
        for pair, (row, label) in enumerate(zip(batch["rows"].tolist(), batch["label"].tolist())):
            if row < len(anchors):  # an anchor, or a negative that shows the anchor of its class
                shown = batch["label"][batch["anchors"][row]]
                assert label == shown and (pair not in anchors or batch["anchors"][row] == pair)
            else:
                assert trainer.pool.dataset.data_source[drawn[row - len(anchors)]].label == label


@pytest.mark.parametrize("images, shared", [("class", True), ("pair", False)])
def test_a_step_has_b_times_k_pairs_and_an_image_per_negative_class(make_cfg, coop_stage1, images, shared):
    """The note's sampler: an anchor and K - 1 negatives each, whatever the other anchors have."""
    opts = ["TRAINER.DPC.NEG_IMAGES", images, "DATALOADER.TRAIN_X.BATCH_SIZE", 4]
    trainer = ready(make_cfg, coop_stage1, *opts, output="a")
    repeated = False
    for batch in trainer.train_loader_x:
        anchors = len(batch["anchors"])
        assert len(batch["label"]) == len(batch["rows"]) == anchors * trainer.topk
        negatives = [y for i, y in enumerate(batch["label"].tolist()) if i not in batch["anchors"].tolist()]
        repeated |= len(set(negatives)) < len(negatives)
        own = set(batch["label"][batch["anchors"]].tolist())
        assert len(batch["img"]) == anchors + (len(set(negatives) - own) if shared else len(negatives))
    assert repeated


def test_all_training_images_of_a_class_serve_as_negatives(make_cfg, coop_stage1):
    """Not always the first one."""
    trainer = ready(make_cfg, coop_stage1, "TRAINER.DPC.NEG_IMAGES", "pair", output="a")
    drawn = set()
    for trainer.train_loader_x.epoch in range(20):
        drawn |= {i for batch in trainer.train_loader_x for i in batch["negative_index"]}
    assert drawn == set(range(len(trainer.pool.dataset.data_source)))


@torch.no_grad()
def test_the_miner_ranks_by_p_whatever_has_become_of_p_prime(two_stages, make_cfg, images):
    name, opts, stage1 = two_stages
    trainer = build_trainer(make_cfg(f"DPC_{name}", *opts, output="mining"))
    trainer.load_stage1()
    before = trainer.miner_scores(images)[1]
    for p in trainer.model.learnable().values():
        p.add_(torch.randn_like(p))
    torch.testing.assert_close(trainer.miner_scores(images)[1], before, rtol=0, atol=0)
    assert not torch.allclose(trainer.model.eval()(images), before, atol=0.1)
    own = trainer.model.tuned(images)
    torch.testing.assert_close(before, own, rtol=1e-5, atol=1e-4)


def test_training_accuracy_is_that_of_the_anchors_among_the_classes_of_the_step(make_cfg, coop_stage1):
    trainer = ready(make_cfg, coop_stage1, output="a")
    batch = first_batch(trainer)
    terms = trainer.loss(*trainer.parse_batch_train(batch))
    model, anchors = trainer.model, batch["anchors"]
    with torch.no_grad():
        scores = (
            model.encode_images(batch["img"][: len(anchors)], model.tuned.emit())
            @ model.encode_classes(model.parallel.emit()).t()
        )
    shown = sorted(set(batch["label"].tolist()))
    right = [shown[int(row[shown].argmax())] == int(batch["label"][a]) for row, a in zip(scores, anchors)]
    assert float(terms["acc"]) == pytest.approx(100 * sum(right) / len(right))
    assert "acc" not in {k for k in terms if k.startswith("loss")} and not terms["acc"].requires_grad


def test_unique_batches_never_repeat_a_class(make_cfg, coop_stage1):
    opts = ["TRAINER.DPC.DUPLICATES", "unique", "DATALOADER.TRAIN_X.BATCH_SIZE", 3]
    trainer = ready(make_cfg, coop_stage1, *opts, output="a")
    for batch in trainer.train_loader_x:
        assert len(set(batch["label"].tolist())) == len(batch["label"])


def test_too_large_k_is_clamped_with_a_warning(make_cfg, coop_stage1, capsys):
    trainer = ready(make_cfg, coop_stage1, "TRAINER.DPC.TOPK", 50, output="a")
    assert trainer.topk == len(trainer.dm.dataset.classnames)
    assert capsys.readouterr().out.count("TOPK 50 exceeds the number of classes") == 1


def test_missing_stage_1_says_which_command_makes_it(make_cfg, coop_stage1, tmp_path):
    trainer = build_trainer(
        make_cfg("DPC_CoOp", *coop_stage1, "TRAINER.DPC.CKPT_DIR", str(tmp_path / "no"), output="a")
    )
    with pytest.raises(FileNotFoundError, match="finished run of CoOp.*--trainer CoOp .*scripts/dpc/base2new.sh"):
        trainer.train()
    empty = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, "TRAINER.DPC.CKPT_DIR", "", output="b"))
    with pytest.raises(ValueError, match="CKPT_DIR is empty.*--trainer CoOp "):
        empty.train()


def test_stage_1_of_other_classes_is_refused(make_cfg, coop_stage1):
    trainer = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, "DATASET.SUBSAMPLE_CLASSES", "new", output="a"))
    with pytest.raises(ValueError, match="train stage 1 on the same dataset and classes"):
        trainer.train()


def test_stage_1_of_another_shape_is_refused(make_cfg, coop_stage1):
    trainer = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, "TRAINER.COOP.N_CTX", 3, output="a"))
    with pytest.raises(ValueError, match="other shapes.*--trainer CoOp .*TRAINER.COOP.N_CTX 3"):
        trainer.train()


@pytest.mark.parametrize(
    "run, message",
    [
        ({}, None),  # of official code
        ({"trainer": "CoOp", "backbone": "ViT-B/16", "seed": 2, "shots": 4}, None),
        ({"trainer": "DPC_CoOp", "backbone": "ViT-B/16"}, "D is a run of DPC_CoOp, not of CoOp"),
        ({"trainer": "CoOp", "backbone": "RN50"}, "on the backbone RN50, this run has ViT-B/16"),
        ({"trainer": "CoOp", "backbone": "/weights/b16.pt", "digests": {"backbone": "own"}}, None),
        (
            {"trainer": "CoOp", "backbone": "ViT-B/16", "digests": {"backbone": "other"}},
            "other weights of the backbone",
        ),
    ],
)
def test_stage_1_must_be_of_the_backbone_method_and_clip(make_cfg, run, message):
    cfg = make_cfg("DPC_CoOp", "MODEL.BACKBONE.NAME", "ViT-B/16")
    if message is None:
        return check_run(run, "D", "CoOp", cfg, "own")
    with pytest.raises(ValueError, match=message):
        check_run(run, "D", "CoOp", cfg, "own")


@pytest.mark.parametrize(
    "run, shots, warned",
    [
        ({}, 16, []),
        ({"seed": 1, "shots": 16}, 16, []),
        ({"seed": 1, "shots": -1}, 0, []),
        ({"seed": 3, "shots": 16}, 16, ["seed 3"]),
        ({"seed": 2, "shots": 4}, 16, ["seed 2", "shots 4"]),
    ],
)
def test_stage_1_of_another_draw_is_used_with_a_warning(run, shots, warned, capsys):
    warn_of_other_draw(run, "D", 1, shots)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(warned) and all(text in line for text, line in zip(warned, lines))


def test_command_for_stage_1_has_the_data_and_the_shape_of_this_run(make_cfg):
    from dassl_prompts.train import parser, setup_cfg

    opts = ["DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", 4, "SEED", 3, "TRAINER.COOP.N_CTX", 3]
    cfg = make_cfg("DPC_CoOp", *opts)
    line = stage1_command(cfg, "CoOp", "COOP", {})
    made = setup_cfg(parser().parse_args(shlex.split(line)[3:]))
    assert made.TRAINER.NAME == "CoOp" and made.OUTPUT_DIR == "STAGE1_DIR" and made.SEED == 3
    assert made.DATASET == cfg.DATASET and made.INPUT == cfg.INPUT and made.MODEL.BACKBONE == cfg.MODEL.BACKBONE
    assert made.TRAINER.COOP.N_CTX == 3 and "CSC" not in line
    assert made.OPTIM.LR == 0.0035  # of the recipe, not of stage 2
    own = stage1_command(cfg, "Mine", "COOP", {"DATASET.NUM_SHOTS": 0})
    assert "--config-file" not in own and "DATASET.NUM_SHOTS 0" in own


def test_wrong_stage_1_is_refused_with_the_command_and_another_seed_warned_of(make_cfg, coop_stage1, tmp_path, capsys):
    results = tmp_path / "stage1" / "results.json"
    trainer = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, output="a"))
    results.write_text(results.read_text().replace('"seed": 1', '"seed": 9'))
    trainer.load_stage1(to_train=True)
    assert "was trained with seed 9, stage 2 wants seed 1" in capsys.readouterr().out
    results.write_text(results.read_text().replace('"trainer": "CoOp"', '"trainer": "CoCoOp"'))
    with pytest.raises(
        ValueError, match="is a run of CoCoOp, not of CoOp.*`python -m dassl_prompts.train --trainer CoOp"
    ):
        trainer.load_stage1()


def test_released_checkpoint_holds_p_prime_alone_and_finds_p_in_stage_1(make_cfg, coop_stage1, tmp_path, images):
    trainer = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, output="a"))
    trainer.load_stage1()
    theta = trainer.model.tuned.prompt_learner.ctx + 0.1
    folder = tmp_path / "official" / "prompt_learner"
    folder.mkdir(parents=True)
    torch.save(
        {"state_dict": {"ctx": theta, "token_prefix": torch.zeros(2, 1, 128)}, "epoch": 20}, folder / "model.pth.tar-20"
    )
    for classes in ("base", "new"):  # stage 1 has the base classes in both
        opts = [*coop_stage1, "DATASET.SUBSAMPLE_CLASSES", classes]
        fresh = build_trainer(make_cfg("DPC_CoOp", *opts, output=f"b_{classes}"))
        fresh.load_model(str(tmp_path / "official"))
        assert torch.equal(fresh.model.parallel.prompt_learner.ctx, theta)
        assert torch.equal(fresh.model.tuned.prompt_learner.ctx, trainer.model.tuned.prompt_learner.ctx)
    assert torch.equal(fresh.model.emit().text, trainer.model.tuned.prompt_learner.ctx)


def test_all_classes_of_another_dataset_use_the_new_weighting(make_cfg, coop_stage1, train, tmp_path):
    everything = ["DATASET.SUBSAMPLE_CLASSES", "all"]
    train("CoOp", *BACKBONES["CoOp"], output="all1")
    train("DPC_CoOp", *coop_stage1, *everything, "TRAINER.DPC.CKPT_DIR", str(tmp_path / "all1"), output="all2")
    own = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, *everything, output="own"))
    own.load_model(str(tmp_path / "all2"))
    assert own.model.task == "base"
    results = tmp_path / "all2" / "results.json"
    results.write_text(results.read_text().replace('"dataset": "ToyColours"', '"dataset": "ImageNet"'))
    other = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, *everything, output="other"))
    other.load_model(str(tmp_path / "all2"))
    assert other.model.task == "new"
    kept = build_trainer(
        make_cfg("DPC_CoOp", *coop_stage1, *everything, "TRAINER.DPC.XD_RULE", "parallel", output="kept")
    )
    kept.load_model(str(tmp_path / "all2"))
    assert kept.model.task == "base"


def test_released_checkpoint_on_all_classes_of_another_dataset_is_weighted_as_new(
    make_cfg, coop_stage1, train, tmp_path, images
):
    """It has no results.json: the dataset of its stage 1 counts, and where that is unknown, too, nobody guesses."""
    everything = ["DATASET.SUBSAMPLE_CLASSES", "all"]
    train("CoOp", *BACKBONES["CoOp"], output="all1")
    folder = tmp_path / "released" / "prompt_learner"
    folder.mkdir(parents=True)
    opts = [*coop_stage1, *everything, "TRAINER.DPC.CKPT_DIR", str(tmp_path / "all1")]
    stage1 = build_trainer(make_cfg("CoOp", *BACKBONES["CoOp"], *everything, output="plain"))
    stage1.load_model(str(tmp_path / "all1"))
    torch.save(
        {"state_dict": {"ctx": stage1.model.prompt_learner.ctx.detach() + 0.3}, "epoch": 20},
        folder / "model.pth.tar-20",
    )

    def loaded(*more, output):
        trainer = build_trainer(make_cfg("DPC_CoOp", *opts, *more, output=output))
        trainer.load_model(str(tmp_path / "released"))
        return trainer

    assert loaded(output="own").model.task == "base"
    results = tmp_path / "all1" / "results.json"
    results.write_text(results.read_text().replace('"dataset": "ToyColours"', '"dataset": "ImageNet"'))
    assert torch.equal(logits(loaded(output="other"), images), logits(stage1, images))
    results.unlink()
    with pytest.raises(ValueError, match="does not say which dataset.*TRAINER.DPC.TASK base or new"):
        loaded(output="nobody")
    assert loaded("TRAINER.DPC.TASK", "new", output="told").model.task == "new"


def test_deep_noise_restarts_deep_prompts_only(make_cfg, train, tmp_path):
    train("IVLP", *BACKBONES["IVLP"], "DATASET.SUBSAMPLE_CLASSES", "base", output="stage1")
    opts = [*BACKBONES["IVLP"], "DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.DPC.CKPT_DIR", str(tmp_path / "stage1")]
    for how, same in (("clone", True), ("noise", False)):
        trainer = build_trainer(make_cfg("DPC_IVLP", *opts, "TRAINER.DPC.DEEP_INIT", how, output=how))
        trainer.load_stage1()
        ours, tuned = trainer.model.parallel.emit(), trainer.model.tuned.emit()
        assert torch.equal(ours.text, tuned.text) and torch.equal(ours.vision, tuned.vision)
        for a, b in zip((*ours.text_deep, *ours.vision_deep), (*tuned.text_deep, *tuned.vision_deep)):
            assert torch.equal(a, b) == same


@pytest.mark.parametrize("bn", ["frozen", "train"])
def test_projector_statistics(make_cfg, train, teacher_file, teacher_clip, tmp_path, bn):
    opts = [*BACKBONES["PromptKD"], *teacher_options(teacher_file, teacher_clip, tmp_path)]
    train("PromptKD", *opts, output="stage1")
    dpc = train(
        "DPC_PromptKD",
        *opts,
        "DATASET.SUBSAMPLE_CLASSES",
        "base",
        "TRAINER.DPC.CKPT_DIR",
        str(tmp_path / "stage1"),
        "TRAINER.DPC.TOPK",
        3,
        "TRAINER.DPC.PROJECTOR_BN",
        bn,
        output="stage2",
    )
    ours, stage1 = (net.VPT_image_trans.conv1[1].running_mean for net in (dpc.model.parallel, dpc.model.tuned))
    assert torch.equal(ours, stage1) == (bn == "frozen")


def test_any_classification_trainer_can_be_a_backbone():
    from dassl_prompts.trainers.dpc.combinations import DPC_IVLP, DPC_CoPrompt

    for trainer, own in ((DPC_CoPrompt, {"backbone"}), (DPC_IVLP, {"backbone", "frozen_image_side"})):
        assert issubclass(trainer, DPC) and {k for k in vars(trainer) if not k.startswith("_")} == own
