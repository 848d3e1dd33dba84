"""Which keys of a GGUF file are known to say nothing about the arithmetic, or nothing here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..base.arguments import shown
from ..base.errors import UnsupportedError

# Read by convert, or without a meaning for what a model computes. After `{arch}.`:
_READ = frozenset(
    "block_count context_length embedding_length feed_forward_length vocab_size tensor_data_layout "
    "attention.head_count attention.head_count_kv attention.key_length attention.value_length "
    "attention.layer_norm_rms_epsilon attention.sliding_window rope.dimension_count rope.freq_base "
    "rope.scale_linear rope.scaling.type rope.scaling.factor rope.scaling.original_context_length "
    "rope.scaling.finetuned rope.scaling.attn_factor rope.scaling.yarn_attn_factor "
    "rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow".split()
)
# Where another number than 0 changes nothing either.
_NEUTRAL = {
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "embedding_scale": 1.0,
    "attention.output_scale": 1.0,
    "attention.causal": True,
    "rope.scaling.yarn_ext_factor": -1.0,
}
# Of a tokenizer, where a value that is not 0, False or empty asks for something that is not built.
_TOKENIZER = ("remove_extra_whitespaces", "precompiled_charsmap", "add_sep_token", "normalizer")


def check_keys(path: str, arch: str, fields: dict[str, Any], head_dim: int) -> None:
    """Refuses by name what would change the model and is not read here, unless its value is neutral."""
    yarn = fields.get(f"{arch}.rope.scaling.type") == "yarn"
    for key, value in fields.items():
        if key == "split.count" and value > 1:
            raise UnsupportedError(
                f"{path}: is one of {value} parts of a model; join them first (llama-gguf-split --merge)"
            )
        name = key.removeprefix(f"{arch}.")
        nothing = _is_nothing(value) and name != "attention.causal"
        if name == key or name in _READ or nothing:
            tokenizer = key.removeprefix("tokenizer.ggml.")
            if tokenizer in _TOKENIZER and not _is_nothing(value):
                raise UnsupportedError(f"{path}: {key} is {shown(value)}, which is not converted")
            continue
        neutral = [_NEUTRAL.get(name, 0)]
        if name == "attention.scale":
            neutral.append(1 / math.sqrt(head_dim))
        if name == "rope.scaling.yarn_ext_factor" and yarn:
            neutral.append(1.0)
        if not isinstance(value, (int, float)) or not any(
            math.isclose(value, n, rel_tol=1e-6) for n in neutral
        ):
            raise UnsupportedError(
                f"{path}: {key} is {shown(value)}, which may change what the model computes and is not "
                "converted; convert from the original checkpoint"
            )


def _is_nothing(value: Any) -> bool:
    """0, False, an empty text, or a list of nothing else."""
    if isinstance(value, np.ndarray):
        return not value.any()
    return not any(value) if isinstance(value, list) else not value
