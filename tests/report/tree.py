"""Output trees without training."""

import json

CONFIG = {"OPTIM.LR": "0.002", "TRAINER.COOP.N_CTX": "16", "DATASET.NAME": "''"}


def write_run(
    root,
    stage,
    trainer="CoOp",
    dataset="Emoji",
    seed=1,
    values=None,
    *,
    shots=16,
    cfg="vit_b16",
    target="",
    folder="",
    log="",
    config=None,
    **changes,
):
    """A folder as ``dassl_prompts.run`` names it, with a results.json."""
    path = root.joinpath(stage, target, (folder or dataset).lower(), f"shots_{shots}", trainer, cfg, f"seed{seed}")
    path.mkdir(parents=True, exist_ok=True)
    classes = stage.rsplit("_", 1)[-1]
    if not isinstance(values, dict):
        values = {"test": {"accuracy": values}}
    results = {
        "trainer": trainer,
        "dataset": dataset,
        "classes": classes,
        "shots": shots,
        "seed": seed,
        "backbone": "ViT-B/16",
        "config": {**CONFIG, "SEED": repr(seed), "OUTPUT_DIR": repr(str(path)), **(config or {})},
        "finished": True,
        "kind": "training" if "/train" in stage else "evaluation",
        **values,
        **changes,
    }
    (path / "results.json").write_text(json.dumps(results))
    if log:
        (path / "log.txt").write_text(log)
    return path


def base_new_pair(root, base, new, trainer="CoOp", dataset="Emoji", seed=1, **kwargs):
    return (
        write_run(root, "base2new/train_base", trainer, dataset, seed, base, **kwargs),
        write_run(root, "base2new/test_new", trainer, dataset, seed, new, **kwargs),
    )


def progress(losses):
    """Log lines of epochs with these mean losses."""
    return "".join(
        f"epoch [{e}/{len(losses)}] batch [{b}/2] time 0.1 (0.2) data 0.0 (0.1) loss {v:.4f} ({v * b / 2:.4f}) acc 50.0 (25.0) "
        f"lr 2.0e-03 eta 0:00:01\n"
        for e, v in enumerate(losses, 1)
        for b in (1, 2)
    )
