"""Ctrl-C and SIGTERM end a run between two steps, not in the middle of one."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class Stop:
    """``asked`` turns true when the run should end after the step it is at."""

    asked: bool = False


@contextmanager
def interrupts() -> Generator[Stop]:
    """Inside, the first SIGINT or SIGTERM sets ``asked`` and the second acts as if never caught.

    Outside the main thread, where Python delivers no signals, it changes nothing.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def handle(number: int, frame: FrameType | None) -> None:
        stop.asked = True
        restore()

    for number in previous:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        restore()
