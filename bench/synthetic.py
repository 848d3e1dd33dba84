"""Writes a checkpoint with the shape of a large model whose next token is known: the synthetic source.

    python bench/synthetic.py 70b --shape 70b --format w4a16
    python bench/synthetic.py 8b --shape 8b --format w4a16 --agreement 0.85

The token behind every token is one permutation's, a single cycle over the vocabulary, the same in all
these models: a text never repeats itself. With --agreement the model says another token behind some
of them, drawn by --seed, so that a draft is right with that probability whatever came before.

All weights have their full size and random codes, never zeros, which a device runs faster; what a pass
costs is that of the real model. The output projections of a layer carry scales of 2^-60, so that the
residual stays the embedding, and row next(t) of the head is token t's embedding. All layers hold the same
bytes, each at a place of its own. The tokenizer's words are the tokens' numbers.
"""

import argparse
import json
import os
import struct
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy

# width, layers, heads, KV heads, head dimension, FFN width, vocabulary
SHAPES = {
    "tiny": (256, 2, 4, 2, 64, 512, 2048),
    "1b": (2048, 16, 32, 8, 64, 8192, 128256),
    "8b": (4096, 32, 32, 8, 128, 14336, 128256),
    "70b": (8192, 80, 64, 8, 128, 28672, 128256),
}
FORMATS = ("bf16", "w4a16", "w8a16", "w8a8")
GROUP = 128
ORDER = 20261129  # seed of the permutation, which all models share
NOTHING = 2.0**-60  # of an output projection: less than half a unit in the residual's last place
CHUNK = 64 << 20  # bytes that a thread writes at once


def bf16(values: numpy.ndarray) -> bytes:
    return (values.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()


def random_bytes(count: int, seed: int) -> numpy.ndarray:
    """Made by all cores."""
    out = numpy.empty(count, numpy.uint8)
    pieces = range(0, count, CHUNK)

    def fill(i: int) -> None:
        some = out[pieces[i] : pieces[i] + CHUNK]
        some[:] = numpy.frombuffer(
            numpy.random.default_rng([seed, i]).bytes(len(some)), numpy.uint8
        )

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(len(pieces))))
    return out


