"""A 16-bit model -> the same model in fewer bits, in the compressed-tensors layouts that other
engines read too. Codes and scales come from the engine's own casts."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _core
from ..base.arguments import callback, choice, flag, path, regular_file, shown, suggesting, whole
from ..base.errors import Error, FileError, InvalidArgumentError, OutOfMemoryError, UnsupportedError
from ..base.json_file import read_json
from ..base.progress import Report
from ..text.tokenizer import Text
from .compressed_tensors import ALIASES, LAYOUTS
from .hub import resolve
from .output import BITS, SafetensorsWriter, TensorSpec, check_apart, new_directory, write_json

_LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj")
_COPIED = re.compile(
    r"(tokenizer|special_tokens|added_tokens|chat_template|vocab|merges|generation_config|license|notice|use_policy).*",
    re.IGNORECASE,
)
_CHUNK = 64 << 20


@suggesting
def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    format: str,
    group: int = 0,
    head: str | None = None,
    force: bool = False,
    progress: Report | None = None,
) -> Path:
    """Writes model `source` with its linear layers in `format` as the directory `target`.

    `group`: weights per scale where the format has groups (0: its default). `head`: a format for
    the output matrix, which otherwise stays as it is. Returns the path of `target`.
    """
    format = _format_named("format", format)
    if head is not None:
        head = _format_named("head", head)
    group = _checked_group(whole("group", group, 0, 4096), format, head)
    flag("force", force)
    callback("progress", progress)
    target = path("target", target)
    directory = resolve(source)
    check_apart(directory, target)
    _core.inspect(str(directory))  # checks every header before anything is written
    _check_text(directory)
    with _Job(directory, format, group, head) as job, new_directory(target, force) as work:
        job.write(work, progress or (lambda done, total: True))
        _check(work, directory)
    return Path(target)


def _check_text(directory: Path) -> None:
    """Refuses a tokenizer that load() would refuse."""
    if any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        Text(directory)


def _check(work: Path, directory: Path) -> None:
    """Loads what was written, so that a model which load() would refuse does not stay. Errors speak of
    `directory`, which it was made of; memory that does not suffice is no error of the model's."""
    options = _core.Options()
    options.context, options.device = 1, "cpu"
    try:
        _core.Engine.load(str(work), options, lambda done, total: True)
    except OutOfMemoryError:
        pass
    except Error as error:
        raise type(error)(str(error).replace(str(work), str(directory))) from None


def _checked_group(group: int, format: str, head: str | None) -> int:
    grouped = [f for f in (format, head) if f and LAYOUTS[f].grouped]
    if group and not grouped:
        raise InvalidArgumentError(
            f"group: {group}, but {format} has one scale for each output row; leave it out"
        )
    for each in grouped if group else ():
        try:
            _core.cast(each, np.zeros((1, group), np.float32), group)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"group: {error}") from None
    return group


def _format_named(name: str, value: Any) -> str:
    known = choice(name, value, [*LAYOUTS, *ALIASES])
    return ALIASES.get(known, known)


class _Stored(NamedTuple):
    file: Any
    dtype: str
    shape: list[int]
    offset: int
    bytes: int


