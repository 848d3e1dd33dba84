"""Writes a checkpoint with the shape of a large model and random weights, for timing alone.

    python bench/synthetic.py DIRECTORY --shape 8b --format w4a16 [--layers N]

Its text means nothing and its levels agree on nothing; what a pass costs is that of the real model.
Codes are random, never zeros, which a device runs faster. All layers hold the same bytes, each at
a place of its own. There is no tokenizer: stepladder-bench makes its prompts up.
"""

import argparse
import json
import struct
import sys
from pathlib import Path

import numpy

# width, layers, heads, KV heads, head dimension, FFN width, vocabulary
SHAPES = {
    "1b": (2048, 16, 32, 8, 64, 8192, 128256),
    "8b": (4096, 32, 32, 8, 128, 14336, 128256),
    "70b": (8192, 80, 64, 8, 128, 28672, 128256),
}
GROUP = 128


def bf16(values: numpy.ndarray) -> bytes:
    return (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()


def matrix(n: int, k: int, form: str, random: numpy.random.Generator) -> dict[str, tuple]:
    """Tensors of a linear layer [n, k] by what follows their prefix: type, shape, bytes."""
    if form == "bf16":
        # Some rows of random numbers, again and again: what they are takes time to make.
        rows = min(n, 256)
        some = bf16(random.standard_normal((rows, k), dtype=numpy.float32) * (0.3 / k**0.5))
        return {"weight": ("BF16", [n, k], (some * (n // rows + 1))[: n * k * 2])}
    scales = bf16(numpy.full((n, k // GROUP), 0.065 / k**0.5))
    return {
        "weight_packed": ("I32", [n, k // 8], random.bytes(n * k // 2)),
        "weight_scale": ("BF16", [n, k // GROUP], scales),
        "weight_shape": ("I64", [2], struct.pack("<qq", n, k)),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--format", choices=("bf16", "w4a16"), default="w4a16")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    args = parser.parse_args(argv)
    width, layers, heads, kv_heads, head_dim, ffn, vocab = SHAPES[args.shape]
    layers = args.layers or layers
    random = numpy.random.default_rng(1)

    linear = {
        "self_attn.q_proj": (heads * head_dim, width),
        "self_attn.k_proj": (kv_heads * head_dim, width),
        "self_attn.v_proj": (kv_heads * head_dim, width),
        "self_attn.o_proj": (width, heads * head_dim),
        "mlp.gate_proj": (ffn, width),
        "mlp.up_proj": (ffn, width),
        "mlp.down_proj": (width, ffn),
    }
    norm = ("BF16", [width], bf16(numpy.ones(width)))
    layer = {
        f"{name}.{part}": tensor
        for name, (n, k) in linear.items()
        for part, tensor in matrix(n, k, args.format, random).items()
    } | {"input_layernorm.weight": norm, "post_attention_layernorm.weight": norm}
    tensors = {"model.embed_tokens.weight": matrix(vocab, width, "bf16", random)["weight"]}
    tensors |= {f"model.layers.{i}.{name}": t for i in range(layers) for name, t in layer.items()}
    tensors |= {
        "model.norm.weight": norm,
        "lm_head.weight": matrix(vocab, width, "bf16", random)["weight"],
    }

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": vocab,
    }
    if args.format == "w4a16":
        weights = {
            "num_bits": 4,
            "type": "int",
            "symmetric": True,
            "strategy": "group",
            "group_size": GROUP,
        }
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }

    args.directory.mkdir(parents=True)
    (args.directory / "config.json").write_text(json.dumps(config, indent=2))
    header, at = {}, 0
    for name, (kind, shape, data) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    with (args.directory / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, _, data in tensors.values():
            file.write(data)
    print(args.directory, f"{at / 1e9:.1f} GB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
