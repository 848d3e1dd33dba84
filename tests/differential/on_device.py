"""A real model's logits on a GPU beside those of transformers on the same one, in bf16 and in fp32.

    python tests/differential/on_device.py MODEL [--device cuda:0] [--json]

We write a text greedily for each prompt; transformers computes logits for that text. bf16 in another order of
sums gives other bits, so both are held against fp32: we may be as far from it as transformers in bf16 is, and a
quarter more, and our token may lie below fp32's likeliest by what both may be off. A control, the model with
another rope base, must fail.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import stepladder

PROMPTS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper who finds a letter.",
    "Explain how a bill becomes a law, step by step.",
    "def quicksort(items):",
    "List the planets of the solar system with one fact about each.",
    "A train leaves at noon at 60 km/h, another at one o'clock at 90 km/h. When do they meet?",
    "Translate into French: the weather is nice today, let us walk to the river.",
    "Summarize: The committee met on Tuesday to discuss the budget, and could not agree on it.",
)
TOKENS = 96


def ours(directory: Path, device: str) -> list[tuple[list[int], int, np.ndarray]]:
    """For each prompt the whole text, where the answer begins, and the logits of its tokens."""
    out = []
    with stepladder.load(directory, device=device, progress=False) as model:
        for prompt in PROMPTS:
            tokens = model.tokenize(prompt)
            answer = model.generate(tokens, max_tokens=TOKENS, ignore_eos=True)
            out.append((tokens + answer.tokens, len(tokens), np.array(answer.logits, np.float64)))
    return out


def theirs(directory: Path, texts: list, dtype: str, device: str) -> list[np.ndarray]:
    """Logits [answer's tokens, vocabulary] of each text, by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.backends.cuda.matmul.allow_tf32 = False
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, dtype), attn_implementation="eager"
    ).to(device)
    with torch.no_grad():
        return [
            model(torch.tensor([tokens], device=device))
            .logits[0, first - 1 : -1]
            .double()
            .cpu()
            .numpy()
            for tokens, first, _ in texts
        ]


def compare(directory: Path, reference: Path, device: str) -> tuple[bool, str]:
    """Whether the model in `directory` is as near as it has to be to that of `reference`, and how near."""
    texts = ours(directory, device)
    exact, rounded = (theirs(reference, texts, d, device) for d in ("float32", "bfloat16"))

    def chosen(logits: list[np.ndarray]) -> np.ndarray:
        return np.concatenate([x[np.arange(len(x)), t[n:]] for x, (t, n, _) in zip(logits, texts)])

    mine = np.concatenate([x for _, _, x in texts]) - chosen(exact)
    other = chosen(rounded) - chosen(exact)
    margin = max((x.max(axis=1) - x[np.arange(len(x)), t[n:]]).max() for x, (t, n, _) in zip(exact, texts))  # fmt: skip
    rms, their_rms = (float(np.sqrt(np.mean(e**2))) for e in (mine, other))
    most, their_most = (float(np.abs(e).max()) for e in (mine, other))
    ok = bool(
        rms <= 1.25 * their_rms and most <= 2 * their_most and margin <= 2 * (most + their_most)
    )
    between = float(np.abs(mine - other).max())
    return ok, (
        f"{len(mine)} logits: off fp32 by {rms:.4f} rms, {most:.3f} at most; transformers in bf16 {their_rms:.4f}, "
        f"{their_most:.3f}; apart by {between:.3f} at most; tokens below fp32's likeliest by {margin:.3f} at most"
    )


def with_other_rope(directory: Path, folder: Path) -> Path:
    """The same weights under a config whose rope base is another."""
    for file in directory.iterdir():
        if file.name != "config.json":
            (folder / file.name).symlink_to(file.resolve())
    config = json.loads((directory / "config.json").read_text())
    config["rope_theta"] = 2 * config["rope_theta"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", type=Path)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    args = parser.parse_args()
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        sys.exit(f"this needs torch and transformers beside stepladder: {error}")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        spoiled = with_other_rope(args.model, Path(folder))
        for what, directory, wanted in (("logits", args.model, True), ("control: another rope base", spoiled, False)):  # fmt: skip
            near, note = compare(directory, args.model, args.device)
            ok = near == wanted
            wrong += not ok
            line = {"what": what, "ok": ok, "note": note}
            print(json.dumps(line) if args.json else f"{what}: {'ok' if ok else 'WRONG'}, {note}", flush=True)  # fmt: skip
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
