"""Stepladder: language models at the lowest latency, through any hierarchy of draft levels, with the
same text bit for bit as without them."""

# ruff: noqa: E402
from .base.signals import end_quietly_if_interrupted

end_quietly_if_interrupted()

from typing import TYPE_CHECKING, Any

from ._core import __version__, backends, drafters
from .base.errors import (
    CancelledError,
    DeviceError,
    Error,
    FileError,
    InternalError,
    InvalidArgumentError,
    ModelFormatError,
    OutOfMemoryError,
    UnsupportedError,
    VocabMismatchError,
)
from .model.chat import Chat
from .model.levels import Cast, Draft, Drafter, Eagle, Lookup, Switch
from .model.loading import inspect, load
from .model.model import Model
from .model.results import LevelStats, Piece, Result, Stats, TokenLogprob
from .model.signatures import RequestOptions
from .model.stream import Stream

if TYPE_CHECKING:
    from .files.convert import convert
    from .files.quantize import quantize

del end_quietly_if_interrupted

__all__ = [
    "CancelledError",
    "Cast",
    "Chat",
    "DeviceError",
    "Draft",
    "Drafter",
    "Eagle",
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
    "RequestOptions",
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


def __getattr__(name: str) -> Any:
    """What writes models works on arrays, and numpy takes as long to import as all the rest."""
    if name not in ("convert", "quantize"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .files.convert import convert
    from .files.quantize import quantize

    globals().update(convert=convert, quantize=quantize)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
