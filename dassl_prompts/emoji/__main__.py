"""Look at the embedded emoji data (docs/emoji.md).

python -m dassl_prompts.emoji --sheet sheet.png        classes x styles
python -m dassl_prompts.emoji --triplets triplets.png  composed-retrieval queries
python -m dassl_prompts.emoji --cards                  the tables of docs/emoji.md, measured now
python -m dassl_prompts.emoji --write DIR              retrieval annotations as files
python -m dassl_prompts.emoji --export DIR             class folders and CoOp split files of the four styles
"""

from __future__ import annotations

import argparse

from dassl_prompts.engine.ending import tell

EPILOG = "exit codes: 0 done, 2 wrong input, or the embedded data is missing or damaged"


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m dassl_prompts.emoji", description="The embedded emoji data.", epilog=EPILOG
    )
    p.add_argument("--sheet", metavar="PNG", help="draw classes x styles with captions")
    p.add_argument("--triplets", metavar="PNG", help="draw composed-retrieval triplets")
    p.add_argument("--cards", action="store_true", help="print the tables of docs/emoji.md")
    p.add_argument("--write", metavar="DIR", help="write the retrieval annotations below DIR")
    p.add_argument("--export", metavar="DIR", help="write the classes as folders of images with CoOp's split file")
    return p


def main(argv=None):
    p = parser()
    args = p.parse_args(argv)
    if not any(vars(args).values()):
        p.error("say what to do: --sheet, --triplets, --cards, --write or --export")
    try:
        work(args)
    except (Exception, KeyboardInterrupt) as error:
        raise SystemExit(tell(error)) from error


def work(args):
    if args.sheet or args.triplets:
        from dassl_prompts.emoji import sheets as emoji_sheets

        for path, draw in (
            (args.sheet, emoji_sheets.draw_classes),
            (args.triplets, emoji_sheets.draw_triplets),
        ):
            if path:
                draw(path)
                print(f"wrote {path}")
    if args.write:
        from dassl_prompts.emoji.retrieval import write_annotations

        for path in write_annotations(args.write):
            print(f"wrote {path}")
    if args.export:
        from dassl_prompts.emoji.export import export

        for path in export(args.export):
            print(f"wrote {path}")
    if args.cards:
        from dassl_prompts.emoji.cards import print_cards

        print_cards()


if __name__ == "__main__":
    main()
