"""The embedded emoji data: archives, classes, splits, and what damaged archives say."""

import hashlib
import shutil
import zipfile
from collections import Counter

import pytest
from yacs.config import CfgNode

from dassl_prompts.emoji import archives as emoji
from dassl_prompts.emoji.__main__ import main as emoji_command
from dassl_prompts.emoji.splits import read_splits
from dassl_prompts.engine import DATASET_REGISTRY
from dassl_prompts.images import read_image
from dassl_prompts.train import main as train_command
from tests.conftest import ROOT

NAMES = {"Emoji": "fluent", "EmojiNoto": "noto", "EmojiTwemoji": "twemoji", "EmojiOpenMoji": "openmoji"}


def build(name="Emoji", shots=16, seed=1, subsample="all"):
    return DATASET_REGISTRY.get(name)(
        CfgNode(
            {
                "SEED": seed,
                "DATASET": {"ROOT": "/nowhere", "NUM_SHOTS": shots, "SUBSAMPLE_CLASSES": subsample},
            }
        )
    )


def code_points(impath):
    return impath.rpartition("::")[2].removesuffix(".webp").split("-")


# -- archives ----------------------------------------------------------------------------------------------


def test_archives_are_those_of_the_meta_file_and_small():
    total = 0
    for style, entry in emoji.read_meta()["styles"].items():
        data = emoji.archive_path(style).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"], style
        total += len(data)
    assert total <= 14e6


@pytest.mark.parametrize(
    "style, licence",
    [
        ("noto", "Apache License"),
        ("twemoji", "CC BY 4.0"),
        ("openmoji", "CC BY-SA 4.0"),
        ("fluent", "MIT License"),
    ],
)
def test_each_archive_carries_its_own_licence_and_attribution(style, licence):
    with zipfile.ZipFile(emoji.archive_path(style)) as archive:
        texts = [archive.read(n).decode() for n in archive.namelist() if n.endswith(".txt")]
        assert any(licence in t for t in texts)
        assert any("https://" in t and "Changed:" in t for t in texts)
        assert archive.testzip() is None
        assert {i.date_time for i in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("style", emoji.STYLES)
def test_pictures_are_drawn(style):
    pictures = emoji.pictures(style)
    for p in pictures[::50]:
        image = read_image(p.path)
        assert image.size == (64, 64) and image.mode == "RGB"
        assert len(image.getcolors(64 * 64)) > 1, p.key  # not an empty box


def test_no_two_pictures_of_the_held_out_gallery_are_the_same():
    digests = Counter(hashlib.sha256(read_image(p.path).tobytes()).hexdigest() for p in emoji.pictures(emoji.HELD_OUT))
    assert max(digests.values()) == 1
    assert len(emoji.pictures(emoji.HELD_OUT, twins=True)) > sum(digests.values())


# -- concepts and splits -----------------------------------------------------------------------------------


def test_attributes_agree_with_the_code_points():
    tones = {
        "1f3fb": "light",
        "1f3fc": "medium-light",
        "1f3fd": "medium",
        "1f3fe": "medium-dark",
        "1f3ff": "dark",
    }
    hair = {"1f9b0": "red hair", "1f9b1": "curly hair", "1f9b2": "bald head", "1f9b3": "white hair"}
    seen = Counter()
    for p in emoji.pictures("noto", twins=True):
        codes, c = p.code.split("-"), p.concept
        assert [tones[x] for x in codes if x in tones] == ([p.tone] if p.tone else []), p.key
        if len(codes) > 1 and c.group == "people-body":
            for sign, gender in (("2640", "woman"), ("2642", "man")):
                if sign in codes:
                    assert c.gender == gender, c
                    seen[gender] += 1
        for code, word in hair.items():
            if code in codes:
                assert c.hair == word
                seen[word] += 1
        assert (c.facing == "right") == ("27a1" in codes and c.group == "people-body")
        assert ("facing right" in c.name) == (c.facing == "right")
    assert len(seen) == 6 and min(seen.values()) >= 18


def test_families_never_cross_a_split():
    split_of = {}
    for c in emoji.concepts():
        assert split_of.setdefault(c.family, c.split) == c.split, c
    by_name = {c.name: c for c in emoji.concepts()}
    for names in (
        ("firefighter", "man firefighter", "woman firefighter"),
        ("person running", "man running facing right"),
        ("person with crown", "princess", "prince"),
        ("mermaid", "merman"),
    ):
        assert len({by_name[n].family for n in names}) == 1, names


def test_classes_are_large_enough_in_the_held_out_style():
    train, _, test = read_splits(emoji.HELD_OUT)
    sizes = {
        n: (Counter(d.classname for d in train)[n], Counter(d.classname for d in test)[n]) for n in emoji.classnames()
    }
    assert len(sizes) >= 20
    assert all(a >= 16 and b >= 10 for a, b in sizes.values()), sizes
    assert not {tuple(code_points(d.impath)) for d in train} & {tuple(code_points(d.impath)) for d in test}


def test_class_names_are_distinct_and_name_every_kind():
    assert list(emoji.CLASS_NAMES) and len(set(emoji.CLASS_NAMES.values())) == len(emoji.CLASS_NAMES)
    assert set(emoji.CLASS_NAMES) == set(emoji.read_meta()["classes"])
    assert sorted(emoji.classnames()) == sorted(emoji.CLASS_NAMES.values())


def test_unknown_style_is_refused():
    with pytest.raises(ValueError, match="apple"):
        emoji.pictures("apple")


# -- registered datasets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name, style", NAMES.items())
def test_styles_share_classes_and_concepts(name, style):
    dataset, reference = build(name, shots=-1), build("Emoji", shots=-1)
    assert dataset.classnames == reference.classnames
    assert all(f"emoji-{style}-v1.zip::" in d.impath for d in dataset.test)
    here, there = ({tuple(code_points(d.impath)): d.label for d in s.test} for s in (dataset, reference))
    both = here.keys() & there.keys()
    assert len(both) >= 0.9 * len(there) and all(here[k] == there[k] for k in both)


def test_few_shot_draw_is_reproducible_and_balanced():
    one, again, other = build(seed=1), build(seed=1), build(seed=2)
    paths = [d.impath for d in one.train_x]
    assert paths == [d.impath for d in again.train_x] and paths != [d.impath for d in other.train_x]
    assert set(Counter(d.label for d in one.train_x).values()) == {16}
    assert len(set(paths)) == len(paths)


def test_base_and_new_halves():
    base, new, whole = (build(subsample=s) for s in ("base", "new", "all"))
    assert base.num_classes + new.num_classes == whole.num_classes == len(emoji.classnames())
    assert not set(base.classnames) & set(new.classnames)
    assert len(base.test) + len(new.test) == len(whole.test)
    assert min(d.label for d in new.test) == 0


# -- damaged archives --------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of the assets that a test may damage."""
    for file in emoji.ASSETS.iterdir():
        if "fluent" in file.name or "meta" in file.name:
            shutil.copy(file, tmp_path)
    monkeypatch.setattr(emoji, "ASSETS", tmp_path)
    caches = (emoji.read_meta, emoji.check_archive, emoji.concepts)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


def check_message(error, name):
    message = str(error.value)
    assert name in message and "git checkout" in message and "build_emoji.py" in message and "\n" not in message


def test_missing_archive(copied):
    emoji.archive_path("fluent").unlink()
    with pytest.raises(emoji.EmojiDataError, match="missing") as error:
        build()
    check_message(error, "emoji-fluent-v1.zip")


@pytest.mark.parametrize("damage", ["truncated", "one byte", "another file"])
def test_archive_with_other_bytes(copied, damage):
    path = emoji.archive_path("fluent")
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "truncated": data[:100_000],
            "one byte": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],  # same size and members
            "another file": b"x" * len(data),
        }[damage]
    )
    with pytest.raises(emoji.EmojiDataError, match="truncated, damaged or of another version") as error:
        build()
    check_message(error, "emoji-fluent-v1.zip")


