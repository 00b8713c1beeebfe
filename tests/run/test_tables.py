"""Tables of studies: rows over seeds, deviations, paired differences, text that looks like a number."""

import pytest

from dassl_prompts.run.tables import mean_over_seeds, over_sets, paired_differences, study_text, table

ROWS = [
    {"variant": name, "seed": seed, "Base": base, "New": new, "HM": 0.0}
    for name, seed, base, new in (
        ("full", 1, 80.0, 60.0),
        ("full", 2, 60.0, 20.0),
        ("floor", 2, 58.0, 21.0),
        ("floor", 1, 79.0, 58.0),
        ("late", 3, 1.0, 1.0),
    )
]


def lines(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]


def test_means_have_deviations_and_hm_of_the_means():
    full, floor, late = mean_over_seeds(ROWS, "variant")
    assert (full["variant"], full["seeds"], str(full["Base"])) == ("full", 2, "70.00 ± 14.14")
    assert full["HM"].mean == pytest.approx(2 * 70 * 40 / 110) and str(late["HM"]) == "1.00"
    assert [list(row) for row in (full, floor)] == [["variant", "seeds", "Base", "New", "HM"]] * 2


def test_rows_of_two_variants_are_never_taken_for_seeds():
    with pytest.raises(ValueError, match=r"repeat a seed: \[1, 1\]"):
        mean_over_seeds([{"variant": "a", "seed": 1, "x": 1.0}, {"variant": "a", "seed": 1, "x": 2.0}], "variant")


def test_differences_are_of_paired_seeds():
    floor, late = paired_differences(ROWS, "variant", "full")
    assert (floor["seeds"], str(floor["Base"]), str(floor["New"])) == (2, "-1.50 ± 0.71", "-0.50 ± 2.12")
    assert floor["HM"].mean == pytest.approx(2 * 68.5 * 39.5 / 108 - 2 * 70 * 40 / 110)
    assert late == {"variant": "late", "seeds": 0, "Base": None, "New": None, "HM": None}
    with pytest.raises(ValueError, match="no row has variant 'none'"):
        paired_differences(ROWS, "variant", "none")


def test_the_text_of_a_study_says_what_its_numbers_are():
    text = study_text(ROWS, "variant", "full")
    assert text.startswith("Mean ± standard deviation over the seeds, HM of the means.")
    assert 'Difference to "full", seed by seed (mean ± standard deviation of the differences):' in text
    one = study_text([row for row in ROWS if row["seed"] == 1], "variant", "full")
    assert one.startswith("One seed: there is no spread to judge by, HM of the means.") and "±" not in one
    assert ["floor", "1", "-1.00", "-2.00", "-1.68"] in lines(one)


@pytest.mark.parametrize("word", ["83.10", "1234e56", "007", "1e5", "inf", "0x10", "1_000"])
def test_words_that_look_like_numbers_stay_words(word):
    assert lines(table([{"class": word, "accuracy": 83.1}]))[-1] == [word, "83.10"]


def test_sets_are_averaged_seed_by_seed_and_hm_is_that_of_the_averages():
    rows = [
        {"dataset": name, "seed": seed, "row": "a", "Base": base + seed, "New": 50.0, "HM": 1.0, "HM in all": 2.0}
        | {"Base in all": base, "New in all": 20.0}
        for name, base in (("one", 40.0), ("two", 80.0))
        for seed in (1, 2)
    ]
    first, second = over_sets(rows, "row")
    assert (first["seed"], first["row"], first["Base"], first["New"]) == (1, "a", 61.0, 50.0)
    assert first["HM"] == pytest.approx(2 * 61 * 50 / 111) and second["HM"] == pytest.approx(2 * 62 * 50 / 112)
    assert first["HM in all"] == pytest.approx(2 * 60 * 20 / 80)
    assert mean_over_seeds([first, second], "row")[0]["Base"].mean == 61.5
