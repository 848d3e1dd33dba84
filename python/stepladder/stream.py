"""A running request: an iterator of pieces of text, in ordinary and in async code."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from . import _core
from .errors import Error
from .stops import StopMatcher
from .text import Detokenizer

_REASONS = {1: "stop", 2: "length", 3: "cancelled", 4: "error"}
_WAIT = 0.25
_SHORTEST_NAP, _LONGEST_NAP = 0.0005, 0.01  # seconds between two looks of an async reader


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
    logits: list[float]
    logprobs: list[TokenLogprob] | None = None
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


def _stats(core: _core.Stats) -> Stats:
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
    tokens: list[int]
    logits: list[float]
    logprobs: list[TokenLogprob] | None
    finish_reason: str
    stats: Stats
    seed: int

    def __str__(self) -> str:
        return self.text


class Stream:
    """Iterate with `for` or `async for`; leaving early, close() and cancel() end the work.

    cancel() may be called from any thread. The model stays loaded while one of its streams lives.
    """

    def __init__(self, core: _core.Stream, detokenizer: Detokenizer | None, stops: list[str], seed: int,
                 logprobs: bool, owner: object):  # fmt: skip
        self._core, self._detokenizer, self._stops = core, detokenizer, StopMatcher(stops)
        self._logprobs, self._owner = logprobs, owner
        self._done = False
        self._pending: tuple[list[int], list[float], list[TokenLogprob]] = ([], [], [])
        self._given: list[Piece] = []
        self.seed = seed
        self.finish_reason: str | None = None

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        while not self._done:
            try:
                chunk = self._core.next(_WAIT)
            except BaseException:
                self.close()
                raise
            piece = self._take(chunk)
            if piece is not None:
                return piece
        raise StopIteration

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Piece:
        """Looks again and again, in no thread of its own: any number of streams may wait at once.
        A wait that is cancelled or times out leaves the stream as it is."""
        nap = _SHORTEST_NAP
        while not self._done:
            try:
                chunk = self._core.next(0)
            except BaseException:
                self.close()
                raise
            if chunk is False:
                await asyncio.sleep(nap)
                nap = min(1.5 * nap, _LONGEST_NAP)
                continue
            nap = _SHORTEST_NAP
            piece = self._take(chunk)
            if piece is not None:
                return piece
        raise StopAsyncIteration

    def poll(self) -> Piece | None:
        """The next piece if there is one now; check `done` afterwards."""
        if self._done:
            return None
        return self._take(self._core.next(0))

    @property
    def done(self) -> bool:
        """Whether the last piece has been given."""
        return self._done

    def _take(self, chunk: Any) -> Piece | None:
        """Adds a chunk to what is pending; a piece once there is text to show or the stream ends."""
        if chunk is False:
            return None
        if chunk is None:
            self._done = True
            return None
        tokens, logits, logprobs, finish, _ = chunk
        text = ""
        for i, token in enumerate(tokens):
            self._pending[0].append(token)
            self._pending[1].append(logits[i])
            if self._logprobs and i < len(logprobs):
                self._pending[2].append(TokenLogprob(token, logprobs[i][0], logprobs[i][1]))
            if self._detokenizer is None:
                continue
            shown, stopped = self._stops.feed(self._detokenizer.push(token))
            text += shown
            if stopped:
                return self._end(text, "stop")
        if finish:
            if self._detokenizer is not None:
                shown, stopped = self._stops.feed(self._detokenizer.finish())
                text += shown if stopped else shown + self._stops.finish()
                if stopped:
                    return self._end(text, "stop")
            return self._end(text, _REASONS[finish])
        return self._piece(text, None) if text or self._detokenizer is None else None

    def _end(self, text: str, reason: str) -> Piece:
        self.finish_reason = reason
        self._done = True
        self._core.cancel()
        return self._piece(text, reason)

    def _piece(self, text: str, reason: str | None) -> Piece:
        tokens, logits, logprobs = self._pending
        self._pending = ([], [], [])
        piece = Piece(text, tokens, logits, logprobs if self._logprobs else None, reason)
        self._given.append(piece)
        return piece

    def cancel(self) -> None:
        """Ends the text within one round; the iteration then ends with finish_reason "cancelled"."""
        self._core.cancel()

    def close(self) -> None:
        """Cancels, and ends the iteration at once."""
        self._core.cancel()
        if not self._done:
            self._done = True
            self.finish_reason = self.finish_reason or "cancelled"

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stats(self) -> Stats:
        """So far, or of the whole stream once it has ended."""
        if self._done:
            self._drain()
        return _stats(self._core.stats())

    def _drain(self) -> None:
        """Lets a cancelled stream come to its end, so that its numbers are final."""
        try:
            while self._core.next(_WAIT) is not None:
                pass
        except Error:
            pass

    def result(self) -> Result:
        """Runs to the end and returns everything, pieces taken before included."""
        for _ in self:
            pass
        pieces, stats = self._given, self.stats
        return Result(
            "".join(p.text for p in pieces),
            [t for p in pieces for t in p.tokens],
            [v for p in pieces for v in p.logits],
            [v for p in pieces for v in p.logprobs or []] if self._logprobs else None,
            self.finish_reason or "cancelled",
            stats,
            self.seed,
        )
