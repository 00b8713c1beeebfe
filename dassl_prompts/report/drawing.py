"""What all plots share: colours and markers of methods, names, grids of panels, one legend."""

from __future__ import annotations

from dassl_prompts.results.groups import Method

#: colours that colour-blind readers tell apart (Okabe and Ito), then again with other markers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vP*X"
DPI = 130


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


def style(number: int) -> dict[str, str]:
    """Colour and marker of the method with this number."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + number // len(COLOURS)) % len(MARKERS)],
    }


def names(methods: list[Method]) -> list[str]:
    """Short labels: the recipe only where a method has several, what else varies too."""
    out = []
    for method in methods:
        same = [m for m in methods if m.trainer == method.trainer]
        extra = [method.cfg] if len({m.cfg for m in same}) > 1 else []
        extra += [f"{method.shots} shot{'s' * (method.shots != 1)}"] if len({m.shots for m in methods}) > 1 else []
        extra += [f"settings {method.variant}"] if len({m.variant for m in same}) > 1 else []
        out.append(method.trainer + (f" ({', '.join(extra)})" if extra else ""))
    return out


def grid(count: int):
    """A figure of ``count`` panels, three in a row."""
    columns = min(3, count)
    rows = -(-count // columns)
    size = (max(4.6, 1.4 + 3.2 * columns), 1 + 2.7 * rows)
    figure, axes = pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def shared_legend(figure, axes) -> None:
    """One legend below all panels, with every label once."""
    entries = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels())}
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=3, fontsize=8)
