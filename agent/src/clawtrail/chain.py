"""Numbers and links: every line carries its epoch, its number and the SHA-256 of the line before it.

An epoch is one process life. Numbers count 1, 2, 3 … inside it, so a missing one is visible; `prev` makes an
edited, inserted or reordered line visible to anyone who has the lines.
"""

from __future__ import annotations

from .event import uuid7

FIRST = "unknown"  #: `prev` of an epoch's first line


class Chain:
    """One epoch. Not thread-safe: the caller goes from line to line under its own lock, because the order is the chain.

    `identity` is JSON of what is the same in every line (`"agent":…,"host":…,`).
    """

    def __init__(self, identity: str = "") -> None:
        self.epoch = uuid7()
        self.seq = 0  #: the last number that was taken
        self.prev = FIRST  #: the SHA-256 of the last line, in hex
        self._same = f'{identity}"epoch":"{self.epoch}","seq":'

    def line(self, ident: str, moment: str, tail: str) -> bytes:
        """The line of the next number; it counts when its SHA-256 and its number stand in `prev` and `seq`.

        `tail` is JSON of what follows `prev` (`"kind":…}`).
        """
        return f'{{"v":1,"id":"{ident}","ts":"{moment}",{self._same}{self.seq + 1},"prev":"{self.prev}",{tail}'.encode()

    def __repr__(self) -> str:
        return f"<Chain epoch={self.epoch} seq={self.seq}>"
