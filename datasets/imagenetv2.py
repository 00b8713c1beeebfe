from dassl_prompts.classification.split_files import Splits
from dassl_prompts.datasets.imagenet import ImageNetShift
from dassl_prompts.engine import register_dataset


@register_dataset
class ImageNetV2(ImageNetShift):
    """ImageNetV2, matched frequency: folders 0, 1, ... 999 in the order of ``classnames.txt``."""

    dataset_dir = "imagenetv2"
    image_dir = "imagenetv2-matched-frequency-format-val"

    def read_lists(self) -> Splits:
        names = {str(label): name for label, name in enumerate(self.read_classnames().values())}
        data = self.list_classes(self.image_dir, names)
        return Splits(data, [], data)
