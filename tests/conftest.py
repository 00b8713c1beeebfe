"""Test environment: no network, one thread per operation, and import names as an installed user has them."""

import os
import socket
import sys
import types
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the scripts that tests start inherit it
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["DASSL_PROMPTS_FEATURES"] = "off"  # runs of tests keep features only where they say so

ROOT = Path(__file__).resolve().parent.parent

# `python -m pytest` puts the repository root on the path, where datasets/ would answer to Hugging Face's name and trainers/ to
# CoOp's. Helpers are imported as tests.tiny and tests.reference all the same.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
if "tests" not in sys.modules:
    tests = types.ModuleType("tests")
    tests.__path__ = [str(ROOT / "tests")]
    sys.modules["tests"] = tests

import pytest  # noqa: E402
import torch  # noqa: E402

SHARED = ROOT.parent / "shared"


def is_local(host):
    return host in (None, "", "localhost", "localhost.localdomain", "::1") or str(host).startswith("127.")


@pytest.fixture(scope="session", autouse=True)
def no_network():
    """Only this machine answers: what passes with a network and fails without is found where it is written.

    Names are refused, too, because without a network their look-up may take seconds to fail.
    """

    def refuse(host):
        # not an exception that the code under test could take for a failed download
        pytest.fail(
            f"a test wants to reach {host}: tests run without network, use tests/prepare/server.py or a fixture"
        )

    def guarded(method):
        def connect(self, address):
            if self.family != getattr(socket, "AF_UNIX", None) and not is_local(address[0]):
                refuse(address[0])
            return method(self, address)

        return connect

    look_up = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host
        return look_up(host, *args, **kwargs) if is_local(name) else refuse(name)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """Real annotation files, where the workplace has them."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real annotation files are not at {folder}")
    return folder
