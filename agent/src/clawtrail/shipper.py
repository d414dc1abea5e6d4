"""The thread from the outbox to the wire: connects, sends in order, notices every break, resends what is unproven."""

from __future__ import annotations

import logging
import os
import random
import select
import threading
import time
from typing import Callable, Sequence

from .errors import SpoolError, TransportError
from .outbox import Outbox
from .proof import Watermark
from .transport import TLS, Connection, Deadlines

log = logging.getLogger("clawtrail.shipper")

BATCH = 64 * 1024  #: bytes that are taken at a time; a write takes one TLS record of them, 16 KiB
LINGER = 1  #: milliseconds: after something was sent, the next is gathered for so long; when idle it leaves at once
BACKOFF = (0.4, 15.0)  #: seconds: first and longest wait between two attempts, with full jitter
BROKEN = 2.0  #: seconds: longest wait after a connection that came up and broke before it was STEADY
STEADY = 1.0  #: seconds: a connection that lived so long is no failure, unless it stalled
AWAY = 0.25  #: seconds that a close goes on trying to reach a receiver that is away, when the events are on the disk
TICK = 1.0  #: seconds between two looks at everything that is not urgent
BARRIER = (1.0, 5.0, 10_000)  #: a barrier when idle for so long, after so long, or after so many events
PATIENCE = 3  #: barriers that a receiver leaves unanswered before it is asked less often
FILES = 5.0  #: seconds between two looks at the certificate files
FAIL_BACK = 30.0  #: seconds between two attempts to get back to a preferred endpoint


