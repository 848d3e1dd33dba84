"""What a request takes, as editors and type checkers see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypedDict


class Array(Protocol):
    """What gives token ids as a list: arrays of numpy and the like."""

    def tolist(self) -> Any: ...


OnePrompt = str | Sequence[Mapping[str, Any]] | Sequence[int] | Array
ManyPrompts = list[str] | Sequence[Sequence[Mapping[str, Any]]] | Sequence[Sequence[int]]


class RequestOptions(TypedDict, total=False):
    """Options of one request. None, or left out, is the default.

    max_tokens: tokens to make at most (256; None: what the context holds). temperature: 0 takes the
    likeliest token (0). top_p, top_k, min_p: what of the likeliest tokens is kept (all). seed: what makes
    the same text again (another each time). repetition_penalty, frequency_penalty, presence_penalty:
    what is taken off tokens that occurred. logit_bias: added to the logits of token ids; minus infinity
    bans one. logprobs: how many of the likeliest tokens to list (None: no log-probabilities). stop:
    texts that end the text. stop_token_ids: tokens that do, besides the model's own. ignore_eos: go on
    at end tokens. draft: False for plain decoding. generation_config: the model's own sampling settings
    in the place of these defaults. tools, chat_template_kwargs: for the chat template.
    continue_final_message: go on with the last message. bos: whether a bos token comes first. raw: False for
    text that a user says, through the chat template (True: as it is).
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    seed: int | None
    repetition_penalty: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logit_bias: Mapping[int, float] | Mapping[str, float] | None
    logprobs: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool
    draft: bool
    generation_config: bool
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None
    continue_final_message: bool
    bos: bool | None
    raw: bool


class VerifyOptions(RequestOptions, total=False):
    """Those of a request, `side_by_side`: how many run at once with levels, and `progress`: a function of
    done and total prompts."""

    side_by_side: int
    progress: Callable[[int, int], Any] | None