@pytest.mark.parametrize("keep", [0, 1000])
def test_damaged_meta_file(copied, keep):
    path = copied / "emoji-meta-v1.json.xz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(emoji.EmojiDataError, match="damaged") as error:
        build()
    check_message(error, "emoji-meta-v1.json.xz")


def test_missing_meta_file(copied):
    (copied / "emoji-meta-v1.json.xz").unlink()
    with pytest.raises(emoji.EmojiDataError, match="missing"):
        build()


def test_other_version(copied, monkeypatch):
    monkeypatch.setattr(emoji, "VERSION", 2)
    (copied / "emoji-meta-v1.json.xz").rename(copied / "emoji-meta-v2.json.xz")
    with pytest.raises(emoji.EmojiDataError, match="version 1, this code reads version 2") as error:
        build()
    check_message(error, "emoji-meta-v2.json.xz")


def one_error(capsys, command, *argv):
    """What a command line that has to refuse prints to stderr."""
    with pytest.raises(SystemExit) as stop:
        command(list(argv))
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and error[-1].startswith("error: ") and "Traceback" not in "".join(error)
    return error[-1]


@pytest.mark.parametrize("what", ["--sheet", "--triplets", "--write"])
def test_the_command_tells_of_damage_in_one_line(copied, capsys, tmp_path_factory, what):
    (copied / "emoji-meta-v1.json.xz").write_bytes(b"x")
    error = one_error(capsys, emoji_command, what, str(tmp_path_factory.mktemp("out") / "it"))
    assert "emoji-meta-v1.json.xz is damaged" in error and "git checkout" in error


def test_the_command_tells_of_a_file_in_the_way(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert "taken" in one_error(capsys, emoji_command, "--sheet", str(tmp_path / "taken" / "sheet.png"))


def test_training_on_a_damaged_archive_tells_how_to_restore_it(copied, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # its ./output is not the user's
    path = emoji.archive_path("fluent")
    path.write_bytes(path.read_bytes()[:1000])
    files = [ROOT / "configs" / "datasets" / "emoji.yaml", ROOT / "configs" / "trainers" / "CoOp" / "open_tiny.yaml"]
    error = one_error(
        capsys,
        train_command,
        "--trainer",
        "CoOp",
        "--dataset-config-file",
        str(files[0]),
        "--config-file",
        str(files[1]),
    )
    assert "emoji-fluent-v1.zip is truncated, damaged" in error and "git checkout" in error
