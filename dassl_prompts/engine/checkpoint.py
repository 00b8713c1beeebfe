"""Checkpoints: CoOp's folders and keys, written atomically, read without executing pickled code.

``<run>/<registered name>/model.pth.tar-<epoch>`` holds ``state_dict``, ``epoch`` (epochs done),
``optimizer``, ``scheduler``, ``val_result``, ``trainer`` and ``classnames``; the text file ``checkpoint`` beside it names the newest epoch
file.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dassl_prompts.engine.files import atomic_path
from dassl_prompts.engine.reading import DamagedFile, read_text, reading, require
from dassl_prompts.engine.unpickle import UnsafePickleError, pickle_module

BEST = "model-best.pth.tar"


def load_checkpoint(fpath: str | os.PathLike, trust: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without running pickled code.

    Tensors and plain values come back as they are, whoever wrote them.
    Checkpoints of stock Dassl also contain scheduler and optimiser objects: these come back as inert records
    (:class:`dassl_prompts.engine.unpickle.Inert`); yacs configurations as dictionaries; numpy scalars and plain arrays, also
    those of numpy 1, as what they are.

    Args:
        fpath: the file.
        trust: run the pickle as it is; only for files whose origin you know.

    Raises:
        ValueError: no path was given, or the file is damaged or not a checkpoint.
        FileNotFoundError: there is no such file.
        UnsafePickleError: the file refers to code; names it.
    """
    if not fpath:
        raise ValueError("File path is None")
    if not os.path.isfile(fpath):
        raise FileNotFoundError(f'File is not found at "{fpath}"')
    try:
        with reading(fpath, "a readable checkpoint (damaged or cut short?)"):
            if trust:
                return torch.load(fpath, map_location="cpu", weights_only=False)
            _check_archive(fpath)
            content = torch.load(fpath, map_location="cpu", weights_only=False, pickle_module=pickle_module)
            require(isinstance(content, Mapping), f"it holds a {type(content).__name__} instead of entries by name")
            return content
    except UnsafePickleError as error:
        raise UnsafePickleError(
            f"{fpath} {error}; it was not read. If you know where the file comes from: load_checkpoint(path, trust=True)"
        ) from error


def _check_archive(fpath: str | os.PathLike) -> None:
    """Compare the members of an archive of ``torch.save`` with their checksums, which torch itself does not.

    Raises:
        ValueError: one is damaged, or unpacks to more than the file holds (torch packs none).
    """
    if not zipfile.is_zipfile(fpath):  # of torch before 1.6, without checksums
        return
    with zipfile.ZipFile(fpath) as archive:
        packed = [info.filename for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]
        require(not packed, f"its part {', '.join(packed[:1])} is compressed, as torch never writes it")
        damaged = archive.testzip()
        require(damaged is None, f"its part {damaged} does not fit its checksum")


