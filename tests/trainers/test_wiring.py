"""One step of every trained method against a reference that starts from pixels and token ids.

The reference computes the objective from the weights of a file with the plain formulas (tests/trainers/plain.py and the slow
versions of the methods' own tests), its gradient by autograd, and the optimiser's step by hand. What stands between a tested
formula and the trainer - which image goes where, what is normalised, what is updated when - shows here.
"""

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.engine import build_trainer, set_random_seed
from tests.models.test_blip import WORDS, slow_image, slow_text
from tests.trainers import contract, plain
from tests.trainers.attriprompt.test_attriprompt import slow_contrast
from tests.trainers.attriprompt.test_kmeans import lloyd
from tests.trainers.dcar.test_dcar import plain_objective
from tests.trainers.pvlf.test_fusion import slow_aggregation, slow_focal, slow_fusion
from tests.trainers.test_cocoop import loop_logits
from tests.trainers.test_maple import maple_logits
from tests.trainers.test_promptsrc import plain_target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return contract.prepare(tmp_path_factory.mktemp("wiring"))


@pytest.fixture(scope="module")
def state(folder):
    """The backbone's weights as they lie in the file."""
    return torch.load(folder / "clip.pt")


@pytest.fixture
def ready(folder, tmp_path):
    """``ready("CoOp", KEY, value, ...)``: a trainer before its first step, and the first batch."""

    def make(name, *more):
        set_random_seed(1)
        keys = ("OPTIM.NAME", "sgd", "OPTIM.LR", 1.0, *more)
        trainer = build_trainer(contract.config(name, folder, str(tmp_path / name), *keys))
        trainer.before_train()
        trainer.set_model_mode("train")
        trainer.epoch = trainer.batch_idx = 0
        trainer.num_batches = 99  # not the last batch, after which the rate changes
        return trainer, next(iter(trainer.train_loader_x))

    return make


def check_gradients(trainer, batch, reference, most=None, tolerance=1e-3):
    """Loss and gradients of one step; ``most``: norm to which they are clipped."""
    learned = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    wanted = reference()
    gradients = dict(zip(learned, torch.autograd.grad(wanted, list(learned.values()))))
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    assert float(norm) > 0
    said = trainer.forward_backward(batch)
    assert said["loss"] == pytest.approx(float(wanted.detach()), rel=1e-4, abs=1e-4)
    factor = 1.0 if most is None else min(1.0, most / float(norm))
    for name, parameter in learned.items():
        error = float((parameter.grad - factor * gradients[name]).norm())
        assert error < tolerance * max(float(gradients[name].norm()), 1e-3 * float(norm)) * factor, name


def check_step(trainer, batch, reference, tolerance=1e-3):
    """The same, and what SGD with momentum and weight decay makes of it in its first step."""
    (group,) = trainer.optim.param_groups
    assert isinstance(trainer.optim, torch.optim.SGD) and not group["nesterov"]
    rate, decay = group["lr"], group["weight_decay"]
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    check_gradients(trainer, batch, reference, tolerance=tolerance)
    after = dict(trainer.model.named_parameters())
    for name, start in before.items():
        wanted = -rate * (after[name].grad + decay * start)
        assert float((after[name].detach() - start - wanted).norm()) < 1e-3 * float(wanted.norm()) + 1e-5, name


def cross_entropy(logits, labels):
    return -torch.stack([row.log_softmax(0)[label] for row, label in zip(logits, labels)]).mean()


def test_coop(ready, state):
    trainer, batch = ready("CoOp")
    model = trainer.model

    def reference():
        tokens = plain.prompt_tokens(model.clip, 4, "", plain.CLASSES)
        text = plain.text_features(state, tokens, model.prompt_learner.ctx)
        return cross_entropy(plain.logits(state, plain.image_features(state, batch["img"]), text), batch["label"])

    check_step(trainer, batch, reference)


def test_cocoop(ready, state):
    trainer, batch = ready("CoCoOp")

    def reference():
        features = plain.image_features(state, batch["img"])
        return cross_entropy(loop_logits(trainer.model, state, None, trainer.model.clip, features), batch["label"])

    check_step(trainer, batch, reference)


