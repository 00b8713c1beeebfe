"""The register of disagreements between DPC's paper and its released code (docs/dpc.md): every switch does what its row says.

Rows whose effect is tested elsewhere: D2 and D3 (semantics of training), D9 (loss), D10, D13, D17, D24 in test_dpc.py, D14 and
MaPLe's mixing in tests/trainers/dpc/test_dual.py, the sampler's own rules in tests/trainers/dpc/test_negatives.py. One file: it is
read beside the page's table, row by row.
"""

import json
import random
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml

from dassl_prompts.engine import build_trainer, load_checkpoint
from dassl_prompts.trainers.promptkd.trainer import distillation_loss
from dassl_prompts.trainers.promptsrc import consistency_losses
from tests.conftest import ROOT
from tests.trainers import plain
from tests.trainers.dpc.test_dpc import BACKBONES, PLAIN_SGD, coop_stage1, first_batch, ready, steps  # noqa: F401
from tests.trainers.test_backbone_runs import METHODS, teacher_options

BASE = ["DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.DPC.TOPK", 3]


@pytest.fixture
def kd_stage1(train, teacher_file, teacher_clip, tmp_path):
    opts = [*METHODS["PromptKD"][0], *teacher_options(teacher_file, teacher_clip, tmp_path)]
    train("PromptKD", *opts, output="stage1")
    return [*opts, *BASE, "TRAINER.DPC.CKPT_DIR", str(tmp_path / "stage1")]


@pytest.fixture
def src_stage1(train, tmp_path):
    train("PromptSRC", *BACKBONES["PromptSRC"], "DATASET.SUBSAMPLE_CLASSES", "base", output="stage1")
    return [*BACKBONES["PromptSRC"], *BASE, "TRAINER.DPC.CKPT_DIR", str(tmp_path / "stage1")]


def make(make_cfg, name, opts, *more, output):
    """A DPC trainer with P loaded and its mined loader made."""
    trainer = build_trainer(make_cfg(name, *opts, *more, output=output))
    trainer.load_stage1()
    trainer.train_loader_x = trainer.mined_loader()
    trainer.set_model_mode("train")
    return trainer


def moved(trainer):
    """P' away from P."""
    with torch.no_grad():
        for p in trainer.model.learnable().values():
            p.add_(0.1 * torch.randn_like(p))
    return trainer.model


# -- D1 to D5: prompts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opts, weight",
    [
        ([], 1.0),
        (["TRAINER.DPC.OMEGA_B", 0.7], 0.7),
        (["TRAINER.DPC.PRESET", "mixture"], 0.2),
        (["TRAINER.DPC.PRESET", "mixture", "TRAINER.DPC.OMEGA_B", 0.6], 0.6),
        (["TRAINER.DPC.PRESET", "released"], 1.0),
        (["TRAINER.DPC.TASK", "new"], 0.0),
        (["TRAINER.DPC.TASK", "new", "TRAINER.DPC.OMEGA_N", 0.3], 0.3),
    ],
)
def test_d1_d4_d5_weight_of_p_prime_at_inference(make_cfg, coop_stage1, opts, weight):
    model = moved(ready(make_cfg, coop_stage1, *opts, output="a"))
    wanted = weight * model.parallel.prompt_learner.ctx + (1 - weight) * model.tuned.prompt_learner.ctx
    torch.testing.assert_close(model.emit().text, wanted, rtol=0, atol=1e-7)


def test_d2_gradient_scale(make_cfg, coop_stage1):
    one = ready(make_cfg, coop_stage1, *PLAIN_SGD, "TRAINER.DPC.GRAD_SCALE", 1.0, output="a")
    three = ready(make_cfg, coop_stage1, *PLAIN_SGD, "TRAINER.DPC.GRAD_SCALE", 3.0, output="b")
    start = one.model.tuned.prompt_learner.ctx.detach()
    torch.testing.assert_close(steps(three, 1) - start, 3 * (steps(one, 1) - start), rtol=1e-3, atol=1e-7)


