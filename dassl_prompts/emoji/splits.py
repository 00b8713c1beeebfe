"""The emoji classes of one style as training, validation and test lists."""

from __future__ import annotations

from dassl_prompts.classification.split_files import Splits
from dassl_prompts.emoji import archives as emoji
from dassl_prompts.engine import Datum


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
