"""The flags of launchers, and the launcher that they ask for."""

from __future__ import annotations

import argparse
from pathlib import Path

from dassl_prompts.run.launchers.base import Launcher
from dassl_prompts.run.launchers.local import Scheduler, make_slots
from dassl_prompts.run.launchers.script import ScriptLauncher
from dassl_prompts.run.launchers.slurm import SlurmLauncher
from dassl_prompts.run.plan import Node
from dassl_prompts.run.resources import RESOURCES

LAUNCHERS = ("local", "slurm", "commands")
#: flags that one launcher alone reads -> which, and what it would be elsewhere
OWN = {
    **dict.fromkeys(("jobs", "devices", "stream"), ("local",)),
    **dict.fromkeys((*RESOURCES, "slurm", "parallel"), ("slurm", "commands")),
    "no_wait": ("slurm",),
}


def add_arguments(p: argparse.ArgumentParser) -> None:
    group = p.add_argument_group("on a cluster (docs/clusters.md)")
    group.add_argument(
        "--launcher",
        choices=LAUNCHERS,
        help="local: this machine (default); slurm: job arrays, submitted and watched; commands: write a script for another batch system",
    )
    group.add_argument(
        "--parallel", type=int, metavar="N", help="runs at most at once in the whole cluster (default: no limit)"
    )
    for name, text in RESOURCES.items():
        group.add_argument(f"--{name}", metavar=name.upper(), help=text)
    group.add_argument(
        "--slurm", nargs="+", metavar="FLAG=VALUE", help="further flags of sbatch, e.g. qos=high exclusive"
    )
    group.add_argument("--no-wait", action="store_true", help="leave once the runs are submitted")


def check(args: argparse.Namespace, launcher: str) -> None:
    """
    Raises:
        ValueError: a flag is given that this launcher does not read.
    """
    for name, owners in OWN.items():
        if getattr(args, name) not in (None, False) and launcher not in owners:
            flag = name.replace("_", "-")
            raise ValueError(
                f"--{flag} is read with --launcher {' or '.join(owners)}, not with {launcher}: leave it out or change --launcher"
            )


def make(args: argparse.Namespace, nodes: list[Node]) -> Launcher:
    """The launcher; ``args`` have their final values."""
    given = {"force": args.force, "stop": args.stop, "retry": args.retry, "table": True}
    output = Path(args.output)
    if args.launcher == "slurm":
        return SlurmLauncher(nodes, output, parallel=args.parallel, wait=not args.no_wait, **given)
    if args.launcher == "commands":
        return ScriptLauncher(nodes, output, parallel=args.parallel, **given)
    return Scheduler(
        nodes,
        make_slots(args.devices, args.jobs, max((node.step.processes for node in nodes), default=1)),
        stream=args.stream,
        **given,
    )
