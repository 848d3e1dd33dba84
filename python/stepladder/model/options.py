"""A request's options: checked here by type and name, by the engine for their ranges."""

from __future__ import annotations

import inspect
import math
import numbers
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import _core
from ..base.arguments import INT_MAX, flag, known_names, real, shown, token_ids, whole
from ..base.errors import InvalidArgumentError, ModelFormatError, UnsupportedError
from ..base.json_file import read_json

_BAN = -1e9  # what minus infinity is in a logit_bias: no choice falls on the token
MAX_LOGPROBS = 20  # the engine's own limit
# What a generation_config.json may ask for that no option here can do, with the value that is "off".
_OTHER_SAMPLING = {
    "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "num_beams": 1, "penalty_alpha": 0,
    "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "diversity_penalty": 0, "top_h": 1,
}  # fmt: skip
_FROM_CONFIG = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# What the options are called elsewhere.
_ELSEWHERE = {
    "max_new_tokens": "max_tokens", "max_length": "max_tokens", "n_predict": "max_tokens", "num_predict": "max_tokens",
    "temp": "temperature", "stop_strings": "stop", "stop_sequences": "stop", "eos_token_id": "stop_token_ids",
    "repeat_penalty": "repetition_penalty", "top_logprobs": "logprobs", "random_seed": "seed",
}  # fmt: skip


def model_sampling(directory: Path) -> dict[str, Any]:
    """The sampling settings of generation_config.json."""
    path = directory / "generation_config.json"
    config = read_json(path) or {}
    if not isinstance(config, dict):
        raise ModelFormatError(f"{path}: not a JSON object")
    for name, off in _OTHER_SAMPLING.items():
        if config.get(name) not in (None, off, False):
            raise UnsupportedError(
                f"{path}: {name}={config[name]!r} is not something this engine does"
            )
    found = {k: config[k] for k in _FROM_CONFIG if config.get(k) is not None}
    if config.get("do_sample"):
        return {"temperature": 1.0, **found}
    return {k: v for k, v in found.items() if k == "repetition_penalty"}


def build_request(
    prompt: list[int],
    vocab: int,
    *,
    max_tokens: int | None = 256,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    repetition_penalty: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    logit_bias: dict[int, float] | None = None,
    logprobs: int | None = None,
    stop_token_ids: list[int] | None = None,
    ignore_eos: bool = False,
    draft: bool = True,
    defaults: dict[str, Any] | None = None,
) -> _core.Request:
    """The engine's request. `defaults` stand in for sampling options that are None."""
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
             "repetition_penalty": repetition_penalty, "frequency_penalty": frequency_penalty,
             "presence_penalty": presence_penalty}  # fmt: skip
    values = (defaults or {}) | {k: v for k, v in given.items() if v is not None}
    sampling = _core.Sampling()
    for name, value in values.items():
        setattr(sampling, name, whole(name, value, 0) if name == "top_k" else real(name, value))
    if seed is not None:
        sampling.seed = whole("seed", seed, 0, (1 << 64) - 1)
    elif sampling.temperature > 0:
        # 53 bits pass unharmed through JSON and floats.
        sampling.seed = secrets.randbits(53)
    if logit_bias is not None:
        sampling.logit_bias = _bias(logit_bias, vocab)
    request = _core.Request()
    request.prompt, request.sampling = prompt, sampling
    # None: as many as the context holds.
    request.max_tokens = INT_MAX if max_tokens is None else whole("max_tokens", max_tokens, 1)
    request.logprobs = -1 if logprobs is None else _logprobs(logprobs)
    request.stop_token_ids = (
        [] if stop_token_ids is None else token_ids("stop_token_ids", stop_token_ids, vocab)
    )
    request.ignore_eos = flag("ignore_eos", ignore_eos)
    if not isinstance(draft, bool):
        raise InvalidArgumentError(
            f"draft: {shown(draft)} is not True or False; the levels themselves are named in load()"
        )
    request.draft = draft
    return request


_REQUEST = {
    n for n, p in inspect.signature(build_request).parameters.items() if p.kind is p.KEYWORD_ONLY
} - {"defaults"}  # fmt: skip
OPTIONS = _REQUEST | {
    "stop", "generation_config", "tools", "chat_template_kwargs", "continue_final_message", "bos", "raw",
}  # fmt: skip


def check_names(where: str, options: Iterable[str], more: Iterable[str] = ()) -> None:
    """Refuses options that no request has, in the name of the function they were given to."""
    known_names(where, options, OPTIONS | set(more), _ELSEWHERE)


def _logprobs(value: Any) -> int:
    try:
        return whole("logprobs", value, 0, MAX_LOGPROBS)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"{error}; it is how many of the likeliest tokens to list beside the chosen one, "
            f"at most {MAX_LOGPROBS}, or None for no log-probabilities"
        ) from None


def _bias(bias: Any, vocab: int) -> list[tuple[int, float]]:
    if not isinstance(bias, dict):
        raise InvalidArgumentError(
            f"logit_bias: {shown(bias)} is not a dict from token id to number, such as {{42: -100.0}}"
        )
    if len(bias) > vocab:
        raise InvalidArgumentError(
            f"logit_bias: {len(bias)} entries for a vocabulary of {vocab}; one a token is the most"
        )
    pairs = []
    for key, value in bias.items():
        id = int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20 else key  # fmt: skip
        try:
            token = whole("logit_bias", id, 0, vocab - 1)
        except InvalidArgumentError:
            raise InvalidArgumentError(
                f"logit_bias: {shown(key)} is no token id; ids are whole numbers from 0 to {vocab - 1}"
            ) from None
        banned = isinstance(value, numbers.Real) and value == -math.inf
        pairs.append((token, _BAN if banned else real(f"logit_bias[{token}]", value)))
    return pairs


def template_variables(tools: Any, variables: Any) -> dict[str, Any]:
    """What a chat template sees beside the messages: chat_template_kwargs, and tools."""
    if tools is not None and not isinstance(tools, (list, tuple)):
        raise InvalidArgumentError(f"tools: {shown(tools)} is not a list of tools, each a dict")
    for i, tool in enumerate(tools or ()):
        if not isinstance(tool, dict):
            raise InvalidArgumentError(f"tools[{i}]: {shown(tool)} is not a dict")
    if variables is None:
        variables = {}
    if not isinstance(variables, dict):
        raise InvalidArgumentError(
            f"chat_template_kwargs: {shown(variables)} is not a dict from name to value"
        )
    for name in variables:
        if name in OPTIONS:
            raise InvalidArgumentError(
                f"chat_template_kwargs: {name} is an option of the request; give it there"
            )
        if (
            not isinstance(name, str)
            or not name.isidentifier()
            or name in ("self", "messages", "context")
        ):
            raise InvalidArgumentError(
                f"chat_template_kwargs: {shown(name)} cannot be the name of a variable"
            )
    return variables if tools is None else {**variables, "tools": list(tools)}
