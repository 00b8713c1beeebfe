"""Where each dataset comes from, how its archives map to CoOp's layout, and how many images it should have.

Addresses and MD5 sums are those of torchvision's dataset classes where torchvision has them (a test compares
them), else the dataset authors' pages. CoOp's split files lie on Google Drive; their links are read from
CoOp's own page at run time instead of being repeated here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: below a dataset's folder: what the command downloaded and may delete again
DOWNLOADS = ".download"

#: CoOp's description of the layouts, with the links to its split files
COOP_PAGE = "https://raw.githubusercontent.com/KaiyangZhou/CoOp/main/DATASETS.md"
COOP_PAGE_FOR_PEOPLE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


@dataclass(frozen=True)
class File:
    """A file to obtain, and what it gives.

    Attributes:
        name: file name; fetched by hand it goes into the dataset's folder under this name.
        urls: where a program can fetch it, best first.
        md5: its checksum, "" where none is published.
        on_coop_page: its link stands on CoOp's page (Google Drive).
        by_hand: where a person finds it, for files without ``urls``.
        unpack: path in the archive -> path below the dataset's folder; empty for a file that is used as it
            is.
        inner: an archive inside this one, which ``unpack`` puts among the downloads.
        gives: paths below the dataset's folder that ``Source.after`` makes from it.
    """

    name: str
    urls: tuple[str, ...] = ()
    md5: str = ""
    on_coop_page: bool = False
    by_hand: str = ""
    unpack: dict[str, str] = field(default_factory=dict)
    inner: File | None = None
    gives: tuple[str, ...] = ()

    @property
    def products(self) -> tuple[str, ...]:
        """Paths below the dataset's folder that exist once this file has been dealt with."""
        if self.inner:
            return self.inner.products
        return self.gives or tuple(self.unpack.values()) or (self.name,)


@dataclass(frozen=True)
class Source:
    """A dataset: its folder below the data root, what to obtain, its commonly published numbers of images.

    Attributes:
        counts: training, validation and test images over all classes; None where the dataset has no such
            part.
        after: name of a function in ``layout.py`` that finishes what unpacking cannot.
    """

    folder: str
    files: tuple[File, ...]
    classes: int
    counts: tuple[int | None, int | None, int]
    after: str = ""


def _split(name: str) -> File:
    return File(f"split_zhou_{name}.json", on_coop_page=True)


_CLASSNAMES = File("classnames.txt", on_coop_page=True)
_VGG = "https://www.robots.ox.ac.uk/~vgg/data"
_HENDRYCKS = "https://people.eecs.berkeley.edu/~hendrycks"
_AIRCRAFT_LISTS = ("variants.txt", *(f"images_variant_{part}.txt" for part in ("train", "val", "test")))
_IMAGENET_PAGE = "https://image-net.org/challenges/LSVRC/2012/2012-downloads.php (log in, accept the terms)"
_CARS_PAGE = (
    "the original site is gone; https://github.com/pytorch/vision/issues/7545 collects mirrors, "
    "https://www.kaggle.com has copies"
)

