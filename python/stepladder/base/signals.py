"""How signals end the command, and work that must be cleaned up."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


def end_quietly_if_interrupted() -> None:
    """In a process that runs the command, Ctrl-C during the imports ends it with its code and no
    traceback: an exception could turn into another one inside a library that is being imported.
    Where the package is a library, nothing is touched. `take_interrupts` ends this."""
    # Options of the interpreter come before its -m.
    called = any(a == "-m" and b == "stepladder" for a, b in zip(sys.orig_argv, sys.orig_argv[1:]))
    if not called and os.path.basename(sys.argv[0] if sys.argv else "") != "stepladder":
        return
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def _end(*_: object) -> None:
    os._exit(130)


def take_interrupts() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block as Ctrl-C does, by an exception: SystemExit(128 + number).

    Only in the main thread, and only where nobody has said what these signals do: under nohup a
    hangup stays ignored. Once one has come both are ignored, so that what cleans up is left alone.
    """

    def end(number: int, frame: object) -> None:
        for each in replaced:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    replaced: list[int] = []
    if threading.current_thread() is threading.main_thread():
        replaced += [s for s in _ENDINGS if signal.getsignal(s) is signal.SIG_DFL]
    try:
        for number in replaced:
            signal.signal(number, end)
        yield
    finally:
        for number in replaced:
            signal.signal(number, signal.SIG_DFL)
