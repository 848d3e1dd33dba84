"""Keeps what users write from becoming control tokens on its way through a chat template."""

from __future__ import annotations

import re
from typing import Any

from ..base.arguments import string
from ..base.errors import InvalidArgumentError


def _begins_inside(text: str, special: str) -> bool:
    """Whether `text` begins with an end of `special`."""
    at = special.find(text[0], 1)
    while at > 0:
        if text.startswith(special[at:]):
            return True
        at = special.find(text[0], at + 1)
    return False


def _ends_inside(text: str, special: str) -> bool:
    """Whether `text` ends with a beginning of `special`."""
    at = special.rfind(text[-1], 0, -1)
    while at >= 0:
        if text.endswith(special[: at + 1]):
            return True
        at = special.rfind(text[-1], 0, at)
    return False


class Guard:
    """Keeps the text of special tokens inside messages from becoming special tokens.

    A mark that occurs nowhere else is put inside each such text before the template runs, and at
    an edge that could complete one together with the template's own words; it is taken out again
    once the template's special tokens have been found. What a template makes by changing
    characters is found by Text._check_controls.
    """

    def __init__(self, specials: list[str]):
        self._specials = [s for s in specials if s]
        found = sorted(self._specials, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, found))) if found else None
        self._mark = "\U000f5ad0"
        self._stand_in = {
            s: chr(0xF5B00 + i) for i, s in enumerate(s for s in self._specials if len(s) == 1)
        }
        self._first = {c for s in self._specials for c in s[1:]}
        self._last = {c for s in self._specials for c in s[:-1]}
        self.used = False

    def hide(self, value: Any, depth: int = 0) -> Any:
        """`value` with every string in it marked where needed."""
        if isinstance(value, str):
            return self._hide(string("messages", value))
        if depth > 32:
            raise InvalidArgumentError("messages: nested too deeply")
        if isinstance(value, dict):
            return {self.hide(k, depth + 1): self.hide(v, depth + 1) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.hide(v, depth + 1) for v in value]
        return value

    def _hide(self, text: str) -> str:
        if self._mark in text or any(c in text for c in self._stand_in.values()):
            raise InvalidArgumentError(
                f"messages: the private-use character {self._mark!a} cannot be used"
            )
        marked = text
        while self._pattern and self._pattern.search(marked):
            marked = self._pattern.sub(
                lambda m: (
                    self._stand_in.get(m.group()) or m.group()[0] + self._mark + m.group()[1:]
                ),
                marked,
            )
        if text[:1] in self._first and any(_begins_inside(text, s) for s in self._specials):
            marked = self._mark + marked
        if text[-1:] in self._last and any(_ends_inside(text, s) for s in self._specials):
            marked += self._mark
        self.used |= marked != text
        return marked

    def has_middles(self, texts: list[str]) -> bool:
        """Whether a text as a whole stands inside a special token, which a template's own words could
        complete at both of its ends."""
        return any(text and text in special for text in texts for special in self._specials)

    def show(self, text: str) -> str:
        """`text` without the marks."""
        for content, stand_in in self._stand_in.items():
            text = text.replace(stand_in, content)
        return text.replace(self._mark, "")
