"""One rule for text prompts, in Python and on the command line: as it is, or what a user says."""

import functools
import json
import logging

import pytest
import stepladder
import tiny
from conftest import refused, run_command
from stepladder import InvalidArgumentError

SHORT = {"max_tokens": 8, "ignore_eos": True}


@pytest.fixture
def run(capsys):
    return functools.partial(run_command, capsys)


def said(text):
    return [{"role": "user", "content": text}]


def test_text_is_taken_as_it_is_or_said_by_a_user(tiny_model):
    as_it_is = tiny_model.generate("the cat", **SHORT).tokens
    assert as_it_is == tiny_model.generate("the cat", raw=True, **SHORT).tokens
    assert as_it_is == tiny_model.generate(tiny_model.tokenize("the cat"), **SHORT).tokens
    through = tiny_model.generate("the cat", raw=False, **SHORT)
    assert through.tokens == tiny_model.generate(said("the cat"), **SHORT).tokens != as_it_is
    # Of several each; messages and token ids are what they are.
    for a, b in zip(
        tiny_model.generate(["the cat", "an"], raw=False, **SHORT),
        tiny_model.generate([said("the cat"), said("an")], raw=True, **SHORT),
    ):
        assert a.tokens == b.tokens
    assert (
        tiny_model.generate([5, 6], raw=False, **SHORT).tokens
        == tiny_model.generate([5, 6], **SHORT).tokens
    )


def test_control_tokens_in_what_a_user_says_are_text(tiny_model):
    text = "<|im_end|>"
    counts = [
        tiny_model.generate(text, raw=raw, **SHORT).stats.prompt_tokens for raw in (True, False)
    ]
    assert counts[0] == 1 and counts[1] == len(tiny_model.text.encode_chat(said(text))) > 10


def test_the_command_line_has_the_same_two(run, tiny_dir, tiny_model):
    for arguments, raw in (([], False), (["--raw"], True)):
        code, out, _ = run("generate", tiny_dir, "the cat", "--json", "--tokens", 8, "--ignore-eos",
                           "--threads", 1, *arguments)  # fmt: skip
        want = tiny_model.generate("the cat", raw=raw, **SHORT).tokens
        assert code == 0 and json.loads(out)["tokens"] == want


def test_a_model_without_a_template(run, tmp_path):
    tiny.write_model(tmp_path / "m")
    tiny.write_tokenizer(tmp_path / "m", chat_template=None)
    with stepladder.load(tmp_path / "m", threads=1) as model:
        want = model.generate("the", **SHORT).tokens
        with refused(InvalidArgumentError, "no chat template"):
            model.generate("the", raw=False)
    code, out, _ = run(
        "generate", tmp_path / "m", "the", "--json", "--tokens", 8, "--ignore-eos", "--threads", 1
    )
    assert code == 0 and json.loads(out)["tokens"] == want


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_raw_is_true_or_false(tiny_model, value):
    with refused(InvalidArgumentError, "raw"):
        tiny_model.generate("the", raw=value)


def test_what_is_for_a_template_is_refused_without_one(tiny_model):
    for prompt in ("the", [5, 6]):
        with refused(InvalidArgumentError, "chat_template_kwargs", "raw=False"):
            tiny_model.generate(prompt, chat_template_kwargs={"a": 1})
        with refused(InvalidArgumentError, "tools", "raw=False"):
            tiny_model.generate(prompt, tools=[{"name": "f"}])
    assert tiny_model.generate("the", raw=False, chat_template_kwargs={"a": 1}, **SHORT).tokens


def test_an_empty_answer_to_text_as_it_is_is_told_of(tiny_model, caplog):
    first = tiny_model.generate("the", **SHORT).tokens[0]
    ends = {"stop_token_ids": [first]}
    assert tiny_model.generate("the", **ends).text == ""
    [record] = caplog.records
    assert record.levelno == logging.WARNING and "raw=False" in record.getMessage()
    caplog.clear()
    # Neither where there is text, nor of messages or token ids, nor where max_tokens ended it.
    tiny_model.generate("the", stop_token_ids=[258], **SHORT)
    through = tiny_model.generate("the", raw=False, **SHORT).tokens[0]
    assert tiny_model.generate("the", raw=False, stop_token_ids=[through]).text == ""
    assert tiny_model.generate(tiny_model.tokenize("the"), **ends).text == ""
    assert caplog.records == []
