"""Streams and chats: any number wait at once, a wait given up harms nothing, nothing read is lost."""

import asyncio
import threading
import time

import pytest
import stepladder

PROMPT = [1, *range(3, 40)]


@pytest.fixture
def one_place(tiny_dir):
    """A model that serves one sequence at a time, so that all others wait."""
    with stepladder.load(tiny_dir, threads=1, max_sequences=1) as model:
        yield model


def test_many_async_streams_wait_without_a_thread_each(one_place):
    def options(i):
        return {"prompt": [10 + i, 20, 30], "max_tokens": 40, "ignore_eos": True}

    start = time.monotonic()
    want = [one_place.generate(**options(i)).tokens for i in range(60)]
    alone = time.monotonic() - start
    most = 0

    async def one(i):
        nonlocal most
        tokens = []
        async for piece in one_place.stream(**options(i)):
            tokens += piece.tokens
            most = max(most, threading.active_count())
        return tokens

    async def all_of_them():
        return await asyncio.gather(*(one(i) for i in range(60)))

    before = threading.active_count()
    start = time.monotonic()
    assert asyncio.run(all_of_them()) == want
    assert time.monotonic() - start < 5 * alone + 2
    assert most == before


def test_a_wait_that_times_out_leaves_the_stream_as_it_is(one_place):
    options = {"max_tokens": 30, "ignore_eos": True}
    want = one_place.generate(PROMPT, **options).tokens

    async def main():
        first = one_place.stream([5, *PROMPT], max_tokens=200, ignore_eos=True)
        behind = one_place.stream(PROMPT, **options)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(behind.__anext__(), 0.002)
        assert not behind.done and behind.finish_reason is None
        await asyncio.to_thread(first.result)
        return [t async for piece in behind for t in piece.tokens], behind.finish_reason

    assert asyncio.run(main()) == (want, "length")


def test_result_holds_what_was_taken_before(tiny_model):
    options = {"max_tokens": 30, "ignore_eos": True, "logprobs": 2}
    want = tiny_model.generate(PROMPT, **options)
    stream = tiny_model.stream(PROMPT, **options)
    taken = [next(stream), next(stream)]
    result = stream.result()
    assert (result.text, result.tokens, result.logits, result.logprobs) == (
        want.text,
        want.tokens,
        want.logits,
        want.logprobs,
    )
    assert result.text.startswith("".join(p.text for p in taken))
    assert stream.result() == result


def test_a_second_turn_waits_for_the_answer_of_the_first(tiny_model):
    options = {"max_tokens": 8, "ignore_eos": True}
    chat = tiny_model.chat(**options)
    first_want = "".join(p.text for p in chat.send("the"))
    second_want = "".join(p.text for p in chat.send("cat"))
    want = chat.messages

    chat = tiny_model.chat(**options)
    first = chat.send("the")
    second = chat.send("cat")
    assert [m["role"] for m in chat.messages] == ["user", "assistant", "user"]
    assert "".join(p.text for p in second) == second_want
    assert "".join(p.text for p in first) == first_want
    assert chat.messages == want


def test_answers_left_half_read_or_closed_are_in_the_conversation(tiny_model):
    chat = tiny_model.chat(max_tokens=20, ignore_eos=True)
    whole = "".join(p.text for p in chat.send("the"))

    chat = tiny_model.chat(max_tokens=20, ignore_eos=True)
    for _ in chat.send("the"):
        break
    chat.send("cat").close()
    chat.send("out").close()
    roles = [m["role"] for m in chat.messages]
    assert roles == ["user", "assistant"] * 3
    assert chat.messages[1]["content"] == whole
    assert chat.messages[3]["content"] == ""


def test_an_async_wait_given_up_does_not_end_a_turn(one_place):
    async def main():
        first = one_place.stream(PROMPT, max_tokens=200, ignore_eos=True)
        chat = one_place.chat(max_tokens=5, ignore_eos=True)
        answer = chat.send("the")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(answer.__anext__(), 0.002)
        assert len(chat.messages) == 1
        await asyncio.to_thread(first.result)
        text = "".join([p.text async for p in answer])
        assert chat.messages[1] == {"role": "assistant", "content": text}

    asyncio.run(main())
