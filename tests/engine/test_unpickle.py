"""The unpickler: plain data of every kind comes back, nothing of a library is called, sized or changed by a file."""

import pickle
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from yacs.config import CfgNode

from dassl_prompts.engine import UnsafePickleError, load_checkpoint, read_pickle
from dassl_prompts.engine.builders import PLAIN
from dassl_prompts.engine.datum import Datum

FILES = Path(__file__).parent / "files"


def read(content: bytes, folder):
    path = folder / "a.pkl"
    path.write_bytes(content)
    return read_pickle(path)


def name(module: str, leaf: str) -> bytes:
    """The opcode that names something."""
    return f"c{module}\n{leaf}\n".encode()


def program(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


# -- what comes back -----------------------------------------------------------------------------------------

CONTAINERS = {
    "ordered": OrderedDict(a=1, b=[2, (3,)]),
    "default": defaultdict(list, a=[1]),
    "counted": Counter("abca"),
    "sets": [{1, 2}, frozenset({3})],
    "bytes": [b"", b"\xff\x00", bytearray(b"ab")],
    "numbers": [1, -(2**70), 1.5, 2 + 3j, True, None, range(3), slice(1, None, 2)],
    "text": "é\n",
}


@pytest.mark.parametrize("protocol", range(6))
def test_containers_of_every_protocol(tmp_path, protocol):
    same = [1]
    found = read(pickle.dumps({**CONTAINERS, "twice": [same, same]}, protocol), tmp_path)
    twice = found.pop("twice")
    assert found == CONTAINERS and [type(v) for v in found.values()] == [type(v) for v in CONTAINERS.values()]
    assert found["default"].default_factory is list and twice[0] is twice[1]


ARRAYS = [
    np.arange(6, dtype="<i2").reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(4, dtype=">f4"),
    np.array([True, False]),
    np.array([1 + 2j]),
    np.array(["dog", "tea pot", "é"]),
    np.array([b"ab", b"c"]),
    np.array(3.5),
    np.zeros((0, 4), dtype=np.uint8),
    np.arange(3, dtype=np.float16),
]
SCALARS = [np.float64(54.25), np.float32(0.1), np.int64(-7), np.bool_(True), np.str_("cat"), np.complex64(1j)]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("old", [False, True])
def test_numpys_plain_arrays_and_scalars(tmp_path, protocol, old):
    content = pickle.dumps({"arrays": ARRAYS, "scalars": SCALARS, "twice": [ARRAYS[0]] * 2}, protocol)
    if old:  # numpy 1 called its modules so; protocol 4 and later carry the lengths of names and of their frames
        if protocol > 3:
            pytest.skip("the files of tests/engine/files are of numpy 1 itself")
        content = content.replace(b"numpy._core.", b"numpy.core.")
    found = read(content, tmp_path)
    for ours, theirs in zip(found["arrays"], ARRAYS):
        assert type(ours) is np.ndarray and ours.dtype == theirs.dtype and np.array_equal(ours, theirs)
        assert ours.flags.writeable and ours.shape == theirs.shape
    for ours, theirs in zip(found["scalars"], SCALARS):
        assert type(ours) is type(theirs) and ours == theirs
    assert found["twice"][0] is found["twice"][1]


@pytest.mark.parametrize("file", ["numpy1_yacs.pth.tar", "numpy1_yacs_legacy.pth.tar"])
def test_files_with_yacs_nodes_and_numpy_1_values(file):
    """Written by torch 2.6.0, numpy 1.26.0 and yacs 0.1.8; what torch.load itself refuses, also with its own advice."""
    with pytest.raises(pickle.UnpicklingError):
        torch.load(FILES / file)
    found = load_checkpoint(FILES / file)
    assert torch.equal(found["state_dict"]["ctx"], torch.arange(6.0).reshape(2, 3)) and found["epoch"] == 3
    values = [found[key] for key in ("val_result", "best", "count", "flag", "name")]
    assert values == [54.25, 0.5, 7, True, "cat"] and type(values[0]) is np.float64
    assert np.array_equal(found["table"], np.arange(6).reshape(2, 3)) and found["table"].dtype == np.int16
    assert np.array_equal(found["columns"], np.arange(6.0).reshape(2, 3)) and found["names"].tolist() == [
        "dog",
        "tea pot",
    ]
    assert found["cfg"].MODEL.BACKBONE.NAME == "ViT-B/16" and not isinstance(found["cfg"], CfgNode)
    assert dict(found["cfg"]) == {
        "MODEL": {"BACKBONE": {"NAME": "ViT-B/16"}},
        "SEED": 1,
        "TEXTS": ["2024", "None"],
        "SIZE": (224, 224),
    }


def test_attributes_of_an_ordered_dictionary_stay(tmp_path):
    state = torch.nn.Linear(2, 2).state_dict()
    torch.save({"state": state, "seen": np.float64(1)}, tmp_path / "a.pth")
    found = load_checkpoint(tmp_path / "a.pth")["state"]
    assert found._metadata == state._metadata and torch.equal(found["weight"], state["weight"])


# -- what is refused -----------------------------------------------------------------------------------------

STATE = b"}U\x06markerK\x01s"  # {"marker": 1}
SLOTS = b"N" + STATE + b"\x86"  # (None, {"marker": 1}), which is set by setattr


@pytest.mark.parametrize("state", [STATE, SLOTS], ids=["dict", "slots"])
@pytest.mark.parametrize(
    "module, leaf",
    [
        ("collections", "OrderedDict"),
        ("builtins", "dict"),
        ("torch.storage", "UntypedStorage"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("numpy", "dtype"),
        ("dassl.data.datasets.base_dataset", "Datum"),
        ("dassl.optim", "Scheduler"),
        ("yacs.config", "CfgNode"),
    ],
)
def test_classes_and_functions_get_no_state(tmp_path, module, leaf, state):
    with pytest.raises(UnsafePickleError, match="sets the state of .*which is no record of this file"):
        read(program(name(module, leaf), state, b"b"), tmp_path)
    assert not any(hasattr(kind, "marker") for kind in (OrderedDict, torch.UntypedStorage, Datum, np.dtype))


def test_records_made_by_the_file_get_theirs(tmp_path):
    made = program(name("dassl.optim", "Scheduler"), b")\x81", STATE, b"b")
    assert read(made, tmp_path).marker == 1


@pytest.mark.parametrize(
    "value, message",
    [
        (np.array([None]), "the dtype 'O8'"),
        (np.zeros(2, dtype=[("a", "f4")]), "the dtype 'V4'"),
        (np.array(["2024-01-01"], dtype="M8[D]"), "the dtype 'M8'"),
    ],
)
def test_arrays_of_objects_records_and_dates_are_refused(tmp_path, value, message):
    with pytest.raises(UnsafePickleError, match=message):
        read(pickle.dumps(value, 2), tmp_path)


NUMBER = b"K\x05\x85"  # (5,)


@pytest.mark.parametrize(
    "content",
    [
        name("builtins", "bytearray") + NUMBER,
        name("builtins", "bytes") + NUMBER,
        name("builtins", "list") + name("builtins", "range") + NUMBER + b"R\x85",
        name("builtins", "set") + name("builtins", "range") + NUMBER + b"R\x85",
        name("torch.storage", "UntypedStorage") + NUMBER,
        name("numpy", "ndarray") + NUMBER,
        name("numpy.core.multiarray", "scalar") + name("numpy", "dtype") + b"U\x02f8\x85RU\x02ab\x86",
    ],
)
def test_no_number_in_a_file_asks_for_room(tmp_path, content):
    with pytest.raises(UnsafePickleError, match="a.pkl calls|a.pkl builds"):
        read(program(content, b"R"), tmp_path)


def test_an_array_has_the_bytes_that_the_file_holds(tmp_path):
    content = pickle.dumps(np.arange(6, dtype=np.int8), 2)
    assert content.count(b"K\x06\x85") == 1  # its shape (6,)
    with pytest.raises(UnsafePickleError, match="a numpy array of 7 elements of 1 bytes from 6 bytes"):
        read(content.replace(b"K\x06\x85", b"K\x07\x85"), tmp_path)


def test_a_tensor_lies_in_its_storage():
    build, storage = PLAIN["torch._utils"]["_rebuild_tensor_v2"], torch.arange(6.0).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    assert build(typed, 1, (2, 2), (2, 1), False, OrderedDict()).tolist() == [[1, 2], [3, 4]]
    for offset, size, stride in (
        (3, (2, 2), (2, 1)),
        (0, (7,), (1,)),
        (0, (2**25,), (0,)),
        (-1, (1,), (1,)),
        (0, (2,), (1, 1)),
    ):
        with pytest.raises((TypeError, ValueError)):
            build(typed, offset, size, stride)
    assert build(typed, 0, (3,), (0,)).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    "module, leaf",
    [("os", "getcwd"), ("builtins", "eval"), ("numpy", "load"), ("torch", "load"), ("copyreg", "_reconstructor")],
)
def test_other_names_are_refused(tmp_path, module, leaf):
    with pytest.raises(UnsafePickleError, match=f"a.pkl refers to {module}.{leaf}, which is not plain data"):
        read(program(name(module, leaf), b")R"), tmp_path)


def test_a_length_beyond_the_file_is_damage(tmp_path):
    for opcode in (b"\x96", b"\x8e", b"\x8d"):  # bytearray, bytes and text with lengths of eight bytes
        with pytest.raises(ValueError, match="a.pkl is not a readable pickle"):
            read(b"\x80\x05" + opcode + (1 << 40).to_bytes(8, "little") + b"abc.", tmp_path)
