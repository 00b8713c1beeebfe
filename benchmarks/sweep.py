"""Processor time of whole runs with and without a store of frozen features.

    python -m benchmarks.sweep [--parts sweep job shape] [--seeds 1 2 3] [--against CHECKOUT] [--write]

- sweep: five methods, base-to-new on the embedded emoji; store off, empty, filled; --against: the same by another build, a checkout
  with its own environment in .venv.
- job: one CoOp base-to-new job on emoji against the official procedure: 77 positions, class features for every batch, pictures read
  anew every epoch, one process for base classes and one for new ones.
- shape: a random ViT-B/16 at 224 px, 200 pictures, 5 epochs; one method, then a second one on the same seed.

Seconds are those that the processor spent on all processes of a command, children included, which a busy machine changes little.
Wall-clock time is not compared. Bytecode is written before anything is measured. --write renews docs/benchmarks/sweep.md.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from benchmarks.pages import DOCS, conditions, device_name, write_section

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("ZeroshotCLIP", "CoOp", "CoCoOp", "DPC_CoOp", "AttriPrompt")
PARTS = ("sweep", "job", "shape")
TITLE = "Whole runs and the store of frozen features"
#: Linux: orphans of our children become ours, so that their time is counted, too
PR_SET_CHILD_SUBREAPER = 36


def spent(command: list[str], where: Path, features: str, log: Path) -> float:
    """Processor seconds of a command and everything that it starts.

    Raises:
        CalledProcessError: it failed; ``log`` says why.
    """
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    env["DASSL_PROMPTS_FEATURES"] = features
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(log, "ab") as output:
        subprocess.run(command, cwd=where, env=env, stdout=output, stderr=output, check=True)
    with suppress(ChildProcessError):
        while True:  # a fork server outlives its command for a moment
            os.waitpid(-1, 0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def python_of(checkout: Path) -> str:
    """The interpreter of a checkout's environment.

    Raises:
        FileNotFoundError: it has none.
    """
    found = checkout / ".venv" / "bin" / "python"
    if not found.exists():
        raise FileNotFoundError(f"--against {checkout}: no {found}; make one there with pip install -e .")
    return str(found)


def plan(methods, seeds, output: Path) -> list[str]:
    """Arguments of Python for base-to-new runs on emoji."""
    words = ["-m", "dassl_prompts.run", "base2new", "--trainer", *methods, "--dataset", "emoji"]
    return [*words, "--seed", *map(str, seeds), "--output", str(output), "--common", "USE_CUDA", "False"]


# -- the parts -------------------------------------------------------------------------------------------------


def sweep(args, scratch: Path) -> list[str]:
    """The same sweep without a store, on an empty and on a filled one, and by the other build."""
    cases = [("store off", sys.executable, ROOT, "off")]
    cases += [(f"{state} store", sys.executable, ROOT, str(scratch / "store")) for state in ("empty", "filled")]
    if args.against:
        cases.insert(0, (f"build {commit(args.against)}", python_of(args.against), args.against, "off"))
    rows, first = [], None
    for name, python, where, features in cases:
        seconds = measured(name, scratch, lambda out: [python, *plan(METHODS, args.seeds, out)], where, features)
        first = first or seconds
        rows.append(f"| {name} | {seconds:.0f} | {first / seconds:.1f} |")
        print(rows[-1], flush=True)
    title = f"{', '.join(METHODS)}; base-to-new on emoji, seeds {' '.join(map(str, args.seeds))}"
    kept = sum(file.stat().st_size for file in (scratch / "store").rglob("*.npy")) / 1e6
    return [f"{title}. The store then holds {kept:.0f} MB.\n", *head("runs"), *rows]


def job(args, scratch: Path) -> list[str]:
    """One job: the official procedure, ours on an empty store, ours on a filled one."""
    official = [sys.executable, "-m", "benchmarks.sweep", "--official"]
    first = measured("official", scratch, lambda out: [*official, str(out)], ROOT, "off")
    rows = [f"| official procedure | {first:.1f} | 1.0 |"]
    for name in ("empty store", "filled store"):
        command = lambda out: [sys.executable, *plan(["CoOp"], [1], out)]
        seconds = measured(f"job, {name}", scratch, command, ROOT, str(scratch / "job-store"))
        rows.append(f"| {name} | {seconds:.1f} | {first / seconds:.1f} |")
    print(*rows, sep="\n", flush=True)
    text = "CoOp, 16 shots of emoji, 20 epochs: train and test on base classes, test on new ones; all of it from a cold start."
    return [f"{text}\n", *head("job"), *rows]


def shape(args, scratch: Path) -> list[str]:
    """Two methods one after the other on a tower of ViT-B/16's size."""
    weights = scratch / "vit-b-16.pt"
    make = f"import torch, open_clip; torch.manual_seed(0); torch.save(open_clip.create_model('ViT-B-16').state_dict(), {str(weights)!r})"
    subprocess.run([sys.executable, "-c", make], check=True)
    rows, first = [], None
    for name in ("CoOp", "KgCoOp"):
        command = lambda out: [
            *(sys.executable, "-m", "dassl_prompts.train", "--trainer", name, "--dataset", "emoji", "--seed", "1"),
            *("--config-file", f"configs/trainers/{name}/open_tiny.yaml", "--backbone", str(weights)),
            *("--output-dir", str(out), "MODEL.BACKBONE.ACTIVATION", "quickgelu", "INPUT.SIZE", "(224, 224)"),
            *("OPTIM.MAX_EPOCH", "5", "TEST.NO_TEST", "True", "USE_CUDA", "False"),
            *("DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", str(args.shape_shots)),
        ]
        seconds = measured(f"ViT-B/16, {name}", scratch, command, ROOT, str(scratch / "shape-store"))
        first = first or seconds
        rows.append(f"| {name} | {seconds:.0f} | {first / seconds:.1f} |")
        print(rows[-1], flush=True)
    count = args.shape_shots * 20
    return [f"A random ViT-B/16 at 224 px, {count} pictures, 5 epochs, no test.\n", *head("method"), *rows]


