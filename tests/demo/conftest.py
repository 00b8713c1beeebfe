"""A service on nine small pictures, and the application; what needs the extra is skipped without it."""

import os

import pytest

from dassl_prompts.composed import search
from dassl_prompts.composed.answers import Answerer
from tests.datasets.cir_trees import picture
from tests.models.test_blip import write_tiny_blip


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with ``images``, of which one is a link that leads out, and their ``index``."""
    place = tmp_path_factory.mktemp("demo")
    for i in range(9):
        picture(place / "images" / ("sub" if i % 2 else "") / f"{i}.png", i)
    picture(place / "secret.png", 99)
    os.symlink(place / "secret.png", place / "images" / "link.png")
    blip = write_tiny_blip(place)
    search.main(["index", str(place / "images"), "--index", str(place / "index"), "--backbone", str(blip)])
    return place


@pytest.fixture
def service(place):
    from dassl_prompts.demo.service import Service

    return Service(Answerer.open(place / "index"), targets={("0.png", "two"): ["sub/3.png"]})
