"""FDRD's nine domains: which files they come in, and where a record's image lies in CoOp's dataset layout."""

from __future__ import annotations

import difflib
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dassl_prompts.captions.records import FDRDError, Record
from dassl_prompts.images import is_image_name

FOLDER = "FDRD"
REPOSITORY = "https://github.com/wyf202322/DCAR"


@dataclass(frozen=True)
class Domain:
    """How one domain's records name classes and images.

    Attributes:
        name: canonical name.
        stem: stem of its files: ``<stem>_train.json`` or ``inter_<stem>_train.json``.
        aliases: other names, lower case.
        class_of: record -> class name.
        place: record -> path of the image below DATASET.ROOT, "" when the domain has no rule.
        image_folder: folder to look the file name up in where there is no rule.
    """

    name: str
    stem: str
    aliases: tuple[str, ...]
    class_of: Callable[[Record], str]
    place: Callable[[Record], str]
    image_folder: str = ""


def _class_field(record: Record) -> str:
    if not record.class_name:
        raise FDRDError(f"record {record.key!r} has no class_name")
    return record.class_name


def _class_spaces(record: Record) -> str:
    return _class_field(record).replace("_", " ")


def _class_before_number(record: Record) -> str:
    """Key up to its last underscore: ``german_shorthaired_105`` -> ``german shorthaired``."""
    if record.class_name:
        return _class_spaces(record)
    name = record.key.rpartition("_")[0]
    if not name:
        raise FDRDError(f"record {record.key!r}: no class_name, and the key is not <class>_<number>")
    return name.replace("_", " ")


#: aircraft variants with a slash, as the keys spell them
SLASHED = {"F-16A_B": "F-16A/B", "F_A-18": "F/A-18"}


def _aircraft_class(record: Record) -> str:
    if record.class_name:
        return record.class_name
    name = record.key.rpartition("_")[0]
    return SLASHED[name] if name in SLASHED else _class_before_number(record)


def _name(record: Record) -> str:
    return record.file_name or record.key


def _jpg(name: str) -> str:
    return name if is_image_name(name) else f"{name}.jpg"


def _caltech(record: Record) -> str:
    folder, separator, number = _jpg(_name(record)).partition("_image_")
    if not separator:
        raise FDRDError(f"record {record.key!r}: the key is not <folder>_image_<number>.jpg")
    return f"caltech-101/101_ObjectCategories/{folder}/image_{number}"


def _cars(record: Record) -> str:
    folder, separator, number = _jpg(_name(record)).rpartition("_")
    if not separator or folder not in ("cars_train", "cars_test"):
        raise FDRDError(f"record {record.key!r}: the key is not cars_train_<number>.jpg or cars_test_<number>.jpg")
    return f"stanford_cars/{folder}/{number}"


def _flowers(record: Record) -> str:
    number = record.number or record.key.partition("_image_")[2]
    if not number:
        raise FDRDError(f"record {record.key!r}: neither a number nor a key <class>_image_<number>")
    return f"oxford_flowers/jpg/image_{_jpg(number)}"


def _no_rule(record: Record) -> str:
    return ""


def _domains() -> dict[str, Domain]:
    dtd = lambda r: f"dtd/images/{_class_field(r)}/{_jpg(_name(r))}"
    ucf = lambda r: f"ucf101/UCF-101-midframes/{_class_field(r)}/{_jpg(_name(r))}"
    pets = lambda r: f"oxford_pets/images/{_jpg(r.key)}"
    plane = lambda r: f"fgvc_aircraft/images/{_jpg(_name(r))}"
    found = (
        Domain("Caltech101", "caltech-101", ("caltech-101", "caltech"), _class_field, _caltech),
        Domain("OxfordPets", "pets", ("oxford_pets", "pets", "pet"), _class_before_number, pets),
        Domain("StanfordCars", "car", ("stanford_cars", "cars", "car"), _class_field, _cars),
        Domain(
            "Flowers102",
            "flower",
            ("oxford_flowers", "oxfordflowers", "flowers", "flower"),
            _class_spaces,
            _flowers,
        ),
        Domain("Food101", "food", ("food-101", "food"), _class_field, _no_rule, "food-101/images"),
        Domain("FGVCAircraft", "plane", ("fgvc_aircraft", "aircraft", "plane"), _aircraft_class, plane),
        Domain("SUN397", "sun397", ("sun",), _class_field, _no_rule, "sun397/SUN397"),
        Domain("DTD", "dtd", ("describabletextures", "describable_textures"), _class_field, dtd),
        Domain("UCF101", "ucf101", ("ucf",), _class_field, ucf),
    )
    return {domain.name: domain for domain in found}