class _Job:
    def __init__(self, directory: Path, format: str, group: int, head: str | None):
        self._directory, self._format, self._group, self._head = directory, format, group, head
        self._config = read_json(directory / "config.json")
        if self._config.get("quantization_config"):
            raise UnsupportedError(f"{directory}: is quantized already; give the 16-bit model")
        self._files: list[Any] = []
        self._tensors: dict[str, _Stored] = {}
        try:
            self._open()
            self._untied = self._settle_tie()
            self._plan = [(name, self._format_of(name)) for name in self._tensors]
            self._head_from_embedding = bool(head) and "lm_head.weight" not in self._tensors
            if not any(f for _, f in self._plan):
                raise UnsupportedError(f"{directory}: no linear layers of a known name to quantize")
            # A group that does not divide a width is refused before the output exists.
            for name, found in self._plan:
                if found:
                    self._cast(name, found, next(self._rows(name, 1)))
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "_Job":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def _open(self) -> None:
        index = self._directory / "model.safetensors.index.json"
        names = ["model.safetensors"]
        if not (self._directory / names[0]).is_file():
            names = sorted(set(read_json(index)["weight_map"].values()))
        for name in names:
            path = self._directory / name
            try:
                regular_file(path)
                file = open(path, "rb")
                self._files.append(file)
                size = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(size))
            except FileError:
                raise
            except OSError as error:
                raise FileError(f"{path}: cannot read: {error.strerror}") from error
            for tensor, info in header.items():
                if tensor != "__metadata__":
                    if info["dtype"] not in BITS:
                        raise UnsupportedError(
                            f"{path}: tensor {tensor}: dtype {shown(info['dtype'])} is not known"
                        )
                    begin, end = info["data_offsets"]
                    self._tensors[tensor] = _Stored(
                        file, info["dtype"], info["shape"], 8 + size + begin, end - begin
                    )

    def _settle_tie(self) -> bool:
        """Of a tied model keeps one table, or both where they differ: whether they do."""
        embedding, head = "model.embed_tokens.weight", "lm_head.weight"
        if self._config.get("tie_word_embeddings") is not True or head not in self._tensors:
            return False
        if embedding in self._tensors and not self._equal(embedding, head):
            return True
        self._tensors.setdefault(embedding, self._tensors.pop(head))
        return False

    def _equal(self, a: str, b: str) -> bool:
        first, second = self._tensors[a], self._tensors[b]
        return (first.dtype, first.shape) == (second.dtype, second.shape) and all(
            self._read(first, at, min(_CHUNK, first.bytes - at))
            == self._read(second, at, min(_CHUNK, first.bytes - at))
            for at in range(0, first.bytes, _CHUNK)
        )

    def _format_of(self, name: str) -> str | None:
        stem, _, kind = name.rpartition(".")
        if kind != "weight" or len(self._tensors[name].shape) != 2:
            return None
        if stem == "lm_head":
            return self._head
        return self._format if _LINEAR.fullmatch(stem) else None

    def _cast(self, name: str, format: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        group = self._group if LAYOUTS[format].grouped else 0
        try:
            return _core.cast(format, rows, group)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{self._directory}: tensor {name}: {error}") from None

    def _rows(self, name: str, limit: int | None = None) -> Iterator[np.ndarray]:
        """f32 rows of a 16- or 32-bit matrix, a bounded chunk at a time."""
        tensor = self._tensors[name]
        kinds = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
        if tensor.dtype not in kinds:
            raise UnsupportedError(
                f"{tensor.file.name}: tensor {name} has dtype {tensor.dtype}; 16- and 32-bit ones are cast"
            )
        rows, cols = tensor.shape
        step = min(limit or rows, max(1, _CHUNK // max(1, cols * 4)))
        for first in range(0, limit or rows, step):
            count = min(step, (limit or rows) - first)
            data = np.frombuffer(self._read(tensor, first * tensor.bytes // rows, count * tensor.bytes // rows),
                                 kinds[tensor.dtype])  # fmt: skip
            if tensor.dtype == "BF16":
                data = (data.astype(np.uint32) << 16).view(np.float32)
            yield np.ascontiguousarray(data.astype(np.float32, copy=False).reshape(count, cols))

    def _read(self, tensor: _Stored, at: int, count: int) -> bytes:
        tensor.file.seek(tensor.offset + at)
        data = tensor.file.read(count)
        if len(data) != count:
            raise FileError(f"{tensor.file.name}: the file ended while it was read")
        return data

    def _specs(self, stem: str, format: str, shape: list[int]) -> list[TensorSpec]:
        layout, (n, k) = LAYOUTS[format], shape
        codes, group = layout.codes, self._groups[format]
        specs = [TensorSpec(f"{stem}.{codes.tensor}", codes.dtype, (n, codes.columns(k))),
                 TensorSpec(f"{stem}.weight_scale", layout.scale_dtype, (n, k // group if group else 1))]  # fmt: skip
        return specs + (
            [TensorSpec(f"{stem}.weight_shape", "I64", (2,))] if codes.with_shape else []
        )

    def write(self, work: Path, progress: Report) -> None:
        """Writes all files into `work`."""
        self._groups = {}
        for name, format in [
            *self._plan,
            *([("model.embed_tokens.weight", self._head)] if self._head_from_embedding else []),
        ]:
            if format and format not in self._groups:
                self._groups[format] = self._cast(name, format, next(self._rows(name, 1)))[2]
        specs: list[TensorSpec] = []
        jobs: list[tuple[str, str, str | None]] = []
        for name, format in self._plan:
            tensor = self._tensors[name]
            stem = name.removesuffix(".weight")
            specs += (
                self._specs(stem, format, tensor.shape)
                if format
                else [TensorSpec(name, tensor.dtype, tensor.shape)]
            )
            jobs.append((name, stem, format))
        if self._head_from_embedding:
            specs += self._specs(
                "lm_head", self._head, self._tensors["model.embed_tokens.weight"].shape
            )
            jobs.append(("model.embed_tokens.weight", "lm_head", self._head))
        write_json(work / "config.json", self._new_config())
        for file in sorted(self._directory.iterdir()):
            if file.is_file() and _COPIED.fullmatch(file.name):
                shutil.copyfile(file, work / file.name)
        total = sum(self._tensors[name].bytes for name, _, _ in jobs)
        done = 0
        writer = SafetensorsWriter(work, specs)
        try:
            for name, stem, format in jobs:
                tensor = self._tensors[name]
                for size in self._write_one(writer, name, stem, format, tensor):
                    done += size
                    if progress(done, total) is False:
                        raise KeyboardInterrupt
            writer.close()
        finally:
            writer.abort()

    def _write_one(self, writer: SafetensorsWriter, name: str, stem: str, format: str | None,
                   tensor: _Stored) -> Iterator[int]:  # fmt: skip
        if format is None:
            for at in range(0, tensor.bytes, _CHUNK):
                count = min(_CHUNK, tensor.bytes - at)
                writer.write(name, self._read(tensor, at, count))
                yield count
            return
        layout = LAYOUTS[format]
        scales = []
        for rows in self._rows(name):
            codes, scale, _ = self._cast(name, format, rows)
            writer.write(f"{stem}.{layout.codes.tensor}", layout.codes.pack(codes).tobytes())
            scales.append(layout.pack_scales(scale))
            yield rows.size * tensor.bytes // (tensor.shape[0] * tensor.shape[1])
        writer.write(f"{stem}.weight_scale", np.concatenate(scales).tobytes())
        if layout.codes.with_shape:
            writer.write(f"{stem}.weight_shape", np.array(tensor.shape, "<i8").tobytes())

    def _new_config(self) -> dict[str, Any]:
        groups = {"group_0": self._config_of(self._format, ["Linear"])}
        format = LAYOUTS[self._format].codes.layout
        config = dict(self._config)
        if self._head and self._head != self._format:
            groups["group_1"] = self._config_of(self._head, ["lm_head"])
            if LAYOUTS[self._head].codes.layout != format:
                format = "mixed-precision"
        if self._head_from_embedding or self._untied:
            config["tie_word_embeddings"] = False
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": format,
            "quantization_status": "compressed",
            "global_compression_ratio": None,
            "kv_cache_scheme": None,
            "ignore": [] if self._head else ["lm_head"],
            "config_groups": groups,
        }
        return config

    def _config_of(self, format: str, targets: list[str]) -> dict[str, Any]:
        return LAYOUTS[format].config(targets, self._groups[format])
