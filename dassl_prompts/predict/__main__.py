"""``python -m dassl_prompts.predict RUN_DIR IMAGES...``: labels and scores from a trained run."""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import dassl_prompts
from dassl_prompts import plugins
from dassl_prompts.engine.ending import ending
from dassl_prompts.engine.files import atomic_path, require_file_writable, require_writable
from dassl_prompts.engine.reading import read_lines
from dassl_prompts.images import IMAGE_SUFFIXES, ORIENTATIONS, describe_left_out, walk_images

if TYPE_CHECKING:
    from dassl_prompts.predict.run import TrainedRun

EPILOG = """\
examples:
  python -m dassl_prompts.predict output/.../CoOp/vit_b16/seed1 photo.jpg
  python -m dassl_prompts.predict RUN_DIR pictures/ --classes cat dog "polar bear" --top 3 --output labels.csv
  python -m dassl_prompts.predict RUN_DIR --export exported --classes-file classes.txt
  python -m dassl_prompts.predict RUN_DIR --export exported --hub
  python -m dassl_prompts.predict RUN_DIR --export exported --onnx --classes cat dog
  python -m dassl_prompts.predict RUN_DIR --words

exit codes: 0 done, 2 wrong input, 3 some images could not be read (the others are labelled), 6 the disk is full,
9 not enough memory, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.predict",
        description="Label images with a trained run, also with classes it never saw; export it; read its words.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument(
        "run", metavar="RUN_DIR", help="folder of a training run (with results.json and a checkpoint), or hf:USER/NAME"
    )
    p.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image files, folders (searched at any depth) or archive.zip::member",
    )
    p.add_argument(
        "--classes",
        nargs="+",
        metavar="NAME",
        help="what to tell apart (default: the classes of the training)",
    )
    p.add_argument("--classes-file", type=Path, metavar="FILE", help="class names, one per line")
    p.add_argument("--top", type=int, default=1, metavar="K", help="how many classes per image, 0 for all (default 1)")
    p.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write to FILE, .csv or .json (default: CSV on the screen)",
    )
    p.add_argument(
        "--export",
        type=Path,
        metavar="DIR",
        help="write class embeddings and prompts as safetensors with a JSON card",
    )
    p.add_argument(
        "--with-backbone",
        action="store_true",
        help="export the frozen CLIP too, where open_clip does not have it",
    )
    p.add_argument(
        "--hub", action="store_true", help="export what loads the run again, too, with a card for the Hugging Face hub"
    )
    p.add_argument(
        "--onnx",
        action="store_true",
        help="export pixels to probabilities as one ONNX file, too, checked with onnxruntime",
    )
    p.add_argument(
        "--words",
        nargs="?",
        type=int,
        const=3,
        metavar="K",
        help="print the K words nearest to every context token",
    )
    p.add_argument(
        "--import", nargs="+", default=[], metavar="MODULE", help="Python modules or files with trainers of your own"
    )
    p.add_argument("--epoch", type=int, help="checkpoint to use (default: the best or newest)")
    p.add_argument("--backbone", default="", help="the backbone's weights, if they moved since the training")
    p.add_argument("--device", choices=("cpu", "cuda"), default="", help="default: cuda where there is one")
    p.add_argument(
        "--orientation",
        choices=ORIENTATIONS,
        default="camera",
        help="turn pictures upright as EXIF says, or leave them as they are stored, as benchmark data is read "
        "(default camera)",
    )
    p.add_argument("--batch-size", type=int, default=64, metavar="N", help="images at a time (default 64)")
    return p


# -- input ---------------------------------------------------------------------------------------------------


def find_images(names: Iterable[str], left_out: Counter | None = None) -> Iterator[str]:
    """The image files among files and folders, one at a time, folders in alphabetical order.

    Args:
        left_out: counts the suffixes of the other files in folders.

    Raises:
        FileNotFoundError: a name that does not exist, or a folder without images.
    """
    for name in names:
        if not os.path.isdir(name):
            if "::" not in name and not os.path.exists(name):
                raise FileNotFoundError(f"there is no image {name}")
            yield name
            continue
        found = False
        for path in walk_images(name, left_out):
            found = True
            yield path
        if not found:
            raise FileNotFoundError(f"the folder {name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")


def class_names(args: argparse.Namespace) -> list[str] | None:
    if args.classes and args.classes_file:
        raise ValueError("give --classes or --classes-file, not both")
    if args.classes_file:
        names = [line.strip() for line in read_lines(args.classes_file)]
        if not any(names):
            raise ValueError(f"{args.classes_file} names no classes")
        return [name for name in names if name]
    return args.classes


# -- output --------------------------------------------------------------------------------------------------


class CsvWriter:
    """``image,label,score``, or ``image,label_1,score_1,label_2,...`` for several; errors in the last column."""

    def __init__(self, file, top: int):
        pairs = [("label", "score")] if top == 1 else [(f"label_{k}", f"score_{k}") for k in range(1, top + 1)]
        self.columns = [name for pair in pairs for name in pair]
        self.writer = csv.writer(file, lineterminator="\n")
        self.writer.writerow(["image", *self.columns, "error"])

    def write(self, row: dict) -> None:
        cells = [cell for label, score in row["scores"] for cell in (label, f"{score:.6f}")]
        self.writer.writerow([row["image"], *(cells or [""] * len(self.columns)), row.get("error", "")])

    def end(self) -> None:
        """Nothing to close."""


class JsonWriter:
    """A list of ``{"image", "label", "score", "scores": {label: score}}``, written item by item."""

    def __init__(self, file, top: int):
        self.file, self.lead = file, "["

    def write(self, row: dict) -> None:
        item = {"image": row["image"]}
        if row["scores"]:
            label, score = row["scores"][0]
            item |= {"label": label, "score": score, "scores": dict(row["scores"])}
        else:
            item["error"] = row["error"]
        self.file.write(f"{self.lead}\n{json.dumps(item, ensure_ascii=False)}")
        self.lead = ","

    def end(self) -> None:
        self.file.write("[]\n" if self.lead == "[" else "\n]\n")


@contextlib.contextmanager
def writer(path: Path | None, top: int):
    """A writer to a file, which appears when everything is written, or to the screen."""
    if path is None:
        yield CsvWriter(sys.stdout, top)
        return
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"--output {path} has to end in .csv or .json")
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        out = (CsvWriter if path.suffix == ".csv" else JsonWriter)(file, top)
        yield out
        out.end()


def label_images(run: TrainedRun, args: argparse.Namespace) -> int:
    """Write a row per image; returns how many could not be read."""
    from tqdm import tqdm

    from dassl_prompts.ranking.exact import ordered_topk

    left_out: Counter = Counter()
    total = sum(1 for _ in find_images(args.images, left_out))
    if left_out:
        print(describe_left_out(left_out), file=sys.stderr)
    top = min(args.top or len(run.classnames), len(run.classnames))
    broken = 0
    rows_are_seen = args.output is None and sys.stdout.isatty()
    with (
        writer(args.output, top) as out,
        tqdm(total=total, unit="image", file=sys.stderr, disable=rows_are_seen or total < 2) as bar,
    ):
        for path, scores in run.predict(find_images(args.images), args.batch_size, orientation=args.orientation):
            if isinstance(scores, OSError):
                broken += 1
                out.write({"image": path, "scores": [], "error": str(scores)})
            else:
                values, index = ordered_topk(scores, top)
                labels = [run.classnames[i] for i in index.tolist()]
                out.write({"image": path, "scores": list(zip(labels, values.tolist()))})
            bar.update()
    if broken:
        print(f"error: {broken} of {total} images could not be read; their rows say why", file=sys.stderr)
    return broken


def words_table(run: TrainedRun, count: int) -> str:
    from tabulate import tabulate

    from dassl_prompts.predict.words import nearest_words

    rows = [
        {**row, "words": ", ".join(f"{word} ({distance:.3f})" for word, distance in row["words"])}
        for row in nearest_words(run, count)
    ]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def work(args: argparse.Namespace) -> int:
    for flag in ("with_backbone", "hub", "onnx"):
        if getattr(args, flag) and args.export is None:
            raise ValueError(f"--{flag.replace('_', '-')} is read with --export alone: give --export DIR")
    if not args.images and args.export is None and args.words is None:
        raise ValueError("nothing to do: give images, --export or --words")
    for name, least in (("top", 0), ("batch_size", 1), ("words", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it has to be at least {least}")
    classes = class_names(args)
    plugins.load(getattr(args, "import"))
    dassl_prompts.register_all("replace")  # the run was trained by train.py, which does the same
    # wrong names are told before the model is loaded
    sum(1 for _ in zip(find_images(args.images), range(1)))
    if args.output is not None:
        require_file_writable(args.output, "--output")
    if args.export is not None:
        require_writable(args.export, "folder of --export", "give another one with --export")
    if args.onnx:
        from dassl_prompts.predict.onnx_file import require_packages

        require_packages()
        if args.device == "cuda":
            raise ValueError("--onnx writes from the CPU: leave --device cuda out")
    from dassl_prompts.predict.run import load_run

    device = "cpu" if args.onnx else args.device
    with contextlib.redirect_stdout(sys.stderr):  # labels on the screen must not mix with what loading prints
        run = load_run(args.run, classes, device=device, backbone=args.backbone, epoch=args.epoch)
    if args.words is not None:
        print(words_table(run, args.words))
    if args.export is not None:
        from dassl_prompts.predict.export import export

        for path in export(run, args.export, args.with_backbone, hub=args.hub, onnx=args.onnx):
            print(f"wrote {path}")
    return 3 if args.images and label_images(run, args) else 0


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    return ending(lambda: work(args))


if __name__ == "__main__":
    raise SystemExit(main())
