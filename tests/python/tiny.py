"""Tiny random models of every family with a real tokenizer, as Hugging Face directories and GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from stepladder.files.convert import to_bf16
from stepladder.files.output import SafetensorsWriter, TensorSpec
from stepladder.text.vocabulary import byte_alphabet

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "h e", "Ġ t", "i n", "e r", "a n", "Ġ a", "th e", "Ġ the", "Ġt he", "o u", "r e"]
ROPE = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64},
    "linear": {"rope_type": "linear", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
}  # fmt: skip
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def vocabulary() -> list[str]:
    """Specials, all bytes, and a few merged tokens."""
    merged = [m.replace(" ", "") for m in MERGES]
    return [*SPECIALS, *byte_alphabet(), *dict.fromkeys(merged)]


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    """A byte-level BPE tokenizer over vocabulary()."""
    special = [
        {"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, t in enumerate(SPECIALS)
    ]  # fmt: skip
    tree = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": special, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {t: i for i, t in enumerate(vocabulary())}, "merges": [m.split(" ") for m in MERGES]},
    }  # fmt: skip
    return tree | changes


def config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """config.json of a tiny model."""
    base = {
        "architectures": [FAMILIES[family]], "model_type": family, "hidden_act": "silu", "hidden_size": 128,
        "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 32, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16", "vocab_size": 288, "bos_token_id": 1,
        "eos_token_id": 2,
    }  # fmt: skip
    return base | changes


def tensors(c: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random f32 weights for a config, lively enough that the next token is not always the same."""
    rng = np.random.default_rng(seed)
    w, f, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv, family = c["num_attention_heads"] * d, c["num_key_value_heads"] * d, c["model_type"]

    def matrix(n: int, k: int, scale: float = 1.5) -> np.ndarray:
        return (rng.standard_normal((n, k)) * scale / np.sqrt(k)).astype(np.float32)

    def gain(n: int) -> np.ndarray:
        return (1 + 0.2 * rng.standard_normal(n)).astype(np.float32)

    out = {"model.embed_tokens.weight": matrix(c["vocab_size"], w, 3.0)}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        out[p + "input_layernorm.weight"] = gain(w)
        out[p + "post_attention_layernorm.weight"] = gain(w)
        shapes = {"q": (q, w), "k": (kv, w), "v": (kv, w), "o": (w, q)}
        for name, (n, k) in shapes.items():
            out[f"{p}self_attn.{name}_proj.weight"] = matrix(n, k)
            if family == "qwen2" and name != "o":
                out[f"{p}self_attn.{name}_proj.bias"] = 0.3 * rng.standard_normal(n).astype(
                    np.float32
                )
        if family == "qwen3":
            out[p + "self_attn.q_norm.weight"] = gain(d)
            out[p + "self_attn.k_norm.weight"] = gain(d)
        for name, (n, k) in {"gate": (f, w), "up": (f, w), "down": (w, f)}.items():
            out[f"{p}mlp.{name}_proj.weight"] = matrix(n, k)
    out["model.norm.weight"] = gain(w)
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = matrix(c["vocab_size"], w, 3.0)
    return out


def write_tensors(directory: Path, values: dict[str, np.ndarray], dtype: str = "BF16") -> None:
    """model.safetensors from arrays: f32 ones as `dtype`, whole numbers as they are."""
    whole = {"i": {1: "I8", 4: "I32", 8: "I64"}, "u": {1: "U8", 4: "I32"}}

    def kind(value: np.ndarray) -> str:
        return whole[value.dtype.kind][value.dtype.itemsize] if value.dtype.kind in whole else dtype

    writer = SafetensorsWriter(
        directory, [TensorSpec(n, kind(v), v.shape) for n, v in values.items()]
    )
    for name, value in values.items():
        types = {"BF16": to_bf16, "F16": np.float16, "F32": np.float32}
        writer.write(name, (types[dtype](value) if kind(value) == dtype else value).tobytes())
    writer.close()


def write_tokenizer(directory: Path, tree: dict[str, Any] | None = None, **settings: Any) -> None:
    """tokenizer.json and tokenizer_config.json."""
    (directory / "tokenizer.json").write_text(
        json.dumps(tree or tokenizer_json(), ensure_ascii=False)
    )
    base = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(base | settings))


