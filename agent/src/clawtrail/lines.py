"""One connection of JSON lines on a unix socket: many records per read, many answers per write, all of it bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Callable

LINE_MAX = 1 << 20  #: bytes of one record
TOGETHER = 16  #: records that are taken before another connection has its turn
STAYS = 0.5  #: seconds between a refusal and the end of the connection
OPEN_MAX = 1024  #: records of one connection without an answer, after which no more is read from it

#: Takes one line. Its answer comes now, as what it returns, or later, by `Lines.answer`.
Hear = Callable[["Lines", bytes], bytes | None]


class Lines(asyncio.Protocol):
    """Splits what comes into lines, hands each to `hear`, writes the answers.

    Args:
        made: decides who hears this peer, by the connection that was made; None: nobody, what comes is thrown away.
        endless: answers a line of more than LINE_MAX bytes, after which the connection ends.
        lost: called when the connection has ended.
    """

    def __init__(self, made: Callable[[Lines], Hear | None], endless: Callable[[], bytes], lost: Callable[[Lines], None]) -> None:
        self._made, self._endless, self._lost = made, endless, lost
        self._hear: Hear | None = None
        self._waiting: deque[bytes] = deque()  # whole lines
        self._part = bytearray()  # the beginning of the next one
        self._unanswered = 0
        self._scheduled = self._full = self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._loop = asyncio.get_running_loop()
        self._hear = self._made(self)

    def data_received(self, data: bytes) -> None:
        if self._hear is None or self._ended:
            return
        first, *more = data.split(b"\n")
        self._part += first
        if len(self._part) > LINE_MAX:
            self._ended = True  # what came before is heard first
        elif more:
            self._waiting.append(bytes(self._part))
            self._waiting.extend(more[:-1])
            self._part = bytearray(more[-1])
        self._take()

    def _take(self) -> None:
        """Hears some lines; when more wait, the rest after whoever else has something to do."""
        if self._scheduled:
            return
        hear, answers = self._hear, []
        for _ in range(TOGETHER):
            if not self._waiting or self._unanswered >= OPEN_MAX or hear is None:
                break
            self._unanswered += 1
            if (answer := hear(self, self._waiting.popleft())) is not None:
                self._unanswered -= 1
                answers.append(answer)
        if answers:
            self.transport.write(b"".join(answers))
        if self._waiting and self._unanswered < OPEN_MAX:
            self._scheduled = True
            self._loop.call_soon(self._go_on)
        elif self._ended and not self._waiting:
            self.transport.write(self._endless())
            self.end(STAYS)
        self._steady()

    def _go_on(self) -> None:
        self._scheduled = False
        self._take()

    def answer(self, answers: bytes, count: int) -> None:
        """The answers of `count` records that waited."""
        self._unanswered -= count
        if not self.transport.is_closing():
            self.transport.write(answers)
        if self._waiting:
            self._take()

    def pause_writing(self) -> None:
        self._full = True
        self._steady()

    def resume_writing(self) -> None:
        self._full = False
        self._steady()

    def _steady(self) -> None:
        """Reads no more from a peer that is not heard fast enough, or does not read its answers."""
        if self.transport.is_closing():
            return
        if self._full or self._waiting:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def end(self, after: float = 0.0) -> None:
        """Closes when what was answered is written; `after` so many seconds, in which what the peer still writes is read:
        it would else meet an end in place of the answer."""
        if after:
            self._hear = None
            self._loop.call_later(after, self.transport.close)
        else:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._hear = None
        self._waiting.clear()
        self._lost(self)
