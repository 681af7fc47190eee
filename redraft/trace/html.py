"""A trace as one page that needs nothing else: a slider over the steps, colours for what each step did and believed.

What tokens spell is data: it is stored with ``<``, ``>`` and ``&`` escaped, put on the page as text only, and the page
forbids all scripts but its own by their hash (Content-Security-Policy), and all connections.
"""

import base64
import hashlib
import html
import json
from importlib.resources import files
from pathlib import Path

from redraft.files import write_text
from redraft.pages import FOOT, HEAD
from redraft.trace.record import Record, visible
from redraft.trace.stored import to_dict

_PAGE = (
    HEAD
    + """<main id="player" hidden>
<p class="controls"><button id="play" type="button">Play</button>
<input id="at" type="range" min="0" value="0" aria-label="Step">
<label id="rows">Text <select id="row"></select></label>
<label>Colour <select id="by"><option value="mark">what the step did</option>
<option value="sure">confidence</option><option value="wrote">step written</option></select></label></p>
<p id="head" class="quiet"></p>
<p id="draft" class="draft"></p>
<p id="told" class="quiet" aria-live="polite">Point at a token, or tap it, to see what was said of it.</p>
<p id="legend" class="quiet"></p>
</main>
<noscript>{texts}
<p class="quiet">With JavaScript this page shows each step.</p>
</noscript>
<p id="cost" class="quiet">{cost}</p>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
"""
    + FOOT
)


def save_html(record: Record, path: Path) -> None:
    """Write the page. Errors: ``ValueError`` for a record without frames."""
    write_text(path, page(record))


def page(record: Record) -> str:
    """The page, as text."""
    rows = [row for row in record.rows.values() if row.frames]
    if not rows:
        raise ValueError("the trace has no frames: nothing was written, or it was not the callback of a draw")
    here = files("redraft.trace")
    style, script = ((here / name).read_text("utf-8") for name in ("page.css", "page.js"))
    finished = (record.joint.join(record.words(row.frames[-1])) for row in rows)
    return _PAGE.format(
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'",
        title=html.escape(record.title),
        style=style,
        texts="".join(f'\n<p class="draft">{html.escape(text)}</p>' for text in finished),
        cost=html.escape(record.summary(rows[0].number)),
        data=_escaped(_data(record)),
        script=script,
    )


def _data(record: Record) -> str:
    """The record as JSON in ASCII, with each frame's label, and where its positions were before if the length changed.

    Rows without frames are left out, and texts are as they are shown.
    """
    told = to_dict(record)
    shown = {token: record.gap if token == record.mask else text for token, text in told["texts"]}
    told["texts"] = [[token, visible(text)] for token, text in shown.items()]
    told["rows"] = [one for one in told["rows"] if one["frames"]]
    for one in told["rows"]:
        row = record.rows[one["number"]]
        one["summary"] = record.summary(row.number)
        lengths = [len(frame.ids) for frame in row.frames]
        lengths.insert(0, lengths[0] if row.before is None else len(row.before))
        for number, (frame, origin) in enumerate(zip(one["frames"], row.origins(), strict=True)):
            frame["label"] = row.frames[number].label
            if lengths[number] != lengths[number + 1]:
                frame["origin"] = origin
    return json.dumps(told, separators=(",", ":"), allow_nan=False)


def _escaped(written: str) -> str:
    """JSON that ends no element and begins none; in ASCII already, so that no line separator is in it either."""
    return written.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
