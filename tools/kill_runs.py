"""Kill the package's work at random moments and see what is left.

``python tools/kill_runs.py --kills 200`` does every kind of work (training, a sweep, an index, a report with plots, an export, a
download, unpacking, a feature store) once undisturbed, then kills it (SIGKILL, the whole process group) after a random part of
the time that it took, reads every file that has its final name, kills it again, and lets the same command run to its end. Counted:

- broken: a file under a final name that its reader refuses, or a folder under one that lacks files;
- leftovers: files that the run to the end leaves and an undisturbed one does not;
- failed: the run to the end did not end well, or lacks a file.

Work starts as a fork of this process, which has imported everything: the kills fall into the work and not into imports.
Exit codes: 0 none of them, 1 some.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import os
import random
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from file_kinds import encode, picture, to_tensor_named
from PIL import Image
from tabulate import tabulate

#: what grows while a run goes on, and is whole at any length
GROWING = re.compile(r"(log|console)\.txt.*|.*\.part(\.version)?|\.lock|.*\.lock|.*\.partial\.npy|.*\.unfinished")
#: kills before the run to the end
KILLS_PER_END = 2
TRAIN = [
    "--dataset-config-file",
    "configs/datasets/emoji.yaml",
    "--config-file",
    "configs/trainers/CoOp/open_tiny.yaml",
]
SHORT = ["DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "2", "TEST.NO_TEST", "True"]


@dataclass(frozen=True)
class Work:
    """Something that may be killed.

    Attributes:
        name: of its row. run: does it; its files go below ``folder / "out"``. prepare: makes what it needs, once.
    """

    name: str
    run: Callable[[Path], int | None]
    prepare: Callable[[Path], None] = lambda folder: None


# -- the kinds of work ---------------------------------------------------------------------------------------


def train(folder: Path) -> None:
    from dassl_prompts.train import main

    main([*TRAIN, "--trainer", "CoOp", "--seed", "1", "--output-dir", str(folder / "out"), *SHORT])


def sweep(folder: Path) -> int:
    from dassl_prompts.run.__main__ import main

    words = ["fewshot", "--trainer", "CoOp", "--dataset", "emoji", "--seed", "1", "--shots", "1", "--epochs", "1"]
    return main([*words, "--output", str(folder / "out"), "--no-stream", "TEST.NO_TEST", "True"])


def pictures(folder: Path, count: int = 60) -> list[str]:
    return [str(picture(folder / "images" / f"{number:03d}.png", number)) for number in range(count)]


def list_pictures(folder: Path) -> list[str]:
    return sorted(map(str, (folder / "images").glob("*.png")))


def index(folder: Path) -> None:
    """Makes an index, then takes a picture out and two in."""
    from dassl_prompts.composed import index_files, index_update
    from dassl_prompts.composed.index_table import start_of

    index_files.PART_IMAGES = 8
    options = {"weights": "w", "width": 2, "model": {"backbone": "toy"}, "faiss": "Flat", "batch_size": 4}
    names = [Path(path).name for path in list_pictures(folder)]
    for some in (names[:-2], names[1:]):
        files = {start_of(str(folder / "images")): some}
        index_update.update_index(folder / "out", files, encode, to_tensor_named, **options)


def features(folder: Path) -> None:
    from types import SimpleNamespace

    from dassl_prompts.features import feature_cache
    from dassl_prompts.features.store import KEY, Store
    from dassl_prompts.features.view_cache import ViewCache

    feature_cache.BATCHES_PER_NOTE = 2
    options = {"weights": "w", "shape": (2,), "dtype": "fp32", "batch_size": 4}
    feature_cache.cached_features(folder / "out", "toy", list_pictures(folder), encode, to_tensor_named, **options)

    def view():
        for start in range(0, 2000, 100):
            labels = torch.arange(start, start + 100)
            yield SimpleNamespace(feature=torch.ones(100, 64), queries=torch.ones(100, 64)), labels

    ViewCache.create(folder / "out" / "views", [view, view], 2000)
    store = Store(folder / "out" / "store", {"weights": "w"}, 64, 1e9)
    for epoch in range(20):
        keys = [bytes([number]) * KEY for number in range(100)]
        if not store.load(str(epoch)):
            store.add(str(epoch), keys, np.full((100, 64), epoch, np.float32))


def runs_to_report(folder: Path) -> None:
    from dassl_prompts.engine import write_json

    for trainer in ("CoOp", "MaPLe"):
        for shots in (1, 4):
            for seed in (1, 2):
                run = folder / "runs" / f"fewshot/train_all/emoji/shots_{shots}/{trainer}/open_tiny/seed{seed}"
                content = {"trainer": trainer, "dataset": "Emoji", "classes": "all", "shots": shots, "seed": seed}
                content |= {"kind": "training", "backbone": "emoji-tiny", "config": {}, "finished": True}
                write_json({**content, "test": {"accuracy": 50.0 + shots + seed}}, run / "results.json")


def report(folder: Path) -> int:
    from dassl_prompts.report.__main__ import main

    out = folder / "out"
    return main([str(folder / "runs"), "--plots", str(out), "--write", str(out / "report.md")])


def train_to_export(folder: Path) -> None:
    from dassl_prompts.train import main

    main([*TRAIN, "--trainer", "CoOp", "--seed", "1", "--output-dir", str(folder / "run"), *SHORT])


def export(folder: Path) -> int:
    from dassl_prompts.predict.__main__ import main

    return main([str(folder / "run"), "--export", str(folder / "out"), "--with-backbone", "--device", "cpu"])


class Slow(http.server.SimpleHTTPRequestHandler):
    """Serves a file in pieces, with its length and a mark of its version, from where it is asked for."""

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        content = Path(self.directory, "served.bin").read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for at in range(start, len(content), 1 << 16):
                self.wfile.write(content[at : at + (1 << 16)])
                time.sleep(0.005)


def serve(folder: Path) -> None:
    (folder / "served.bin").write_bytes(random.Random(0).randbytes(1 << 22))


def download(folder: Path) -> None:
    """The server lives and dies with the process that downloads."""
    from dassl_prompts.prepare.download import download, file_md5

    handler = lambda *args: Slow(*args, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/data.bin"
    download(address, folder / "out" / "data.bin", pause=0)
    assert file_md5(folder / "out" / "data.bin") == file_md5(folder / "served.bin")


def archive(folder: Path) -> None:
    with tarfile.open(folder / "data.tar.gz", "w:gz") as file:
        for path in pictures(folder, 300):
            file.add(path, f"top/images/{Path(path).name}")


def unpack(folder: Path) -> None:
    from dassl_prompts.prepare.extract import unpack

    unpack(folder / "data.tar.gz", folder / "out", {"top/images": "images"})


WORKS = [
    Work("training", train),
    Work("sweep", sweep),
    Work("index", index, lambda folder: pictures(folder) and None),
    Work("report with plots", report, runs_to_report),
    Work("export", export, train_to_export),
    Work("download", download, serve),
    Work("unpack", unpack, archive),
    Work("feature store", features, lambda folder: pictures(folder) and None),
]
#: work that takes a second or less
QUICK = ("index", "download", "unpack", "feature store")


# -- killing -------------------------------------------------------------------------------------------------


def start(task: Callable[[Path], int | None], folder: Path) -> int:
    """Run ``task`` in a process of its own, the first of a new group; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        with contextlib.suppress(PermissionError):  # it has done so itself
            os.setpgid(child, child)
        return child
    code = 1
    try:
        os.setpgid(0, 0)
        quiet = os.open(folder / "told.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        code = task(folder) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(task: Callable[[Path], int | None], folder: Path) -> tuple[int, float]:
    """Exit code and seconds of a run to the end."""
    began = time.monotonic()
    _, status = os.waitpid(start(task, folder), 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def kill(task: Callable[[Path], int | None], folder: Path, after: float) -> float | None:
    """Start ``task`` and kill it and all that it started after so many seconds; the seconds that it took where it ended before."""
    child, began = start(task, folder), time.monotonic()
    while (gone := time.monotonic() - began) < after:
        if os.waitpid(child, os.WNOHANG)[0]:
            return gone
        time.sleep(min(0.005, after - gone))
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def names(out: Path) -> set[str]:
    """Files below a folder; a log that was set aside and tensorboard's events have time and process in their names.

    The files of an index have the number of its generation, which kills change: it is left out of the first of them.
    """
    found: set[str] = set()
    for name in sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()):
        one = re.sub(r"^(features|names|places|copies|faiss)-\d+", r"\1", name)
        found.add(name if one in found else one)
    found = {re.sub(r"(events\.out\.tfevents)\..*", r"\1", name) for name in found}
    return {name for name in found if not re.search(r"log\.txt-\d|told\.txt", name)}


def broken(out: Path) -> list[str]:
    """What is wrong with files that have their final names."""
    from dassl_prompts.engine import load_checkpoint
    from dassl_prompts.engine.reading import read_json, read_npy, read_safetensors, read_text

    def look(path: Path) -> None:
        with Image.open(path) as image:
            image.load()

    readers = {".json": read_json, ".safetensors": read_safetensors, ".pt": load_checkpoint, ".md": read_text}
    readers |= {".npy": read_npy, ".png": look, ".bin": lambda path: path.stat().st_size == 1 << 22 or 1 / 0}
    wrong = []
    for path in sorted(out.rglob("*")):
        inside = path.relative_to(out).parts
        if not path.is_file() or any(GROWING.fullmatch(part) or part.startswith(".unpack-") for part in inside):
            continue
        read = (
            load_checkpoint if path.name.startswith("model") and ".pth.tar" in path.name else readers.get(path.suffix)
        )
        try:
            if read is not None:
                read(path)
        except Exception as error:
            wrong.append(f"{path.relative_to(out)}: {error}")
    for folder, files in (("views", 4), ("images", 300)):
        if (out / folder).is_dir() and len(list((out / folder).iterdir())) != files:
            wrong.append(f"{folder} is not whole")
    return wrong


def torment(work: Work, kills: int, draw: random.Random) -> tuple[list, list[str]]:
    """A row of the table, and a line for each fault."""
    faults: list[str] = []
    counts = {"broken": 0, "leftovers": 0, "failed": 0}

    def note(what: str, found: list[str]) -> None:
        counts[what] += len(found)
        faults.extend(f"{work.name}: {what}: {one}" for one in found)

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        out = folder / "out"
        code, _ = finish(work.prepare, folder)
        first, took = finish(work.run, folder)
        if code or first:
            told = (folder / "told.txt").read_text(errors="replace").strip().splitlines()
            return [work.name, 0, 0, 0, 1, ""], [f"{work.name}: undisturbed it ends with {code or first}: {told[-1:]}"]
        expected = names(out)
        shutil.rmtree(out)
        done, takes = 0, took
        while done < kills:
            for _ in range(min(KILLS_PER_END, kills - done)):
                ended = kill(work.run, folder, draw.uniform(0, takes))
                note("broken", broken(out))
                if ended is not None:  # before the moment: it was done, or the machine has less to do than at first
                    takes = max(ended, takes / 2)
                    break
                done += 1
            code, _ = finish(work.run, folder)
            found = names(out)
            note("leftovers", sorted(found - expected))
            note("failed", [f"lacks {name}" for name in sorted(expected - found)] + [f"exit code {code}"] * bool(code))
            note("broken", broken(out))
            shutil.rmtree(out, ignore_errors=True)
    return [work.name, kills, *counts.values(), f"{took:.1f}"], faults


def run(kills: int, start_seed: int = 0, works: list[Work] = WORKS) -> tuple[str, list[str]]:
    """The table over all kinds of work and the faults."""
    draw = random.Random(start_seed)
    rows, faults = [], []
    for number, work in enumerate(works):
        share = kills * (number + 1) // len(works) - kills * number // len(works)
        row, found = torment(work, share, draw)
        rows.append(row)
        faults += found
    rows.append(["all", *(sum(row[column] for row in rows) for column in range(1, 5)), ""])
    headers = ["work", "kills", "broken", "leftovers", "failed", "seconds undisturbed"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True), faults


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=200, help="in all (default 200)")
    p.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    p.add_argument("--only", nargs="+", metavar="WORK", choices=[work.name for work in WORKS], help="kinds of work")
    args = p.parse_args(argv)
    os.chdir(Path(__file__).parent.parent)
    os.environ.update(HF_HUB_OFFLINE="1", MPLBACKEND="Agg")
    torch.set_num_threads(1)
    import dassl_prompts

    dassl_prompts.register_all("replace")
    np.random.seed(0)
    table, faults = run(args.kills, args.seed, [work for work in WORKS if not args.only or work.name in args.only])
    print(table)
    for fault in faults:
        print(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
