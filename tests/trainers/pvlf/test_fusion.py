"""The fusion module against plain float64 formulas and against torch's encoder layers.

One file: its cases share the slow formulas at its head.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from dassl_prompts.trainers.pvlf.fusion import (
    AdaptiveAggregation,
    ComposedQueryEncoder,
    FusionBlock,
    FusionTransformer,
    focal_info_nce,
)

D, HEADS, FF = 8, 2, 12


def tokens(batch=3, n_text=5, n_image=4, dtype=torch.float64):
    text, image = torch.randn(batch, n_text, D, dtype=dtype), torch.randn(batch, n_image, D, dtype=dtype)
    lengths = torch.tensor([3, 5, 4])[:batch]
    pad = torch.arange(n_text)[None, :] >= lengths[:, None]
    return text, lengths - 1, pad, image


def build(dtype=torch.float64, **options):
    options = {"num_layers": 2, "prompt_length": 3, "prompt_std": 1.0, **options}
    fusion = FusionTransformer(D, heads=HEADS, ff_dim=FF, dropout=0.0, **options)
    for p in fusion.parameters():  # all tensors random: biases and norms start at 0 and 1 otherwise
        torch.nn.init.normal_(p, std=0.4)
    return fusion.to(dtype)


# -- an independent, slow implementation: loops over samples, heads and queries ------------------------------


def layer_norm(x, norm):
    mean = sum(x[i] for i in range(len(x))) / len(x)
    var = sum((x[i] - mean) ** 2 for i in range(len(x))) / len(x)
    return (x - mean) / torch.sqrt(var + 1e-5) * norm.weight + norm.bias


def attention(rows, keys, bias, hidden, attn):
    w, b = attn.in_proj_weight, attn.in_proj_bias
    d = len(keys[0])
    size = d // attn.heads
    result = []
    for row in rows:
        heads = []
        for h in range(attn.heads):
            part = slice(h * size, (h + 1) * size)
            q = (w[:d] @ row + b[:d])[part]
            ks = [(w[d : 2 * d] @ key + b[d : 2 * d])[part] for key in keys]
            vs = [(w[2 * d :] @ key + b[2 * d :])[part] for key in keys]
            scores = [
                torch.exp(q @ k / math.sqrt(size) + bias[j]) * (0.0 if hidden[j] else 1.0) for j, k in enumerate(ks)
            ]
            heads.append(sum(s * v for s, v in zip(scores, vs)) / sum(scores))
        result.append(attn.out_proj.weight @ torch.cat(heads) + attn.out_proj.bias)
    return result


def feed_forward(x, layer):
    h = layer.linear1.weight @ x + layer.linear1.bias
    h = h.clamp(min=0) if layer.act is F.relu else h * 0.5 * (1 + torch.erf(h / math.sqrt(2)))
    return layer.linear2.weight @ h + layer.linear2.bias


def slow_block(rows, layer, bias, hidden):
    ln1, ln2 = (lambda x: layer_norm(x, layer.norm1)), (lambda x: layer_norm(x, layer.norm2))
    keys = [ln1(x) for x in rows] if layer.block == "pre_ln" else rows
    attended = attention(keys, keys, bias, hidden, layer.self_attn)
    out = []
    for x, a in zip(rows, attended):
        if layer.block == "pre_ln":
            u = x + a
            out.append(u + feed_forward(ln2(u), layer))
        elif layer.block == "paper_literal":
            u = a + ln1(x)
            out.append(feed_forward(ln2(u), layer) + ln2(u))
        else:
            u = ln1(x + a)
            out.append(ln2(u + feed_forward(u, layer)))
    return out


def slow_fusion(fusion, text, text_row, pad, image):
    h_t, h_v = [], []
    for t, row, hide, v in zip(text, text_row, pad, image):
        middle = [] if fusion.sep_token is None else [fusion.sep_token[0, 0]]
        n_sep = len(middle)
        middle += list(fusion.prompts[0]) if len(fusion.prompts) else []
        rows = [*t, *middle, *v]
        flags = [bool(h) for h in hide] + [False] * (len(rows) - len(t))
        bias = [1.0 if f and fusion.mask_mode == "official_bias" else 0.0 for f in flags]
        hidden = [f and fusion.mask_mode == "bool" for f in flags]
        if fusion.type_embed is not None:
            kinds = [0] * len(t) + [1] * len(middle) + [2] * len(v)
            rows = [x + fusion.type_embed[k] for x, k in zip(rows, kinds)]
        if fusion.text_pos is not None:
            where = len(t) + len(middle)
            rows = [
                x + fusion.text_pos[i] if i < len(t) else x + fusion.image_pos[i - where] if i >= where else x
                for i, x in enumerate(rows)
            ]
        for index, layer in enumerate(fusion.layers):
            if 0 < index < len(fusion.prompts):
                start = len(t) + n_sep
                rows[start : start + len(fusion.prompts[index])] = list(fusion.prompts[index])
            rows = slow_block(rows, layer, bias, hidden)
        if fusion.norm is not None:
            rows = [layer_norm(x, fusion.norm) for x in rows]
        h_t.append(rows[int(row)])
        h_v.append(rows[len(t) + len(middle)])
    return torch.stack(h_t), torch.stack(h_v)


def compare(fusion, inputs, atol=1e-9):
    """Values, and gradients of a random projection, of our module and the slow one."""
    text, row, pad, image = inputs
    results = []
    weights = torch.randn(2, len(text), D, dtype=text.dtype)
    for run in (fusion, lambda *a: slow_fusion(fusion, *a)):
        text_in, image_in = text.clone().requires_grad_(), image.clone().requires_grad_()
        out = torch.stack(run(text_in, row, pad, image_in))
        leaves = [text_in, image_in, *fusion.parameters()]
        grads = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
        results.append((out.detach(), [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads)]))
    (ours, our_grads), (slow, slow_grads) = results
    torch.testing.assert_close(ours, slow, atol=atol, rtol=0)
    for a, b in zip(our_grads, slow_grads):
        torch.testing.assert_close(a, b, atol=atol * 10, rtol=0)


@pytest.mark.parametrize("block", ["pre_ln", "paper_literal", "post_ln"])
@pytest.mark.parametrize("mask_mode", ["bool", "official_bias", "none"])
def test_equals_plain_formulas(block, mask_mode):
    compare(build(block=block, mask_mode=mask_mode), tokens())


@pytest.mark.parametrize(
    "options",
    [
        {"prompt_mode": "shallow"},
        {"prompt_mode": "none", "separator": True},
        {"prompt_mode": "none"},
        {"separator": True},
        {"num_layers": 3, "prompt_depth": 2},
        {"num_layers": 1, "prompt_depth": 1},
        {"act": "relu"},
        {"final_norm": True},
        {"type_embed": True},
        {"pos_embed": True, "max_text": 9, "max_image": 5},
    ],
)
def test_options_equal_plain_formulas(options):
    compare(build(**options), tokens())


@pytest.mark.parametrize("block", ["pre_ln", "paper_literal", "post_ln"])
def test_two_rows_equal_all_rows(block):
    fusion, inputs = build(block=block), tokens()
    for few, all_rows in zip(fusion(*inputs), fusion(*inputs, rows_only=False)):
        torch.testing.assert_close(few, all_rows, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("block", "norm_first"), [("pre_ln", True), ("post_ln", False)])
def test_block_equals_torch_layer(block, norm_first):
    ours = FusionBlock(D, HEADS, FF, 0.0, "gelu", block)
    torch_layer = torch.nn.TransformerEncoderLayer(
        D, HEADS, FF, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    torch_layer.load_state_dict(ours.state_dict())  # same names and shapes
    x = torch.randn(2, 6, D)
    torch.testing.assert_close(ours(x), torch_layer(x), atol=1e-6, rtol=0)


def transagg_official(layers, text, pad, sep, image):
    """TransAgg's call: torch's encoder on [text; separator; image] with a float padding mask."""
    x = torch.cat([text, sep.expand(len(text), -1, -1), image], dim=1)
    mask = torch.cat([pad.float(), torch.zeros(len(text), x.shape[1] - pad.shape[1])], dim=1)
    encoder = torch.nn.TransformerEncoder(layers[0], len(layers), enable_nested_tensor=False)
    encoder.layers = layers
    return encoder(x, src_key_padding_mask=mask)


@pytest.mark.parametrize("grad", [True, False])
def test_transagg_on_current_torch(grad):
    """D1, D2: with gradients torch adds the mask to the logits; its fused inference path hides the
    padding."""
    fusion = build(torch.float32, prompt_mode="none", separator=True)
    layers = torch.nn.ModuleList()
    for ours in fusion.layers:
        layer = torch.nn.TransformerEncoderLayer(D, HEADS, FF, 0.0, F.gelu, batch_first=True, norm_first=True)
        layer.load_state_dict(ours.state_dict())
        layers.append(layer)
    text, row, pad, image = tokens(dtype=torch.float32)
    fusion.mask_mode = "official_bias"
    if not grad:
        layers.eval()
        fusion.mask_mode = "bool"
    with torch.set_grad_enabled(grad):
        theirs = transagg_official(layers, text, pad, fusion.sep_token, image)
        h_t, h_v = fusion(text, row, pad, image)
    torch.testing.assert_close(h_v, theirs[:, text.shape[1] + 1], atol=1e-5, rtol=0)
    torch.testing.assert_close(h_t, theirs[torch.arange(3), row], atol=1e-5, rtol=0)


def test_transagg_is_shallow_pvlf_with_one_prompt():
    transagg = build(prompt_mode="none", separator=True)
    pvlf = build(prompt_mode="shallow", prompt_length=1)
    state = transagg.state_dict()
    state["prompts.0"] = state.pop("sep_token")[0]
    pvlf.load_state_dict(state)
    inputs = tokens()
    for a, b in zip(transagg(*inputs), pvlf(*inputs)):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_depth_one_is_shallow_and_no_prompt_is_none():
    inputs = tokens()
    deep, shallow = build(prompt_depth=1), build(prompt_mode="shallow")
    shallow.load_state_dict(deep.state_dict())
    torch.testing.assert_close(deep(*inputs), shallow(*inputs), atol=0, rtol=0)
    empty, none = build(prompt_length=0), build(prompt_mode="none")
    none.load_state_dict(empty.state_dict())
    torch.testing.assert_close(empty(*inputs), none(*inputs), atol=0, rtol=0)


def test_shallow_has_prompts_whatever_the_depth():
    """TransAgg's defaults have depth 0; PROMPT.MODE shallow must not silently be without prompts there."""
    assert [len(build(prompt_mode="shallow", prompt_depth=depth).prompts) for depth in (0, 1, 2)] == [1, 1, 1]
    # one layer with the default depth of two: the depth is that of mode deep
    assert len(build(prompt_mode="shallow", num_layers=1, prompt_depth=2).prompts) == 1
    assert not len(build(prompt_mode="none", num_layers=1, prompt_depth=2).prompts)
    with pytest.raises(ValueError, match="PROMPT.DEPTH is 2"):
        build(num_layers=1, prompt_depth=2)


