"""Waiting for any number of streams at once, without a thread for each and without looking again and
again: the engine puts a key into a list, whose file descriptor wakes whoever watches it."""

from __future__ import annotations

import itertools
import select
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from .. import _core

if TYPE_CHECKING:
    import asyncio  # at run time where it is used: who runs a loop has it, and others need not wait for it

LONGEST_WAIT = 0.25  # seconds in which a signal that came to another thread is noticed


def arrived(arrivals: _core.Arrivals) -> list[int]:
    """Waits until keys have arrived, and takes them."""
    watch = select.poll()
    watch.register(arrivals.fileno(), select.POLLIN)
    while not (keys := arrivals.take()):
        watch.poll(1000 * LONGEST_WAIT)
    return keys


class _Waits:
    """The streams that are waited for in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self._arrivals = _core.Arrivals()
        self._futures: dict[int, asyncio.Future[None]] = {}
        self._keys = itertools.count()
        # The loop holds this object and not the other way round, so both end together.
        loop.add_reader(self._arrivals.fileno(), self._wake)

    def _wake(self) -> None:
        for key in self._arrivals.take():
            future = self._futures.get(key)
            if future is not None and not future.done():
                future.set_result(None)

    async def arrival(self, stream: _core.Stream) -> None:
        import asyncio

        key = next(self._keys)
        self._futures[key] = asyncio.get_running_loop().create_future()
        try:
            stream.notify(self._arrivals, key)
            await self._futures[key]
        except BaseException:
            stream.withdraw()
            raise
        finally:
            del self._futures[key]


_loops: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Waits]" = weakref.WeakKeyDictionary()
_loops_lock = threading.Lock()


async def arrival(stream: _core.Stream) -> None:
    """Waits in the running event loop until `stream` has something to take. A wait that is cancelled
    leaves the stream as it is."""
    import asyncio

    loop = asyncio.get_running_loop()
    with _loops_lock:
        waits = _loops.get(loop)
        if waits is None:
            waits = _loops[loop] = _Waits(loop)
    await waits.arrival(stream)


_Piece = TypeVar("_Piece")
_Given = TypeVar("_Given", covariant=True)


class _Source(Protocol[_Given]):
    def cancel(self) -> None: ...

    async def __anext__(self) -> _Given: ...


class TaskPieces(Generic[_Piece]):
    """The iterator of an `async for`: when the task that runs it is cancelled, the stream is too, at
    once, wherever in the loop the task was."""

    def __init__(self, stream: _Source[_Piece]):
        self._stream = stream
        self._task: asyncio.Task[Any] | None = None

    def __aiter__(self) -> "TaskPieces[_Piece]":
        return self

    async def __anext__(self) -> _Piece:
        import asyncio

        if self._task is None:
            self._task = asyncio.current_task()
            if self._task is not None:
                self._task.add_done_callback(_canceller(self._stream))
        try:
            return await self._stream.__anext__()
        except asyncio.CancelledError:
            # In a task of its own, as a timeout may make one, only this wait has been given up.
            if asyncio.current_task() is self._task:
                self._stream.cancel()
            raise


def _canceller(stream: _Source[Any]) -> Callable[[asyncio.Task[Any]], None]:
    """For the end of a task: cancels what it was reading if it was cancelled. The stream is not held,
    so that a loop that was left lets go of it, which ends it."""
    held = weakref.ref(stream)

    def ended(task: asyncio.Task[Any]) -> None:
        reading = held()
        if reading is not None and task.cancelled():
            reading.cancel()

    return ended
