"""The fast text paths against 77 positions evaluated plainly (tests/trainers/plain.py), values and gradients."""

import pytest
import torch

from dassl_prompts.models.clip import build_model, finish
from tests.tiny import tiny_clip
from tests.trainers import plain

NAMES = ["cat", "great white shark", "F/A-18", "tea pot with a very long handle", "dog"]
D = 128


@pytest.fixture(scope="module")
def state():
    return plain.openai_state()


@pytest.fixture(scope="module")
def clip(state):
    from dassl_prompts.models.clip import from_state_dict

    return finish(from_state_dict(dict(state), "random"), "fp32", "cpu")


def vectors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(0.3).requires_grad_()


def reference(state, tokens, ctx, deep, weights=None):
    """``[C, E]`` or ``[B, C, E]``, one image after the other."""
    if weights is not None:
        return weighted_reference(state, tokens, ctx, deep, weights)
    images = next((t.shape[0] for t in (ctx, *deep) if t is not None and t.ndim == 4), None)
    if images is None:
        return plain.text_features(state, tokens, ctx, deep, normalise=False)
    own = lambda t, b: t[b, 0] if t is not None and t.ndim == 4 else t
    rows = [
        plain.text_features(state, tokens, own(ctx, b), [own(t, b) for t in deep], normalise=False)
        for b in range(images)
    ]
    return torch.stack(rows)


def weighted_reference(state, tokens, ctx, deep, weights):
    """Embeddings behind the slots times their weights, text by text with a table of its own."""
    n, rows = 0 if ctx is None else ctx.shape[-2], []
    for ids, w in zip(tokens, weights):
        own = slice(1 + n, int(ids.argmax()) + 1)
        assert len(set(ids[own].tolist())) == len(ids[own]), "a token would need two weights"
        table = state["token_embedding.weight"]
        table = table * torch.ones(len(table)).scatter(0, ids[own], w[own])[:, None]
        rows.append(
            plain.text_features({**state, "token_embedding.weight": table}, ids[None], ctx, deep, normalise=False)[0]
        )
    return torch.stack(rows)


