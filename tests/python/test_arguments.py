"""Arguments of wrong types, and names that are not known: each is refused by a typed error that says
which argument it is and what would be right."""

import inspect
from functools import partial

import numpy as np
import pytest
import stepladder
from conftest import refused
from stepladder import Cast, Draft, FileError, InvalidArgumentError, Lookup, Switch
from stepladder.base.arguments import shown

HUGE = [10**5000] * 10**6  # slow to print, and Python refuses to print its numbers at all


class Unprintable:
    def __repr__(self):
        raise RuntimeError("no")


ODD = [5, 1.5, [5], {"a": 1}, b"abc", object(), Unprintable(), HUGE, np.zeros((2, 2)), "\ud800", True]  # fmt: skip


def name_of(value):
    return ascii(shown(value))[1:40]


def test_a_wrong_type_is_also_a_type_error():
    assert issubclass(InvalidArgumentError, stepladder.Error)
    assert issubclass(InvalidArgumentError, ValueError)
    assert issubclass(InvalidArgumentError, TypeError)


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    "prompt, word",
    [
        ([[[3]]], "prompt[0]"),
        ([[[3], [4]], [5]], "prompt[0]"),
        ([["a"]], "prompt[0]"),
        (np.zeros((2, 2, 2), int), "prompt[0]"),
        ([None], "prompt[0]"),
        ([[None]], "prompt[0]"),
        ([[3], None], "prompt[1]"),
        (["a", 5], "prompt[1]"),
        (["a", USER], "prompt[1]"),
        ([USER, [USER]], "messages[1]"),
        (USER, "[{...}]"),
        ({}, "prompt"),
        ({3}, "prompt"),
        (iter([3]), "prompt"),
        (np.array(3), "prompt"),
        (np.zeros(3), "prompt[0]"),
        (HUGE, "context"),
        ([HUGE, Unprintable()], "prompt"),
        (Unprintable(), "prompt"),
        ([{"content": "x"}], "role is missing"),
        ([{"role": None, "content": "x"}], "role is None"),
        ([{"role": "user"}], "content is missing"),
        ([{"role": "user", "content": None}], "content is missing or None"),
        ([{"role": "user", "content": 5}], "content is 5"),
        ([{"role": "user", "content": b"x"}], "bytes"),
        ([{"role": "user", "content": {"text": "x"}}], "dict"),
        ([{"role": "user", "content": "x", 5: "y"}], "messages[0]"),
        ([USER, 5], "messages[1]"),
        ([USER, None], "messages[1]"),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("call", ["stream", "generate", "verify"])
def test_prompts_of_wrong_types(tiny_model, call, prompt, word):
    word = word.replace("prompt", "prompts") if call == "verify" and word == "prompt" else word
    word = "prompt" if call == "verify" and word.startswith("prompt[") else word
    with refused(InvalidArgumentError, word):
        getattr(tiny_model, call)(prompt)


OPTIONS = [
    *[({"chat_template_kwargs": v}, "chat_template_kwargs") for v in (5, [1], "abc", [("a", 1)], {5: 1}, True, HUGE)],
    *[({"chat_template_kwargs": {k: 1}}, "chat_template_kwargs") for k in ("messages", "context", "self", "a b", "")],
    *[({"tools": v}, "tools") for v in (5, "abc", {"a": 1}, [5], [None], HUGE)],
    *[({"generation_config": v}, "generation_config") for v in (1, "yes", None, [])],
    *[({"stop": v}, "stop") for v in (5, b"x", [b"x"], {"a": 1}, HUGE, Unprintable())],
    *[({"max_tokens": v}, "max_tokens") for v in ("5", [5], HUGE, Unprintable(), 2.0)],
    *[({"temperature": v}, "temperature") for v in ("1", [1.0], 1j, HUGE, Unprintable(), 10**400)],
    *[({"seed": v}, "seed") for v in ("1", 1.0, HUGE)],
    *[({"stop_token_ids": v}, "stop_token_ids") for v in (5, {5: 1}, [None], Unprintable())],
    *[({"draft": v}, "load()") for v in ("lookup", 1, None, Lookup())],
]  # fmt: skip


@pytest.mark.parametrize("options, word", OPTIONS, ids=name_of)
@pytest.mark.parametrize("call", ["stream", "generate"])
def test_options_of_wrong_types(tiny_model, call, options, word):
    with refused(InvalidArgumentError, word):
        getattr(tiny_model, call)([USER], **options)


def test_template_variables_reach_the_template(tiny_model):
    tool = {"type": "function", "function": {"name": "f"}}
    options = {"chat_template_kwargs": {"enable_thinking": False}}
    assert tiny_model.generate([USER], max_tokens=2, **options).tokens
    with refused(InvalidArgumentError, "tools", "does not look at tools"):
        tiny_model.generate([USER], tools=[tool])
    whole = tiny_model.stream([USER], max_tokens=1, chat_template_kwargs={})
    bare = tiny_model.stream(
        [USER], max_tokens=1, chat_template_kwargs={"add_generation_prompt": False}
    )
    assert bare.result().stats.prompt_tokens < whole.result().stats.prompt_tokens


def test_values_that_other_libraries_take_too(tiny_model):
    """No limit but the context's, and minus infinity for a token that shall not be."""
    answer = tiny_model.generate([USER], max_tokens=None, ignore_eos=True)
    assert answer.finish_reason == "length"
    # The last token is never read.
    assert answer.stats.prompt_tokens + len(answer.tokens) == tiny_model.info.context + 1
    first = tiny_model.generate([USER], max_tokens=1, ignore_eos=True).tokens[0]
    for ban in (float("-inf"), np.float32("-inf"), -1e9):
        others = tiny_model.generate(
            [USER], max_tokens=40, ignore_eos=True, logit_bias={first: ban}
        )
        assert first not in others.tokens


BIAS = [
    ({288: 1.0}, "logit_bias: 288", "from 0 to 274"),
    ({10**9: 1.0}, "logit_bias: 1000000000", "token id"),
    ({-1: 1.0}, "logit_bias: -1", "token id"),
    ({"x": 1.0}, "logit_bias: 'x'", "token id"),
    ({1.5: 1.0}, "logit_bias: 1.5", "token id"),
    ({None: 1.0}, "logit_bias: None", "token id"),
    ({True: 1.0}, "logit_bias: True", "token id"),
    ({3: "a"}, "logit_bias[3]", "not a number"),
    ({3: "1"}, "logit_bias[3]", "not a number"),
    ({3: None}, "logit_bias[3]", "not a number"),
    ({3: [1.0]}, "logit_bias[3]", "not a number"),
    ({3: True}, "logit_bias[3]", "not a number"),
    ({3: float("nan")}, "logit_bias[3]", "nan is out of range; it must be from -1e30 to 1e30"),
    ({3: float("inf")}, "logit_bias[3]", "from -1e30 to 1e30"),
    ({3: 1e38}, "logit_bias[3]", "1e+38 is out of range; it must be from -1e30 to 1e30"),
    ({3: 1e35}, "logit_bias[3]", "out of range"),
    ({3: 1, "3": 2}, "logit_bias", "twice"),
    (dict.fromkeys(range(10_000), 0.0), "10000 entries", "vocabulary"),
    ([(3, 1.0)], "logit_bias", "dict from token id to number"),
    (5, "logit_bias", "dict from token id to number"),
    ("3", "logit_bias", "dict from token id to number"),
]


@pytest.mark.parametrize("bias, where, what", BIAS, ids=lambda v: str(v)[:40])
def test_bad_logit_bias_says_what_is_wrong(tiny_model, bias, where, what):
    with refused(InvalidArgumentError, where, what.replace("274", str(tiny_model.info.vocab - 1))):
        tiny_model.generate([3, 4], logit_bias=bias)


@pytest.mark.parametrize(
    "value", [-1, 21, 10**9, 10**400, 2.5, 2.0, True, "3", [3], {}, HUGE], ids=name_of
)
def test_bad_logprobs_say_what_is_right(tiny_model, value):
    with refused(InvalidArgumentError, "logprobs", "at most 20", "None"):
        tiny_model.generate([3, 4], logprobs=value)


@pytest.mark.parametrize("value", [0, 1, 20])
def test_good_logprobs_are_what_the_engine_takes(tiny_model, value):
    r = tiny_model.generate([3, 4], logprobs=value, max_tokens=2, ignore_eos=True)
    assert [len(t.top) for t in r.logprobs] == [value] * 2


@pytest.mark.parametrize("call", ["stream", "generate", "verify", "chat", "send"])
@pytest.mark.parametrize(
    "name, near",
    [
        ("max_token", "max_tokens"),
        ("max_new_tokens", "max_tokens"),
        ("temprature", "temperature"),
        ("topp", "top_p"),
        ("repeat_penalty", "repetition_penalty"),
        ("stop_token_id", "stop_token_ids"),
        ("zzz", None),
        ("defaults", None),
        ("vocab", None),
        ("n", None),
    ],
)
def test_unknown_options_name_the_call_and_the_nearest(tiny_model, call, name, near):
    run = tiny_model.chat().send if call == "send" else getattr(tiny_model, call)
    prompt = ["x"] if call != "chat" else []
    with refused(
        InvalidArgumentError, f"{call}(): unknown option '{name}'", "max_tokens"
    ) as caught:
        run(*prompt, **{name: 5})
    hint = f"did you mean {near}?"
    assert hint in str(caught.value) if near else "did you mean" not in str(caught.value)


def test_every_request_option_is_known(tiny_model):
    from stepladder.model.options import OPTIONS, build_request

    names = set(inspect.signature(build_request).parameters) - {"prompt", "vocab", "defaults"}
    assert names < OPTIONS
    document = inspect.getdoc(stepladder.Model.stream)
    assert all(name in document for name in OPTIONS)


def load_arguments():
    yield from [
        (("model",), {"model": v})
        for v in (5, None, [], b"abc", {"a": 1}, True, Unprintable(), "", "a\0b")
    ]
    yield ("model",), {"model": "\ud800"}
    for name in ("context", "max_sequences", "threads"):
        yield from [((name,), {name: v}) for v in ("8", 1.5, [8], True, Unprintable(), HUGE)]
    for name in ("device", "isa", "head"):
        yield from [
            ((name,), {name: v})
            for v in (5, b"cpu", ["cpu"], True, "\ud800", Unprintable(), "cpu\0", "x" * 10**6)
        ]
    yield from [(("progress",), {"progress": v}) for v in (5, "bar", [])]
    for value in (5, 1.5, True, b"lookup", {"lookup": 1}, {"lookup"}, [5], [None], [[Lookup()]], object(), [b"x"],
                  Unprintable(), [HUGE]):  # fmt: skip
        yield ("draft", "Lookup()", "cast:FORMAT"), {"draft": value}
    for value in ("cast:\0int8", "lookup," * 10**5):
        yield ("draft",), {"draft": value}
    for name in ("\ud800", "a\0b", "x" * 10**5, ""):
        yield ("draft", "option"), {"draft": stepladder.Drafter("lookup", **{name: 1})}
    for value in (5, None, b"int8", ["int8"], True, ""):
        yield ("draft", "Cast: format"), {"draft": partial(Cast, value)}
    for value in (5, None, True, ["own"], np.array(["own", "own"])):
        yield ("Cast: cache",), {"draft": partial(Cast, "int8", cache=value)}
    for value in (5, True, ["int8"], b"int8"):
        yield ("draft", "Cast: head"), {"draft": partial(Cast, "int8", head=value)}
        yield ("draft", "Switch: act"), {"draft": partial(Switch, value)}
    for value in (5, None, True, b"path", [], "", "a\0b"):
        yield ("draft", "Draft: path"), {"draft": Draft(value)}
    for value in ("4", 1.5, True, [4], 0, -1, 10**9):
        yield ("draft", "tokens"), {"draft": partial(Lookup, tokens=value)}
        yield ("draft", "tokens"), {"draft": partial(Cast, "int8", tokens=value)}
        yield ("draft", "longest"), {"draft": partial(Lookup, longest=value)}
        yield ("draft", "shortest"), {"draft": partial(Lookup, shortest=value)}
    yield ("draft", "surrogate"), {"draft": "\ud800"}
    yield ("draft", "surrogate"), {"draft": ["lookup", "\ud800"]}
    yield ("surrogate",), {"draft": partial(Cast, "\ud800")}


@pytest.mark.parametrize("words, options", list(load_arguments()), ids=name_of)
def test_load_arguments_of_wrong_types(tiny_dir, words, options):
    with refused(InvalidArgumentError, *words):
        # A level is refused where it is made.
        made = {k: v() if isinstance(v, partial) else v for k, v in options.items()}
        stepladder.load(**{"model": tiny_dir, **made})


@pytest.mark.parametrize("call", [stepladder.load, stepladder.inspect], ids=["load", "inspect"])
def test_a_path_that_is_not_utf8(tmp_path, call):
    with refused(InvalidArgumentError, "model", "UTF-8"):
        call(str(tmp_path / "\udcff"))
    with refused(InvalidArgumentError, "model", "UTF-8"):
        call(tmp_path / "\udcff")


@pytest.mark.parametrize("value", [5, None, [], b"abc", Unprintable()], ids=name_of)
def test_inspect_takes_a_path(value):
    with refused(InvalidArgumentError, "model", "pathlib.Path"):
        stepladder.inspect(value)


@pytest.mark.parametrize(
    "line, near", [("foo", None), ("lokup", "lookup"), ("cast:int8,foo", None), ("swich", "switch")]
)
@pytest.mark.parametrize("form", [str, lambda line: [line]])
def test_a_word_that_is_no_level_is_told_the_levels(tiny_dir, line, near, form):
    known = ("lookup", "cast:FORMAT", "switch:a8", "model:PATH")
    with refused(FileError, "draft", line.split(",")[-1], *known) as caught:
        stepladder.load(tiny_dir, draft=form(line))
    assert near is None or f"did you mean {near}?" in str(caught.value)


@pytest.mark.parametrize("name", ["nope", "./nope", "/nope/nope", "a/b/c", "nope@main"])
def test_a_missing_model_says_where_it_was_sought_and_how_to_fetch_one(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with refused(FileError, name, "no such directory", str(tmp_path / "hub"), "hf download"):
        stepladder.load(name)


@pytest.mark.parametrize("value", ODD, ids=name_of)
def test_tokenize_and_detokenize(tiny_model, value):
    with refused(InvalidArgumentError, "tokens"):
        tiny_model.detokenize([value] if isinstance(value, list) and value is not HUGE else value)
    with refused(InvalidArgumentError, "text"):
        tiny_model.tokenize(value)
    if value is not True:
        with refused(InvalidArgumentError, "special"):
            tiny_model.tokenize("x", special=value)
        with refused(InvalidArgumentError, "special"):
            tiny_model.detokenize([3], special=value)
        with refused(InvalidArgumentError, "bos"):
            tiny_model.tokenize("x", bos=value)


@pytest.mark.parametrize(
    "tokens", ["abc", "", [None], ["a"], [1.0], [-1], [10**9], {3: 4}, None], ids=str
)
def test_detokenize_takes_tokens(tiny_model, tokens):
    with refused(InvalidArgumentError, "tokens"):
        tiny_model.detokenize(tokens)


@pytest.mark.parametrize("value", ODD, ids=name_of)
def test_the_tokenizer_itself(tiny_model, value):
    text = tiny_model.text
    with refused(InvalidArgumentError, "tokens"):
        text.decode([value] if isinstance(value, list) and value is not HUGE else value)
    with refused(InvalidArgumentError, "text"):
        text.encode(value)
    with refused(InvalidArgumentError, "token"):
        text.token_bytes(-value if type(value) is int else value)
    with refused(InvalidArgumentError, "messages"):
        text.render(value)
    with refused(InvalidArgumentError, "messages"):
        text.encode_chat(value)


def test_a_bad_prompt_among_others_ends_those_that_have_begun(tiny_model, monkeypatch):
    closed = []
    monkeypatch.setattr(stepladder.Stream, "close", lambda self: closed.append(self.cancel()))
    with refused(InvalidArgumentError, "prompt[0]"):
        tiny_model.stream([[3, 4], [5, 6], [10**9]], max_tokens=200, ignore_eos=True)
    assert len(closed) == 2


def test_detokenize_takes_any_sequence(tiny_model):
    ids = tiny_model.tokenize("the cat")
    for form in (
        ids,
        tuple(ids),
        iter(ids),
        (i for i in ids),
        np.array(ids),
        np.array(ids, np.int16),
    ):
        assert tiny_model.detokenize(form) == "the cat"


@pytest.mark.parametrize(
    "options, word",
    [
        ({"side_by_side": v}, "side_by_side") for v in (0, "2", 1.5, True, None, [2])
    ] + [({"seed": v}, "seed") for v in ("1", None, 1.5, -1)]
      + [({"progress": v}, "progress") for v in (5, "x", True)]
      + [({"draft": v}, "draft") for v in (True, "lookup")]
      + [({"max_tokens": v}, "max_tokens") for v in ("5", 0)],
    ids=name_of,
)  # fmt: skip
def test_verify_arguments_of_wrong_types(tiny_model, options, word):
    with refused(InvalidArgumentError, word):
        tiny_model.verify(["x"], **options)


@pytest.mark.parametrize("prompts", ["hello", [3, 4, 5], [USER], np.array([3, 4])], ids=name_of)
def test_verify_takes_one_prompt_too(tiny_model, prompts):
    report = tiny_model.verify(prompts, max_tokens=4)
    assert report.prompts == 1 and report.equal


@pytest.mark.parametrize("value", ODD, ids=name_of)
def test_chat_takes_texts(tiny_model, value):
    with refused(InvalidArgumentError, "system"):
        tiny_model.chat(value)
    chat = tiny_model.chat()
    with refused(InvalidArgumentError, "text"):
        chat.send(value)
    chat.messages = value
    with refused(InvalidArgumentError, "messages"):
        chat.send("x")
    assert chat.messages is value


PATHS = (5, None, [], b"abc", {"a": 1}, True, Unprintable(), "", "a\0b", "\ud800")
FILES = [
    *[({"source": v}, ("source", "model")) for v in PATHS],
    *[({"target": v}, ("target",)) for v in PATHS],
    *[({"force": v}, ("force",)) for v in (1, None, "yes", [])],
    *[({"progress": v}, ("progress",)) for v in (5, "bar", True)],
]


@pytest.mark.parametrize("options, words", FILES, ids=name_of)
@pytest.mark.parametrize(
    "call", [stepladder.convert, stepladder.quantize], ids=lambda f: f.__name__
)
def test_converters_take_paths_and_flags(tiny_dir, tmp_path, call, options, words):
    more = {"format": "w8a16"} if call is stepladder.quantize else {}
    with refused(InvalidArgumentError) as caught:
        call(**{"source": tiny_dir, "target": tmp_path / "out", **more, **options})
    assert any(w in str(caught.value) for w in words) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", [5, None, [], ["bf16"], {}, True, b"bf16", Unprintable()], ids=name_of
)
def test_formats_are_names(tiny_dir, tmp_path, value):
    with refused(InvalidArgumentError, "dtype", "bf16"):
        stepladder.convert(tmp_path / "m.gguf", tmp_path / "out", dtype=value)
    with refused(InvalidArgumentError, "format", "w4a16"):
        stepladder.quantize(tiny_dir, tmp_path / "out", format=value)
    if value is not None:
        with refused(InvalidArgumentError, "head", "w4a16"):
            stepladder.quantize(tiny_dir, tmp_path / "out", format="w8a16", head=value)
    if value != 5:
        with refused(InvalidArgumentError, "group"):
            stepladder.quantize(tiny_dir, tmp_path / "out", format="w4a16", group=value)


@pytest.mark.parametrize(
    "prompt",
    [
        bytes(1 << 27),
        bytearray(1 << 27),
        [bytes(1 << 27)],
        memoryview(bytes(1 << 27)),
        np.zeros(30_000_000, np.int64),
        np.zeros((2, 15_000_000), np.int8),
        [np.zeros(30_000_000, np.int8)],
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_no_context_holds_is_refused_before_it_is_copied(tiny_model, prompt):
    with refused(InvalidArgumentError, "prompt"):
        tiny_model.stream(prompt)
    with refused(InvalidArgumentError, "tokens"):
        tiny_model.detokenize(prompt)


MISSPELT = {
    "load": (lambda: stepladder.load("x", contxt=5), "contxt", "did you mean context?"),
    "inspect": (lambda: stepladder.inspect(mdel="x"), "mdel", "did you mean model?"),
    "convert": (lambda: stepladder.convert("x", "y", forse=True), "forse", "did you mean force?"),
    "quantize": (lambda: stepladder.quantize("x", "y", frmat="w8a8"), "frmat", "mean format?"),
}


@pytest.mark.parametrize("case", MISSPELT)
def test_a_misspelt_keyword_is_told_the_nearest(case):
    call, *words = MISSPELT[case]
    for error in (InvalidArgumentError, TypeError):
        with refused(error, f"{case}()", *words):
            call()


def test_the_signatures_are_still_told():
    assert list(inspect.signature(stepladder.load).parameters)[:3] == ["model", "draft", "context"]
    assert "draft" in inspect.getdoc(stepladder.load)


@pytest.mark.parametrize("context", [257, 10**9, 1 << 40])
def test_a_context_beyond_the_models_is_told_the_models(tiny_dir, context):
    with refused(InvalidArgumentError, "context: ", "at most 256 tokens"):
        stepladder.load(tiny_dir, context=context)


@pytest.mark.parametrize("context", [0, -1, 2.5])
def test_a_context_of_nothing_is_told_no_other_limit(tiny_dir, context):
    with refused(InvalidArgumentError, f"context: {context} is not", "1 or more"):
        stepladder.load(tiny_dir, context=context)


TOO_LONG = {
    "tokens": ([3] * 300, "prompt: 300 tokens"),
    "text": ("é" * 150, "prompt: 300 tokens"),
    "long text": ("x" * 5000, "prompt: 5000 characters"),
    "messages": ([{"role": "user", "content": "x" * 5000}], "messages: 50"),
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_what_is_too_long_is_told_the_same_numbers_and_remedy(tiny_dir, case):
    prompt, told = TOO_LONG[case]
    larger = " or load with a larger context, at most 256"
    for context in (64, 256):
        told_here = f" do not fit the context of {context}; shorten it"
        with (
            stepladder.load(tiny_dir, context=context, threads=1) as model,
            refused(InvalidArgumentError, told, told_here) as caught,
        ):
            model.generate(prompt)
        assert str(caught.value).endswith(told_here + (larger if context < 256 else ""))
