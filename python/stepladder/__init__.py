"""Stepladder: language models at the lowest latency, through any hierarchy of draft levels, with the
same text bit for bit as without them."""

# ruff: noqa: E402
from .base.signals import end_quietly_if_interrupted

end_quietly_if_interrupted()

from ._core import __version__, backends, drafters
from .base.errors import (
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
from .files.convert import convert
from .files.quantize import quantize
from .model.chat import Chat
from .model.levels import Cast, Draft, Drafter, Lookup, Switch
from .model.loading import inspect, load
from .model.model import Model
from .model.results import LevelStats, Piece, Result, Stats, TokenLogprob
from .model.stream import Stream

del end_quietly_if_interrupted

__all__ = [
    "CancelledError",
    "Cast",
    "Chat",
    "Draft",
    "Drafter",
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
    "backends",
    "convert",
    "drafters",
    "inspect",
    "load",
    "quantize",
]
