"""The commands of the package: what ``dassl-prompts`` lists, completes and dispatches to."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Command:
    """A command that is also ``python -m dassl_prompts.<name>``.

    Attributes:
        name: the sub-command and the module. help: one line. example: arguments that work, after the name.
    """

    name: str
    help: str
    example: str

    @property
    def module(self):
        """The module with ``parser()`` and ``main(argv)``; importing it loads no torch."""
        dotted = f"{__package__}.{self.name}"
        return importlib.import_module(f"{dotted}.__main__" if self.name in PACKAGES else dotted)

    def parser(self) -> argparse.ArgumentParser:
        return self.module.parser()

    def main(self, argv: list[str]) -> int:
        return self.module.main(argv) or 0


#: commands that are packages, hence run by their ``__main__``
PACKAGES = ("run", "report", "predict", "prepare", "emoji", "demo")
COMMANDS = (
    Command("run", "train and test methods on datasets, seeds and shots", "base2new --trainer CoOp --dataset emoji"),
    Command("report", "tables, published numbers and plots of finished runs", "output"),
    Command("predict", "label pictures with a trained run, or export it", "RUN_DIR pictures/ --classes cat dog"),
    Command("search", "search a folder of pictures with a picture and a sentence", "index pictures/ --index photos"),
    Command("demo", "search, classify and look at results in the browser", "--index photos --classify RUN_DIR"),
    Command("prepare", "fetch, lay out and check datasets", "dtd eurosat --root data"),
    Command("train", "one run with CoOp's flags", "--trainer CoOp --dataset-config-file ... --config-file ..."),
    Command("list", "methods, recipes, datasets, protocols, backbones", "datasets"),
    Command("info", "versions, device, memory, engine, where data and weights are found", ""),
    Command("check", "whether torch and torchvision belong together", ""),
    Command("emoji", "look at the embedded data, or write it out", "--sheet sheet.png"),
)
BY_NAME = {command.name: command for command in COMMANDS}
