"""The standard streams of the command: there, and able to take any text."""

from __future__ import annotations

import io
import os
import sys
from types import TracebackType


def end_quietly_if_interrupted() -> None:
    """In a process that runs the command, Ctrl-C during the imports ends it with its code and no
    traceback. Where the package is a library, nothing is touched."""
    called = sys.orig_argv[1:3] == ["-m", "stepladder"]
    if not called and os.path.basename(sys.argv[0] if sys.argv else "") != "stepladder":
        return
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            os._exit(130)
        before(kind, error, trace)

    sys.excepthook = hook


def prepare_streams() -> None:
    """A closed stream becomes the null device; what an encoding cannot write is written escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
