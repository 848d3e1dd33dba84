"""Our logits against those of the installed transformers in fp32, over tiny models of every kind.

Run by hand where transformers and torch are installed beside the package, or name an interpreter that
has them:  python tests/differential/against_transformers.py [PYTHON]
Each model is written as Hugging Face has it, we write a text, and transformers computes logits for that
text. An engine in 16 bits may be as far from fp32 as the numpy model is that rounds where engines do, twice
over; tokens must be equal wherever transformers' margin is larger. Controls that must fail: a wrong rope
factor, a head that is tied though another is stored, a bias that is left out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
import reference
import stepladder
import tiny

THEIRS = """
import sys, json, torch, numpy as np
from transformers import AutoModelForCausalLM
for line in sys.stdin:
    job = json.loads(line)
    model = AutoModelForCausalLM.from_pretrained(job["dir"], dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        np.save(job["out"], model(torch.tensor([job["tokens"]])).logits[0].numpy())
    print("done", flush=True)
"""
PROMPT = [1, *np.random.default_rng(5).integers(3, 260, 40).tolist()]


def configurations() -> Iterator[tuple[str, str, dict[str, Any], str]]:
    """Name, family, changes of its config, dtype."""
    ropes: dict[str, dict[str, Any]] = {
        "plain": {},
        "theta": {"rope_theta": 500000.0},
        "linear": {"rope_scaling": tiny.ROPE["linear"]},
        "yarn": {"rope_scaling": tiny.ROPE["yarn"]},
        "yarn betas": {"rope_scaling": tiny.ROPE["yarn"] | {"beta_fast": 16.0, "beta_slow": 2.0}},
        "llama3": {"rope_scaling": tiny.ROPE["llama3"]},
    }
    for family in tiny.FAMILIES:
        for rope, changes in ropes.items():
            yield f"{family} {rope}", family, changes, "BF16"
        yield f"{family} tied", family, {"tie_word_embeddings": True}, "BF16"
        yield f"{family} f16", family, {}, "F16"
        yield f"{family} f32", family, {}, "F32"
        yield f"{family} one kv head", family, {"num_key_value_heads": 1}, "BF16"
        yield f"{family} as many kv heads", family, {"num_key_value_heads": 4}, "BF16"
        yield f"{family} wide heads", family, {"head_dim": 64}, "BF16"
        yield f"{family} three layers", family, {"num_hidden_layers": 3}, "BF16"
        yield f"{family} tied with a head", family, {"_tie": True}, "BF16"
    for family in ("llama", "qwen3"):
        yield f"{family} biases", family, {"attention_bias": True}, "BF16"
    yield "llama mlp biases", "llama", {"mlp_bias": True}, "BF16"
    yield "mistral window", "mistral", {"sliding_window": 128}, "BF16"


def write(directory: Path, family: str, changes: dict[str, Any], dtype: str, seed: int) -> None:
    """A model directory with what `changes` asks for."""
    tie = changes.pop("_tie", False)
    tiny.write_model(directory, family, seed, "F16" if dtype == "F16" else "BF16", **changes)
    config = json.loads((directory / "config.json").read_text())
    values = tiny.tensors(config, seed)
    rng = np.random.default_rng(seed)
    for name in list(values):
        stem, _, kind = name.rpartition(".")
        biased = config.get("attention_bias") and "self_attn" in stem and stem.endswith("_proj")
        biased = biased or (config.get("mlp_bias") and ".mlp." in stem)
        if kind == "weight" and biased:
            values[stem + ".bias"] = 0.3 * rng.standard_normal(len(values[name])).astype(np.float32)
    tiny.write_tensors(directory, values, dtype)
    config["tie_word_embeddings"] = config["tie_word_embeddings"] or tie
    (directory / "config.json").write_text(json.dumps(config))


class Theirs:
    """transformers in a process of its own."""

    def __init__(self, python: str):
        self._process = subprocess.Popen(
            [python, "-W", "ignore", "-c", THEIRS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def logits(self, directory: Path, tokens: list[int]) -> np.ndarray:
        out = directory / "logits.npy"
        self._process.stdin.write(
            json.dumps({"dir": str(directory), "tokens": tokens, "out": str(out)}) + "\n"
        )
        self._process.stdin.flush()
        if self._process.stdout.readline() != "done\n":
            raise SystemExit("transformers failed; is it installed there, with torch?")
        return np.load(out).astype(np.float64)


def compare(theirs: Theirs, directory: Path, spoil: Callable[[Path], None] | None = None) -> str:
    """What is wrong, or nothing; and how many positions were excused."""
    with stepladder.load(directory, threads=1, progress=False) as model:
        answer = model.generate(PROMPT, max_tokens=24, ignore_eos=True)
        real = model.info.vocab
    tokens, rows = PROMPT + answer.tokens, slice(len(PROMPT) - 1, -1)
    exact = reference.Model(directory).logits(tokens)[rows, :real]
    rounded = reference.Model(directory, rounded=True).logits(tokens)[rows, :real]
    bound = 2 * np.abs(rounded - exact).max()
    if spoil:
        spoil(directory)
    wanted = theirs.logits(directory, tokens)[rows, :real]
    each = np.arange(len(answer.tokens))
    error = np.abs(wanted[each, answer.tokens] - answer.logits).max()
    margin = wanted.max(axis=1) - wanted[each, answer.tokens]
    compare.positions += len(each)
    compare.excused += int((margin > 0).sum())
    if error > bound or margin.max() > 2 * bound:
        return f"logits differ by {error:.3f}, tokens by {margin.max():.3f}, bound {bound:.3f}"
    return ""


compare.positions = compare.excused = 0


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text()) | changes
        (directory / "config.json").write_text(json.dumps(config))

    return change


def tie(directory: Path) -> None:
    """Stores the embedding as the head."""
    values = tiny.tensors(json.loads((directory / "config.json").read_text()), 2)
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    tiny.write_tensors(directory, values)


def drop_bias(directory: Path) -> None:
    values = tiny.tensors(json.loads((directory / "config.json").read_text()), 3)
    for name in values:
        if name.endswith("q_proj.bias"):
            values[name] = 0 * values[name]
    tiny.write_tensors(directory, values)


def main() -> int:
    theirs = Theirs(sys.argv[1] if len(sys.argv) > 1 else sys.executable)
    wrong = count = 0
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, family, changes, dtype) in enumerate(configurations()):
            directory = Path(folder) / str(seed)
            write(directory, family, dict(changes), dtype, seed)
            found = compare(theirs, directory)
            count += 1
            wrong += bool(found)
            if found:
                print(f"{name}: {found}")
        print(
            f"{count} configurations, {wrong} wrong; {compare.excused} of {compare.positions} positions excused"
        )
        if compare.excused > 0.02 * compare.positions:
            print("more than 2% were excused")
            wrong += 1
        other = tiny.ROPE["linear"] | {"factor": 4.0}
        controls = {
            "a wrong rope factor": ("llama", {"rope_scaling": tiny.ROPE["linear"]}, 1, edit(rope_scaling=other)),
            "a tied head": ("llama", {}, 2, tie),
            "a dropped bias": ("qwen2", {}, 3, drop_bias),
        }  # fmt: skip
        for name, (family, changes, seed, spoil) in controls.items():
            directory = Path(folder) / name.replace(" ", "-")
            tiny.write_model(directory, family, seed, **changes)
            found = compare(theirs, directory, spoil)
            print(f"control, {name}: {found or 'NOT FOUND'}")
            wrong += not found
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