def test_deep_prompts_change_the_second_layer():
    fusion, inputs = build(), tokens()
    before = torch.stack(fusion(*inputs))
    with torch.no_grad():
        fusion.prompts[1].neg_()
    assert (torch.stack(fusion(*inputs)) - before).abs().max() > 1e-3


def test_order_of_tokens_does_not_matter():
    """D5: without position or type vectors the module sees a set, so image and text may change places."""
    fusion = build(mask_mode="none")
    text, row, pad, image = tokens()
    expected = fusion(text, row, pad, image)
    shuffled = torch.randperm(text.shape[1])
    moved_row = torch.stack([(shuffled == r).nonzero()[0, 0] for r in row])
    torch.testing.assert_close(
        fusion(text[:, shuffled], moved_row, pad[:, shuffled], image), expected, atol=1e-12, rtol=0
    )
    zero = torch.zeros(3, dtype=torch.long)
    no_pad = torch.zeros(image.shape[:2], dtype=torch.bool)
    text_first = torch.stack([torch.roll(t, -int(r), 0) for t, r in zip(text, row)])  # the global text row comes first
    h_image, h_text = fusion(image, zero, no_pad, text_first)
    torch.testing.assert_close((h_text, h_image), expected, atol=1e-12, rtol=0)


def test_padding_is_invisible_only_in_bool_mode():
    text, row, pad, image = tokens()
    other = torch.where(pad[..., None], torch.randn_like(text), text)
    for mode, equal in (("bool", True), ("official_bias", False), ("none", False)):
        fusion = build(mask_mode=mode)
        difference = (
            (torch.stack(fusion(text, row, pad, image)) - torch.stack(fusion(other, row, pad, image))).abs().max()
        )
        assert (difference < 1e-12) == equal, mode


