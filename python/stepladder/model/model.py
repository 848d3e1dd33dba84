"""A loaded model: prompts in, streams of text out."""

from __future__ import annotations

import atexit
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .. import _core
from ..base.arguments import flag, token_ids
from ..base.errors import InvalidArgumentError, UnsupportedError
from ..text.prompts import Context, Prompt, split_prompts
from ..text.stops import checked_stops
from ..text.tokenizer import Text
from .chat import Chat
from .options import build_request, check_names, model_sampling, template_variables
from .questions import BUILT_IN
from .results import Result
from .signatures import ManyPrompts, OnePrompt, RequestOptions, VerifyOptions
from .stream import Stream
from .verify import Report, compare
from .waiting import arrived

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NO_TEMPLATE = (
    "the answer is empty: the prompt was taken as it is, and to this model, which has a chat template, the text "
    "ends there; raw=False makes it what a user says (on the command line: without --raw)"
)
_live: "weakref.WeakSet[Model]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Engines have threads of their own; they end before the interpreter does, and so do the calls
    in which other threads still wait for them."""
    for model in list(_live):
        model.close()
    _core.close_down()


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

    @overload
    def stream(self, prompt: OnePrompt, **options: Unpack[RequestOptions]) -> Stream: ...

    @overload
    def stream(self, prompt: ManyPrompts, **options: Unpack[RequestOptions]) -> list[Stream]: ...

    def stream(self, prompt: Any, **options: Any) -> Any:
        """Starts to generate: a Stream, or a list of them for a list of prompts.

        A prompt is text, a list of messages ({"role", "content"}), or a list of token ids. Text is
        taken as it is, and with raw=False as what a user says, through the chat template. Options:
        max_tokens, temperature (0 = greedy), top_p, top_k, min_p, seed, repetition_penalty,
        frequency_penalty, presence_penalty, logit_bias, logprobs, stop, stop_token_ids, ignore_eos;
        draft=False for plain decoding; generation_config=True for the model's own sampling
        settings; tools and chat_template_kwargs for the chat template; continue_final_message=True to go
        on with the last message instead of beginning an answer; bos: whether a bos token comes first
        (None: before text as the model's files say, before messages as the template does).
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

    @overload
    def generate(self, prompt: OnePrompt, **options: Unpack[RequestOptions]) -> Result: ...

    @overload
    def generate(self, prompt: ManyPrompts, **options: Unpack[RequestOptions]) -> list[Result]: ...

    def generate(self, prompt: Any, **options: Any) -> Any:
        """Like stream(), but waits: a Result, or a list of them for a list of prompts, which run
        side by side as max_sequences allows."""
        check_names("generate()", options)
        prompts, many = split_prompts(prompt)
        if not many:
            return self._start(prompts[0], **options).result()
        return self._generate_all(prompts, options)

    def _generate_all(self, prompts: list[Prompt], options: dict[str, Any]) -> list[Result]:
        """A few more streams than can run, so that one is at hand when another ends; each is read as
        soon as it has something, and none fills its queue."""
        results: dict[int, Result] = {}
        running: dict[int, Stream] = {}
        arrivals = _core.Arrivals()
        waiting = iter(enumerate(prompts))

        def start_more() -> None:
            while len(running) < 2 * self._max_sequences:
                i, prompt = next(waiting, (0, None))
                if prompt is None:
                    return
                running[i] = self._start(prompt, **options)
                running[i].notify(arrivals, i)

        try:
            start_more()
            while running:
                for i in arrived(arrivals):
                    stream = running[i]
                    while stream.poll() is not None:
                        pass
                    if stream.done:
                        results[i] = running.pop(i).result()
                    else:
                        stream.notify(arrivals, i)
                start_more()
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
        continue_final_message: bool = False,
        bos: bool | None = None,
        raw: bool = True,
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
        goes_on = flag("continue_final_message", continue_final_message)
        if bos is not None:
            flag("bos", bos)
        as_it_is = flag("raw", raw) and isinstance(prompt, str)
        if isinstance(prompt, str) and not as_it_is:
            prompt = [{"role": "user", "content": prompt}]
        tokens = self._prompt_tokens(prompt, variables, goes_on, bos)
        defaults = model_sampling(self.directory) if own else None
        request = build_request(tokens, self.info.vocab, defaults=defaults, **options)
        if not request.ignore_eos:
            request.stop_token_ids = list({*request.stop_token_ids, *self._end})
        core = engine.submit(request)
        detokenizer = self._text.detokenizer() if self._text else None
        stream = Stream(
            core, detokenizer, stops, request.sampling.seed, request.logprobs >= 0, self
        )
        if as_it_is and self.text.has_template:
            stream.if_empty = _NO_TEMPLATE
        self._streams.add(stream)
        return stream

    def _prompt_tokens(
        self, prompt: Prompt, variables: dict[str, Any], goes_on: bool, bos: bool | None
    ) -> list[int]:
        context = Context(self.info.context, self.info.model_context)
        if variables and not (len(prompt) and isinstance(prompt[0], dict)):
            name = "tools" if "tools" in variables else "chat_template_kwargs"
            raise InvalidArgumentError(
                f"{name}: the prompt goes through no chat template; give messages, or text with raw=False"
            )
        if goes_on and not (len(prompt) and isinstance(prompt[0], dict)):
            raise InvalidArgumentError("continue_final_message: the prompt is no list of messages")
        if isinstance(prompt, str):
            self.text.check_length(prompt, context, "prompt")
            tokens = self.text.encode(prompt, bos=bos)
        elif len(prompt) and isinstance(prompt[0], dict):
            tokens = self.text.encode_chat(
                prompt, context=context, continue_final_message=goes_on, bos=bos, **variables
            )
        else:
            if len(prompt) > context.tokens:
                raise context.refusal("prompt", f"{len(prompt)} tokens")
            if bos is not None:
                raise InvalidArgumentError("bos: the prompt is token ids already; put one there")
            tokens = token_ids("prompt", prompt, self.info.vocab)
        if not tokens:
            raise InvalidArgumentError("prompt: it is empty")
        return tokens

    def chat(self, system: str | None = None, **options: Unpack[RequestOptions]) -> Chat:
        """A conversation that remembers its turns; options, those of stream(), are defaults for every
        turn."""
        return Chat(self, system, dict(options))

    def verify(
        self,
        prompts: OnePrompt | ManyPrompts | None = None,
        **options: Unpack[VerifyOptions],
    ) -> Report:
        """Runs a prompt, or a list of them, with the levels on and off and compares tokens and logits
        bit for bit."""
        if prompts is None:
            prompts = [question.messages() for question in BUILT_IN]
        return compare(self, prompts, **options)  # type: ignore[arg-type]

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
