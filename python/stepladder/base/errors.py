"""The exceptions of Stepladder: one base class, and one subclass for each kind of refusal."""


class Error(Exception):
    """Anything Stepladder refuses or fails at; the message says what, where and how to fix it."""


class InvalidArgumentError(Error, ValueError, TypeError):
    """An option or request the caller can correct: of a wrong type, value or name."""


class ModelFormatError(Error, ValueError):
    """A file's content breaks its format."""


class VocabMismatchError(Error, ValueError):
    """Draft and target do not speak the same tokens."""


class UnsupportedError(Error, NotImplementedError):
    """Well formed, but not something this engine does."""


class FileError(Error, OSError):
    """A file could not be opened, read or written."""


class OutOfMemoryError(Error, MemoryError):
    """It does not fit; the message has the numbers."""


class CancelledError(Error):
    """Stopped by the caller."""


class InternalError(Error, RuntimeError):
    """A bug of Stepladder's."""


class DeviceError(Error, RuntimeError):
    """A device failed or was lost, and what it held with it: load the model again."""


# The codes of the C++ API by name; the bindings look the class up here.
BY_CODE = {
    "invalid_argument": InvalidArgumentError,
    "unsupported": UnsupportedError,
    "io": FileError,
    "model_format": ModelFormatError,
    "vocab_mismatch": VocabMismatchError,
    "out_of_memory": OutOfMemoryError,
    "cancelled": CancelledError,
    "internal": InternalError,
    "device": DeviceError,
}

# Tracebacks name them as callers do.
for _class in (Error, *BY_CODE.values()):
    _class.__module__ = "stepladder"