def test_trimmed_text_gives_the_same_in_bool_mode():
    fusion = build()
    text, row, pad, image = tokens(batch=1)
    torch.testing.assert_close(
        fusion(text, row, pad, image), fusion(text[:, :3], row, pad[:, :3], image), atol=1e-12, rtol=0
    )


def test_layers_start_equal_and_dropout_acts_in_training():
    fusion = FusionTransformer(D, heads=HEADS, ff_dim=FF, num_layers=3, prompt_length=2)
    first, *others = (layer.state_dict() for layer in fusion.layers)
    for other in others:
        for name in first:
            torch.testing.assert_close(first[name], other[name], atol=0, rtol=0)
    inputs = tokens(dtype=torch.float32)
    assert not torch.equal(fusion(*inputs)[0], fusion(*inputs)[0])
    fusion.eval()
    assert torch.equal(fusion(*inputs)[0], fusion(*inputs)[0])


def test_places_of_dropout(monkeypatch):
    """As torch's layer: on attention's probabilities and output, inside the feed-forward and on its output."""
    seen, attention = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F,
        "scaled_dot_product_attention",
        lambda *args, dropout_p, **more: (seen.append(("attention", dropout_p)), attention(*args, **more))[1],
    )
    block = FusionBlock(D, HEADS, FF, 0.3, "gelu", "pre_ln")
    block.dropout.register_forward_hook(lambda module, args, out: seen.append((out.shape[-1], module.p)))
    block(torch.randn(2, 3, D))
    assert seen == [("attention", 0.3), (D, 0.3), (FF, 0.3), (D, 0.3)]
    seen.clear()
    block.eval()(torch.randn(2, 3, D))
    assert seen[0] == ("attention", 0.0)


