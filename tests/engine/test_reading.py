"""The readers: what is whole comes back, whatever else ends with one line that names the file and the place."""

import errno
import json
import lzma
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dassl_prompts.engine import UnsafePickleError, load_checkpoint, read_pickle
from dassl_prompts.engine.config import read_yaml_file
from dassl_prompts.engine.reading import (
    MAX_DEPTH,
    DamagedFile,
    parse_json,
    read_csv,
    read_json,
    read_lines,
    read_npy,
    read_npz,
    read_safetensors,
    read_text,
    reading,
    unpack_xz,
)

READERS = {
    "a.json": (read_json, json.dumps({"a": [1, 2.5, None, "é"]}).encode()),
    "a.yaml": (read_yaml_file, b"a: {b: [1, two]}\n"),
    "a.csv": (lambda path: list(read_csv(path, ["x"])), b'x,y\n1,"2,3"\n4,5\n'),
    "a.txt": (read_text, "naïve\n".encode()),
}


def write(path, content):
    path.write_bytes(content)
    return path


def test_what_is_whole_comes_back(tmp_path):
    assert read_json(write(tmp_path / "a", READERS["a.json"][1])) == {"a": [1, 2.5, None, "é"]}
    assert read_json(write(tmp_path / "a", '{"a": "é"}'.encode("utf-16"))) == {"a": "é"}
    assert list(read_csv(write(tmp_path / "a", b'\xef\xbb\xbfx,y\r\n1,"2,\n3"\r\n\r\n4,5'))) == [
        (2, {"x": "1", "y": "2,\n3"}),
        (5, {"x": "4", "y": "5"}),
    ]
    assert read_lines(write(tmp_path / "a", "a\r\nb\u2028c\nd".encode())) == ["a", "b\u2028c", "d"]
    for array in (np.empty((0, 2), np.int64), np.arange(6.0).reshape(2, 3), np.array(3), np.array(["a", "bc"])):
        np.save(tmp_path / "a.npy", array)
        for mmap in (False, True):
            found = read_npy(tmp_path / "a.npy", array.shape, array.dtype, mmap)
            assert np.array_equal(found, array) and isinstance(found, np.memmap) is mmap
    np.savez(tmp_path / "a.npz", x=np.arange(3), y=np.ones(2))
    assert {k: v.tolist() for k, v in read_npz(tmp_path / "a.npz").items()} == {"x": [0, 1, 2], "y": [1, 1]}
    save_file({"w": torch.arange(4.0)}, tmp_path / "a.safetensors")
    packed = lzma.compress((tmp_path / "a.safetensors").read_bytes())
    for path in (tmp_path / "a.safetensors", write(tmp_path / "a.safetensors.xz", packed)):
        assert read_safetensors(path)["w"].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("reader", "content", "place"),
    [
        (read_json, b'{"a": 1,}', "is not valid JSON: .*line 1 column 9"),
        (read_json, b'{"a": \xff}', "is not valid JSON: line 1 is not UTF-8: byte 0xff"),
        (read_json, b"[" * 10**5, f"is not valid JSON: .* more than {MAX_DEPTH} deep"),
        (read_json, b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1), f"more than {MAX_DEPTH} deep"),
        (lambda path: read_json(path, dict), b"[1]", "must hold a JSON object, not a list"),
        (read_yaml_file, b"a: 1\nb: {c\n", r"is not valid YAML: .*\(line \d, column \d\)"),
        (read_yaml_file, b"[" * 10**4, "is not valid YAML: .*nested without end"),
        (read_yaml_file, b"a: 1\n\xff\n", "line 2 is not UTF-8"),
        (READERS["a.csv"][0], b"y\n1\n", r"missing columns x \(there are y\)"),
        (READERS["a.csv"][0], b"", "missing columns x"),
        (READERS["a.csv"][0], b"x,y\n1,2\n3\n", "line 3 has 1 cells instead of 2"),
        (READERS["a.csv"][0], b'x,y\n1,2\n"3,4\n', "line 3: unexpected end of data"),
        (READERS["a.csv"][0], b"x,x\n1,2\n", "a column stands twice"),
        (read_text, b"ab\ncd\n\xe9t\xe9\n", "line 3 is not UTF-8: byte 0xe9"),
        (read_npy, b"", "is not a whole .npy file"),
        (read_npy, b"\x93NUMPY\x01\x00v\x00{'descr': '<f8', 'shape': (9999999999,)}", "is not a whole .npy file"),
        (read_npz, b"PK\x03\x04 and no more", "is not an .npz file"),
        (read_safetensors, b"\xff" * 20, "is not a readable safetensors file"),
        (read_pickle, b"\x80\x04\x8e\xff\xff\xff\xff\xff\x00\x00\x00", "is not a readable pickle"),
        (load_checkpoint, b"no checkpoint", "is not a readable checkpoint"),
    ],
)
def test_damage_is_one_line_that_names_file_and_place(tmp_path, reader, content, place):
    path = write(tmp_path / "damaged.file", content)
    with pytest.raises(DamagedFile, match=place) as caught:
        reader(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_arrays_have_the_shape_and_size_that_they_say(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(6, dtype=np.float32).reshape(2, 3))
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"\0"):
        with pytest.raises(DamagedFile, match=r"a.npy is not a whole"):
            read_npy(write(path, content))
    write(path, whole)
    assert read_npy(path, (None, 3)).shape == (2, 3)
    for wrong in ({"shape": (3, 2)}, {"shape": (None,)}, {"dtype": np.float16}):
        with pytest.raises(DamagedFile, match=r"is \(2, 3\) instead of|holds float32 instead of float16"):
            read_npy(path, **wrong)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedFile, match=r"a.npy is not a whole"):
        read_npy(path)


