"""Texts that know which of their characters messages brought, whatever a chat template does to them.

Control tokens are a template's own words alone. So every character of a message is marked before the
template runs, and the marks go along: through slices, joins, replacements and the like exactly, and
where a text is made in another way out of marked ones, all of it counts as theirs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from typing import Any

from ..base.arguments import string
from ..base.errors import InvalidArgumentError

_DIRECTIVE = re.compile(r"%(?:\((\w*)\))?[-#0 +]*\d*(?:\.\d+)?([a-zA-Z%])")


class Traced(str):
    """A text with a byte for each of its characters in `mask`: 1 where a message brought it."""

    __slots__ = ("mask",)
    mask: bytes

    def __new__(cls, text: str, mask: bytes | None = None) -> Traced:
        self = str.__new__(cls, text)
        self.mask = b"\1" * len(text) if mask is None else mask
        return self

    def __str__(self) -> str:
        return self

    def plain(self) -> str:
        """The text alone."""
        return str.__getitem__(self, slice(None))

    def __getitem__(self, key: Any) -> str:
        mask = self.mask[key]
        return Traced(str.__getitem__(self, key), bytes([mask]) if isinstance(mask, int) else mask)

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __add__(self, other: str) -> str:
        return joined("", (self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> str:
        return joined("", (other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: Any) -> str:
        return Traced(str.__mul__(self, times), self.mask * times)

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> str:
        return formatted(self, values)

    def strip(self, characters: str | None = None) -> str:
        first = len(self) - len(str.lstrip(self, characters))
        last = len(str.rstrip(self, characters))
        return self if last - first == len(self) else self[first : max(first, last)]

    def lstrip(self, characters: str | None = None) -> str:
        return self[len(self) - len(str.lstrip(self, characters)) :]

    def rstrip(self, characters: str | None = None) -> str:
        return self[: len(str.rstrip(self, characters))]

    def removeprefix(self, prefix: str) -> str:
        return self[len(prefix) :] if self.startswith(prefix) else self

    def removesuffix(self, suffix: str) -> str:
        return self[: -len(suffix)] if suffix and self.endswith(suffix) else self

    def _cut(self, pieces: Iterable[str], gap: int) -> list[str]:
        """Where the pieces stand, which come in order and at least `gap` apart."""
        found, at = [], 0
        for piece in pieces:
            at = self.find(piece, at)
            found.append(self[at : at + len(piece)])
            at += len(piece) + gap
        return found

    def split(self, separator: str | None = None, maxsplit: int = -1) -> list[str]:
        return self._cut(str.split(self, separator, maxsplit), len(separator or ""))

    def rsplit(self, separator: str | None = None, maxsplit: int = -1) -> list[str]:
        return self._cut(str.rsplit(self, separator, maxsplit), len(separator or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        whole = self._cut(str.splitlines(self, True), 0)
        return whole if keepends else [w[: len(p)] for w, p in zip(whole, str.splitlines(self))]

    def partition(self, separator: str) -> tuple[str, ...]:
        return tuple(self._cut(str.partition(self, separator), 0))

    def rpartition(self, separator: str) -> tuple[str, ...]:
        return tuple(self._cut(str.rpartition(self, separator), 0))

    def replace(self, old: str, new: str, count: int = -1) -> str:
        if old:
            return joined(new, self.split(old, count))
        return Traced(str.replace(self, old, new, count))

    def join(self, parts: Iterable[str]) -> str:
        return joined(self, list(parts))

    def _mapped(self, text: str) -> str:
        """`text` made of this one character by character."""
        same = len(text) == len(self)
        return Traced(text, self.mask if same else None)

    def upper(self) -> str:
        return self._mapped(str.upper(self))

    def lower(self) -> str:
        return self._mapped(str.lower(self))

    def title(self) -> str:
        return self._mapped(str.title(self))

    def capitalize(self) -> str:
        return self._mapped(str.capitalize(self))

    def swapcase(self) -> str:
        return self._mapped(str.swapcase(self))

    def casefold(self) -> str:
        return self._mapped(str.casefold(self))


def mask_of(text: str) -> bytes:
    """A byte for each character."""
    return text.mask if isinstance(text, Traced) else bytes(len(text))


def joined(glue: str, parts: Iterable[str]) -> str:
    """What str.join() gives, marks included."""
    parts = parts if isinstance(parts, (list, tuple)) else list(parts)
    text = str.join(glue, parts)
    if type(glue) is not Traced:
        for part in parts:
            if type(part) is Traced:
                break
        else:
            return text
    masks = [p.mask if type(p) is Traced else bytes(len(p)) for p in parts]
    return Traced(text, mask_of(glue).join(masks))


def formatted(layout: str, values: Any) -> str:
    """What the % operator gives, marks included."""
    made: list[str] = []
    at = used = 0
    for directive in _DIRECTIVE.finditer(layout):
        made.append(layout[at : directive.start()])
        at = directive.end()
        if directive.group(2) == "%":
            made.append("%")
            continue
        if directive.group(1) is not None:
            value = values[directive.group(1)]
        else:
            value = values[used] if isinstance(values, tuple) else values
            used += 1
        if directive.group() == "%s" and isinstance(value, str):
            made.append(value)
            continue
        written = "%" + directive.group().rpartition(")")[2].lstrip("%")
        text = str.__mod__(written, (value,))
        made.append(Traced(text) if holds_marks(value) else text)
    if isinstance(values, tuple) and used < len(values):
        raise TypeError("not all arguments converted during string formatting")
    return joined("", [*made, layout[at:]])


def holds_marks(value: Any) -> bool:
    """Whether a text in `value` has marked characters; it is no deeper than a budget allows."""
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, Traced):
            if 1 in item.mask:
                return True
        elif isinstance(item, dict):
            todo += item.keys()
            todo += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            todo += item
    return False


# Templates make control tokens out of roles: "<|" + role + "|>".
_ROLE = re.compile(r"[A-Za-z]\w{0,31}")


def marked(value: Any, depth: int = 0) -> Any:
    """`value` with all text in it marked, but for a role that is a word."""
    if isinstance(value, str):
        return Traced(string("messages", value))
    if depth > 32:
        raise InvalidArgumentError("messages: nested too deeply")
    if isinstance(value, dict):
        return {
            _marked_key(k, depth): v if k == "role" and _is_role(v) else marked(v, depth + 1)
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [marked(v, depth + 1) for v in value]
    return value


def _marked_key(key: Any, depth: int) -> Any:
    """A key, marked; messages have the same few."""
    return _marked_word(key) if type(key) is str and len(key) <= 32 else marked(key, depth + 1)


@functools.lru_cache(maxsize=64)
def _marked_word(word: str) -> Traced:
    return Traced(string("messages", word))


def _is_role(value: Any) -> bool:
    return isinstance(value, str) and _ROLE.fullmatch(value) is not None
