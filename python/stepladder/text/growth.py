"""How much longer a tokenizer's normalizer may make a text; what has no sane bound is refused."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from ..base.arguments import shown
from ..base.errors import InvalidArgumentError, ModelFormatError, UnsupportedError
from .vocabulary import MAX_TEXT

MAX_CONTENT = 256  # characters that a normalizer puts in the place of others
MAX_NORMALIZERS = 32
MAX_PRE_TOKENIZERS = 16
# Characters that one becomes at most; what only removes or exchanges characters is 1.
_UNICODE = {"NFC": 3, "NFD": 4, "NFKC": 18, "NFKD": 18, "Lowercase": 3}
_BERT = 12  # decomposes, and puts spaces around each ideograph every time
_BYTES = 4  # a character has up to four bytes, and each is then written as a character
_STILL = {"Nmt", "Strip", "StripAccents"}


def growth(normalizer: Any, path: Path) -> int:
    """The most characters that one character can become. Raises ModelFormatError naming `path`."""
    factor, unicode = 1, 1
    for step in steps(normalizer, "normalizer", MAX_NORMALIZERS, path):
        kind = step["type"]
        if kind in _UNICODE:
            # What has been decomposed once is not decomposed again.
            unicode = max(unicode, _UNICODE[kind])
        elif kind not in _STILL:
            # What comes out of this may be decomposed anew.
            factor, unicode = factor * unicode * _other(kind, step, path), 1
    return factor * unicode


def _other(kind: str, step: dict[str, Any], path: Path) -> int:
    """The growth by a normalizer that puts in characters of its own."""
    if kind == "Replace":
        return _replaced(step, path)
    if kind == "Prepend":
        # Each stretch between special tokens gets one.
        return 1 + len(_content(step, "prepend", path))
    if kind == "Precompiled":
        return _precompiled(step, path)
    if kind == "ByteLevel":
        return _BYTES
    if kind == "BertNormalizer":
        return _BERT
    raise UnsupportedError(f"{path}: normalizer {shown(kind)} is not known here")


def check_pre_tokenizers(node: Any, path: Path) -> None:
    """Refuses long chains, and a second step that writes each byte as a character."""
    kinds = [s["type"] for s in steps(node, "pretokenizer", MAX_PRE_TOKENIZERS, path)]
    if kinds.count("ByteLevel") > 1:
        raise ModelFormatError(f"{path}: {kinds.count('ByteLevel')} ByteLevel pretokenizers")


def check_growth(text: str, factor: int, path: Path) -> None:
    """Refuses a text that a normalizer of `growth` could make too large."""
    if len(text) * factor > MAX_TEXT:
        raise InvalidArgumentError(
            f"text: {len(text)} characters, of which the normalizer of {path} may make {factor} times "
            f"as many; at most {MAX_TEXT // factor} are taken"
        )


def check_affixes(model: dict[str, Any], path: Path) -> None:
    """Refuses long texts that the model puts around each character of a word."""
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if isinstance(model.get(name), str):
            _content(model, name, path)


def steps(node: Any, what: str, limit: int, path: Path) -> list[dict[str, Any]]:
    """The steps of a sequence of normalizers, decoders and the like, however nested, in order.

    `what` is the word for one; its plural is the key of a sequence's list. Raises ModelFormatError
    when a step is no object with a type, or when there are more than `limit`.
    """
    found: list[dict[str, Any]] = []
    todo, seen = [node], 0
    while todo:
        part = todo.pop()
        if part is None:
            continue
        seen += 1
        if not isinstance(part, dict):
            raise ModelFormatError(f"{path}: a {what} is {shown(part)}, not an object")
        if not isinstance(part.get("type"), str):
            raise ModelFormatError(
                f"{path}: a {what} has the type {shown(part.get('type'))}, not a text"
            )
        if part["type"] == "Sequence":
            parts = part.get(f"{what}s")
            if not isinstance(parts, list):
                raise ModelFormatError(f"{path}: a {what} of type Sequence has no list of {what}s")
            todo += reversed(parts)
        else:
            found.append(part)
        if len(found) + len(todo) > limit or seen > 2 * limit:
            raise ModelFormatError(f"{path}: more than {limit} {what}s")
    return found


def _content(step: dict[str, Any], name: str, path: Path) -> str:
    text = step.get(name)
    if not isinstance(text, str):
        raise ModelFormatError(f"{path}: {step.get('type')}: {name} is {shown(text)}, not a text")
    if len(text) > MAX_CONTENT:
        raise ModelFormatError(
            f"{path}: {step.get('type')}: {name} has {len(text)} characters; at most {MAX_CONTENT} are taken"
        )
    return text


def _replaced(step: dict[str, Any], path: Path) -> int:
    content = _content(step, "content", path)
    pattern = step.get("pattern")
    if isinstance(pattern, dict) and isinstance(pattern.get("String"), str):
        return max(1, -(-len(content) // max(1, len(pattern["String"]))))
    return 1 + len(content)  # a regular expression may match nothing, between any two characters


def _precompiled(step: dict[str, Any], path: Path) -> int:
    """The longest text in SentencePiece's table of replacements."""
    try:
        data = base64.b64decode(step["precompiled_charsmap"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        raise ModelFormatError(f"{path}: Precompiled: no valid precompiled_charsmap") from None
    return longest_replacement(data, path)


def longest_replacement(table: bytes, path: Path) -> int:
    """Bytes of the longest text in a SentencePiece table: a trie with its size, then texts that each
    end in a zero byte."""
    start = 4 + int.from_bytes(table[:4], "little")
    longest = max(map(len, table[start:].split(b"\0")), default=0)
    if longest > MAX_CONTENT:
        raise ModelFormatError(
            f"{path}: a replacement of {longest} bytes in precompiled_charsmap; at most {MAX_CONTENT} are taken"
        )
    return max(1, longest)
