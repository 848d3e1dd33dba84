"""JSON files that may be anything: bounded in size and entries before they are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .arguments import regular_file
from .errors import FileError, ModelFormatError

MAX_STRING = 2 << 20
MAX_BYTES = 8 << 20
MAX_ENTRIES = 500_000


def read_json(path: Path, limit: int = MAX_BYTES, entries: int = MAX_ENTRIES) -> Any:
    """The JSON value in `path`, or None when there is no such file. Raises ModelFormatError over
    `limit` bytes, or `entries` list and object entries."""
    try:
        if not path.exists():
            return None
        regular_file(path)
        if path.stat().st_size > limit:
            raise ModelFormatError(f"{path}: larger than {limit} bytes")
        _check_strings(path)
        data = path.read_bytes()
        if _count_entries(data, entries) > entries:
            raise ModelFormatError(f"{path}: more than {entries} entries of lists and objects")
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique(path))
    except (ModelFormatError, FileError):
        raise
    except OSError as error:
        raise FileError(f"{path}: cannot read: {error.strerror}") from error
    except RecursionError:
        raise ModelFormatError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise ModelFormatError(f"{path}: not valid JSON: {str(error)[:200]}") from None


def _count_entries(data: bytes, enough: int) -> int:
    """How many lists, objects and entries JSON text has, before they are made: each takes many times
    the memory of its text. At least that many while that is `enough`."""
    count = sum(map(data.count, (b"[", b"{", b",")))
    if count <= enough:
        return count
    # Those inside texts do not count.
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
