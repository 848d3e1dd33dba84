"""JSON files that may be anything: bounded in size and entries before they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .arguments import regular_file
from .errors import FileError, ModelFormatError

MAX_STRING = 2 << 20
MAX_BYTES = 8 << 20
MAX_ENTRIES = 500_000
_SPACE = re.compile(r"[ \t\n\r]*")


def read_json(path: Path, limit: int = MAX_BYTES, entries: int = MAX_ENTRIES) -> Any:
    """The JSON value in `path`, or None when there is no such file. Raises ModelFormatError over
    `limit` bytes, or `entries` list and object entries."""
    with _refusals(path):
        if not path.exists():
            return None
        return json.loads(_bounded_text(path, limit, entries), object_pairs_hook=_unique(path))


class JsonFile:
    """What read_json reads, and the text it was read from, so that another reader can have it with other
    values for some members of the object that it is. Decoded once."""

    def __init__(self, path: Path, limit: int = MAX_BYTES, entries: int = MAX_ENTRIES):
        with _refusals(path):
            self._text = _bounded_text(path, limit, entries)
            self._spans: dict[str, tuple[int, int]] = {}
            self.value = self._decoded(_unique(path))

    def text_with(self, members: dict[str, str], first: str = "") -> str:
        """The text, in which JSON stands in the place of the values of those `members` that there are.
        `first` comes before its members."""
        start = self._text.index("{") + 1 if first else 0
        parts, at = [self._text[:start], first], start
        for name, (start, end) in self._spans.items():
            if name in members:
                parts += [self._text[at:start], members[name]]
                at = end
        return "".join([*parts, self._text[at:]])

    def _decoded(self, unique: Any) -> Any:
        text, at = self._text, self._past_space(0)
        if not text.startswith("{", at):
            return json.loads(text, object_pairs_hook=unique)
        decode = json.JSONDecoder(object_pairs_hook=unique).raw_decode
        pairs: list[tuple[str, Any]] = []
        at = self._past_space(at + 1)
        while pairs or not text.startswith("}", at):
            if not text.startswith('"', at):
                raise json.JSONDecodeError("Expecting a property name in quotes", text, at)
            name, at = decode(text, at)
            start = self._past_space(self._past(":", at))
            value, at = decode(text, start)
            pairs.append((name, value))
            self._spans[name] = start, at
            at = self._past_space(at)
            if text.startswith("}", at):
                break
            at = self._past_space(self._past(",", at))
        at = self._past_space(at + 1)
        if at < len(text):
            raise json.JSONDecodeError("Extra data", text, at)
        return unique(pairs)

    def _past_space(self, at: int) -> int:
        return _SPACE.match(self._text, at).end()  # type: ignore[union-attr]

    def _past(self, mark: str, at: int) -> int:
        at = self._past_space(at)
        if not self._text.startswith(mark, at):
            raise json.JSONDecodeError(f"Expecting {mark!r}", self._text, at)
        return at + 1


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """What goes wrong inside is said of the file."""
    try:
        yield
    except (ModelFormatError, FileError):
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot read: {error.strerror}") from error
    except RecursionError:
        raise ModelFormatError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise ModelFormatError(f"{path}: not valid JSON: {str(error)[:200]}") from None


def _bounded_text(path: Path, limit: int, entries: int) -> str:
    regular_file(path)
    if path.stat().st_size > limit:
        raise ModelFormatError(f"{path}: larger than {limit} bytes")
    _check_strings(path)
    data = path.read_bytes()
    if _count_entries(data, entries) > entries:
        raise ModelFormatError(f"{path}: more than {entries} entries of lists and objects")
    return data.decode("utf-8")


def _count_entries(data: bytes, enough: int) -> int:
    """How many lists, objects and entries JSON text has, before they are made: each takes many times
    the memory of its text. At least that many while that is `enough`."""
    count = sum(map(data.count, (b"[", b"{", b",")))
    if count <= enough:
        return count
    # Those inside texts do not count. Few files come here, and the import takes as long as all others.
    import numpy as np

    plain = np.frombuffer(data.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    count, inside = 0, 0
    for first in range(0, plain.size, 1 << 20):
        block = plain[first : first + (1 << 20)]
        quotes = (np.cumsum(block == ord('"'), dtype=np.uint8) + inside) & 1
        count += int((np.isin(block, tuple(b"[{,")) & (quotes == 0)).sum())
        inside = int(quotes[-1])
    return count


def _check_strings(path: Path) -> None:
    """Refuses a text of megabytes before the file is in memory as a whole."""
    run = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 16):
            run = 0 if b'"' in block else run + len(block)
            if run > MAX_STRING:
                raise ModelFormatError(f"{path}: holds a text of more than {MAX_STRING} bytes")


def _unique(path: Path):
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))
            raise ValueError(f"key {twice[:80]!r} appears twice")
        return value

    return build
