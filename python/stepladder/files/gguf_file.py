"""A strict reader of GGUF files: every length is checked before it is believed.

Block formats and their dequantization come from the gguf package; the container is read here
because a hostile header must end in an error at once, with bounded memory.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..base.arguments import regular_file, shown
from ..base.errors import FileError, ModelFormatError, UnsupportedError

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<B",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
# No known model comes near these: the largest vocabularies have 262,144 tokens and twice the merges.
_MAX_HEADER = 48 << 20  # bytes before the tensors
_MAX_ENTRIES = 1 << 16
_MAX_KEY = 1024
_MAX_NAME = 1024
_MAX_STRING = 1 << 20
_MAX_ITEM = 1 << 16  # bytes of a string inside an array
_MAX_ARRAY = 1 << 20
_MAX_STRINGS = 1 << 20  # in all arrays together
_CHUNK = 32 << 20


class GgufTensor(NamedTuple):
    """Where a tensor lies; shape is row-major, the outermost dimension first."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    bytes: int


class GgufFile:
    """Metadata and tensors of one file. Opens it, checks the whole header, then reads on demand."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = os.fspath(path)
        try:
            regular_file(self.path)
            self._file = open(self.path, "rb")
        except FileError:
            raise
        except OSError as error:
            raise FileError(f"{self.path}: cannot open: {error.strerror}") from error
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._at = 0
            self._strings = 0
            self.fields: dict[str, Any] = {}
            self.tensors: dict[str, GgufTensor] = {}
            self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "GgufFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _bad(self, what: str) -> ModelFormatError:
        return ModelFormatError(f"{self.path}: {what}; the file is damaged or not a GGUF file")

    def _take(self, count: int, what: str) -> bytes:
        if count > self._size - self._at:
            raise self._bad(
                f"{what} needs {count} bytes at {self._at}, past the end ({self._size})"
            )
        if self._at + count > _MAX_HEADER:
            raise self._bad(f"{what} ends more than {_MAX_HEADER} bytes into the header")
        data = self._file.read(count)
        if len(data) != count:
            raise FileError(f"{self.path}: {what}: the file ended while it was read")
        self._at += count
        return data

    def _scalar(self, layout: str, what: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout), what))[0]

    def _string(self, what: str, limit: int = _MAX_STRING) -> str:
        size = int.from_bytes(self._take(8, what), "little")
        if limit < size <= self._size - self._at:
            raise self._bad(f"{what} has {size} bytes, more than {limit}")
        data = self._take(size, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            raise self._bad(f"{what} is not UTF-8") from None

    def _read_header(self) -> None:
        if self._take(4, "the magic") != b"GGUF":
            raise self._bad("does not begin with GGUF")
        version = self._scalar("<I", "the version")
        if version & 0xFFFF == 0 and version:
            raise UnsupportedError(
                f"{self.path}: big-endian GGUF; convert it to little-endian first"
            )
        if version not in (2, 3):
            raise UnsupportedError(
                f"{self.path}: GGUF version {version}; versions 2 and 3 are read"
            )
        tensors, entries = struct.unpack("<QQ", self._take(16, "the counts"))
        if tensors > _MAX_ENTRIES or entries > _MAX_ENTRIES:
            raise self._bad(
                f"declares {tensors} tensors and {entries} fields, more than {_MAX_ENTRIES}"
            )
        for i in range(entries):
            key = self._string(f"key {i}", _MAX_KEY)
            if not key:
                raise self._bad(f"key {i} is empty")
            if key in self.fields:
                raise self._bad(f"key {key} appears twice")
            self.fields[key] = self._value(self._scalar("<I", f"type of {key}"), key)
        alignment = self.fields.get("general.alignment", 32)
        if (
            not isinstance(alignment, int)
            or alignment < 8
            or alignment & (alignment - 1)
            or alignment > 1 << 16
        ):
            raise self._bad(
                f"general.alignment is {shown(alignment)}, not a power of two of at least 8"
            )
        listed = [self._tensor(i) for i in range(tensors)]
        start = -(-self._at // alignment) * alignment
        for name, shape, kind, offset, count in listed:
            if name in self.tensors:
                raise self._bad(f"tensor {name} appears twice")
            if offset % alignment:
                raise self._bad(f"tensor {name}: offset {offset} is not a multiple of {alignment}")
            if start + offset + count > self._size:
                raise self._bad(
                    f"tensor {name}: ends at {start + offset + count}, past the end ({self._size})"
                )
            self.tensors[name] = GgufTensor(name, shape, kind, start + offset, count)
        ordered = sorted(self.tensors.values(), key=lambda t: t.offset)
        for before, after in zip(ordered, ordered[1:]):
            if before.offset + before.bytes > after.offset:
                raise self._bad(f"tensors {before.name} and {after.name} overlap")

    def _value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self._string(key)
        if kind == _ARRAY:
            return self._array(key)
        if kind not in _SCALARS:
            raise self._bad(f"field {key} has unknown type {kind}")
        value = self._scalar(_SCALARS[kind], key)
        return bool(value) if kind == 7 else value

    def _array(self, key: str) -> Any:
        kind, count = struct.unpack("<IQ", self._take(12, f"array {key}"))
        if kind == _ARRAY:
            raise self._bad(f"array {key} nests arrays")
        if kind != _STRING and kind not in _SCALARS:
            raise self._bad(f"array {key} has unknown type {kind}")
        dtype = np.dtype(np.uint64 if kind == _STRING else _SCALARS[kind])
        if count * dtype.itemsize > self._size - self._at:
            raise self._bad(f"array {key} declares {count} entries, more than the file holds")
        if count > _MAX_ARRAY:
            raise self._bad(f"array {key} has {count} entries, more than {_MAX_ARRAY}")
        if kind != _STRING:
            # Not a list: that would take many times the memory.
            return np.frombuffer(self._take(count * dtype.itemsize, f"array {key}"), dtype)
        self._strings += count
        if self._strings > _MAX_STRINGS:
            raise self._bad(f"array {key} ends more than {_MAX_STRINGS} strings in all arrays")
        return self._string_array(key, count)

    def _string_array(self, key: str, count: int) -> list[str]:
        """Strings read as _string() does, without its overhead for each of a million."""
        read, end, at = self._file.read, min(self._size, _MAX_HEADER), self._at
        items: list[str] = []
        try:
            for _ in range(count):
                size = int.from_bytes(read(8), "little")
                at += 8 + size
                if size > _MAX_ITEM or at > end:
                    raise self._bad(
                        f"array {key}: entry {len(items)} has {size} bytes, more than {_MAX_ITEM} or past the end"
                    )
                items.append(read(size).decode("utf-8"))
        except UnicodeDecodeError:
            raise self._bad(f"array {key}: entry {len(items)} is not UTF-8") from None
        if self._file.tell() != at:
            raise FileError(f"{self.path}: array {key}: the file ended while it was read")
        self._at = at
        return items

    def _tensor(self, index: int) -> tuple[str, tuple[int, ...], int, int, int]:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = self._string(f"name of tensor {index}", _MAX_NAME)
        if not name:
            raise self._bad(f"tensor {index} has an empty name")
        rank = self._scalar("<I", f"rank of {name}")
        if not 1 <= rank <= 4:
            raise self._bad(f"tensor {name} has {rank} dimensions")
        dims = struct.unpack(f"<{rank}Q", self._take(8 * rank, f"shape of {name}"))
        kind, offset = struct.unpack("<IQ", self._take(12, f"place of {name}"))
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise self._bad(f"tensor {name} has unknown type {kind}") from None
        count = 1
        for d in dims:
            count *= d
        if count == 0 or count > 1 << 48 or dims[0] % block:
            raise self._bad(f"tensor {name}: shape {list(dims)} does not fit blocks of {block}")
        return name, tuple(reversed(dims)), kind, offset, count // block * size

    def rows(self, name: str) -> Iterator[np.ndarray]:
        """The tensor as f32 rows [rows, cols], dequantized a bounded chunk at a time."""
        import gguf

        tensor = self.tensors[name]
        kind = gguf.GGMLQuantizationType(tensor.type)
        cols = tensor.shape[-1]
        rows = 1
        for d in tensor.shape[:-1]:
            rows *= d
        row_bytes = tensor.bytes // rows
        step = max(1, _CHUNK // max(1, cols * 4))
        self._file.seek(tensor.offset)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            data = self._file.read(count * row_bytes)
            if len(data) != count * row_bytes:
                raise FileError(f"{self.path}: tensor {name}: the file ended while it was read")
            raw = np.frombuffer(data, np.uint8).reshape(count, row_bytes)
            yield self._floats(raw, kind, name).reshape(count, cols)

    def _floats(self, raw: np.ndarray, kind: Any, name: str) -> np.ndarray:
        import gguf

        plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}.get(kind.name)
        if plain:
            return raw.view(plain).astype(np.float32)
        try:
            return gguf.quants.dequantize(raw, kind)
        except NotImplementedError:
            raise UnsupportedError(
                f"{self.path}: tensor {name}: type {kind.name} cannot be dequantized"
            ) from None
