"""Checkpoints: format, safe reading, atomic writing, what is learned."""

import os
import pickle
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import torch
from torch import nn

from dassl_prompts.engine import (
    UnsafePickleError,
    learned_tensors,
    load_checkpoint,
    load_learned_tensors,
    load_pretrained_weights,
    read_pickle,
    save_checkpoint,
)
from dassl_prompts.engine.checkpoint import write_tensors
from dassl_prompts.engine.files import atomic_path
from dassl_prompts.engine.unpickle import Inert


def coop_style_checkpoint(path):
    """What stock Dassl writes after a warm-up: the successor scheduler object, with the optimiser inside."""
    parameter = nn.Parameter(torch.ones(4, 3))
    optimizer = torch.optim.SGD([parameter], lr=0.002, momentum=0.9)
    successor = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    parameter.sum().backward()
    optimizer.step()
    successor.step()
    scheduler = {
        "successor": successor,
        "warmup_epoch": 1,
        "last_epoch": 1,
        "base_lrs": [0.002],
        "_last_lr": [0.002],
    }
    state = OrderedDict(ctx=parameter.detach(), token_prefix=torch.zeros(2, 1, 3, dtype=torch.float16))
    torch.save(
        {
            "state_dict": state,
            "epoch": 2,
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler,
            "val_result": np.float64(54.25),
            "extra": defaultdict(list, a=[1]),
        },
        path,
    )
    return state


@pytest.mark.parametrize("zipped", [True, False])
def test_coop_checkpoints_load_without_running_pickled_code(tmp_path, zipped):
    path = tmp_path / "model.pth.tar-2"
    state = coop_style_checkpoint(path)
    if not zipped:
        torch.save(torch.load(path, weights_only=False), path, _use_new_zipfile_serialization=False)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)

    checkpoint = load_checkpoint(path)
    assert checkpoint["epoch"] == 2 and float(checkpoint["val_result"]) == 54.25 and checkpoint["extra"] == {"a": [1]}
    assert all(torch.equal(checkpoint["state_dict"][key], value) for key, value in state.items())
    assert checkpoint["state_dict"]["token_prefix"].dtype == torch.float16
    successor = checkpoint["scheduler"]["successor"]
    assert isinstance(successor, Inert) and successor.last_epoch == 1
    assert successor.pickled_class == "torch.optim.lr_scheduler.CosineAnnealingLR"
    assert isinstance(successor.optimizer, Inert)
    assert checkpoint["optimizer"]["state"][0]["momentum_buffer"].shape == (4, 3)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, zipped):
    path, trace = tmp_path / "model.pth.tar-1", tmp_path / "attacked"
    torch.save({"state_dict": {}, "x": Attack(trace)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafePickleError, match="model.pth.tar-1 refers to (posix|nt|os).mkdir.*trust=True"):
        load_checkpoint(path)
    assert not trace.exists()
    load_checkpoint(path, trust=True)
    assert trace.exists()


def test_code_in_a_fewshot_cache_is_refused_and_not_run(tmp_path):
    path, trace = tmp_path / "shot_1-seed_1.pkl", tmp_path / "attacked"
    path.write_bytes(pickle.dumps({"train": [Attack(trace)]}))
    with pytest.raises(UnsafePickleError, match="shot_1-seed_1.pkl refers to (posix|nt|os).mkdir"):
        read_pickle(path)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [2, 4])
def test_dassls_fewshot_pickles_are_read(tmp_path, protocol):
    from dassl_prompts.engine.builtin.datasets import Datum

    items = [Datum(impath="/old/root/a.jpg", label=3, domain=0, classname="cat")]
    data = pickle.dumps({"train": items, "val": []}, protocol=protocol)
    ours, theirs = b"dassl_prompts.engine.datum", b"dassl.data.datasets.base_dataset"
    if protocol == 4:  # short strings carry their length
        data = data.replace(b"\x8c" + bytes([len(ours)]) + ours, b"\x8c" + bytes([len(theirs)]) + theirs)
        data = b"\x80\x04" + data[11:]  # without the frame, whose length has changed
    data = data.replace(ours, theirs)
    path = tmp_path / "shot_1-seed_1.pkl"
    path.write_bytes(data)
    assert b"dassl.data" in data
    (item,) = read_pickle(path)["train"]
    assert (item.impath, item.label, item.domain, item.classname) == ("/old/root/a.jpg", 3, 0, "cat")


