"""Captions and composed queries of the embedded emoji data, checked against code points and pixels."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from dassl_prompts.emoji import archives as emoji
from dassl_prompts.emoji.__main__ import main
from dassl_prompts.emoji.retrieval import emoji_cirr, emoji_fdrd, emoji_laion_cir
from dassl_prompts.images import read_image

TONES = {
    "1f3fb": "light",
    "1f3fc": "medium-light",
    "1f3fd": "medium",
    "1f3fe": "medium-dark",
    "1f3ff": "dark",
}

DIGESTS = ["fc0366234d31", "09fc5295fdf3", "2252bd7c60cc", "0b623b79ba4a", "0891ab083623", "b53083f37f97"]


def codes(key):
    return key.split("-")[1:]


def tone(key):
    return next((TONES[c] for c in codes(key) if c in TONES), None)


def untoned(key):
    return [c for c in codes(key) if c not in TONES]


@pytest.fixture(scope="module")
def cirr():
    return emoji_cirr()


@pytest.fixture(scope="module")
def kinds(cirr):
    return {e["pairid"]: e["caption_extend"]["0"] for e in cirr["captions_ext"]}


# -- FDRD format -------------------------------------------------------------------------------------------


def test_fdrd_records_have_the_fields_of_the_format():
    records = emoji_fdrd("test")
    assert len(records) >= 1000
    for key, r in records.items():
        assert r["file_name"] == key and isinstance(r["positive"], str) and r["class_name"] in r["positive"]
        assert len(r["negative"]) == len(set(r["negative"])) == 4 and r["positive"] not in r["negative"]
    assert len({r["positive"] for r in records.values()}) == len(records)  # every picture has a right answer of its own
    json.dumps(records)


def test_fdrd_caption_states_tone_and_attributes():
    for key, r in emoji_fdrd("test").items():
        said = [t for t in TONES.values() if f"with {t} skin tone" in r["positive"]]
        assert said == ([tone(key)] if tone(key) else [])
        assert r["attributes"].get("tone") == tone(key)
        assert all(word in r["positive"] for word in r["attributes"].get("colours", ()))
        assert r["attributes"]["concept"] in r["positive"]
        if "2640" in codes(key) and len(codes(key)) > 1:
            assert r["attributes"]["gender"] == "woman"


def test_fdrd_negatives_swap_category_then_attributes():
    other_tone = 0
    for r in emoji_fdrd("test").values():
        opening = r["positive"].partition(":")[0] + ":"
        same = [n.startswith(opening) for n in r["negative"]]
        assert same in ([False, False, True, True], [False, False, False, True]), r
        other_tone += "tone" in r["attributes"] and f"{r['attributes']['tone']} skin" not in r["negative"][2]
    assert other_tone > 500


def test_fdrd_splits_share_no_concept_family():
    family = {c.id: c.family for c in emoji.concepts()} | {
        t: c.family for c in emoji.concepts() for t in c.tones.values()
    }
    seen = [{family["-".join(codes(k))] for k in emoji_fdrd(split)} for split in ("train", "val", "test")]
    assert not seen[0] & seen[2] and not seen[0] & seen[1] and not seen[1] & seen[2]


def test_fdrd_is_deterministic_and_reads_other_styles():
    assert emoji_fdrd("val") == emoji_fdrd("val")
    records = emoji_fdrd("val", style="openmoji")
    assert all("outlined style" in r["positive"] and "openmoji" in r["file_path"] for r in records.values())


def test_measured_colours_are_right_where_the_name_tells():
    checked = 0
    for c in emoji.concepts():
        if c.name.startswith(("red ", "blue ", "green ", "purple ")) and ("heart" in c.name or "circle" in c.name):
            checked += 1
            assert all(c.colours[style][0] == c.name.split()[0] for style in emoji.STYLES), c
    assert checked >= 8


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="'dev'"):
        emoji_fdrd("dev")
    with pytest.raises(ValueError, match="'test1'"):
        emoji_cirr("test1")


def test_annotations_are_those_that_the_tables_were_measured_on(cirr):
    """The same on every machine; who changes them on purpose measures the pages' tables again."""
    fdrd = {f"{s} {k}": {**r, "file_path": ""} for s in ("train", "val", "test") for k, r in emoji_fdrd(s).items()}
    laion = emoji_laion_cir()
    parts = (
        fdrd,
        cirr["captions"],
        cirr["captions_ext"],
        list(cirr["image_splits"]),
        laion["triplets"],
        list(laion["images"]),
    )
    assert [hashlib.sha256(json.dumps(part).encode()).hexdigest()[:12] for part in parts] == DIGESTS


