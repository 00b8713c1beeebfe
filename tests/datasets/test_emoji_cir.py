"""The embedded composed-retrieval data as a dataset."""

from dassl_prompts.datasets.emoji_cir import EmojiCIR
from dassl_prompts.emoji.retrieval import emoji_cirr, emoji_laion_cir
from dassl_prompts.images import missing_images
from tests.datasets.test_cir import config


def test_triplets_and_queries(tmp_path):
    dataset = EmojiCIR(config(tmp_path))
    (task,) = dataset.tasks()
    task.check_images()
    assert len(dataset.train_x) == len(emoji_laion_cir()["triplets"])
    assert len(task.queries) == len(emoji_cirr()["captions"]) and task.remove_reference
    assert all(len(query.members) == 5 and query.target in query.members for query in task.queries)
    assert missing_images({path for t in dataset.train_x for path in (t.reference, t.target)}) == []


def test_nothing_of_the_evaluation_is_trained_on(tmp_path):
    dataset = EmojiCIR(config(tmp_path))
    (task,) = dataset.tasks()
    trained = {path for t in dataset.train_x for path in (t.reference, t.target)}
    assert not trained & set(task.gallery.values())


def test_captions_describe_training_pictures_in_the_seen_styles():
    from dassl_prompts.emoji import archives as emoji

    captions = EmojiCIR(None).captions()
    assert len(captions) == 4573
    seen = {
        emoji.caption(p) for style in ("noto", "twemoji", "openmoji") for p in emoji.pictures(style, splits=("train",))
    }
    assert set(captions) == seen
