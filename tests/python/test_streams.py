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


class Silent:
    """An engine's stream in which nothing arrives."""

    calls: list[str]

    def __init__(self):
        self.calls = []

    def next(self, seconds):
        return False

    def __getattr__(self, name):
        return lambda *_: self.calls.append(name)


async def wait_in_vain(stream, pieces):
    """A wait for the next of `pieces` that times out, before anything can arrive in `stream`."""
    stream._core, core = Silent(), stream._core
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(pieces), 0.001)
    assert stream._core.calls == ["notify", "withdraw"]
    stream._core = core


def test_a_wait_that_times_out_leaves_the_stream_as_it_is(one_place):
    options = {"max_tokens": 30, "ignore_eos": True}
    want = one_place.generate(PROMPT, **options).tokens

    async def main():
        stream = one_place.stream(PROMPT, **options)
        await wait_in_vain(stream, stream)
        assert not stream.done and stream.finish_reason is None
        return [t async for piece in stream for t in piece.tokens], stream.finish_reason

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
        chat = one_place.chat(max_tokens=5, ignore_eos=True)
        answer = chat.send("the")
        await wait_in_vain(answer.stream, answer)
        assert len(chat.messages) == 1
        text = "".join([p.text async for p in answer])
        assert chat.messages[1] == {"role": "assistant", "content": text}

    asyncio.run(main())


def test_what_arrives_wakes_the_event_loop(tiny_model):
    """Nobody looks again and again: the loop's clock is never asked for a time to wake up at."""
    options = {"max_tokens": 30, "ignore_eos": True}
    want = tiny_model.generate(PROMPT, **options).tokens

    async def main():
        loop = asyncio.get_running_loop()
        loop.call_at = loop.call_later = None
        return [t async for piece in tiny_model.stream(PROMPT, **options) for t in piece.tokens]

    assert asyncio.run(main()) == want


@pytest.mark.parametrize("place", ["waiting", "busy with a piece"])
@pytest.mark.parametrize("form", ["stream", "chat"])
def test_a_cancelled_task_cancels_its_stream(one_place, place, form):
    """At once, and whoever waits behind it goes on, while somebody still holds the stream."""

    async def main():
        held = []

        async def read():
            start = one_place.chat().send if form == "chat" else one_place.stream
            held.append(start("the", max_tokens=400, ignore_eos=True))
            async for _ in held[0]:
                if place != "waiting":
                    await asyncio.sleep(60)

        task = asyncio.create_task(read())
        while not held or not held[0].stats.tokens:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert held[0].result().finish_reason == "cancelled"

    asyncio.run(main())


def test_leaving_an_async_loop_ends_the_work(tiny_dir):
    async def main(model):
        async for _ in model.stream(PROMPT, max_tokens=200, ignore_eos=True):
            break
        assert len(model._streams) == 0

    with stepladder.load(tiny_dir, threads=1) as model:
        asyncio.run(main(model))


def test_a_stream_outlives_a_task_that_only_waited_for_one_piece(one_place):
    async def main():
        stream = one_place.stream(PROMPT, max_tokens=300, ignore_eos=True)
        pieces = aiter(stream)
        await anext(pieces)

        async def wait_for_more():
            while not stream.done:
                await anext(pieces)
                await asyncio.sleep(0)

        task = asyncio.create_task(wait_for_more())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stream.result().finish_reason == "length"

    asyncio.run(main())


def test_two_tasks_do_not_wait_for_the_same_piece(one_place):
    async def main():
        stream = one_place.stream(PROMPT)
        stream._core, core = Silent(), stream._core
        first = asyncio.create_task(anext(stream))
        await asyncio.sleep(0)
        with pytest.raises(stepladder.InvalidArgumentError, match="another task"):
            await anext(stream)
        assert not stream.done
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        stream._core = core
        assert (await anext(stream)).tokens

    asyncio.run(main())


def test_streams_are_awaited_in_one_loop_after_another_and_in_threads(tiny_model):
    options = {"max_tokens": 20, "ignore_eos": True}
    want = tiny_model.generate(PROMPT, **options).tokens
    got = []

    async def read():
        return [t async for piece in tiny_model.stream(PROMPT, **options) for t in piece.tokens]

    def loops():
        got.extend(asyncio.run(read()) for _ in range(3))

    threads = [threading.Thread(target=loops) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [want] * 9


def test_many_prompts_wait_without_looking_again_and_again(tiny_model, monkeypatch):
    options = {"max_tokens": 20, "ignore_eos": True}
    prompts = [[10 + i, 20, 30] for i in range(12)]
    want = [tiny_model.generate(p, **options).tokens for p in prompts]
    monkeypatch.setattr(time, "sleep", None)
    assert [r.tokens for r in tiny_model.generate(prompts, **options)] == want


def test_closing_the_model_ends_what_others_wait_for(tiny_dir):
    with stepladder.load(tiny_dir, threads=1) as model:

        async def main():
            streams = [model.stream(PROMPT, max_tokens=400, ignore_eos=True) for _ in range(5)]
            waits = [asyncio.create_task(drain(s)) for s in streams]
            await asyncio.sleep(0)
            threading.Thread(target=model.close).start()
            await asyncio.wait_for(asyncio.gather(*waits), 10)
            return {s.finish_reason for s in streams}

        async def drain(stream):
            async for _ in stream:
                pass

        assert "cancelled" in asyncio.run(main())


def test_async_with_ends_what_is_left_of_a_stream(tiny_model):
    async def some():
        async with tiny_model.stream("the", max_tokens=200, ignore_eos=True) as stream:
            async for _ in stream:
                break
        assert stream.done and stream.finish_reason == "cancelled"
        async with tiny_model.chat(max_tokens=200, ignore_eos=True).send("the") as answer:
            await anext(answer)
        assert answer.done
        assert stream.stats.tokens < 200

    asyncio.run(some())
