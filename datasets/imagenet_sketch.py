from dassl_prompts.datasets.imagenet import ImageNetShift
from dassl_prompts.engine import register_dataset


@register_dataset
class ImageNetSketch(ImageNetShift):
    """ImageNet-Sketch: drawings of the 1000 classes."""

    dataset_dir = "imagenet-sketch"
    image_dir = "images"
