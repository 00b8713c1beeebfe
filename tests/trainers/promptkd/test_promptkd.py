"""PromptKD's student, projector, loss and teacher against the plain formulas."""

import pytest
import torch
import torch.nn as nn

from dassl_prompts.trainers.ivlp import IVLPModel
from dassl_prompts.trainers.promptkd.teacher import build_teacher, find_teacher, teacher_sizes
from dassl_prompts.trainers.promptkd.trainer import Projector, PromptKDModel, distillation_loss
from tests.trainers import plain

NAMES = [n.replace("_", " ") for n in plain.CLASSES]


@pytest.fixture
def teacher(teacher_clip):
    net = IVLPModel(teacher_clip, plain.CLASSES, 4, 3, 3, 2)
    with torch.no_grad():
        for p in net.prompt_parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


@pytest.fixture
def model(clip, teacher):
    net = PromptKDModel(clip, plain.CLASSES, teacher, n_vision=2, depth_vision=3)
    with torch.no_grad():
        for p in net.prompt_parameters():
            p.add_(0.2 * torch.randn_like(p))
    return net


def test_a_student_without_visual_prompts_is_refused(clip, teacher):
    with pytest.raises(ValueError, match=r"TRAINER\.PROMPTKD\.PROMPT_DEPTH_VISION is 0, .*: give 1 to \d"):
        PromptKDModel(clip, plain.CLASSES, teacher, depth_vision=0)


def convolutional(projector):
    """The official module with the same weights, on images of one pixel."""
    n_out, n_in = projector.conv1[0].weight.shape[:2]
    net = nn.Sequential(nn.Conv2d(n_in, n_out, 1), nn.BatchNorm2d(n_out), nn.ReLU(), nn.Conv2d(n_out, n_out, 1))
    net.load_state_dict(projector.conv1.state_dict())
    return net


