"""What bounds a chat template: one budget of steps, and the largest size of all that it makes.

Templates come with models and are not trusted. Loops, calls, filters and operators draw on the
budget; every string, list and number they make is looked at.
"""

from __future__ import annotations

import re
import time
from contextvars import ContextVar
from typing import Any

MAX_STEPS = 1_000_000
MAX_SECONDS = 1.0
MAX_TEXT = 16 << 20
MAX_ITEMS = 200_000
MAX_INTEGER_BITS = 4096


class TooMuch(Exception):
    """A template went over its budget."""


class Budget:
    """Of one text that a template makes."""

    def __init__(self) -> None:
        self.steps, self.deadline = MAX_STEPS, time.monotonic() + MAX_SECONDS
        self.changed = False  # whether text was made of text other than by joining it

    def spend(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise TooMuch(f"takes more than {MAX_STEPS} steps")
        if time.monotonic() > self.deadline:
            raise TooMuch(f"takes more than {MAX_SECONDS:g} s")


budget: ContextVar[Budget] = ContextVar("stepladder_template_budget")


def spend(count: int = 1) -> None:
    current = budget.get(None)
    if current is not None:
        current.spend(count)


def note_change() -> None:
    """Remembers that a text was changed: what comes of it may hold what was not in it."""
    current = budget.get(None)
    if current is not None:
        current.changed = True


def checked(value: Any) -> Any:
    """`value`, if it and all it holds is within the limits."""
    if isinstance(value, str):
        if len(value) > MAX_TEXT:
            raise TooMuch(f"makes a text of {len(value)} characters")
        spend(1 + len(value) // 4096)
    elif isinstance(value, int):
        if value.bit_length() > MAX_INTEGER_BITS:
            raise TooMuch("makes a number of thousands of digits")
    elif isinstance(value, (list, tuple, dict, set, frozenset)):
        todo, count, characters = [value], 0, 0
        while todo:
            item = todo.pop()
            if isinstance(item, str):
                characters += len(item)
            elif isinstance(item, dict):
                todo += item.keys()
                todo += item.values()
            elif isinstance(item, (list, tuple, set, frozenset)):
                todo += item
            count += 1
            if count + len(todo) > MAX_ITEMS or characters > MAX_TEXT:
                raise TooMuch("makes a list that is too large")
        spend(1 + count // 16)
    return value


def check_format(text: str) -> None:
    if "*" in text or re.search(r"%(\([^)]*\))?[^a-zA-Z%]*\d{4,}", text):
        raise TooMuch("formats with a large width")


def check_replace(text: str, old: str, new: str) -> None:
    grown = len(text) + (text.count(old) if old else len(text) + 1) * max(0, len(new) - len(old))
    if grown > MAX_TEXT:
        raise TooMuch(f"makes a text of {grown} characters")


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
    if isinstance(values, str):
        note_change()
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
