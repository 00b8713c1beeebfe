"""Test environment: no network, one thread per operation, and import names as an installed user has them."""

import os
import sys
import types
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

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
