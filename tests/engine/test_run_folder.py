"""One run per output folder, and its results.json."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from dassl_prompts.engine import FolderInUse
from dassl_prompts.engine import run_folder as module
from dassl_prompts.engine.run_folder import RunFolder

HOLDER = """
    import sys, time
    from dassl_prompts.engine.run_folder import RunFolder
    with RunFolder(sys.argv[1], {}).lock():
        print("locked", flush=True)
        time.sleep(60)
"""


def test_a_folder_belongs_to_one_process_also_after_sigkill(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "locked\n"
        folder = RunFolder(tmp_path, {})
        with (
            pytest.raises(FolderInUse, match=f"{tmp_path} is in use by process {holder.pid} on .*--output-dir"),
            folder.lock(),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert (tmp_path / "run.lock").exists()
        with folder.lock():
            assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    finally:
        holder.kill()
        holder.wait()
    assert not (tmp_path / "run.lock").exists()


def test_two_trainers_of_one_process(tmp_path):
    first, second = RunFolder(tmp_path, {}), RunFolder(tmp_path / "x" / "..", {})
    with first.lock(), first.lock():
        with pytest.raises(FolderInUse, match="another trainer of this process"), second.lock():
            pass
    with second.lock():
        pass


def test_without_posix_locks_a_dead_owner_is_replaced(tmp_path):
    path = tmp_path / "run.lock"
    os.close(module._acquire_exclusive(path))
    with pytest.raises(FolderInUse, match=f"process {os.getpid()}"):
        module._acquire_exclusive(path)
    owner = json.loads(path.read_text())
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    path.write_text(json.dumps({**owner, "pid": child.pid}))
    os.close(module._acquire_exclusive(path))
    assert json.loads(path.read_text()) == owner
    path.write_text(json.dumps({"pid": child.pid, "host": "elsewhere"}))
    with pytest.raises(FolderInUse, match="on elsewhere"):
        module._acquire_exclusive(path)


def test_results_are_merged(tmp_path):
    folder = RunFolder(tmp_path / "out", {"trainer": "CoOp", "seed": 1})
    assert folder.results() == {}
    folder.write({"test": {"accuracy": 50.0}, "finished": False})
    folder.write({"test": {"macro_f1": 40.0}, "val": {"accuracy": 1.0}, "finished": True})
    assert folder.results() == {
        "trainer": "CoOp",
        "seed": 1,
        "finished": True,
        "test": {"accuracy": 50.0, "macro_f1": 40.0},
        "val": {"accuracy": 1.0},
    }
    folder.check_owner()
    with pytest.raises(ValueError, match="holds the results of another run .trainer 'CoOp' there, 'MaPLe' now"):
        RunFolder(tmp_path / "out", {"trainer": "MaPLe", "seed": 1}).check_owner()


def test_an_unwritable_folder_stops_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/run: .*is not a folder"):
        RunFolder(tmp_path / "file" / "run", {})
