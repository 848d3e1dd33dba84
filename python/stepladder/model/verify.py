"""Levels on against levels off, on one engine: every token and the 32 bits of every logit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from .._core import AnswerHash
from ..base.arguments import callback, whole
from ..base.errors import InvalidArgumentError
from ..text.prompts import Prompt, split_prompts
from .options import check_names
from .results import Result
from .stream import Streams


@dataclass(frozen=True)
class Difference:
    """Where two answers part: `index` counts the answer's tokens. A value is None past the end."""

    prompt: int
    index: int
    plain_token: int | None
    token: int | None
    plain_logit: float | None
    logit: float | None

    def __str__(self) -> str:
        return (
            f"question {self.prompt + 1}, token {self.index + 1}: plain {self.plain_token} (logit {self.plain_logit!r}), "
            f"with levels {self.token} (logit {self.logit!r})"
        )


@dataclass(frozen=True)
class Report:
    """What a comparison found."""

    prompts: int
    tokens: int
    different: int
    first: Difference | None
    plain_hash: str
    hash: str
    drafted: int = 0
    accepted: int = 0

    @property
    def equal(self) -> bool:
        """Whether no token, no logit's bits and no reason to stop differ."""
        return self.different == 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"equal": self.equal}

    def __str__(self) -> str:
        verdict = (
            "equal"
            if self.equal
            else f"{self.different} of {self.prompts} DIFFER; first: {self.first}"
        )
        guesses = f"{self.accepted} of {self.drafted} guesses accepted"
        return f"{self.prompts} questions, {self.tokens} tokens, {guesses}: {verdict}\nplain  hash={self.plain_hash}\nlevels hash={self.hash}"


def first_difference(prompt: int, plain: Result, other: Result) -> Difference | None:
    """The first token or logit in which two answers differ, by their bits."""
    a = [
        *zip(plain.tokens, map(_bits, plain.logits), plain.logits),
        (None, plain.finish_reason, None),
    ]
    b = [
        *zip(other.tokens, map(_bits, other.logits), other.logits),
        (None, other.finish_reason, None),
    ]
    for i, (x, y) in enumerate(zip(a, b)):
        if x[:2] != y[:2]:
            return Difference(prompt, i, x[0], y[0], x[2], y[2])
    return None


def _bits(value: float) -> bytes:
    return struct.pack("<f", value)


def compare(
    model: Streams,
    prompts: Prompt | list[Prompt],
    *,
    side_by_side: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], Any] | None = None,
    **options: Any,
) -> Report:
    """Runs each prompt alone without levels, then with them, `side_by_side` of them at once.

    `options` are those of a request; prompt i samples with seed + i.
    """
    if "draft" in options:
        raise InvalidArgumentError("draft: verify sets it itself; the levels are named in load()")
    check_names("verify()", options, more=("side_by_side", "seed", "progress"))
    side_by_side = whole("side_by_side", side_by_side, 1)
    seed = whole("seed", seed, 0, (1 << 64) - 1)
    callback("progress", progress)
    prompts, _ = split_prompts(prompts, "prompts")
    plain_hash, hash, found, tokens = AnswerHash(), AnswerHash(), [], 0
    drafted = accepted = 0
    for first in range(0, len(prompts), side_by_side):
        batch = list(enumerate(prompts))[first : first + side_by_side]
        plain = [model.stream(p, draft=False, seed=seed + i, **options).result() for i, p in batch]
        streams = [model.stream(p, seed=seed + i, **options) for i, p in batch]
        levels = [s.result() for s in streams]
        for (i, _), a, b in zip(batch, plain, levels):
            plain_hash.add(a.tokens, a.logits)
            hash.add(b.tokens, b.logits)
            tokens += len(a.tokens)
            drafted += b.stats.levels[0].drafted
            accepted += b.stats.levels[0].accepted
            if (difference := first_difference(i, a, b)) is not None:
                found.append(difference)
        if progress:
            progress(first + len(batch), len(prompts))
    if not tokens:
        raise InvalidArgumentError(
            "verify: nothing was compared, for no answer has a token; give other prompts, or ignore_eos=True"
        )
    return Report(
        len(prompts), tokens, len(found), found[0] if found else None, str(plain_hash), str(hash), drafted, accepted
    )  # fmt: skip