def test_d2_released_promptkd_scales_the_first_text_layer_alone(make_cfg, kd_stage1):
    """The released code divides by omega_b where it mixes: the layer-0 text context (specs/dpc.md 4.10)."""
    trainer = make(make_cfg, "DPC_PromptKD", kd_stage1, "TRAINER.DPC.PRESET", "released", output="a")
    leaves, batch = trainer.model.learnable(), first_batch(trainer)

    def gradients():
        loss = trainer.loss(*trainer.parse_batch_train(batch))["loss"]
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values()))))

    scaled = gradients()
    for leaf in leaves.values():
        (leaf._backward_hooks or {}).clear()
    for name, own in gradients().items():
        assert own.abs().max() > 0, name
        factor = 5.0 if name == "prompt_learner.ctx" else 1.0
        torch.testing.assert_close(scaled[name], factor * own, rtol=1e-4, atol=1e-7, msg=name)
    kinds = ("prompt_learner.ctx", "image_encoder.VPT", "image_encoder.transformer", "text_encoder", "VPT_image_trans")
    assert all(any(name.startswith(kind) for name in leaves) for kind in kinds)


def test_d5_released_promptkd_mixes_no_text_on_new_classes(make_cfg, kd_stage1):
    opts = ["TRAINER.DPC.PRESET", "released", "TRAINER.DPC.TASK", "new", "TRAINER.DPC.OMEGA_N", 0.2]
    model = moved(make(make_cfg, "DPC_PromptKD", kd_stage1, *opts, output="a"))
    ours, teacher = model.emit(), model.tuned.teacher.emit()
    assert torch.equal(ours.text, teacher.text) and not torch.equal(ours.vision, model.tuned.image_encoder.VPT)
    assert all(torch.equal(a, b) for a, b in zip(ours.text_deep, teacher.text_deep))


def test_theta_of_the_text_scope_loads_under_another_scope(make_cfg, kd_stage1):
    mixed = ["TRAINER.DPC.OMEGA_B", 0.2, "TRAINER.DPC.PARAM", "mixed", "TRAINER.DPC.MIX_SCOPE", "text"]
    theta = make(make_cfg, "DPC_PromptKD", kd_stage1, *mixed, output="theta")
    saved = moved(theta)
    other = build_trainer(make_cfg("DPC_PromptKD", *kd_stage1, output="other"))
    other.load_state(other.model, theta.learned_state("", saved.checkpoint_module), "theta")
    wanted, got = saved.parallel_leaves(), other.model.parallel_leaves()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_d4_no_recipe_takes_a_step_size_for_a_weight():
    for path in (ROOT / "configs/trainers").glob("DPC_*/*.yaml"):
        node = yaml.safe_load(path.read_text())["TRAINER"]["DPC"]
        assert node["OMEGA_N"] == 0.0 and "OMEGA_B" not in node, path  # the weight is the preset's
        assert node["PRESET"] == ("released" if path.stem.endswith("_released") else "full_move"), path
        # what the released file of that name calls omega_b 0.5 is the step size 1 / 0.5
        half = path.parent.name == "DPC_CoOp" and path.stem.endswith(("_lr35", "_bs16top2", "_bs2top2"))
        assert node.get("GRAD_SCALE") == (2.0 if half else None), path


def test_class_matrix_follows_the_weights_and_the_task(make_cfg, coop_stage1):
    """It is kept between batches; another omega or task must not meet the old one."""
    model = moved(ready(make_cfg, coop_stage1, "TRAINER.DPC.OMEGA_B", 0.2, output="a")).eval()
    seen = [model.class_features()]
    for name, value in (("omega_b", 0.9), ("omega_b", 1.0), ("task", "new"), ("omega_n", 0.4)):
        setattr(model, name, value)
        seen.append(model.class_features())
        assert torch.equal(seen[-1], model.encode_classes(model.emit()))
        assert not torch.equal(seen[-1], seen[-2]), name


