"""Steps whose run is a few lines of Python without torch."""

import json
import sys
from dataclasses import dataclass

from dassl_prompts.run.steps import Step

SCRIPT = """
import json, os, pathlib, sys, time
folder, code, seconds, args = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4])
for need in args:
    if need.startswith("/") and not (pathlib.Path(need) / "results.json").exists():
        sys.exit(f"error: {need} is not there")
with open(folder / "begin", "a") as file:
    file.write(f"{time.monotonic()} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')} {os.environ.get('OMP_NUM_THREADS', '-')}\\n")
time.sleep(seconds)
fails = folder / "fails"
if fails.exists():
    left = int(fails.read_text())
    fails.write_text(str(left - 1))
    code = 3 if left > 0 else 0
if code:
    print("epoch [1/2] batch [1/2] loss 1.0 eta 0:00:02", flush=True)
    sys.exit("error: broken on purpose") if code == 1 else sys.exit(code)
results = {"finished": True, "test": {"accuracy": 50.0}, "config": {}}
if folder.name.startswith("seed"):
    results |= {"trainer": "Fake", "dataset": "D", "seed": int(folder.name[4:])}
(folder / "results.json").write_text(json.dumps(results))
(folder / "end").write_text(str(time.monotonic()))
"""


@dataclass(frozen=True)
class FakeStep(Step):
    code: int = 0
    seconds: float = 0.0

    def command(self):
        words = [str(self.output), str(self.code), str(self.seconds), json.dumps(self.args)]
        return [sys.executable, "-S", "-E", "-c", SCRIPT, *words]

    def problems(self, folders):
        return []

    def config(self):
        from yacs.config import CfgNode

        return CfgNode({"TRAINER": {"NAME": "Fake"}, "DATASET": {"NUM_SHOTS": 0}})


def step(root, name, *needs, code=0, seconds=0.0, fails=None):
    """A run in ``root/name`` that reads the folders of ``needs``; ``fails`` tries fail first. One called ``.../seed<s>`` can
    stand in a report."""
    folder = root / name
    if fails is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "fails").write_text(str(fails))
    return FakeStep(name, folder, ("--trainer", "Fake", *(str(s.output) for s in needs)), code, seconds)


class InProcess:
    """What stands for ``subprocess.Popen``: the run of a command line, here and at once."""

    def __init__(self, command, stdout=None, **_):
        import contextlib
        import io

        from dassl_prompts.train import main

        self.pid, self.returncode, said = 0, 0, io.StringIO()
        try:
            with contextlib.redirect_stdout(said):
                main(command[3:])
        except SystemExit as stop:
            self.returncode = int(stop.code or 0)
        if stdout is not None:
            stdout.write(said.getvalue().encode())

    def poll(self):
        return self.returncode
