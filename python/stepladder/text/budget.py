"""What bounds a chat template: one budget of steps, and the largest size of all that it makes.

Templates come with models and are not trusted. Loops, calls, filters and operators draw on the
budget by the work they do, so that the same messages are taken on any machine, however busy, or on
none; every string, list and number they make is looked at, and what was looked at is remembered.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Any

MAX_STEPS = 500_000
STEPS_A_MESSAGE = 1_000  # more for each
MAX_TEXT = 16 << 20
MAX_ITEMS = 200_000
MAX_INTEGER_BITS = 4096
_CHARACTERS = 1024  # of a text that are worked on in the time of a step
_REMEMBERED = 1 << 20  # items of lists kept alive
_CONTAINERS = (list, tuple, dict, set, frozenset)


class TooMuch(Exception):
    """A template went over its budget."""


class Budget:
    """Of one text that a template makes."""

    def __init__(self, messages: int = 0) -> None:
        self.limit = self.steps = MAX_STEPS + STEPS_A_MESSAGE * messages
        # Containers that were looked at, by id: they are kept, as nothing here changes one.
        self._known: dict[int, tuple[Any, int, int]] = {}
        self._kept = 0

    def spend(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise TooMuch(f"takes more than {self.limit} steps")

    def size(self, value: Any) -> tuple[int, int]:
        """Items and characters in a container, however deep; work is paid for."""
        known = self._known.get(id(value))
        if known is not None:
            return known[1:]
        items = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        count, characters = 1 + len(items), 0
        for item in items:
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, _CONTAINERS):
                more, long = self.size(item)
                count, characters = count + more, characters + long
            if count > MAX_ITEMS or characters > MAX_TEXT:
                raise TooMuch("makes a list that is too large")
        self.spend(1 + len(items) // 8)
        if self._kept > _REMEMBERED:
            self._known.clear()
            self._kept = 0
        self._known[id(value)] = value, count, characters
        self._kept += 1 + len(items)
        return count, characters


budget: ContextVar[Budget | None] = ContextVar("stepladder_template_budget", default=None)


def spend(count: int = 1) -> None:
    current = budget.get()
    if current is not None:
        current.spend(count)


def checked(value: Any) -> Any:
    """`value`, if it and all it holds is within the limits."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise TooMuch(f"makes a text of {len(value)} characters")
        spend(1 + len(value) // _CHARACTERS)
    elif isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise TooMuch("makes a number of thousands of digits")
    elif isinstance(value, _CONTAINERS):
        (budget.get() or Budget()).size(value)
        spend()
    return value


def walked(value: Any) -> Any:
    """`value`, which is compared or gone through as a whole: all of it is paid for."""
    if not isinstance(value, _CONTAINERS):
        return checked(value)
    current = budget.get() or Budget()
    count, characters = current.size(value)
    current.spend(1 + count // 8 + characters // _CHARACTERS)
    return value


def check_format(text: str) -> None:
    if "*" in text or re.search(r"%(\([^)]*\))?[^a-zA-Z%]*\d{4,}", text):
        raise TooMuch("formats with a large width")


def check_replace(text: str, old: str, new: str) -> None:
    grown = len(text) + (text.count(old) if old else len(text) + 1) * max(0, len(new) - len(old))
    if grown > MAX_TEXT:
        raise TooMuch(f"makes a text of {grown} characters")


def check_split(text: str, separator: str | None) -> None:
    """Refuses what would come apart into too many pieces, each of which is an object."""
    most = len(text) // 2 if separator is None else text.count(separator) if separator else 0
    if most > MAX_ITEMS and (separator is not None or len(text.split(None, MAX_ITEMS)) > MAX_ITEMS):
        raise TooMuch("makes a list that is too large")


def check_join(parts: list[Any], glue: str) -> None:
    size = len(glue) * len(parts) + sum(len(p) for p in parts if isinstance(p, str))
    if size > MAX_TEXT:
        raise TooMuch(f"makes a text of {size} characters")


def limited_range(*bounds: Any) -> range:
    values = range(*bounds)
    if len(values) > MAX_ITEMS:
        raise TooMuch(f"counts to more than {MAX_ITEMS}")
    spend(len(values) // 16)
    return values


def iterated(values: Any) -> Any:
    """What a for loop runs over: its length is paid for before it starts."""
    if hasattr(values, "__len__"):
        spend(1 + len(values))
        return values
    items = []
    for item in values:
        spend()
        items.append(item)
        if len(items) > MAX_ITEMS:
            raise TooMuch("loops over too many items")
    return items
