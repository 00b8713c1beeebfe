"""What the benchmarks measure with: a clock that waits for the GPU, peak memory, and the flags that all of them take."""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections.abc import Callable

import torch


class Clock:
    """Least time of several calls; on a GPU both ends wait for the queue to empty."""

    def __init__(self, device: torch.device | str, repeats: int):
        self.device, self.repeats = torch.device(device), repeats

    def __call__(self, work: Callable[[], object]) -> float:
        """Wall-clock seconds."""
        return self.both(work)[0]

    def both(self, work: Callable[[], object]) -> tuple[float, float]:
        """Wall-clock and processor seconds, each the least of all calls; the second hardly feels a busy machine."""
        spent = [self.once(work) for _ in range(self.repeats)]
        return min(wall for wall, _ in spent), min(processor for _, processor in spent)

    def once(self, work: Callable[[], object]) -> tuple[float, float]:
        self.wait()
        wall, processor = time.perf_counter(), time.process_time()
        work()
        self.wait()
        return time.perf_counter() - wall, time.process_time() - processor

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak_mb(device: torch.device | str = "cpu") -> float:
    """Peak memory in MiB so far: of the process, or what torch allocated on the GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def autocast(device: torch.device | str, prec: str) -> torch.autocast:
    """bf16 for ``prec`` amp, else nothing."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=prec == "amp")


def add_flags(parser: argparse.ArgumentParser, page: str) -> None:
    """--device, --prec, --threads and --write."""
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--prec", default="fp32", choices=("fp32", "amp"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--write", action="store_true", help=f"renew the section of the device in docs/benchmarks/{page}"
    )