def test_theta_gives_p_prime_back_whatever_omega_is_at_inference(train, make_cfg, coop_stage1, tmp_path):
    theta = ["TRAINER.DPC.PARAM", "mixed", "TRAINER.DPC.OMEGA_B", 0.2]
    trained = train("DPC_CoOp", *coop_stage1, *theta, output="theta")
    p_prime = trained.model.parallel_prompts().text
    for opts in (["TRAINER.DPC.PARAM", "mixed"], []):
        other = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, *opts, "TRAINER.DPC.OMEGA_B", 0.5, output="other"))
        other.load_model(str(tmp_path / "theta"))
        assert torch.equal(other.model.parallel_prompts().text, p_prime)
        wanted = 0.5 * p_prime + 0.5 * trained.model.tuned.prompt_learner.ctx
        torch.testing.assert_close(other.model.emit().text, wanted, rtol=0, atol=1e-7)


# -- D6 to D8: the sampler ------------------------------------------------------------------------------------------


@torch.no_grad()
def test_d6_miner(make_cfg, kd_stage1, images, teacher_clip):
    scores = {}
    for miner in ("tuned", "teacher", "teacher_untuned"):
        trainer = make(make_cfg, "DPC_PromptKD", kd_stage1, "TRAINER.DPC.MINER", miner, output=miner)
        tuned = trainer.model.tuned
        tuned.teacher.prompt_learner.ctx.add_(torch.randn(4, 192, generator=torch.Generator().manual_seed(0)))
        prompts = tuned.teacher.emit()
        image = tuned.teacher.encode_images(images, prompts)
        if miner == "tuned":
            wanted = tuned(images)
        elif miner == "teacher":
            wanted = 100 * image @ tuned.teacher.encode_classes(prompts).t()
        else:
            names = [n.replace("_", " ") for n in trainer.dm.dataset.classnames]
            state = plain.openai_state(embed=96, text_width=192, vision_width=256, vision_layers=5, seed=1)
            words = teacher_clip.text.embed_words("a photo of a")
            tokens = teacher_clip.tokenize([f"X X X X {n}." for n in names])
            wanted = 100 * image @ plain.text_features(state, tokens, words, prompts.text_deep).t()
        scores[miner] = trainer.miner_scores(images)[1]
        torch.testing.assert_close(scores[miner], wanted, rtol=1e-4, atol=2e-3)
    assert not torch.allclose(scores["teacher"], scores["teacher_untuned"], atol=0.05)


def mined(trainer, scores, labels, rng=None):
    """Negatives of ``trainer.mine`` for given scores."""
    trainer.miner_scores = lambda images: (None, scores)
    return trainer.mine(torch.zeros(len(labels), 3, 32, 32), labels, rng or random.Random(0))[0]


@pytest.mark.parametrize(
    "opts, wanted",
    [
        ([], [[3, 2], [3, 2]]),  # the note's: K - 1 each
        (["TRAINER.DPC.NEG_DEDUP", "step"], [[3, 2], []]),  # at most K - 1, none twice in the step
        (
            ["TRAINER.DPC.NEG_DEDUP", "step", "TRAINER.DPC.NEG_CAP", "k"],
            [[3, 2, 1], []],
        ),  # the truth is not among the K best of the first anchor
    ],
)
def test_d7_number_of_negatives(make_cfg, coop_stage1, opts, wanted):
    trainer = ready(make_cfg, coop_stage1, *opts, output="a")
    assert trainer.topk == 3 and len(trainer.model.classnames) == 4
    scores = torch.tensor([[0.0, 1, 2, 3], [5.0, 1, 2, 3]])
    assert mined(trainer, scores, [0, 0]) == wanted


@pytest.mark.parametrize("fill_range, reached", [("all", {1, 2, 3}), ("official", {1, 2})])
def test_d7_d8_random_fill_and_its_range(make_cfg, coop_stage1, fill_range, reached):
    """K = 1 leaves no negative, so all are drawn; the anchor is of class 0, CoOp's released code draws 1 .. C - 2."""
    opts = ["TRAINER.DPC.TOPK", 1, "TRAINER.DPC.NEG_MIN_FILL", 2, "TRAINER.DPC.NEG_FILL_RANGE", fill_range]
    trainer = ready(make_cfg, coop_stage1, *opts, output="a")
    draws = [mined(trainer, torch.tensor([[3.0, 2, 1, 0]]), [0], random.Random(i))[0] for i in range(60)]
    assert {c for draw in draws for c in draw} == reached and max(map(len, draws)) == 2


