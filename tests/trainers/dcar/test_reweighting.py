"""Token weights against loops over tokens with two separate cosines, and the invariants of the paper's
formula.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.captions.bpe import token_texts, tokenizer, word_index
from dassl_prompts.trainers.dcar.reweighting import (
    NORMS,
    TokenReweighter,
    VocabularyWeights,
    blank_image,
    group_means,
    place_weights,
    token_weights,
)
from tests.tiny import tiny_clip

CAPTIONS = ["a red fox runs over the snow", "an owl.", "bluish motorcycles, 737-600 and a very long fence"]
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


@pytest.fixture(scope="module")
def clip():
    return tiny_clip()


def node(**changes):
    base = dict(
        TOKEN_FEAT="context",
        IMAGE_FEAT="global",
        BLANK="white",
        NORM="mean1",
        BETA=1.0,
        CLAMP=(0.2, 3.0),
        SOURCE="frozen",
        SCOPE="pair",
        PROB=1.0,
        GROUP_WORDS=False,
        CACHE=True,
    )
    return SimpleNamespace(**{**base, **changes})


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32)


def slow_weights(clip, images, clamp=(0.2, 3.0), isolated=False):
    """One caption, one token, two cosines at a time."""
    cosine = lambda a, b: float(torch.dot(a, b) / a.norm() / b.norm())
    blank = blank_image("white", 32, MEAN, STD)
    rows = []
    for text, image in zip(CAPTIONS, images):
        g, g_blank = clip.encode_image(image[None])[0], clip.encode_image(blank)[0]
        prompts = clip.text.prompts_from_texts([text])
        hidden = clip.text(prompts, return_tokens=True)[1][0]
        delta = []
        for j in range(int(prompts.eot[0]) - 1):
            f = hidden[1 + j]
            if isolated:
                alone = torch.zeros(1, 77, dtype=torch.long)
                alone[0, :3] = torch.tensor([49406, int(prompts.tokens[0, 1 + j]), 49407])
                f = clip.encode_text(alone)[0]
            delta.append(abs(cosine(f, g_blank) - cosine(f, g)))
        mean = sum(delta) / len(delta)
        rows.append([min(max(d / mean, clamp[0]), clamp[1]) for d in delta])
    return rows


@pytest.mark.parametrize("kind", ["context", "isolated"])
@torch.no_grad()
def test_weights_equal_the_loop(clip, images, kind):
    reweighter = TokenReweighter(clip, node(TOKEN_FEAT=kind), MEAN, STD)
    captions = clip.text.prompts_from_texts(CAPTIONS)
    weights = reweighter.pair_weights(captions, reweighter.image_features(images))
    for row, wanted in zip(weights, slow_weights(clip, images, isolated=kind == "isolated")):
        torch.testing.assert_close(row[: len(wanted)], torch.tensor(wanted), rtol=2e-3, atol=2e-4)
        assert (row[len(wanted) :] == 1).all()
    everything = reweighter.all_pair_weights(captions, reweighter.image_features(images), batch_size=2)
    torch.testing.assert_close(everything, weights, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["patch_max", "patch_mean"])
@torch.no_grad()
def test_patch_similarities_equal_the_loop(clip, images, kind):
    reweighter = TokenReweighter(clip, node(IMAGE_FEAT=kind, NORM="none"), MEAN, STD)
    captions = clip.text.prompts_from_texts(CAPTIONS)
    weights = reweighter.pair_weights(captions, reweighter.image_features(images))
    reduce = max if kind == "patch_max" else (lambda s: sum(s) / len(s))
    hidden = F.normalize(clip.text(captions, return_tokens=True)[1], dim=-1)
    patches = lambda x: F.normalize(clip.vision(x, return_tokens=True)[1][0, 1:], dim=-1)
    blank = patches(blank_image("white", 32, MEAN, STD))
    for i in range(3):
        own = patches(images[i : i + 1])
        for j in range(int(captions.eot[i]) - 1):
            f = hidden[i, 1 + j]
            wanted = abs(reduce([float(f @ p) for p in blank]) - reduce([float(f @ p) for p in own]))
            assert float(weights[i, j]) == pytest.approx(wanted, abs=1e-5)


def test_mean_is_one_before_clamping_and_bounds_hold():
    delta, content = torch.rand(5, 9), torch.arange(9) < torch.tensor([9, 4, 1, 7, 2])[:, None]
    free = token_weights(delta, content, clamp=(0.0, 1e9))
    torch.testing.assert_close((free * content).sum(1) / content.sum(1), torch.ones(5))
    assert (free[~content] == 1).all()
    for norm in NORMS:
        weights = token_weights(delta, content, norm, (0.4, 1.5), beta=0.3, scale=20.0)
        assert (weights[~content] == 1).all()
        if norm != "none":
            assert weights.min() >= 0.4 and weights.max() <= 1.5
        else:
            assert torch.equal(weights[content], delta[content])


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        ("mean1", [0.5, 1.0, 1.5]),
        ("minmax", [0.0, 0.5, 1.0]),
        ("residual", [1.0, 1.25, 1.5]),
        ("none", [0.1, 0.2, 0.3]),
        ("softmax", [3 * w / (1 + 2.718282 + 7.389056) for w in (1, 2.718282, 7.389056)]),
    ],
)
def test_normalisations_by_hand(norm, expected):
    delta = torch.tensor([[0.1, 0.2, 0.3, 9.0]])
    content = torch.tensor([[True, True, True, False]])
    weights = token_weights(delta, content, norm, (0.0, 9.0), beta=0.5, scale=10.0)
    torch.testing.assert_close(weights[0], torch.tensor([*expected, 1.0]))


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_to_say_gives_ones(norm):
    content = torch.tensor([[True, True, False], [False, False, False]])
    assert torch.equal(token_weights(torch.zeros(2, 3), content, norm, scale=5.0), torch.ones(2, 3))


@pytest.mark.parametrize("kind", ["white", "black", "mean"])
@torch.no_grad()
def test_blank_image_as_input_gives_ones(clip, kind):
    blank = blank_image(kind, 32, MEAN, STD)
    if kind != "mean":
        level = 1.0 if kind == "white" else 0.0
        torch.testing.assert_close(
            blank * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1),
            torch.full((1, 3, 32, 32), level),
        )
    reweighter = TokenReweighter(clip, node(BLANK=kind), MEAN, STD)
    captions = clip.text.prompts_from_texts(CAPTIONS[:1])
    assert torch.equal(
        reweighter.pair_weights(captions, reweighter.image_features(blank)),
        torch.ones(1, int(captions.eot[0]) - 1),
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("image_feat", ["global", "patch_max", "patch_mean"])
@torch.no_grad()
def test_blank_image_in_a_batch_gives_ones(clip, images, norm, image_feat):
    reweighter = TokenReweighter(clip, node(NORM=norm, IMAGE_FEAT=image_feat), MEAN, STD)
    features = reweighter.image_features(images)
    # the blank image as another batch would round it: whether this batch does depends on the machine
    blank = reweighter.blank_features()[0]
    features[1] = blank + 3e-7 * torch.randn_like(blank)
    weights = reweighter.pair_weights(clip.text.prompts_from_texts(CAPTIONS), features)
    assert (weights[1] == 1).all() and not (weights[0] == 1).all()


@torch.no_grad()
def test_similarities_are_not_rounded_to_half_precision(clip, images):
    reweighter = TokenReweighter(clip, node(IMAGE_FEAT="patch_mean", NORM="none"), MEAN, STD)
    captions, patches = clip.text.prompts_from_texts(CAPTIONS), reweighter.image_features(images)
    tokens, blank = reweighter.token_features(captions), reweighter.blank_features()
    want = reweighter.weights(captions, tokens, patches, blank)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = reweighter.weights(captions, tokens, patches, blank)
    torch.testing.assert_close(got, want)


@torch.no_grad()
def test_other_captions_of_the_batch_do_not_matter(clip, images):
    reweighter = TokenReweighter(clip, node(), MEAN, STD)
    image = reweighter.image_features(images)
    captions = clip.text.prompts_from_texts(CAPTIONS)
    order = torch.tensor([2, 0, 1])
    weights = reweighter.pair_weights(captions, image)
    permuted = reweighter.pair_weights(captions.select(order), image[order])
    torch.testing.assert_close(permuted, weights[order], rtol=1e-3, atol=1e-4)


def test_weights_are_placed_behind_the_slots():
    weights = torch.tensor([[2.0, 3.0, 4.0], [5.0, 1.0, 1.0]])
    placed = place_weights(weights, eot=torch.tensor([6, 4]), n_ctx=2, length=8)
    assert placed.tolist() == [[1, 1, 1, 2, 3, 4, 1, 1], [1, 1, 1, 5, 1, 1, 1, 1]]
    cut = place_weights(torch.full((1, 9), 2.0), eot=torch.tensor([5]), n_ctx=2, length=6)
    assert cut.tolist() == [[1, 1, 1, 2, 2, 1]]


def test_words_share_the_mean_of_their_pieces():
    ids = torch.tensor(tokenizer().encode("bluish motorcyclists run"))
    assert "".join(token_texts(ids)) == "bluish motorcyclists run "
    words = word_index(ids)
    assert words[-1] == 2 and len(ids) > 3, "the test needs a word of several pieces"
    values = torch.arange(1.0, len(ids) + 1)[None]
    grouped = group_means(values, words[None], torch.ones(1, len(ids), dtype=torch.bool))[0]
    for word in range(3):
        own = words == word
        torch.testing.assert_close(grouped[own], values[0, own].mean().expand(int(own.sum())))


def test_padding_does_not_leak_into_the_last_word():
    values, content = torch.tensor([[1.0, 3.0, 50.0]]), torch.tensor([[True, True, False]])
    assert group_means(values, torch.tensor([[0, 0, 0]]), content).tolist() == [[2.0, 2.0, 50.0]]


def test_vocabulary_weights_average_per_token_id():
    ids = torch.tensor([[7, 8, 0], [7, 7, 9]])
    content = torch.tensor([[True, True, False], [True, True, True]])
    weights = torch.tensor([[1.0, 2.0, 1.0], [4.0, 4.0, 0.5]])
    table = VocabularyWeights(ids, weights, content, 12)
    assert table(torch.tensor([[7, 8, 9, 3, 0]]), torch.ones(1, 5, dtype=torch.bool)).tolist() == [
        [3.0, 2.0, 0.5, 1.0, 1.0]
    ]
