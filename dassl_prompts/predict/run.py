"""A trained run as a classifier for any class names."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dassl_prompts.engine import TRAINER_REGISTRY, build_transform, get_cfg_default, read_json
from dassl_prompts.engine.config import assign_flat
from dassl_prompts.engine.origin import Origin
from dassl_prompts.engine.run_folder import RESULTS

#: how a run on the Hugging Face hub is named where a folder could stand
HUB = "hf:"


@dataclass
class TrainedRun:
    """A model with what it needs to score pictures.

    Attributes:
        folder: of the run. model: in evaluation mode; ``model(images [B, 3, S, S]) -> logits [B, C]``.
        classnames: the classes that are scored. trained: those of the training. transform: PIL image -> ``[3,
        S, S]``. cfg: configuration of the run.
    """

    folder: Path
    model: Any
    classnames: list[str]
    trained: list[str]
    transform: Callable
    cfg: Any
    results: dict

    @property
    def device(self):
        return self.model.clip.logit_scale.device

    def scores(self, images: Iterable[Any]) -> Any:
        """Class probabilities ``[B, C]`` of PIL images, on the CPU."""
        return self.score([self.transform(image) for image in images])

    def score(self, pixels: Sequence[Any]) -> Any:
        """Class probabilities ``[B, C]`` of transformed images ``[3, S, S]``, on the CPU.

        Raises:
            ValueError: one is not finite: the run's weights are damaged, or too large for its precision.
        """
        import torch

        from dassl_prompts.engine.checkpoint import require_finite

        with torch.no_grad():
            scores = self.model(torch.stack(list(pixels)).to(self.device)).float().softmax(dim=1).cpu()
        require_finite({"the scores": scores}, str(self.folder))
        return scores

    def pixels(self, path: str, orientation: str = "camera") -> Any:
        """The transformed image of a file, or the ``OSError`` that its reading ended with."""
        from dassl_prompts.images import read_image

        try:
            return self.transform(read_image(path, orientation))
        except OSError as error:
            return error

    def predict(
        self, paths: Iterable[str], batch_size: int = 64, threads: int = 0, orientation: str = "camera"
    ) -> Iterator[tuple[str, Any]]:
        """Score image files one batch after the other; memory does not grow with their number.

        The threads that read also transform: of pictures in full size there are never more than ``threads`` (0: one per core, at
        most 4).
        ``orientation`` says how pictures are turned, see :func:`~dassl_prompts.images.read_image`.

        Yields:
            ``(path, scores [C])``, or ``(path, error)`` with an ``OSError`` for a file that is not a readable
            image.
        """
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
            for batch in batches(paths, batch_size):
                read = list(pool.map(partial(self.pixels, orientation=orientation), batch))
                good = [image for image in read if not isinstance(image, OSError)]
                found = iter(self.score(good)) if good else iter(())
                for path, image in zip(batch, read):
                    yield path, image if isinstance(image, OSError) else next(found)


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of ``size`` items, the last one shorter."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_results(folder: Path) -> dict:
    """results.json of a run that can classify.

    Raises:
        FileNotFoundError: the folder is no run folder.
        ValueError: its run has no prompts of its own, or classifies nothing.
    """
    if not (folder / RESULTS).is_file():
        raise FileNotFoundError(
            f"{folder} has no {RESULTS}: give the folder of a training run, such as .../CoOp/vit_b16/seed1"
        )
    results = read_json(folder / RESULTS, dict)
    lacking = [key for key in ("trainer", "config", "classnames") if key not in results]
    if lacking:
        raise ValueError(
            f"{folder / RESULTS} has no {lacking[0]!r}: the run ended before it began, or is not one of ours"
        )
    zero_shot = results["trainer"].startswith("Zeroshot")
    if results.get("kind") == "evaluation" and not zero_shot:
        raise ValueError(f"{folder} is an evaluation and has no checkpoint: give the folder of the training run")
    return results


def check_classifier(name: str, folder: Path) -> None:
    """
    Raises:
        ValueError: the trainer is unknown, or retrieves instead of classifying.
    """
    from dassl_prompts.captions.trainer import RetrievalTrainer
    from dassl_prompts.classification.trainer import ClassificationTrainer
    from dassl_prompts.engine import check_availability

    check_availability(name, TRAINER_REGISTRY.registered_names())
    trainer = TRAINER_REGISTRY.get(name)
    if not issubclass(trainer, ClassificationTrainer) or issubclass(trainer, RetrievalTrainer):
        raise ValueError(f"{folder} is a run of {name}, which retrieves and has no classes to choose from")


def read_config(flat: dict[str, str], source: str = "results.json"):
    """The configuration that results.json holds as ``{key: repr(value)}``.

    Keys that this version does not have are left out, with a warning; they belong to another version of a
    method.
    """
    import dassl_prompts

    cfg = get_cfg_default()
    dassl_prompts.extend_cfg(cfg)
    try:
        unknown = assign_flat(cfg, flat)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    if unknown:
        warnings.warn(f"{source} has settings that this version does not know: {', '.join(unknown)}", stacklevel=2)
    return cfg


def pulled(name: str) -> Path:
    """The folder of ``hf:USER/NAME``, fetched by huggingface_hub (from its cache where it was fetched before).

    Raises:
        FileNotFoundError: it cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name.removeprefix(HUB)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise FileNotFoundError(f"{name} cannot be fetched: {' '.join(str(error).split())}") from error