def test_d8_promptkd_draws_the_last_class_but_not_the_first(make_cfg, kd_stage1):
    trainer = make(
        make_cfg, "DPC_PromptKD", kd_stage1, "TRAINER.DPC.PRESET", "released", "TRAINER.DPC.TOPK", 1, output="a"
    )
    draws = [mined(trainer, torch.tensor([[0.0, 1, 2, 3]]), [3], random.Random(i))[0] for i in range(60)]
    assert {c for draw in draws for c in draw} == {1, 2}
    draws = [mined(trainer, torch.tensor([[0.0, 3, 2, 1]]), [1], random.Random(i))[0] for i in range(60)]
    assert {c for draw in draws for c in draw} == {2, 3}


# -- D9, D11, D12: the objective -------------------------------------------------------------------------------------


def test_d9_duplicate_policies_reach_the_step(make_cfg, coop_stage1):
    losses = {}
    for how in ("official", "mask", "multipos"):
        trainer = ready(make_cfg, coop_stage1, "TRAINER.DPC.DUPLICATES", how, output=how)
        batch = first_batch(trainer)
        assert len(set(batch["label"].tolist())) < len(batch["label"])
        losses[how] = float(trainer.loss(*trainer.parse_batch_train(batch))["loss"].detach())
    assert len({round(v, 5) for v in losses.values()}) == 3 and losses["official"] > losses["multipos"]


def test_similarities_stay_fp32_under_autocast():
    from dassl_prompts.trainers.dpc.combinations import symmetric_contrastive

    images, texts = (F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(i)), dim=1) for i in (0, 1))
    args = images, texts, torch.tensor([0, 1, 2, 0, 3, 4]), torch.tensor(100.0)
    for how in ("official", "mask", "multipos"):
        exact = symmetric_contrastive(*args, how)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(symmetric_contrastive(*args, how), exact, rtol=0, atol=0)


