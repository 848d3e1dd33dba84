"""What both kinds of tokenizer files have in common: special tokens, limits, and how pieces are spelt."""

from __future__ import annotations

MAX_FILE_BYTES = 256 << 20
MAX_TEXT = 16 << 20  # characters given to a tokenizer at once
MAX_TOKEN_BYTES = 1 << 16
MAX_SPECIAL = 512  # characters of a special token
MAX_TOKENS = 1 << 19


class Special:
    """A token that stands for itself in text and is never merged with its neighbours."""

    def __init__(
        self,
        id: int,
        content: str,
        special: bool,
        lstrip: bool = False,
        rstrip: bool = False,
        normalized: bool = False,
        single_word: bool = False,
    ):
        self.id, self.content, self.special = id, content, special
        self.lstrip, self.rstrip = lstrip, rstrip
        self.single_word = single_word  # not found inside a longer word
        self.normalized = normalized  # found in the text as a normalizer leaves it


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def spell_piece(token: str) -> bytes:
    """Bytes of a SentencePiece token: <0x0A> is a byte, the low line block a space."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace("\u2581", " ").encode()
