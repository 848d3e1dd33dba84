"""What a request gives: pieces of text, whole answers, and what they took."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .. import _core


@dataclass(frozen=True)
class TokenLogprob:
    """Natural logarithms of raw probabilities: of the chosen token and of the likeliest ones."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Piece:
    """Text that is final, never cut inside a character, and the tokens it came from.

    The last piece says in `finish_reason` why the text ended: "stop", "length" or "cancelled".
    """

    text: str
    tokens: list[int]
    logits: list[float] = field(repr=False)  # of each token, raw
    logprobs: list[TokenLogprob] | None = field(default=None, repr=False)
    finish_reason: str | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class LevelStats:
    """One verifying level; the first is the target."""

    name: str
    rounds: int
    drafted: int
    accepted: int
    emitted: int
    rows: int
    draft_ms: float
    verify_ms: float
    acceptance_length: float
    acceptance_by_position: list[float]

    def __str__(self) -> str:
        if not self.rounds:
            return f"{self.name}: did not run"
        return (
            f"{self.name}: {self.rounds} rounds of {self.acceptance_length:.2f} tokens, "
            f"drafting {self.draft_ms:.0f} ms, verifying {self.verify_ms:.0f} ms"
        )


@dataclass(frozen=True)
class Stats:
    """What a request took: tokens, times in milliseconds, and the work of each level.

    `tokens` counts what the engine made, the few behind a stop string included.
    """

    prompt_tokens: int
    cached_tokens: int
    tokens: int
    first_token_ms: float
    decode_ms: float
    tokens_per_second: float
    seed: int
    levels: list[LevelStats] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A line for the whole and one for each level; repr() has every field."""
        lines = [
            f"{self.tokens} tokens, {self.tokens_per_second:.1f} tokens/s, "
            f"first after {self.first_token_ms:.0f} ms; prompt {self.prompt_tokens} tokens, "
            f"{self.cached_tokens} from the cache"
        ]
        return "\n".join([*lines, *(f"  {level}" for level in self.levels)])


def stats_of(core: _core.Stats) -> Stats:
    levels = [
        LevelStats(
            s.name, s.rounds, s.drafted, s.accepted, s.emitted, s.rows, s.draft_ms, s.verify_ms, s.acceptance_length,
            [a / d for a, d in zip(s.accepted_at, s.drafted_at) if d],
        )
        for s in core.levels
    ]  # fmt: skip
    return Stats(core.prompt_tokens, core.cached_tokens, core.tokens, core.first_token_ms, core.decode_ms,
                 core.tokens_per_second, core.seed, levels)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A whole answer."""

    text: str
    tokens: list[int] = field(repr=False)
    logits: list[float] = field(repr=False)  # of each token, raw
    logprobs: list[TokenLogprob] | None = field(repr=False)
    finish_reason: str
    stats: Stats
    seed: int

    def __str__(self) -> str:
        return self.text
