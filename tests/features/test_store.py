"""The files of a store: whole or not there, bounded, and healed."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dassl_prompts.features import store
from dassl_prompts.features.pictures import FOLDER, picture_digests
from dassl_prompts.features.store import Store, digest_of, folder_of, make_room

WIDTH = 6


def keys(*names):
    return [digest_of(name) for name in names]


def rows(*values):
    return np.array(values, np.float32)[:, None] + np.arange(WIDTH, dtype=np.float32) / 7


def made(folder, limit=1e9, **parts):
    return Store(folder, {"weights": "a", **parts}, WIDTH, limit)


def test_what_is_added_is_found_by_key_and_view(tmp_path):
    made(tmp_path).add("plain", keys("cat", "dog"), rows(1, 2))
    made(tmp_path).add("plain", keys("bird"), rows(3))
    found = made(tmp_path).load("plain")
    assert set(found) == set(keys("cat", "dog", "bird"))
    assert all(np.array_equal(found[key], row) for key, row in zip(keys("cat", "dog", "bird"), rows(1, 2, 3)))
    assert made(tmp_path).load("other") == {} and made(tmp_path, weights="b").load("plain") == {}


def test_borders_of_parts_count():
    assert digest_of("ab", "c") != digest_of("a", "bc") and digest_of("a") != digest_of("a", "")


def only_file(folder):
    (file,) = folder.rglob("*.npy")
    return file


@pytest.mark.parametrize("harm", ["a bit", "cut short", "emptied", "another's content"])
def test_a_damaged_file_is_named_removed_and_never_read(harm, tmp_path, capsys):
    made(tmp_path).add("plain", keys("cat", "dog"), rows(1, 2))
    file = only_file(tmp_path)
    content = bytearray(file.read_bytes())
    if harm == "a bit":
        content[-3] ^= 4
    elif harm == "cut short":
        content = content[:-5]
    elif harm == "emptied":
        content = b""
    else:
        other = made(tmp_path / "other")
        other.add("plain", keys("cat"), rows(9))
        content = only_file(tmp_path / "other").read_bytes()
    file.unlink()
    file.write_bytes(content)
    kept = made(tmp_path)
    assert kept.load("plain") == {}
    assert str(file) in capsys.readouterr().out and not file.exists()
    kept.add("plain", keys("cat", "dog"), rows(1, 2))
    assert len(made(tmp_path).load("plain")) == 2


def test_the_least_recently_used_files_go(tmp_path):
    kept = made(tmp_path)
    for number, name in enumerate(("old", "used", "new")):
        kept.add(name, keys(name), rows(number))
        os.utime(next((kept.folder / name).glob("*.npy")), ns=(number, number))
    kept.load("old")  # which makes it the last used one
    size = next((kept.folder / "new").glob("*.npy")).stat().st_size
    make_room(tmp_path, 2.5 * size)
    assert [name for name in ("old", "used", "new") if kept.load(name)] == ["old", "new"]


def test_a_store_stays_below_its_limit(tmp_path):
    kept = made(tmp_path, limit=2000)
    for number in range(30):
        kept.add("plain", keys(str(number)), rows(number))
        assert sum(file.stat().st_size for file in tmp_path.rglob("*.npy")) <= 2000
    assert keys("29")[0] in kept.load("plain")


def test_no_permission_is_told_once_and_reading_goes_on(tmp_path, capsys, monkeypatch):
    made(tmp_path).add("plain", keys("cat"), rows(1))

    def refuse(path, records):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(store, "write_records", refuse)
    kept = made(tmp_path)
    kept.add("plain", keys("dog"), rows(2))
    kept.add("plain", keys("bird"), rows(3))
    assert capsys.readouterr().out.count("Permission denied") == 1
    assert set(kept.load("plain")) == set(keys("cat"))


WRITER = """
import sys, numpy as np
from dassl_prompts.features.store import Store, digest_of
kept = Store(__import__("pathlib").Path(sys.argv[1]), {"weights": "a"}, 6, 1e9)
start = int(sys.argv[2])
print("begun", flush=True)
for n in range(start, start + 10**6 if sys.argv[3] == "forever" else start + 40):
    kept.add("plain", [digest_of(str(n))] * 1, np.full((1, 6), n, np.float32))
"""


def writer(folder, start, how):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(start), how], stdout=subprocess.PIPE)


def test_a_killed_writer_leaves_whole_rows_alone(tmp_path):
    process = writer(tmp_path, 0, "forever")
    process.stdout.readline()
    deadline = time.time() + 60
    while len(list(tmp_path.rglob("*.npy"))) < 5 and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = made(tmp_path).load("plain")
    known = {digest_of(str(n)): n for n in range(10**4)}
    assert len(found) >= 5 and all(np.array_equal(row, np.full(6, known[key])) for key, row in found.items())
    made(tmp_path).add("plain", keys("after"), rows(1))
    assert not list(tmp_path.rglob("*.unfinished"))


def test_two_writers_at_once_leave_all_rows(tmp_path):
    processes = [writer(tmp_path, start, "some") for start in (0, 20)]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    found = made(tmp_path).load("plain")
    assert len(found) == 60
    assert all(np.array_equal(found[digest_of(str(n))], np.full(6, n)) for n in range(60))


def test_where_a_store_is(tmp_path, monkeypatch):
    monkeypatch.setenv(store.PLACE, "off")
    assert folder_of("") is None and folder_of("off") is None and folder_of(str(tmp_path)) == tmp_path
    monkeypatch.delenv(store.PLACE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert folder_of("") == tmp_path / "dassl_prompts" / "features"


# -- pictures --------------------------------------------------------------------------------------------------


def test_pictures_are_known_by_their_bytes(tmp_path):
    for name, content in (("a/1.png", b"one"), ("b/1.png", b"two"), ("b/2.png", b"one")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    paths = [str(tmp_path / name) for name in ("a/1.png", "b/1.png", "b/2.png", "gone.png")]
    first, other, same, gone = picture_digests(paths, tmp_path / "store")
    assert first == same != other and gone == b""


def test_a_list_that_did_not_change_is_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "1.png"
    path.write_bytes(b"one")
    (before,) = picture_digests([str(path)], tmp_path / "store")
    monkeypatch.setattr("dassl_prompts.features.pictures.read_bytes", None)
    assert picture_digests([str(path)], tmp_path / "store") == [before]
    monkeypatch.undo()
    state = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # the same name, size and time of modification
    assert picture_digests([str(path)], tmp_path / "store") == [digest_of(b"two")]
    assert len(list((tmp_path / "store" / FOLDER).glob("*.npy"))) == 2
