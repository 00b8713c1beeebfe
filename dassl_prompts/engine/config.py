"""Config helpers on top of yacs: add defaults, merge with readable errors, compare.

They work on the config tree of either engine.
"""

from __future__ import annotations

import ast
import difflib
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml
from yacs.config import CfgNode

from dassl_prompts.engine.reading import read_text, reading

#: keys that this package's parts of the engine read, added to the tree of either engine
ENGINE_DEFAULTS = {
    "DATASET": {
        # classes to use: "all", "base" (first half of the labels) or "new" (second half)
        "SUBSAMPLE_CLASSES": "all",
    },
    "MODEL": {
        "BACKBONE": {
            # activation of a weight file of which nothing tells it: quickgelu or gelu
            "ACTIVATION": "",
        },
    },
    "INPUT": {
        # "stored" reads pictures as CoOp does, as their rows lie in the file; "camera" turns them upright as EXIF says
        "ORIENTATION": "stored",
    },
    "DATALOADER": {
        # unreadable training images that may be skipped before a run stops; evaluation never skips
        "MAX_CORRUPT": 0,
        # draw augmentations per (epoch, image): the same for every NUM_WORKERS; False = stock Dassl's stream
        "SEED_ITEMS": True,
    },
    # folder that keeps features of frozen towers for all runs ("": the user's cache folder; off: none), and what it may hold
    "FEATURES": {"DIR": "", "MAX_GB": 10.0},
    "OPTIM": {
        # added to the root of the second moment: adam, amsgrad, adamw
        "ADAM_EPS": 1e-8,
    },
    "TRAIN": {
        # where scalars go besides the log: tensorboard (where it is installed), csv, wandb
        "LOG_TO": ["tensorboard"],
        # epochs between writing resume.pt (and at the end); 0 = never
        "RESUME_FREQ": 1,
        # checkpoints with all tensors of the registered models instead of the learned ones
        "CHECKPOINT_FULL": False,
    },
}


def add_defaults(cfg: CfgNode, path: str, values: dict[str, Any]) -> None:
    """Add ``values`` under the dotted ``path`` of ``cfg`` where they are missing; what is there stays.

    Args:
        cfg: config tree; a frozen one is opened and frozen again.
        path: such as ``"TRAINER.COOP"``; nodes are made on the way; ``""`` is the root.
        values: defaults; dictionaries become nodes.

    Raises:
        ValueError: a value stands where a node is needed, or the other way round.
    """
    frozen = cfg.is_frozen()
    cfg.defrost()
    node, done = cfg, []
    for part in filter(None, path.split(".")):
        done.append(part)
        if part not in node:
            node[part] = CfgNode()
        node = node[part]
        if not isinstance(node, CfgNode):
            raise ValueError(f"config key {'.'.join(done)} is a value ({node!r}), but {path} needs a node there")
    for key, value in values.items():
        full = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict):
            if key in node and not isinstance(node[key], CfgNode):
                raise ValueError(f"config key {full} is a value ({node[key]!r}), not a node")
            add_defaults(node, key, value)
        elif key not in node:
            node[key] = value
        elif isinstance(node[key], CfgNode):
            raise ValueError(f"config key {full} is a node, not a value")
    if frozen:
        cfg.freeze()


def extend_cfg(cfg: CfgNode) -> None:
    """Add the keys of :data:`ENGINE_DEFAULTS` where they are missing."""
    add_defaults(cfg, "", ENGINE_DEFAULTS)


def theirs(cfg: CfgNode, extensions: Iterable[Callable[[CfgNode], None]]) -> str:
    """A line on the keys below TRAINER that ``cfg`` has already with other values than ``extensions`` would give; "" for none."""
    ours = CfgNode({"TRAINER": CfgNode()})
    for extend in extensions:
        extend(ours)
    given, defaults = flatten(cfg.get("TRAINER", CfgNode()), "TRAINER."), flatten(ours.TRAINER, "TRAINER.")
    other = [
        f"{key} {given[key]!r} (ours {value!r})" for key, value in defaults.items() if given.get(key, value) != value
    ]
    return f"values of your configuration stay where ours differ: {', '.join(other)}" if other else ""


def with_engine_defaults(cfg: CfgNode) -> CfgNode:
    """``cfg`` itself if it has all keys of :data:`ENGINE_DEFAULTS`, else a copy that has."""
    if flatten(CfgNode(ENGINE_DEFAULTS)).keys() <= flatten(cfg).keys():
        return cfg
    cfg = cfg.clone()
    extend_cfg(cfg)
    return cfg


def flatten(cfg: CfgNode, prefix: str = "") -> dict[str, Any]:
    """All leaves by their full dotted key."""
    leaves = {}
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            leaves.update(flatten(value, f"{prefix}{key}."))
        else:
            leaves[prefix + key] = value
    return leaves


def merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    """Merge ``[KEY, VALUE, KEY, VALUE, ...]`` from the command line.

    Raises:
        ValueError: a key without a value, an unknown key (names the nearest known one), a value of another
            type.
    """
    if len(opts) % 2:
        raise ValueError(
            f"config options come as KEY VALUE pairs, but {opts[-1]!r} has no value: {' '.join(map(str, opts))}"
        )
    for key, value in zip(opts[::2], opts[1::2]):
        _assign(cfg, cfg, key, value, source="command line")


def merge_file(cfg: CfgNode, path: str | os.PathLike) -> None:
    """Merge a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not YAML, a key that stands twice, an unknown key (names the nearest known one), a value of another
            type; names the file.
    """
    values = read_yaml_file(path)
    if values is None:
        return
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a config file is a mapping of keys, this one is a {type(values).__name__}")
    _merge_mapping(cfg, values, "", str(path))


class _UniqueKeys(yaml.SafeLoader):
    """YAML's safe loader without its rule that of two equal keys the last one counts."""

    def construct_mapping(self, node, deep=False):
        seen: dict[Any, Any] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":  # <<: *anchor, whose keys may be set anew
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                first, again = seen[key].start_mark.line + 1, key_node.start_mark.line + 1
                raise ValueError(f"the key {key!r} stands twice, in lines {first} and {again}: make it one block")
            seen[key] = key_node
        return super().construct_mapping(node, deep)


def read_yaml(text: Any, name: str, loader: type[yaml.SafeLoader] = _UniqueKeys) -> Any:
    """The content of a YAML file or text; executes nothing.

    Args:
        name: of the file, for messages. loader: what scalars are read as.

    Raises:
        ValueError: not YAML, or a mapping has a key twice (YAML drops the first of them without a word).
    """
    with reading(name, "valid YAML"):
        return yaml.load(text, loader)


def read_yaml_file(path: str | os.PathLike, loader: type = _UniqueKeys) -> Any:
    """The content of a YAML file in UTF-8, see :func:`read_yaml`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as :func:`read_yaml`.
    """
    return read_yaml(read_text(path), str(path), loader)


class _Texts(_UniqueKeys):
    """All scalars are texts: a class may be called 007, no or 2024."""

    yaml_implicit_resolvers: dict = {}


def read_names(path: str | os.PathLike) -> dict[str, str]:
    """A YAML file ``old name: new name``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such mapping; names the file.
    """
    found = read_yaml_file(path, _Texts)
    if not isinstance(found, dict) or not all(isinstance(name, str) for pair in found.items() for name in pair):
        raise ValueError(f"{path} has to hold lines such as 'folder: class name'")
    return found


class _Dumper(yaml.SafeDumper):
    """Texts in quotes, so that no reader takes ``2024``, ``None`` or ``12e45`` for a number or nothing."""


class _Key(str):
    """A key, which needs no quotes."""


_Dumper.add_representer(_Key, lambda dumper, key: dumper.represent_scalar("tag:yaml.org,2002:str", str(key)))
_Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"'))
for _kind in (list, tuple):
    _Dumper.add_representer(
        _kind, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True)
    )


