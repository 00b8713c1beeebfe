from dassl_prompts.classification.dataset import FolderDataset
from dassl_prompts.engine import register_dataset


@register_dataset
class DescribableTextures(FolderDataset):
    """Describable Textures, split by CoOp rather than by the official folds: 47 classes."""

    dataset_dir = "dtd"
    image_dir = "images"
    split_file = "split_zhou_DescribableTextures.json"
