"""What we rely on, or keep away from, in open_clip's records and towers; without any weights."""

import pytest
import torch

import dassl_prompts
from dassl_prompts.engine import get_cfg_default, merge_opts
from dassl_prompts.models import clip as models
from dassl_prompts.models import load_clip
from dassl_prompts.trainers.coop import CoOp

open_clip = pytest.importorskip("open_clip")
CLIP_STYLE = (models.MEAN, models.STD)


@pytest.mark.parametrize(
    "name, what",
    [
        (
            "ViT-B-16-SigLIP:webli",
            "also looks ahead .* image tower of timm .vit_base_patch16_siglip_224. and a tokenizer of 32000",
        ),
        ("coca_ViT-B-32:laion2b_s13b_b90k", "a summary token of its own .CoCa."),
        ("MobileCLIP-S1:datacompdr", "looks ahead .* image tower of timm .fastvit_mci1."),
        ("xlm-roberta-base-ViT-B-32:laion5b_s13b_b90k", "Hugging Face .xlm-roberta-base."),
    ],
)
def test_other_towers_are_refused_before_their_weights_are_fetched(monkeypatch, name, what):
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **kwargs: pytest.fail("fetched"))
    with pytest.raises(ValueError, match=f"{name} has .*{what}.*Give a CLIP"):
        load_clip(name)


def test_siglips_context_and_activation():
    text = {name: open_clip.get_model_config(name)["text_cfg"] for name in ("ViT-B-16-SigLIP", "coca_ViT-B-32")}
    assert (text["ViT-B-16-SigLIP"]["context_length"], text["coca_ViT-B-32"]["context_length"]) == (64, 76)
    assert "act_kwargs" not in text["ViT-B-16-SigLIP"]  # exact GELU
    second = open_clip.get_model_config("ViT-B-16-SigLIP2")
    if second is None:
        pytest.skip("this open_clip has no SigLIP 2")
    assert second["text_cfg"]["act_kwargs"] == {"approximate": "tanh"}


def test_cocas_summary_token_sees_the_first_padding_and_not_itself():
    from open_clip.transformer import TextTransformer

    tower = TextTransformer(context_length=5, vocab_size=9, width=8, heads=1, layers=1, embed_cls=True)
    masks = []
    own = tower.transformer.forward
    tower.transformer.forward = lambda x, attn_mask=None: masks.append(attn_mask) or own(x, attn_mask=attn_mask)
    tower(torch.tensor([[1, 2, 3, 0, 0]]))  # three tokens, two of padding; the summary token stands behind them
    assert (masks[0][0, -1] == 0).nonzero()[:, 0].tolist() == [0, 1, 2, 3]


def prepared_otherwise():
    """Tags of architectures that we take whose pictures were not prepared as OpenAI's."""
    found = {}
    for name, tag in open_clip.list_pretrained():
        config = open_clip.get_model_config(name)
        record = open_clip.get_pretrained_cfg(name, tag)
        if config is None:
            continue
        try:
            models.check_towers(name, config)
        except ValueError:
            continue
        colours = tuple(tuple(record.get(k) or v) for k, v in zip(("mean", "std"), CLIP_STYLE))
        if colours != CLIP_STYLE or record.get("resize_mode") == "squash":
            found[f"{name}:{tag}"] = "colours" if colours != CLIP_STYLE else "squashed"
    return found


def test_the_preparation_of_pictures_follows_the_tag_and_not_the_architecture():
    found = prepared_otherwise()
    assert found["ViT-L-14:laion2b_s32b_b82k"] == "colours" and "ViT-L-14:datacomp_xl_s13b_b90k" not in found
    assert {k for k, v in found.items() if v == "colours"} == {"ViT-L-14:laion2b_s32b_b82k"}


OPENAI = ("INPUT.PIXEL_MEAN", list(models.MEAN), "INPUT.PIXEL_STD", list(models.STD))
HALF = ("INPUT.PIXEL_MEAN", [0.5] * 3, "INPUT.PIXEL_STD", [0.5] * 3)


@pytest.mark.parametrize(
    "name, right, wrong",
    [
        ("ViT-L-14:laion2b_s32b_b82k", HALF, OPENAI),
        ("ViT-B-16:laion2b_s34b_b88k", OPENAI, HALF),
        ("ViT-B/16", OPENAI, HALF),
    ],
)
def test_pictures_in_other_colours_than_the_weights_expect_are_refused(monkeypatch, name, right, wrong):
    quick = name == "ViT-B/16"
    towers = {"embed_dim": 64, "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}}
    towers["text_cfg"] = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    monkeypatch.setattr(models, "from_open_clip", lambda _: models.build_model({**towers, "quick_gelu": quick}))

    def load(opts):
        cfg = get_cfg_default()
        dassl_prompts.extend_cfg(cfg)
        merge_opts(cfg, ["MODEL.BACKBONE.NAME", name, "TRAINER.NAME", "CoOp", "INPUT.SIZE", (32, 32), *opts])
        return CoOp.load_backbone(cfg, "cpu")

    load(right)
    with pytest.raises(
        ValueError, match=f"weights of {name} were trained on other colours .* give INPUT.PIXEL_MEAN ..{right[1][0]}"
    ):
        load(wrong)
