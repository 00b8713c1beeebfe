from dassl_prompts.datasets.imagenet import ImageNetShift
from dassl_prompts.engine import register_dataset


@register_dataset
class ImageNetR(ImageNetShift):
    """ImageNet-R: renditions, scored among their own 200 classes."""

    dataset_dir = "imagenet-rendition"
    image_dir = "imagenet-r"
