"""The bounded queue between the agent and the wire, in memory.

Frames leave in the order in which they came. A frame that was handed to the connection is kept until it is proven,
and comes again after a break: syslog has no acknowledgement, so "sent" proves nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque


class MemoryQueue:
    """A FIFO of frames, bounded in bytes. Thread-safe.

    Args:
        limit: bytes of unsent frames that are held at most.
        window: bytes of sent frames that are kept for a resend; what fell out of the window counts as proven. More
            than the buffers of both kernels hold (Linux: up to 6 MiB at a receiver that sets no limit of its own).
    """

    def __init__(self, limit: int = 64 << 20, window: int = 8 << 20) -> None:
        self.limit, self.window = limit, window
        self._waiting: deque[bytes] = deque()
        self._sent: deque[bytes] = deque()
        self._room = threading.Condition()
        self._waiting_bytes = self._sent_bytes = 0
        self.proven = 0  #: frames that left the window or were proven by a clean close

    def __len__(self) -> int:
        """Frames that are not proven yet."""
        with self._room:
            return len(self._waiting) + len(self._sent)

    @property
    def unsent(self) -> int:
        return len(self._waiting)

    @property
    def size(self) -> int:
        with self._room:
            return self._waiting_bytes + self._sent_bytes

    def has_room(self, size: int) -> bool:
        return self._waiting_bytes + size <= self.limit

    def wait_for_room(self, size: int, timeout: float) -> bool:
        """Blocks at most `timeout` seconds; True when `size` bytes fit."""
        deadline = time.monotonic() + timeout
        with self._room:
            while not self.has_room(size):
                left = deadline - time.monotonic()
                if left <= 0 or not self._room.wait(left):
                    return self.has_room(size)
            return True

    def append(self, frame: bytes) -> None:
        with self._room:
            self._waiting.append(frame)
            self._waiting_bytes += len(frame)

    def take(self, limit: int) -> bytes:
        """The next frames, joined, at least one and up to `limit` bytes; empty when nothing waits."""
        batch: list[bytes] = []
        size = 0
        with self._room:
            while self._waiting and (not batch or size + len(self._waiting[0]) <= limit):
                one = self._waiting.popleft()
                batch.append(one)
                size += len(one)
            self._waiting_bytes -= size
            self._sent.extend(batch)
            self._sent_bytes += size
            self._room.notify_all()
        return b"".join(batch)

    def trim(self) -> None:
        """Lets go of sent frames beyond the window. Called when all that was taken is written to the connection."""
        with self._room:
            while self._sent and self._sent_bytes - len(self._sent[0]) >= self.window:
                self._sent_bytes -= len(self._sent.popleft())
                self.proven += 1

    def rewind(self) -> int:
        """After a break: every unproven frame waits again, in the old order. Returns how many were taken before."""
        with self._room:
            count = len(self._sent)
            self._waiting.extendleft(reversed(self._sent))
            self._waiting_bytes += self._sent_bytes
            self._sent.clear()
            self._sent_bytes = 0
            return count

    def prove_sent(self) -> None:
        """The receiver has read all that was sent (it answered our close_notify)."""
        with self._room:
            self.proven += len(self._sent)
            self._sent.clear()
            self._sent_bytes = 0
