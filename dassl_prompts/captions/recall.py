"""``python -m dassl_prompts.captions.recall FEATURES.npz``: recall both ways of features that any program
computed.

The file holds ``image [N, E]`` and ``text [M, E]`` and, optionally, ``image_of_text [M]`` (default: caption i
belongs to image i), ``captions [M]`` strings and ``labels [N]``.
"""

from __future__ import annotations

import argparse
import json

from dassl_prompts.captions.evaluation import evaluate, load_features
from dassl_prompts.engine.ending import tell


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m dassl_prompts.captions.recall", description=__doc__)
    p.add_argument(
        "features",
        help=(".npz file of plain arrays, such as features_test.npz of a run with TEST.RETRIEVAL.SAVE_FEATURES"),
    )
    p.add_argument("--text-equal", action="store_true", help="also count every caption with the same text as right")
    p.add_argument("--per-class", action="store_true", help="also R@1 per class (needs labels)")
    p.add_argument("--json", action="store_true", help="print the results as JSON too")
    args = p.parse_args(argv)
    try:
        gallery = load_features(args.features)
        if args.per_class and gallery.labels is None:
            raise ValueError(f"{args.features} has no labels: --per-class needs them")
        results = evaluate(gallery, text_equal=args.text_equal, class_names={} if args.per_class else None)
    except (Exception, KeyboardInterrupt) as error:
        return tell(error)
    if args.json:
        print(json.dumps(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
