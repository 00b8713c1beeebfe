"""The image reader of the package, under the engine's name."""

from dassl_prompts.images import ImageReadError, read_image

__all__ = ["ImageReadError", "read_image"]
