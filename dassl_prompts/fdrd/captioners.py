"""Where captions come from when an FDRD file is built: a file of ready ones, a Python function, or image
statistics.
"""

from __future__ import annotations

import importlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dassl_prompts.engine.reading import DamagedFile, parse_json, read_lines

#: questions for a multi-modal model, given to the captioner ready to use
QUESTIONS = (
    "Describe the image in one or two sentences: the scene, the main object and the background.",
    "This picture belongs to the dataset {dataset} and shows the category {classname}. Describe in one or "
    "two sentences, "
    "naming {classname}, what colours, parts, posture and surroundings set it apart from other pictures of "
    "{classname}.",
)


@dataclass(frozen=True)
class Request:
    """What a captioner is asked.

    Attributes:
        path: the image's path (or ``archive.zip::member``).
        relative: the same relative to the root, as written into the file.
        classname, dataset: what to name.
        questions: :data:`QUESTIONS` filled in.
        round: 1 for the first try.
        feedback: why the caption of the round before was rejected; "" in the first.
    """

    path: str
    relative: str
    classname: str
    dataset: str
    questions: tuple[str, ...]
    round: int = 1
    feedback: str = ""


Captioner = Callable[[Request], str]


def make_request(path: str, relative: str, classname: str, dataset: str) -> Request:
    name = classname.replace("_", " ")
    questions = tuple(q.format(dataset=dataset, classname=name) for q in QUESTIONS)
    return Request(path, relative, name, dataset, questions)


class CaptionFile:
    """Ready captions: JSON lines ``{"path": ..., "caption": ...}``; the path relative to the root, or just
    the file name where only one image has it.

    Args:
        path: the file.
        images: relative paths of all images to caption.

    Raises:
        ValueError: a line is not of this form, names an image twice, or gives a file name that several images
            have; names file and line.
    """

    def __init__(self, path: str | os.PathLike, images: Iterable[str]):
        self.path = str(path)
        by_name: dict[str, list[str]] = defaultdict(list)
        for image in images:
            by_name[os.path.basename(image)].append(image)
        self.in_root = {name for name, same_name in by_name.items() if name in same_name}
        self.captions: dict[str, str] = {}
        for number, line in enumerate(read_lines(path), 1):
            if not line.strip():
                continue
            try:
                entry = parse_json(line, f"{path}, line {number}")
                image, caption = entry["path"], entry["caption"]
            except (DamagedFile, KeyError, TypeError) as error:
                raise ValueError(
                    f'{path}, line {number}: expected {{"path": ..., "caption": ...}} ({error!r})'
                ) from None
            if image in self.captions:
                raise ValueError(f"{path}, line {number}: {image} has a caption already")
            same_name = by_name.get(image, [])
            if len(same_name) > 1 and image not in same_name:
                raise ValueError(
                    f"{path}, line {number}: {len(same_name)} images are called {image} "
                    f"({', '.join(same_name[:3])}{', ...' if len(same_name) > 3 else ''}): write the path "
                    "relative to --root"
                )
            self.captions[image] = str(caption)

    def __call__(self, request: Request) -> str:
        """The caption of the image, "" when the file has none."""
        name = os.path.basename(request.relative)
        # a picture in the root itself is called by its whole path, which says nothing about others of that name
        fallback = "" if name in self.in_root else self.captions.get(name, "")
        return self.captions.get(request.relative, fallback)


def load_function(name: str) -> Captioner:
    """``package.module:function``.

    Raises:
        ValueError: there is no such function.
    """
    module, separator, function = name.partition(":")
    if not separator:
        raise ValueError(f"--captioner {name}: give module:function")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--captioner {name}: {error}") from error
    if not callable(found):
        raise ValueError(f"--captioner {name} is not a function")
    return found


#: reference colours of the offline captions, RGB
COLOURS = {
    "red": (200, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (240, 220, 60),
    "green": (60, 150, 60),
    "blue": (50, 90, 200),
    "purple": (130, 60, 160),
    "pink": (240, 150, 180),
    "brown": (120, 80, 50),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "white": (240, 240, 240),
}


def describe_statistics(request: Request) -> str:
    """A caption from the class name and what can be measured: main colours, brightness, shape. For trying
    things out.
    """
    import numpy as np

    from dassl_prompts.images import read_image

    image = read_image(request.path, "camera")
    width, height = image.size
    pixels = np.asarray(image.resize((32, 32)), dtype=np.float32).reshape(-1, 3)
    table = np.array(list(COLOURS.values()), dtype=np.float32)
    nearest = ((pixels[:, None] - table) ** 2).sum(-1).argmin(1)
    counts = np.bincount(nearest, minlength=len(table))
    first, second = (list(COLOURS)[i] for i in counts.argsort(kind="stable")[::-1][:2])
    light = pixels.mean() / 255
    brightness = "dark" if light < 0.35 else "bright" if light > 0.65 else "evenly lit"
    shape = "tall" if height > 1.2 * width else "wide" if width > 1.2 * height else "square"
    share = round(100 * counts.max() / counts.sum(), -1)
    colours = f"mostly {first} ({share:.0f} percent) with some {second}"
    return f"A {brightness} {shape} photo of {request.classname}, {colours}."
