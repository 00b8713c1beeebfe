from dassl_prompts.classification.dataset import FolderDataset
from dassl_prompts.engine import register_dataset


@register_dataset
class Caltech101(FolderDataset):
    """Caltech-101 without its background and its second set of faces: 100 classes."""

    dataset_dir = "caltech-101"
    image_dir = "101_ObjectCategories"
    split_file = "split_zhou_Caltech101.json"
    ignored = ("BACKGROUND_Google", "Faces_easy")
    renamed = {"airplanes": "airplane", "Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