def measured(name: str, scratch: Path, command, where: Path, features: str) -> float:
    """Processor seconds of the command that ``command`` gives for an output folder."""
    out = scratch / name.replace(" ", "-").replace("/", "-").replace(",", "")
    return spent(command(out), where, features, scratch / "log.txt")


def head(what: str) -> list[str]:
    return [f"| {what} | processor seconds | times less than the first |", "| --- | --- | --- |"]


def commit(checkout: Path) -> str:
    """Short name of a checkout's state."""
    found = subprocess.run(["git", "-C", checkout, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "other"


# -- the official procedure ------------------------------------------------------------------------------------


def official(output: Path) -> None:
    """A training with a test on base classes, then a test on new ones, each in a process of its own as the scripts start them."""
    for stage in ("base", "new"):
        subprocess.run(
            [sys.executable, "-m", "benchmarks.sweep", "--official", str(output), "--stage", stage], check=True
        )


def official_stage(output: Path, stage: str) -> None:
    """CoOp's training loop and test in the steps of the official code, on the same data, recipe and weights."""
    import torch
    import torch.nn.functional as F
    from sklearn.metrics import f1_score

    import dassl_prompts
    from benchmarks.official import Official
    from dassl_prompts import engine
    from dassl_prompts.models import clip as clips
    from dassl_prompts.models.weights import embedded_weights, read_state_dict
    from dassl_prompts.train import parser, setup_cfg

    flags = f"--trainer CoOp --config-file {ROOT}/configs/trainers/CoOp/open_tiny.yaml --dataset emoji --seed 1 --output-dir {output}"
    opts = ["DATASET.SUBSAMPLE_CLASSES", stage, "DATASET.NUM_SHOTS", "16", "USE_CUDA", "False"]
    dassl_prompts.register_all("replace")
    cfg = setup_cfg(parser().parse_args([*flags.split(), *opts]))
    engine.set_random_seed(1)
    engine.setup_logger(str(output / stage))
    engine.collect_env_info()  # Dassl's log begins with it
    dm = engine.DataManager(cfg)
    model = clips.build_model(clips.named_config("open-tiny"))
    clips.load_strict(model, read_state_dict(embedded_weights("open-tiny")), "open-tiny")
    model = model.eval().requires_grad_(False)
    towers, scale = Official(model), model.logit_scale.exp()
    text = clips.finish(model, "fp32", "cpu").text
    ctx = torch.nn.Parameter(text.embed_words("a photo of a").clone())
    names = [name.replace("_", " ") for name in dm.dataset.classnames]
    tokens = text.class_prompts(names, n_ctx=len(ctx)).tokens
    logits = lambda images: scale * towers.image(images) @ towers.text(tokens, ctx).t()
    file = output / "ctx.pt"
    if stage == "base":
        optim = engine.build_optimizer([ctx], cfg.OPTIM)
        sched = engine.build_lr_scheduler(optim, cfg.OPTIM)
        for _ in range(cfg.OPTIM.MAX_EPOCH):
            for batch in dm.train_loader_x:
                optim.zero_grad()
                loss = F.cross_entropy(logits(batch["img"]), batch["label"])
                loss.backward()
                optim.step()
            sched.step()
        torch.save(ctx.detach(), file)
    else:
        ctx.data = torch.load(file, weights_only=True)
    true, found = [], []
    with torch.no_grad():
        for batch in dm.test_loader:
            true += batch["label"].tolist()
            found += logits(batch["img"]).argmax(1).tolist()
    right = sum(a == b for a, b in zip(true, found))
    print(f"{stage}: accuracy {right / len(true):.1%}, macro F1 {f1_score(true, found, average='macro'):.1%}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    p.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    p.add_argument("--against", type=Path, help="checkout of another build, with its environment in .venv")
    p.add_argument("--shape-shots", type=int, default=10, help="shots of the 20 base classes in the part 'shape'")
    p.add_argument("--write", action="store_true", help="renew docs/benchmarks/sweep.md")
    p.add_argument("--official", type=Path, help=argparse.SUPPRESS)
    p.add_argument("--stage", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.official:
        return official_stage(args.official, args.stage) if args.stage else official(args.official)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with tempfile.TemporaryDirectory() as scratch:
        warm_up(args, Path(scratch))
        parts = {"sweep": sweep, "job": job, "shape": shape}
        for name in args.parts:
            text = "\n".join(parts[name](args, Path(scratch)))
            threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
            text = f"`python -m benchmarks.sweep --parts {name}`: {conditions('cpu', threads)}.\n\n{text}"
            print(text, flush=True)
            if args.write:
                write_section(DOCS / "sweep.md", TITLE, f"{device_name('cpu')}, {name}", text)


def warm_up(args, scratch: Path) -> None:
    """Write the bytecode of everything that is measured, as any run but the first of an installation finds it."""
    for python, where in ((sys.executable, ROOT), *([(python_of(args.against), args.against)] if args.against else [])):
        command = [
            python,
            *plan(["CoOp"], [1], scratch / f"warm-{commit(where)}-{len(python)}"),
            "OPTIM.MAX_EPOCH",
            "1",
        ]
        spent(command, where, "off", scratch / "log.txt")


if __name__ == "__main__":
    main()