def require_finite(tensors: Mapping[str, Any], source: str) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        ValueError: names ``source``, the tensor and how many of its numbers are not finite.
    """
    for name, value in tensors.items():
        if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
            continue
        bad = int(value.numel() - value.isfinite().sum())
        if bad:
            raise ValueError(
                f"{source}: {bad:,} of {value.numel():,} numbers of {name} are not finite (NaN or infinity): the training "
                "went wrong or the file is damaged; take another epoch's checkpoint or fetch the file again"
            )


def save_checkpoint(
    state: dict[str, Any],
    save_dir: str | os.PathLike,
    is_best: bool = False,
    remove_module_from_keys: bool = True,
    model_name: str = "",
) -> None:
    """Write ``state`` to ``save_dir/model.pth.tar-<epoch>`` (or ``model_name``), atomically.

    Unlike stock Dassl a file with its own name, such as ``model-best.pth.tar``, leaves the pointer file
    ``checkpoint``
    alone: it always names the newest epoch file.

    Args:
        state: needs ``state_dict`` and ``epoch``.
        save_dir: folder of one registered model, made if missing.
        is_best: also write the same content to ``model-best.pth.tar``.
        remove_module_from_keys: strip DataParallel's leading ``module.`` from the tensor names.
        model_name: file name instead of the default.
    """
    state = dict(state)
    if remove_module_from_keys:
        state["state_dict"] = strip_module(state["state_dict"])
    if state.get("val_result") is not None:
        state["val_result"] = float(state["val_result"])  # a numpy scalar would not load with weights_only
    save_dir = Path(save_dir)
    path = save_dir / (model_name or f"model.pth.tar-{state['epoch']}")
    write_tensors(state, path)
    print(f"Checkpoint saved to {path}")
    if not model_name:
        with atomic_path(save_dir / "checkpoint") as temporary:
            temporary.write_text(f"{path.name}\n", encoding="utf-8")
    if is_best:
        write_tensors(state, save_dir / BEST)
        print(f'Best checkpoint saved to "{save_dir / BEST}"')


PLAIN = (type(None), bool, int, float, str, bytes)


def require_plain(state: Any, where: str) -> None:
    """Check that ``state`` can be read safely: tensors, plain values and containers of them.

    Raises:
        TypeError: names the entry that does not.
    """
    if isinstance(state, Tensor) or type(state) in PLAIN:
        return
    if type(state) in (dict, OrderedDict):
        for key, value in state.items():
            require_plain(key, f"a key of {where}")
            require_plain(value, f"{where}[{key!r}]")
    elif type(state) in (list, tuple):
        for index, value in enumerate(state):
            require_plain(value, f"{where}[{index}]")
    else:
        raise TypeError(
            f"{where} is a {type(state).__name__}; a checkpoint takes tensors, numbers, text, lists and dicts only"
        )


def write_tensors(state: Any, path: str | os.PathLike) -> None:
    """``torch.save`` through a temporary file.

    Raises:
        TypeError: something in ``state`` could not be read back with ``weights_only=True``; names it.
    """
    require_plain(state, Path(path).name)
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as file,
    ):  # torch's own opening loses what the system says
        torch.save(state, file)


def strip_module(state_dict: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """Tensor names without DataParallel's leading ``module.``."""
    return OrderedDict((key.removeprefix("module."), value) for key, value in state_dict.items())


def resume_from_checkpoint(fdir: str | os.PathLike, model: nn.Module, optimizer=None, scheduler=None) -> int:
    """Load the newest checkpoint in ``fdir`` into model, optimiser and schedule (Dassl's function).

    Returns:
        the number of epochs done.
    """
    name = read_text(Path(fdir) / "checkpoint").strip().partition("\n")[0].strip()
    path = Path(fdir) / name
    print(f'Loading checkpoint from "{path}"')
    checkpoint = load_checkpoint(path)
    model.load_state_dict(checkpoint["state_dict"])
    print("Loaded model weights")
    if optimizer is not None and checkpoint.get("optimizer") is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
        print("Loaded optimizer")
    if scheduler is not None and checkpoint.get("scheduler") is not None:
        scheduler.load_state_dict(checkpoint["scheduler"])
        print("Loaded scheduler")
    print(f"Previous epoch: {checkpoint['epoch']}")
    return checkpoint["epoch"]


def load_pretrained_weights(model: nn.Module, weight_path: str | os.PathLike) -> None:
    """Load the tensors of a file that fit ``model`` by name and shape; says which did not."""
    checkpoint = load_checkpoint(weight_path)
    state_dict = strip_module(checkpoint.get("state_dict", checkpoint))
    own = model.state_dict()
    matched = {k: v for k, v in state_dict.items() if k in own and own[k].shape == getattr(v, "shape", None)}
    require_finite(matched, str(weight_path))
    discarded = [k for k in state_dict if k not in matched]
    model.load_state_dict({**own, **matched})
    if not matched:
        warnings.warn(f"Cannot load {weight_path} (check the key names manually)")
        return
    print(f"Successfully loaded pretrained weights from {weight_path}")
    if discarded:
        print(f"Layers discarded due to unmatched keys or size: {discarded}")


def learned_tensors(module: nn.Module) -> OrderedDict[str, Tensor]:
    """The tensors of ``module`` that training changes, by their name in ``state_dict``.

    These are the parameters with ``requires_grad`` and the persistent buffers, save those inside a frozen
    part (a sub-module that has parameters, none of which is trained, such as a CLIP tower with its BatchNorm
    statistics).
    """
    frozen = [
        name + "."
        for name, part in module.named_modules(remove_duplicate=False)  # towers that two parts share are frozen in both
        if name and any(True for _ in part.parameters()) and not any(p.requires_grad for p in part.parameters())
    ]
    learned = OrderedDict()
    for key, value in module.state_dict(keep_vars=True).items():
        is_buffer = not isinstance(value, nn.Parameter)
        if value.requires_grad or (is_buffer and not key.startswith(tuple(frozen))):
            learned[key] = value.detach()
    return learned


