"""Pieces of the page as HTML; every text that is not ours is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from dassl_prompts.demo.service import Service, png


def address(name: str, side: int = 128) -> str:
    """Where a picture is served."""
    return f"/image?path={quote(name, safe='')}&size={side}"


def status(line: str, wrong: bool = False) -> str:
    """A line that screen readers say when it changes."""
    return f'<p class="{"wrong" if wrong else "told"}" role="{"alert" if wrong else "status"}">{escape(line)}</p>'


def reference(name: str, sent: bool) -> str:
    """The picture that is asked about."""
    if not name:
        return '<p class="told">No reference picture.</p>'
    said = "the picture that was sent" if sent else name
    return (
        f'<figure class="reference"><img src="{escape(address(name, 256))}" alt="reference: {escape(said)}">'
        f"<figcaption>{escape(said)}</figcaption></figure>"
    )


def button(name: str, said: str, shown: str, right: bool = False, text: str = "") -> str:
    """A picture that can be chosen; ``said`` to those who do not see it, ``shown`` below it, ``text``: a change to ask for."""
    return (
        f'<button type="button" class="hit{" right" if right else ""}" data-path="{escape(name)}" data-text="{escape(text)}" '
        f'title="{escape(name)}" '
        f'aria-label="{escape(said)}"><img loading="lazy" src="{escape(address(name))}" alt=""><span>{escape(shown)}</span></button>'
    )


def starts(service: Service, count: int, changes: bool = True) -> str:
    """Pictures to begin with: of questions whose answers are known, else spread over the index.

    Args:
        changes: say with each a change whose answer is known.
    """
    table = service.answerer.index.table
    known = list(dict.fromkeys(image for image, _ in service.targets))
    if known:
        names = known[:: max(1, len(known) // count)][:count]
    else:
        rows = [row for row in range(0, len(table), max(1, len(table) // count)) if row not in table.unreadable]
        names = [table.shown(row) for row in rows[:count]]
    told = {image: text for image, text in reversed(service.targets)} if changes else {}
    cells = "".join(
        button(
            name,
            f"choose {name} {told.get(name, '')}".rstrip(),
            told.get(name, Path(name).stem),
            text=told.get(name, ""),
        )
        for name in names
    )
    hint = " and a change to ask for" if told else ""
    return f'<section class="column"><h2>Pictures to start from{hint}</h2><div class="grid">{cells}</div></section>'


def columns(found: Sequence[tuple[str, list[dict[str, Any]] | None]], right: Sequence[str]) -> str:
    """The columns of an answer; one that the question does not allow says so."""
    parts = []
    for title, rows in found:
        if rows is None:
            body = '<p class="told">needs more than was given</p>'
        else:
            body = '<div class="grid">' + "".join(hit(row, row["path"] in right) for row in rows) + "</div>"
        parts.append(f'<section class="column"><h2>{escape(title)}</h2>{body}</section>')
    return f'<div class="columns">{"".join(parts)}</div>'


def hit(row: dict[str, Any], right: bool) -> str:
    mark = "right answer, " if right else ""
    said = f"{row['rank']}: {mark}{row['path']}, score {row['score']:.3f}; ask about it"
    return button(row["path"], said, f"{row['rank']}. {row['score']:.3f}{' ✓' if right else ''}", right)


def bars(found: dict[str, Any]) -> str:
    """The likeliest classes of every view as bars, and the words of sentences with their weights."""
    parts = []
    for view, rows in found["answers"].items():
        lines = "".join(
            f'<tr><th scope="row">{escape(row["label"])}</th><td><span class="bar" style="width:{100 * row["score"]:.1f}%">'
            f"</span></td><td>{100 * row['score']:.1f}%</td></tr>"
            for row in rows
        )
        parts.append(f'<section class="column"><h2>{escape(view)}</h2><table class="bars">{lines}</table></section>')
    text = f'<div class="columns">{"".join(parts)}</div>'
    for row in found["words"] or ():
        most = max((word["weight"] for word in row["words"]), default=1) or 1
        words = " ".join(
            f'<span class="word" style="--share:{word["weight"] / most:.3f}">{escape(word["word"])} '
            f"<small>{word['weight']:.2f}</small></span>"
            for word in row["words"]
        )
        text += f'<p class="words" title="{escape(row["sentence"])}">{words}</p>'
    return text


def sheet(picture: Image.Image | None) -> str:
    """What attribute prompts looked at."""
    if picture is None:
        return ""
    return f'<h2 class="sheet">What the attribute prompts looked at</h2>{drawing(png(picture), "attributes")}'


def drawing(content: bytes, said: str) -> str:
    """A PNG inside the page."""
    return f'<img class="plot" alt="{escape(said)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'