def test_places_of_dropout_in_the_aggregation():
    """On the hidden layer of its MLP, in training only."""
    aggregation, seen = AdaptiveAggregation(D, hidden_mult=3, dropout=0.3), []
    aggregation.dropout.register_forward_hook(lambda module, args, out: seen.append((out.shape[-1], module.p)))
    inputs = [torch.randn(4, D) for _ in range(4)]
    assert not torch.equal(aggregation(*inputs), aggregation(*inputs))
    assert seen == [(3 * D, 0.3)] * 2
    aggregation.eval()
    assert torch.equal(aggregation(*inputs), aggregation(*inputs))


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_deviations_of_prompts_and_separator(std):
    """Prompts start with PROMPT.INIT_STD, the separator, as TransAgg's, with 1."""
    fusion = FusionTransformer(512, heads=HEADS, ff_dim=FF, prompt_length=20, prompt_std=std, separator=True)
    for prompts in fusion.prompts:
        assert float(prompts.std()) == pytest.approx(std, rel=0.05)
    assert float(fusion.sep_token.std()) == pytest.approx(1.0, rel=0.15)


# -- aggregation ---------------------------------------------------------------------------------------------


def slow_aggregation(agg, h_t, h_v, t, v):
    out = []
    for a, b, c, d in zip(h_t, h_v, t, v):
        pair = torch.cat([b, a]) if agg.mlp_input == "fused" else torch.cat([d, c])
        hidden = (agg.combiner_layer.weight @ pair + agg.combiner_layer.bias).clamp(min=0)
        fused = agg.output_layer.weight @ hidden + agg.output_layer.bias
        w = agg.weighted_layer.weight @ fused + agg.weighted_layer.bias
        if agg.weight_act == "softmax":
            w = torch.exp(w) / torch.exp(w).sum()
        elif agg.weight_act == "sigmoid":
            w = 1 / (1 + torch.exp(-w))
        first, last = (c, d) if agg.residual == "encoder" else (a, b)
        if agg.normalize_inputs:
            first, last = first / first.norm(), last / last.norm()
        q = w[0] * first + w[1] * fused + w[2] * last
        out.append(q / q.norm())
    return torch.stack(out)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mlp_input": "encoder"},
        {"residual": "fused"},
        {"weight_act": "softmax"},
        {"weight_act": "sigmoid"},
        {"normalize_inputs": True},
        {"hidden_mult": 2},
    ],
)
def test_aggregation_equals_plain_formula(options):
    agg = AdaptiveAggregation(D, dropout=0.0, **options).double()
    inputs = [torch.randn(3, D, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    leaves = [*inputs, *agg.parameters()]
    direction = torch.randn(3, D, dtype=torch.float64)
    ours, slow = agg(*inputs), slow_aggregation(agg, *inputs)
    torch.testing.assert_close(ours, slow, atol=1e-12, rtol=0)
    for a, b in zip(
        torch.autograd.grad((ours * direction).sum(), leaves, allow_unused=True),
        torch.autograd.grad((slow * direction).sum(), leaves, allow_unused=True),
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_weight_bias_init():
    agg = AdaptiveAggregation(D, weight_bias=(1.0, 0.0, 1.0))
    assert agg.weighted_layer.bias.tolist() == [1.0, 0.0, 1.0]


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("width", "total_transagg", "total_pvlf"),
    [
        (512, 12_602_883, 12_627_971),
        (768, 25_193_731, 25_231_363),
        (256, 4_206_339, 4_218_883),
    ],
)
def test_parameter_counts_of_the_published_sizes(width, total_transagg, total_pvlf):
    aggregation = AdaptiveAggregation(width)
    transagg = FusionTransformer(width, prompt_mode="none", separator=True)
    pvlf = FusionTransformer(width)
    assert count(transagg) + count(aggregation) == total_transagg
    assert count(pvlf) + count(aggregation) == total_pvlf


def test_query_uses_unfused_globals():
    model = ComposedQueryEncoder(build(), AdaptiveAggregation(D, dropout=0.0).double())
    text, row, pad, image = tokens()
    h_t, h_v = model.fusion(text, row, pad, image)
    t = torch.stack([text[i, r] for i, r in enumerate(row)])
    expected = slow_aggregation(model.aggregation, h_t, h_v, t, image[:, 0])
    query = model(text, row, pad, image)
    torch.testing.assert_close(query, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(query.norm(dim=-1), torch.ones(3, dtype=torch.float64))


# -- loss ----------------------------------------------------------------------------------------------------


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def slow_focal(query, target, tau, alpha, gamma, ids=None):
    total = 0
    for i in range(len(query)):
        scores = [
            torch.exp(query[i] @ target[j] / tau)
            for j in range(len(target))
            if j == i or ids is None or ids[j] != ids[i]
        ]
        p = torch.exp(query[i] @ target[i] / tau) / sum(scores)
        total = total - alpha * (1 - p) ** gamma * torch.log(p)
    return total / len(query)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 2]])
