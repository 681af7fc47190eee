"""The page: one file of HTML that needs nothing else and runs nothing.

What records say is data: it is put on the page escaped, and the page forbids all scripts, forms and connections
(Content-Security-Policy). Equal records make equal bytes.
"""

import html
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from redraft.files import write_text
from redraft.pages import FOOT, HEAD
from redraft.reporting.found import Found, collect
from redraft.reporting.parts import Part, Picture, Table, cut, words
from redraft.reporting.sections import SECTIONS

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Pictures carry styles of their own, by attribute."""
_PAGE = HEAD + "{body}\n" + FOOT
_NAMED = re.compile(r"""\b(id="|href="#|url\(#)""")


def report(folder: str | Path, out: str | Path | None = None) -> Path:
    """Render the records below ``folder`` into one page, ``report.html`` in it unless given; its path.

    Errors: ``ValueError``, see ``collect``; for a frontier that is damaged, and without matplotlib for one to draw.
    """
    folder = Path(folder)
    written = page(folder)
    out = folder / "report.html" if out is None else Path(out)
    if out.is_dir():
        raise ValueError(f"{out} is a folder: name a file for the page")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, written)
    return out


def page(folder: Path) -> str:
    """The page as text."""
    found, remarks = collect(folder)
    body = [f'<p class="quiet">{len(found)} records. Numbers behind rows say how each was made.</p>']
    for title, (make, told) in SECTIONS.items():
        if parts := make(found):
            body.append(f"<h2>{title}</h2>\n<p>{_text(told)}</p>")
            body += [_part(part, f"p{len(body)}-{i}") for i, part in enumerate(parts)]
    body.append("<h2>How each was made</h2>")
    body.append(_made(found))
    body += [f'<p class="quiet">{_text(remark)}</p>' for remark in remarks]
    style = (files("redraft.reporting") / "page.css").read_text("utf-8")
    title = f"Records of {folder.resolve().name}"
    return _PAGE.format(policy=POLICY, title=_text(title), style=style, body="\n".join(body))


def _part(part: Part, name: str) -> str:
    if isinstance(part, str):
        return f"<p>{_text(part)}</p>"
    if isinstance(part, Picture):
        # pictures name their pieces, and several stand on one page
        drawn = _NAMED.sub(lambda found: f"{found[1]}{name}-", part.svg)
        return f"<figure>\n{drawn}\n<figcaption>{_text(part.caption)}</figcaption>\n</figure>"
    return _table(part)


def _table(table: Table) -> str:
    rows = [
        _row("td", map(_text, row), f'<a href="#made-{i}">{i}</a>')
        for row, i in zip(table.rows, table.numbers, strict=True)
    ]
    head = _row("th", map(_text, table.columns), "")
    return _wide(table.caption, [head, *rows])


def _made(found: Sequence[Found]) -> str:
    """How to repeat each record, and on what it was measured."""
    rows = [_row("th", ("", "kind", "file", "command", "seeds", "commit", "date", "machine"))]
    for one in found:
        command = one.made.get("command")
        told = (one.made.get(name) for name in ("seeds", "commit", "date", "machine"))
        cells = [
            f'<span id="made-{one.number}">{one.number}</span>',
            _text(one.kind),
            f"<code>{_text(one.name)}</code>",
        ]
        cells.append("not told" if command is None else f"<code>{_text(str(command))}</code>")
        rows.append(_row("td", [*cells, *(_text(words(value)) for value in told)]))
    return _wide("", rows)


def _row(cell: str, cells: Iterable[str], *more: str) -> str:
    """A row of cells that are HTML already."""
    return "<tr>" + "".join(f"<{cell}>{one}</{cell}>" for one in (*cells, *more)) + "</tr>"


def _wide(caption: str, rows: Sequence[str]) -> str:
    told = f"<caption>{_text(caption)}</caption>\n" if caption else ""
    return f'<div class="wide"><table>\n{told}' + "\n".join(rows) + "\n</table></div>"


def _text(value: str) -> str:
    """Escaped, and without characters that no page may hold."""
    return html.escape("".join(one if one.isprintable() else " " for one in cut(value)))
