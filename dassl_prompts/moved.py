"""Old module names answer with the modules that took their place (version 0.2 gave every method one home).

``import dassl_prompts.data.dataset`` in a lab's own code and ``python -m dassl_prompts.retrieval.search`` in its scripts go
on working; a line on stderr names the new place.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

P = __package__
#: old name -> new one
MOVED = {
    f"{P}.attributes": f"{P}.trainers.attriprompt.sheet",
    f"{P}.data.bpe": f"{P}.captions.bpe",
    f"{P}.data.caption_negatives": f"{P}.captions.negatives",
    f"{P}.data.captions": f"{P}.captions.data",
    f"{P}.data.cir_report": f"{P}.composed.data_report",
    f"{P}.data.dataset": f"{P}.classification.dataset",
    f"{P}.data.emoji": f"{P}.emoji.archives",
    f"{P}.data.emoji_cards": f"{P}.emoji.cards",
    f"{P}.data.emoji_sheets": f"{P}.emoji.sheets",
    f"{P}.data.images": f"{P}.images",
    f"{P}.data.negatives": f"{P}.trainers.dpc.negatives",
    f"{P}.data.splits": f"{P}.classification.splits",
    f"{P}.data.target_pad": f"{P}.composed.target_pad",
    f"{P}.data.triplet_loading": f"{P}.composed.loading",
    f"{P}.data.triplets": f"{P}.composed.triplets",
    f"{P}.datasets.emoji_retrieval": f"{P}.emoji.retrieval",
    f"{P}.dpc": f"{P}.trainers.dpc.stage2",
    f"{P}.dpc_settings": f"{P}.trainers.dpc.settings",
    f"{P}.dpc_stage1": f"{P}.trainers.dpc.stage1",
    f"{P}.fdrd.records": f"{P}.captions.records",
    f"{P}.models.attributes": f"{P}.trainers.attriprompt.attributes",
    f"{P}.models.attriprompt_options": f"{P}.trainers.attriprompt.options",
    f"{P}.models.dual": f"{P}.trainers.dpc.dual",
    f"{P}.models.fusion": f"{P}.trainers.pvlf.fusion",
    f"{P}.models.kmeans": f"{P}.trainers.attriprompt.kmeans",
    f"{P}.models.pool": f"{P}.trainers.attriprompt.pool",
    f"{P}.models.prompted": f"{P}.classification.prompted",
    f"{P}.models.textual_inversion": f"{P}.trainers.zeroshot_cir.textual_inversion",
    f"{P}.models.view_cache": f"{P}.features.view_cache",
    f"{P}.report.groups": f"{P}.results.groups",
    f"{P}.report.notes": f"{P}.results.notes",
    f"{P}.report.pages": f"{P}.run.pages",
    f"{P}.report.published": f"{P}.results.published",
    f"{P}.report.runs": f"{P}.results.runs",
    f"{P}.report.tables": f"{P}.results.tables",
    f"{P}.retrieval.candidates": f"{P}.trainers.dcar.candidates",
    f"{P}.retrieval.caption_figures": f"{P}.captions.figures",
    f"{P}.retrieval.cirr_submission": f"{P}.composed.cirr_submission",
    f"{P}.retrieval.composed": f"{P}.composed.metrics",
    f"{P}.retrieval.composed_trainer": f"{P}.composed.trainer",
    f"{P}.retrieval.evaluation": f"{P}.captions.evaluation",
    f"{P}.retrieval.feature_cache": f"{P}.features.feature_cache",
    f"{P}.retrieval.features": f"{P}.captions.features",
    f"{P}.retrieval.index": f"{P}.composed.index",
    f"{P}.retrieval.losses": f"{P}.captions.losses",
    f"{P}.retrieval.model": f"{P}.captions.model",
    f"{P}.retrieval.query": f"{P}.composed.query",
    f"{P}.retrieval.ranking": f"{P}.ranking.exact",
    f"{P}.retrieval.recall": f"{P}.captions.recall",
    f"{P}.retrieval.reweighting": f"{P}.trainers.dcar.reweighting",
    f"{P}.retrieval.search": f"{P}.composed.search",
    f"{P}.retrieval.sheet": f"{P}.ranking.sheet",
    f"{P}.retrieval.trainer": f"{P}.captions.trainer",
    f"{P}.run.attriprompt_study": f"{P}.trainers.attriprompt.study",
    f"{P}.run.dpc_study": f"{P}.trainers.dpc.study",
    f"{P}.run.retrieval": f"{P}.run.captions",
    f"{P}.run.scheduler": f"{P}.run.launchers.local",
    f"{P}.teacher": f"{P}.trainers.promptkd.teacher",
    f"{P}.templates": f"{P}.classification.templates",
    f"{P}.trainer": f"{P}.classification.trainer",
    f"{P}.trainers.transagg": f"{P}.trainers.pvlf.transagg",
}
#: packages that are no more; their modules are in MOVED
GONE = {f"{P}.data", f"{P}.retrieval"}


class MovedFinder:
    """Meta-path finder for the names in :data:`MOVED`; asked only after every real module was not found."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name in GONE:
            return ModuleSpec(name, loader=None, is_package=True)  # an empty namespace
        if name not in MOVED:
            return None
        return ModuleSpec(name, MovedLoader(MOVED[name]), origin=MOVED[name])


class MovedLoader:
    """Gives the module at its new place; ``python -m`` gets that module's code."""

    def __init__(self, new: str):
        self.new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        print(f"{spec.name} is now {self.new}", file=sys.stderr)
        module = importlib.import_module(self.new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self.spec  # importing under the old name has put its own there

    def get_code(self, name: str):
        print(f"{name} is now {self.new}", file=sys.stderr)
        return importlib.util.find_spec(self.new).loader.get_code(self.new)


def install() -> None:
    """Answer to the old names from now on."""
    if not any(finder is MovedFinder for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder)