@pytest.mark.parametrize("keep", [0, 10, 700])
def test_damaged_files_are_named(tmp_path, keep):
    path = tmp_path / "model.pth.tar-2"
    coop_style_checkpoint(path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="model.pth.tar-2 is not a readable checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps({"train": list(range(1000))})[:keep])
    with pytest.raises(ValueError, match="model.pth.tar-2 is not a readable pickle"):
        read_pickle(path)


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        load_checkpoint(tmp_path / "nothing.pth")
    with pytest.raises(ValueError, match="File path is None"):
        load_checkpoint(None)


def test_saved_checkpoints_load_with_torchs_defaults(tmp_path, capsys):
    state = {
        "state_dict": {"module.ctx": torch.arange(3.0)},
        "epoch": 3,
        "optimizer": None,
        "scheduler": {"last_epoch": 3},
        "val_result": np.float64(50.5),
    }
    save_checkpoint(state, tmp_path / "prompt_learner")
    path = tmp_path / "prompt_learner" / "model.pth.tar-3"
    assert f"Checkpoint saved to {path}" in capsys.readouterr().out
    loaded = torch.load(path)
    assert list(loaded["state_dict"]) == ["ctx"] and loaded["val_result"] == 50.5
    assert (path.parent / "checkpoint").read_text() == "model.pth.tar-3\n"
    # the best model leaves the pointer to the newest alone
    save_checkpoint({**state, "epoch": 2}, path.parent, model_name="model-best.pth.tar")
    assert (path.parent / "checkpoint").read_text() == "model.pth.tar-3\n"
    assert torch.load(path.parent / "model-best.pth.tar")["epoch"] == 2
    save_checkpoint(state, path.parent, is_best=True)
    assert torch.load(path.parent / "model-best.pth.tar")["epoch"] == 3
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "checkpoint",
        "model-best.pth.tar",
        "model.pth.tar-3",
    ]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    with pytest.raises(TypeError, match=r"resume.pt\['extra'\]\[0\] is a float64"):
        write_tensors({"extra": [np.float64(1)]}, tmp_path / "resume.pt")
    assert list(tmp_path.iterdir()) == []


class Net(nn.Module):
    def __init__(self, n_ctx=4):
        super().__init__()
        self.clip = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.ctx = nn.Parameter(torch.randn(n_ctx, 2))
        self.register_buffer("prototypes", torch.randn(2))
        self.register_buffer("token_prefix", torch.randn(3, 1))
        self.register_buffer("scratch", torch.randn(2), persistent=False)


def test_learned_tensors_leave_the_frozen_towers_out():
    names = set(learned_tensors(Net()))
    assert not any(name.startswith("clip.") or name == "scratch" for name in names)
    assert {"ctx", "prototypes", "head.0.weight", "head.1.running_mean"} <= names


def test_loading_learned_tensors():
    source, target = Net(), Net()
    own_prefix = target.token_prefix.clone()
    left_out = load_learned_tensors(target, {**source.state_dict(), "stranger": torch.ones(1)})
    assert torch.equal(target.ctx, source.ctx) and torch.equal(target.prototypes, source.prototypes)
    assert torch.equal(target.token_prefix, own_prefix)
    assert not torch.equal(target.clip[0].weight, source.clip[0].weight)
    assert {"stranger", "token_prefix", "clip.0.weight"} <= set(left_out)


def test_a_checkpoint_of_another_shape_or_method_changes_nothing():
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(ValueError, match=r"x.pth.*ctx: \(5, 2\) in the file, \(4, 2\) in the model"):
        load_learned_tensors(net, Net(n_ctx=5).state_dict(), source="x.pth")
    with pytest.raises(ValueError, match=r"x.pth does not hold \['ctx'.*another method.*'other'"):
        load_learned_tensors(net, {"other": torch.ones(1)}, source="x.pth")
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())


def test_load_pretrained_weights(tmp_path, capsys):
    torch.save({"state_dict": {"module.weight": torch.full((2, 2), 5.0), "bias": torch.ones(7)}}, tmp_path / "w.pth")
    layer = nn.Linear(2, 2)
    load_pretrained_weights(layer, tmp_path / "w.pth")
    assert torch.equal(layer.weight, torch.full((2, 2), 5.0)) and layer.bias.shape == (2,)
    out = capsys.readouterr().out
    assert "Successfully loaded" in out and "discarded due to unmatched keys or size: ['bias']" in out
    with pytest.warns(UserWarning, match="w.pth"):
        load_pretrained_weights(nn.Conv2d(1, 1, 1), tmp_path / "w.pth")
