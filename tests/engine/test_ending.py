"""How commands end: a line and a code for every kind of accident, a traceback for our own faults."""

import errno
import os
import signal

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dassl_prompts.engine.ending import FULL, INTERRUPTED, LOST, WRONG, describe, ending
from dassl_prompts.engine.files import DiskFullError
from dassl_prompts.images import ImageReadError


def raising(error):
    def work():
        raise error

    return work


SHM = "unable to write to file </torch_123_4>: No space left on device (28)"
BUS = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of shared memory."


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("--top is -1"), WRONG, "error: --top is -1"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.pt"), WRONG, "'a.pt'"),
        (KeyError("no trainer CoOpp (did you mean CoOp?)"), WRONG, "error: no trainer CoOpp (did you"),
        (ImageReadError("cannot read image a.png: cut"), WRONG, "cannot read image a.png"),
        (DiskFullError(errno.ENOSPC, "cannot write a.npy: no space; make room"), FULL, "cannot write a.npy"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), FULL, "error: No space left on device; make room"),
        (
            RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
            LOST,
            "a process that reads was killed",
        ),
        (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), LOST, "DATALOADER.NUM_WORKERS"),
        (RuntimeError(BUS), LOST, "/dev/shm) is full"),
        (RuntimeError(SHM), LOST, "/dev/shm) is full"),
        (MemoryError(), LOST, "there is not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            LOST,
            "not enough memory",
        ),
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
)
def test_every_accident_has_its_code_and_line(error, code, line, capsys):
    assert ending(raising(error)) == code
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "error", [AttributeError("x"), KeyError("key"), RuntimeError("shapes"), TypeError("x"), AssertionError()]
)
def test_a_fault_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        ending(raising(error))


class Killed(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_loaders_process_that_the_system_kills(capsys):
    assert ending(lambda: list(DataLoader(Killed(), num_workers=1))) == LOST
    assert capsys.readouterr().err.startswith(
        "error: a process that reads was killed, most often for want of memory: give fewer"
    )


def test_ctrl_c(capsys):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        assert ending(lambda: signal.raise_signal(signal.SIGINT)) == INTERRUPTED
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted\n"


def test_a_result_is_the_exit_code():
    assert ending(lambda: None) == 0 and ending(lambda: 3) == 3


def test_torchs_own_words_for_memory_that_is_not_there():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert describe(caught.value)[0] == LOST
