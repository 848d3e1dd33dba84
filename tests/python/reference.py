"""The whole model in numpy and float64, written for reading: the oracle of the engine's logits.

It knows nothing of the engine: weights come from safetensors files, quantized ones from the
compressed-tensors layouts they are stored in.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


class Weights:
    """Tensors of a directory by name, as float64."""

    def __init__(self, directory: Path):
        self.config = json.loads((directory / "config.json").read_text())
        files = sorted(directory.glob("*.safetensors"))
        self._raw: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
        for path in files:
            data = path.read_bytes()
            n = int.from_bytes(data[:8], "little")
            for name, info in json.loads(data[8 : 8 + n]).items():
                if name != "__metadata__":
                    a, b = info["data_offsets"]
                    self._raw[name] = (
                        info["dtype"],
                        tuple(info["shape"]),
                        data[8 + n + a : 8 + n + b],
                    )

    def __contains__(self, name: str) -> bool:
        return name in self._raw

    def raw(self, name: str) -> np.ndarray:
        dtype, shape, data = self._raw[name]
        if dtype == "BF16":
            return (
                (np.frombuffer(data, np.uint16).astype(np.uint32) << 16)
                .view(np.float32)
                .reshape(shape)
            )
        kinds = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "I64": "<i8", "I8": "i1", "U8": "u1"}
        return np.frombuffer(data, kinds[dtype]).reshape(shape)

    def linear(self, prefix: str) -> np.ndarray:
        """The dequantized weight [n, k] of a linear layer, however it is stored."""
        if prefix + ".weight" in self and prefix + ".weight_scale" not in self:
            return self.raw(prefix + ".weight").astype(np.float64)
        scale = self.raw(prefix + ".weight_scale")
        if prefix + ".weight_shape" in self:
            n, k = (int(d) for d in self.raw(prefix + ".weight_shape"))
            packed = self.raw(prefix + ".weight_packed").view(np.uint32)
            bits = 32 * packed.shape[1] // k
            shifts = bits * np.arange(32 // bits, dtype=np.uint32)
            codes = (packed[:, :, None] >> shifts & (2**bits - 1)).reshape(n, -1)[:, :k]
            values = codes.astype(np.float64) - 2 ** (bits - 1)
        elif prefix + ".weight_packed" in self:
            packed = self.raw(prefix + ".weight_packed")
            codes = np.stack([packed & 15, packed >> 4], axis=-1).reshape(packed.shape[0], -1)
            values = E2M1[codes]
            scale = 2.0 ** (scale.astype(np.float64) - 127)
        else:
            values = self.raw(prefix + ".weight").astype(np.float64)
        scale = scale.astype(np.float64).reshape(values.shape[0], -1)
        return values * np.repeat(scale, values.shape[1] // scale.shape[1], axis=1)


def rope_frequencies(config: dict, head_dim: int) -> tuple[np.ndarray, float]:
    """Inverse frequency of each pair and the factor on cos and sin."""
    half = head_dim // 2
    theta = config.get("rope_theta", 10000.0)
    freq = theta ** (-np.arange(half) / half)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "linear":
        return freq / scaling["factor"], 1.0
    if kind == "llama3":
        original = scaling["original_max_position_embeddings"]
        low, high, factor = (
            scaling["low_freq_factor"],
            scaling["high_freq_factor"],
            scaling["factor"],
        )
        wave = 2 * math.pi / freq
        smooth = np.clip((original / wave - low) / (high - low), 0, 1)
        return (1 - smooth) * freq / factor + smooth * freq, 1.0
    if kind == "yarn":
        original = scaling.get(
            "original_max_position_embeddings", config["max_position_embeddings"]
        )
        fast, slow, factor = (
            scaling.get("beta_fast", 32),
            scaling.get("beta_slow", 1),
            scaling["factor"],
        )

        def dim_of(turns: float) -> float:
            return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = max(math.floor(dim_of(fast)), 0), min(math.ceil(dim_of(slow)), head_dim - 1)
        ramp = np.clip((np.arange(half) - low) / max(high - low, 0.001), 0, 1)
        return freq / factor * ramp + freq * (1 - ramp), 0.1 * math.log(
            factor
        ) + 1 if factor > 1 else 1.0
    return freq, 1.0


def int8_rows(x: np.ndarray, group: int) -> np.ndarray:
    """x with each group of each row rounded to int8 by its largest magnitude, in float32 steps."""
    parts = x.astype(np.float32).reshape(x.shape[0], -1, group)
    scale = np.abs(parts).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(parts / np.where(scale == 0, 1, scale))
    return (codes.astype(np.float64) * scale).reshape(x.shape)


def bf16(x: np.ndarray) -> np.ndarray:
    """x rounded to bf16."""
    bits = x.astype(np.float32).view(np.uint32)
    return (
        ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000)
        .astype(np.uint32)
        .view(np.float32)
        .astype(np.float64)
    )


def f16(x: np.ndarray) -> np.ndarray:
    """x rounded to f16."""
    return x.astype(np.float16).astype(np.float64)


class Model:
    """Logits of token ids by the textbook formulas.

    `rounded`: what passes from one operator to the next is rounded to the model's 16-bit type, as
    any engine does in one place or another; the distance to the exact model is what that costs.
    """

    def __init__(self, directory: Path, rounded: bool = False):
        self.w = Weights(Path(directory))
        half = f16 if self.w.config.get("torch_dtype") == "float16" else bf16
        self.round = half if rounded else lambda x: x
        c = self.config = self.w.config
        self.heads, self.kv = (
            c["num_attention_heads"],
            c.get("num_key_value_heads", c["num_attention_heads"]),
        )
        self.dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self._cache: dict[str, np.ndarray] = {}
        quant = c.get("quantization_config", {}).get("config_groups", {}).get("group_0", {})
        self.int8_inputs = bool(quant.get("input_activations"))

    def linear(self, x: np.ndarray, prefix: str) -> np.ndarray:
        if prefix not in self._cache:
            self._cache[prefix] = self.w.linear(prefix)
        if self.int8_inputs and prefix + ".weight_scale" in self.w:
            x = int8_rows(x, x.shape[-1])
        y = self.round(x) @ self._cache[prefix].T
        return self.round(y + self.w.raw(prefix + ".bias") if prefix + ".bias" in self.w else y)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        scale = np.sqrt((x * x).mean(-1, keepdims=True) + self.config["rms_norm_eps"])
        return x / scale * self.w.raw(name).astype(np.float64)

    def rotate(self, x: np.ndarray) -> np.ndarray:
        freq, factor = rope_frequencies(self.config, self.dim)
        angle = np.arange(x.shape[0])[:, None] * freq
        cos, sin = np.cos(angle)[:, None] * factor, np.sin(angle)[:, None] * factor
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def attention(self, x: np.ndarray, at: str) -> np.ndarray:
        t = x.shape[0]
        q = self.linear(x, at + ".q_proj").reshape(t, self.heads, self.dim)
        k = self.linear(x, at + ".k_proj").reshape(t, self.kv, self.dim)
        v = self.linear(x, at + ".v_proj").reshape(t, self.kv, self.dim)
        if at + ".q_norm.weight" in self.w:
            q, k = self.norm(q, at + ".q_norm.weight"), self.norm(k, at + ".k_norm.weight")
        q, k = self.round(self.rotate(q)), self.round(self.rotate(k))
        k, v = (np.repeat(z, self.heads // self.kv, axis=1) for z in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(self.dim)
        scores = np.where(np.tril(np.ones((t, t), bool)), scores, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        return self.linear(np.einsum("hqk,khd->qhd", p, v).reshape(t, -1), at + ".o_proj")

    def logits(self, tokens: list[int]) -> np.ndarray:
        """f64 [tokens, vocabulary]."""
        embedding = self.w.raw("model.embed_tokens.weight").astype(np.float64)
        x = embedding[np.asarray(tokens)]
        for i in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{i}"
            x = x + self.attention(self.norm(x, at + ".input_layernorm.weight"), at + ".self_attn")
            x = self.round(x)
            h = self.norm(x, at + ".post_attention_layernorm.weight")
            gate, up = self.linear(h, at + ".mlp.gate_proj"), self.linear(h, at + ".mlp.up_proj")
            x = self.round(x + self.linear(gate / (1 + np.exp(-gate)) * up, at + ".mlp.down_proj"))
        x = self.norm(x, "model.norm.weight")
        if "lm_head.weight" in self.w or "lm_head.weight_scale" in self.w:
            return self.linear(x, "lm_head")
        return self.round(x) @ embedding.T
