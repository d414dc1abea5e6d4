"""The thread from the queue to the wire: connects, sends in order, notices every break, resends what is unproven."""

from __future__ import annotations

import logging
import os
import random
import select
import socket
import ssl
import threading
import time

from .errors import TransportError
from .queue import MemoryQueue
from .transport import Connection, Deadlines

log = logging.getLogger("clawtrail.shipper")

BATCH = 16 * 1024  #: bytes per write: one TLS record
BACKOFF = (0.4, 15.0)  #: seconds: first and longest wait between two attempts, with full jitter
BROKEN = 2.0  #: seconds: longest wait after a connection that came up and broke before it was STEADY
STEADY = 1.0  #: seconds: a connection that lived so long is no failure


class Shipper:
    """Ships a queue to one receiver. The thread starts with the first `wake()`.

    Args:
        queue: where the frames come from.
        address: (host, port).
        context: a verifying TLS context.
        server_hostname: the name that the receiver's certificate must carry; the host unless given.
    """

    def __init__(
        self,
        queue: MemoryQueue,
        address: tuple[str, int],
        context: ssl.SSLContext,
        server_hostname: str | None = None,
        deadlines: Deadlines = Deadlines(),
    ) -> None:
        self.queue = queue
        self.address = address
        self.connected = False
        self.connects = 0
        self.resent = 0
        self.last_error = ""
        self._context = context
        self._name = server_hostname or address[0]
        self._deadlines = deadlines
        self._connection: Connection | None = None
        self._out = memoryview(b"")
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._idle = True
        self._stop_by: float | None = None
        self._wake_r, self._wake_w = _wake_pair()

    def wake(self) -> None:
        """There is something to send. Never blocks, never touches the connection."""
        if self._thread is None:
            with self._starting:  # the first two events may come from two threads at once
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="clawtrail-shipper", daemon=True)
                    thread.start()
                    self._thread = thread
        if self._idle:
            self._idle = False
            self._poke()

    def close(self, timeout: float) -> bool:
        """Sends what waits, closes with close_notify, ends the thread, all within `timeout` seconds. True: all proven."""
        self._stop_by = time.monotonic() + timeout
        if self._thread is not None:
            self._poke()
            self._thread.join(timeout + 1)
        if self._thread is None or not self._thread.is_alive():
            self._wake_r.close()
            self._wake_w.close()
        return len(self.queue) == 0

    def abandon(self) -> None:
        """In a forked child: closes the descriptors; the parent's TLS session is not touched."""
        if self._connection is not None:
            self._connection.abort()
        self._wake_r.close()
        self._wake_w.close()

    def _poke(self) -> None:
        try:
            self._wake_w.send(b"\0")
        except OSError:  # full: the thread is woken already; closed: it has ended
            pass

    def _run(self) -> None:
        failures, since = 0, 0.0
        while not self._finished():
            try:
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
                    failures = 0 if time.monotonic() - since >= STEADY else failures
                self._broken(str(e) if isinstance(e, TransportError) else f"{type(e).__name__}: {e}")
                self._pause(min(longest, first * 2 ** min(failures, 10)))
                failures += 1
        self._finish()

    def _finished(self) -> bool:
        if self._stop_by is None:
            return False
        drained = not self._out and not self.queue.unsent
        return drained or time.monotonic() >= self._stop_by

    def _connect(self) -> None:
        host, port = self.address
        self._connection = Connection(host, port, self._context, self._name, self._deadlines)
        self.connected = True
        self.connects += 1
        self.last_error = ""
        log.info("connected to %s:%d", host, port)

    def _turn(self) -> None:
        """Writes what can be written, reads what has come, sleeps until either is possible again."""
        connection = self._connection
        assert connection is not None
        self._fill()
        poll = select.poll()
        poll.register(connection, select.POLLIN | (select.POLLOUT if self._out else 0))
        poll.register(self._wake_r, select.POLLIN)
        stall = self._deadlines.stall if self._out else 3600.0
        if self._stop_by is not None:
            stall = min(stall, max(0.0, self._stop_by - time.monotonic()))
        events = dict(poll.poll(stall * 1000))
        if self._wake_r.fileno() in events:
            self._drain_wake()
        state = events.get(connection.fileno(), 0)
        if state & ~select.POLLOUT:
            connection.pump()
        if state & select.POLLOUT:
            self._out = self._out[connection.send(self._out) :]
        elif not events and self._out and self._stop_by is None:
            raise TransportError(f"receiver {connection.peer} took nothing for {self._deadlines.stall:.0f} s")

    def _fill(self) -> None:
        if self._out:
            return
        self.queue.trim()
        self._idle = True  # set before the look: a frame that comes after it wakes us
        self._out = memoryview(self.queue.take(BATCH))
        if self._out:
            self._idle = False

    def _drain_wake(self) -> None:
        try:
            while self._wake_r.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _broken(self, why: str) -> None:
        if why != self.last_error:
            log.warning("%s", why)
        self.last_error = why
        self.connected = False
        if self._connection is not None:
            self._connection.abort()
            self._connection = None
        self._out = memoryview(b"")
        self.resent += self.queue.rewind()

    def _pause(self, longest: float) -> None:
        wait = random.uniform(longest / 8, longest)
        if self._stop_by is not None:
            wait = min(wait, max(0.0, self._stop_by - time.monotonic()))
        until = time.monotonic() + wait
        while (left := until - time.monotonic()) > 0:
            select.select([self._wake_r], [], [], left)
            self._drain_wake()
            if self._stop_by is not None:
                return

    def _finish(self) -> None:
        if self._connection is not None:
            if not self._out and self._connection.close():
                self.queue.prove_sent()
            self._connection.abort()
            self._connection = None
        self.connected = False

    def __repr__(self) -> str:
        state = "connected" if self.connected else self.last_error or "not connected"
        return f"<Shipper to {self.address[0]}:{self.address[1]}, {state}, {len(self.queue)} unproven>"


def _wake_pair() -> tuple[socket.socket, socket.socket]:
    r, w = socket.socketpair()
    r.setblocking(False)
    w.setblocking(False)
    if hasattr(os, "set_inheritable"):
        os.set_inheritable(r.fileno(), False)
    return r, w
