"""Markdown pages of measured tables: what is measured is replaced, what was written by hand beside it stays.

The measured part stands between ``<!-- begin: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
from pathlib import Path

from dassl_prompts.engine.files import atomic_path

END = "<!-- end -->"


def begin(name: str) -> str:
    return f"<!-- begin: {name} -->"


def replace_part(page: str, name: str, text: str) -> str | None:
    """``page`` with the part called ``name`` replaced; None when the page has no marked parts.

    Raises:
        ValueError: the page marks other parts only, or this one twice or without an end.
    """
    names = re.findall(r"<!-- begin: (.*?) -->", page)
    if not names:
        return None
    before, marker, rest = page.partition(begin(name))
    if not marker:
        raise ValueError(
            f"it has no {begin(name)}, only {', '.join(map(begin, names))}: add the markers, or name another file"
        )
    if names.count(name) > 1:
        raise ValueError(f"{begin(name)} occurs {names.count(name)} times")
    part, end, after = rest.partition(END)
    if not end or "<!-- begin:" in part:
        raise ValueError(f"{begin(name)} has no {END}")
    return f"{before}{marker}\n{text.strip()}\n{end}{after}"


def write_page(path: Path, name: str, title: str, command: str, text: str) -> None:
    """Write a table with the command that made it; a page with markers keeps everything outside them.

    Args:
        name: of the marked part. title: heading of a new page. command: what to run for the same table.
        text: Markdown of the table, with what is to be said about it.

    Raises:
        ValueError: the markers of the page do not fit; names the page.
    """
    part = f"```\n{command}\n```\n\n{text.strip()}"
    page = None
    if path.is_file():
        try:
            page = replace_part(path.read_text(encoding="utf-8"), name, part)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    if page is None:
        page = f"# {title}\n\n{begin(name)}\n{part}\n{END}\n"
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
