"""tokenizer.model through the sentencepiece library."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..base.arguments import regular_file, shown
from ..base.errors import FileError, ModelFormatError
from .growth import check_growth, longest_replacement
from .vocabulary import MAX_FILE_BYTES, MAX_TOKEN_BYTES, Special, spell_piece

SPACE = "\u2581"


class SentencePieceTokenizer:
    """SentencePiece with the tokens `added` beside it, and `names` for what is special among its own."""

    normalizes_specials = False  # they are found before anything is normalized

    def __init__(self, path: Path, config: dict[str, Any], added: list[Special], names: set[str]):
        from sentencepiece import SentencePieceProcessor

        self._path = path
        try:
            regular_file(path)
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ModelFormatError(f"{path}: larger than {MAX_FILE_BYTES} bytes")
            data = path.read_bytes()
        except FileError:
            raise
        except OSError as error:
            raise FileError(f"{path}: cannot read: {error.strerror}") from error
        tables = [t for spec in _parts(data, 3, path) for t in _parts(spec, 2, path)]
        self._growth = max((longest_replacement(bytes(t), path) for t in tables), default=1)
        self._model = SentencePieceProcessor()
        try:
            loaded = self._model.LoadFromSerializedProto(data)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ModelFormatError(
                f"{path}: not a SentencePiece model: {str(error)[:200]}"
            ) from None
        pieces = self._model.GetPieceSize() if loaded else 0
        if not pieces:
            raise ModelFormatError(f"{path}: a SentencePiece model without pieces")
        self._pieces = [self._model.IdToPiece(i) for i in range(pieces)]
        self.specials = self._read_specials(added, names)
        self._special_ids = {s.id: s for s in self.specials}
        self._ids = {p: i for i, p in enumerate(self._pieces)} | {
            s.content: s.id for s in self.specials
        }
        if len(set(self._pieces)) != pieces:
            raise ModelFormatError(f"{path}: two pieces are equal")
        self.size = max([pieces, *(s.id + 1 for s in self.specials)])
        if self.size > pieces + 65536:
            raise ModelFormatError(
                f"{path}: {pieces} pieces, but an added token has id {self.size - 1}"
            )
        self.longest = max(len(p.encode()) for p in self._ids)
        if self.longest > MAX_TOKEN_BYTES:
            raise ModelFormatError(f"{path}: a piece of {self.longest} bytes")
        self.adds_bos = bool(config.get("add_bos_token", True))
        # Whether the model puts a space before text shows on a text that has none.
        first = self._model.EncodeAsPieces("a")[:1]
        self.adds_space = bool(first) and first[0].startswith(SPACE)
        # Older models also expect that space after each special token.
        self._space_anywhere = bool(config.get("legacy", True))
        words = sorted((s.content for s in self.specials if s.content), key=len, reverse=True)
        self._splitter = re.compile("|".join(map(re.escape, words))) if words else None
        plain = sorted(
            (s.content for s in self.specials if s.content and not s.special), key=len, reverse=True
        )
        self._plain_splitter = re.compile("|".join(map(re.escape, plain))) if plain else None

    def _read_specials(self, added: list[Special], names: set[str]) -> list[Special]:
        model = self._model
        found = {
            i: Special(i, p, True)
            for i, p in enumerate(self._pieces)
            if model.IsControl(i) or model.IsUnknown(i) or p in names
        }
        ids = {p: i for i, p in enumerate(self._pieces)}
        for token in added:
            if ids.get(token.content, token.id) != token.id:
                raise ModelFormatError(
                    f"{self._path}: token {shown(token.content)} has the id {ids[token.content]}, but "
                    f"{token.id} in a file beside it"
                )
            token.special |= token.content in names
            found[token.id] = token
        return list(found.values())

    def encode(self, text: str, special: bool, first: bool = True) -> list[int]:
        check_growth(text, self._growth, self._path)
        ids: list[int] = []
        at = 0
        splitter = self._splitter if special else self._plain_splitter
        for match in splitter.finditer(text) if splitter else ():
            ids += self._piece(text[at : match.start()], first and at == 0)
            ids.append(self._ids[match.group()])
            at = match.end()
        return ids + self._piece(text[at:], first and at == 0)

    def _piece(self, text: str, first: bool) -> list[int]:
        if not text:
            return []
        if first or self._space_anywhere or not self.adds_space:
            return self._model.EncodeAsIds(text)
        # Only the beginning of a text gets a space: a line end in front takes it instead.
        shield = self._model.EncodeAsIds("\n")
        ids = self._model.EncodeAsIds("\n" + text)
        return ids[len(shield) :] if ids[: len(shield)] == shield else self._model.EncodeAsIds(text)

    def token_id(self, content: str) -> int | None:
        return self._ids.get(content)

    def token_bytes(self, id: int) -> bytes:
        if id in self._special_ids:
            return self._special_ids[id].content.encode()
        return spell_piece(self._pieces[id]) if id < len(self._pieces) else b""

    def vocabulary(self) -> list[bytes | None]:
        known = len(self._pieces)
        return [
            self.token_bytes(i) if i < known or i in self._special_ids else None
            for i in range(self.size)
        ]


def _parts(message: bytes | memoryview, number: int, path: Path) -> list[memoryview]:
    """The texts and messages of one field of a protobuf message."""
    view, found, at = memoryview(message), [], 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = view[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128 or shift > 63:
                return value

    try:
        while at < len(view):
            key = varint()
            if key & 7 == 0:
                varint()
                continue
            fixed = {1: 8, 5: 4}.get(key & 7)
            size = varint() if key & 7 == 2 else len(view) + 1 if fixed is None else fixed
            at += size
            if at > len(view):
                raise IndexError
            if key == number << 3 | 2:
                found.append(view[at - size : at])
    except IndexError:
        raise ModelFormatError(f"{path}: not a SentencePiece model: it ends too soon") from None
    return found
