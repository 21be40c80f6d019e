"""A command and its terminal: interrupts, pipes that close early, encodings with few letters."""

from __future__ import annotations

import _thread
import codecs
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# seconds until an interrupt that fell into an import is tried again
_AGAIN = 0.05
_PLAIN = {"→": "->", "±": "+-", "²": "^2", "…": "...", "━": "-", "╸": "-", "╺": "-"}


@contextmanager
def interrupts_between_imports() -> Iterator[None]:
    """Let Ctrl-C wait until no import is under way.

    An interrupted import leaves a module half made: whatever needs it afterwards fails in its own
    way, and torch imports parts of itself in the middle of its work.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread hears signals
        return
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(_: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            again = threading.Timer(_AGAIN, _thread.interrupt_main)
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _transliterate(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(letter, "?") for letter in letters)
    return plain, error.end


def accept_all_letters() -> None:
    """Let the standard streams print what their encoding lacks as plain letters: -> for an arrow.

    Paths that are no text print ``?`` for each of their strange bytes.
    """
    codecs.register_error("geolatent.plain", _transliterate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="geolatent.plain")


def leave_pipe() -> None:
    """Send what is left to print nowhere: the reader, such as ``head``, has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
