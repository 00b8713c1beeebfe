"""``python -m dassl_prompts.search``: composed search over a folder of pictures; the work is in composed/search.py."""

from dassl_prompts.composed.search import main, parser

__all__ = ["main", "parser"]

if __name__ == "__main__":
    raise SystemExit(main())
