from dassl_prompts.classification.dataset import FolderDataset
from dassl_prompts.engine import register_dataset


@register_dataset
class Food101(FolderDataset):
    """Food-101, split by CoOp (the official test set is not used): 101 classes."""

    dataset_dir = "food-101"
    image_dir = "images"
    split_file = "split_zhou_Food101.json"
