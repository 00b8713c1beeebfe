"""Using trained runs: labels for images, exported class embeddings, words near a learned context."""

__all__ = ["TrainedRun", "load_run"]


def __getattr__(name: str):
    """``load_run`` and ``TrainedRun``, on demand: the command's ``--help`` needs no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from dassl_prompts.predict import run

    return getattr(run, name)
