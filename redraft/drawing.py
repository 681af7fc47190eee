"""The one way plots are drawn: one style, the same bytes for the same figures, ``.png`` and ``.svg`` side by side."""

import io
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from redraft.files import write

Draw = Callable[[Any], None]
"""What is given a matplotlib ``Figure`` and draws on it."""
_STYLE: dict[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "svg.hashsalt": "redraft",
    "svg.fonttype": "none",
}
_FORMATS: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}}


def check_plotting(what: str) -> None:
    """Refuse before anything runs. Errors: ``ValueError`` naming the extra when matplotlib is missing.

    ``what`` is what would be drawn, as the beginning of a sentence: "a study draws plots".
    """
    if find_spec("matplotlib") is None:
        raise ValueError(f"{what} and matplotlib is missing: pip install 'redraft[viz]'")


def save(draw: Draw, out: Path, size: tuple[float, float]) -> None:
    """Write ``out`` with ``.png`` and with ``.svg`` behind its name; ``size`` in inches."""
    with _drawn(draw, size) as store:
        for kind in _FORMATS:
            write(out.with_name(f"{out.name}.{kind}"), partial(store, kind=kind))


def svg(draw: Draw, size: tuple[float, float]) -> str:
    """The picture as an ``<svg>`` element, as it stands in a page of HTML."""
    held = io.BytesIO()
    with _drawn(draw, size) as store:
        store(held, kind="svg")
    written = held.getvalue().decode("utf-8")
    return written[written.index("<svg") :].strip()


def drawable(text: str) -> str:
    """``text`` with a square for what the font has not, of which matplotlib would complain."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    return "".join(one if ord(one) in known else "□" for one in text)


@contextmanager
def _drawn(draw: Draw, size: tuple[float, float]) -> Generator[Callable[..., None]]:
    """What stores the drawn figure: (where, kind)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # pyright: ignore[reportArgumentType]
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)

        def store(where: Path | io.BytesIO, kind: str) -> None:
            figure.savefig(where, format=kind, dpi=150, metadata=_FORMATS[kind])

        yield store
