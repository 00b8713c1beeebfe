"""Using trained runs: labels for images, exported class embeddings, words near a learned context."""

from dassl_prompts.predict.run import TrainedRun, load_run

__all__ = ["TrainedRun", "load_run"]
