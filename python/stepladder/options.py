"""A request's options: checked here by type and name, by the engine for their ranges."""

from __future__ import annotations

import math
import operator
import secrets
from pathlib import Path
from typing import Any

from . import _core
from .errors import InvalidArgumentError, UnsupportedError
from .text import read_json

_INT_MAX = (1 << 31) - 1
# What a generation_config.json may ask for that no option here can do, with the value that is "off".
_OTHER_SAMPLING = {
    "typical_p": 1, "epsilon_cutoff": 0, "eta_cutoff": 0, "num_beams": 1, "penalty_alpha": 0,
    "no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1, "diversity_penalty": 0, "top_h": 1,
}  # fmt: skip
_FROM_CONFIG = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def whole(name: str, value: Any, low: int, high: int = _INT_MAX) -> int:
    """`value` as an int in low..high."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise InvalidArgumentError(f"{name}: {str(value)[:80]!r} is not a whole number") from None
    if not low <= number <= high:
        raise InvalidArgumentError(
            f"{name}: {number if abs(number) < 1 << 70 else 'the number'} is not from {low} to {high}"
        )
    return number


def real(name: str, value: Any) -> float:
    """`value` as a finite float."""
    if isinstance(value, (bool, str, bytes)):
        raise InvalidArgumentError(f"{name}: {str(value)[:80]!r} is not a number")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidArgumentError(f"{name}: {str(value)[:80]!r} is not a number") from None
    if not math.isfinite(number) or abs(number) > 1e30:
        raise InvalidArgumentError(f"{name}: {number} is out of range")
    return number


def token_ids(name: str, values: Any, vocab: int) -> list[int]:
    """Token ids, checked against the vocabulary."""
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__len__"):
        raise InvalidArgumentError(f"{name}: {str(values)[:80]!r} is not a list of token ids")
    values = values.tolist() if hasattr(values, "tolist") else values
    return [whole(f"{name}[{i}]", v, 0, vocab - 1) for i, v in enumerate(values)]


def model_sampling(directory: Path) -> dict[str, Any]:
    """The sampling settings of generation_config.json."""
    path = directory / "generation_config.json"
    config = read_json(path) or {}
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
    max_tokens: int = 256,
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
    request.max_tokens = whole("max_tokens", max_tokens, 1)
    request.logprobs = -1 if logprobs is None else whole("logprobs", logprobs, 0)
    request.stop_token_ids = (
        [] if stop_token_ids is None else token_ids("stop_token_ids", stop_token_ids, vocab)
    )
    for name, flag in (("ignore_eos", ignore_eos), ("draft", draft)):
        if not isinstance(flag, bool):
            raise InvalidArgumentError(f"{name}: {flag!r} is not True or False")
    request.ignore_eos, request.draft = ignore_eos, draft
    return request


def _bias(bias: Any, vocab: int) -> list[tuple[int, float]]:
    if not isinstance(bias, dict):
        raise InvalidArgumentError(
            f"logit_bias: {type(bias).__name__} is not a dict from token id to number"
        )
    if len(bias) > vocab:
        raise InvalidArgumentError(f"logit_bias: {len(bias)} entries for a vocabulary of {vocab}")
    pairs = []
    for key, value in bias.items():
        id = (
            int(key)
            if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20
            else key
        )
        pairs.append(
            (whole("logit_bias: token", id, 0, vocab - 1), real(f"logit_bias[{id}]", value))
        )
    return pairs
