"""A 16-bit model -> the same model in fewer bits, in the compressed-tensors layouts that other
engines read too. Codes and scales come from the engine's own casts."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import _core
from .arguments import callback, choice, flag, path, regular_file, suggesting, whole
from .errors import FileError, InvalidArgumentError, UnsupportedError
from .hub import resolve
from .output import SafetensorsWriter, TensorSpec, check_apart, new_directory, write_json
from .progress import Report
from .text import read_json

_LINEAR = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]|mlp\.(gate|up|down))_proj")
_COPIED = re.compile(
    r"(tokenizer|special_tokens|added_tokens|chat_template|vocab|merges|generation_config|license|notice|use_policy).*",
    re.IGNORECASE,
)
_CHUNK = 64 << 20


def _packed_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes of `bits`, the first in the low bits of each int32."""
    per = 32 // bits
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per)))
    shifts = np.arange(per, dtype=np.uint32) * bits
    words = codes.astype(np.uint32).reshape(codes.shape[0], -1, per) << shifts
    return np.bitwise_or.reduce(words, axis=-1).astype("<u4")


def _pack_w4(codes: np.ndarray) -> np.ndarray:
    return _packed_words(codes.astype(np.int16) + 8, 4)


def _pack_w8(codes: np.ndarray) -> np.ndarray:
    return _packed_words(codes.astype(np.int16) + 128, 8)


def _pack_nibbles(codes: np.ndarray) -> np.ndarray:
    nibbles = codes.view(np.uint8)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def _as_is(codes: np.ndarray) -> np.ndarray:
    return codes


def _f32(scales: np.ndarray) -> np.ndarray:
    return scales.astype("<f4")


def _bf16(scales: np.ndarray) -> np.ndarray:
    # The casts give scales that bf16 holds exactly.
    return (scales.view(np.uint32) >> 16).astype("<u2")


def _e8m0(scales: np.ndarray) -> np.ndarray:
    return (np.frexp(scales)[1] + 126).astype(np.uint8)


class _Layout(NamedTuple):
    """How compressed-tensors stores a format: tensor names, dtypes and the words of its config."""

    format: str
    codes: str  # name of the tensor of codes
    dtype: str
    columns: Callable[[int], int]  # its columns for k weights a row
    pack: Callable[[np.ndarray], np.ndarray]
    scale_dtype: str
    pack_scales: Callable[[np.ndarray], np.ndarray]
    with_shape: bool
    weights: dict[str, Any]
    inputs: dict[str, Any] | None = None


def _weights(bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "group_size": None,
            "dynamic": False, "actorder": None, "block_structure": None, "observer": "minmax",
            "observer_kwargs": {}} | more  # fmt: skip


