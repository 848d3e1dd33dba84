"""The standard streams of the command: there, and able to take any text."""

from __future__ import annotations

import io
import os
import sys


def prepare_streams() -> None:
    """A closed stream becomes the null device; what an encoding cannot write is written escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
        elif mode == "w" and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