def load_learned_tensors(module: nn.Module, state: dict[str, Tensor], source: str = "the checkpoint") -> list[str]:
    """Copy ``state`` into the learned tensors of ``module``, all or nothing.

    Class-specific token buffers (``token_prefix``, ``token_suffix``) are never taken from a file: they belong
    to the classes that the file was trained on. Tensors of the file that are not learned here (frozen towers
    in official MaPLe checkpoints) are left out.

    Returns:
        names in ``state`` that were left out.

    Raises:
        ValueError: a learned parameter is missing in ``state`` or has another shape (names both sides), or is not finite.
    """
    own = {k: v for k, v in module.state_dict(keep_vars=True).items() if k in learned_tensors(module)}
    own = {k: v for k, v in own.items() if not _is_class_token(k)}
    state = strip_module(state)
    require_finite({k: state[k] for k in own if k in state}, source)
    missing = [k for k, v in own.items() if k not in state and isinstance(v, nn.Parameter)]
    if missing:
        raise ValueError(
            f"{source} does not hold {missing}: it was written by another method or configuration "
            f"(it holds {sorted(state)[:8]}{' ...' if len(state) > 8 else ''})"
        )
    wrong = [
        f"{k}: {tuple(getattr(state[k], 'shape', ()))} in the file, {tuple(v.shape)} in the model"
        for k, v in own.items()
        if k in state and getattr(state[k], "shape", None) != v.shape
    ]
    if wrong:
        raise ValueError(f"{source} has tensors of other shapes than this model: {'; '.join(wrong)}")
    with torch.no_grad():
        for key, tensor in own.items():
            if key in state:
                tensor.copy_(state[key])
    return [k for k in state if k not in own]


def _is_class_token(key: str) -> bool:
    return key.rsplit(".", 1)[-1].rstrip("2") in ("token_prefix", "token_suffix")


def read_checkpoint(directory: str | os.PathLike, name: str, epoch: int | None = None) -> dict[str, Any]:
    """The checkpoint of the registered model ``name`` in a run folder, ours or of official code.

    Args:
        directory: run folder.
        name: of the registered model.
        epoch: 1-based; None takes ``model-best.pth.tar``, else the newest epoch.

    Raises:
        FileNotFoundError: no such checkpoint; lists those that are there.
        ValueError: the file is not a checkpoint.
    """
    path = find_checkpoint(Path(directory) / name, epoch)
    checkpoint = load_checkpoint(path)
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise DamagedFile(f"{path} is not a checkpoint: it has no state_dict")
    require_finite(checkpoint["state_dict"], str(path))
    print(f'Loading weights to {name} from "{path}" (epoch = {checkpoint.get("epoch", "unknown")})')
    return checkpoint


def read_learned(directory: str | os.PathLike, name: str, epoch: int | None = None) -> dict[str, Tensor]:
    """The tensors of :func:`read_checkpoint`."""
    return read_checkpoint(directory, name, epoch)["state_dict"]


def find_checkpoint(folder: Path, epoch: int | None, best: bool = True) -> Path:
    """A checkpoint file in the folder of one registered model.

    Args:
        folder: ``<run>/<registered name>``.
        epoch: 1-based; None takes the best one, else the newest.
        best: whether None may mean the best one.

    Raises:
        FileNotFoundError: there is none; lists those that are there.
    """
    there = {
        int(p.name.rsplit("-", 1)[1]): p for p in folder.glob("model.pth.tar-*") if p.name.rsplit("-", 1)[1].isdigit()
    }
    if epoch is not None:
        path = folder / f"model.pth.tar-{epoch}"
    elif best and (folder / BEST).exists():
        path = folder / BEST
    else:
        path = there[max(there)] if there else folder / BEST
    if not path.is_file():
        found = [p.name for p in sorted(folder.glob("model*.pth.tar*"))] if folder.is_dir() else []
        shown = f"there are {', '.join(found)}" if found else f"{folder} has no checkpoint"
        raise FileNotFoundError(f"No model at {path} ({shown})")
    return path
