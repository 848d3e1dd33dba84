"""A loaded model: prompts in, streams of text out."""

from __future__ import annotations

import atexit
import logging
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from . import _core
from .arguments import INT_MAX, callback, flag, string, suggesting, token_ids, whole
from .errors import InvalidArgumentError, UnsupportedError
from .hub import resolve
from .levels import DraftOption, to_specs
from .options import build_request, check_names, model_sampling, template_variables
from .progress import bar
from .prompts import Context, Message, Prompt, checked_messages, split_prompts
from .stops import checked_stops
from .stream import Piece, Result, Stream
from .text import Text

log = logging.getLogger("stepladder")

_live: "weakref.WeakSet[Model]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Engines have threads of their own; they end before the interpreter does, and so do the calls
    in which other threads still wait for them."""
    for model in list(_live):
        model.close()
    _core.close_down()


@suggesting
def load(
    model: str | os.PathLike[str],
    draft: DraftOption = None,
    *,
    context: int | None = None,
    max_sequences: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    isa: str | None = None,
    head: str | None = None,
    progress: bool | Callable[[int, int], Any] | None = None,
) -> "Model":
    """Loads a model directory, or "org/name" from the local Hugging Face cache.

    `draft`: the levels below it, outermost first: Cast, Switch, Lookup, Draft, a path, a list of
    them, or a line such as "cast:mxfp4:shared:tokens=4,lookup". `context`: tokens a sequence may
    hold (the model's own, at most 8192). `max_sequences`: how many are served side by side.
    `head`: the format of the output matrix. `progress`: a function of done and total bytes that
    may return False to stop; or False for no bar, which otherwise shows on a terminal.
    """
    directory = resolve(model)
    options = _core.Options()
    options.draft = to_specs(draft)
    if context is not None:
        # What no model holds is refused with the number that this one does.
        options.context = min(whole("context", context, 1, 1 << 62), INT_MAX)
    options.max_sequences = whole("max_sequences", max_sequences, 1)
    options.threads = 0 if threads is None else whole("threads", threads, 1)
    for name, value in (("device", device), ("isa", isa), ("head", head)):
        if value is not None:
            setattr(options, name, string(name, value))
    if not isinstance(progress, bool):
        callback("progress", progress)
    text = _open_text(directory)
    started = time.monotonic()
    if callable(progress):
        engine = _core.Engine.load(str(directory), options, progress)
    else:
        with bar(f"loading {directory.name}", show=False if progress is False else None) as report:
            engine = _core.Engine.load(str(directory), options, report)
    _log_load(engine.info, directory, time.monotonic() - started)
    return Model(engine, text, directory, options.max_sequences)


def _open_text(directory: Path) -> Text | None:
    if any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model")):
        return Text(directory)
    return None


def _log_load(info: _core.Info, directory: Path, seconds: float) -> None:
    levels = " <- ".join(f"{v.name} {v.format}".strip() for v in info.levels)
    log.info("%s: %s, %s, context %d, %.0f MB in %.1f s", directory, levels, info.backend, info.context,
             info.total_bytes / 1e6, seconds)  # fmt: skip
    for note in info.notes:
        log.info("%s: %s", directory, note)


@suggesting
def inspect(model: str | os.PathLike[str]) -> _core.Info:
    """What can be told of a model without loading its weights."""
    return _core.inspect(str(resolve(model)))


class Model:
    """A model with its levels. Any number of threads may use it at once."""

    def __init__(
        self, engine: _core.Engine, text: Text | None, directory: Path, max_sequences: int
    ):
        self._engine: _core.Engine | None = engine
        self._text = text
        self._streams: "weakref.WeakSet[Stream]" = weakref.WeakSet()
        self.directory = directory
        self._max_sequences = max_sequences
        self.info = engine.info
        self._end = [text.eos.id] if text and text.eos and text.eos.id < self.info.vocab else []
        _live.add(self)

    @property
    def text(self) -> Text:
        """The tokenizer and chat template."""
        if self._text is None:
            raise UnsupportedError(
                f"{self.directory}: no tokenizer.json or tokenizer.model; give prompts as token ids"
            )
        return self._text

    def tokenize(self, text: str, special: bool = True, bos: bool | None = None) -> list[int]:
        """Tokens of `text`; `special`: names of special tokens in it become those tokens; `bos`:
        whether one goes in front (None: as the model's files say), never a second one."""
        return self.text.encode(text, special, bos)

    def detokenize(self, tokens: Iterable[int], special: bool = False) -> str:
        """Text of tokens; special ones are left out unless `special`."""
        return self.text.decode(tokens, special)

    def stream(self, prompt: Any, **options: Any) -> Any:
        """Starts to generate: a Stream, or a list of them for a list of prompts.

        A prompt is text, a list of messages ({"role", "content"}), or a list of token ids. Options:
        max_tokens, temperature (0 = greedy), top_p, top_k, min_p, seed, repetition_penalty,
        frequency_penalty, presence_penalty, logit_bias, logprobs, stop, stop_token_ids, ignore_eos;
        draft=False for plain decoding; generation_config=True for the model's own sampling
        settings; tools and chat_template_kwargs for the chat template.
        """
        check_names("stream()", options)
        prompts, many = split_prompts(prompt)
        streams: list[Stream] = []
        try:
            for one in prompts:
                streams.append(self._start(one, **options))
        except BaseException:
            for stream in streams:
                stream.close()
            raise
        return streams if many else streams[0]

    def generate(self, prompt: Any, **options: Any) -> Any:
        """Like stream(), but waits: a Result, or a list of them for a list of prompts, which run
        side by side as max_sequences allows."""
        check_names("generate()", options)
        prompts, many = split_prompts(prompt)
        if not many:
            return self._start(prompts[0], **options).result()
        return self._generate_all(prompts, options)

    def _generate_all(self, prompts: list[Prompt], options: dict[str, Any]) -> list[Result]:
        results: dict[int, Result] = {}
        running: dict[int, Stream] = {}
        waiting = iter(enumerate(prompts))
        try:
            while len(results) < len(prompts):
                while (
                    len(running) < 2 * self._max_sequences
                    and (item := next(waiting, None)) is not None
                ):
                    running[item[0]] = self._start(item[1], **options)
                moved = False
                for i, stream in list(running.items()):
                    while stream.poll() is not None:
                        moved = True
                    if stream.done:
                        results[i] = stream.result()
                        del running[i]
                        moved = True
                if not moved:
                    time.sleep(0.002)
        finally:
            for stream in running.values():
                stream.close()
        return [results[i] for i in range(len(prompts))]

    def _start(
        self,
        prompt: Prompt,
        *,
        stop: str | list[str] | None = None,
        generation_config: bool = False,
        tools: list[Any] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> Stream:
        engine = self._engine  # close() may come at any time
        if engine is None:
            raise InvalidArgumentError("the model is closed")
        stops = checked_stops(stop)
        if stops and self._text is None:
            raise InvalidArgumentError("stop: the model has no tokenizer; use stop_token_ids")
        own = flag("generation_config", generation_config)
        variables = template_variables(tools, chat_template_kwargs)
        tokens = self._prompt_tokens(prompt, variables)
        defaults = model_sampling(self.directory) if own else None
        request = build_request(tokens, self.info.vocab, defaults=defaults, **options)
        if not request.ignore_eos:
            request.stop_token_ids = list({*request.stop_token_ids, *self._end})
        core = engine.submit(request)
        detokenizer = self._text.detokenizer() if self._text else None
        stream = Stream(
            core, detokenizer, stops, request.sampling.seed, request.logprobs >= 0, self
        )
        self._streams.add(stream)
        return stream

    def _prompt_tokens(self, prompt: Prompt, variables: dict[str, Any]) -> list[int]:
        context = Context(self.info.context, self.info.model_context)
        if isinstance(prompt, str):
            self.text.check_length(prompt, context, "prompt")
            tokens = self.text.encode(prompt)
        elif len(prompt) and isinstance(prompt[0], dict):
            tokens = self.text.encode_chat(prompt, context=context, **variables)
        else:
            if len(prompt) > context.tokens:
                raise context.refusal("prompt", f"{len(prompt)} tokens")
            tokens = token_ids("prompt", prompt, self.info.vocab)
        if not tokens:
            raise InvalidArgumentError("prompt: it is empty")
        return tokens

    def chat(self, system: str | None = None, **options: Any) -> "Chat":
        """A conversation that remembers its turns; options are defaults for every turn."""
        return Chat(self, system, options)

    def verify(self, prompts: Prompt | list[Prompt] | None = None, **options: Any) -> Any:
        """Runs a prompt, or a list of them, with the levels on and off and compares tokens and logits
        bit for bit."""
        from .verify import BUILT_IN, compare

        return compare(self, BUILT_IN if prompts is None else prompts, **options)

    def close(self) -> None:
        """Ends all streams and gives the memory back once the last of them is gone."""
        for stream in list(self._streams):
            stream.cancel()
        self._engine = None

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"<stepladder.Model {self.directory} {' <- '.join(v.name for v in self.info.levels)}>"
        )


class Chat:
    """A conversation. Each turn's prompt begins with the turns before it, whose cache is reused."""

    def __init__(self, model: Model, system: str | None, options: dict[str, Any]):
        check_names("chat()", options)
        self._model, self._options = model, options
        self.messages: list[Message] = (
            [] if system is None else [{"role": "system", "content": string("system", system)}]
        )
        self._last: ChatStream | None = None

    def send(self, text: str, **options: Any) -> "ChatStream":
        """Says `text`; the answer joins the conversation when its stream ends.

        An answer before it that was not read to its end is waited for, so that each turn has one;
        its pieces can still be read. close() it to keep only what has been read."""
        check_names("send()", options)
        text = string("text", text)
        if self._last is not None:
            self._last.finish()
        checked_messages(self.messages)
        messages = [*self.messages, {"role": "user", "content": text}]
        stream = self._model.stream(messages, **{**self._options, **options})
        self.messages = messages
        self._last = ChatStream(stream, self)
        return self._last

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ChatStream:
    """The stream of one answer of a conversation."""

    def __init__(self, stream: Stream, chat: Chat):
        self.stream, self._chat = stream, chat
        self._parts: list[str] = []
        self._ahead: deque[Piece] = deque()  # read by finish(), and not yet by the caller
        self._kept = False

    def __iter__(self) -> "ChatStream":
        return self

    def __next__(self) -> Piece:
        if self._ahead:
            return self._ahead.popleft()
        try:
            piece = next(self.stream)
        except BaseException:
            self._keep()
            raise
        return self._took(piece)

    def __aiter__(self) -> "ChatStream":
        return self

    async def __anext__(self) -> Piece:
        if self._ahead:
            return self._ahead.popleft()
        try:
            piece = await self.stream.__anext__()
        except BaseException:
            # A wait that was only given up does not end the answer.
            if self.stream.done:
                self._keep()
            raise
        return self._took(piece)

    def finish(self) -> None:
        """Waits until the answer has joined the conversation; its pieces can be read afterwards."""
        while not self._kept:
            try:
                self._ahead.append(self._took(next(self.stream)))
            except StopIteration:
                self._keep()
            except BaseException:
                self._keep()
                raise

    def result(self) -> Result:
        """Waits for the whole answer; everything of it, what has been read included."""
        self.finish()
        return self.stream.result()

    @property
    def done(self) -> bool:
        """Whether the last piece has been given."""
        return self.stream.done and not self._ahead

    @property
    def finish_reason(self) -> str | None:
        return self.stream.finish_reason

    @property
    def seed(self) -> int:
        return self.stream.seed

    def __enter__(self) -> "ChatStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _took(self, piece: Piece) -> Piece:
        self._parts.append(piece.text)
        if piece.finish_reason:
            self._keep()
        return piece

    def _keep(self) -> None:
        if not self._kept:
            self._kept = True
            self._chat.messages = [
                *self._chat.messages,
                {"role": "assistant", "content": "".join(self._parts)},
            ]

    def cancel(self) -> None:
        """Ends the answer within one round; what there is of it joins the conversation."""
        self.stream.cancel()

    def close(self) -> None:
        """Ends the answer at once; what has been read of it joins the conversation."""
        self.stream.close()
        self._keep()

    @property
    def stats(self) -> Any:
        return self.stream.stats