def test_d11_backbone_losses_by_default(make_cfg, coop_stage1, tmp_path):
    trainer = ready(make_cfg, coop_stage1, output="a")
    assert trainer.loss(*trainer.parse_batch_train(first_batch(trainer))).keys() == {"loss", "loss_cl", "acc"}
    weighted = ["TRAINER.DPC.LOSS.CE_W", 0.5, "TRAINER.DPC.LOSS.CL_W", 2.0]
    both = ready(make_cfg, coop_stage1, *weighted, output="b")
    batch = first_batch(both)
    images, labels = both.parse_batch_train(batch)
    terms = both.loss(images, labels)
    model = both.model
    with torch.no_grad():
        features = model.encode_images(images, model.tuned.emit())[batch["rows"]]
        z = 100 * features @ model.encode_classes(model.parallel.emit()).t()
        torch.testing.assert_close(terms["loss_ce"], 0.5 * F.cross_entropy(z, labels), rtol=1e-4, atol=1e-5)
        s, n = z[:, labels], torch.arange(len(labels))
        contrast = F.cross_entropy(s, n) + F.cross_entropy(s.t(), n)
        torch.testing.assert_close(terms["loss_cl"], contrast, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(terms["loss"], terms["loss_ce"] + terms["loss_cl"])


def test_d11_promptsrc_keeps_its_consistency_terms_on_the_anchors(make_cfg, src_stage1):
    trainer = make(make_cfg, "DPC_PromptSRC", src_stage1, output="a")
    model = moved(trainer)
    batch = first_batch(trainer)
    terms = trainer.loss(*trainer.parse_batch_train(batch))
    assert terms.keys() == {"loss", "loss_cl", "loss_scl", "acc"}
    with torch.no_grad():
        prompts, anchors = model.parallel.emit(), batch["img"][: len(batch["anchors"])]
        d_text, d_image, kl = consistency_losses(
            model.encode_images(anchors, prompts),
            model.encode_classes(prompts),
            F.normalize(model.clip.encode_image(anchors), dim=-1),
            model.tuned.text_target,
            model.scale,
        )
    torch.testing.assert_close(terms["loss_scl"], 25 * d_text + 10 * d_image + kl, rtol=1e-4, atol=1e-5)
    official = make(make_cfg, "DPC_PromptSRC", src_stage1, "TRAINER.DPC.PRESET", "released", output="b")
    assert official.loss(*official.parse_batch_train(first_batch(official))).keys() == {"loss", "loss_cl", "acc"}


def test_d11_d12_promptkd_drops_the_distillation_unless_weighted(make_cfg, kd_stage1):
    trainer = make(make_cfg, "DPC_PromptKD", kd_stage1, output="a")
    assert trainer.loss(*trainer.parse_batch_train(first_batch(trainer))).keys() == {"loss", "loss_cl", "acc"}
    kept = make(make_cfg, "DPC_PromptKD", kd_stage1, "TRAINER.DPC.LOSS.KD_W", 0.5, output="b")
    model = moved(kept)
    batch = first_batch(kept)
    terms = kept.loss(*kept.parse_batch_train(batch))
    with torch.no_grad():
        prompts, teacher = model.parallel.emit(), model.tuned.teacher
        anchors = batch["img"][: len(batch["anchors"])]
        z = model.scale * model.parallel.encode_images(anchors, prompts) @ model.parallel.encode_classes(prompts).t()
        wanted = 0.5 * 1000 * distillation_loss(z, teacher(anchors))
    torch.testing.assert_close(terms["loss_kd"], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("DPC_CoOp", "LOSS.KD_W", 1.0),
        ("DPC_MaPLe", "LOSS.SCL_W", 1.0),
        ("DPC_PromptKD", "LOSS.SCL_W", 1.0),
        ("DPC_PromptSRC", "LOSS.KD_W", 1.0),
        ("DPC_IVLP", "GPA", True),
        ("DPC_PromptSRC", "MINER", "teacher"),
        ("DPC_CoOp", "PROJECTOR_BN", "train"),
        ("DPC_IVLP", "MAPLE_MIX", "leaves"),
    ],
)
def test_what_a_backbone_does_not_have_is_refused_at_once(make_cfg, name, key, value):
    with pytest.raises(
        ValueError, match=f"TRAINER.DPC.{key} asks for something that the backbone {name[4:]} does not have"
    ):
        build_trainer(make_cfg(name, f"TRAINER.DPC.{key}", value))


def test_nothing_to_train_on_is_refused_at_once(make_cfg):
    with pytest.raises(ValueError, match="all weights under TRAINER.DPC.LOSS are 0"):
        build_trainer(make_cfg("DPC_CoOp", "TRAINER.DPC.LOSS.CL_W", 0.0))


# -- D13, D14, D21: what the released PromptKD code does -------------------------------------------------------------------


def test_released_preset_of_promptkd(make_cfg, kd_stage1):
    trainer = make(make_cfg, "DPC_PromptKD", kd_stage1, "TRAINER.DPC.PRESET", "released", output="a")
    s, model = trainer.dpc, trainer.model
    assert (s.miner, s.mix_scope, s.deep_init, s.neg_transform, s.projector_bn, s.xd_rule, s.grad_scale) == (
        "teacher_untuned",
        "text",
        "noise",
        "test",
        "train",
        "parallel",
        5.0,
    )
    ours, tuned = model.parallel.emit(), model.tuned.emit()
    assert torch.equal(ours.text, tuned.text) and torch.equal(ours.vision, tuned.vision)
    for a, b in zip((*ours.text_deep, *ours.vision_deep), (*tuned.text_deep, *tuned.vision_deep)):
        assert not torch.equal(a, b) and 0.01 < float(a.detach().std()) < 0.03
    assert model.parallel.VPT_image_trans.conv1[1].training and not model.tuned.VPT_image_trans.conv1[1].training


