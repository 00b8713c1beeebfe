"""The exported classes: what our trainers see, in files that a CoOp checkout reads."""

import random

import pytest
from PIL import Image

from dassl_prompts.classification.split_files import read_split
from dassl_prompts.classification.splits import few_shot
from dassl_prompts.emoji import archives
from dassl_prompts.emoji.__main__ import main
from dassl_prompts.emoji.export import IMAGES, SPLIT, export
from dassl_prompts.emoji.splits import read_splits
from dassl_prompts.images import read_image


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    main(["--export", str(folder)])
    return folder


def codes(data):
    """What is left of paths in archives and in folders."""
    return [(item.impath.rpartition("/")[2].rpartition("::")[2].rpartition(".")[0], item.label) for item in data]


def test_four_styles_and_nothing_else(exported):
    assert sorted(p.name for p in exported.iterdir()) == sorted(f"emoji_{style}" for style in archives.STYLES)
    for style in exported.iterdir():
        assert sorted(p.name for p in style.iterdir()) == [IMAGES, SPLIT]


@pytest.mark.parametrize("style", archives.STYLES)
def test_splits_are_the_embedded_ones_in_their_order(exported, style):
    root = exported / f"emoji_{style}"
    splits = read_split(root / SPLIT, root / IMAGES)
    for ours, theirs in zip(read_splits(style), splits):
        assert codes(theirs) == codes(ours) and [d.classname for d in theirs] == [d.classname for d in ours]
        for item in theirs:
            assert f"/{IMAGES}/{item.classname.replace(' ', '_')}/" in item.impath


def test_pictures_are_those_our_trainers_see(exported):
    root = exported / "emoji_fluent"
    ours, theirs = read_splits("fluent").test, read_split(root / SPLIT, root / IMAGES).test
    for number in random.Random(0).sample(range(len(ours)), 20):
        file = Image.open(theirs[number].impath)
        assert file.mode == "RGB" and file.tobytes() == read_image(ours[number].impath).tobytes()


def test_a_seed_draws_the_same_few_shots(exported, tmp_path):
    root = exported / "emoji_fluent"
    ours, theirs = read_splits("fluent"), read_split(root / SPLIT, root / IMAGES)
    draws = []
    for data, images in ((ours, archives.ASSETS), (theirs, root / IMAGES)):
        random.seed(3)
        draws.append([codes(part) for part in few_shot(data.train, data.val, 4, 3, str(images))])
    assert draws[0] == draws[1] and len(draws[0][0]) == 4 * 35


def test_what_is_there_is_never_touched(exported, tmp_path, capsys):
    (tmp_path / "emoji_openmoji").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["--export", str(tmp_path)])
    assert stop.value.code == 2 and "emoji_openmoji exists; delete it or give another folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["emoji_openmoji"]


def test_a_stopped_export_leaves_no_half_a_style(tmp_path, monkeypatch):
    from dassl_prompts.emoji import export as module

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(module, "save_split", full)
    with pytest.raises(OSError, match="No space left"):
        export(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
