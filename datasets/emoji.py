"""Embedded data `emoji`: the same concepts drawn by four artists (docs/emoji.md). No download, no
DATASET.ROOT.

python -m dassl_prompts.datasets.emoji --sheet sheet.png        classes x styles python -m
dassl_prompts.datasets.emoji --triplets triplets.png  composed-retrieval queries python -m
dassl_prompts.datasets.emoji --cards                  the tables of docs/emoji.md, measured now python -m
dassl_prompts.datasets.emoji --write DIR              retrieval annotations as files (FDRD, CIRR, Laion-CIR)
"""

from __future__ import annotations

import argparse

from dassl_prompts.data import emoji
from dassl_prompts.data.splits import Splits, few_shot, subsample_classes
from dassl_prompts.engine import DatasetBase, Datum, register_dataset


def read_splits(style: str) -> Splits:
    """Default (untoned) pictures of the concepts that belong to a class; concept families never cross a
    split.
    """
    label = {name: i for i, name in enumerate(emoji.classnames())}
    return Splits(
        *(
            [
                Datum(impath=p.path, label=label[p.concept.classname], classname=p.concept.classname)
                for p in emoji.pictures(style, splits=(split,), tones=False)
                if p.concept.classname
            ]
            for split in Splits._fields
        )
    )


@register_dataset
class Emoji(DatasetBase):
    """35 classes of emoji in the style that the embedded backbones have not seen (Fluent).

    Raises:
        EmojiDataError: an archive is missing, damaged or of another version; says how to restore it.
    """

    style = emoji.HELD_OUT

    def __init__(self, cfg):
        train, val, test = read_splits(self.style)
        train, val = few_shot(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED, emoji.ASSETS)
        subsample = cfg.DATASET.get("SUBSAMPLE_CLASSES", "all")
        train, val, test = subsample_classes(train, val, test, subsample=subsample)
        super().__init__(train_x=train, val=val or None, test=test)


@register_dataset
class EmojiNoto(Emoji):
    """The same classes and concepts drawn by Google: a target of domain generalisation."""

    style = "noto"


@register_dataset
class EmojiTwemoji(Emoji):
    """The same classes and concepts drawn by Twitter: a target of domain generalisation."""

    style = "twemoji"


@register_dataset
class EmojiOpenMoji(Emoji):
    """The same classes and concepts drawn by OpenMoji: a target of domain generalisation."""

    style = "openmoji"


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m dassl_prompts.datasets.emoji", description="The embedded emoji data."
    )
    parser.add_argument("--sheet", metavar="PNG", help="draw classes x styles with captions")
    parser.add_argument("--triplets", metavar="PNG", help="draw composed-retrieval triplets")
    parser.add_argument("--cards", action="store_true", help="print the tables of docs/emoji.md")
    parser.add_argument("--write", metavar="DIR", help="write the retrieval annotations below DIR")
    args = parser.parse_args(argv)
    if not any(vars(args).values()):
        parser.error("say what to do: --sheet, --triplets, --cards or --write")
    if args.sheet or args.triplets:
        from dassl_prompts.data import emoji_sheets

        for path, draw in (
            (args.sheet, emoji_sheets.draw_classes),
            (args.triplets, emoji_sheets.draw_triplets),
        ):
            if path:
                draw(path)
                print(f"wrote {path}")
    if args.write:
        from dassl_prompts.datasets.emoji_retrieval import write_annotations

        for path in write_annotations(args.write):
            print(f"wrote {path}")
    if args.cards:
        from dassl_prompts.data.emoji_cards import print_cards

        print_cards()


if __name__ == "__main__":
    main()