def test_p_stays_in_evaluation_mode(make_cfg, kd_stage1):
    model = build_trainer(
        make_cfg("DPC_PromptKD", *kd_stage1, "TRAINER.DPC.PROJECTOR_BN", "train", output="a")
    ).model.train()
    batch_norms = [net.VPT_image_trans.conv1[1].training for net in (model.parallel, model.tuned)]
    assert batch_norms == [True, False]


def test_released_promptkd_checkpoint_loads(train, make_cfg, kd_stage1, tmp_path):
    """It names the deep text prompts twice and does not hold P."""
    trainer = make(make_cfg, "DPC_PromptKD", kd_stage1, output="a")
    moved(trainer)
    parallel = trainer.model.checkpoint_module
    state = {n: t.detach().clone() for n, t in parallel.state_dict().items() if not n.startswith(("clip.", "teacher."))}
    state |= {f"prompt_learner.{n}": t for n, t in state.items() if n.startswith("text_encoder.")}
    folder = tmp_path / "released" / "VLPromptLearner"
    folder.mkdir(parents=True)
    torch.save({"state_dict": state, "epoch": 20}, folder / "model.pth.tar-20")
    fresh = build_trainer(make_cfg("DPC_PromptKD", *kd_stage1, output="b"))
    fresh.load_model(str(tmp_path / "released"))
    for name, p in fresh.model.learnable().items():
        assert torch.equal(p, trainer.model.learnable()[name]), name
    assert torch.equal(fresh.model.tuned.image_encoder.VPT, trainer.model.tuned.image_encoder.VPT)


# -- D15, D16: images of negatives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform, random_view", [("train", True), ("test", False)])
def test_d15_augmentation_of_negatives(make_cfg, coop_stage1, transform, random_view):
    trainer = ready(make_cfg, coop_stage1, "TRAINER.DPC.NEG_TRANSFORM", transform, output="a")
    first, second = trainer.pool.submit([0, 0], [1, 2])()
    assert torch.equal(first, second) != random_view


def test_d16_source_of_negatives(make_cfg, coop_stage1, monkeypatch, tmp_path):
    asked = []

    def whole_split(cfg):
        asked.append((cfg.DATASET.NUM_SHOTS, cfg.DATASET.SUBSAMPLE_CLASSES))
        return SimpleNamespace(train_x=["the whole split"])

    monkeypatch.setattr("dassl_prompts.trainers.dpc.mining.build_dataset", whole_split)
    shots = ready(make_cfg, coop_stage1, output="a")
    assert shots.negative_items() is shots.dm.dataset.train_x and not asked
    monkeypatch.setattr(shots, "dpc", SimpleNamespace(neg_json="", neg_pool="full_train"))
    assert shots.negative_items() == ["the whole split"] and asked == [(-1, "base")]

    train_x, names = shots.dm.dataset.train_x, shots.dm.dataset.classnames
    first = {name: next(d.impath for d in train_x if d.label == i) for i, name in enumerate(names)}
    table = {name: [0, [path.rsplit("/", 1)[-1]]] for name, path in first.items()}
    (tmp_path / "SPLE_Toy.json").write_text(json.dumps({"train": [table]}))
    annotated = ready(make_cfg, coop_stage1, "TRAINER.DPC.NEG_JSON", str(tmp_path / "SPLE_Toy.json"), output="b")
    assert [d.impath for d in annotated.pool.dataset.data_source] == list(first.values())


# -- D19, D22: which weights count ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("select, split", [("last", None), ("val", "val"), ("official_test", "test")])
def test_d19_selection(train, make_cfg, coop_stage1, select, split, monkeypatch, capsys, tmp_path):
    from dassl_prompts.engine.trainer import PromptTrainer

    tested, original = [], PromptTrainer.test
    monkeypatch.setattr(PromptTrainer, "test", lambda self, split=None: tested.append(split) or original(self, split))
    train("DPC_CoOp", *coop_stage1, "TRAINER.DPC.SELECT", select, output="stage2")
    assert tested == ([split] * 2 if split else []) + [None]
    assert ("chooses the epoch on the *test* set" in capsys.readouterr().out) == (select == "official_test")
    assert (tmp_path / "stage2" / "prompt_learner" / "model-best.pth.tar").exists() == (select != "last")