_INT8_TOKEN = _weights(8, "int", "token", dynamic=True, observer=None)
_LAYOUTS = {
    "w8a16": _Layout("pack-quantized", "weight_packed", "I32", lambda k: -(-k // 4), _pack_w8, "F32", _f32, True,
                     _weights(8, "int", "channel")),
    "w8a8": _Layout("int-quantized", "weight", "I8", lambda k: k, _as_is, "F32", _f32, False,
                    _weights(8, "int", "channel"), _INT8_TOKEN),
    "w4a16": _Layout("pack-quantized", "weight_packed", "I32", lambda k: k // 8, _pack_w4, "BF16", _bf16, True,
                     _weights(4, "int", "group")),
    "mxfp4": _Layout("mxfp4-pack-quantized", "weight_packed", "U8", lambda k: k // 2, _pack_nibbles, "U8", _e8m0, False,
                     _weights(4, "float", "group", scale_dtype="torch.uint8")),
}  # fmt: skip
FORMATS = tuple(_LAYOUTS)
_ALIASES = {"int8": "w8a16"}  # as in casts
_GROUPED = {"w4a16", "mxfp4"}  # have a scale for each group of weights


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
    with _Job(directory, format, group, head) as job, new_directory(target, force) as work:
        job.write(work, progress or (lambda done, total: True))
    return Path(target)


def _checked_group(group: int, format: str, head: str | None) -> int:
    used = {format, head}
    if group and not used & _GROUPED:
        raise InvalidArgumentError(
            f"group: {group}, but {format} has one scale for each output row; leave it out"
        )
    if group not in (0, 32) and "mxfp4" in used:
        raise InvalidArgumentError(f"group: {group}, but mxfp4 has groups of 32; leave it out")
    return group


def _format_named(name: str, value: Any) -> str:
    known = choice(name, value, [*FORMATS, *_ALIASES])
    return _ALIASES.get(known, known)


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
            if self._config.get("tie_word_embeddings") is True:
                # The embedding is the head: what else is stored is not read.
                self._tensors.pop("lm_head.weight", None)
            self._plan = [(name, self._format_of(name)) for name in self._tensors]
            self._head_from_embedding = bool(head) and "lm_head.weight" not in self._tensors
            if not any(f for _, f in self._plan):
                raise UnsupportedError(f"{directory}: no linear layers of a known name to quantize")
            # A group that does not divide a width is refused before the output exists.
            for name, found in self._plan:
                if found:
                    self._cast(name, found, next(self._rows(self._tensors[name], 1)))
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
                    begin, end = info["data_offsets"]
                    self._tensors[tensor] = _Stored(
                        file, info["dtype"], info["shape"], 8 + size + begin, end - begin
                    )

    def _format_of(self, name: str) -> str | None:
        stem, _, kind = name.rpartition(".")
        if kind != "weight" or len(self._tensors[name].shape) != 2:
            return None
        if stem == "lm_head":
            return self._head
        return self._format if _LINEAR.fullmatch(stem) else None

    def _cast(self, name: str, format: str, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        group = self._group if format in _GROUPED else 0
        try:
            return _core.cast(format, rows, group)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{self._directory}: tensor {name}: {error}") from None

    def _rows(self, tensor: _Stored, limit: int | None = None) -> Iterator[np.ndarray]:
        """f32 rows of a 16- or 32-bit matrix, a bounded chunk at a time."""
        kinds = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}
        if tensor.dtype not in kinds:
            raise UnsupportedError(
                f"{tensor.file.name}: a weight of dtype {tensor.dtype}; 16- and 32-bit ones are cast"
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
        layout, (n, k) = _LAYOUTS[format], shape
        group = self._groups[format]
        specs = [TensorSpec(f"{stem}.{layout.codes}", layout.dtype, (n, layout.columns(k))),
                 TensorSpec(f"{stem}.weight_scale", layout.scale_dtype, (n, k // group if group else 1))]  # fmt: skip
        return specs + (
            [TensorSpec(f"{stem}.weight_shape", "I64", (2,))] if layout.with_shape else []
        )

    def write(self, work: Path, progress: Report) -> None:
        """Writes all files into `work`."""
        self._groups = {}
        for name, format in [
            *self._plan,
            *([("model.embed_tokens.weight", self._head)] if self._head_from_embedding else []),
        ]:
            if format and format not in self._groups:
                self._groups[format] = self._cast(
                    name, format, next(self._rows(self._tensors[name], 1))
                )[2]
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
        layout = _LAYOUTS[format]
        scales = []
        for rows in self._rows(tensor):
            codes, scale, _ = self._cast(name, format, rows)
            writer.write(f"{stem}.{layout.codes}", layout.pack(codes).tobytes())
            scales.append(layout.pack_scales(scale))
            yield rows.size * tensor.bytes // (tensor.shape[0] * tensor.shape[1])
        writer.write(f"{stem}.weight_scale", np.concatenate(scales).tobytes())
        if layout.with_shape:
            writer.write(f"{stem}.weight_shape", np.array(tensor.shape, "<i8").tobytes())

    def _new_config(self) -> dict[str, Any]:
        groups = {"group_0": self._group_config(self._format, ["Linear"])}
        format = _LAYOUTS[self._format].format
        config = dict(self._config)
        if self._head and self._head != self._format:
            groups["group_1"] = self._group_config(self._head, ["lm_head"])
            if _LAYOUTS[self._head].format != format:
                format = "mixed-precision"
        if self._head_from_embedding:
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

    def _group_config(self, format: str, targets: list[str]) -> dict[str, Any]:
        layout = _LAYOUTS[format]
        weights = dict(layout.weights)
        if weights["strategy"] == "group":
            weights["group_size"] = self._groups[format]
        return {"targets": targets, "weights": weights, "input_activations": layout.inputs,
                "output_activations": None, "format": layout.format}  # fmt: skip