def dump(cfg: CfgNode) -> str:
    """A configuration as YAML that :func:`merge_file` reads back to the same values.

    Raises:
        yaml.YAMLError: a value that YAML has no word for; names it.
    """
    plain = lambda node: {_Key(k): plain(v) if isinstance(v, CfgNode) else v for k, v in node.items()}
    return yaml.dump(plain(cfg), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _merge_mapping(cfg: CfgNode, values: dict, prefix: str, source: str) -> None:
    for key, value in values.items():
        full = f"{prefix}{key}"
        target = _lookup(cfg, full)
        if isinstance(value, dict) and isinstance(target, CfgNode):
            _merge_mapping(cfg, value, full + ".", source)
        else:
            _assign(cfg, cfg, full, value, source, typed=True)


def _lookup(cfg: CfgNode, full_key: str) -> Any:
    node = cfg
    for part in full_key.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return None
        node = node[part]
    return node


def _assign(root: CfgNode, node: CfgNode, full_key: str, value: Any, source: str, typed: bool = False) -> None:
    *path, leaf = full_key.split(".")
    for part in path:
        if not isinstance(node, CfgNode) or part not in node:
            raise ValueError(unknown_key(root, full_key, source))
        node = node[part]
    if not isinstance(node, CfgNode) or leaf not in node:
        raise ValueError(unknown_key(root, full_key, source))
    # YAML says itself what is a text; what a shell passes on is always one
    keep = typed and isinstance(value, str) and isinstance(node[leaf], str)
    node[leaf] = value if keep else _coerce(node[leaf], value, full_key, source)


def _coerce(old: Any, value: Any, full_key: str, source: str) -> Any:
    """``value`` in the type of ``old``: strings are evaluated as in yacs, an integer is fine for a float."""
    given, value = value, CfgNode._decode_cfg_value(value)
    if isinstance(old, str) and isinstance(given, str) and not isinstance(value, (str, type(None))):
        value = given  # a folder called 2024 is a text
    if isinstance(old, CfgNode):
        raise ValueError(f"{source}: {full_key} is a node with the keys {sorted(old)}, it cannot be set to {value!r}")
    if isinstance(old, (list, tuple)) and isinstance(value, (list, tuple)):
        return type(old)(_numbers(old, value, full_key, source))
    if old is None or value is None or type(old) is type(value):
        return value
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    raise ValueError(
        f"{source}: {full_key} is a {type(old).__name__} (now {old!r}) "
        f"and cannot take {value!r} of type {type(value).__name__}"
    )


def _numbers(old: list | tuple, items: list | tuple, full_key: str, source: str) -> list:
    """``items`` as numbers where a list holds numbers: YAML takes ``2e-1`` for text, as it wants a dot and a sign.

    A list is one of numbers if its default has numbers or, where the default is empty, if one of the items is a number.
    """
    known = old or [item for item in items if not isinstance(item, str)]
    if not known or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in known):
        return list(items)
    whole = all(isinstance(v, int) for v in known)
    found = []
    for item in items:
        if isinstance(item, str):
            try:
                item = float(item)
            except ValueError:
                raise ValueError(f"{source}: {full_key} is a list of numbers (now {old!r}), {item!r} is none") from None
            item = int(item) if whole and item.is_integer() else item
        found.append(item)
    return found


def unknown_key(cfg: CfgNode, full_key: str, source: str) -> str:
    """Error text for a key that ``cfg`` does not have, with the nearest known key."""
    known = list(flatten(cfg))
    near = difflib.get_close_matches(full_key, known, n=1, cutoff=0.6)
    if not near:
        leaf = full_key.rsplit(".", 1)[-1]
        near = [k for k in known if k.rsplit(".", 1)[-1] == leaf][:1]
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{source}: unknown config key {full_key}{hint}"


def assign_flat(cfg: CfgNode, flat: Mapping[str, str]) -> list[str]:
    """Set leaves from ``{full key: repr(value)}``, as results.json keeps a configuration.

    Returns:
        keys that ``cfg`` does not have, which belong to another version of a method.

    Raises:
        ValueError: a text that is no value; names the key.
    """
    unknown = []
    for key, text in flat.items():
        *path, leaf = key.split(".")
        node = cfg
        for part in path:
            node = node.get(part) if isinstance(node, CfgNode) else None
        if not isinstance(node, CfgNode) or leaf not in node:
            unknown.append(key)
            continue
        try:
            node[leaf] = ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError) as error:
            raise ValueError(f"the value of {key}, {text!r}, cannot be read") from error
    return unknown


def differing_keys(
    old: dict[str, str], new: dict[str, str], ignore: tuple[str, ...] = ()
) -> dict[str, tuple[str, str]]:
    """Keys that both flat configs have with different values: ``{key: (old, new)}``."""
    return {
        key: (old[key], new[key])
        for key in sorted(old.keys() & new.keys())
        if old[key] != new[key] and key not in ignore
    }


def refuse_pairs(cfg: CfgNode, prefix: str, pairs: Iterable[tuple[bool, str, str, str]]) -> None:
    """Refuse settings that ask for two things of which only one can be had.

    Args:
        cfg: the whole tree, or the node ``prefix`` of it.
        prefix: before the keys that do not stand at the root of the tree, such as ``TRAINER.DCAR``.
        pairs: (whether both are asked for, one key, the other key, what to do).

    Raises:
        ValueError: names both keys with their values.
    """
    leaves = flatten(cfg)
    whole = prefix.split(".")[0] in cfg  # else it is the method's node alone
    for asked, *keys, remedy in pairs:
        if asked:
            full = {key: f"{prefix}.{key}" for key in keys}
            values = {
                full[key] if not whole or full[key] in leaves else key: leaves[
                    full[key] if full[key] in leaves else key
                ]
                for key in keys
            }
            shown = " and ".join(f"{name} {value!r}" for name, value in values.items())
            raise ValueError(f"{shown} contradict each other: {remedy}")


def one_of(value: str, choices, what: str) -> str:
    """``value`` if it is a valid choice.

    Raises:
        ValueError: naming ``what`` and the choices.
    """
    if value not in choices:
        raise ValueError(f"{what} is {value!r}; choose one of {', '.join(choices)}")
    return value