@pytest.mark.parametrize("name, gpa", [("DPC_PromptSRC", True), ("DPC_PromptSRC", False), ("PromptSRC", True)])
def test_d22_average_over_epochs(train, make_cfg, src_stage1, monkeypatch, name, gpa, tmp_path):
    """The last checkpoint is sum_e w_e P'_e of the prompts after each epoch, in stage 1 always, in stage 2 on request."""
    import math

    from dassl_prompts.trainers.promptsrc import GaussianAggregation

    seen, original = [], GaussianAggregation.add

    def note(self, epoch, tensors):
        seen.append({n: t.detach().clone() for n, t in tensors.items()})
        original(self, epoch, tensors)

    monkeypatch.setattr(GaussianAggregation, "add", note)
    switch = ["TRAINER.DPC.GPA", gpa] if name == "DPC_PromptSRC" else []
    trainer = train(name, *src_stage1, *switch, "OPTIM.MAX_EPOCH", 3, output="averaged")
    assert len(seen) == (3 if gpa else 0)
    if gpa:
        raw = [math.exp(-((e - 2) ** 2) / 2) for e in (1, 2, 3)]  # GPA_MEAN 2, GPA_STD 1
        saved = load_checkpoint(tmp_path / "averaged" / "VLPromptLearner" / "model.pth.tar-3")["state_dict"]
        for key in seen[0]:
            wanted = sum(w / sum(raw) * s[key] for w, s in zip(raw, seen))
            torch.testing.assert_close(saved[key], wanted, rtol=1e-5, atol=1e-7)
            assert not torch.equal(saved[key], seen[-1][key])
    assert trainer.epoch == 2


# -- stage 1 and resume -----------------------------------------------------------------------------------------------------


def test_stage_1_with_more_layers_is_refused(make_cfg, train, tmp_path):
    """Its deep prompts would be left out without a word."""
    train("MaPLe", *BACKBONES["MaPLe"], "DATASET.SUBSAMPLE_CLASSES", "base", output="stage1")
    shallow = ["TRAINER.MAPLE.PROMPT_DEPTH", 2, *BASE, "TRAINER.DPC.CKPT_DIR", str(tmp_path / "stage1")]
    trainer = build_trainer(make_cfg("DPC_MaPLe", *shallow, output="a"))
    with pytest.raises(ValueError, match="stage 1 in .* no place for.*PROMPT_DEPTH"):
        trainer.train()


def test_one_base_class_is_refused_but_one_new_class_is_scored(make_cfg, train, coop_stage1, monkeypatch, tmp_path):
    train("DPC_CoOp", *coop_stage1, output="stage2")
    single = plain.CLASSES[:1]
    monkeypatch.setattr("tests.trainers.conftest.plain.CLASSES", single)
    everything = ["DATASET.SUBSAMPLE_CLASSES", "all", "DATALOADER.TRAIN_X.BATCH_SIZE", 2]
    one = build_trainer(make_cfg("DPC_CoOp", *coop_stage1, *everything, output="one"))
    with pytest.raises(ValueError, match="contrasts classes with each other"):
        one.mined_loader()
    one.load_model(str(tmp_path / "stage2"))
    assert one.test() == 100.0


