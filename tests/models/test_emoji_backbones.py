"""The embedded backbones: they load everywhere, and they know something about a style that they have not
seen.
"""

import importlib.util
import json
import lzma
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from dassl_prompts.emoji import archives as emoji
from dassl_prompts.emoji import cards as emoji_cards
from dassl_prompts.models import load_clip

ROOT = Path(emoji.__file__).resolve().parents[1]
LIMIT = {"emoji-tiny": 14e6, "emoji-base": 30e6, "open-tiny": 12e6}
TEXTS = ["a photo of a mammal.", "woman firefighter with dark skin tone", "red heart"]


@pytest.fixture(scope="module", params=sorted(LIMIT))
def name(request):
    return request.param


def state_dict(name):
    return load(lzma.decompress((ROOT / "assets" / "models" / f"{name}.safetensors.xz").read_bytes()))


def test_file_is_small_and_in_half_precision(name):
    assert (ROOT / "assets" / "models" / f"{name}.safetensors.xz").stat().st_size <= LIMIT[name]
    state = state_dict(name)
    assert {v.dtype for v in state.values()} == {torch.float16}
    assert all(v.isfinite().all() for v in state.values())
    assert state["token_embedding.weight"].shape[0] == 49408 and state["positional_embedding"].shape[0] == 77
    assert state["text_projection"].shape[0] == state["text_projection"].shape[1]


def images(count=8):
    pictures = emoji.pictures(emoji.HELD_OUT)[:: 3000 // count][:count]
    import numpy as np

    from dassl_prompts.images import read_image

    pixels = torch.from_numpy(np.stack([np.asarray(read_image(p.path)) for p in pictures]))
    return pixels.permute(0, 3, 1, 2).float() / 255 - 0.5


def test_open_clip_gives_the_same_features(name):
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    import dassl_prompts.configs

    config = json.loads((Path(dassl_prompts.configs.__path__[0]) / "backbones" / f"{name}.json").read_text())
    theirs = CLIP(
        config["embed_dim"],
        CLIPVisionCfg(**config["vision_cfg"]),
        CLIPTextCfg(**config["text_cfg"]),
        quick_gelu=config["quick_gelu"],
    ).eval()
    missing = theirs.load_state_dict({k: v.float() for k, v in state_dict(name).items()}, strict=False)
    assert missing.unexpected_keys == [] and set(missing.missing_keys) <= {"attn_mask"}
    check_same(load_clip(name), theirs)


def test_the_reference_builder_gives_the_same_features(name):
    found = importlib.util.find_spec("clip")
    if found is None or not Path(found.origin).with_name("model.py").is_file():
        pytest.skip('clip-anytorch is not installed: pip install -e ".[dev]", as scripts/test.sh does')
    # Its clip.py needs pkg_resources, which current setuptools no longer has: take the model file alone.
    spec = importlib.util.spec_from_file_location("reference_clip", Path(found.origin).with_name("model.py"))
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    check_same(load_clip(name), reference.build_model(state_dict(name)).float())


def check_same(ours, theirs):
    tokens, pictures = ours.tokenize(TEXTS), images()
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_text(tokens), theirs.encode_text(tokens), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(ours.encode_image(pictures), theirs.encode_image(pictures), atol=1e-3, rtol=1e-3)


def test_zero_shot_on_the_unseen_style_is_far_above_chance(name):
    from dassl_prompts.emoji.splits import read_splits

    features, names = emoji_cards.Features(name), emoji.classnames()
    test = read_splits(emoji.HELD_OUT).test
    assert emoji_cards.accuracy(features, test, names) >= 8 * 100 / len(names)
    pictures = emoji.pictures(emoji.HELD_OUT, tones=False)
    assert len(pictures) >= 1000
    similarity = features.picture([p.path for p in pictures]) @ features.text([p.concept.name for p in pictures]).T
    assert emoji_cards.recalls(similarity)[0] >= 100 * 100 / len(pictures)


def test_composed_text_moves_the_query_towards_the_target():
    from dassl_prompts.emoji.retrieval import emoji_cirr

    features, cirr = emoji_cards.Features("emoji-tiny"), emoji_cirr()
    image, both = (emoji_cards.composed(features, cirr, use)[3] for use in (("image",), ("image", "text")))
    assert both > image + 5


def test_rows_of_words_never_met_are_one_constant_vector(name):
    table = state_dict(name)["token_embedding.weight"]
    rows, counts = table.float().unique(dim=0, return_counts=True)
    assert counts.max() > 30000 and 2000 < len(rows) < 18000


def test_recalls_and_composed_against_plain_counting():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.3, 0.7, 0.6]])
    assert emoji_cards.recalls(similarity, (1, 2)) == pytest.approx([100 / 3, 100])

    class Fixed:
        vectors = {"a": [1.0, 0.0], "b": [0.9, 0.1], "c": [0.0, 1.0], "d": [0.6, 0.6]}

        def picture(self, paths):
            return torch.tensor([self.vectors[p] for p in paths])

        def text(self, sentences):
            return torch.tensor([[0.0, 1.0]] * len(sentences))

    query = {
        "reference": "a",
        "target_hard": "d",
        "caption": "x",
        "img_set": {"members": ["a", "b", "c", "d"]},
    }
    cirr = {"captions": [query], "image_splits": {n: n for n in "abcd"}}
    assert emoji_cards.composed(Fixed(), cirr, ("image",))[0] == 0  # b is nearer to a
    assert emoji_cards.composed(Fixed(), cirr, ("image", "text")) == [100, 100, 100, 100]