DOMAINS = _domains()
#: for files that `fdrd build` made: class and path stand in the record
CUSTOM = Domain("custom", "custom", (), _class_field, _no_rule)


def get_domain(name: str) -> Domain:
    """The domain called ``name``: canonical, CoOp's dataset name, or the short form of the files; ``custom``
    for own files.

    Raises:
        ValueError: unknown; lists the nine.
    """
    wanted = name.lower()
    for domain in (*DOMAINS.values(), CUSTOM):
        if wanted in (domain.name.lower(), domain.stem, *domain.aliases):
            return domain
    near = difflib.get_close_matches(wanted, [d.lower() for d in DOMAINS], n=1)
    hint = f"; did you mean {next(d for d in DOMAINS if d.lower() == near[0])}?" if near else ""
    raise ValueError(
        f"unknown FDRD domain {name!r}: the nine are {', '.join(DOMAINS)}; emoji is embedded, custom reads "
        f"a file of your own{hint}"
    )


def find_file(domain: Domain, split: str, root: str | os.PathLike, given: str = "") -> Path:
    """The JSON file of a domain and split: ``given``, or under ``root/FDRD/<split>`` in either naming.

    Raises:
        FileNotFoundError: not there; says what was looked for and where the files come from.
    """
    if given:
        path = Path(given).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"DATASET.FDRD_{split.upper()}: there is no file {path}")
        return path
    tried = [
        Path(root).expanduser() / folder / split / f"{prefix}{domain.stem}_{split}.json"
        for folder in (FOLDER, FOLDER.lower())
        for prefix in ("", "inter_")
    ]
    # an upload that was emptied must not hide a whole file under the other name
    there = sorted((path for path in tried if path.is_file()), key=lambda p: -p.stat().st_size)
    if there:
        return there[0]
    if domain is CUSTOM:
        raise FileNotFoundError(f"FDRD domain custom: give DATASET.FDRD_{split.upper()} FILE")
    raise FileNotFoundError(
        f"no {split} file of FDRD's domain {domain.name}: looked for {', '.join(str(p) for p in tried)}. "
        "The files are in "
        f"{REPOSITORY} (folder FDRD, some only in its history); or give DATASET.FDRD_{split.upper()} FILE"
    )


class ImageFinder:
    """Resolves the images of one domain's records below ``root``.

    An explicit relative path in the record wins; then the domain's rule; then, for Food101 and SUN397, whose
    released files could not be examined, the file name is looked up in the dataset's folder.
    """

    def __init__(self, domain: Domain, root: str | os.PathLike):
        self.domain = domain
        self.root = os.path.abspath(os.path.expanduser(os.fspath(root)))
        self._by_stem: dict[str, list[str]] | None = None

    def __call__(self, record: Record) -> str:
        """Absolute path of the record's image; whether the file exists is not checked.

        Raises:
            FDRDError: the record does not say which image.
        """
        explicit = record.file_path.replace("\\", "/") if record.has_path else ""
        if explicit and not os.path.isabs(explicit):
            if ".." in explicit.split("/"):
                raise FDRDError(f"record {record.key!r}: file_path {explicit!r} leaves the dataset folder")
            return os.path.join(self.root, explicit)
        placed = self.domain.place(record)
        if placed:
            return os.path.join(self.root, placed)
        if explicit and (self.domain is CUSTOM or os.path.exists(explicit)):
            return explicit
        if self.domain.image_folder:
            return self._look_up(record)
        raise FDRDError(
            f"record {record.key!r} has no file_path, and domain {self.domain.name} has no rule to find its image"
        )

    def _look_up(self, record: Record) -> str:
        folder = os.path.join(self.root, self.domain.image_folder)
        if self._by_stem is None:
            self._by_stem = _index_images(folder)
        stem = Path(_name(record)).stem if is_image_name(_name(record)) else _name(record)
        found = self._by_stem.get(stem, [])
        if len(found) != 1:
            what = "is not" if not found else f"occurs {len(found)} times"
            raise FDRDError(
                f"record {record.key!r}: {stem} {what} below {folder}; write the image's path relative to "
                "DATASET.ROOT into file_path"
            )
        return found[0]


def _index_images(folder: str) -> dict[str, list[str]]:
    """All images below ``folder`` by the stem of their names."""
    index = defaultdict(list)
    for parent, _, names in os.walk(folder):
        for name in names:
            if is_image_name(name):
                index[Path(name).stem].append(os.path.join(parent, name))
    return index