def test_a_resumed_second_stage_equals_an_uninterrupted_one(train, make_cfg, coop_stage1, monkeypatch, tmp_path):
    from dassl_prompts.engine import set_random_seed

    opts = [*coop_stage1, "OPTIM.MAX_EPOCH", 3]
    train("DPC_CoOp", *opts, output="whole")
    set_random_seed(1)
    first = build_trainer(make_cfg("DPC_CoOp", *opts, output="parts"))
    before_epoch = first.before_epoch

    def stop():
        if first.epoch == 2:
            raise KeyboardInterrupt
        before_epoch()

    monkeypatch.setattr(first, "before_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        first.train()
    train("DPC_CoOp", *opts, output="parts")
    a, b = (
        load_checkpoint(tmp_path / run / "prompt_learner" / "model.pth.tar-3")["state_dict"]
        for run in ("whole", "parts")
    )
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# -- defaults -------------------------------------------------------------------------------------------------------------

DEFAULTS = {
    "PRESET": "full_move",
    "CKPT_DIR": "",
    "CKPT_EPOCH": -1,
    "OMEGA_B": -1.0,
    "OMEGA_N": 0.0,
    "TOPK": 8,
    "PARAM": "preset",
    "GRAD_SCALE": -1.0,
    "TRAIN_FORWARD": "preset",
    "MIX_SCOPE": "preset",
    "NEW_TEXT": "preset",
    "MAPLE_MIX": "tokens",
    "DEEP_INIT": "preset",
    "MINER": "preset",
    "NEG_POOL": "shots",
    "NEG_JSON": "",
    "NEG_TRANSFORM": "preset",
    "NEG_CAP": "preset",
    "NEG_DEDUP": "preset",
    "NEG_IMAGES": "preset",
    "NEG_MIN_FILL": -1,
    "NEG_FILL_RANGE": "preset",
    "DUPLICATES": "official",
    "LOSS": {"CL_W": 1.0, "CE_W": 0.0, "SCL_W": -1.0, "KD_W": 0.0},
    "GPA": False,
    "PROJECTOR_BN": "preset",
    "XD_RULE": "preset",
    "TASK": "auto",
    "UNION": "gate",
    "SELECT": "last",
}
#: what the presets choose, in the order of the columns
COLUMNS = (
    "omega_b grad_scale train_forward neg_cap neg_dedup neg_images neg_min_fill neg_fill_range neg_transform".split()
)
NOTE = ("k-1", "none", "class", 0, "all", "train")
CODE = ("k", "step", "pair", 2, "official", "train")
CHOSEN = {
    ("full_move", "DPC_CoOp"): (1.0, 5.0, "parallel", *NOTE),
    ("full_move", "DPC_MaPLe"): (1.0, 5.0, "parallel", *NOTE),
    ("full_move", "DPC_PromptKD"): (1.0, 5.0, "parallel", *NOTE),
    ("mixture", "DPC_PromptSRC"): (0.2, 1.0, "parallel", *NOTE),
    ("mixture", "DPC_MaPLe"): (1.0, 1.0, "parallel", *NOTE),
    ("through_mixture", "DPC_IVLP"): (0.2, 1.0, "mixed", *NOTE),
    ("through_mixture", "DPC_MaPLe"): (1.0, 1.0, "mixed", *NOTE),
    ("released", "DPC_CoOp"): (1.0, 5.0, "parallel", *CODE),
    ("released", "DPC_MaPLe"): (1.0, 1.0, "parallel", *CODE),
    ("released", "DPC_PromptKD"): (1.0, 5.0, "parallel", *CODE[:-1], "test"),
}


def test_defaults_are_those_of_the_page(make_cfg):
    assert dict(make_cfg("DPC_CoOp").TRAINER.DPC) == DEFAULTS


@pytest.mark.parametrize("preset, name", CHOSEN)
def test_what_a_preset_chooses(make_cfg, preset, name):
    from dassl_prompts.engine import TRAINER_REGISTRY

    s = TRAINER_REGISTRY.get(name).settings(make_cfg(name, "TRAINER.DPC.PRESET", preset))
    assert tuple(getattr(s, column) for column in COLUMNS) == CHOSEN[preset, name]
    code = preset == "released" and name == "DPC_PromptKD"
    assert (s.mix_scope, s.new_text, s.deep_init, s.miner, s.xd_rule) == (
        ("text", "tuned", "noise", "teacher_untuned", "parallel")
        if code
        else ("all", "mixed", "clone", "tuned", "omega_n")
    )
    assert s.projector_bn == ("train" if preset == "released" else "frozen") and s.param == "parallel"
