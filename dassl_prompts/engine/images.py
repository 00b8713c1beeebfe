"""The image reader of the package, under the engine's name."""

from dassl_prompts.images import ImageReadError, central_part, check_orientation, read_image

__all__ = ["ImageReadError", "central_part", "check_orientation", "read_image"]
