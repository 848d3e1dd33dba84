"""GGUF -> Hugging Face directory: weights dequantized to 16 bits, tokenizer and template included."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..base.arguments import callback, choice, flag, path, shown, suggesting
from ..base.errors import ModelFormatError, UnsupportedError
from ..base.progress import Report
from .gguf_file import GgufFile, GgufTensor
from .gguf_keys import check_keys
from .gguf_tokenizer import Vocabulary
from .output import SafetensorsWriter, TensorSpec, check_apart, new_directory, write_json

# general.architecture -> HF architecture, model_type, whether q and k rows are stored interleaved.
_FAMILIES = {
    "llama": ("LlamaForCausalLM", "llama", True),
    "mistral": ("MistralForCausalLM", "mistral", True),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", False),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", False),
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_DTYPES = {"bf16": ("BF16", "bfloat16"), "f16": ("F16", "float16")}


@suggesting
def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dtype: str = "bf16",
    force: bool = False,
    progress: Report | None = None,
) -> Path:
    """Writes the model in GGUF file `source` as the directory `target` and returns its path.

    The directory appears whole or not at all; an existing one that is not empty needs `force`.
    """
    choice("dtype", dtype, _DTYPES)
    flag("force", force)
    callback("progress", progress)
    target = path("target", target)
    source = path("source", source)
    check_apart(source, target)
    with GgufFile(source) as file:
        plan = _Plan(file, dtype)
        with new_directory(target, force) as work:
            plan.write(work, progress or (lambda done, total: True))
    return Path(target)


class _Plan:
    """What each tensor of the file becomes, decided and checked before anything is written."""

    def __init__(self, file: GgufFile, dtype: str):
        self.file, self.dtype = file, dtype
        self.arch = self._field("general.architecture", str)
        if self.arch not in _FAMILIES:
            raise UnsupportedError(
                f"{file.path}: architecture {shown(self.arch)}; converted are {', '.join(_FAMILIES)}"
            )
        self.architecture, self.model_type, self.interleaved = _FAMILIES[self.arch]
        self.vocabulary = Vocabulary(file)
        self._numbers()
        check_keys(file.path, self.arch, file.fields, self.head_dim)
        self.specs: list[tuple[TensorSpec, str, Callable[[np.ndarray], np.ndarray] | None]] = []
        for name in file.tensors:
            self._place(name)
        self._check_complete()

    def _bad(self, what: str) -> ModelFormatError:
        return ModelFormatError(f"{self.file.path}: {what}")

    def _field(self, key: str, kind: Any, default: Any = None) -> Any:
        value = self.file.fields.get(key, default)
        if value is None:
            raise self._bad(f"field {key} is missing")
        if not isinstance(value, kind) or isinstance(value, bool) and kind is not bool:
            raise self._bad(f"field {key} is {str(value)[:40]!r}, of the wrong type")
        return value

    def _count(self, key: str, default: int | None = None, limit: int = 1 << 24) -> int:
        value = self._field(f"{self.arch}.{key}", int, default)
        if not 1 <= value <= limit:
            raise self._bad(f"field {self.arch}.{key} is {value}, outside 1..{limit}")
        return value

    def _real(self, key: str, default: float | None = None) -> float:
        value = self._field(f"{self.arch}.{key}", (int, float), default)
        # The shortest decimal that is the stored float32: 1e-05 and not 9.99999974e-06.
        value = float(str(np.float32(value)))
        if not np.isfinite(value) or value <= 0:
            raise self._bad(f"field {self.arch}.{key} is {value}, not a positive number")
        return value

    def _numbers(self) -> None:
        self.layers = self._count("block_count", limit=4096)
        self.width = self._count("embedding_length")
        self.ffn = self._count("feed_forward_length")
        self.heads = self._count("attention.head_count")
        self.kv_heads = self._count("attention.head_count_kv", self.heads)
        if self.heads % self.kv_heads:
            raise self._bad(
                f"{self.heads} query heads are not a multiple of {self.kv_heads} key heads"
            )
        self.head_dim = self._count("attention.key_length", max(1, self.width // self.heads))
        if self._count("attention.value_length", self.head_dim) != self.head_dim:
            raise UnsupportedError(f"{self.file.path}: keys and values of different widths")
        if self._count("rope.dimension_count", self.head_dim) != self.head_dim or self.head_dim % 2:
            raise UnsupportedError(f"{self.file.path}: rotary embedding over a part of the head")
        self.positions = self._count("context_length", limit=1 << 30)
        self.eps = self._real("attention.layer_norm_rms_epsilon")
        self.theta = self._real("rope.freq_base", 10000.0)
        embedding = self.file.tensors.get("token_embd.weight")
        if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != self.width:
            raise self._bad(
                f"tensor token_embd.weight [vocabulary, {self.width}] is missing or misshapen"
            )
        self.vocab = embedding.shape[0]
        if self.vocab < len(self.vocabulary.tokens):
            raise self._bad(
                f"{len(self.vocabulary.tokens)} tokens, but token_embd.weight has {self.vocab} rows"
            )

    def _shape(self, stem: str, kind: str) -> tuple[int, ...]:
        q, kv, w = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.width
        shapes = {
            "attn_norm": (w,), "ffn_norm": (w,), "output_norm": (w,),
            "attn_q_norm": (self.head_dim,), "attn_k_norm": (self.head_dim,),
            "attn_q": (q, w), "attn_k": (kv, w), "attn_v": (kv, w), "attn_output": (w, q),
            "ffn_gate": (self.ffn, w), "ffn_up": (self.ffn, w), "ffn_down": (w, self.ffn),
            "token_embd": (self.vocab, w), "output": (self.vocab, w),
        }  # fmt: skip
        return shapes[stem] if kind == "weight" else shapes[stem][:1]

    def _place(self, name: str) -> None:
        if name == "rope_freqs.weight":
            return
        parts = name.split(".")
        stem, kind = parts[-2] if len(parts) > 1 else "", parts[-1]
        layer = (
            len(parts) == 4
            and parts[0] == "blk"
            and parts[1].isascii()
            and parts[1].isdecimal()
            and len(parts[1]) < 5
            and int(parts[1]) < self.layers
        )
        known = (layer and stem in _LAYER) or (len(parts) == 2 and stem in _TOP)
        if (
            not known
            or kind not in ("weight", "bias")
            or (kind == "bias" and not stem.startswith("attn_"))
        ):
            raise UnsupportedError(
                f"{self.file.path}: tensor {name} belongs to no {self.arch} model known here"
            )
        expected, tensor = self._shape(stem, kind), self.file.tensors[name]
        if tensor.shape != expected:
            raise self._bad(
                f"tensor {name} has shape {list(tensor.shape)}, expected {list(expected)}"
            )
        target = (
            f"model.layers.{parts[1]}.{_LAYER[stem]}.{kind}" if layer else f"{_TOP[stem]}.{kind}"
        )
        fix = self._deinterleave if self.interleaved and stem in ("attn_q", "attn_k") else None
        self.specs.append((TensorSpec(target, _DTYPES[self.dtype][0], expected), name, fix))

    def _deinterleave(self, rows: np.ndarray) -> np.ndarray:
        """llama.cpp rotates neighbouring pairs of rows, Hugging Face the two halves of a head."""
        heads = rows.shape[0] // self.head_dim
        return rows.reshape(heads, self.head_dim // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)

    def _check_complete(self) -> None:
        have = {spec.name for spec, _, _ in self.specs}
        stems = [
            v
            for k, v in _LAYER.items()
            if "q_norm" not in k and "k_norm" not in k or self.arch == "qwen3"
        ]
        need = {f"model.layers.{i}.{stem}.weight" for i in range(self.layers) for stem in stems}
        missing = sorted((need | {"model.norm.weight"}) - have)
        if missing:
            raise self._bad(
                f"{len(missing)} tensors are missing, the first would become {missing[0]}"
            )
        self.tied = "lm_head.weight" not in have
        biased = {i.split(".", 3)[3] for i in have if i.endswith(".bias")}
        self.qkv_bias = "self_attn.q_proj.bias" in biased
        self.o_bias = "self_attn.o_proj.bias" in biased
        for stem in biased:
            missing = [i for i in range(self.layers) if f"model.layers.{i}.{stem}" not in have]
            if missing:
                raise self._bad(f"layer {missing[0]} lacks the bias {stem} that other layers have")

    def _rope_scaling(self) -> dict[str, Any] | None:
        prefix = f"{self.arch}.rope.scaling."
        factor, stretch = self._rope_factor(), self._attention_stretch()
        # As llama.cpp reads it: a factor without a type is linear, one of type none is left alone.
        kind = self._field(prefix + "type", str, "linear" if factor != 1 else "none")
        if kind not in ("none", "linear", "yarn"):
            raise UnsupportedError(
                f"{self.file.path}: {prefix}type is {shown(kind)}; linear and yarn are converted"
            )
        if kind == "none" or kind == "linear" and factor == 1:
            kind = "none"
        if kind != "yarn" and stretch != 1:
            raise UnsupportedError(
                f"{self.file.path}: {prefix}attn_factor is {stretch} without yarn"
            )
        if "rope_freqs.weight" in self.file.tensors:
            if kind != "none":
                raise UnsupportedError(
                    f"{self.file.path}: rope_freqs.weight and {prefix}type {kind} at once"
                )
            return self._llama3_scaling(self.file.tensors["rope_freqs.weight"])
        if kind == "none":
            return None
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        scaling = {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": self._count(
                "rope.scaling.original_context_length", limit=1 << 30
            ),
        }
        if stretch != 1:
            # There a factor on yarn's own stretch of cosines and sines, in Hugging Face the whole.
            scaling["attention_factor"] = stretch * (1 + 0.1 * math.log(max(factor, 1)))
        for stored, name in {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}.items():
            if prefix + stored in self.file.fields:
                scaling[name] = self._real(f"rope.scaling.{stored}")
        return scaling

    def _rope_factor(self) -> float:
        """How far positions are stretched, under its name of today or the older one; 0 and 1: not."""
        found = {
            self._real(key)
            for key in ("rope.scaling.factor", "rope.scale_linear")
            if self.file.fields.get(f"{self.arch}.{key}")
        } or {1.0}
        if len(found) > 1:
            raise self._bad(
                f"{self.arch}.rope.scaling.factor and {self.arch}.rope.scale_linear differ"
            )
        return found.pop()

    def _attention_stretch(self) -> float:
        """What cosines and sines are multiplied with beside what yarn does."""
        out = 1.0
        for key in ("rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"):
            if f"{self.arch}.{key}" in self.file.fields:
                out *= self._real(key)
        return out

    def _llama3_scaling(self, tensor: GgufTensor) -> dict[str, Any]:
        """Finds the llama3 parameters whose factors are the stored ones, to the last bit that counts."""
        half = self.head_dim // 2
        if tensor.shape != (half,):
            raise self._bad(
                f"tensor rope_freqs.weight has shape {list(tensor.shape)}, expected [{half}]"
            )
        factors = np.concatenate([r.ravel() for r in self.file.rows(tensor.name)]).astype(
            np.float64
        )
        wave = 2 * np.pi * self.theta ** (np.arange(half) / half)
        for original in (8192, 4096, 16384, 32768):
            for low, high in ((1.0, 4.0),):
                factor = float(factors.max())
                blend = (original / wave - low) / (high - low)
                smooth = 1 / ((1 - blend) / factor + blend)
                guess = np.where(
                    wave < original / high, 1.0, np.where(wave > original / low, factor, smooth)
                )
                if np.allclose(guess, factors, rtol=1e-4):
                    return {
                        "rope_type": "llama3", "factor": factor, "low_freq_factor": low,
                        "high_freq_factor": high, "original_max_position_embeddings": original,
                    }  # fmt: skip
        raise UnsupportedError(
            f"{self.file.path}: rope_freqs.weight follows no llama3 rope scaling known here"
        )

    def config(self) -> dict[str, Any]:
        """config.json."""
        ends = self.vocabulary.end_tokens()
        config: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "hidden_size": self.width,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.positions,
            "rms_norm_eps": self.eps,
            "rope_theta": self.theta,
            "rope_scaling": self._rope_scaling(),
            "tie_word_embeddings": self.tied,
            "torch_dtype": _DTYPES[self.dtype][1],
            "vocab_size": self.vocab,
            "bos_token_id": self.vocabulary.bos,
            "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        }
        window = self._field(f"{self.arch}.attention.sliding_window", int, 0)
        if window and self.arch == "mistral":
            config["sliding_window"] = window
        elif window:
            raise UnsupportedError(
                f"{self.file.path}: {self.arch}.attention.sliding_window is {window}"
            )
        if self.arch in ("llama", "mistral", "qwen3"):
            if self.qkv_bias or self.o_bias:
                if not (self.qkv_bias and self.o_bias) or self.arch == "mistral":
                    raise UnsupportedError(
                        f"{self.file.path}: biases on some attention projections only"
                    )
            if self.arch != "mistral":
                config["attention_bias"] = self.qkv_bias
        if self.arch == "llama":
            config["mlp_bias"] = False
        return config

    def write(self, work: Path, progress: Report) -> None:
        """Writes all files into `work`."""
        config = self.config()
        write_json(work / "config.json", {k: v for k, v in config.items() if v is not None})
        generation = {
            k: config[k] for k in ("bos_token_id", "eos_token_id") if config[k] is not None
        }
        write_json(work / "generation_config.json", generation)
        self.vocabulary.write(work)
        writer = SafetensorsWriter(work, [spec for spec, _, _ in self.specs])
        done = 0
        try:
            for spec, name, fix in self.specs:
                pieces = self.file.rows(name)
                if fix:
                    rows = np.concatenate(list(pieces))
                    flat = len(spec.shape) == 1
                    pieces = iter([fix(rows.reshape(-1, 1) if flat else rows)])
                for values in pieces:
                    codes = self._round(values, name)
                    writer.write(spec.name, codes.tobytes())
                    done += codes.nbytes
                    progress(done, writer.total_bytes)
            writer.close()
        finally:
            writer.abort()

    def _round(self, values: np.ndarray, name: str) -> np.ndarray:
        if not np.isfinite(values).all():
            raise self._bad(f"tensor {name} holds values that are not finite")
        if self.dtype == "bf16":
            return to_bf16(values)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half).all():
            raise self._bad(
                f"tensor {name} has values beyond 65504, the largest f16; use --dtype bf16"
            )
        return half


def to_bf16(values: np.ndarray) -> np.ndarray:
    """f32 -> bf16 codes (uint16), round to nearest even; the values must be finite."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return (
        (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    ).astype(np.uint16)