def test_a_small_file_asks_for_little(tmp_path):
    packed = lzma.compress(bytes(1 << 28))  # 256 MiB of zeros in 40 kB
    with pytest.raises(DamagedFile, match="unpacks to more than"):
        unpack_xz(write(tmp_path / "a.xz", packed))
    row = b"]" + b"\x94" + b"(" + b"K\x01" * 50_000 + b"e"  # a list, remembered as 0, and 20,000 copies of it
    copies = b"]" + b"(" + b"cbuiltins\nlist\n(h\x00tR" * 20_000 + b"e"
    with pytest.raises(UnsafePickleError, match="makes far more of its content than it holds"):
        read_pickle(write(tmp_path / "a.pkl", b"\x80\x04" + row + copies + b"."))
    with pytest.raises(UnsafePickleError, match="bytearray with arguments that are no plain data"):
        read_pickle(write(tmp_path / "a.pkl", b"\x80\x04cbuiltins\nbytearray\n(J\x00\x00\x00\x7ftR."))


def test_a_checkpoint_is_compared_with_its_checksums(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.full((100,), 1.0)}, path)
    whole = path.read_bytes()
    at = whole.index(b"\x00\x00\x80\x3f" * 8)
    write(path, whole[: at + 3] + b"\x40" + whole[at + 4 :])
    assert torch.load(path)["w"].tolist() != [1.0] * 100  # what torch itself says of it
    with pytest.raises(DamagedFile, match="a.pt .*data/0 does not fit its checksum"):
        load_checkpoint(path)


def test_the_systems_own_errors_stay_what_they_are(tmp_path):
    for reader, _ in READERS.values():
        with pytest.raises(FileNotFoundError, match="nothing"):
            reader(tmp_path / "nothing")
        with pytest.raises(IsADirectoryError):
            reader(tmp_path)
    with pytest.raises(OSError, match="disk.bin") as caught, reading(tmp_path / "disk.bin", "whole"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not isinstance(caught.value, DamagedFile)


def test_text_that_looks_deep_is_not(tmp_path):
    text = {"a": "[" * 1000, "b": '\\"{' * 500, "c": [[[]]] * 1000}
    assert parse_json(json.dumps(text), "x") == text
