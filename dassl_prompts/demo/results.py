"""Tables and plots of an output folder as HTML, from what ``dassl-prompts report`` makes."""

from __future__ import annotations

import tempfile
from html import escape
from pathlib import Path

from dassl_prompts.demo.pieces import drawing
from dassl_prompts.results.groups import group
from dassl_prompts.results.notes import sections
from dassl_prompts.results.runs import find_runs
from dassl_prompts.results.tables import Table, tables


def results_html(output: Path) -> str:
    """Everything that the runs below a folder have to say.

    Raises:
        FileNotFoundError: no such folder. ValueError: no finished run in it.
    """
    from dassl_prompts.report.plots import draw_all

    runs, unfinished = find_runs(output)
    if not runs:
        raise ValueError(f"no finished run below {output}")
    methods = group(runs, [])
    text = "".join(map(table_html, tables(methods)))
    with tempfile.TemporaryDirectory() as folder:
        for path in draw_all(methods, Path(folder)):
            text += drawing(path.read_bytes(), path.stem.replace("_", " "))
    for heading, lines in sections(methods, runs, unfinished, None).items():
        items = "".join(f"<li>{escape(line)}</li>" for line in lines)
        text += f"<h3>{escape(heading)}</h3><ul>{items}</ul>"
    return f'<div class="results">{text}</div>'


def table_html(table: Table) -> str:
    """One table; the first column heads its rows."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell or chr(8211))}</td>' for cell in row)}</tr>" for row in table.rows)
    notes = "".join(f"<p>published: {escape(source)}</p>" for source in table.sources)
    return (
        f'<h2>{escape(table.title)}</h2><div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{notes}"
    )
