"""The standard streams of the command: there, and able to take any text."""

from __future__ import annotations

import io
import os
import signal
import sys


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


def prepare_streams() -> None:
    """A closed stream becomes the null device; what an encoding cannot write is written escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
