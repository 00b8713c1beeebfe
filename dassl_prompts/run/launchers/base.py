"""What every launcher does with a plan: skip what is finished, check the rest, run it, try again, tell what failed."""

from __future__ import annotations

from dassl_prompts.engine.files import require_writable
from dassl_prompts.run.ahead import problems
from dassl_prompts.run.overview import expected, overview
from dassl_prompts.run.plan import Node, block_dependents
from dassl_prompts.run.present import check_same_run
from dassl_prompts.run.progress import Progress


class Launcher:
    """Runs every node of a plan once; a subclass writes :meth:`work`.

    Args:
        nodes: from :func:`dassl_prompts.run.plan.plan`. force: repeat what is finished. stop: start nothing more after the first
        failure. retry: how often a failed run is tried again, after everything else. table: print the plan as a table first.
        at_once: how many runs go on at once. bar: show a bar; False while the runs print to the same screen.

    Attributes:
        nodes: with their states after :meth:`run`. watches: whether it stays until the runs have ended.
    """

    watches = True

    def __init__(
        self,
        nodes: list[Node],
        *,
        force: bool = False,
        stop: bool = False,
        retry: int = 0,
        table: bool = False,
        at_once: int = 1,
        bar: bool = True,
    ):
        self.nodes = nodes
        self.force, self.stop, self.retry, self.table, self.at_once = force, stop, retry, table, at_once
        self.progress = Progress(nodes, at_once, bar=bar)
        self.stopped = False

    def work(self) -> None:
        """Run until nothing is left that can."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave nothing behind that should not go on, also after an interruption."""

    def run(self) -> list[Node]:
        """Run what is not finished.

        Returns:
            the nodes that failed and, after them, those that could not run because of these.

        Raises:
            ValueError: a finished folder holds the result of other settings or data, or a run could not start (a mistyped
                key, missing data or weights); nothing was started.
            OSError: a run folder cannot be written; names it; nothing was started.
        """
        self.skip_finished()
        if self.table:
            print(overview(self.nodes, self.at_once, {str(n.step.output) for n in self.nodes if n.done}), flush=True)
        self.progress.begin(expected(self.nodes))
        try:
            self.work()
            while not self.stopped and self.again():
                self.work()
        finally:
            self.close()
            self.progress.end()
        if not self.watches:
            return []
        return [n for n in self.nodes if n.state == "failed"] + [
            n for n in self.nodes if n.state in ("blocked", "waiting")
        ]

    def skip_finished(self) -> None:
        """Mark the finished nodes; checks all of them, and all that the others need, before anything starts."""
        for node in self.nodes:
            if not self.force and node.step.results() is not None:
                check_same_run(node.step)
                node.state = "skipped"
            else:
                require_writable(node.step.output, "run folder", "choose another root with --output")
        todo = [node.step for node in self.nodes if node.state == "waiting"]
        found = problems(todo, [node.step for node in self.nodes])
        if found:
            raise ValueError("\n  ".join(found) + ("\nNothing was started" if len(found) > 1 else ""))

    def again(self) -> bool:
        """Put failed nodes with tries left, and what waits for them, back; whether there are any."""
        failed = [n for n in self.nodes if n.state == "failed" and n.tries <= self.retry]
        for node in failed:
            node.state = "waiting"
        if failed:
            for node in self.nodes:
                node.state = "waiting" if node.state == "blocked" else node.state
        return bool(failed)

    def accept(self, node: Node) -> None:
        """Take over what another process has finished meanwhile; of other settings, it fails this node alone."""
        try:
            check_same_run(node.step)
            node.state = "skipped"
        except ValueError as error:
            self.refuse(node, str(error))

    def refuse(self, node: Node, reason: str) -> None:
        """Fail a node for good: trying again changes nothing."""
        node.state, node.reason, node.tries = "failed", reason, self.retry + 1
        self.stopped = self.stop
        block_dependents(self.nodes)
        self.progress.ended(node)