def two_towers(model, state, images, n_ctx, words):
    """Features of both sides of IVLP's architecture, by the official names of the model's tensors."""
    tensors = {n: p for n, p in model.named_parameters() if p.requires_grad}
    deep = lambda tower: [v for k, v in tensors.items() if k.startswith(tower) and "resblocks" in k]
    tokens = plain.prompt_tokens(model.clip, n_ctx, words, plain.CLASSES)
    text = plain.text_features(state, tokens, tensors["prompt_learner.ctx"], deep("text_encoder"))
    return plain.image_features(state, images, tensors["image_encoder.VPT"], deep("image_encoder")), text


def test_ivlp(ready, state):
    trainer, batch = ready("IVLP")

    def reference():
        image, text = two_towers(trainer.model, state, batch["img"], 2, "of a")
        return cross_entropy(plain.logits(state, image, text), batch["label"])

    check_step(trainer, batch, reference)


def test_maple(ready, state):
    trainer, batch = ready("MaPLe")
    check_step(
        trainer,
        batch,
        lambda: cross_entropy(
            maple_logits(trainer.model, state, batch["img"], trainer.model.clip, "of a"), batch["label"]
        ),
    )


def divergence(taught, student):
    """KL(taught || student), mean over images and classes."""
    p, q = student.softmax(-1), taught.softmax(-1)
    return (q * (q.log() - p.log())).mean()


def test_promptsrc(ready, state):
    trainer, batch = ready("PromptSRC")

    def reference():
        image, text = two_towers(trainer.model, state, batch["img"], 4, "")
        with torch.no_grad():
            image0, text0 = plain.image_features(state, batch["img"]), plain_target(state, trainer.model.clip)
        z, z0 = plain.logits(state, image, text), plain.logits(state, image0, text0)
        distance = 25 * (text - text0).abs().mean() + 10 * (image - image0).abs().mean()
        return cross_entropy(z, batch["label"]) + distance + divergence(z0, z)

    check_step(trainer, batch, reference)


def test_promptkd(ready, state, folder):
    trainer, batch = ready("PromptKD")
    model, wide = trainer.model, torch.load(folder / "teacher.pt")
    tuned = torch.load(folder / "teacher" / "VLPromptLearner" / "model.pth.tar-20")["state_dict"]

    def reference():
        with torch.no_grad():
            tokens = plain.prompt_tokens(model.clip, 4, "", plain.CLASSES)
            deep = [tuned["text_encoder.transformer.resblocks.1.VPT_shallow"]]
            text = plain.text_features(wide, tokens, tuned["prompt_learner.ctx"], deep)
            deep = [tuned["image_encoder.transformer.resblocks.1.VPT_shallow"]]
            taught = plain.logits(
                wide, plain.image_features(wide, batch["img"], tuned["image_encoder.VPT"], deep), text
            )
        deep = [model.image_encoder.transformer.resblocks.get_submodule("1").VPT_shallow]
        v = plain.image_features(state, batch["img"], model.image_encoder.VPT, deep, normalise=False)
        first, batch_norm, _, last = model.VPT_image_trans.conv1
        h = v @ first.weight[:, :, 0, 0].t() + first.bias
        h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt() * batch_norm.weight + batch_norm.bias
        v = F.normalize(h.relu() @ last.weight[:, :, 0, 0].t() + last.bias, dim=-1)
        return 1000 * divergence(taught, plain.logits(wide, v, text))

    # in front of a batch norm a bias has no gradient but rounding
    check_step(trainer, batch, reference, tolerance=5e-3)


