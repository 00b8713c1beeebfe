"""``python -m dassl_prompts.list [SECTION...]``: methods, recipes, datasets, protocols and backbones that there are."""

from __future__ import annotations

import argparse
import contextlib
import io
import textwrap
from collections.abc import Callable
from pathlib import Path

from dassl_prompts import configs
from dassl_prompts.configs.own_data import OWN, SCHEMES

CONFIGS = Path(configs.__file__).parent


def methods() -> list[dict[str, str]]:
    """Registered trainers, a lab's own included, with their recipes in configs/trainers."""
    import dassl_prompts
    from dassl_prompts.engine import TRAINER_REGISTRY

    dassl_prompts.register_all()
    rows = []
    for name in sorted(TRAINER_REGISTRY.registered_names(), key=str.lower):
        recipes = sorted(path.stem for path in (CONFIGS / "trainers" / name).glob("*.yaml"))
        words = (TRAINER_REGISTRY.get(name).__doc__ or "").strip().split("\n\n")[0]
        rows.append({"method": name, "recipes": str(len(recipes)), "what it does": " ".join(words.split())})
    return rows


def recipes() -> list[dict[str, str]]:
    """Every shipped configuration of a method; ``--cfg NAME`` takes it."""
    files = sorted((CONFIGS / "trainers").glob("*/*.yaml"), key=lambda path: (path.parent.name.lower(), path.stem))
    return [{"method": path.parent.name, "recipe": path.stem} for path in files]


def datasets() -> list[dict[str, str]]:
    """Every dataset configuration: its name in the toolbox, classes, images, how to get it, and terms of its pictures."""
    from dassl_prompts.engine.config import read_yaml_file
    from dassl_prompts.prepare.sources import GUIDES, LICENCES, SOURCES

    rows = []
    for path in sorted((CONFIGS / "datasets").glob("*.yaml")):
        if path.stem in SCHEMES.values():
            continue
        name = read_yaml_file(path)["DATASET"]["NAME"]
        source = SOURCES.get(name)
        row = {"dataset": path.stem, "registered as": name, "classes": "", "train": "", "val": "", "test": ""}
        if source:
            row["classes"] = str(source.classes)
            counts = zip(("train", "val", "test"), source.counts)
            row |= {part: "-" if n is None else f"{n:,}" for part, n in counts}
            by_hand = any(not file.urls and not file.on_coop_page for file in source.files)
            row["how"] = "partly by hand" if by_hand else f"dassl-prompts prepare {path.stem}"
        else:
            row["how"] = "by hand" if name in GUIDES and "emoji" not in path.stem else "embedded"
            row |= counted(path) if row["how"] == "embedded" else {}
        row["licence"] = LICENCES.get(name, "NOTICE" if row["how"] == "embedded" else "see its page")
        rows.append(row)
    own = {
        "dataset": "folder:PATH, csv:PATH",
        "registered as": OWN[0],
        "how": "your own pictures: docs/own_pictures.md",
    }
    return [*rows, {**dict.fromkeys(rows[0], ""), **own}]


def counted(path: Path) -> dict[str, str]:
    """Classes and pictures of an embedded dataset by its configuration; queries of composed retrieval have neither."""
    import dassl_prompts
    from dassl_prompts.engine import build_dataset, get_cfg_default, merge_file

    dassl_prompts.register_all()
    cfg = get_cfg_default()
    dassl_prompts.extend_cfg(cfg)
    merge_file(cfg, path)
    cfg.DATASET.NUM_SHOTS = -1
    with contextlib.redirect_stdout(io.StringIO()):
        data = build_dataset(cfg)
    if not hasattr(data, "test"):
        return {}
    parts = {"train": data.train_x, "val": getattr(data, "val", None), "test": data.test}
    classes = {item.label for item in data.test}
    return {
        "classes": str(len(classes)),
        **{part: f"{len(items):,}" if items else "-" for part, items in parts.items()},
    }


def protocols() -> list[dict[str, str]]:
    from dassl_prompts.run.protocols import PROTOCOLS

    return [{"protocol": name, "what it does": protocol.help} for name, protocol in PROTOCOLS.items()]


def backbones() -> list[dict[str, str]]:
    """Backbones with a short name; open_clip's names, JSON configurations and weight files work too."""
    from dassl_prompts.models.clip import OPENAI_NAMES
    from dassl_prompts.models.weights import EMBEDDED

    rows = [{"backbone": name, "weights": "embedded"} for name in EMBEDDED]
    rows += [{"backbone": name, "weights": "OpenAI's, fetched by open_clip"} for name in OPENAI_NAMES]
    return [*rows, {"backbone": "NAME:TAG", "weights": "any of open_clip.list_pretrained()"}]


SECTIONS: dict[str, Callable[[], list[dict[str, str]]]] = {
    "methods": methods,
    "recipes": recipes,
    "datasets": datasets,
    "protocols": protocols,
    "backbones": backbones,
}
#: characters of a cell's line; a lab's own descriptions may be long
WIDEST = 100
#: what is shown without a section; recipes are many
SHOWN = ("methods", "datasets", "protocols", "backbones")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m dassl_prompts.list", description=__doc__.split(": ")[1])
    p.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; default all but recipes")
    return p


def main(argv: list[str] | None = None) -> int:
    """Print the tables that were asked for."""
    p = parser()
    wanted = p.parse_args(argv).sections or list(SHOWN)
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown:
        p.error(f"no section {unknown[0]!r}; there are {', '.join(SECTIONS)}")
    from tabulate import tabulate

    for name in wanted:
        rows = [{key: textwrap.fill(cell, WIDEST) for key, cell in row.items()} for row in SECTIONS[name]()]
        table = tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True)
        print(f"{name}\n\n{table}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
