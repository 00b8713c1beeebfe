"""``python -m dassl_prompts.run PROTOCOL --trainer NAME... --dataset NAME...``: from start to table."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import dassl_prompts
from dassl_prompts import plugins
from dassl_prompts.engine.ending import tell
from dassl_prompts.results.groups import group
from dassl_prompts.results.notes import mixed
from dassl_prompts.results.runs import Run, read_run
from dassl_prompts.results.tables import tables
from dassl_prompts.run.arguments import add_force
from dassl_prompts.run.job import TASKS
from dassl_prompts.run.launchers import choose, slurm
from dassl_prompts.run.overview import overview
from dassl_prompts.run.plan import Node
from dassl_prompts.run.present import check_same_run
from dassl_prompts.run.protocols import PROTOCOLS
from dassl_prompts.run.resources import RESOURCES
from dassl_prompts.run.sweep import MATRIX, Sweep, build, read_file, split_opts

EPILOG = """\
protocols:
{protocols}

examples:
  python -m dassl_prompts.run base2new --trainer CoOp --dataset emoji --seed 1
  python -m dassl_prompts.run base2new --trainer CoOp DPC_CoOp --dataset dtd eurosat --seed 1 2 3 --jobs 2
  python -m dassl_prompts.run fewshot --trainer CoOp --dataset dtd --shots 1 2 4 8 16 TRAINER.COOP.N_CTX 4
  python -m dassl_prompts.run fewshot --trainer DPC_CoOp --dataset folder:~/pictures --shots 8
  python -m dassl_prompts.run --file sweep.yaml --jobs 2
  python -m dassl_prompts.run --file sweep.yaml --launcher slurm --parallel 20 --gpus 1 --cpus 4 --mem 16G
  python -m dassl_prompts.run status --output output         what the cluster has of these runs; cancel ends them

A sweep file (YAML) has the same words as keys: protocol, trainer, dataset, shots, seed (one value or a list),
cfg, tag, epochs, task, targets, template, class_names, import, opts (KEY: VALUE), common, root, output, jobs, devices, retry, gpus_per_run,
launcher, parallel and a run's gpus, cpus, mem, time, partition, account, slurm; under 'runs' a list of blocks that
differ from the rest. Flags win over the file. Finished runs are skipped, so the same command continues after
an interruption and tries failed runs again.