SOURCES: dict[str, Source] = {
    "Caltech101": Source(
        "caltech-101",
        (
            File(
                "caltech-101.zip",
                urls=("https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",),
                md5="3138e1922a9193bfa496528edbbc45d0",
                unpack={"caltech-101/101_ObjectCategories.tar.gz": f"{DOWNLOADS}/101_ObjectCategories.tar.gz"},
                inner=File("101_ObjectCategories.tar.gz", unpack={"101_ObjectCategories": "101_ObjectCategories"}),
            ),
            _split("Caltech101"),
        ),
        classes=100,
        counts=(4128, 1649, 2465),
    ),
    "OxfordPets": Source(
        "oxford_pets",
        (
            File(
                "images.tar.gz",
                urls=(f"{_VGG}/pets/data/images.tar.gz",),
                md5="5c4f3ee8e5d25df40f4fd59a7f44e54c",
                unpack={"images": "images"},
            ),
            File(
                "annotations.tar.gz",
                urls=(f"{_VGG}/pets/data/annotations.tar.gz",),
                md5="95a8c909bbe2e81eed6a22bccdf3f68f",
                unpack={"annotations": "annotations"},
            ),
            _split("OxfordPets"),
        ),
        classes=37,
        counts=(2944, 736, 3669),
    ),
    "StanfordCars": Source(
        "stanford_cars",
        (
            File("cars_train", by_hand=f"the folder with 8,144 training images: {_CARS_PAGE}"),
            File("cars_test", by_hand=f"the folder with 8,041 test images: {_CARS_PAGE}"),
            _split("StanfordCars"),
        ),
        classes=196,
        counts=(6509, 1635, 8041),
    ),
    "OxfordFlowers": Source(
        "oxford_flowers",
        (
            File(
                "102flowers.tgz",
                urls=(f"{_VGG}/flowers/102/102flowers.tgz",),
                md5="52808999861908f626f3c1f4e79d11fa",
                unpack={"jpg": "jpg"},
            ),
            File(
                "imagelabels.mat",
                urls=(f"{_VGG}/flowers/102/imagelabels.mat",),
                md5="e0620be6f572b9609742df49c70aed4d",
            ),
            File("cat_to_name.json", on_coop_page=True),
            _split("OxfordFlowers"),
        ),
        classes=102,
        counts=(4093, 1633, 2463),
    ),
    "Food101": Source(
        "food-101",
        (
            File(
                "food-101.tar.gz",
                urls=("http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",),
                md5="85eeb15f3717b99a5da872d97d918f87",
                unpack={"food-101/images": "images"},
            ),
            _split("Food101"),
        ),
        classes=101,
        counts=(50500, 20200, 30300),
    ),
    "FGVCAircraft": Source(
        "fgvc_aircraft",
        (
            File(
                "fgvc-aircraft-2013b.tar.gz",
                urls=(f"{_VGG}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",),
                unpack={f"fgvc-aircraft-2013b/data/{name}": name for name in ("images", *_AIRCRAFT_LISTS)},
            ),
        ),
        classes=100,
        counts=(3334, 3333, 3333),
    ),
    "SUN397": Source(
        "sun397",
        (
            File(
                "SUN397.tar.gz",
                urls=("http://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",),
                md5="8ca2778205c41d23104230ba66911c7a",
                unpack={"SUN397": "SUN397"},
            ),
            _split("SUN397"),
        ),
        classes=397,
        counts=(15880, 3970, 19850),
    ),
    "DescribableTextures": Source(
        "dtd",
        (
            File(
                "dtd-r1.0.1.tar.gz",
                urls=(f"{_VGG}/dtd/download/dtd-r1.0.1.tar.gz",),
                md5="fff73e5086ae6bdbea199a49dfb8a4c1",
                unpack={"dtd/images": "images"},
            ),
            _split("DescribableTextures"),
        ),
        classes=47,
        counts=(2820, 1128, 1692),
    ),
    "EuroSAT": Source(
        "eurosat",
        (
            File(
                "EuroSAT.zip",
                urls=(
                    "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                    "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip",
                ),
                md5="c8fa014336c82ac7804f0398fcb19387",
                unpack={"2750": "2750"},
            ),
            _split("EuroSAT"),
        ),
        classes=10,
        counts=(13500, 5400, 8100),
    ),
    "UCF101": Source(
        "ucf101",
        (
            File("UCF-101-midframes.zip", on_coop_page=True, unpack={"UCF-101-midframes": "UCF-101-midframes"}),
            _split("UCF101"),
        ),
        classes=101,
        counts=(7639, 1898, 3783),
    ),
    "ImageNet": Source(
        "imagenet",
        (
            File("ILSVRC2012_devkit_t12.tar.gz", by_hand=_IMAGENET_PAGE, gives=("images/val",)),
            File("ILSVRC2012_img_train.tar", by_hand=_IMAGENET_PAGE, gives=("images/train",)),
            File("ILSVRC2012_img_val.tar", by_hand=_IMAGENET_PAGE, gives=("images/val",)),
            _CLASSNAMES,
        ),
        classes=1000,
        counts=(1281167, None, 50000),
        after="imagenet",
    ),
    "ImageNetV2": Source(
        "imagenetv2",
        (
            File(
                "imagenetv2-matched-frequency.tar.gz",
                urls=(
                    "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/"
                    "imagenetv2-matched-frequency.tar.gz",
                    "https://s3-us-west-2.amazonaws.com/imagenetv2public/imagenetv2-matched-frequency.tar.gz",
                ),
                unpack={"imagenetv2-matched-frequency-format-val": "imagenetv2-matched-frequency-format-val"},
            ),
            _CLASSNAMES,
        ),
        classes=1000,
        counts=(None, None, 10000),
    ),
    "ImageNetSketch": Source(
        "imagenet-sketch",
        (
            File(
                "images",
                by_hand="the folder of 1,000 WordNet ids (called sketch in the archive): "
                "https://github.com/HaohanWang/ImageNet-Sketch",
            ),
            _CLASSNAMES,
        ),
        classes=1000,
        counts=(None, None, 50889),
    ),
    "ImageNetA": Source(
        "imagenet-adversarial",
        (
            File("imagenet-a.tar", urls=(f"{_HENDRYCKS}/imagenet-a.tar",), unpack={"imagenet-a": "imagenet-a"}),
            _CLASSNAMES,
        ),
        classes=200,
        counts=(None, None, 7500),
    ),
    "ImageNetR": Source(
        "imagenet-rendition",
        (
            File("imagenet-r.tar", urls=(f"{_HENDRYCKS}/imagenet-r.tar",), unpack={"imagenet-r": "imagenet-r"}),
            _CLASSNAMES,
        ),
        classes=200,
        counts=(None, None, 30000),
    ),
}