def write_model(
    directory: Path, family: str = "llama", seed: int = 0, dtype: str = "BF16", **changes: Any
) -> Path:
    """A whole model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    c = config(family, **changes)
    if dtype == "F16":
        c["torch_dtype"] = "float16"
    (directory / "config.json").write_text(json.dumps(c))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}))
    write_tensors(directory, tensors(c, seed), dtype)
    write_tokenizer(directory)
    return directory


def write_head(directory: Path, family: str = "llama", seed: int = 9, **changes: Any) -> Path:
    """The directory of a random EAGLE-2 head for config(family)."""
    directory.mkdir(parents=True, exist_ok=True)
    c = config(family, num_hidden_layers=1) | changes
    (directory / "config.json").write_text(json.dumps(c))
    layer = {
        name.removeprefix("model."): value
        for name, value in tensors(c, seed).items()
        if ".layers." in name and "input_layernorm" not in name
    }
    rng, width = np.random.default_rng(seed), c["hidden_size"]
    fc = rng.standard_normal((width, 2 * width)) / np.sqrt(2 * width)
    bias = 0.2 * rng.standard_normal(width)
    values = {"fc.weight": fc.astype(np.float32), "fc.bias": bias.astype(np.float32)}
    write_tensors(directory, values | layer)
    return directory


GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    """The name llama.cpp gives a Hugging Face tensor."""
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, kind = name.rpartition(".")
    if stem in top:
        return f"{top[stem]}.{kind}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest]}.{kind}"


def interleave(value: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of q and k as llama.cpp stores them for its llama architecture."""
    heads = value.shape[0] // head_dim
    return value.reshape(heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(value.shape)


def write_gguf(path: Path, family: str = "llama", seed: int = 0, kind: str = "F32", scaling: str | None = None,
               tokenizer: str = "gpt2", pre: str | None = "smollm", fields: dict[str, Any] | None = None,
               **changes: Any) -> dict[str, np.ndarray]:  # fmt: skip
    """A GGUF file, with `fields` more (None: without); returns the f32 weights, by their Hugging Face names, that it was
    made from."""
    arch = "llama" if family == "mistral" else family
    c = config(family, **changes)
    values = tensors(c, seed)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["head_dim"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_layer_norm_rms_eps(c["rms_norm_eps"])
    if scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(scaling))
        writer.add_rope_scaling_factor(ROPE[scaling]["factor"])
        if scaling == "yarn":
            writer.add_rope_scaling_orig_ctx_len(64)
    if scaling == "llama3":
        from reference import rope_frequencies

        plain, _ = rope_frequencies(c, c["head_dim"])
        rope = ROPE["llama3"] | {"original_max_position_embeddings": 8192}
        scaled, _ = rope_frequencies(c | {"rope_scaling": rope}, c["head_dim"])
        writer.add_tensor("rope_freqs.weight", (plain / scaled).astype(np.float32))
    {"gpt2": _add_bpe, "llama": _add_spm}[tokenizer](writer, pre)
    writer.add_chat_template(TEMPLATE)
    for key, value in (fields or {}).items():
        _add_field(writer, key, value)
    for name, value in values.items():
        if arch == "llama" and (".q_proj." in name or ".k_proj." in name):
            value = interleave(value, c["head_dim"])
        _add_tensor(writer, gguf_name(name), value, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def _add_field(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
    writer.kv_data[0].pop(key, None)
    if value is None:
        return
    getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def _add_tensor(writer: gguf.GGUFWriter, name: str, value: np.ndarray, kind: str) -> None:
    qtype = gguf.GGMLQuantizationType[kind]
    if value.ndim == 1 or kind == "F32":
        writer.add_tensor(name, value)
    elif kind == "F16":
        writer.add_tensor(name, value.astype(np.float16))
    else:
        writer.add_tensor(name, gguf.quants.quantize(value, qtype), raw_dtype=qtype)


def _add_bpe(writer: gguf.GGUFWriter, pre: str | None) -> None:
    tokens = vocabulary()
    writer.add_tokenizer_model("gpt2")
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in SPECIALS else 1 for t in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


SPM_WORDS = ["▁", "t", "h", "e", "th", "he", "▁the", "▁t", "c", "a", "ca", "cat", "▁cat", "s", "▁a"]


def _add_spm(writer: gguf.GGUFWriter, pre: str | None) -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *SPM_WORDS]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(SPM_WORDS))
    writer.add_token_scores([0.0] * 259 + [-float(len(SPM_WORDS) - i if len(t) == 1 else -len(t))
                                           for i, t in enumerate(SPM_WORDS)])  # fmt: skip
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
