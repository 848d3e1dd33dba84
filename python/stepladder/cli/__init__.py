"""The command `stepladder`."""

from .command import main

__all__ = ["main"]
