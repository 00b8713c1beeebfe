"""A trained run as one ONNX file, which needs neither this package nor torch."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn as nn
from torch import Tensor

from dassl_prompts.engine.files import atomic_path
from dassl_prompts.predict.run import TrainedRun

ONNX = "classifier.onnx"
INPUT, OUTPUTS = "images", ("logits", "probabilities")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
#: how far the file's probabilities may lie from the model's
TOLERANCE = 1e-4


class Scorer(nn.Module):
    """Logits and probabilities of a batch of pixels."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(images).float()
        return logits, logits.softmax(dim=1)


def require_packages() -> None:
    """
    Raises:
        ValueError: what writes and checks ONNX files is not installed.
    """
    from importlib.util import find_spec

    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(f"an ONNX file needs {' and '.join(missing)}: pip install 'dassl-prompts[onnx]'")


def text_is_per_image(run: TrainedRun, images: Tensor) -> bool:
    """Whether every image has class features of its own, as with CoCoOp and AttriPrompt."""
    with torch.no_grad():
        try:
            return run.model.features(images)[1].ndim == 3
        except ValueError:  # prompts are composed per image
            return True


def write_onnx(run: TrainedRun, path: Path, facts: dict) -> Path:
    """Write the image tower with the run's prompts and the class matrix as one ONNX file, once it has passed the check.

    Its input is ``images [B, 3, S, S]``, prepared as ``run.transform`` does, any B; its outputs are ``logits [B, C]`` and
    ``probabilities [B, C]``. The check: onnxruntime gives the model's probabilities within 1e-4 for other batch sizes than
    the traced one.

    Args:
        run: on the CPU, where all precisions are fp32.
        facts: kept as JSON in the file's metadata, one entry per key.

    Raises:
        ValueError: a package is missing; class features that depend on the picture; a run on another device.
        RuntimeError: the check failed.
    """
    require_packages()
    if run.device.type != "cpu":
        raise ValueError(
            f"ONNX files are written from the CPU, this run is on {run.device}: load_run(..., device='cpu')"
        )
    model, size = run.model, run.model.clip.image_size
    generator = torch.Generator().manual_seed(0)
    draw = lambda count: torch.randn(count, 3, size, size, generator=generator)
    if text_is_per_image(run, draw(2)):
        raise ValueError(
            f"{run.folder}: {run.results['trainer']} encodes the classes anew for every picture, so there is no class "
            "matrix to write: use load_run, or export a method whose text is fixed"
        )
    scorer = Scorer(model).eval()
    with torch.no_grad():
        scorer(draw(2))  # computes the class matrix
        key = model.cache_key()
        model.cache_key = lambda: key  # it is a constant of the file; the tensors of a traced model have no address
        try:
            batch = torch.export.Dim("batch", max=2**20)  # torch 2.6 asks for a bound
            program = torch.onnx.export(
                scorer,
                (draw(2),),
                dynamo=True,
                dynamic_shapes=({0: batch},),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                verbose=False,
            )
        finally:
            del model.cache_key
    program.model.metadata_props.update({name: json.dumps(value, ensure_ascii=False) for name, value in facts.items()})
    with atomic_path(path) as temporary:
        program.save(temporary, external_data=False)
        compare(run, temporary, [draw(count) for count in (1, 3)])
    return path


def compare(run: TrainedRun, path: str | Path, batches: list[Tensor]) -> None:
    """
    Raises:
        RuntimeError: onnxruntime gives other probabilities than the model, or takes no batch of such a size.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for images in batches:
        try:
            found = torch.from_numpy(session.run([OUTPUTS[1]], {INPUT: images.numpy()})[0])
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise RuntimeError(f"onnxruntime does not run the file on {len(images)} images: {error}") from error
        with torch.no_grad():
            gap = float((found - run.model(images).float().softmax(1)).abs().max())
        if not gap <= TOLERANCE:
            raise RuntimeError(
                f"the ONNX file's probabilities differ by {gap:.1e} from the model's; nothing was written"
            )
