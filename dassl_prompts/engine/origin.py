"""Where a checkpoint comes from: what its run notes of itself, compared with the settings that it is read under.

A checkpoint holds a few tensors. What they mean (whose prompts, for which CLIP, where the class name stands, which row belongs
to which class) stands in the run's results.json beside it. Every way in compares the two through :class:`Origin`: tensors that
fit by shape and mean something else would give a wrong number without a message.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dassl_prompts.engine.checkpoint import strip_module
from dassl_prompts.engine.reading import read_json
from dassl_prompts.engine.run_folder import RESULTS

#: keys of every method that change how pictures are prepared for a test
TEST_PICTURES = ("INPUT.SIZE", "INPUT.INTERPOLATION", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD")
#: method keys that change rounding or training alone; they are neither compared nor told of
FREE_LEAVES = ("PREC", "TEACHER_DIR", "TEACHER_NAME", "TEACHER_CACHE", "TEACHER_EPOCH", "CKPT_DIR", "CKPT_EPOCH")


@dataclass(frozen=True)
class Reader:
    """The settings that a checkpoint is about to be read under.

    Attributes:
        trainer: registered name of the method. backbone: MODEL.BACKBONE.NAME.
        config: all settings by full key.
        keys: those that decide how the tensors are read (full keys, or nodes with all that is below).
        told: the method's nodes, such as ``TRAINER.COOP``; other differences below them are told.
        frozen: digests of the frozen networks that the tensors belong to, by name; "" where there is none.
    """

    trainer: str
    backbone: str
    config: Mapping[str, Any]
    keys: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """The run that wrote a checkpoint.

    Attributes:
        where: what messages call it, flag or key first: ``--model-dir DIR``.
        run: its results.json, with what the checkpoint says itself; empty for checkpoints of official code.
    """

    where: str
    run: Mapping[str, Any]

    @classmethod
    def of(cls, path: str | Path, where: str = "") -> Origin:
        """The origin of a run folder, or of a checkpoint file in one.

        Raises:
            ValueError: its results.json is damaged.
        """
        path = Path(path).expanduser()
        # <run>/<registered name>/model.pth.tar-5; a file that was copied somewhere has nothing beside it
        folders = [path] if not path.is_file() else [path.parent.parent, path.parent]
        found = next((folder / RESULTS for folder in folders if (folder / RESULTS).is_file()), None)
        run = read_json(found, dict) if found else {}
        return cls(where or str(path), run)

    def with_checkpoint(self, checkpoint: Mapping[str, Any]) -> Origin:
        """Also what the checkpoint file says of itself, where no results.json says it."""
        own = {key: checkpoint[key] for key in ("trainer", "classnames") if checkpoint.get(key)}
        return Origin(self.where, {**own, **self.run})

    # -- settings -------------------------------------------------------------------------------------------

    def check(self, reader: Reader, trainers: Iterable[str] = ()) -> None:
        """Refuse a checkpoint that means something else under these settings; what the run does not say is taken as right.

        Other differences of the method's node and of the test pictures' preparation are printed.

        Args:
            trainers: names that are as good as ``reader.trainer``.

        Raises:
            ValueError: another method, other weights of a frozen network, or another value of a key that decides how the
                tensors are read; names both sides.
        """
        names = tuple(trainers) or (reader.trainer,)
        if self.run.get("trainer") not in (None, *names):
            raise ValueError(f"{self.where} is a run of {self.run['trainer']}, not of {' or '.join(names)}")
        for text in self.other_parts(reader):
            raise ValueError(f"{text}: its tensors do not belong to them")
        self._compare_names(reader)
        different = self.differences(reader)
        decisive = [key for key in different if _below(key, reader.keys)]
        if decisive:
            shown = "; ".join(f"{key} {different[key][0]!r} there, {different[key][1]!r} here" for key in decisive)
            raise ValueError(
                f"{self.where} was trained with other settings that decide how its tensors are read ({shown}): "
                "give the values of that run"
            )
        self.tell(different)

    def tell(self, different: Mapping[str, tuple]) -> None:
        """Print differences that were not refused."""
        if different:
            shown = "; ".join(f"{key} {old!r} there, {new!r} here" for key, (old, new) in different.items())
            print(f"Note: {self.where} was trained with other settings: {shown}")

    def other_parts(self, reader: Reader) -> list[str]:
        """A line for every frozen network that is another one here, by its digest."""
        lines = []
        for part, (old, new) in self._digests(reader).items():
            if old == new:
                continue
            if part == "backbone":  # tells the same weights under two names, and other weights under one
                what = (
                    f"on other weights of the backbone {reader.backbone} than are loaded now (digest {old}, now {new})"
                )
            else:
                what = f"with another {part} than is used now ({old}, now {new})"
            lines.append(f"{self.where} was trained {what}")
        return lines

    def _digests(self, reader: Reader) -> dict[str, tuple[str, str]]:
        noted = {**self.run.get("digests", {}), **self.run.get("frozen", {})}
        return {part: (noted[part], own) for part, own in reader.frozen.items() if own and noted.get(part)}

    def _compare_names(self, reader: Reader) -> None:
        """The backbones' names, where the run does not say a digest."""
        name = self.run.get("backbone")
        if name in (None, reader.backbone) or "backbone" in self._digests(reader):
            return
        text = f"{self.where} was trained on the backbone {name}, this run has {reader.backbone}"
        if reader.frozen.get("backbone"):
            raise ValueError(text)
        print(f"Note: {text}")  # random weights: neither side can say which they were

    def tell_start(self, reader: Reader) -> None:
        """Print what is otherwise in a run that a training only starts from."""
        lines = self.other_parts(reader)
        if self.run.get("trainer") not in (None, reader.trainer):
            lines.insert(0, f"{self.where} is a run of {self.run['trainer']}, not of {reader.trainer}")
        for text in lines:
            print(f"Note: {text}")
        self.tell(self.differences(reader))

    def differences(self, reader: Reader) -> dict[str, tuple[Any, Any]]:
        """``key: (there, here)`` of the reading keys, the method's nodes and the preparation of test pictures."""
        watched = (*reader.keys, *TEST_PICTURES, *reader.told)
        found = {}
        for key, text in self.run.get("config", {}).items():
            if key not in reader.config or not _below(key, watched):
                continue
            if key.rsplit(".", 1)[-1] in FREE_LEAVES:
                continue
            old, new = _value(text), reader.config[key]
            if _comparable(key, old) != _comparable(key, new):
                found[key] = (old, new)
        return found

    # -- classes --------------------------------------------------------------------------------------------

    def arrange(
        self, state: Mapping[str, Tensor], names: Iterable[str], classnames: Sequence[str]
    ) -> dict[str, Tensor]:
        """``state`` with the class-specific tensors ``names`` row by row in the order of ``classnames``.

        Raises:
            ValueError: classes that the run was not trained on; names them.
        """
        state = strip_module(state)
        mine = [name for name in names if name in state]
        trained = self.run.get("classnames")
        if not mine:
            return state
        if not trained:
            if all(len(state[name]) == len(classnames) for name in mine):
                print(
                    f"Note: {self.where} does not name the classes that its {', '.join(mine)} belongs to: taken in the order "
                    f"of this run's, which begin with {', '.join(classnames[:3])}"
                )
            return state
        rows = match_rows(trained, classnames)
        missing = [name for name, row in zip(classnames, rows) if row is None]
        if missing:
            raise ValueError(
                f"{self.where} holds class-specific tensors ({', '.join(mine)}) of its own {len(trained)} classes, and "
                f"{len(missing)} of the {len(classnames)} classes here are not among them (such as {', '.join(missing[:3])}): "
                "what belongs to other classes has other shapes or another meaning; evaluate it on classes of its training"
            )
        wrong = [name for name in mine if len(state[name]) != len(trained)]
        if wrong:
            raise ValueError(
                f"{self.where}: {wrong[0]} has {len(state[wrong[0]])} rows, but the run names {len(trained)} classes"
            )
        return {**state, **{name: state[name][rows] for name in mine}}


def match_rows(trained: Sequence[str], classnames: Sequence[str]) -> list[int | None]:
    """For every class the place of the same name among ``trained``; None where it is not.

    Underscores stand for spaces. A name that stands several times (ImageNet has such) is matched in order.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(trained):
        places.setdefault(_plain(name), []).append(place)
    seen: dict[str, int] = {}
    rows = []
    for name in map(_plain, classnames):
        nth = seen[name] = seen.get(name, -1) + 1
        found = places.get(name, [])
        rows.append(found[nth] if nth < len(found) else None)
    return rows


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _below(key: str, nodes: Sequence[str]) -> bool:
    return any(key == node or key.startswith(f"{node}.") for node in nodes)


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _comparable(key: str, value: Any) -> Any:
    """Equal for values that mean the same."""
    if isinstance(value, (list, tuple)):
        return [_comparable("", item) for item in value]
    if key.endswith("CTX_INIT") and isinstance(value, str):
        return " ".join(value.replace("_", " ").split())
    return value
