"""Checks of what callers pass: every public argument is checked by name before it is used."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import operator
import os
import reprlib
import stat
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .errors import FileError, InvalidArgumentError

INT_MAX = (1 << 31) - 1
MAX_WORD = 1 << 14  # characters of a name, or of a line of levels
MAX_ITEMS = 1 << 20  # entries of an array, more than any context has

_Function = TypeVar("_Function", bound=Callable[..., Any])


class _Short(reprlib.Repr):
    """Cuts bytes before they are printed, as the library does with text: a repr has four times as many."""

    def repr_bytes(self, value: bytes | bytearray, level: int) -> str:
        return repr(value if len(value) <= 60 else value[:60])

    repr_bytearray = repr_bytes


_short = _Short()
_short.maxstring = _short.maxother = _short.maxlong = 60


def shown(value: Any) -> str:
    """`value` for a message: short whatever it is."""
    try:
        return _short.repr(value)[:80]
    except Exception:  # a repr that fails must not hide what is wrong with the argument
        return f"a {type(value).__name__}"


def whole(name: str, value: Any, low: int, high: int = INT_MAX) -> int:
    """`value` as an int in low..high."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InvalidArgumentError(
            f"{name}: {shown(value)} is not a whole number; give one "
            + (f"from {low} to {high}" if high < INT_MAX else f"that is {low} or more")
        ) from None
    if not low <= number <= high:
        allowed = f"from {low} to {high}" if high < INT_MAX or number > high else f"{low} or more"
        raise InvalidArgumentError(
            f"{name}: {number if abs(number) < 1 << 70 else 'the number'} is not {allowed}"
        )
    return number


def real(name: str, value: Any) -> float:
    """`value` as a float of at most 1e30 in magnitude."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidArgumentError(f"{name}: {shown(value)} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or abs(number) > 1e30:
        raise InvalidArgumentError(
            f"{name}: {number} is out of range; it must be from -1e30 to 1e30"
        )
    return number


def flag(name: str, value: Any) -> bool:
    """`value`, which must be True or False."""
    if not isinstance(value, bool):
        raise InvalidArgumentError(f"{name}: {shown(value)} is not True or False")
    return value


def string(name: str, value: Any) -> str:
    """`value`, which must be text that UTF-8 can hold."""
    if not isinstance(value, str):
        raise InvalidArgumentError(f"{name}: {shown(value)} is not text; give a str")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(f"{name}: a lone surrogate at character {error.start}") from None
    return value


def word(name: str, value: Any) -> str:
    """`value` as text that a message can repeat: no control characters, and not a book."""
    text = string(name, value)
    if len(text) > MAX_WORD:
        raise InvalidArgumentError(f"{name}: {len(text)} characters; {MAX_WORD} at most")
    if any(c < " " and c not in "\t\r\n" for c in text):
        raise InvalidArgumentError(f"{name}: a control character in {shown(text)}")
    return text


def path(name: str, value: Any) -> str:
    """`value` as the text of a path."""
    try:
        text = os.fspath(value)
        os.fsencode(text)
    except (TypeError, UnicodeEncodeError):
        text = None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InvalidArgumentError(
            f"{name}: {shown(value)} is not a path; give a str or a pathlib.Path that is not empty"
        )
    return text


def regular_file(path: str | os.PathLike[str]) -> None:
    """Refuses pipes, devices and directories, which would block or never end. Raises OSError when
    there is no such file."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileError(f"{path}: is no regular file; a pipe, device or directory is not read")


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """`value`, which must be one of `known`."""
    names = list(known)
    if not isinstance(value, str) or value not in names:
        raise InvalidArgumentError(f"{name}={shown(value)}: one of {', '.join(names)}")
    return value


def callback(name: str, value: Any) -> Any:
    """`value`, which must be None or a function."""
    if value is not None and not callable(value):
        raise InvalidArgumentError(
            f"{name}: {shown(value)} is not a function of done and total, nor None"
        )
    return value


def listed(name: str, value: Any) -> Any:
    """`value`, an array as a list: refused before it is made where no context could hold it."""
    if not hasattr(value, "tolist"):
        return value
    size = getattr(value, "size", None)
    if not isinstance(size, int):
        size = len(value) if hasattr(value, "__len__") else 1
    if size > MAX_ITEMS:
        raise InvalidArgumentError(f"{name}: {size} entries; at most {MAX_ITEMS} are taken")
    return value.tolist()


def token_ids(name: str, values: Any, vocab: int) -> list[int]:
    """Token ids, checked against the vocabulary."""
    values = listed(name, values)
    if isinstance(values, (str, bytes, bytearray, dict)) or not hasattr(values, "__len__"):
        raise InvalidArgumentError(f"{name}: {shown(values)} is not a list of token ids")
    return [whole(f"{name}[{i}]", v, 0, vocab - 1) for i, v in enumerate(values)]


def known_names(
    where: str, given: Iterable[str], known: Iterable[str], other: dict[str, str]
) -> None:
    """Refuses keywords that `where` does not know; `other` holds what other libraries call ours."""
    names = sorted(known)
    for name in given:
        if name in names:
            continue
        near = [other[name]] if name in other else difflib.get_close_matches(name, names, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise InvalidArgumentError(
            f"{where}: unknown option {shown(name)}{hint} The options are {', '.join(names)}"
        )


def suggesting(function: _Function) -> _Function:
    """`function`, which names the nearest of its options where a keyword is none of them."""
    known = list(inspect.signature(function).parameters)

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        known_names(f"{function.__name__}()", options, known, {})
        return function(*args, **options)

    return checked  # type: ignore[return-value]
