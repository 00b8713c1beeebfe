"""Negative captions: swaps of whole names only, never the positive, reproducible."""

import random

import pytest
import torch

from dassl_prompts.captions.negatives import (
    NegativeGenerator,
    given_negatives,
    swap_attribute,
    swap_class,
    swap_table_meta,
    swap_table_similar,
    swap_table_uniform,
)

NAMES = ["red fox", "owl", "F-16A/B", "737-600"]
CAPTIONS = [
    "A red fox runs.",
    "An owl sits. The OWL sleeps.",
    "An owl flies.",
    "A Red_Fox and a blue wall.",
    "A photo.",
]
LABELS = [0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("caption", "name", "other", "expected"),
    [
        ("An owl sits. The OWL sleeps.", "owl", "red_fox", "A red fox sits. The red fox sleeps."),
        ("A Red_Fox and a blue wall.", "red fox", "owl", "An owl and a blue wall."),
        ("The F-16A/B lands.", "F-16A/B", "737-600", "The 737-600 lands."),
        ("air737-600 and 737-600", "737-600", "owl", "air737-600 and owl"),
        ("An owlet.", "owl", "bear", "An owlet."),
    ],
)
def test_swap_replaces_whole_names(caption, name, other, expected):
    assert swap_class(caption, name, other) == expected


def test_attribute_words_change_within_their_row():
    out = {swap_attribute("Two red foxes.", random.Random(seed)) for seed in range(40)}
    assert "Two red foxes." not in out
    assert all(o.endswith(" red foxes.") or o.startswith("Two ") for o in out)
    assert swap_attribute("A fox.", random.Random(0)) == "A fox."


def test_swap_tables():
    assert swap_table_uniform(3) == [[1, 2], [0, 2], [0, 1]]
    features = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=1)
    assert swap_table_similar(features, k=1) == [[1], [0], [1]]
    equal = torch.ones(1000, 3)  # equal names: the first of the others, whatever k
    assert [swap_table_similar(equal, k)[5] for k in (1, 7, 10)] == [
        [0],
        [0, 1, 2, 3, 4, 6, 7],
        [*range(5), *range(6, 11)],
    ]
    assert swap_table_similar(features[:1]) == [[]]
    assert swap_table_meta(["a", "b", "c", "d"], dict(a=1, b=2, c=1, d=2)) == [[2], [3], [0], [1]]


def test_generator_mixes_kinds_and_never_repeats_the_positive():
    make = NegativeGenerator(NAMES, swap_table_uniform(4), CAPTIONS, LABELS, n_negatives=4, n_attr=1, seed=3)
    negatives = make(1)
    assert make(1) == negatives
    assert [label for _, label in negatives].count(1) == 1 and len({text for text, _ in negatives}) == 4
    assert all(text != CAPTIONS[1] for text, _ in negatives)
    own = [text for text, label in negatives if label == 1]
    assert own[0] in (CAPTIONS[2], CAPTIONS[4])


def test_generator_without_class_name_uses_other_captions():
    make = NegativeGenerator(NAMES, swap_table_uniform(4), CAPTIONS, LABELS, n_negatives=4, n_attr=1)
    assert sorted(make(4)) == sorted([(CAPTIONS[1], 1), (CAPTIONS[2], 1)])


def test_more_attributes_than_negatives_is_refused():
    with pytest.raises(ValueError, match="N_ATTR is 5"):
        NegativeGenerator(NAMES, swap_table_uniform(4), CAPTIONS, LABELS, n_negatives=4, n_attr=5)


def test_given_negatives_know_their_class():
    given = [
        "A photo of owl.",
        "A photo of red fox.",
        "A photo of 737-600.",
        "A photo of owl.",
        "A dark photo of red fox.",
    ]
    assert given_negatives("A photo of red fox.", given, 0, NAMES) == [
        ("A photo of owl.", 1),
        ("A photo of 737-600.", 3),
        ("A dark photo of red fox.", 0),
    ]
