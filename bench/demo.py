"""The whole thing in a minute: an answer streamed through three levels, then the proof that the
levels changed nothing.

    python bench/demo.py [--model DIRECTORY] [--draft LEVELS] [--question TEXT] [--max-tokens N]
"""

import argparse
import struct
from pathlib import Path

import smollm2
import stepladder

QUESTION = (
    "Explain in a few sentences why the sky is blue, then repeat your explanation as a list of "
    "three short points."
)


def fnv1a64(data: bytes) -> int:
    """64-bit FNV-1a."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & (1 << 64) - 1
    return value


def fingerprint(result) -> str:
    """16 hex digits over each token and the 32 bits of its logit."""
    pairs = zip(result.tokens, result.logits, strict=True)
    return f"{fnv1a64(b''.join(struct.pack('<if', token, logit) for token, logit in pairs)):016x}"


def line(name: str, result) -> str:
    stats = result.stats
    return (
        f"{name:<22}{len(result.tokens):4} tokens  {stats.tokens_per_second:7.1f} tokens/s  "
        f"hash={fingerprint(result)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=smollm2.DEFAULT)
    parser.add_argument("--draft", default="cast:int8,lookup")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-tokens", type=int, default=160)
    args = parser.parse_args()

    model = stepladder.load(smollm2.model(args.model), draft=args.draft)
    messages = [{"role": "user", "content": args.question}]
    print(f"\n> {args.question}\n", flush=True)
    stream = model.stream(messages, max_tokens=args.max_tokens)
    for piece in stream:
        print(piece, end="", flush=True)
    hierarchy = stream.result()
    print(f"\n\n{hierarchy.stats}\n")

    plain = model.generate(messages, max_tokens=args.max_tokens, draft=False)
    print(line("plain decoding", plain))
    print(line(args.draft, hierarchy))
    if fingerprint(plain) != fingerprint(hierarchy):
        raise SystemExit("the two differ: please report this with the output of `stepladder inspect`")


if __name__ == "__main__":
    main()