def matrix(n: int, k: int, form: str, seed: int, scale: float = 1.0) -> dict[str, tuple]:
    """Tensors of a linear layer [n, k] by what follows their prefix: type, shape, bytes."""
    deviation = 0.3 / k**0.5 * scale
    if form == "bf16":
        # Some rows of random numbers, again and again: what they are takes time to make.
        rows = min(n, 256)
        random = numpy.random.default_rng(seed)
        some = bf16(random.standard_normal((rows, k), dtype=numpy.float32) * deviation)
        return {"weight": ("BF16", [n, k], (some * (n // rows + 1))[: n * k * 2])}
    if form == "w4a16":
        return {
            "weight_packed": ("I32", [n, k // 8], random_bytes(n * k // 2, seed)),
            "weight_scale": (
                "BF16",
                [n, k // GROUP],
                bf16(numpy.full(n * k // GROUP, deviation / 4.6)),
            ),
            "weight_shape": ("I64", [2], struct.pack("<qq", n, k)),
        }
    return {
        "weight": ("I8", [n, k], random_bytes(n * k, seed)),
        "weight_scale": ("BF16", [n, 1], bf16(numpy.full(n, deviation / 74))),
    }


def embedding_and_head(vocab: int, width: int, agreement: float, seed: int) -> tuple:
    """Rows of values between 2^-6 and 2^-5 with random signs, and the rows that find the next token."""
    values = random_bytes(vocab * width * 2, 101).view(numpy.uint16).reshape(vocab, width)
    values &= 0x807F
    values |= 0x3C80
    order = numpy.random.default_rng(ORDER).permutation(vocab)
    behind = numpy.empty(vocab, numpy.int64)
    behind[order] = numpy.roll(order, -1)
    # Those that disagree pass their next tokens round, so that every row is still some token's.
    wrong = numpy.random.default_rng([ORDER, seed]).permutation(vocab)[
        : round((1 - agreement) * vocab)
    ]
    if len(wrong) > 1:
        behind[wrong] = behind[numpy.roll(wrong, 1)]
    head = numpy.empty_like(values)

    def place(first: int) -> None:
        head[behind[first : first + 4096]] = values[first : first + 4096]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(place, range(0, vocab, 4096)))
    return tuple(
        ("BF16", [vocab, width], rows.reshape(-1).view(numpy.uint8)) for rows in (values, head)
    )


def quantization(form: str) -> dict:
    weights = {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": GROUP,
    }
    if form != "w4a16":
        weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    group = {"targets": ["Linear"], "weights": weights}
    if form == "w8a8":
        group["input_activations"] = {
            "num_bits": 8,
            "type": "int",
            "symmetric": True,
            "strategy": "token",
            "dynamic": True,
        }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized" if form == "w4a16" else "int-quantized",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def tokenizer(vocab: int) -> dict:
    space = {
        "type": "Metaspace",
        "replacement": "\u2581",
        "prepend_scheme": "always",
        "split": True,
    }
    words = {f"\u2581{i}": i for i in range(vocab)}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": space,
        "decoder": space,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "\u25810"},
    }


def write(path: Path, tensors: dict[str, tuple]) -> int:
    """A safetensors file, written by many threads at once; returns its size."""
    header, at = {}, 0
    for name, (kind, shape, data) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    start = 8 + len(text)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def put(piece: tuple) -> None:
        data, offset = memoryview(piece[0]), piece[1]
        while data:
            done = os.pwrite(file, data, offset)
            data, offset = data[done:], offset + done

    pieces = [(struct.pack("<Q", len(text)) + text, 0)]
    for name, (_, _, data) in tensors.items():
        offset = start + header[name]["data_offsets"][0]
        pieces += [
            (memoryview(data)[i : i + CHUNK], offset + i) for i in range(0, len(data), CHUNK)
        ]
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(put, pieces))
    finally:
        os.close(file)
    return start + at


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--format", choices=FORMATS, default="w4a16")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    parser.add_argument(
        "--agreement", type=float, default=1.0, help="probability of the common next token (1)"
    )
    parser.add_argument("--seed", type=int, default=1, help="which tokens disagree (1)")
    args = parser.parse_args(argv)
    if not 0 <= args.agreement <= 1:
        parser.error("--agreement: a probability, from 0 to 1")
    width, layers, heads, kv_heads, head_dim, ffn, vocab = SHAPES[args.shape]
    layers = args.layers or layers

    linear = {
        "self_attn.q_proj": (heads * head_dim, width, 1.0),
        "self_attn.k_proj": (kv_heads * head_dim, width, 1.0),
        "self_attn.v_proj": (kv_heads * head_dim, width, 1.0),
        "self_attn.o_proj": (width, heads * head_dim, NOTHING),
        "mlp.gate_proj": (ffn, width, 1.0),
        "mlp.up_proj": (ffn, width, 1.0),
        "mlp.down_proj": (width, ffn, NOTHING),
    }
    norm = ("BF16", [width], bf16(numpy.ones(width)))
    layer = {
        f"{name}.{part}": tensor
        for i, (name, (n, k, scale)) in enumerate(linear.items())
        for part, tensor in matrix(n, k, args.format, i, scale).items()
    } | {"input_layernorm.weight": norm, "post_attention_layernorm.weight": norm}
    embedding, head = embedding_and_head(vocab, width, args.agreement, args.seed)
    tensors = {"model.embed_tokens.weight": embedding}
    tensors |= {f"model.layers.{i}.{name}": t for i in range(layers) for name, t in layer.items()}
    tensors |= {"model.norm.weight": norm, "lm_head.weight": head}

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
    if args.format != "bf16":
        config["quantization_config"] = quantization(args.format)
    args.directory.mkdir(parents=True)
    (args.directory / "config.json").write_text(json.dumps(config, indent=2))
    (args.directory / "tokenizer.json").write_text(json.dumps(tokenizer(vocab)))
    size = write(args.directory / "model.safetensors", tensors)
    print(args.directory, f"{size / 1e9:.1f} GB", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
