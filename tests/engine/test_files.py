"""Writing: all or nothing, leftovers of killed processes, full disks, notes that show any change."""

import errno
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from dassl_prompts.engine import DamagedFile, close_logger, setup_logger
from dassl_prompts.engine.checkpoint import write_tensors
from dassl_prompts.engine.files import (
    UNFINISHED,
    DiskFullError,
    atomic_folder,
    atomic_path,
    new_array,
    read_sealed,
    remove_leftovers,
    write_json,
    write_sealed,
    write_text,
)

WRITER = """
import sys, time
from dassl_prompts.engine.files import atomic_folder, atomic_path
with {kind}({path!r}) as temporary:
    ({inside}).write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def start_writer(kind, path):
    inside = "temporary / 'a'" if kind == "atomic_folder" else "temporary"
    code = WRITER.format(kind=kind, path=str(path), inside=inside)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("kind", ["atomic_path", "atomic_folder"])
def test_leftovers_of_a_killed_process_go_with_the_next_write_and_those_of_a_living_one_stay(tmp_path, kind):
    process = start_writer(kind, tmp_path / "x")
    write_text("other", tmp_path / "y")
    assert len(list(tmp_path.glob(f".x.*{UNFINISHED}"))) == 1 and remove_leftovers(tmp_path) == []
    process.kill()
    process.wait()
    write_text("other", tmp_path / "y")
    assert os.listdir(tmp_path) == ["y"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "a") as folder:
        (folder / "b").write_text("1")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "b").write_text("1")
    with atomic_folder(tmp_path / "a") as folder:  # somebody was faster
        (folder / "b").write_text("2")
    assert (tmp_path / "a" / "b").read_text() == "1" and os.listdir(tmp_path) == ["a"]


@pytest.fixture
def small_disk():
    """No file may grow beyond 64 kB, as on a full disk or under a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS = {
    "text": lambda path: write_text("x" * 10**6, path),
    "json": lambda path: write_json(["x" * 100] * 10**4, path),
    "tensors": lambda path: write_tensors({"a": torch.ones(10**6)}, path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_is_named_and_what_was_there_stays(tmp_path, small_disk, kind):
    path = tmp_path / "file"
    write_text("before", path)
    with pytest.raises(DiskFullError, match=f"cannot write {path}: .*; make room and run the same command again"):
        WRITERS[kind](path)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["file"]


def test_a_log_without_room_is_named_once_and_the_console_goes_on(tmp_path, small_disk, capsys):
    setup_logger(tmp_path)
    try:
        with pytest.raises(DiskFullError, match=f"cannot write {tmp_path / 'log.txt'}"):
            for _ in range(100):
                print("x" * 1000)
        print("afterwards")
        sys.stdout.flush()
    finally:
        close_logger()
    assert capsys.readouterr().out.endswith("afterwards\n")


def test_a_map_takes_its_room_first(tmp_path, small_disk):
    with pytest.raises(DiskFullError, match="cannot write .*a.npy"):
        new_array(tmp_path / "a.npy", (10**6,), np.float32)
    assert os.listdir(tmp_path) == []
    array = new_array(tmp_path / "a.npy", (1000,), np.float32)
    assert os.stat(tmp_path / "a.npy").st_blocks * 512 >= 4000 and not array.any()


def test_a_library_that_keeps_the_words_alone(tmp_path):
    with pytest.raises(DiskFullError, match="cannot write .*x"), atomic_path(tmp_path / "x"):
        raise RuntimeError(f"write failed ({os.strerror(errno.ENOSPC)})")
    with pytest.raises(RuntimeError, match="something else"), atomic_path(tmp_path / "x"):
        raise RuntimeError("something else")


def test_a_sealed_note_shows_any_change(tmp_path):
    path = tmp_path / "note.json"
    write_sealed({"a": [1, "é"], "b": 0.1}, path)
    assert read_sealed(path) == {"a": [1, "é"], "b": 0.1}
    text = path.read_text()
    for changed in (text.replace("0.1", "0.2"), text.replace('"a"', '"c"'), text[:-1], "[]", '{"a": 1}'):
        path.write_text(changed)
        with pytest.raises(DamagedFile, match=r"note.json"):
            read_sealed(path)


def test_many_writers_of_one_folder(tmp_path):
    """None takes the file that another has just made for a leftover."""
    code = f"""
from dassl_prompts.engine.files import write_text
for i in range(40):
    write_text(str(i), {str(tmp_path / "x")!r})
"""
    writers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "39"
