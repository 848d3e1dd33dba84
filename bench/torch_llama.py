"""A Llama in PyTorch as training needs it: weights from a Hugging Face directory or a GGUF file, a
pass over whole texts, and generation of very many texts side by side.

PyTorch is an optional extra: the engine and its package never import it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
import torch.nn.functional as F

LAYER = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def read_directory(directory: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """config.json and all tensors."""
    from safetensors.torch import load_file

    weights: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        weights |= load_file(file)
    return json.loads((directory / "config.json").read_text()), weights


def read_gguf(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The same of a Llama in GGUF, dequantized and rounded to bfloat16."""
    import gguf

    reader = gguf.GGUFReader(path)

    def key(name):
        return reader.fields[f"llama.{name}"].contents()

    heads, kv_heads = key("attention.head_count"), key("attention.head_count_kv")
    weights = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor.name)
        if block and block[2] in ("attn_q", "attn_k"):
            # llama.cpp rotates neighbouring pairs of rows, Hugging Face the two halves of a head.
            n = heads if block[2] == "attn_q" else kv_heads
            values = values.reshape(n, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        stem = tensor.name.removesuffix(".weight")
        name = f"model.layers.{block[1]}.{LAYER[block[2]]}" if block else TOP[stem]
        weights[name + ".weight"] = values.to(torch.bfloat16)
    config = {
        "hidden_size": key("embedding_length"), "intermediate_size": key("feed_forward_length"),
        "num_hidden_layers": key("block_count"), "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "rms_norm_eps": float(f"{key('attention.layer_norm_rms_epsilon'):.7g}"),
        "rope_theta": float(key("rope.freq_base")),
        "vocab_size": len(weights["model.embed_tokens.weight"]),
        "tie_word_embeddings": "lm_head.weight" not in weights,
        "max_position_embeddings": key("context_length"),
    }  # fmt: skip
    return config, weights


def norm(x: torch.Tensor, gains: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * gains


def rope(positions: int, dim: int, theta: float, device) -> torch.Tensor:
    """cos and sin, [2, positions, dim]."""
    frequency = theta ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float64) / dim)
    angle = torch.outer(torch.arange(positions, device=device, dtype=torch.float64), frequency)
    angle = torch.cat((angle, angle), -1)
    return torch.stack((angle.cos(), angle.sin())).float()


def rotated(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """x [..., positions, dim] by rope() of the same positions."""
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), -1)
    return (x.float() * table[0] + turned.float() * table[1]).to(x.dtype)


class Llama:
    def __init__(self, source: Path, device: str, positions: int):
        self.config, weights = (read_gguf if source.suffix == ".gguf" else read_directory)(source)
        c = self.config
        self.device, self.positions = torch.device(device), positions
        self.width, self.layers = c["hidden_size"], c["num_hidden_layers"]
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.dim = c.get("head_dim") or self.width // self.heads
        self.eps, self.vocab = c["rms_norm_eps"], c["vocab_size"]
        self.w = {name: t.to(self.device, torch.bfloat16) for name, t in weights.items()}
        self.embedding = self.w["model.embed_tokens.weight"]
        self.head = self.w.get("lm_head.weight", self.embedding)
        self.rope = rope(positions, self.dim, c.get("rope_theta", 10000.0), self.device)

    def _layers(self, x, table, attend):
        """x through all layers; attend(i, q, k, v) gives what the heads of layer i read."""
        rows, length = x.shape[:2]

        def heads(y, n):
            return y.view(rows, length, n, self.dim).transpose(1, 2)

        for i in range(self.layers):

            def of(name, i=i):
                return self.w[f"model.layers.{i}.{name}.weight"]

            a = norm(x, of("input_layernorm"), self.eps)
            q = rotated(heads(F.linear(a, of("self_attn.q_proj")), self.heads), table)
            k = rotated(heads(F.linear(a, of("self_attn.k_proj")), self.kv_heads), table)
            v = heads(F.linear(a, of("self_attn.v_proj")), self.kv_heads)
            read = attend(i, q, k, v).transpose(1, 2).reshape(rows, length, -1)
            x = x + F.linear(read, of("self_attn.o_proj"))
            a = norm(x, of("post_attention_layernorm"), self.eps)
            gated = F.silu(F.linear(a, of("mlp.gate_proj"))) * F.linear(a, of("mlp.up_proj"))
            x = x + F.linear(gated, of("mlp.down_proj"))
        return norm(x, self.w["model.norm.weight"], self.eps)

    @torch.no_grad()
    def states(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm, [rows, length, width], of texts [rows, length]."""

        def attend(i, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        return self._layers(self.embedding[tokens], self.rope[:, : tokens.shape[1]], attend)

    @torch.no_grad()
    def write(self, first: torch.Tensor, length: int, choose) -> torch.Tensor:
        """Texts of `length` tokens that begin with `first` [rows, n]: choose(logits, position) names
        the token at each later position. All rows share one position, so there is no mask."""
        rows, start = first.shape
        shape = (self.layers, 2, rows, self.kv_heads, length, self.dim)
        cache = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        out = torch.empty((rows, length), dtype=torch.long, device=self.device)
        out[:, :start] = first
        for at in range(length - 1):

            def attend(i, q, k, v, at=at):
                cache[i, 0, :, :, at], cache[i, 1, :, :, at] = k[:, :, 0], v[:, :, 0]
                keys, values = cache[i, 0, :, :, : at + 1], cache[i, 1, :, :, : at + 1]
                # The heads that share keys are rows of one, as nothing is masked.
                shared = q.view(rows, self.kv_heads, -1, self.dim)
                return F.scaled_dot_product_attention(shared, keys, values).view(q.shape)

            x = self.embedding[out[:, at : at + 1]]
            state = self._layers(x, self.rope[:, at : at + 1], attend)
            if at + 1 >= start:
                out[:, at + 1] = choose(F.linear(state[:, 0], self.head).float(), at + 1)
        return out
