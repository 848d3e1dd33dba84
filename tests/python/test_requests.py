"""Requests: what is refused, and by what name; what is legal works."""

import asyncio
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import stepladder
import tiny
from conftest import refused
from stepladder import InvalidArgumentError, UnsupportedError

PROMPT = [1, *range(3, 40)]
BIG = 2**63


def refused_requests():
    """Options that no request may have, and the word the message must hold."""
    yield from [({"max_tokens": v}, "max_tokens") for v in (0, -1, BIG, 2**31, "10", 1.5, True)]
    yield from [
        ({"temperature": v}, "temperature")
        for v in (-1, float("nan"), float("inf"), "1", 1e-9, 1e9, True)
    ]
    yield from [
        ({"temperature": 1, "top_p": v}, "top_p") for v in (0, 1.1, -0.5, float("nan"), "x", [1])
    ]
    yield from [({"temperature": 1, "top_k": v}, "top_k") for v in (-1, 1.5, BIG, "3")]
    yield from [({"temperature": 1, "min_p": v}, "min_p") for v in (2, -0.1, float("nan"))]
    yield from [({"seed": v}, "seed") for v in (2**64, -1, 1.5, "7")]
    yield from [
        ({"repetition_penalty": v}, "repetition_penalty") for v in (0, -1, 1e9, float("inf"))
    ]
    yield from [({"frequency_penalty": v}, "frequency_penalty") for v in (3, -3, float("nan"))]
    yield from [({"presence_penalty": v}, "presence_penalty") for v in (3, -3, "a")]
    yield from [({"logprobs": v}, "logprobs") for v in (-1, 10**9, 2.5, True)]
    yield from [({"stop": v}, "stop") for v in ("", [""], 5, [1], ["x"] * 3 + [None])]
    yield from [
        ({"stop_token_ids": v}, "stop_token_ids") for v in ([-1], [10**9], "12", [1.5], 5, ["a"])
    ]
    yield from [({"ignore_eos": v}, "ignore_eos") for v in (1, "yes", None)]
    yield from [({"draft": v}, "draft") for v in (1, "lookup", None)]
    yield from [({"logit_bias": v}, "logit_bias") for v in ({10**9: 1}, {-1: 1}, {"x": 1}, {3: float("nan")},
                                                             {3: "a"}, [(3, 1)], {3: 1, "3": 2}, {1.5: 1}, 5)]  # fmt: skip
    yield {"logit_bias": dict.fromkeys(range(10_000), 0.0)}, "logit_bias"
    yield {"stop": [str(i) for i in range(1000)]}, "stop"


@pytest.mark.parametrize("options, word", list(refused_requests()), ids=lambda v: str(v)[:60])
def test_options_out_of_range_are_refused_by_name(tiny_model, options, word):
    with refused(InvalidArgumentError, word):
        tiny_model.stream(PROMPT, **options)


@pytest.mark.parametrize("name", ["n", "best_of", "max_new_tokens", "beam", "num_beams"])
def test_unknown_options_are_named(tiny_model, name):
    with pytest.raises(TypeError, match=name):
        tiny_model.stream(PROMPT, **{name: 10**9})


