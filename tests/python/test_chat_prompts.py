"""Which template makes a prompt, what comes first in it, and going on with a message."""

import json

import pytest
import stepladder
import tiny
from conftest import refused
from stepladder import InvalidArgumentError, ModelFormatError
from stepladder.text.tokenizer import Text

MESSAGES = [{"role": "user", "content": "the"}]
TOOLS = [{"name": "search"}]
DEFAULT = tiny.TEMPLATE
TOOL_USE = "{{ tools | length }}" + tiny.TEMPLATE
NAMED = [{"name": "default", "template": DEFAULT}, {"name": "tool_use", "template": TOOL_USE}]


def text_of(directory, template, **settings):
    tiny.write_tokenizer(directory, chat_template=template, **settings)
    return Text(directory)


def write_json(path, value):
    path.write_text(json.dumps(value))


PLACES = {
    "a list": lambda d: text_of(d, NAMED),
    "an object": lambda d: text_of(d, {"default": DEFAULT, "tool_use": TOOL_USE}),
    "chat_template.json": lambda d: (
        write_json(d / "chat_template.json", {"chat_template": NAMED}) or text_of(d, None)
    ),
    "files": lambda d: (
        (d / "chat_template.jinja").write_text(DEFAULT)
        and (d / "additional_chat_templates").mkdir()
        or (d / "additional_chat_templates/tool_use.jinja").write_text(TOOL_USE)
        and text_of(d, "never used")
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_tools_take_the_template_that_is_for_them(tmp_path, place):
    text = PLACES[place](tmp_path)
    plain = text.render(MESSAGES)
    assert plain.startswith("<|im_start|>user")
    assert text.render(MESSAGES, tools=TOOLS) == "1" + plain
    assert text.render(MESSAGES, tools=[]) == text.render(MESSAGES, tools=None) == plain


def test_tools_that_no_template_looks_at_are_refused(tmp_path):
    text = text_of(tmp_path, DEFAULT)
    with refused(InvalidArgumentError, "tools", "tokenizer_config.json", "does not look at tools"):
        text.render(MESSAGES, tools=TOOLS)
    assert text_of(tmp_path, "{% if tools %}x{% endif %}").render(MESSAGES, tools=TOOLS) == "x"


def test_templates_without_a_default_or_a_name(tmp_path):
    text = text_of(tmp_path, [{"name": "rag", "template": "x"}])
    with refused(ModelFormatError, "default", "rag"):
        text.render(MESSAGES)
    with refused(ModelFormatError, "without a name"):
        text_of(tmp_path, [{"template": "x"}])
    with refused(ModelFormatError, "not a string"):
        text_of(tmp_path, 5)


def test_a_chat_begins_as_its_template_says(tmp_path):
    """No bos token is put before messages, whatever the files say of text; `bos` decides otherwise."""
    without = text_of(
        tmp_path, "{{ messages[0].content }}", add_bos_token=True, bos_token="<|endoftext|>"
    )
    the = without.encode("the", bos=False)
    assert without.encode("the") == [0, *the]
    assert without.encode_chat(MESSAGES) == without.encode_chat(MESSAGES, bos=False) == the
    assert without.encode_chat(MESSAGES, bos=True) == [0, *the]
    written = text_of(tmp_path, "{{ bos_token + messages[0].content }}", bos_token="<|endoftext|>")
    assert written.encode_chat(MESSAGES) == written.encode_chat(MESSAGES, bos=True) == [0, *the]
    assert written.encode_chat(MESSAGES, bos=False) == the
    nameless = text_of(tmp_path, "{{ messages[0].content }}", bos_token=None)
    with refused(InvalidArgumentError, "bos"):
        nameless.encode_chat(MESSAGES, bos=True)


BEGUN = [*MESSAGES, {"role": "assistant", "content": "the cat "}]
TRIMS = tiny.TEMPLATE.replace("m['content']", "m['content'] | trim")


def test_going_on_with_a_message_ends_where_it_ends(tmp_path):
    head = "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    text = text_of(tmp_path, DEFAULT)
    assert text.render(BEGUN, continue_final_message=True) == head + "the cat "
    assert text.render(MESSAGES, continue_final_message=True) == "<|im_start|>user\nthe"
    trimmed = text_of(tmp_path, TRIMS)
    assert trimmed.render(BEGUN, continue_final_message=True) == head + "the cat"
    # Words that stand in the template as well, and a message that is empty so far.
    begun = [*MESSAGES, {"role": "assistant", "content": "assistant"}]
    assert text.render(begun, continue_final_message=True) == head + "assistant"
    begun[-1] = {"role": "assistant", "content": ""}
    assert text.render(begun, continue_final_message=True) == head
    ids = text.encode_chat(BEGUN, continue_final_message=True)
    assert ids == text.encode(head) + text.encode("the cat ")


def test_what_cannot_be_gone_on_with_is_refused(tmp_path):
    text = text_of(tmp_path, "{{ messages[0].content }}")
    with refused(InvalidArgumentError, "continue_final_message", "leaves the last message out"):
        text.render(BEGUN, continue_final_message=True)
    with refused(InvalidArgumentError, "add_generation_prompt"):
        text.render(BEGUN, True, True)
    with refused(InvalidArgumentError, "private-use"):
        text.render([{"role": "user", "content": "\U000f5ad0\U000f5ad1"}], None, True)


def test_requests_go_on_with_messages(tiny_model):
    begun = [*MESSAGES, {"role": "assistant", "content": "the"}]
    prompt = tiny_model.text.encode_chat(begun, continue_final_message=True)
    answer = tiny_model.generate(begun, continue_final_message=True, max_tokens=8)
    assert answer.tokens == tiny_model.generate(prompt, max_tokens=8).tokens
    assert tiny_model.generate(begun, max_tokens=8).tokens != answer.tokens
    with refused(InvalidArgumentError, "continue_final_message", "no list of messages"):
        tiny_model.generate("the", continue_final_message=True)
    with refused(InvalidArgumentError, "continue_final_message", "option of the request"):
        tiny_model.generate(begun, chat_template_kwargs={"continue_final_message": True})
    with refused(InvalidArgumentError, "continue_final_message", "True or False"):
        tiny_model.generate(begun, continue_final_message="yes")


def test_requests_decide_about_bos(tiny_model):
    with tiny_model.stream("the", bos=True, max_tokens=1) as a:
        a.result()
        assert a.stats.prompt_tokens == len(tiny_model.tokenize("the", bos=True))
    assert tiny_model.generate(MESSAGES, bos=False, max_tokens=4).tokens
    with refused(InvalidArgumentError, "bos", "token ids already"):
        tiny_model.generate([1, 2, 3], bos=True)
    with refused(InvalidArgumentError, "bos"):
        tiny_model.generate("the", bos="yes")


def test_a_chat_goes_on_with_an_answer_that_was_cut(tiny_model):
    chat = tiny_model.chat(max_tokens=4, ignore_eos=True)
    first = chat.send("the").result()
    more = chat.resume().result()
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]
    assert chat.messages[-1]["content"] == first.text + more.text
    chat.send("and")
    assert [m["role"] for m in chat.messages[:3]] == ["user", "assistant", "user"]
    with refused(InvalidArgumentError, "resume"):
        tiny_model.chat().resume()


def test_the_engine_says_how_many_tokens_a_long_conversation_takes(tmp_path):
    """Thousands of messages reach the engine, which refuses them by the context and not by time."""
    tiny.write_model(tmp_path)
    messages = [{"role": ("user", "assistant")[i % 2], "content": "a"} for i in range(5_000)]
    with stepladder.load(tmp_path, threads=1) as model:
        assert len(model.text.encode_chat(messages)) > 5_000
        with refused(InvalidArgumentError, "context"):
            model.generate(messages)
