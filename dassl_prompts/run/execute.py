"""Running a chain of steps in order, from Python."""

from __future__ import annotations

from dassl_prompts.run.launchers.local import Scheduler
from dassl_prompts.run.plan import plan
from dassl_prompts.run.steps import Step, StepFailed


def execute(steps: list[Step], force: bool = False, quiet: bool = False) -> None:
    """Run the steps in order, skipping those that are finished with the same configuration.

    Args:
        quiet: what the runs print goes to ``console.txt`` in their folders instead of the screen.

    Raises:
        StepFailed: when a run exits with an error; steps already finished stay finished.
        ValueError: when a finished folder holds the result of another configuration.
    """
    failed = Scheduler(plan([steps]), force=force, stream=not quiet, stop=True).run()
    if failed:
        raise StepFailed(str(failed[0]))


def check(steps: list[Step], force: bool = False) -> None:
    """Look for what would keep the steps from running, without running any.

    Raises:
        ValueError, OSError: as :meth:`Scheduler.run`, before it starts anything.
    """
    Scheduler(plan([steps]), force=force).skip_finished()