def load_run(
    folder: str | Path,
    classnames: Sequence[str] | None = None,
    *,
    device: str = "",
    backbone: str = "",
    epoch: int | None = None,
) -> TrainedRun:
    """A trained run as a classifier.

    Args:
        folder: of the training run, or of a zero-shot evaluation; ``hf:USER/NAME`` is fetched from the Hugging Face hub.
        classnames: what to tell apart, also classes never trained on; default: the run's own classes.
        device: cpu or cuda; default: cuda where there is one.
        backbone: where the backbone's weights are now, if not where the run had them.
        epoch: which checkpoint; default the best or newest.

    Raises:
        FileNotFoundError: no run, no checkpoint, or no weights of the backbone.
        ValueError: the run classifies nothing, its prompts belong to its own classes, or to other weights of the backbone.
    """
    import dassl_prompts

    folder = pulled(str(folder)) if str(folder).startswith(HUB) else Path(folder)
    results = read_results(folder)
    name, trained = results["trainer"], list(results["classnames"])
    check_classifier(name, folder)
    cfg = read_config(results["config"], str(folder / RESULTS))
    wanted = [c.replace("_", " ") for c in classnames or trained]
    if not wanted:
        raise ValueError(f"{folder} names no classes: give --classes")
    doubled = sorted({c for c in wanted if wanted.count(c) > 1})
    if doubled:
        raise ValueError(f"class name given twice: {', '.join(doubled)}")
    cfg.MODEL.BACKBONE.NAME = backbone or cfg.MODEL.BACKBONE.NAME
    cfg.USE_CUDA = device != "cpu"
    known = {c.replace("_", " ") for c in trained}
    if name.startswith("DPC_") and cfg.TRAINER.DPC.TASK == "auto":
        mixed = not known.isdisjoint(wanted)
        cfg.TRAINER.DPC.TASK = "base" if set(wanted) <= known else "union" if mixed else "new"
    cfg.freeze()
    model = dassl_prompts.build_model(cfg, wanted)
    trainer = TRAINER_REGISTRY.get(name)
    # the settings are the run's own; the backbone may lie elsewhere now
    for text in Origin(str(folder), results).other_parts(trainer.reader(cfg, model.frozen_digests())):
        raise ValueError(f"{text}: its prompts do not belong to them; name the run's own weights with --backbone FILE")
    if not name.startswith("Zeroshot"):
        trainer.load_net(model, folder, epoch)
    with contextlib.redirect_stdout(io.StringIO()):  # the run's log lists the transforms
        transform = build_transform(cfg, is_train=False)
    return TrainedRun(folder, model, wanted, trained, transform, cfg, results)