@pytest.mark.parametrize("mode", [True, False])
def test_projector_equals_the_convolutional_form(mode):
    projector = Projector(6, 10)
    with torch.no_grad():
        for tensor in (*projector.parameters(), projector.conv1[1].running_mean):
            tensor.add_(0.3 * torch.randn_like(tensor))
    official = convolutional(projector).train(mode)
    projector.train(mode)
    x = torch.randn(5, 6)
    torch.testing.assert_close(projector(x), official(x[:, :, None, None])[:, :, 0, 0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(projector.conv1[1].running_var, official[1].running_var)


def test_projector_equals_the_linear_form_with_gradients():
    projector = Projector(6, 10).eval()
    first, batch_norm, _, last = projector.conv1
    x = torch.randn(5, 6)
    h = x @ first.weight[:, :, 0, 0].t() + first.bias
    h = (h - batch_norm.running_mean) / (batch_norm.running_var + 1e-5).sqrt() * batch_norm.weight + batch_norm.bias
    wanted = h.relu() @ last.weight[:, :, 0, 0].t() + last.bias
    torch.testing.assert_close(projector(x), wanted, rtol=1e-5, atol=1e-6)
    parameters = list(projector.parameters())
    for g, w in zip(
        torch.autograd.grad(projector(x).square().sum(), parameters),
        torch.autograd.grad(wanted.square().sum(), parameters),
    ):
        assert plain.relative_error(g, w) < 1e-4


def test_batch_statistics_move_in_training_unless_frozen():
    projector = Projector(6, 10).train()
    projector(torch.randn(5, 6))
    assert projector.conv1[1].running_mean.abs().sum() > 0
    projector.frozen_statistics = True
    before = projector.train().conv1[1].running_mean.clone()
    projector(torch.randn(5, 6))
    assert torch.equal(before, projector.conv1[1].running_mean)


def plain_teacher_text(teacher, teacher_state, clip):
    prompts = teacher.emit()
    tokens = clip.tokenize([f"X X X X {n}." for n in NAMES])
    return plain.text_features(teacher_state, tokens, prompts.text, prompts.text_deep)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_objective_and_gradients_equal_the_plain_formulas(
    model, teacher, state, teacher_state, clip, images, temperature
):
    model.train()
    prompts = model.emit()
    student = model.logits(model.encode_images(images, prompts), model.encode_classes(prompts))
    taught = model.teacher_logits(model.teacher_image_features(images))
    ours = 1000 * distillation_loss(student, taught, temperature)

    t = teacher.emit()
    with torch.no_grad():
        g = plain_teacher_text(teacher, teacher_state, clip)
        z_t = plain.logits(teacher_state, plain.image_features(teacher_state, images, t.vision, t.vision_deep), g)
    v = plain.image_features(state, images, prompts.vision, prompts.vision_deep, normalise=False)
    v = convolutional(model.VPT_image_trans).train()(v[:, :, None, None])[:, :, 0, 0]
    z_s = plain.logits(state, v / v.norm(dim=-1, keepdim=True), g)
    q, p = (z_t / temperature).softmax(-1), (z_s / temperature).softmax(-1)
    wanted = 1000 * temperature**2 * (q * (q.log() - p.log())).sum() / z_s.numel()

    torch.testing.assert_close(student, z_s, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    for g_ours, g_plain in zip(
        torch.autograd.grad(ours, [prompts.vision, *prompts.vision_deep]),
        torch.autograd.grad(wanted, [prompts.vision, *prompts.vision_deep]),
    ):
        assert plain.relative_error(g_ours, g_plain) < 1e-4


def test_the_teacher_is_frozen_and_its_text_is_encoded_once(model, teacher_clip, images):
    model.train()
    model.teacher_text
    calls = []
    handle = teacher_clip.text.register_forward_hook(lambda *a: calls.append(1))
    student = model(images)
    distillation_loss(student, model.teacher_logits(model.teacher_image_features(images))).backward()
    model.eval()
    model(images)
    handle.remove()
    assert not calls
    assert all(p.grad is None for p in model.teacher.parameters())
    assert all(p.grad is not None for p in model.prompt_parameters())


def test_base_and_new_rows_are_rows_of_all(model, clip, teacher_clip, teacher):
    names = plain.CLASSES
    whole = model.class_features()
    for part in (names[:4], names[4:]):
        half = IVLPModel(teacher_clip, part, 4, 3, 3, 2)
        half.load_state_dict(teacher.state_dict())
        rows = PromptKDModel(clip, part, half, 2, 3).class_features()
        start = names.index(part[0])
        torch.testing.assert_close(rows, whole[start : start + len(part)], rtol=1e-5, atol=1e-6)


def test_text_prompts_of_its_own_start_as_the_teachers(model, images):
    before = model.eval().class_features()
    model.add_text_prompts()
    assert {n for n, _ in model.named_parameters() if "ctx" in n and not n.startswith("teacher.")} == {
        "prompt_learner.ctx"
    }
    torch.testing.assert_close(model.class_features(), before)
    with torch.no_grad():
        model.prompt_learner.ctx.add_(1.0)
    assert not torch.allclose(model.class_features(), before)


def test_names_and_shapes_are_the_official_ones(model):
    from dassl_prompts.engine import learned_tensors

    shapes = {n: tuple(t.shape) for n, t in learned_tensors(model.checkpoint_module).items()}
    shapes.pop("VPT_image_trans.conv1.1.num_batches_tracked", None)
    assert shapes == {
        "image_encoder.VPT": (2, 192),
        "image_encoder.transformer.resblocks.1.VPT_shallow": (2, 192),
        "image_encoder.transformer.resblocks.2.VPT_shallow": (2, 192),
        "VPT_image_trans.conv1.0.weight": (96, 64, 1, 1),
        "VPT_image_trans.conv1.0.bias": (96,),
        "VPT_image_trans.conv1.1.weight": (96,),
        "VPT_image_trans.conv1.1.bias": (96,),
        "VPT_image_trans.conv1.1.running_mean": (96,),
        "VPT_image_trans.conv1.1.running_var": (96,),
        "VPT_image_trans.conv1.3.weight": (96, 96, 1, 1),
        "VPT_image_trans.conv1.3.bias": (96,),
    }


def test_classes_of_teacher_and_student_must_agree(clip, teacher):
    with pytest.raises(ValueError, match="same classes"):
        PromptKDModel(clip, plain.CLASSES[::-1], teacher)


# -- the teacher's checkpoint --------------------------------------------------------------------------------


def save_official(path, teacher):
    """An official teacher file: prompts, all of CLIP, class-dependent buffers."""
    state = {n: p.detach() for n, p in teacher.named_parameters() if not n.startswith("clip.")}
    state["prompt_learner.token_prefix"] = torch.randn(3, 1, 192)
    state["prompt_learner.token_suffix"] = torch.randn(3, 72, 192)
    state["image_encoder.class_embedding"] = torch.randn(256)
    state["logit_scale"] = torch.tensor(4.6)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": state, "epoch": 20}, path)


def test_official_teacher_files_load_with_their_own_sizes(tmp_path, teacher, teacher_clip):
    save_official(tmp_path / "VLPromptLearner" / "model-best.pth.tar", teacher)
    path = find_teacher(str(tmp_path))
    loaded = build_teacher(teacher_clip, plain.OTHERS, path)
    assert (loaded.depth_text, loaded.depth_vision) == (3, 2)
    for a, b in zip(loaded.prompt_parameters(), teacher.prompt_parameters()):
        assert torch.equal(a, b)


def test_teacher_sizes_follow_the_tensors():
    state = {"prompt_learner.ctx": torch.zeros(4, 8), "image_encoder.VPT": torch.zeros(3, 8)}
    state |= {f"text_encoder.transformer.resblocks.{i}.VPT_shallow": torch.zeros(4, 8) for i in range(1, 9)}
    assert teacher_sizes(state) == {"n_text": 4, "depth_text": 9, "n_vision": 3, "depth_vision": 1}


def test_the_newest_or_the_named_epoch_is_taken(tmp_path, teacher):
    for epoch in (5, 20):
        save_official(tmp_path / "VLPromptLearner" / f"model.pth.tar-{epoch}", teacher)
    assert find_teacher(str(tmp_path)).name == "model.pth.tar-20"
    assert find_teacher(str(tmp_path), 5).name == "model.pth.tar-5"
    with pytest.raises(FileNotFoundError, match="tar-7.*tar-20.*teacher.sh"):
        find_teacher(str(tmp_path), 7)


def test_missing_teacher_says_how_to_make_one(tmp_path):
    with pytest.raises(ValueError, match="TEACHER_DIR is empty.*teacher.sh"):
        find_teacher("")
    with pytest.raises(FileNotFoundError, match="teacher.sh"):
        find_teacher(str(tmp_path / "nowhere"))


def test_a_file_that_is_no_teacher_is_refused(tmp_path, teacher_clip):
    path = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"ctx": torch.zeros(4, 192)}, "epoch": 1}, path)
    with pytest.raises(ValueError, match="no PromptSRC or IVLP checkpoint"):
        build_teacher(teacher_clip, plain.CLASSES, path)


def test_a_teacher_of_another_clip_is_refused(tmp_path, teacher, clip):
    save_official(tmp_path / "model.pth.tar-1", teacher)
    with pytest.raises(ValueError, match="shapes"):
        build_teacher(clip, plain.CLASSES, tmp_path / "model.pth.tar-1")