def test_focal_equals_plain_formula(gamma, ids):
    query, target = unit(5, 8).requires_grad_(), unit(5, 8).requires_grad_()
    known = None if ids is None else torch.tensor(ids)
    ours = focal_info_nce(query, target, tau=0.1, alpha=0.7, gamma=gamma, target_ids=known)
    slow = slow_focal(query, target, 0.1, 0.7, gamma, ids)
    torch.testing.assert_close(ours, slow, atol=1e-10, rtol=0)
    for a, b in zip(torch.autograd.grad(ours, (query, target)), torch.autograd.grad(slow, (query, target))):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=0)


def test_symmetric_is_the_mean_of_both_directions():
    query, target = unit(5, 8), unit(5, 8)
    both = focal_info_nce(query, target, symmetric=True)
    expected = (focal_info_nce(query, target) + focal_info_nce(target, query)) / 2
    torch.testing.assert_close(both, expected)


def test_gamma_zero_is_cross_entropy_exactly():
    query, target = unit(5, 8).float(), unit(5, 8).float()
    expected = F.cross_entropy(query @ target.T / 0.01, torch.arange(5))
    assert torch.equal(focal_info_nce(query, target, gamma=0.0), expected)


def test_focal_gradcheck():
    query, target = unit(4, 6).requires_grad_(), unit(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda q, t: focal_info_nce(q, t, tau=0.2), (query, target))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_focal_is_finite_for_certain_rows(gamma, sign):
    """p -> 1 (queries equal their targets) and p -> 0 (opposite), in half precision."""
    target = torch.eye(4).half()
    query = (sign * target).clone().requires_grad_()
    loss = focal_info_nce(query, target, gamma=gamma)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(query.grad).all()


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"block": "pre"}, "FUSION.BLOCK"),
        ({"mask_mode": "float"}, "FUSION.MASK_MODE"),
        ({"act": "tanh"}, "FUSION.ACT"),
        ({"prompt_mode": "all"}, "PROMPT.MODE"),
        ({"prompt_depth": 3}, "PROMPT.DEPTH"),
        ({"prompt_length": -1}, "PROMPT.LENGTH"),
        ({"num_layers": 0, "prompt_depth": 0}, "FUSION.NUM_LAYERS"),
        ({"heads": 3}, "FUSION.HEADS"),
        ({"pos_embed": True}, "POS_EMBED"),
    ],
)
def test_wrong_options_name_their_key(options, key):
    with pytest.raises(ValueError, match=key):
        FusionTransformer(**{"width": D, "heads": HEADS, **options})


def test_copying_keeps_outputs():
    fusion, inputs = build(), tokens()
    torch.testing.assert_close(copy.deepcopy(fusion)(*inputs), fusion(*inputs), atol=0, rtol=0)
