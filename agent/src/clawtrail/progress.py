"""How far events have come, and who waits for it: one sync serves all who wait for the disk, one wake-up each the others."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any, Callable

from .errors import SpoolError
from .outbox import Outbox

_Done = Callable[[SpoolError | None], None]


class Progress:
    """Of the events of one process life, by number.

    `moved` is for the thread that ships, at moments when all that it took is written; everything else is for any thread.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._sent = 0
        self._waiting: dict[object, tuple[int, str, Callable[[], object]]] = {}
        self._commits: queue.SimpleQueue[tuple[int, asyncio.AbstractEventLoop, _Done] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    # -- sent and stored ---------------------------------------------------------------------------------------

    def moved(self) -> None:
        """Something was written to the connection, or proven: wakes those whose event it was."""
        own = self._outbox.own
        if own is not None and own.position > self._sent:
            self._sent = own.position
        if self._waiting:
            for seq, level, wake in list(self._waiting.values()):
                if self.passed(seq, level):
                    wake()

    def passed(self, seq: int, level: str) -> bool:
        """Whether event number `seq` is `sent`, or `stored`."""
        own = self._outbox.own
        return self._sent >= seq if level == "sent" else own is not None and own.proven >= seq

    def wait(self, seq: int, level: str, timeout: float) -> bool:
        """Waits for it in a thread, at most `timeout` seconds."""
        bell = threading.Event()
        self._waiting[bell] = seq, level, bell.set
        try:
            return self.passed(seq, level) or bell.wait(timeout) or self.passed(seq, level)
        finally:
            del self._waiting[bell]

    async def awaited(self, seq: int, level: str, timeout: float) -> bool:
        """As `wait`, without holding up the event loop."""
        bell, loop = asyncio.Event(), asyncio.get_running_loop()
        self._waiting[bell] = seq, level, lambda: loop.call_soon_threadsafe(bell.set)
        try:
            if not self.passed(seq, level):
                await asyncio.wait_for(bell.wait(), timeout)
        except TimeoutError:
            pass
        finally:
            del self._waiting[bell]
        return self.passed(seq, level)

    # -- the disk ----------------------------------------------------------------------------------------------

    def on_disk(self, seq: int, done: _Done) -> None:
        """Calls `done` in the running event loop when event number `seq` is on the disk, or with the error that kept it."""
        self._commits.put((seq, asyncio.get_running_loop(), done))
        if self._thread is None:
            with self._starting:
                if self._thread is None:
                    thread = threading.Thread(target=self._commit, name="clawtrail-disk", daemon=True)
                    thread.start()
                    self._thread = thread

    async def synced(self, seq: int) -> None:
        """Returns when event number `seq` is on the disk. Raises SpoolError."""
        future: asyncio.Future[SpoolError | None] = asyncio.get_running_loop().create_future()
        self.on_disk(seq, lambda error: None if future.done() else future.set_result(error))
        if error := await future:
            raise error

    def _commit(self) -> None:
        ended = False
        while not ended and (first := self._commits.get()) is not None:
            together = [first]
            while not ended and not self._commits.empty():
                if (more := self._commits.get()) is None:
                    ended = True
                else:
                    together.append(more)
            failed = self._sync(max(seq for seq, _, _ in together))
            calls: dict[asyncio.AbstractEventLoop, list[tuple[_Done, SpoolError | None]]] = {}
            for seq, loop, done in together:  # after a failure each asks for itself: the events before it are safe
                calls.setdefault(loop, []).append((done, failed if failed and self._sync(seq) else None))
            for loop, these in calls.items():
                try:
                    loop.call_soon_threadsafe(_call, these)
                except RuntimeError:  # that loop has ended, and nobody waits in it
                    pass

    def _sync(self, seq: int) -> SpoolError | None:
        try:
            self._outbox.sync(seq)
        except SpoolError as e:
            return e
        return None

    def close(self) -> None:
        """Ends the thread, after what it was asked for."""
        self._commits.put(None)


def _call(these: list[tuple[_Done, Any]]) -> None:
    for done, error in these:
        done(error)

