"""The whole thing in a minute: an answer streamed through three levels, then the proof that the
levels changed nothing.

    python bench/demo.py [--model DIRECTORY] [--draft LEVELS] [--question TEXT] [--max-tokens N]
"""

import argparse
import sys
from pathlib import Path

import smollm2
import stepladder
from stepladder.model.verify import AnswerHash

QUESTION = (
    "Explain in a few sentences why the sky is blue, then repeat your explanation as a list of "
    "three short points."
)


def report(name: str, pieces: list, stats) -> str:
    """Prints one line and returns its hash: 16 hex digits over each token and its logit's 32 bits."""
    digest = AnswerHash()
    for piece in pieces:
        digest.add(piece.tokens, piece.logits)
    speed = f"{stats.tokens:4} tokens  {stats.tokens_per_second:7.1f} tokens/s"
    print(f"{name:<20}{speed}  hash={digest}")
    return str(digest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=smollm2.DEFAULT)
    parser.add_argument("--draft", default="cast:int8:shared,lookup")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-tokens", type=int, default=160)
    args = parser.parse_args()

    model = stepladder.load(smollm2.model(args.model), draft=args.draft)
    messages = [{"role": "user", "content": args.question}]
    print(f"\n> {args.question}\n", flush=True)
    options = {"max_tokens": args.max_tokens}
    stream, pieces = model.stream(messages, **options), []
    for piece in stream:
        print(piece, end="", flush=True)
        pieces.append(piece)
    print("\n")
    for level in stream.stats.levels:
        print(
            f"{level.name}: {level.rounds} rounds of {level.acceptance_length:.2f} tokens, "
            f"drafting {level.draft_ms:.0f} ms, verifying {level.verify_ms:.0f} ms"
        )
    print(f"first token after {stream.stats.first_token_ms:.0f} ms\n")

    plain = model.stream(messages, draft=False, **options)
    hashes = {
        report("plain decoding", list(plain), plain.stats),
        report(args.draft, pieces, stream.stats),
    }
    if len(hashes) > 1:
        sys.exit("the two differ: please report it, with the output of `stepladder inspect`")


if __name__ == "__main__":
    main()
