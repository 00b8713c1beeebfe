"""A trained run as a folder for the Hugging Face hub; ``load_run("hf:USER/NAME")`` is the way back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from dassl_prompts.configs.own_data import called
from dassl_prompts.engine.checkpoint import find_checkpoint
from dassl_prompts.engine.files import read_json, write_json, write_text
from dassl_prompts.engine.places import FREE_PLACES
from dassl_prompts.engine.run_folder import RESULTS
from dassl_prompts.predict.run import TrainedRun


def write_hub(run: TrainedRun, folder: Path) -> list[Path]:
    """Write what :func:`~dassl_prompts.predict.load_run` needs, and a model card; places on this machine are left out.

    Returns:
        the files: ``results.json``, the checkpoint of the learned tensors, ``README.md``.
    """
    results = read_json(run.folder / RESULTS)
    config = results["config"]
    results["config"] = {
        key: "''" if key in FREE_PLACES and isinstance(config[key], str) else config[key] for key in config
    }
    written = [folder / RESULTS]
    write_json(results, written[0])
    for note in sorted(run.folder.glob("*/checkpoint")):
        model = folder / note.parent.name
        model.mkdir(exist_ok=True)
        source = find_checkpoint(note.parent, None)
        for path in dict.fromkeys((note, source, note.parent / note.read_text(encoding="utf-8").strip())):
            shutil.copyfile(path, model / path.name)
            written.append(model / path.name)
    write_text(model_card(run), folder / "README.md")
    return [*written, folder / "README.md"]


def model_card(run: TrainedRun) -> str:
    """README.md with the front matter that the hub reads."""
    results = run.results
    trainer, backbone = results["trainer"], results.get("backbone", "")
    accuracy = results.get("test", {}).get("accuracy")
    front = {
        "library_name": "dassl-prompts",
        "pipeline_tag": "zero-shot-image-classification",
        "tags": ["prompt-learning", "clip", trainer],
    }
    head = "\n".join(f"{key}: {json.dumps(value)}" for key, value in front.items())
    lines = [
        f"# {trainer} on {called(results.get('dataset', ''), run.cfg.DATASET.ROOT)}",
        f"Prompts learned by {trainer} for the CLIP {backbone}, {results.get('shots', '?')} images per class, seed {results.get('seed', '?')}"
        + (f"; test accuracy {accuracy:.2f} %." if accuracy is not None else "."),
        "Classes of the training: " + ", ".join(run.trained) + ".",
        '```python\nfrom dassl_prompts.predict import load_run\n\nrun = load_run("hf:USER/NAME")  # or a folder\n'
        "probabilities = run.scores([image])  # PIL images\n```",
    ]
    return f"---\n{head}\n---\n\n" + "\n\n".join(lines) + "\n"