# -- composed queries --------------------------------------------------------------------------------------


def test_cirr_entries_are_consistent(cirr):
    gallery = cirr["image_splits"]
    assert len(cirr["captions"]) >= 1000 and len(gallery) >= 1000
    assert [q["pairid"] for q in cirr["captions"]] == [q["pairid"] for q in cirr["captions_ext"]]
    assert len({q["pairid"] for q in cirr["captions"]}) == len(cirr["captions"])
    for q in cirr["captions"]:
        members = q["img_set"]["members"]
        assert len(set(members)) == 6 and set(members) <= gallery.keys()
        assert members[q["img_set"]["reference_rank"]] == q["reference"] != q["target_hard"]
        assert members[q["img_set"]["target_rank"]] == q["target_hard"]
        assert q["caption"].strip() and q["target_soft"] == {q["target_hard"]: 1.0}
        assert q["target_hard"].startswith("fluent-")


def test_cirr_reference_and_target_are_different_pictures(cirr):
    for q in cirr["captions"][::7]:
        one, two = (np.asarray(read_image(cirr["image_splits"][q[k]])) for k in ("reference", "target_hard"))
        assert not np.array_equal(one, two), q


def test_cirr_changes_are_what_the_text_says(cirr, kinds):
    count = Counter(kinds.values())
    assert count.keys() == {"style", "tone", "gender", "hair", "facing", "colour", "concept", "compound"}
    by_code = {c.id: c for c in emoji.concepts()} | {t: c for c in emoji.concepts() for t in c.tones.values()}
    for q in cirr["captions"]:
        kind, ref, tgt = kinds[q["pairid"]], q["reference"], q["target_hard"]
        before, after = by_code["-".join(codes(ref))], by_code["-".join(codes(tgt))]
        if kind == "style":
            assert codes(ref) == codes(tgt) and ref.split("-")[0] == "openmoji"
        if kind == "tone":
            assert untoned(ref) == untoned(tgt) and tone(ref) != tone(tgt)
            words = tone(tgt)
            assert words is None or (words in q["caption"] and ("medium" in q["caption"]) == ("medium" in words))
        if kind in ("gender", "hair", "facing"):
            assert tone(ref) == tone(tgt)
            assert getattr(before, kind) != getattr(after, kind)
            assert all(getattr(before, k) == getattr(after, k) for k in ("gender", "hair", "facing") if k != kind)
        if kind == "hair":
            assert after.hair in q["caption"]
        if kind == "concept":
            assert before.subgroup == after.subgroup and after.name in q["caption"]
        if kind == "colour":
            words = [set(c.name.split()) for c in (before, after)]
            assert len(words[0] ^ words[1]) == 2 and not tone(ref) and not tone(tgt)
            assert (words[1] - words[0]).pop() in q["caption"]
        if kind == "compound":
            assert before.gender != after.gender and tone(ref) != tone(tgt) and tone(tgt) in q["caption"]


def test_laion_triplets_use_only_seen_styles_and_training_concepts(cirr):
    data = emoji_laion_cir()
    by_code = {c.id: c for c in emoji.concepts()} | {t: c for c in emoji.concepts() for t in c.tones.values()}
    asked = {by_code["-".join(codes(q[k]))].family for q in cirr["captions"] for k in ("reference", "target_hard")}
    for t in data["triplets"]:
        assert t.keys() == {"ref_image_id", "relative_cap", "tgt_image_id"} and t["relative_cap"]
        assert t["ref_image_id"] != t["tgt_image_id"]
    assert data["images"].keys() == {t[k] for t in data["triplets"] for k in ("ref_image_id", "tgt_image_id")}
    for key in data["images"]:
        concept = by_code["-".join(codes(key))]
        assert not key.startswith("fluent-") and concept.split == "train" and concept.family not in asked


def test_annotations_can_be_written_and_are_the_same(tmp_path, cirr, capsys):
    main(["--write", str(tmp_path)])
    assert json.loads((tmp_path / "cirr/captions/cap.rc2.val.json").read_text()) == cirr["captions"]
    assert json.loads((tmp_path / "FDRD/test/emoji_test.json").read_text()) == emoji_fdrd("test")
    assert "laion_template_info.json" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.tmp"))


def test_contact_sheets(tmp_path):
    main(["--sheet", str(tmp_path / "a" / "sheet.png"), "--triplets", str(tmp_path / "triplets.png")])
    for name in ("a/sheet.png", "triplets.png"):
        assert np.asarray(read_image(tmp_path / name)).std() > 10


def test_nothing_to_do_is_an_error(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--sheet" in capsys.readouterr().err