class Shipper:
    """Ships an outbox to the first of its endpoints that answers. The thread starts with the first `wake()`.

    Args:
        outbox: where the frames come from.
        endpoints: (host, port), the preferred one first.
        tls: the identity, and what to verify.
        proof: `window`, `barrier`, or the service that tells what is stored.
        tick: called about once a second, in the thread.
        moved: called in the thread when all that was taken is written, and when more is proven.
    """

    def __init__(
        self,
        outbox: Outbox,
        endpoints: Sequence[tuple[str, int]],
        tls: TLS,
        deadlines: Deadlines = Deadlines(),
        proof: str | Watermark = "window",
        tick: Callable[[], None] = lambda: None,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self.outbox, self.endpoints = outbox, list(endpoints)
        self.connected = False
        self.endpoint = ""
        self.connects = self.resent = self.sent_bytes = 0
        self.last_error = self.proof_error = self._complaint = ""
        self._tls, self._deadlines, self._proof, self._on_tick = tls, deadlines, proof, tick
        self._on_move = moved
        self._connection: Connection | None = None
        self._polls: list[select.poll] = []
        self._at = 0  # which endpoint
        self._shunned = -1  # the one that lets us in and breaks: the others come first
        self._out = memoryview(b"")
        self._stored: dict[str, int] = {}
        self._better: tuple[int, Connection] | None = None
        self._asking = self._seeking = False
        self._unanswered = 0  # barriers in a row
        self._thread: threading.Thread | None = None
        self._alone, self._ended = threading.Lock(), threading.Event()
        self._idle = True
        self._stop_by: float | None = None
        self._bell = Bell()
        self._next_tick = self._next_look = self._next_seek = 0.0
        self._moved = self._sent_at = self._barrier_at = 0.0  # since when: bytes move, nothing was sent, no barrier

    # -- the agent's side --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """There is something to send. Never blocks, never touches the connection."""
        if self._thread is None:
            self._start()
        if self._idle and self._thread is not None:  # else the next event tries again to start it
            self._idle = False
            self._bell.ring()

    def _start(self) -> None:
        """The first two events may come from two threads at once, or the second from a signal in the middle of this: of two
        threads that are started one ships, and the other ends at once."""
        try:
            thread = threading.Thread(target=self._run, name="clawtrail-shipper", daemon=True)
            thread.start()
            self._thread = self._thread or thread
        except RuntimeError as e:  # no room for a thread now, or the interpreter is going: then the spool is for the next process
            self.last_error = str(e)

    def close(self, timeout: float) -> bool:
        """Sends what waits, closes with close_notify, ends the thread, all within `timeout` seconds. True: all proven."""
        self._stop_by = time.monotonic() + timeout
        if self._alone.acquire(blocking=False):  # there is no thread, and will be none
            self._end()
        self._bell.ring()
        if self._ended.wait(timeout + 0.2) and self._thread is not None:
            self._thread.join(0.2)
        return not self.outbox.unproven

    def abandon(self) -> None:
        """In a forked child: closes the descriptors; the parent's TLS session and spool are not touched."""
        for connection in (self._connection, self._better and self._better[1]):
            if connection is not None:
                connection.abort()
        self.outbox.let_go()

    # -- the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        if not self._alone.acquire(blocking=False):
            return  # another one ships
        self._thread = threading.current_thread()
        try:
            failures, since = 0, 0.0
            while not self._finished():
                try:
                    self._tick()
                    if self._connection is None:
                        self._connect()
                        since = time.monotonic()
                    self._turn()
                except Exception as e:
                    if not isinstance(e, TransportError):  # a bug must not end the shipping of an audit trail
                        log.exception("shipper failed")
                    first, longest = BACKOFF
                    if self.connected:
                        longest = min(longest, BROKEN)
                        now = time.monotonic()
                        stalled = self._out and now - self._moved >= self._deadlines.stall
                        steady = now - since >= STEADY and not stalled
                        failures, self._shunned = (0, -1) if steady else (failures, self._at)
                    self._broken(str(e) if isinstance(e, TransportError) else f"{type(e).__name__}: {e}")
                    if self._stop_by is not None and self.outbox.folder is not None:  # it is safe: a receiver that is away holds no exit up
                        self._stop_by = min(self._stop_by, time.monotonic() + AWAY)
                    self._pause(min(longest, first * 2 ** min(failures, 10)))
                    failures += 1
            self._say_goodbye()
        finally:
            self._end()

    def _finished(self) -> bool:
        if self._stop_by is None:
            return False
        return not self._out and not self.outbox.unsent or time.monotonic() >= self._stop_by

    def _tick(self) -> None:
        now = time.monotonic()
        if now < self._next_tick:
            return
        self._next_tick = now + TICK
        try:
            self._on_tick()
            self.outbox.tidy()
        except Exception as e:  # what is not urgent must not hold up the shipping
            if str(e) != self._complaint:
                self._complaint = str(e)
                log.warning("%s: %s", type(e).__name__, e)
        if not isinstance(self._proof, str) and self.outbox.epochs and not self._asking:
            self._asking = True
            if not self._beside(self._ask, self._proof):
                self._asking = False

    def _beside(self, work: Callable[..., None], *args: object) -> bool:
        """In a thread of its own, because it may take long; the caller sees to it that there is one at a time."""
        try:
            threading.Thread(target=work, args=args, name="clawtrail-beside", daemon=True).start()
        except RuntimeError:  # the interpreter is going
            return False
        return True

    def _ask(self, proof: Watermark) -> None:
        try:
            stored = dict(proof.stored(self.outbox.epochs))
            if not all(isinstance(n, int) for n in stored.values()):
                raise TypeError(f"the proof answered {stored!r:.300}; expected numbers")
            self._stored = stored
            self.proof_error = ""
        except Exception as e:  # whatever it is, the events go on their way, and stay
            self.proof_error = str(e) if isinstance(e, TransportError) else f"{type(e).__name__}: {e}"
            time.sleep(random.uniform(0, BACKOFF[0]))  # in a thread of its own: many agents must not ask again at one moment
        finally:
            self._asking = False
            self._bell.ring()  # who waits for it must not wait for the next tick

    # -- connecting --------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self._tls.changed():
            self._tls.reload()
        errors = []
        for at in sorted(range(len(self.endpoints)), key=lambda at: at == self._shunned):
            try:
                self._use(at, self._open(at))
                return
            except TransportError as e:
                errors.append(str(e))
            if self._stop_by is not None and time.monotonic() >= self._stop_by:
                break
        raise TransportError("; ".join(errors))

    def _open(self, at: int) -> Connection:
        host, port = self.endpoints[at]
        return Connection(host, port, self._tls.context, self._tls.server_hostname or host, self._deadlines)

    def _use(self, at: int, connection: Connection) -> None:
        self._connection, self._at = connection, at
        self._polls = [_poll((connection, select.POLLIN)), _poll((connection, select.POLLIN), (self._bell, select.POLLIN)),
                       _poll((connection, select.POLLIN | select.POLLOUT), (self._bell, select.POLLIN))]  # fmt: skip
        self.connected, self.endpoint = True, connection.peer
        self.connects += 1
        self.last_error = ""
        self._moved = self._sent_at = self._barrier_at = time.monotonic()
        log.info("connected to %s", connection.peer)

    def _exchange(self) -> None:
        """Between two batches: a better endpoint, new certificates or a barrier put another connection in place of this one."""
        now = time.monotonic()
        better, self._better = self._better, None
        if better is not None and better[0] < self._at:
            self._part()
            self._use(*better)
        elif better is not None:  # this one broke meanwhile, and we are back already
            better[1].abort()
        elif now >= self._next_look:
            self._next_look = now + FILES
            if self._tls.changed() and self._tls.reload():
                self._part()
                self._connect()
            elif self._at and not self._seeking and now >= self._next_seek:
                self._next_seek, self._seeking = now + FAIL_BACK, True
                if not self._beside(self._seek, self._at):
                    self._seeking = False
        if not isinstance(self._proof, str):  # here, where all that was taken is written: a service may claim more than it has
            self.outbox.prove_stored(self._stored)
        elif self._proof == "barrier" and self._connection is not None and self._barrier_due(now):
            self._connection.pump()  # the receiver's own end would look like the answer to ours
            if self._part():
                self.outbox.prove_sent()
                self._unanswered, self.proof_error = 0, ""
            else:
                self._unanswered += 1
                self.proof_error = f"receiver {self.endpoint} does not answer the end of the session; the window proves"
            self._connect()

    def _barrier_due(self, now: float) -> bool:
        idle, longest, events = BARRIER
        if self._unanswered >= PATIENCE and now - self._barrier_at < PATIENCE * FAIL_BACK:
            return False
        if not (waiting := self.outbox.unproven - self.outbox.unsent):
            self._barrier_at = now
            return False
        return now - self._sent_at >= idle or now - self._barrier_at >= longest or waiting >= events

    def _part(self) -> bool:
        """Ends the connection in order. True: the receiver has read everything; else it is resent."""
        connection, self._connection = self._connection, None
        self.connected = False
        if connection is not None and connection.close():
            return True
        self.resent += self.outbox.rewind()
        return False

    def _seek(self, worse: int) -> None:
        """Is a preferred endpoint back?"""
        try:
            for at in range(worse):
                try:
                    connection = self._open(at)
                except TransportError:
                    continue
                self._better = at, connection
                if self._ended.is_set():
                    connection.abort()
                self._bell.ring()
                return
        finally:
            self._seeking = False

    # -- sending -----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """Writes what can be written, reads what has come, sleeps until either is possible again."""
        connection = self._connection
        assert connection is not None
        if not self._out:
            self._exchange()
            if self._connection is connection:
                self._flow(connection)
            return
        sent = connection.send(self._out)
        if sent:
            self._out = self._out[sent:]
            self._wrote(sent)
            self._heed(connection, self._polls[0].poll(0))
            return
        wait = self._deadlines.stall - (time.monotonic() - self._moved)
        if wait <= 0:
            raise TransportError(f"receiver {connection.peer} took nothing for {self._deadlines.stall:.0f} s")
        connection.bear()
        self._heed(connection, self._polls[2].poll(self._bounded(min(wait, TICK))))

    def _flow(self, connection: Connection) -> None:
        """Takes and writes, batch after batch, as long as the connection takes whole ones and nothing else is due. At a
        steady rate it is this that an event costs, so it is one loop."""
        outbox, poll, only_window = self.outbox, self._polls[0].poll, self._proof == "window"
        self._on_move()
        while True:
            if isinstance(self._proof, str):  # a barrier that never comes leaves the window
                outbox.trim()
            batch = outbox.take(BATCH)
            if not batch:
                return self._rest(connection)
            self._idle = False
            sent = connection.send(batch)
            now = self._wrote(sent)
            if sent < len(batch):
                self._out = memoryview(batch)[sent:]
                return
            self._on_move()
            events = poll(0 if outbox.unsent else LINGER)  # what comes right after something else is gathered for a moment
            if events:
                self._heed(connection, events)
            if not only_window or now >= self._next_tick or self._stop_by is not None or self._better is not None:
                return

    def _wrote(self, sent: int) -> float:
        now = self._moved = time.monotonic()
        if sent:
            self.sent_bytes += sent
            self._sent_at = now
        return now

    def _rest(self, connection: Connection) -> None:
        """Nothing waits, and nothing came within a moment: a first event wakes us."""
        self._idle = True  # set before the last look: what comes after it rings
        if self.outbox.unsent:
            self._idle = False
            return
        self._heed(connection, self._polls[1].poll(self._bounded(TICK)))

    def _bounded(self, seconds: float) -> int:
        """Milliseconds, no longer than to the end."""
        if self._stop_by is not None:
            seconds = min(seconds, max(0.0, self._stop_by - time.monotonic()))
        return int(seconds * 1000) + 1

    def _heed(self, connection: Connection, events: list[tuple[int, int]]) -> None:
        for fd, event in events:
            if fd == self._bell.fileno():
                self._bell.hush()
            elif event & ~select.POLLOUT:
                connection.pump()

    def _broken(self, why: str) -> None:
        if why != self.last_error:
            log.warning("%s", why)
        self.last_error = why
        self.connected = False
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        self._out = memoryview(b"")
        self.resent += self.outbox.rewind()

    def _pause(self, longest: float) -> None:
        until = time.monotonic() + random.uniform(longest / 8, longest)
        while (left := until - time.monotonic()) > 0:
            _poll((self._bell, select.POLLIN)).poll(self._bounded(min(left, TICK)))
            self._bell.hush()
            if self._stop_by is not None:
                return
            self._tick()

    def _say_goodbye(self) -> None:
        if self._connection is not None:
            if not self._out and self._connection.close() and isinstance(self._proof, str):
                self.outbox.prove_sent()  # a store that is asked has its own word on it
            self._connection.abort()
            self._connection = None
        self.connected = False

    def _end(self) -> None:
        try:
            self.outbox.close()
        except SpoolError as e:
            log.warning("%s", e)
        if self._better is not None:
            self._better[1].abort()
        self._bell = Bell.deaf()
        self._ended.set()

    def __repr__(self) -> str:
        state = f"connected to {self.endpoint}" if self.connected else self.last_error or "not connected"
        return f"<Shipper: {state}, {self.outbox!r}>"


class Bell:
    """Wakes a thread that polls."""

    def __init__(self) -> None:
        self._r = self._w = -1
        if hasattr(os, "eventfd"):
            self._r = self._w = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        else:
            self._r, self._w = os.pipe()
            for fd in (self._r, self._w):
                os.set_blocking(fd, False)

    @classmethod
    def deaf(cls) -> Bell:
        """One without a descriptor, for when nobody listens any more."""
        bell = cls.__new__(cls)
        bell._r = bell._w = -1
        return bell

    def fileno(self) -> int:
        return self._r

    def ring(self) -> None:
        try:
            os.write(self._w, b"\1\0\0\0\0\0\0\0")
        except OSError:  # full: it rings already; closed: nobody listens any more
            pass

    def hush(self) -> None:
        try:
            os.read(self._r, 4096)
        except OSError:
            pass

    def __del__(self) -> None:  # not before: whoever rings must not meet a descriptor that means something else by now
        for fd in {self._r, self._w} - {-1}:
            os.close(fd)


def _poll(*wanted: tuple[Connection | Bell, int]) -> select.poll:
    poll = select.poll()
    for what, events in wanted:
        poll.register(what, events)
    return poll
