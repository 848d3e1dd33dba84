"""Stepladder: language models at the lowest latency, through any hierarchy of draft levels, with the
same text bit for bit as without them."""

# ruff: noqa: E402, I001
from .terminal import end_quietly_if_interrupted

end_quietly_if_interrupted()

from ._core import __version__
from .convert import convert
from .errors import (
    CancelledError,
    Error,
    FileError,
    InternalError,
    InvalidArgumentError,
    ModelFormatError,
    OutOfMemoryError,
    UnsupportedError,
    VocabMismatchError,
)
from .levels import Cast, Draft, Lookup, Switch
from .model import Chat, Model, inspect, load
from .quantize import quantize
from .stream import LevelStats, Piece, Result, Stats, Stream, TokenLogprob

del end_quietly_if_interrupted

__all__ = [
    "CancelledError",
    "Cast",
    "Chat",
    "Draft",
    "Error",
    "FileError",
    "InternalError",
    "InvalidArgumentError",
    "LevelStats",
    "Lookup",
    "Model",
    "ModelFormatError",
    "OutOfMemoryError",
    "Piece",
    "Result",
    "Stats",
    "Stream",
    "Switch",
    "TokenLogprob",
    "UnsupportedError",
    "VocabMismatchError",
    "__version__",
    "convert",
    "inspect",
    "load",
    "quantize",
]
