"""The tables of docs/open_backbones.md and the list of sets, from what is built and measured now.

python tools/open_cards.py                # Markdown tables: downstream sets, zero-shot accuracy, and the record of training
python tools/open_cards.py --sets DIR     # every set that is drawn, with artist and licence (DIR of build_drawings.py)
python tools/open_cards.py --notice       # the same sets as they stand in NOTICE, from the record of the trained backbone
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from tabulate import tabulate

from dassl_prompts.classification.templates import CUSTOM_TEMPLATES
from dassl_prompts.datasets import testbed
from dassl_prompts.emoji import archives as emoji
from dassl_prompts.emoji.cards import Features, accuracy
from dassl_prompts.emoji.splits import read_splits as read_emoji
from dassl_prompts.run.tables import harmonic_mean

MODELS = Path(emoji.ASSETS).parent / "models"
NAME, OTHERS = "open-tiny", ("emoji-tiny",)
DATASETS = {"Emoji": None, "QuickDraw": "sketches", "IconPark": "icons", "ClipArt": "clipart"}


def read_record() -> dict | None:
    """What training wrote beside the weights; None before they are trained."""
    path = MODELS / f"{NAME}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def table(title: str, header: list[str], rows: list[list]) -> str:
    return f"**{title}**\n\n{tabulate(rows, header, tablefmt='github', disable_numparse=True)}\n"


def sets_table(cache: Path) -> str:
    """Every set that is drawn: artist, licence, drawings kept."""
    path = cache / "drawings" / "drawings.json"
    if not path.is_file():
        sys.exit(f"error: {path} is missing: make it with tools/build_drawings.py --cache {cache}")
    meta = json.loads(path.read_text(encoding="utf-8"))
    count = Counter(row["set"] for row in meta["drawings"])
    rows = [
        [prefix, e["title"], f"[{e['author']}]({e['url']})" if e["url"] else e["author"], e["licence"], count[prefix]]
        for prefix, e in sorted(meta["sets"].items())
        if count[prefix]
    ]
    rows.append([f"{len(rows)} sets", "", "", "", sum(count.values())])
    return table("Sets", ["set", "title", "artist", "licence", "drawings"], rows)


def notice(record: dict) -> str:
    """One line per set that the backbone learned from, as NOTICE lists them."""
    return "\n".join(
        f"    {prefix}: {', '.join(filter(None, (e['title'], e['author'], e['licence'], e['url'])))}"
        for prefix, e in sorted(record["sets"].items())
        if e["drawings"]
    )


def split_of(dataset: str):
    """(test pictures, class names in label order) of one downstream set."""
    splits = testbed.read_splits(DATASETS[dataset]) if DATASETS[dataset] else read_emoji(emoji.HELD_OUT)
    names = dict(sorted({d.label: d.classname for d in splits.train}.items()))
    return splits.test, list(names.values())


def zero_shot(name: str) -> dict[str, list[float]]:
    """Base, new, harmonic mean and all-class accuracy per downstream set, in percent; the last row is their mean."""
    features, rows = Features(name), {}
    for dataset in DATASETS:
        test, names = split_of(dataset)
        half = -(-len(names) // 2)
        template = CUSTOM_TEMPLATES[dataset]
        base, new, every = (
            accuracy(features, test, chosen, template=template) for chosen in (names[:half], names[half:], names)
        )
        rows[dataset] = [base, new, harmonic_mean(base, new), every]
    rows["mean"] = [sum(column) / len(column) for column in zip(*rows.values())]
    rows["mean"][2] = harmonic_mean(*rows["mean"][:2])
    return rows


def model_tables(record: dict) -> list[str]:
    stages = [
        [
            stage,
            *(record["recipe"][stage].get(k, "") for k in ("batch", "lr")),
            s["iterations"],
            s["pictures"],
            s["seconds"],
        ]
        for stage, s in record["stages"].items()
    ]
    facts = [
        [k.replace("_", " "), record[k]]
        for k in ("drawings", "sentences", "common_words", "tokens", "dropped_as_held_out")
    ]
    facts += [[k.replace("_", " "), v] for k, v in record["file"].items() if k != "sha256"]
    facts += [["seed", record["recipe"]["seed"]], ["torch", record["torch"]]]
    keys = ("stage", "iteration", "seconds", "loss", "name_r1", "name_r10")
    return [
        table("Facts", ["what", NAME], facts),
        table("Stages", ["stage", "batch", "rate", "iterations", "samples", "seconds"], stages),
        table(
            "Curve, drawings of the training sets that were set aside",
            list(keys),
            [[p[k] for k in keys] for p in record["curve"]],
        ),
    ]


def data_table() -> str:
    rows = []
    for dataset in DATASETS:
        test, names = split_of(dataset)
        half = set(names[: -(-len(names) // 2)])
        base = sum(d.classname in half for d in test)
        rows.append([dataset, len(half), len(names) - len(half), base, len(test) - base])
    return table(
        "Downstream sets", ["set", "base classes", "new classes", "base test pictures", "new test pictures"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, metavar="DIR", help="list the sets that are drawn")
    parser.add_argument("--notice", action="store_true", help="print the sets as NOTICE lists them")
    args = parser.parse_args()
    if args.sets:
        print(sets_table(args.sets))
        return
    record = read_record()
    if args.notice:
        print(notice(record) if record else f"{NAME} is not trained yet")
        return
    print(*(model_tables(record) if record else ()), data_table(), sep="\n")
    measured = {name: zero_shot(name) for name in ((NAME, *OTHERS) if record else OTHERS)}
    rows = [
        [name, dataset, *(f"{v:.1f}" for v in values)] for name, r in measured.items() for dataset, values in r.items()
    ]
    print(table("Zero-shot accuracy in percent", ["backbone", "set", "base", "new", "HM", "all classes"], rows))


if __name__ == "__main__":
    main()
