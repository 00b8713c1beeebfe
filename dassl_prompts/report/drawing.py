"""What all plots share: colours and markers of methods, names, grids of panels, one legend."""

from __future__ import annotations

from dataclasses import dataclass

from dassl_prompts.results.groups import Method

#: colours that colour-blind readers tell apart (Okabe and Ito), then four of Tol's muted ones, then again with other markers
COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"),
    *("#882255", "#44AA99", "#332288", "#999933"),
)
MARKERS = "osD^vP*X"
HATCHES = ("", "//", "..", "xx", "\\\\", "oo", "++", "--")
DPI = 130


def pyplot():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt


@dataclass(frozen=True)
class Look:
    """How one method is drawn in every plot of a report; ``hatch`` tells bars of one colour apart."""

    color: str
    marker: str
    hatch: str

    @property
    def line(self) -> dict[str, str]:
        return {"color": self.color, "marker": self.marker}


class Looks:
    """Looks of all methods of a report: a trainer has one colour, its recipes, shots and settings differ in the marker.

    Args:
        methods: all methods of the report, in their order; a plot of some of them takes its looks from here.
    """

    def __init__(self, methods: list[Method]):
        trainers: dict[str, list[str]] = {}  # of each task: methods of two tasks never share a plot
        self.found: dict[tuple, Look] = {}
        taken: dict[tuple[str, str], list[str]] = {}
        for method in methods:
            task = method.protocol if method.protocol in ("retrieval", "composed") else "classification"
            known = trainers.setdefault(task, [])
            if method.trainer not in known:
                known.append(method.trainer)
            number = known.index(method.trainer)
            color = COLOURS[number % len(COLOURS)]
            own = taken.setdefault((task, color), [])
            if self.key(method) not in self.found:
                start = number + number // len(COLOURS)
                turned = [MARKERS[(start + i) % len(MARKERS)] for i in range(len(MARKERS))]
                free = [marker for marker in turned if marker not in own] or turned
                self.found[self.key(method)] = Look(color, free[0], HATCHES[len(own) % len(HATCHES)])
                own.append(free[0])

    @staticmethod
    def key(method: Method) -> tuple:
        """What a method of several protocols has in common."""
        return method.trainer, method.cfg, method.backbone, method.shots, method.variant

    def __getitem__(self, method: Method) -> Look:
        return self.found[self.key(method)]


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
