"""Work in a thread of its own, beside what the caller does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_Value = TypeVar("_Value")


class Beside(Generic[_Value]):
    """Calls a function in a thread that ends with the block; where no thread can be had, in the caller's
    before the block. Its error is raised by result()."""

    def __init__(self, function: Callable[[], _Value]):
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,))
        try:
            self._thread.start()
        except RuntimeError:  # too many threads, or an interpreter that ends
            self._run(function)

    def _run(self, function: Callable[[], _Value]) -> None:
        try:
            self._value = function()
        except BaseException as error:
            self._error = error

    @property
    def failed(self) -> bool:
        """Whether the function has failed by now."""
        return self._error is not None

    def wait(self) -> bool:
        """Waits for the function's end: whether it has given a value."""
        if self._thread.ident is not None:
            self._thread.join()
        return self._error is None

    def result(self) -> _Value:
        """The function's value, or its error."""
        if not self.wait():
            raise self._error  # type: ignore[misc]
        return self._value

    def __enter__(self) -> "Beside[_Value]":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self._value = None  # of nobody who has not asked for it
        self._error = None  # which holds the frames it came through, and they this object