exit codes: 0 all done, 1 a run failed, 2 wrong input (nothing was started), 130 interrupted
"""


#: words that stand in the place of a protocol
CLUSTER = {"status": slurm.status, "cancel": slurm.cancel}


def parser() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:<10} {protocol.help}" for name, protocol in PROTOCOLS.items())
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.run",
        usage="%(prog)s PROTOCOL --trainer NAME... --dataset NAME... [options] [KEY VALUE ...]\n"
        "       %(prog)s --file sweep.yaml [options]\n"
        "       %(prog)s status|cancel --output DIR",
        description="Run methods on datasets with seeds and shots, every combination, and print the table.",
        epilog=EPILOG.format(protocols=listed),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "protocol", nargs="?", metavar="PROTOCOL", help=f"one of {', '.join(PROTOCOLS)} (below); or status, cancel"
    )
    p.add_argument("--file", help="YAML file that lists the runs")
    what = p.add_argument_group("what to run")
    what.add_argument("--trainer", nargs="+", metavar="NAME", help="methods, e.g. CoOp MaPLe DPC_CoOp ZeroshotCLIP")
    what.add_argument(
        "--dataset",
        nargs="+",
        metavar="NAME",
        help="names of files in configs/datasets, e.g. caltech101 emoji; YAML files of your own; own pictures as folder:PATH (a "
        "sub-folder per class) or csv:PATH (columns path and label)",
    )
    what.add_argument("--seed", type=int, nargs="+", metavar="N", help="one or several seeds (default 1)")
    what.add_argument(
        "--shots", type=int, nargs="+", metavar="N", help="training images per class, 0 for all (default 16)"
    )
    what.add_argument("--cfg", help="file in configs/trainers/<trainer>, or a YAML of your own; default: the recipe")
    what.add_argument(
        "--epochs", type=int, metavar="N", help="epochs of the method and of its first stage, not of a teacher"
    )
    what.add_argument(
        "--task",
        choices=TASKS,
        help="unknown: base2new also tests pictures of base and new classes against all classes together",
    )
    what.add_argument(
        "--targets", nargs="+", metavar="NAME", help="datasets that xd and dg test on, as --dataset takes them"
    )
    what.add_argument(
        "--template", metavar="TEXT", help='hand-written prompt of the dataset, e.g. "a photo of a {}, a type of bird."'
    )
    what.add_argument(
        "--class-names", metavar="FILE", help="YAML file 'folder or label: class name' that renames classes of own data"
    )
    what.add_argument(
        "--import",
        nargs="+",
        metavar="MODULE",
        help="Python modules or files with trainers and datasets of your own, imported first",
    )
    what.add_argument("--tag", help="suffix that keeps a variant's folders apart")
    what.add_argument(
        "--common",
        action="append",
        nargs=2,
        metavar=("KEY", "VALUE"),
        help="configuration of every run; KEY VALUE pairs without it leave first stages and teachers alone",
    )
    where = p.add_argument_group("where")
    where.add_argument("--root", help="folder of the datasets (default $DATA or ./data)")
    where.add_argument("--output", type=Path, help="root of the output tree (default ./output)")
    how = p.add_argument_group("how")
    how.add_argument("--jobs", type=int, metavar="N", help="runs at once per device (default 1)")
    how.add_argument(
        "--devices",
        nargs="+",
        metavar="D",
        help="CUDA devices to use, e.g. 0 1, or cpu (default: what torch sees)",
    )
    how.add_argument(
        "--gpus-per-run",
        type=int,
        metavar="N",
        help="N processes work on every run, each on a GPU of its own (or on a CPU), with the result of one",
    )
    how.add_argument("--retry", type=int, metavar="N", help="try failed runs again, up to N times (default 0)")
    how.add_argument(
        "--stop", action="store_true", help="start nothing more after a failure; default: go on with the rest"
    )
    how.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="show what the runs print, one at a time; otherwise it goes to console.txt in their folders",
    )
    how.add_argument(
        "--dry-run",
        action="store_true",
        help="check and list the runs, which are finished, time and disk; start nothing",
    )
    how.add_argument("--commands", action="store_true", help="print the command line of every run, start nothing")
    add_force(how)
    choose.add_arguments(p)
    return p


def settle(args: argparse.Namespace, content: dict, opts: list[str]) -> Sweep:
    """The sweep that flags and file ask for; fills in ``args`` where only the file says something."""
    defaults = {
        "root": os.environ.get("DATA", "data"),
        "output": "output",
        "jobs": 1,
        "devices": [],
        "retry": 0,
        "launcher": "local",
        "parallel": 0,
    }
    launcher = args.launcher or content.get("launcher", "local")
    if launcher not in choose.LAUNCHERS:
        raise ValueError(f"launcher is {launcher!r}; choose one of {', '.join(choose.LAUNCHERS)}")
    choose.check(args, launcher)
    for key, value in defaults.items():
        if getattr(args, key) is None:
            setattr(args, key, content.get(key, value))
    args.output = Path(args.output)
    args.devices = [str(d) for d in (args.devices if isinstance(args.devices, list) else [args.devices])]
    for key, least in (("jobs", 1), ("retry", 0), ("parallel", 0)):
        if not isinstance(getattr(args, key), int) or getattr(args, key) < least:
            raise ValueError(f"--{key} is {getattr(args, key)!r}; it has to be a number from {least} on")
    given = {
        key: getattr(args, key)
        for key in (
            *MATRIX,
            "cfg",
            "tag",
            "epochs",
            "task",
            "targets",
            "template",
            "class_names",
            "import",
            "slurm",
            "gpus_per_run",
            *RESOURCES,
        )
    }
    given["opts"] = opts or None
    given["common"] = [word for pair in args.common for word in pair] if args.common else None
    return build(given, content, str(args.root), args.output)


def summary(folders: Iterable[Path], root: Path) -> str:
    """The report's tables of finished runs: only runs that differ in nothing but the seed are averaged.

    Args:
        folders: of the runs. root: of the output tree.
    """
    found = [read_run(folder.absolute(), root.absolute()) for folder in folders]
    methods = group(run for run in found if isinstance(run, Run))
    parts = [table.text("markdown").strip() for table in tables(methods)]
    return "\n\n".join([*parts, *mixed(methods)])


def dry_run(nodes: list[Node]) -> tuple[str, bool]:
    """What would be done, run by run, and whether all of it could start; its cost only then."""
    lines, finished, refused, told = [], 0, 0, set()
    folders = {str(node.step.output.absolute()) for node in nodes}
    for node in nodes:
        what, why = "to do", []
        if node.step.results() is not None:
            try:
                check_same_run(node.step)
                what, finished = "finished", finished + 1
            except ValueError as error:
                why = [str(error)]
        else:
            why = node.step.problems(folders)
        if why:
            what, refused = "REFUSED", refused + 1
            why = [part for part in why if part not in told] or ["for the same reason"]
            told.update(why)
        lines.append("\n          ".join([f"{what:<9} {node.step.title} -> {node.step.output}", *why]))
    lines.append(f"{finished} of {len(nodes)} runs are finished")
    if refused:
        lines.append(
            f"error: {refused} of {len(nodes)} runs are REFUSED, as told above; none would start before that is mended"
        )
    return "\n".join([*lines] if refused else [*lines, "", overview(nodes)]), not refused


def report_failures(failed: list[Node]) -> None:
    print(f"\nerror: {sum(n.state == 'failed' for n in failed)} runs failed:", file=sys.stderr)
    for node in failed:
        print(f"  {node.step.title}: {node.reason or 'not started'}", file=sys.stderr)
    print("The same command tries them again; what is finished stays.", file=sys.stderr)


def run(argv: list[str]) -> int:
    words, opts = split_opts(argv)
    args = parser().parse_args(words)
    content = read_file(args.file) if args.file else {}
    if args.protocol in CLUSTER:
        print(CLUSTER[args.protocol](Path(args.output or content.get("output", "output"))))
        return 0
    sweep = settle(args, content, opts)
    plugins.load(name for _, job in sweep.jobs for name in job.imports)
    dassl_prompts.register_all("replace")  # as train.py does, so that the digests are those of its datasets
    nodes = sweep.nodes()
    if args.commands:
        print("\n".join(shlex.join(node.step.command()) for node in nodes))
        return 0
    if args.dry_run:
        text, fine = dry_run(nodes)
        print(text)
        return 0 if fine else 2
    launcher = choose.make(args, nodes)
    failed = launcher.run()
    if not launcher.watches:
        return 0
    complete = {str(node.step.output) for node in nodes if node.done}
    jobs = [[step.output for step in PROTOCOLS[p].steps(job)] for p, job in sweep.jobs]
    folders = dict.fromkeys(folder for job in jobs if {str(f) for f in job} <= complete for folder in job)
    if folders:
        print("\n" + summary(folders, args.output))
    if failed:
        report_failures(failed)
        return 1
    return 0


def main(argv: list[str] | None = None) -> int:
    def interrupt(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        return run(sys.argv[1:] if argv is None else argv)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error, "interrupted; the same command goes on from here")
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    raise SystemExit(main())
