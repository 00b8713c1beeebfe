"""Benchmark pages with one section per device: a run on a GPU leaves the CPU's numbers where they are."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
MARK = "<!-- device: {} -->"


def device_name(device: str, prec: str = "fp32") -> str:
    """Heading of a device's section, such as ``CPU, fp32``."""
    return f"{torch.cuda.get_device_name() if device.startswith('cuda') else 'CPU'}, {prec}"


def conditions(device: str, threads: int) -> str:
    """Machine and versions behind a table, in one line."""
    where = torch.cuda.get_device_name() if device.startswith("cuda") else f"{threads} threads, {platform.machine()}"
    return f"{where}, torch {torch.__version__}, load of the machine at the end {os.getloadavg()[0]:.1f}"


def write_section(path: Path, title: str, device: str, text: str) -> None:
    """Replace or append the section of ``device`` (see :func:`device_name`) in a page; other devices keep theirs."""
    sections: dict[str, str] = {}
    if path.is_file():
        parts = re.split(r"^<!-- device: (.*) -->\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        sections = dict(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
    sections[device] = f"## {device}\n\n{text.strip()}"
    body = "\n\n".join(f"{MARK.format(name)}\n{section}" for name, section in sections.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {title}\n\n{body}\n", encoding="utf-8")
