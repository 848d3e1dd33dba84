"""Conversations: each turn's prompt is the turns before it, and each answer joins them."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from ..base.arguments import string
from ..base.errors import InvalidArgumentError
from ..text.prompts import Message, Messages, checked_messages
from .options import check_names
from .results import Piece, Result, Stats
from .signatures import RequestOptions
from .stream import Stream, Streams
from .waiting import TaskPieces

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Chat:
    """A conversation. Each turn's prompt begins with the turns before it, whose cache is reused."""

    def __init__(self, model: Streams, system: str | None, options: dict[str, Any]):
        check_names("chat()", options)
        self._model, self._options = model, options
        self.messages: list[Message] = (
            [] if system is None else [{"role": "system", "content": string("system", system)}]
        )
        self._last: ChatStream | None = None

    def send(self, text: str, **options: Unpack[RequestOptions]) -> "ChatStream":
        """Says `text`; the answer joins the conversation when its stream ends.

        An answer before it that was not read to its end is waited for, so that each turn has one;
        its pieces can still be read. close() it to keep only what has been read."""
        check_names("send()", options)
        text = string("text", text)
        if self._last is not None:
            self._last.finish()
        turn = {"role": "user", "content": text}
        messages = Messages([*checked_messages(self.messages), turn])
        stream = self._model.stream(messages, **{**self._options, **options})
        self.messages = [*self.messages, turn]
        self._last = ChatStream(stream, self)
        return self._last

    def resume(self, **options: Unpack[RequestOptions]) -> "ChatStream":
        """Goes on with the last answer, such as one that max_tokens cut; what comes joins it."""
        check_names("resume()", options)
        if self._last is not None:
            self._last.finish()
        if not self.messages or self.messages[-1].get("role") != "assistant":
            raise InvalidArgumentError("resume: the conversation does not end with an answer")
        every = {**self._options, **options, "continue_final_message": True}
        stream = self._model.stream(checked_messages(self.messages), **every)
        self._last = ChatStream(stream, self, self.messages[-1])
        return self._last

    def __repr__(self) -> str:
        return f"<stepladder.Chat of {len(self.messages)} messages>"

    def __enter__(self) -> "Chat":
        return self

    def __exit__(self, *_: object) -> None:
        pass


class ChatStream:
    """The stream of one answer of a conversation."""

    def __init__(self, stream: Stream, chat: Chat, begun: Message | None = None):
        self.stream, self._chat, self._begun = stream, chat, begun
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

    def __aiter__(self) -> TaskPieces[Piece]:
        return TaskPieces(self)

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

    def __repr__(self) -> str:
        return f"<stepladder.ChatStream {'done' if self.done else 'running'}: {''.join(self._parts)[:60]!r}>"

    def __enter__(self) -> "ChatStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> "ChatStream":
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _took(self, piece: Piece) -> Piece:
        self._parts.append(piece.text)
        if piece.finish_reason:
            self._keep()
        return piece

    def _keep(self) -> None:
        if not self._kept:
            self._kept = True
            said, messages = "".join(self._parts), list(self._chat.messages)
            if self._begun is not None and messages and messages[-1] is self._begun:
                messages[-1] = {**self._begun, "content": str(self._begun["content"]) + said}
            else:
                messages.append({"role": "assistant", "content": said})
            self._chat.messages = messages

    def cancel(self) -> None:
        """Ends the answer within one round; what there is of it joins the conversation."""
        self.stream.cancel()

    def close(self) -> None:
        """Ends the answer at once; what has been read of it joins the conversation."""
        self.stream.close()
        self._keep()

    @property
    def stats(self) -> Stats:
        return self.stream.stats
