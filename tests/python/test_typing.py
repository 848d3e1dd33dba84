"""What a type checker makes of the package: right uses pass under mypy --strict, wrong ones are found."""

import inspect
import subprocess
import sys

import pytest
import stepladder

pytest.importorskip("mypy", reason="mypy is not installed (pip install '.[test]')")

# A line that ends in "# wrong" must be complained of, every other one must not.
USES = """
import asyncio
from typing import Any

import stepladder
from stepladder import Cast, Draft, Lookup, RequestOptions

m = stepladder.load("dir", [Cast("int8", cache="shared"), Lookup()], context=512)
n = stepladder.load("dir", draft="lookup", max_sequences=2, progress=False)

r = m.generate("Why?", max_tokens=3, temperature=0.5, stop=["a"], seed=1)
text: str = r.text
tokens: list[int] = r.tokens
reason: str = r.finish_reason
speed: float = r.stats.tokens_per_second
first: str = r.stats.levels[0].name
many = m.generate(["a", "b"], max_tokens=None)
texts: list[str] = [x.text for x in many]
said = m.generate([{"role": "user", "content": "hi"}], tools=[{"name": "f"}], bos=False)
ids = m.generate([1, 2, 3], logit_bias={5: float("-inf")}, logprobs=2)
pair = m.generate([[1, 2], [3]])
also: str = pair[0].text
for piece in m.stream("a", draft=False):
    shown: str = piece.text
    more: list[int] = piece.tokens
chat = m.chat("Be brief.", max_tokens=9)
for piece in chat.send("hi", top_p=0.9, top_k=4):
    print(piece.text)
again: str = chat.resume().result().text
options: RequestOptions = {"max_tokens": 5, "min_p": 0.1}
m.generate("a", **options)
equal: bool = m.verify(["a"], side_by_side=2, max_tokens=4).equal
vocabulary: int = m.info.vocab


async def answer() -> str:
    async with m.stream("a") as stream:
        async for piece in stream:
            return piece.text
    return ""


m.generate("a", max_tokenz=3)  # wrong
m.generate("a", max_tokens="3")  # wrong
m.generate(5)  # wrong
m.stream("a", temperature=[1])  # wrong
m.stream("a", stop=5)  # wrong
m.generate("a").texts  # wrong
m.generate(["a"]).text  # wrong
m.stream(["a"]).cancel()  # wrong
chat.send(5)  # wrong
chat.send("a", max_token=5)  # wrong
m.chat(max_tokens="a")  # wrong
m.verify(["a"], side_by_sides=2)  # wrong
stepladder.load("dir", contxt=5)  # wrong
stepladder.load("dir", draft=5)  # wrong
Cast(5)  # wrong
Lookup(longest="a")  # wrong
Draft()  # wrong
bad: RequestOptions = {"max_token": 5}  # wrong
number: int = r.text  # wrong
"""


def test_right_uses_pass_and_wrong_ones_are_found(tmp_path):
    (tmp_path / "uses.py").write_text(USES)
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--no-color-output",
         "--cache-dir", str(tmp_path / "cache"), "uses.py"],
        capture_output=True, text=True, cwd=tmp_path, timeout=600,
    )  # fmt: skip
    lines = [x for x in run.stdout.splitlines() if ": error:" in x]
    found = {int(x.split(":")[1]) for x in lines}
    wrong = {i for i, x in enumerate(USES.splitlines(), 1) if x.endswith("# wrong")}
    assert len(wrong) == 19
    assert found == wrong, run.stdout + run.stderr


def test_help_lists_the_options():
    from stepladder.model.options import OPTIONS

    assert set(stepladder.RequestOptions.__annotations__) == OPTIONS
    for name in OPTIONS:
        assert name in inspect.getdoc(stepladder.RequestOptions), name
        assert name in inspect.getdoc(stepladder.Model.stream), name


def test_objects_show_what_they_are(tiny_model):
    answer = tiny_model.generate("the", max_tokens=4, ignore_eos=True)
    assert repr(answer.text) in repr(answer) and "logits" not in repr(answer)
    stream = tiny_model.stream("the", max_tokens=4, ignore_eos=True)
    assert repr(stream).startswith("<stepladder.Stream running")
    stream.result()
    assert "length" in repr(stream)
    chat = tiny_model.chat(max_tokens=2)
    assert repr(chat.send("the")).startswith("<stepladder.ChatStream")
    assert "1 messages" in repr(chat) or "2 messages" in repr(chat)