def check(clip, state, prompts, ctx, deep, **options):
    """Values within 1e-5, gradients of every vector within 1e-4 relative."""
    ours = clip.text(prompts, ctx, deep, **options)
    theirs = reference(state, prompts.tokens, ctx, deep, options.get("token_weights"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    leaves = [t for t in (ctx, *deep, options.get("token_weights")) if t is not None]
    if not leaves:
        return
    probe = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    for a, b in zip(
        torch.autograd.grad((ours * probe).sum(), leaves), torch.autograd.grad((theirs * probe).sum(), leaves)
    ):
        assert plain.relative_error(a, b) < 1e-4


SHAPES = {"shared": (), "per class": (len(NAMES),), "per image": (3, 1)}


@pytest.mark.parametrize("depth", [1, 3, plain.LAYERS])
@pytest.mark.parametrize("n", [1, 2, 16])
@pytest.mark.parametrize("kind", SHAPES)
def test_contexts_and_depths(clip, state, kind, n, depth):
    prompts = clip.text.class_prompts(NAMES, n_ctx=n)
    ctx = vectors(*SHAPES[kind], n, D)
    deep = [vectors(*SHAPES[kind], n, D, seed=i) for i in range(1, depth)]
    check(clip, state, prompts, ctx, deep)


@pytest.mark.parametrize(
    "options",
    [
        {"share_prefix": False},
        {"trim": False},
        {"chunk_tokens": 8},
        {"checkpoint": True},
        {"chunk_tokens": 8, "checkpoint": True},
    ],
)
@pytest.mark.parametrize("kind", ["shared", "per image"])
def test_options_change_nothing(clip, state, kind, options):
    prompts = clip.text.class_prompts(NAMES, n_ctx=2, words="of a")
    ctx = vectors(*SHAPES[kind], 2, D)
    check(clip, state, prompts, ctx, [vectors(*SHAPES[kind], 2, D, seed=1)], **options)


@pytest.mark.parametrize("options", [{"chunk_tokens": 8}, {"checkpoint": True}])
def test_options_change_nothing_without_a_shared_prefix(clip, state, options):
    prompts = clip.text.class_prompts(NAMES, n_ctx=2)
    check(clip, state, prompts, vectors(len(NAMES), 2, D), [vectors(len(NAMES), 2, D, seed=1)], **options)
    with torch.no_grad():
        whole, tokens = clip.text(prompts, return_tokens=True)
        parts, rows = clip.text(prompts, return_tokens=True, **options)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)
    torch.testing.assert_close(rows, tokens, rtol=0, atol=1e-5)


def test_names_of_one_length_need_no_packing(clip, state):
    prompts = clip.text.class_prompts(["cat", "dog", "bus"], n_ctx=2)
    assert prompts.layout(prompts.n_prefix).dense
    check(clip, state, prompts, vectors(2, D), [vectors(2, D, seed=1)])


def test_shared_first_layer_with_deeper_layers_per_image(clip, state):
    prompts = clip.text.class_prompts(NAMES, n_ctx=2)
    check(clip, state, prompts, vectors(2, D), [vectors(3, 1, 2, D, seed=1), vectors(2, D, seed=2)])


@pytest.mark.parametrize(
    "texts", [["a photo of a cat.", "a photo of a white dog, a type of pet."], ["cat", "dog ears"], ["one"]]
)
def test_texts_without_context(clip, state, texts):
    check(clip, state, clip.text.prompts_from_texts(texts), None, [])


@pytest.mark.parametrize("n", [0, 2])
def test_token_weights(clip, state, n):
    prompts = clip.text.prompts_from_texts(["a red apple on the table", "two dogs", "the sea"], n_ctx=n)
    weights = (torch.rand(3, 77) + 0.5).requires_grad_()
    ctx = vectors(n, D) if n else None
    check(clip, state, prompts, ctx, [vectors(n, D, seed=1)] if n else [], token_weights=weights)


@pytest.mark.parametrize("position", ["middle", "front"])
@pytest.mark.parametrize("n", [4, 5])
def test_class_name_in_the_middle_or_in_front(clip, state, position, n):
    """Each class spliced by hand, as CoOp's prompt learner does."""
    prompts = clip.text.class_prompts(NAMES, n_ctx=n)
    ctx = vectors(n, D)
    embedding, half = state["token_embedding.weight"], n // 2 if position == "middle" else 0
    rows = []
    for tokens, name in zip(prompts.tokens, NAMES):
        e, m = embedding[tokens], len(clip.text.encode_ids(name))
        rows.append(torch.cat([e[:1], ctx[:half], e[1 + n : 1 + n + m], ctx[half:], e[1 + n + m :]]))
    x = torch.stack(rows) + state["positional_embedding"]
    mask = torch.full((77, 77), float("-inf")).triu(1)
    for i in range(plain.LAYERS):
        x = plain.block(state, f"transformer.resblocks.{i}.", x, mask)
    theirs = plain.norm(state, "ln_final", x)[torch.arange(len(x)), prompts.eot] @ state["text_projection"]
    ours = clip.text(prompts, ctx, position=position)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    (a,), (b,) = torch.autograd.grad(ours.sum(), ctx), torch.autograd.grad(theirs.sum(), ctx)
    assert plain.relative_error(a, b) < 1e-4
    csc = ctx.detach().expand(len(NAMES), n, D)
    torch.testing.assert_close(clip.text(prompts, csc, position=position), ours)


def test_all_tokens(clip, state):
    prompts = clip.text.prompts_from_texts(["a red apple", "two dogs in the sea"])
    features, tokens = clip.text(prompts, return_tokens=True)
    assert tokens.shape == (2, prompts.length, 64)
    torch.testing.assert_close(tokens[torch.arange(2), prompts.eot], features)
    torch.testing.assert_close(features, clip.text(prompts), rtol=0, atol=1e-5)
    everything = clip.text(prompts, return_tokens=True, trim=False)[1]
    assert everything.shape == (2, 77, 64)
    torch.testing.assert_close(everything[:, : prompts.length], tokens, rtol=0, atol=1e-5)


def test_nothing_behind_eot_matters(clip):
    prompts = clip.text.class_prompts(NAMES, n_ctx=3)
    ctx = vectors(3, D)
    before = clip.text(prompts, ctx)
    behind = torch.arange(77)[None, :] > prompts.eot[:, None]
    prompts.tokens[behind] = 1000
    assert torch.equal(before, clip.text(prompts, ctx))


def test_selection_equals_rows(clip):
    prompts = clip.text.class_prompts(NAMES, n_ctx=3)
    ctx, index = vectors(3, D), torch.tensor([3, 0, 3])
    torch.testing.assert_close(clip.text(prompts.select(index), ctx), clip.text(prompts, ctx)[index], rtol=0, atol=1e-5)


def test_equals_open_clip(state):
    """Against open_clip's own towers, with and without batch-first blocks as its versions have them."""
    import open_clip

    model = build_model(
        {
            "embed_dim": 64,
            "quick_gelu": True,
            "vision_cfg": {"image_size": 32, "layers": 4, "width": 192, "head_width": 64, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 4},
        }
    ).eval()
    model.load_state_dict({key: value for key, value in state.items() if value.ndim or key == "logit_scale"})
    tokens = open_clip.SimpleTokenizer()(["a photo of a cat", "a diagram"])
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        text, image = model.encode_text(tokens), model.encode_image(images)
        ours = finish(model, "fp32", "cpu")
        torch.testing.assert_close(ours.encode_text(tokens), text, rtol=0, atol=1e-6 * float(text.norm(dim=-1).max()))
        torch.testing.assert_close(
            ours.encode_image(images), image, rtol=0, atol=1e-6 * float(image.norm(dim=-1).max())
        )
        assert torch.equal(ours.tokenize(["a photo of a cat", "a diagram"]), tokens)


def test_half_precision_stays_close(clip, state):
    from dassl_prompts.models.clip import from_state_dict

    half = finish(from_state_dict(dict(state), "random"), "fp16", "cpu")
    assert half.dtype is torch.float16 and half.text.ln_final.weight.dtype is torch.float32
    prompts = clip.text.class_prompts(NAMES, n_ctx=2)
    ctx = vectors(2, D)
    ours = half.text(half.text.class_prompts(NAMES, n_ctx=2), ctx)
    assert ours.dtype is torch.float32
    cosine = torch.nn.functional.cosine_similarity(ours, clip.text(prompts, ctx))
    assert cosine.min() > 0.999
    (grad,) = torch.autograd.grad(ours.sum(), ctx)
    assert grad.dtype is torch.float32 and grad.isfinite().all()


def test_bfloat16_autocast_stays_close(clip):
    prompts = clip.text.class_prompts(NAMES, n_ctx=2)
    ctx = vectors(2, D)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = clip.text(prompts, ctx)
    assert torch.nn.functional.cosine_similarity(ours, clip.text(prompts, ctx)).min() > 0.99


# -- bad input --------------------------------------------------------------------------------------------------------


def test_texts_that_do_not_fit(clip):
    with pytest.raises(ValueError, match="'shark shark.*only 6 fit into 77"):
        clip.text.class_prompts(["cat", " ".join(["shark"] * 10)], n_ctx=69)
    with pytest.raises(ValueError, match="leave no room"):
        clip.text.class_prompts(["cat"], n_ctx=75)
    cut = clip.text.prompts_from_texts(["shark " * 100, "cat"], n_ctx=4, truncate=True)
    assert cut.truncated == 1 and cut.eot.tolist() == [76, 6] and (cut.tokens[0, 76] == 49407)


def test_impossible_prompts_are_refused(clip):
    prompts = clip.text.class_prompts(NAMES, n_ctx=2)
    with pytest.raises(ValueError, match="the tower has 4 layers"):
        clip.text(prompts, vectors(2, D), [vectors(2, D)] * 4)
    with pytest.raises(ValueError, match="does not fit 2 slots"):
        clip.text(prompts, vectors(3, D))
    with pytest.raises(ValueError, match="3 contexts for 5 texts"):
        clip.text(prompts, vectors(3, 2, D))
    with pytest.raises(ValueError, match="in front of the class name"):
        clip.text(prompts, vectors(2, D), [vectors(2, D)], position="front")
    with pytest.raises(ValueError, match="choose one of end"):
        clip.text(prompts, vectors(2, D), position="last")
    with pytest.raises(ValueError, match="no text"):
        clip.text.class_prompts([])


def test_open_clips_pooling_is_not_called(monkeypatch):
    """Its text_global_pool returns a pair up to 2.31 and one tensor from 2.32 on."""
    import open_clip.model
    import open_clip.transformer

    def refuse(*args, **kwargs):
        raise AssertionError("text_global_pool was called")

    clip = tiny_clip()
    for module in (open_clip.model, open_clip.transformer):
        monkeypatch.setattr(module, "text_global_pool", refuse)
    assert clip.encode_text(clip.tokenize(["a cat"])).isfinite().all()
