from dassl_prompts.datasets.imagenet import ImageNetShift
from dassl_prompts.engine import register_dataset


@register_dataset
class ImageNetA(ImageNetShift):
    """ImageNet-A: natural adversarial examples, scored among their own 200 classes."""

    dataset_dir = "imagenet-adversarial"
    image_dir = "imagenet-a"
