"""Numbers and links: every line carries its epoch, its number and the SHA-256 of the line before it.

An epoch is one process life. Numbers count 1, 2, 3 … inside it, so a missing one is visible; `prev` makes an
edited, inserted or reordered line visible to anyone who has the lines.
"""

from __future__ import annotations

from .event import uuid7

FIRST = "unknown"  #: `prev` of an epoch's first line


class Chain:
    """One epoch. Not thread-safe: the caller goes from line to line under its own lock, because the order is the chain."""

    def __init__(self) -> None:
        self.epoch = uuid7()
        self.seq = 0  #: the last number that was taken
        self.prev = FIRST  #: the SHA-256 of the last line, in hex

    def line(self, head: str, tail: str) -> bytes:
        """The line of the next number; it counts when its SHA-256 and its number stand in `prev` and `seq`.

        `head` is JSON up to and without the epoch (`{"v":1,…,`), `tail` what follows `prev` (`"kind":…}`).
        """
        return f'{head}"epoch":"{self.epoch}","seq":{self.seq + 1},"prev":"{self.prev}",{tail}'.encode()

    def __repr__(self) -> str:
        return f"<Chain epoch={self.epoch} seq={self.seq}>"