@pytest.mark.parametrize(
    "prompt, word",
    [
        ("", "prompt"),
        ([], "prompt"),
        (None, "prompt"),
        (5, "prompt"),
        (b"abc", "prompt"),
        ({"role": "user"}, "prompt"),
        ([10**9], "prompt[0]"),
        ([-1], "prompt[0]"),
        ([1.5], "prompt[0]"),
        ([True], "prompt[0]"),
        ([3, "a"], "prompt[1]"),
        ([3, None], "prompt[1]"),
        ([[]], "prompt"),
        (["a", ""], "prompt"),
        ([3] * 1000, "context"),
        ("x" * 1_000_000, "context"),
        ("\ud800", "surrogate"),
        ([{"role": "user"}], "content"),
        ([{"role": "user", "content": None}], "content"),
        ([{"role": "user", "content": 5}], "content"),
        ([{"content": "x"}], "role"),
        ([{"role": 5, "content": "x"}], "role"),
        ([{"role": "user", "content": "x"}, "y"], "messages[1]"),
        ([{"role": "user", "content": "x" * 1_000_000}], "characters"),
        ([{"role": "user", "content": "é" * 300}], "context"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_bad_prompts_are_refused(tiny_model, prompt, word):
    with refused(InvalidArgumentError, word):
        tiny_model.stream(prompt)


def test_content_in_parts(tiny_model):
    def parts(content):
        return tiny_model.generate([{"role": "user", "content": content}], max_tokens=4).tokens

    assert parts([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]) == parts("ab")
    with refused(UnsupportedError, "messages[0]", "part"):
        parts([{"type": "image_url", "image_url": "x"}])


def test_all_kinds_of_prompts_work(tiny_model):
    ids = tiny_model.tokenize("the cat")
    want = tiny_model.generate("the cat", max_tokens=5).tokens
    for prompt in (ids, tuple(ids), np.array(ids), np.array(ids, np.int32)):
        assert tiny_model.generate(prompt, max_tokens=5).tokens == want
    messages = [{"role": "user", "content": "the"}]
    text = tiny_model.text.render(messages)
    assert (
        tiny_model.generate(messages, max_tokens=5).tokens
        == tiny_model.generate(text, max_tokens=5).tokens
    )


@pytest.mark.parametrize("draft", [True, False])
def test_a_list_of_prompts_gives_a_list_of_the_same_results(tiny_model, draft):
    prompts = ["the", [{"role": "user", "content": "cat"}], [5, 6, 7], "an other", "é"] * 2
    options = {"max_tokens": 20, "temperature": 1.0, "seed": 3, "draft": draft}
    alone = [tiny_model.generate(p, **options) for p in prompts]
    together = tiny_model.generate(prompts, **options)
    assert [(r.tokens, r.logits, r.text) for r in together] == [
        (r.tokens, r.logits, r.text) for r in alone
    ]
    assert len(tiny_model.generate(np.array([[3, 4], [5, 6]]), max_tokens=2)) == 2
    streams = tiny_model.stream(prompts[:3], **options)
    assert [s.result().tokens for s in streams] == [r.tokens for r in alone[:3]]


def test_pieces_make_up_the_result(tiny_model):
    options = {"max_tokens": 60, "temperature": 1.5, "seed": 11, "ignore_eos": True}
    pieces = list(tiny_model.stream("the", logprobs=2, **options))
    whole = tiny_model.generate("the", logprobs=2, **options)
    assert "".join(map(str, pieces)) == "".join(p.text for p in pieces) == whole.text
    assert [t for p in pieces for t in p.tokens] == whole.tokens and len(whole.tokens) == 60
    assert [v for p in pieces for v in p.logits] == whole.logits
    assert [v for p in pieces for v in p.logprobs] == whole.logprobs and len(whole.logprobs) == 60
    assert all(e.token == t and len(e.top) == 2 for e, t in zip(whole.logprobs, whole.tokens))
    assert [p.finish_reason for p in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == whole.finish_reason == "length"
    assert whole.text == tiny_model.detokenize(whole.tokens)
    assert all(p.text.encode() is not None for p in pieces)


def test_stop_strings_cut_at_every_place(tiny_model):
    options = {"max_tokens": 40, "temperature": 1.5, "seed": 5, "ignore_eos": True}
    text = tiny_model.generate("the", **options).text
    for at in range(1, len(text) - 3):
        stop = text[at : at + 3]
        r = tiny_model.generate("the", stop=stop, **options)
        assert r.text == text[: text.find(stop)], repr(stop)
        assert r.finish_reason == "stop"
        plain = tiny_model.generate("the", stop=stop, draft=False, **options)
        assert (plain.text, plain.tokens, plain.logits) == (r.text, r.tokens, r.logits)


def test_stop_tokens_and_end_tokens(tiny_model):
    free = tiny_model.generate(PROMPT, max_tokens=30, ignore_eos=True)
    token = free.tokens[10]
    r = tiny_model.generate(PROMPT, max_tokens=30, ignore_eos=True, stop_token_ids=[token])
    assert r.finish_reason == "stop" and r.tokens == free.tokens[: free.tokens.index(token)]
    forced = tiny_model.generate(PROMPT, max_tokens=30, logit_bias={2: 1000.0})
    assert (forced.finish_reason, forced.tokens, forced.text) == ("stop", [], "")
    forced = tiny_model.generate(PROMPT, max_tokens=3, logit_bias={"2": 1000.0}, ignore_eos=True)
    assert (forced.finish_reason, forced.tokens, forced.text) == ("length", [2, 2, 2], "")


def test_the_end_token_of_the_tokenizer_alone_ends_the_text(tmp_path):
    directory = tiny.write_model(tmp_path / "m", eos_token_id=None)
    (directory / "generation_config.json").unlink()
    with stepladder.load(directory, threads=1) as model:
        r = model.generate(PROMPT, max_tokens=5, logit_bias={2: 1000.0})
    assert (r.finish_reason, r.tokens) == ("stop", [])


def test_seeds(tiny_model):
    first = tiny_model.generate(PROMPT, max_tokens=20, temperature=1.0)
    assert (
        tiny_model.generate(PROMPT, max_tokens=20, temperature=1.0, seed=first.seed).tokens
        == first.tokens
    )
    assert first.stats.seed == first.seed
    others = {
        tuple(tiny_model.generate(PROMPT, max_tokens=20, temperature=1.0).tokens) for _ in range(3)
    }
    assert len(others | {tuple(first.tokens)}) > 1
    top = tiny_model.generate(PROMPT, max_tokens=5, temperature=1.0, seed=2**64 - 1)
    assert top.seed == 2**64 - 1
    assert tiny_model.generate(PROMPT, max_tokens=5).seed == 0


def test_the_models_own_sampling_only_on_request(tmp_path):
    import json

    directory = tiny.write_model(tmp_path / "m")
    path = directory / "generation_config.json"
    path.write_text(
        json.dumps({"eos_token_id": 2, "do_sample": True, "temperature": 1.3, "top_p": 0.9})
    )
    with stepladder.load(directory, threads=1) as model:
        greedy = model.generate(PROMPT, max_tokens=20, ignore_eos=True)
        own = model.generate(PROMPT, max_tokens=20, ignore_eos=True, generation_config=True, seed=3)
        same = model.generate(
            PROMPT, max_tokens=20, ignore_eos=True, temperature=1.3, top_p=0.9, seed=3
        )
        cold = model.generate(
            PROMPT, max_tokens=20, ignore_eos=True, generation_config=True, temperature=0
        )
        assert own.tokens == same.tokens != greedy.tokens == cold.tokens
        path.write_text(json.dumps({"num_beams": 4}))
        with refused(UnsupportedError, "generation_config.json", "num_beams"):
            model.generate(PROMPT, generation_config=True)


def test_levels_change_nothing(tiny_model):
    for options in (
        {},
        {"temperature": 0.8, "top_p": 0.95, "repetition_penalty": 1.2, "presence_penalty": 0.3},
    ):
        report = tiny_model.verify(
            ["the cat", PROMPT, "an"], max_tokens=40, ignore_eos=True, **options
        )
        assert report.equal and report.hash == report.plain_hash and report.tokens == 120
        assert "equal" in str(report)


def test_comparing_nothing_is_no_proof(tiny_model):
    first = tiny_model.generate(PROMPT, max_tokens=1, ignore_eos=True).tokens[0]
    with refused(InvalidArgumentError, "verify", "nothing was compared"):
        tiny_model.verify([PROMPT, PROMPT], max_tokens=4, stop_token_ids=[first])


def test_a_difference_is_found_and_shown():
    from stepladder.model.results import Result, Stats
    from stepladder.model.verify import first_difference

    def result(tokens, logits, reason="length"):
        return Result("", tokens, logits, None, reason, Stats(0, 0, 0, 0, 0, 0, 0), 0)

    plain = result([1, 2], [0.5, 0.25])
    assert first_difference(0, plain, result([1, 2], [0.5, 0.25])) is None
    ulp = float(np.nextafter(np.float32(0.25), np.float32(1)))
    found = first_difference(4, plain, result([1, 2], [0.5, ulp]))
    assert (found.prompt, found.index, found.token) == (4, 1, 2) and "question 5, token 2" in str(
        found
    )
    assert first_difference(0, plain, result([1], [0.5])).index == 1
    assert first_difference(0, plain, result([1, 2], [0.5, 0.25], "stop")).index == 2
    assert first_difference(0, result([1], [0.0]), result([1], [-0.0])).index == 0


def test_the_context_ends_the_text(tiny_model):
    context = tiny_model.info.context
    prompt = [3 + i % 200 for i in range(context - 5)]
    for n in range(6):
        for draft in (True, False):
            r = tiny_model.generate([3] * n + prompt, max_tokens=50, ignore_eos=True, draft=draft)
            assert r.finish_reason == "length"
            assert len(r.tokens) <= 6 - n + 1


def test_two_requests_at_once_from_threads(tiny_model):
    want = {
        i: tiny_model.generate([3 + i, 5, 7], max_tokens=30, ignore_eos=True).tokens
        for i in range(8)
    }
    got = {}

    def work(i):
        got[i] = tiny_model.generate([3 + i, 5, 7], max_tokens=30, ignore_eos=True).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert got == want


def test_many_queued_requests(tiny_model):
    streams = [tiny_model.stream([3, 4, 5], max_tokens=1, ignore_eos=True) for _ in range(2000)]
    for stream in streams[10:]:
        stream.cancel()
    assert all(len(s.result().tokens) == 1 for s in streams[:10])
    assert {s.result().finish_reason for s in streams[10:]} <= {"cancelled", "length"}


def test_cancel_from_another_thread(tiny_model):
    stream = tiny_model.stream(PROMPT, max_tokens=200, ignore_eos=True)
    next(stream)
    threading.Timer(0.01, stream.cancel).start()
    rest = list(stream)
    assert stream.finish_reason in ("cancelled", "length")
    assert rest[-1].finish_reason == stream.finish_reason
    again = tiny_model.generate(PROMPT, max_tokens=20, ignore_eos=True)
    assert (
        again.tokens
        == tiny_model.generate(PROMPT, max_tokens=20, ignore_eos=True, draft=False).tokens
    )


def test_leaving_early_ends_the_work(tiny_model):
    for _ in range(20):
        for _piece in tiny_model.stream(PROMPT, max_tokens=200, ignore_eos=True):
            break
    with tiny_model.stream(PROMPT, max_tokens=200, ignore_eos=True) as stream:
        next(stream)
    assert stream.finish_reason == "cancelled" and list(stream) == []
    start = time.monotonic()
    tiny_model.generate(PROMPT, max_tokens=2)
    assert time.monotonic() - start < 2


def test_stats(tiny_model):
    r = tiny_model.generate(list(range(100, 200)), max_tokens=30, ignore_eos=True)
    s = r.stats
    assert (s.prompt_tokens, s.tokens) == (100, 30)
    assert s.first_token_ms > 0 and s.decode_ms > 0 and s.tokens_per_second > 0
    assert [v.name for v in s.levels][0] == "target" and len(s.levels) == 2
    assert s.levels[0].emitted >= 30 and s.levels[0].acceptance_length >= 1
    assert s.as_dict()["levels"][0]["name"] == "target"
    again = tiny_model.generate(list(range(100, 200)), max_tokens=2)
    assert again.stats.cached_tokens >= 90


@pytest.mark.parametrize("draft", [True, False])
def test_stats_print_in_a_few_lines(tiny_model, draft):
    """repr() keeps every field."""
    s = tiny_model.generate(PROMPT, max_tokens=30, ignore_eos=True, draft=draft).stats
    lines = str(s).splitlines()
    assert len(lines) == 1 + len(s.levels) <= 4 and all(len(line) < 120 for line in lines)
    for part in (f"{s.tokens} tokens", f"{s.tokens_per_second:.1f} tokens/s", f"{s.first_token_ms:.0f} ms",
                 f"prompt {s.prompt_tokens} tokens", f"{s.cached_tokens} from the cache"):  # fmt: skip
        assert part in lines[0]
    for level, line in zip(s.levels, lines[1:]):
        assert line.strip() == str(level) and level.name in line
        assert (level.rounds == 0) is (not draft and level.name != "target")
        if not level.rounds:
            assert line.strip() == f"{level.name}: did not run"
            continue
        assert f"{level.acceptance_length:.2f} tokens" in line
        assert f"{level.draft_ms:.0f} ms" in line and f"{level.verify_ms:.0f} ms" in line
    for value in (s, *s.levels):
        assert all(f"{name}=" in repr(value) for name in vars(value))


def test_chat_reuses_the_first_turn_and_equals_a_fresh_engine(tiny_dir):
    with stepladder.load(tiny_dir, draft="lookup", threads=1) as model:
        chat = model.chat("be brief", max_tokens=16)
        first = "".join(map(str, chat.send("the cat")))
        stream = chat.send("an other")
        second = "".join(map(str, stream))
        assert [m["role"] for m in chat.messages] == [
            "system",
            "user",
            "assistant",
            "user",
            "assistant",
        ]
        assert chat.messages[2]["content"] == first and chat.messages[4]["content"] == second
        assert stream.stats.cached_tokens > 20
        messages = chat.messages[:4]
    with stepladder.load(tiny_dir, threads=1) as model:
        assert model.generate(messages, max_tokens=16).text == second


def test_async_streams(tiny_model):
    want = [
        tiny_model.generate([9 + i, 5], max_tokens=25, ignore_eos=True).tokens for i in range(5)
    ]

    async def one(i):
        tokens = []
        async for piece in tiny_model.stream([9 + i, 5], max_tokens=25, ignore_eos=True):
            tokens += piece.tokens
        return tokens

    async def all_of_them():
        return await asyncio.gather(*(one(i) for i in range(5)))

    assert asyncio.run(all_of_them()) == want


def test_the_stream_of_a_cancelled_task_can_be_closed(tiny_model):
    stream = tiny_model.stream(PROMPT, max_tokens=200, ignore_eos=True)

    async def main():
        async def use():
            async for _ in stream:
                await asyncio.sleep(0.001)

        task = asyncio.create_task(use())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    stream.close()
    assert list(stream) == []


def test_a_closed_model_and_a_stream_that_outlives_it(tiny_dir):
    model = stepladder.load(tiny_dir, threads=1)
    stream = model.stream(PROMPT, max_tokens=3, ignore_eos=True)
    pieces = list(stream)
    model.close()
    with refused(InvalidArgumentError, "closed"):
        model.stream(PROMPT)
    assert pieces and stream.stats.tokens == 3
    stream = stepladder.load(tiny_dir, threads=1).stream(PROMPT, max_tokens=30, ignore_eos=True)
    assert len(stream.result().tokens) == 30


def child(script, *args):
    return subprocess.Popen([sys.executable, "-X", "dev", "-c", script, *args], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)  # fmt: skip


def test_the_interpreter_may_end_during_a_stream(tiny_dir):
    script = (
        "import sys, stepladder\n"
        "m = stepladder.load(sys.argv[1], draft='lookup', max_sequences=2)\n"
        "s = m.stream([1, 2, 3], max_tokens=200, ignore_eos=True)\n"
        "print(next(s).tokens != [])\n"
        "t = m.stream([1, 2, 3], max_tokens=200, ignore_eos=True)\n"
        "keep = [m, s, t]; keep.append(keep)\n"
    )
    process = child(script, str(tiny_dir))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "True\n", "")


def test_ctrl_c_inside_a_for_loop(tiny_dir):
    script = (
        "import os, signal, sys, threading, stepladder\n"
        "m = stepladder.load(sys.argv[1])\n"
        "started = threading.Event()\n"
        "def press():\n"
        "    started.wait(); os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=press).start()\n"
        "try:\n"
        "    while True:\n"
        "        for piece in m.stream([1, 2, 3], max_tokens=200, ignore_eos=True):\n"
        "            started.set()\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', len(m.generate([1, 2, 3], max_tokens=4, ignore_eos=True).tokens))\n"
    )
    process = child(script, str(tiny_dir))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "interrupted 4\n", "")


def test_a_fork_is_told_apart(tiny_dir):
    script = (
        "import os, sys, stepladder\n"
        "m = stepladder.load(sys.argv[1])\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try: m.generate([1, 2, 3], max_tokens=2)\n"
        "    except stepladder.UnsupportedError: os._exit(7)\n"
        "    os._exit(1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    process = child(script, str(tiny_dir))
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "7\n")


def test_every_token_may_be_a_stop_token(tiny_model):
    everything = list(range(tiny_model.info.vocab))
    assert tiny_model.generate(PROMPT, max_tokens=3, stop_token_ids=everything).tokens == []


def test_a_stop_that_no_text_can_hold_is_refused(tiny_model):
    with pytest.raises(stepladder.InvalidArgumentError, match="stop: a lone surrogate"):
        tiny_model.generate(PROMPT, max_tokens=3, stop="\udcff")


def test_a_model_closed_during_a_call_says_so_or_answers(tiny_dir):
    class Closer:
        def __index__(self):
            model.close()
            return 5

    with stepladder.load(tiny_dir, threads=1) as model:
        assert len(model.generate([Closer()], max_tokens=1, ignore_eos=True).tokens) == 1
        with pytest.raises(stepladder.InvalidArgumentError, match="closed"):
            model.generate([5], max_tokens=1)
