"""Search a folder of images with an image and a sentence.

``python -m dassl_prompts.composed.search index FOLDER --index INDEX`` encodes a folder, the next time what has changed in it;
``... add FOLDER2 --index INDEX`` has both in it; ``... ask INDEX --image X --text "in red"`` prints the best images and writes a
contact sheet. ``--run`` asks with a trained PVLF or TransAgg, else image and text features are added.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path

from dassl_prompts.composed.index_table import list_root, place_of, read_manifest, start_of
from dassl_prompts.engine.ending import ending
from dassl_prompts.engine.reading import DamagedFile
from dassl_prompts.images import ORIENTATIONS, describe_left_out

#: how image and sentence are combined without a trained model; composed/query.py has the functions
QUERIES = ("image", "text", "image+text", "image+text, normalised")


def index(args) -> None:
    """Make an index of folders, or bring it up to date."""
    starts, known = starts_of(args.folder), known_index(args.index)
    there = known.get("starts", [])
    if there and set(there) != set(starts) and not args.replace:
        raise ValueError(
            f"{args.index} is an index of {' and '.join(map(place_of, there))}: give --replace to index "
            f"{' and '.join(args.folder)} in its place, or use `search add` to have both in it"
        )
    faiss = known.get("faiss", "") if args.faiss is None else args.faiss
    orientation = args.orientation or known.get("settings", {}).get("orientation", "camera")
    write_index(args, starts, model_of(args, known.get("model", {})), faiss, orientation)


def model_of(args, own: dict) -> dict:
    """The model that the arguments name, see :func:`~dassl_prompts.composed.asked_models.load_model`; what they leave open is as in
    ``own``, that of the index which is there."""
    # absolute, so that the index can be asked from another working directory
    if args.run:
        return {"run": os.path.abspath(args.run)}
    if args.backbone or "run" in own and args.query:
        own = {}
    if "run" in own:
        return own
    backbone = args.backbone or own.get("backbone", "ViT-B/32")
    activation = args.activation or own.get("activation", "")
    return {
        "backbone": os.path.abspath(backbone) if os.path.exists(backbone) else backbone,
        "query": args.query or own.get("query", "image+text"),
        **({"activation": activation} if activation else {}),
    }


def add(args) -> None:
    """Add folders to an index, and bring it up to date."""
    manifest = read_manifest(Path(args.index))
    starts = [*manifest["starts"], *starts_of(args.folder)]
    write_index(
        args, list(dict.fromkeys(starts)), manifest["model"], manifest["faiss"], manifest["settings"]["orientation"]
    )


def starts_of(folders: list[str]) -> list[str]:
    """See :func:`~dassl_prompts.composed.index_table.start_of`; each once."""
    return list(dict.fromkeys(map(start_of, folders)))


def known_index(folder: str) -> dict:
    """The manifest of the index that is in a folder; empty where it cannot be read."""
    try:
        return read_manifest(Path(folder))
    except (FileNotFoundError, DamagedFile):
        return {}


def write_index(args, starts: list[str], model: dict, faiss: str, orientation: str) -> None:
    import torch

    from dassl_prompts.composed.asked_models import load_model, transform_of
    from dassl_prompts.composed.index_update import update_index

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left_out: Counter = Counter()
    files = {start: list_root(place_of(start), left_out) for start in starts}
    encoder, _, ratio = load_model(model, device)
    built, done = update_index(
        args.index,
        files,
        torch.no_grad()(encoder.image_features),
        transform_of(encoder, ratio),
        weights=encoder.image_fingerprint(),
        width=encoder.width,
        model=model,
        faiss=faiss,
        orientation=orientation,
        batch_size=args.batch_size,
        workers=args.workers,
        device=device,
    )
    told = f"{done.encoded:,} encoded, {done.kept:,} kept, {done.removed:,} removed"
    print(f"Indexed {len(built):,} images of {', '.join(map(place_of, starts))} in {args.index}: {told}")
    if left_out:
        print(describe_left_out(left_out).capitalize())
    if bad := done.unreadable:
        print(f"Left out {len(bad)} unreadable images: {', '.join(bad[:5])}{' ...' if len(bad) > 5 else ''}")


def ask(args) -> None:
    """Answer a question: on the screen and as a contact sheet, or as JSON."""
    from dassl_prompts.composed.answers import Answerer, Question

    answerer = Answerer.open(args.index, [args.run] if args.run else [])
    reference = answerer.reference_of_file(args.image) if args.image else None
    question = Question(reference, args.text, args.query, args.weight, args.k, args.keep_query)
    answer = answerer.answer(question)
    if args.json:
        print(json.dumps(answer.data, ensure_ascii=False, indent=2))
        return
    method = answer.data["question"]["method"]
    if answer.column != "composed" and method not in QUERIES:
        raise ValueError(f"{method} is a trained model, which needs both --image and --text")
    table, found = answerer.index.table, answer.rows[answer.column]
    paths = [table.path(row) for row, _ in found]
    for rank, (path, (_, score)) in enumerate(zip(paths, found), 1):
        print(f"{rank:3d}  {score:.4f}  {path}")
    if not args.no_sheet:
        from dassl_prompts.ranking.sheet import Row, contact_sheet, shorten_path

        labels = [f"{i}. {score:.3f}\n{shorten_path(table.shown(row))}" for i, (row, score) in enumerate(found, 1)]
        try:
            contact_sheet([Row(args.image, args.text, paths, labels)], args.sheet, answerer.orientation)
        except PermissionError as error:
            raise PermissionError(f"cannot write {args.sheet}: {error}; give --sheet FILE, or --no-sheet") from error
        print(f"Contact sheet: {args.sheet}")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.search",
        description=__doc__.split("\n\n")[0],
        epilog="Exit codes: 0 done, 2 wrong input, 6 the disk is full, 9 not enough memory, 130 interrupted.",
    )
    sub = p.add_subparsers(dest="command", required=True)
    i = sub.add_parser("index", help="encode folders of images, or what has changed in them")
    add_files(i)
    i.add_argument("--replace", action="store_true", help="also where INDEX is one of other folders, which leave it")
    kept = "default: as the index has it, else {}"
    i.add_argument(
        "--backbone",
        default="",
        help=f"CLIP or BLIP, e.g. ViT-L/14, emoji-tiny, blip-itm-base-coco ({kept.format('ViT-B/32')})",
    )
    i.add_argument(
        "--activation",
        default="",
        choices=("quickgelu", "gelu"),
        help="of a weight file given as --backbone, where nothing tells it",
    )
    i.add_argument(
        "--query",
        default="",
        choices=QUERIES,
        help=f"how image and sentence are combined without --run ({kept.format('image+text')})",
    )
    i.add_argument("--run", default="", help="folder of a PVLF or TransAgg run to ask with")
    i.add_argument(
        "--faiss",
        metavar="FACTORY",
        help='approximate search, e.g. "HNSW32" (needs the extra dassl-prompts[faiss]); "" for exact, which is the default of a new index',
    )
    i.add_argument(
        "--orientation",
        choices=ORIENTATIONS,
        help=f"turn pictures upright as EXIF says, or leave them as they are stored ({kept.format('camera')}; `ask` follows)",
    )
    i.set_defaults(run_command=index)
    more = sub.add_parser("add", help="add folders to an index")
    add_files(more)
    more.set_defaults(run_command=add)
    a = sub.add_parser("ask", help="search an index")
    a.add_argument("index", help="folder of the index")
    a.add_argument("--image", default="", help="reference image")
    a.add_argument("--text", default="", help="what should be different")
    a.add_argument(
        "--query", default="", choices=QUERIES, help="how image and sentence are combined (default: as at `index`)"
    )
    a.add_argument("--run", default="", help="folder of a run with the towers of the index, to ask with it")
    a.add_argument("--weight", type=float, default=0.5, help="share of the sentence in a sum, 0 to 1 (default 0.5)")
    a.add_argument("-k", type=int, default=10, help="number of results (default 10)")
    sheet = a.add_mutually_exclusive_group()
    sheet.add_argument(
        "--sheet", default="found.png", metavar="FILE", help="where the contact sheet goes (default ./found.png)"
    )
    sheet.add_argument("--no-sheet", action="store_true", help="only print the paths")
    sheet.add_argument("--json", action="store_true", help="print the answer of `dassl-prompts demo`'s /search instead")
    a.add_argument("--keep-query", action="store_true", help="the reference itself may be among the results")
    a.set_defaults(run_command=ask)
    return p


def add_files(p: argparse.ArgumentParser) -> None:
    """The arguments of what encodes images."""
    p.add_argument("folder", nargs="+", help="images, also in sub-folders, or a zip archive of them")
    p.add_argument("--index", required=True, help="folder of the index to write")
    p.add_argument("--batch-size", type=int, default=64)
    p.add_argument("--workers", type=int, default=0, help="processes that read images")


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    return ending(lambda: work(args))


def work(args: argparse.Namespace) -> None:
    if args.command == "ask" and not (args.image or args.text):
        raise ValueError("give --image, --text, or both")
    if args.command == "ask" and args.k < 1:
        raise ValueError(f"-k is {args.k}; ask for at least one result")
    if args.command == "ask" and args.run and args.query:
        raise ValueError("give --query or --run, not both")
    import torch

    with torch.no_grad():
        args.run_command(args)


if __name__ == "__main__":
    raise SystemExit(main())
