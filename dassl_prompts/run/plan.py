"""The steps of several jobs as one graph: shared ones once, each after what it reads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from dassl_prompts.run.steps import Step


@dataclass(eq=False)
class Node:
    """A step in the graph.

    Attributes:
        step: the run. after: the nodes whose folders it reads. state: waiting, running, finished, skipped
        (was finished before), failed, or blocked (something it needs failed). code: exit code of the last
        try. tries: how often it ran. seconds: duration of the last try.
    """

    step: Step
    after: list[Node] = field(default_factory=list)
    state: str = "waiting"
    code: int = 0
    tries: int = 0
    seconds: float = 0.0
    reason: str = ""

    @property
    def done(self) -> bool:
        return self.state in ("finished", "skipped")

    @property
    def ready(self) -> bool:
        return self.state == "waiting" and all(node.done for node in self.after)

    def __str__(self) -> str:
        return f"{self.step.title}: {self.reason}"


def plan(chains: Iterable[list[Step]]) -> list[Node]:
    """One node per run folder, in the order of the chains.

    Args:
        chains: steps of a job each; a step may read the folders of earlier ones.

    Raises:
        ValueError: two jobs need the same folder with different settings.
    """
    nodes: dict[str, Node] = {}
    for chain in chains:
        for number, step in enumerate(chain):
            key = str(step.output.absolute())
            if key in nodes:
                check_same_command(nodes[key].step, step)
                continue
            earlier = [nodes[str(s.output.absolute())] for s in chain[:number] if step.needs(s)]
            nodes[key] = Node(step, earlier)
    return list(nodes.values())


def check_same_command(first: Step, second: Step) -> None:
    """
    Raises:
        ValueError: both write to one folder with different settings; names those.
    """
    if first.args == second.args:
        return
    different = [f"{a!r} and {b!r}" for a, b in zip(first.args, second.args) if a != b]
    longer = [repr(arg) for arg in (first.args[len(second.args) :] or second.args[len(first.args) :])]
    raise ValueError(
        f"two jobs need {first.output} with different settings ({', '.join([*different, *longer])}), "
        f'as "{first.title}" and as "{second.title}". A first stage or a teacher runs by its own recipe: '
        "give --tag to keep your variant apart, or "
        f"pass what all runs should have with --common KEY VALUE"
    )


def block_dependents(nodes: list[Node]) -> None:
    """Mark what can no longer run because something it needs failed."""
    changed = True
    while changed:
        changed = False
        for node in nodes:
            bad = next((n for n in node.after if n.state in ("failed", "blocked")), None)
            if node.state == "waiting" and bad:
                node.state, node.reason, changed = "blocked", f"not run, it needs {bad.step.output}", True
