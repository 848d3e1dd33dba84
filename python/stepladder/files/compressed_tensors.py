"""How the compressed-tensors layouts store the engine's casts. What decides is the type of a cast's
codes and scales, not the name of its format: a format that the engine gains is written too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from .._core import Format, formats

if TYPE_CHECKING:
    import numpy as np  # at run time inside what packs: the command's options come from here too


def packed_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Signed codes of `bits`, each plus half their range, the first in the low bits of each int32."""
    import numpy as np

    per = 32 // bits
    unsigned = codes.astype(np.int16) + (1 << bits - 1)
    unsigned = np.pad(unsigned, ((0, 0), (0, -codes.shape[1] % per)))
    shifts = np.arange(per, dtype=np.uint32) * bits
    words = unsigned.astype(np.uint32).reshape(codes.shape[0], -1, per) << shifts
    return np.bitwise_or.reduce(words, axis=-1).astype("<u4")


def packed_nibbles(codes: np.ndarray) -> np.ndarray:
    """Two 4-bit codes a byte, the first in its low half."""
    nibbles = codes.view("u1")
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4


class _Codes(NamedTuple):
    """How codes of a type are stored: the word for it, a tensor's name and dtype, its columns for k
    weights a row, and what packs them."""

    layout: str
    bits: int
    kind: str
    tensor: str
    dtype: str
    columns: Callable[[int], int]
    pack: Callable[[np.ndarray], np.ndarray]
    with_shape: bool


_CODES = {
    "i8": _Codes("pack-quantized", 8, "int", "weight_packed", "I32", lambda k: -(-k // 4),
                 lambda codes: packed_words(codes, 8), True),
    "i4": _Codes("pack-quantized", 4, "int", "weight_packed", "I32", lambda k: -(-k // 8),
                 lambda codes: packed_words(codes, 4), True),
    "e2m1": _Codes("mxfp4-pack-quantized", 4, "float", "weight_packed", "U8", lambda k: k // 2,
                   packed_nibbles, False),
}  # fmt: skip
# Whole bytes need no packing once the activations are bytes as well.
_BYTES = _Codes("int-quantized", 8, "int", "weight", "I8", lambda k: k, lambda codes: codes, False)


def _exponents(scales: np.ndarray) -> np.ndarray:
    """Powers of two as a byte each."""
    import numpy as np

    return (np.frexp(scales)[1] + 126).astype(np.uint8)


# The casts give scales that these types hold exactly.
_SCALES: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "f32": ("F32", lambda scales: scales.astype("<f4")),
    "f16": ("F16", lambda scales: scales.astype("<f2")),
    "bf16": ("BF16", lambda scales: (scales.view("u4") >> 16).astype("<u2")),
    "e8m0": ("U8", _exponents),
}


def _numbers(bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "group_size": None,
            "dynamic": False, "actorder": None, "block_structure": None, "observer": "minmax",
            "observer_kwargs": {}} | more  # fmt: skip


class Layout(NamedTuple):
    """How a format is stored: its codes, its scales, and the words of config.json."""

    codes: _Codes
    scale_dtype: str
    pack_scales: Callable[[np.ndarray], np.ndarray]
    grouped: bool
    weights: dict[str, Any]
    inputs: dict[str, Any] | None

    def config(self, targets: list[str], group: int) -> dict[str, Any]:
        """An entry of config_groups."""
        weights = self.weights | ({"group_size": group} if self.grouped else {})
        return {"targets": targets, "weights": weights, "input_activations": self.inputs,
                "output_activations": None, "format": self.codes.layout}  # fmt: skip


def layout_of(format: Format) -> Layout | None:
    """The layout of the engine's casts to `format`; None where compressed-tensors has none."""
    if not format.castable or format.code not in _CODES or format.scale not in _SCALES:
        return None
    if (format.code == "e2m1") != (format.scale == "e8m0"):
        return None
    by_token = format.acts[0] == "a8"
    codes = _BYTES if by_token and format.code == "i8" else _CODES[format.code]
    more = {"scale_dtype": "torch.uint8"} if format.scale == "e8m0" else {}
    strategy = "group" if format.group else "channel"
    inputs = _numbers(8, "int", "token", dynamic=True, observer=None) if by_token else None
    return Layout(codes, *_SCALES[format.scale], format.group > 0,
                  _numbers(codes.bits, codes.kind, strategy, **more), inputs)  # fmt: skip


LAYOUTS = {f.name: layout for f in formats() if (layout := layout_of(f)) is not None}
ALIASES = {f.alias: f.name for f in formats() if f.alias and f.name in LAYOUTS}