#: retrieval data that nobody may fetch for another: where it is and how it has to lie below the data root
GUIDES: dict[str, str] = {
    "CIRR": """\
annotations: captions and image_splits of https://github.com/Cuberick-Orion/CIRR, branch cirr_dataset
    -> cirr/captions, cirr/image_splits
images: NLVR2's, through the form that https://github.com/lil-lab/nlvr links to
    -> cirr/img_raw/train, cirr/img_raw/dev, cirr/img_raw/test1""",
    "FashionIQ": """\
annotations: the folders captions and image_splits of https://github.com/XiaoxiaoGuo/fashion-iq
    -> fashioniq/captions, fashioniq/image_splits
images: by the addresses in https://github.com/hongwang600/fashion-iq-metadata (many are dead)
    -> fashioniq/images/<id>.jpg or .png""",
    "LaionCIR": """\
triplets: laion_template_info.json and laion_llm_info.json of https://github.com/Code-kunkun/ZS-CIR
    -> laion_cir/
images: linked from issues 6 and 7 of that repository
    -> laion_cir/images/<seven digits>.png""",
    "CIRCO": """\
annotations: the folder annotations of https://github.com/miccunifi/CIRCO (CC BY-NC 4.0)
    -> circo/annotations
images and their list: "2017 Unlabeled images" and "2017 Unlabeled image info" of https://cocodataset.org/#download
    -> circo/COCO2017_unlabeled/unlabeled2017,
       circo/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json""",
    "FDRD": """\
captions: the JSON files of https://github.com/wyf202322/DCAR
    -> FDRD/train, FDRD/test
images: those of CoOp's datasets, e.g. `python -m dassl_prompts.prepare dtd`""",
}

#: terms of the pictures, where their owners state them (those of the embedded data stand in NOTICE); the others' pages have to be asked
LICENCES = {
    "Caltech101": "CC BY 4.0",
    "OxfordPets": "CC BY-SA 4.0",
    "EuroSAT": "MIT",
    "FGVCAircraft": "non-commercial research",
    "DescribableTextures": "research",
    "ImageNet": "non-commercial research",
    "Emoji": "MIT (Fluent)",
    "EmojiNoto": "Apache-2.0",
    "EmojiTwemoji": "CC BY 4.0",
    "EmojiOpenMoji": "CC BY-SA 4.0",
    "QuickDraw": "CC BY 4.0",
    "IconPark": "Apache-2.0",
    "ClipArt": "public domain",
}
