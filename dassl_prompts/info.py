"""``python -m dassl_prompts.info``: what this machine offers, and where data and weights are looked for."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "transformers",
    "numpy",
    "Pillow",
    "yacs",
    "safetensors",
    "faiss-cpu",
)


def version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def facts() -> dict[str, str]:
    """Name -> value, in the order of printing."""
    import torch

    from dassl_prompts import __file__ as package
    from dassl_prompts import __version__
    from dassl_prompts.engine import ENGINE

    found = {
        "dassl-prompts": f"{__version__} at {Path(package).parent}",
        "Python": f"{platform.python_version()} at {sys.executable}",
    }
    found |= {name: version_of(name) for name in PACKAGES}
    found["engine"] = ENGINE
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            found[f"GPU {i}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    elif torch.version.cuda:
        found["GPU"] = (
            f"none is seen by torch (built for CUDA {torch.version.cuda}); without one, torch's CPU wheels are several GB "
            "smaller: pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
        )
    else:
        found["GPU"] = "none (this torch is built for CPUs)"
    found["CPU"] = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads per run"
    if hasattr(os, "sysconf"):
        found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    data = Path(os.environ.get("DATA", "data")).absolute()
    found["data"] = f"{data} ({'DATA' if 'DATA' in os.environ else 'default; set DATA=/where/the/datasets/are'})" + (
        "" if data.is_dir() else ", not there: only the embedded data can be used"
    )
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    found["fetched weights"] = str(hub)
    return found


def parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog="python -m dassl_prompts.info", description=__doc__.split(": ")[1])


def main(argv: list[str] | None = None) -> int:
    """Print what there is, a line each."""
    parser().parse_args(argv)
    for name, value in facts().items():
        print(f"{name:<16} {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