def test_attriprompt(ready, state):
    """Retrieval uses the mean of the queries up to and with this batch."""
    trainer, batch = ready("AttriPrompt", "TRAINER.ATTRIPROMPT.POOL.INIT_STD", 0.3)
    model, labels = trainer.model, batch["label"]
    pool = model.pool.prompts

    def reference():
        with torch.no_grad():
            queries = []  # [L, B, K, E]
            for layer in plain.image_layers(state, batch["img"]):
                centroids = [torch.tensor(lloyd(tokens[1:].tolist(), 4, 10)[0]) for tokens in layer]
                queries.append(F.normalize(plain.image_head(state, torch.stack(centroids)), dim=-1))
            keys = F.normalize(pool[0].mean(1), dim=-1)
            chosen = [
                (F.normalize(q - q.mean((0, 1)), dim=-1) @ keys.t()).argmax(-1) for q in queries
            ]  # of each layer [B, K]
            target = plain.text_features(state, plain.prompt_tokens(model.clip, 0, "a photo of a", plain.CLASSES))
            images = plain.image_features(state, batch["img"])
        tokens = plain.prompt_tokens(model.clip, 8, "a photo of a", plain.CLASSES)
        text = []
        for b in range(len(labels)):
            layers = [pool[0, index[b]].flatten(0, 1) for index in chosen]
            text.append(plain.text_features(state, tokens, layers[0], layers[1:]))
        text, scale = torch.stack(text), state["logit_scale"].exp()
        logits = torch.stack([scale * t @ f for t, f in zip(text, images)])
        own = scale * images @ torch.stack([t[y] for t, y in zip(text, labels)]).t()
        return cross_entropy(logits, labels) + instances(own, labels) + 25 * (text - target).abs().mean()

    check_step(trainer, batch, reference)


def instances(similarity, labels):
    """Images against the texts of their own class in both directions; same-class columns of others are left out."""
    total = 0.0
    for s in (similarity, similarity.t()):
        for b in range(len(labels)):
            kept = [j for j in range(len(labels)) if j == b or labels[j] != labels[b]]
            total = total + s[b, kept].logsumexp(0) - s[b, b]
    with torch.no_grad():
        both = slow_contrast(similarity, labels) + slow_contrast(similarity.t(), labels)
    torch.testing.assert_close(total.detach() / len(labels), both, rtol=1e-4, atol=1e-4)
    return total / len(labels) / 2


def test_dcar(ready, state):
    trainer, batch = ready("DCAR")
    node, data = trainer.node, trainer.dm.dataset
    from dassl_prompts.trainers.dcar.candidates import negative_captions

    drawn = negative_captions(node.CAA, data.train_x, data.classnames, trainer.model.clip, 1)
    negatives = {item.key: row for item, row in zip(data.train_x, drawn)}

    def reference():
        con, cate = plain_objective(trainer, state, trainer.model.clip, batch, negatives)
        return con + node.LOSS.CATE_WEIGHT * cate

    check_step(trainer, batch, reference, tolerance=3e-3)


@pytest.mark.parametrize("name", ["PVLF", "TransAgg"])
def test_pvlf(ready, name):
    """Both towers tuned: the reference image asks, the target image is normalised and answers."""
    node = name.upper()
    keys = ("FUSION.DROPOUT", 0.0, "AGG.DROPOUT", 0.0, "BACKBONE.TEXT_DROPOUT", 0.0, "BACKBONE.TUNE", "both")
    tau = ("LOSS.TAU", 0.5)  # probabilities between 0 and 1 with random weights
    trainer, batch = ready(name, *contract.under(node, *keys, *tau), "OPTIM.NAME", "adamw", "OPTIM.LR", 1e-3)
    head, weights = trainer.model.head, dict(trainer.model.encoder.named_parameters())

    def reference():
        queries, targets = [], []
        for caption, image, target in zip(batch["caption"], batch["reference"], batch["target"]):
            ids = [WORDS.index(w) if w in WORDS else WORDS.index("[UNK]") for w in ["[CLS]", *caption.split(), "[SEP]"]]
            text, tokens = slow_text(weights, ids, heads=2), slow_image(weights, image, 1e-6)
            row, pad = torch.zeros(1, dtype=torch.long), torch.zeros(1, len(ids), dtype=torch.bool)
            h_t, h_v = slow_fusion(head.fusion, text[None], row, pad, tokens[None])
            queries.append(slow_aggregation(head.aggregation, h_t, h_v, text[:1], tokens[:1])[0])
            answer = slow_image(weights, target, 1e-6)[0]
            targets.append(answer / answer.norm())
        return slow_focal(torch.stack(queries), torch.stack(targets), 0.5, 1.0, 2.0 if name == "PVLF" else 0.0)

    check_gradients(trainer, batch, reference, most=5.0, tolerance=5e-3)
