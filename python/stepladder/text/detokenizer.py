"""Tokens to text, one at a time."""

from __future__ import annotations

import codecs
from typing import Protocol


class Spelling(Protocol):
    """How the tokens of a vocabulary are spelt."""

    def is_control(self, id: int) -> bool: ...

    def token_bytes(self, id: int) -> bytes: ...


class Detokenizer:
    """Turns tokens into text one at a time, holding back bytes that do not yet make a character."""

    def __init__(self, text: Spelling):
        self._text = text
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The characters this token completes."""
        if self._text.is_control(id):
            return ""
        return self._utf8.decode(self._text.token_bytes(id))

    def finish(self) -> str:
        """What was held back, a replacement character for each broken sequence."""
        return self._utf8.decode(b"", True)
