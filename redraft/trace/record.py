"""What became of each text, step by step: rows of frames, and what can be read off them. No tensor, no model.

A **frame** is what stood after a step, after a callback rewrote the canvas, or in the finished text. A row's frames
follow each other; all that one says of change is against the one before it, or against ``before``, the text redrafted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from redraft.drawing import check_plotting

Cause = Literal["step", "callback", "end"]
Mark = Literal["given", "mask", "written", "rewritten", "taken", "kept"]
CAUSES: tuple[Cause, ...] = ("step", "callback", "end")
MARKS: tuple[Mark, ...] = ("given", "mask", "written", "rewritten", "taken", "kept")
"""``taken``: a token was taken back, and a mask stands there again; ``mask`` is one that stood there before."""
FORMATS = (".json", ".html", ".png", ".svg")
LONGEST = 1000
"""Most characters kept of the text of one token."""
Known = tuple[float | None, ...]
"""A number for each position; None where nothing was said."""


@dataclass(frozen=True)
class Frame:
    """A row after step ``index`` of ``steps``, which led from t to s: its ids, and what became of each position.

    ``nfe``: calls so far, of the rows drawn with it. ``confidence``: p of the token that stands, ``entropy`` (nats) of
    the law of its position, both as the request shaped it and before the step, to 4 significant digits; None where
    nothing was asked, and p where a mask stands.
    """

    cause: Cause
    index: int
    steps: int
    t: float
    s: float
    nfe: int
    ids: tuple[int, ...]
    confidence: Known
    entropy: Known
    marks: tuple[Mark, ...]

    @property
    def label(self) -> str:
        if self.cause == "end":
            return "final text"
        return f"step {self.index + 1}/{self.steps}" + (", then the callback" if self.cause == "callback" else "")

    def places(self, *marks: Mark) -> list[int]:
        """The positions that bear one of these marks."""
        return [i for i, mark in enumerate(self.marks) if mark in marks]

    @property
    def written(self) -> list[int]:
        """The positions where a token was written, over a mask or over another token."""
        return self.places("written", "rewritten")

    @property
    def rewritten(self) -> list[int]:
        """Those where it was written over another."""
        return self.places("rewritten")

    @property
    def taken(self) -> list[int]:
        """Those where a token was taken back: a mask again."""
        return self.places("taken")


class Standing(NamedTuple):
    """Of each position in a frame: the frame that wrote what stands there, and p of it when something was last said.

    ``wrote`` is -1 for what no step wrote: what was given, stood in the text redrafted, or is a mask.
    """

    wrote: tuple[int, ...]
    sure: Known


@dataclass
class Row:
    """The frames of text ``number``; ``before`` are the ids of the text it redrafts, if it does.

    ``length``: how many of its tokens are its text. ``calls``: those it took part in, what it would have cost alone.
    Both and ``seed`` are known once the trace is finished.
    """

    number: int
    before: tuple[int, ...] | None = None
    frames: list[Frame] = field(default_factory=list[Frame])
    seed: int | None = None
    length: int | None = None
    calls: int | None = None

    @property
    def size(self) -> int:
        """Positions recorded."""
        return sum(len(frame.ids) for frame in self.frames)

    def origins(self) -> list[list[int | None]]:
        """For each frame, where each of its positions was in the one before; None where it was not."""
        if not self.frames:
            return []
        first = self.frames[0].ids
        begun: list[int | None] = [None] * len(first) if self.before is None else carried(self.before, first)
        return [begun, *(carried(a.ids, b.ids) for a, b in pairwise(self.frames))]

    def standing(self) -> list[Standing]:
        """What stands in each frame, since when, and how sure the model was of it."""
        found, last = list[Standing](), Standing((), ())
        if self.before is not None:
            last = Standing((-1,) * len(self.before), (None,) * len(self.before))
        for number, (frame, origin) in enumerate(zip(self.frames, self.origins(), strict=True)):
            wrote, sure = list[int](), list[float | None]()
            for i, (j, mark) in enumerate(zip(origin, frame.marks, strict=True)):
                same = j if mark in ("kept", "given") else None
                heard = frame.confidence[i]
                wrote.append(_since(mark, number) if same is None else last.wrote[same])
                sure.append(heard if heard is not None or same is None else last.sure[same])
            last = Standing(tuple(wrote), tuple(sure))
            found.append(last)
        return found

    def step_map(self) -> list[int]:
        """For each position of the last frame the number of the frame that last wrote it; -1 for given (``Standing``).

        A frame is a step, unless a callback rewrote the canvas or the text was finished behind it: ``frames`` tells.
        """
        return list(self.standing()[-1].wrote) if self.frames else []


def _since(mark: Mark, number: int) -> int:
    """Since which frame stands what bears ``mark`` and was not carried on: noise nobody saw drawn since it was seen."""
    return -1 if mark in ("given", "mask", "taken") else number


@dataclass
class Record:
    """All rows that were recorded, with all it takes to show them: the ``texts`` of ids, and how to join them.

    ``left_out``: rows that were drawn and not recorded; ``cut``: the steps behind the budget are one frame (``Trace``).
    ``cost``: what all rows cost together (``Samples.cost``), None unless the trace was finished with samples.
    ``approximate``: an approximate cache was used.
    """

    texts: dict[int, str]
    mask: int | None = None
    gap: str = "░"
    joint: str = ""
    title: str = "redraft"
    rows: dict[int, Row] = field(default_factory=dict[int, Row])
    left_out: int = 0
    cut: bool = False
    approximate: bool = False
    cost: Mapping[str, Any] | None = None

    def row(self, number: int) -> Row:
        """Errors: ``ValueError`` for one that was not recorded."""
        if number not in self.rows:
            recorded = ", ".join(str(one + 1) for one in self.rows) or "none"
            raise ValueError(f"text {number + 1} is not in the trace: it has {recorded}")
        return self.rows[number]

    def words(self, frame: Frame) -> list[str]:
        """What each position of a frame shows; control characters are made visible."""
        return [self.gap if i == self.mask else visible(self.texts[i]) for i in frame.ids]

    def summary(self, number: int) -> str:
        """What a row took, in words."""
        row, parts = self.row(number), list[str]()
        if self.cost is not None:
            parts.append(f"{self.cost['nfe']} denoiser calls")
            parts.append(f"{self.cost['tokens_per_forward']:.3g} tokens per forward")
        elif row.frames and row.frames[-1].nfe:
            calls, written = row.frames[-1].nfe, sum(len(frame.written) for frame in row.frames)
            parts += [f"{calls} denoiser calls", f"{written / calls:.3g} tokens per forward"]
        for name, mark in (("rewritten", "rewritten"), ("taken back", "taken")):
            if count := sum(frame.marks.count(mark) for frame in row.frames):
                parts.append(f"{count} {name}")
        if self.approximate:
            parts.append("approximate cache")
        if self.cut:
            parts.append("the last steps are recorded as one")
        if self.left_out:
            parts.append(f"{self.left_out} texts more were not recorded")
        return ", ".join(parts)

    def save(self, path: str | Path, row: int = 0) -> None:
        """Write what the ending of the name asks for: ``.json``, a page ``.html``, or of one row ``.png`` or ``.svg``.

        Errors: ``ValueError`` for another ending, and without matplotlib for ``.png``.
        """
        path = checked(path)
        if path.suffix == ".json":
            from redraft.trace.stored import save

            save(self, path)
        elif path.suffix == ".html":
            from redraft.trace.html import save_html

            save_html(self, path)
        else:
            from redraft.trace.picture import save_png, save_svg

            (save_png if path.suffix == ".png" else save_svg)(self, path, row)


def checked(path: str | Path, name: str = "trace", endings: Sequence[str] = FORMATS, remedy: str = "") -> Path:
    """A file a trace can be written to, of any name if there are no ``endings``.

    Errors: ``ValueError`` for no such folder, another ending, and for .png without matplotlib.
    """
    path = Path(path)
    if endings and path.suffix not in endings:
        raise ValueError(f"{name} {str(path)!r}: name a file that ends in {' or '.join(endings)}{remedy}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ValueError(f"{name} {str(path)!r}: name a file in a folder that exists")
    if path.suffix == ".png":
        check_plotting("a heat map is a plot")
    return path


def carried(old: Sequence[int], new: Sequence[int]) -> list[int | None]:
    """Where each position of ``new`` was in ``old``, of the same length or another; None where it was not there.

    Of another length it is taken to have grown or shrunk at its end, or, if more tokens are the same then, wherever the
    longest stretches that both share lie apart.
    """
    n, m = len(old), len(new)
    by_place: list[int | None] = [i if i < n else None for i in range(m)]
    if n == m:
        return by_place
    aligned: list[int | None] = [None] * m
    for _, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        aligned[c : min(d, c + b - a)] = range(a, min(b, a + d - c))
    return max(by_place, aligned, key=lambda origin: _agreeing(old, new, origin))


def _agreeing(old: Sequence[int], new: Sequence[int], origin: Sequence[int | None]) -> int:
    return sum(j is not None and old[j] == now for now, j in zip(new, origin, strict=True))


def marks(
    old: Sequence[int] | None, new: Sequence[int], origin: Sequence[int | None], given: Sequence[bool], mask: int | None
) -> tuple[Mark, ...]:
    """What became of each position of ``new``; ``old`` is None where nothing was seen before."""
    before = [None if j is None or old is None else old[j] for j in origin]
    return tuple(_mark(*one, mask) for one in zip(before, new, given, strict=True))


def _mark(before: int | None, now: int, given: bool, mask: int | None) -> Mark:
    if given:
        return "given"
    if before is None:  # all was mask, or noise that nobody has seen
        before = now if mask is None else mask
    if now == mask:
        return "mask" if before == mask else "taken"
    if before == mask:
        return "written"
    return "kept" if before == now else "rewritten"


def visible(text: str, keep: str = "") -> str:
    """``text`` with control characters, which could steer a terminal, as the pictures Unicode has for them."""
    return "".join(one if one in keep or one.isprintable() else _picture(one) for one in text)


def _picture(character: str) -> str:
    code = ord(character)
    if character in "\n\u2028\u2029":
        return "↵"
    if code < 0x20:
        return chr(0x2400 + code)
    if 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069:  # they would turn the text beside them round
        return "�"
    return "␡" if code == 0x7F else "�" if code < 0xA0 or 0xD800 <= code < 0xE000 else character
