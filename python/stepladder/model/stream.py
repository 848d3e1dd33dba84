"""A running request: an iterator of pieces of text, in ordinary and in async code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Protocol

from .. import _core
from ..base.errors import Error, InvalidArgumentError
from ..text.detokenizer import Detokenizer
from ..text.stops import StopMatcher
from .results import Piece, Result, Stats, TokenLogprob, stats_of
from .waiting import LONGEST_WAIT, TaskPieces, arrival

log = logging.getLogger("stepladder")


class Stream:
    """Iterate with `for` or `async for`; close(), cancel() and the end of a `with` or `async with` end
    the work.

    cancel() may be called from any thread. The model stays loaded while one of its streams lives.
    Cancelling a task inside its `async for` cancels the stream. A single `anext(stream)` that is
    cancelled or times out leaves it as it is.
    """

    def __init__(self, core: _core.Stream, detokenizer: Detokenizer | None, stops: list[str], seed: int,
                 logprobs: bool, owner: object):  # fmt: skip
        self._core, self._detokenizer, self._stops = core, detokenizer, StopMatcher(stops)
        self._logprobs, self._owner = logprobs, owner
        self._done = False
        self._awaited = False
        self._pending: tuple[list[int], list[float], list[TokenLogprob]] = ([], [], [])
        self._given: list[Piece] = []
        self.seed = seed
        self.finish_reason: str | None = None
        self.if_empty: str | None = None  # what is logged where the text ends before it begins

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        while not self._done:
            piece = self._take(self._next(LONGEST_WAIT))
            if piece is not None:
                return piece
        raise StopIteration

    def __aiter__(self) -> TaskPieces[Piece]:
        return TaskPieces(self)

    async def __anext__(self) -> Piece:
        """The engine wakes the event loop when there is something to take: any number of streams may
        wait at once, in no thread of their own."""
        while not self._done:
            chunk = self._next(0)
            if chunk is False:
                await self._arrival()
                continue
            piece = self._take(chunk)
            if piece is not None:
                return piece
        raise StopAsyncIteration

    async def _arrival(self) -> None:
        if self._awaited:
            raise InvalidArgumentError(
                "stream: another task waits for its next piece; read a stream in one task"
            )
        self._awaited = True
        try:
            await arrival(self._core)
        finally:
            self._awaited = False

    def _next(self, seconds: float) -> Any:
        """The engine's next chunk; what goes wrong ends the stream."""
        try:
            return self._core.next(seconds)
        except BaseException:
            self.close()
            raise

    def notify(self, arrivals: _core.Arrivals, key: int) -> None:
        """Puts `key` among the arrivals once poll() has something to look at."""
        self._core.notify(arrivals, key)

    def poll(self) -> Piece | None:
        """The next piece if there is one now; check `done` afterwards."""
        if self._done:
            return None
        return self._take(self._next(0))

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
        if finish is not _core.Finish.none:
            if self._detokenizer is not None:
                shown, stopped = self._stops.feed(self._detokenizer.finish())
                text += shown if stopped else shown + self._stops.finish()
                if stopped:
                    return self._end(text, "stop")
            return self._end(text, finish.name)
        return self._piece(text, None) if text or self._detokenizer is None else None

    def _end(self, text: str, reason: str) -> Piece:
        self.finish_reason = reason
        self._done = True
        self._core.cancel()
        piece = self._piece(text, reason)
        if self.if_empty and reason == "stop" and not any(p.text for p in self._given):
            log.warning("%s", self.if_empty)
        return piece

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

    def __repr__(self) -> str:
        text = "".join(piece.text for piece in self._given)
        return f"<stepladder.Stream {self.finish_reason or 'running'}: {text[:60]!r}>"

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> "Stream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def stats(self) -> Stats:
        """So far, or of the whole stream once it has ended."""
        if self._done:
            self._drain()
        return stats_of(self._core.stats())

    def _drain(self) -> None:
        """Lets a cancelled stream come to its end, so that its numbers are final."""
        try:
            while self._core.next(LONGEST_WAIT) is not None:
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


class Streams(Protocol):
    """What starts streams: a model."""

    def stream(self, prompt: Any, **options: Any) -> Any: ...
