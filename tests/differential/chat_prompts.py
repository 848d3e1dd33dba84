"""Token ids of chat prompts against those of the installed transformers, over published templates.

Run by hand where transformers is installed beside the package, or name an interpreter that has it:

    python tests/differential/chat_prompts.py [--python PYTHON] [--published FOLDER] [MODEL ...]

MODEL: directories with a tokenizer and a chat template, such as models/SmolLM2-135M-Instruct. FOLDER: the
folder `models` of llama.cpp, as the source package of llama-cpp-python has it, with templates of many models
and vocabularies of some; templates without a vocabulary run over the tokenizer of the tests. Each of 40
lists of messages must give the ids that transformers gives, or be refused by both. Controls that must
differ: a template of which a letter is changed, and control tokens in what a user says, which we take for text.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "python"))
import stepladder
import tiny
from stepladder.files.gguf_file import GgufFile
from stepladder.files.gguf_tokenizer import Vocabulary
from stepladder.text.tokenizer import Text

THEIRS = """
import sys, json
from transformers import PreTrainedTokenizerFast
for line in sys.stdin:
    job = json.loads(line)
    config = json.load(open(job["dir"] + "/tokenizer_config.json"))
    names = {k: v for k, v in config.items() if k in ("bos_token", "eos_token", "unk_token", "pad_token") and v}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=job["dir"] + "/tokenizer.json", **names)
    tokenizer.chat_template = job["template"]
    answers = []
    for messages in job["lists"]:
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            answers.append(tokenizer(text, add_special_tokens=False)["input_ids"])
        except Exception as error:
            answers.append(type(error).__name__ + ": " + str(error)[:200])
    print(json.dumps(answers), flush=True)
"""
# Which vocabulary is that of which template, of the families that we run.
PAIRS = {
    "Qwen-Qwen2.5-7B-Instruct": "qwen2",
    "Qwen-Qwen3-0.6B": "qwen2",
    "Qwen-QwQ-32B": "qwen2",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "qwen2",
    "meta-llama-Llama-3.1-8B-Instruct": "llama-bpe",
    "meta-llama-Llama-3.2-3B-Instruct": "llama-bpe",
    "meta-llama-Llama-3.3-70B-Instruct": "llama-bpe",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "llama-bpe",
    "mistralai-Mistral-Nemo-Instruct-2407": None,
    "Mistral-Small-3.2-24B-Instruct-2506": None,
    "HuggingFaceTB-SmolLM3-3B": "llama-bpe",
}
WORDS = ["Hello!", " two  spaces ", "\n\nlines\n", "naïve café", "日本語のテキスト", "🙂👍🏽", "x = {'a': [1, 2]}", "I'll", "",
         "<b>html</b> & more", "1234567890", "\tindented", "def f(x):\n    return x\n", "Ünïcödé", "a" * 300,
         "</think>?", "[INST", "<|im_", "…", "don't 'quote' \"this\""]  # fmt: skip


def lists() -> list[list[dict[str, str]]]:
    """40 conversations of one to nine messages, half of them with a system message."""
    rng = random.Random(40)
    out = []
    for i in range(40):
        said = [{"role": "system", "content": rng.choice(WORDS)}] if i % 2 else []
        for turn in range(1 + 2 * (i % 5)):
            text = rng.choice(("", " ", "\n")).join(rng.choices(WORDS, k=1 + i % 4))
            said.append({"role": ("user", "assistant")[turn % 2], "content": text})
        out.append(said)
    return out


def theirs(python: str, directory: Path, template: str, messages: Any) -> list[Any]:
    job = json.dumps({"dir": str(directory), "template": template, "lists": messages})
    run = subprocess.run([python, "-c", THEIRS], input=job, capture_output=True, text=True, check=True)  # fmt: skip
    return json.loads(run.stdout.splitlines()[-1])


def ours(directory: Path, messages: Any) -> list[Any]:
    text, out = Text(directory), []
    for each in messages:
        try:
            out.append(text.encode_chat(each, add_generation_prompt=True))
        except stepladder.Error as error:
            out.append(f"{type(error).__name__}: {error}"[:300])
    return out


def differences(python: str, directory: Path, template: str, messages: Any) -> list[str]:
    """Of each list that one of the two takes otherwise than the other."""
    out = []
    pairs = zip(ours(directory, messages), theirs(python, directory, template, messages))
    for i, (a, b) in enumerate(pairs):
        if a != b and not (isinstance(a, str) and isinstance(b, str)):
            out.append(f"list {i}: {str(a)[:200]} against {str(b)[:200]}")
    return out


def with_template(directory: Path, template: str) -> Path:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | {"chat_template": template}))
    for name in ("chat_template.jinja", "chat_template.json"):
        (directory / name).unlink(missing_ok=True)
    return directory


def cases(published: Path | None, models: list[Path], work: Path) -> Any:
    """Name, directory and template."""
    for model in models:
        directory = work / model.name
        directory.mkdir()
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(model / name, directory)
        template = Text(model).templates.choose(False).source
        yield model.name, with_template(directory, template), template
    for name, vocabulary in PAIRS.items() if published else ():
        directory = work / name
        directory.mkdir()
        template = (published / "templates" / f"{name}.jinja").read_text()
        if vocabulary:
            with GgufFile(published / f"ggml-vocab-{vocabulary}.gguf") as file:
                Vocabulary(file).write(directory)
        else:
            tiny.write_tokenizer(directory)
        yield f"{name} over {vocabulary or 'ours'}", with_template(directory, template), template


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--published", type=Path)
    parser.add_argument("models", nargs="*", type=Path)
    args = parser.parse_args()
    has = subprocess.run(
        [args.python, "-c", "import transformers"], capture_output=True, check=False
    )
    if has.returncode:
        print(f"skipped: {args.python} has no transformers")
        return 0
    wrong, messages = 0, lists()
    with tempfile.TemporaryDirectory() as folder:
        for name, directory, template in cases(args.published, args.models, Path(folder)):
            found = differences(args.python, directory, template, messages)
            refused = sum(isinstance(ids, str) for ids in ours(directory, messages))
            print(
                f"{name}: {len(messages)} lists, {refused} refused, {len(found)} differ",
                *found[:3],
                sep="\n  ",
            )
            wrong += len(found) + (refused == len(messages))
        directory = tiny.write_model(Path(folder) / "control")
        changed = tiny.TEMPLATE.replace("assistant", "assistent")
        inside = [[{"role": "user", "content": "a<|im_end|>b"}]]
        for name, template, said in (
            ("a changed letter", changed, messages),
            ("control tokens", tiny.TEMPLATE, inside),
        ):
            found = differences(args.python, directory, template, said)
            print(
                f"control, {name}: {len(found)} of {len(said)} differ"
                + ("" if found else ": NOT FOUND")
            )
            wrong += not found
        if found := differences(args.python, directory, tiny.TEMPLATE, messages):
            print("the tests' own template:", *found[:3], sep="\n  ")
            wrong += 1
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
