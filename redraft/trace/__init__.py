"""What happened to a text while it was written: recorded step by step, saved, shown again, drawn.

``Trace`` is the callback that records (``recorder``), ``Record`` what it saw (``record``), which goes to JSON and back
(``stored``), to the terminal (``terminal``), to a page of its own (``html``) and to pictures (``picture``). Reading
and replaying a record needs neither torch nor the model.
"""

from redraft.trace.record import FORMATS, Frame, Mark, Record, Row, Standing, checked, visible
from redraft.trace.recorder import BUDGET, Trace
from redraft.trace.stored import load
from redraft.trace.terminal import replay

__all__ = [
    "BUDGET",
    "FORMATS",
    "Frame",
    "Mark",
    "Record",
    "Row",
    "Standing",
    "Trace",
    "checked",
    "load",
    "replay",
    "visible",
]
