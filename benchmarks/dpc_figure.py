"""``python -m benchmarks.dpc_figure``: the picture of README, drawn from the table of docs/results/dpc_base2new.md.

Accuracy on base and on new classes of every backbone and of DPC on it: means of three seeds over the datasets, bars of one standard
deviation of the seeds' averages.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dassl_prompts.engine.files import atomic_path
from dassl_prompts.report.drawing import COLOURS, DPI, pyplot

ROOT = Path(__file__).resolve().parent.parent
PAGE, PICTURE = ROOT / "docs" / "results" / "dpc_base2new.md", ROOT / "docs" / "images" / "dpc_base_new.png"
TITLE = "### Base-to-new accuracy (%)"

#: method -> ((mean, deviation) on base, the same on new classes)
Numbers = dict[str, tuple[tuple[float, float], tuple[float, float]]]


def numbers(page: str) -> Numbers:
    """The rows of the page's first table that are averages over datasets, without those of differences.

    Raises:
        ValueError: there is no such table.
    """
    lines = page.partition(TITLE)[2].strip().splitlines()
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    if not rows:
        raise ValueError(f"{PAGE} has no table {TITLE!r}")
    head = rows[0]
    found: Numbers = {}
    for row in rows[2:]:
        cells = dict(zip(head, row))
        if cells["dataset"].startswith("Average") and not cells["method"].startswith("minus"):
            base, new = (tuple(float(part) for part in cells[side].split(" ± ")) for side in ("Base", "New"))
            found[cells["method"]] = base, new
    return found


def draw(found: Numbers, path: Path) -> None:
    plt = pyplot()
    backbones = [name for name in found if f"DPC_{name}" in found]
    figure, panels = plt.subplots(1, 2, figsize=(7.6, 2.7), sharey=True, layout="constrained")
    for side, (axes, title) in enumerate(zip(panels, ("base classes", "new classes"))):
        for shift, prefix, colour, label in ((-0.18, "", COLOURS[7], "alone"), (0.18, "DPC_", COLOURS[0], "with DPC")):
            values = [found[prefix + name][side] for name in backbones]
            places = [number + shift for number in range(len(backbones))]
            bars = axes.bar(places, [v[0] for v in values], 0.34, color=colour, label=label)
            axes.errorbar(
                places, [v[0] for v in values], [v[1] for v in values], fmt="none", ecolor="black", lw=0.8, capsize=2
            )
            axes.bar_label(bars, [f"{v[0]:.1f}" for v in values], label_type="center", fontsize=7, color="white")
        axes.set_xticks(range(len(backbones)), backbones, fontsize=8)
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy (%)", fontsize=8)
    panels[1].legend(fontsize=7, frameon=False, loc="upper right")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    argparse.ArgumentParser(
        prog="python -m benchmarks.dpc_figure", description=__doc__.partition("\n\n")[2]
    ).parse_args(argv)
    draw(numbers(PAGE.read_text(encoding="utf-8")), PICTURE)
    print(f"wrote {PICTURE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
