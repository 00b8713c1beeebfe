"""Schedules and optimisers against numbers of stock Dassl and against torch's own schedulers."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, StepLR

from dassl_prompts.engine import ENGINE_NAME, build_lr_scheduler, build_optimizer, get_cfg_default
from dassl_prompts.engine.builtin import optim as builtin

GOLDEN = np.load(Path(__file__).parent.parent / "fixtures" / "dassl_schedule.npz")
TRACES = [key for key in GOLDEN if key.startswith("lr/")]
SCHEDULES = ["single_step", "multi_step", "cosine"]
WARMUPS = [(-1, "constant"), (1, "constant"), (3, "constant"), (1, "linear"), (3, "linear")]


def optim_cfg(**values):
    cfg = get_cfg_default().OPTIM
    for key, value in {"NAME": "sgd", "LR": 0.002, "MAX_EPOCH": 10, "GAMMA": 0.3, **values}.items():
        cfg[key] = value
    return cfg


def scheduled(cfg):
    optimizer = build_optimizer([torch.nn.Parameter(torch.ones(2))], cfg)
    return optimizer, build_lr_scheduler(optimizer, cfg)


def trace(optimizer, scheduler, epochs):
    """Learning rate in force during each epoch."""
    rates = []
    for _ in range(epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("key", TRACES)
def test_rates_equal_those_of_stock_dassl(key):
    name = re.fullmatch(r"lr/(\w+?)_lr([\d.]+)_E(\d+)_(?:nowarmup|warm(\d+)_(const|linear)([\de.-]+))", key)
    schedule, lr, epochs, warmup, kind, value = name.groups()
    warm = {"WARMUP_EPOCH": int(warmup or -1)}
    if warmup:
        warm["WARMUP_TYPE"] = {"const": "constant", "linear": "linear"}[kind]
        warm["WARMUP_CONS_LR" if kind == "const" else "WARMUP_MIN_LR"] = float(value)
    cfg = optim_cfg(LR_SCHEDULER=schedule, LR=float(lr), MAX_EPOCH=int(epochs), **warm)
    np.testing.assert_allclose(trace(*scheduled(cfg), int(epochs)), GOLDEN[key], rtol=0, atol=1e-12)


def nested_trace(cfg, steps):
    """What Dassl's warm-up around a torch scheduler does, written out: a second counter and torch's
    recursions."""
    optimizer = build_optimizer([torch.nn.Parameter(torch.ones(2))], cfg)
    make = {
        "single_step": lambda: StepLR(optimizer, steps, gamma=cfg.GAMMA),
        "multi_step": lambda: MultiStepLR(optimizer, list(cfg.STEPSIZE), gamma=cfg.GAMMA),
        "cosine": lambda: CosineAnnealingLR(optimizer, float(cfg.MAX_EPOCH)),
    }
    successor, warmup = make[cfg.LR_SCHEDULER](), max(cfg.WARMUP_EPOCH, 0)
    if warmup and not cfg.WARMUP_RECOUNT:
        successor.last_epoch = warmup
    first = cfg.WARMUP_CONS_LR if cfg.WARMUP_TYPE == "constant" else cfg.WARMUP_MIN_LR
    group, rates = optimizer.param_groups[0], []
    for epoch in range(cfg.MAX_EPOCH):
        if epoch < warmup:
            linear = cfg.WARMUP_TYPE == "linear" and epoch > 0
            group["lr"] = cfg.LR * epoch / warmup if linear else first
        elif epoch == warmup:
            group["lr"] = cfg.LR
        else:
            optimizer.step()
            successor.step()
        rates.append(group["lr"])
    return rates


@pytest.mark.parametrize("recount", [True, False])
@pytest.mark.parametrize(("schedule", "warmup"), product(SCHEDULES, WARMUPS))
def test_rates_equal_torchs_schedulers_behind_a_warmup(schedule, warmup, recount):
    stepsize = (2, 5, 6) if schedule == "multi_step" else (4,)
    cfg = optim_cfg(
        LR_SCHEDULER=schedule,
        STEPSIZE=stepsize,
        WARMUP_EPOCH=warmup[0],
        WARMUP_TYPE=warmup[1],
        WARMUP_RECOUNT=recount,
    )
    np.testing.assert_allclose(trace(*scheduled(cfg), 10), nested_trace(cfg, 4), rtol=1e-9)


@pytest.mark.parametrize("stop", [1, 2, 4, 9])
@pytest.mark.parametrize(("schedule", "warmup"), product(SCHEDULES, WARMUPS))
def test_a_resumed_schedule_follows_the_uninterrupted_one(schedule, warmup, stop):
    stepsize = (2, 5, 6) if schedule == "multi_step" else (4,)
    cfg = optim_cfg(LR_SCHEDULER=schedule, STEPSIZE=stepsize, WARMUP_EPOCH=warmup[0], WARMUP_TYPE=warmup[1])
    straight = trace(*scheduled(cfg), 10)

    optimizer, scheduler = scheduled(cfg)
    assert trace(optimizer, scheduler, stop) == straight[:stop]
    states = optimizer.state_dict(), scheduler.state_dict()
    optimizer, scheduler = scheduled(cfg)
    optimizer.load_state_dict(states[0])
    scheduler.load_state_dict(states[1])
    assert trace(optimizer, scheduler, 10 - stop) == straight[stop:]


def test_state_is_flat():
    _, scheduler = scheduled(optim_cfg(LR_SCHEDULER="cosine", WARMUP_EPOCH=1))
    leaves = [v for value in scheduler.state_dict().values() for v in (value if isinstance(value, list) else [value])]
    assert all(type(leaf) in (int, float) for leaf in leaves)


def test_states_of_stock_dassl_continue_at_the_right_epoch():
    """There the outer counter stops at the end of the warm-up and the wrapped scheduler counts on."""
    cfg = optim_cfg(LR_SCHEDULER="cosine", WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    straight = trace(*scheduled(cfg), 10)
    optimizer, scheduler = scheduled(cfg)

    class Successor:
        last_epoch = 3

    scheduler.load_state_dict({"last_epoch": 1, "successor": Successor, "base_lrs": [0.002]})
    assert optimizer.param_groups[0]["lr"] == straight[4]


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        ({"LR_SCHEDULER": "cosin"}, ValueError, "OPTIM.LR_SCHEDULER.*cosine.*cosin"),
        (
            {"LR_SCHEDULER": "cosine", "WARMUP_EPOCH": 1, "WARMUP_TYPE": "slow"},
            ValueError,
            "OPTIM.WARMUP_TYPE.*slow",
        ),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": 3}, TypeError, "OPTIM.STEPSIZE"),
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": ("a",)}, TypeError, "OPTIM.STEPSIZE"),
    ],
)
def test_wrong_settings_name_their_key(values, error, text):
    with pytest.raises(error, match=text):
        scheduled(optim_cfg(**values))


def test_the_built_in_engine_names_the_key_of_an_unknown_optimiser():
    with pytest.raises(ValueError, match="OPTIM.NAME.*sgd.*sdg"):
        builtin.build_optimizer([torch.nn.Parameter(torch.ones(2))], optim_cfg(NAME="sdg"))


def test_sgd_steps_equal_stock_dassl():
    cfg = optim_cfg(NAME="sgd", LR=0.0035)
    parameter = torch.nn.Parameter(torch.from_numpy(GOLDEN["sgd/param0"].copy()))
    optimizer = build_optimizer([parameter], cfg)
    for i, grad in enumerate(GOLDEN["sgd/grads"]):
        parameter.grad = torch.from_numpy(grad.copy())
        optimizer.step()
        np.testing.assert_allclose(parameter.detach().numpy(), GOLDEN[f"sgd/param{i + 1}"], atol=1e-7)


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("adam", torch.optim.Adam, {"amsgrad": False, "betas": (0.8, 0.99)}),
        ("amsgrad", torch.optim.Adam, {"amsgrad": True, "betas": (0.8, 0.99)}),
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.99)}),
        ("radam", torch.optim.RAdam, {"betas": (0.8, 0.99), "decoupled_weight_decay": True}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.9, "momentum": 0.7}),
        ("sgd", torch.optim.SGD, {"momentum": 0.7, "dampening": 0.1, "nesterov": False}),
    ],
)
def test_optimisers_take_their_settings(name, kind, settings):
    cfg = optim_cfg(
        NAME=name,
        ADAM_BETA1=0.8,
        ADAM_BETA2=0.99,
        RMSPROP_ALPHA=0.9,
        MOMENTUM=0.7,
        SGD_DAMPNING=0.1,
        WEIGHT_DECAY=0.01,
    )
    optimizer = build_optimizer(torch.nn.Linear(2, 2), cfg)
    group = optimizer.param_groups[0]
    if kind is torch.optim.RAdam and ENGINE_NAME == "dassl":  # its own, see the next test
        kind, settings = type(optimizer), {"betas": (0.8, 0.99)}
    assert type(optimizer) is kind and group["lr"] == 0.002 and group["weight_decay"] == 0.01
    assert {key: group[key] for key in settings} == settings


def test_radam_takes_the_same_steps_on_both_engines():
    """Dassl's own implementation, where it is installed, against torch's with decoupled weight decay."""
    weights = []
    for engine in (build_optimizer, builtin.build_optimizer):
        weight = torch.nn.Parameter(torch.ones(4))
        optimizer = engine([weight], optim_cfg(NAME="radam", WEIGHT_DECAY=0.01))
        torch.manual_seed(0)
        for _ in range(12):
            weight.grad = torch.randn(4)
            optimizer.step()
        weights.append(weight.detach())
    assert (weights[0] - 1).abs().max() > 0.005
    torch.testing.assert_close(*weights, atol=5e-6, rtol=0)


def test_staged_learning_rates():
    model = torch.nn.Sequential()
    model.add_module("body", torch.nn.Linear(2, 2))
    model.add_module("head", torch.nn.Linear(2, 1))
    optimizer = build_optimizer(model, optim_cfg(STAGED_LR=True, NEW_LAYERS=("head",), BASE_LR_MULT=0.1))
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.head.weight)] == 0.002 and rates[id(model.body.weight)] == pytest.approx(0.0002)
    with pytest.raises(TypeError, match="STAGED_LR"):
        builtin.build_optimizer(model.parameters(), optim_cfg(STAGED_LR=True))
