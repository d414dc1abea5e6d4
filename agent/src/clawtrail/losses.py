"""What was lost or refused: counted by reason, and told once in a `system.drop` event per reason."""

from __future__ import annotations

from typing import Any

from . import event


class Losses:
    """Counters of one process life. Not thread-safe: used under the recorder's lock."""

    def __init__(self) -> None:
        self.dropped: dict[str, int] = {}  #: events by reason; each took a number
        self.refused: dict[str, int] = {}  #: events by reason; an error told the caller, and no number is missing
        self._untold: dict[str, dict[str, Any]] = {}

    def __bool__(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._untold)

    def drop(self, reason: str, seq: int) -> None:
        """Event number `seq` is missing from now on."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        self._note(reason)
        loss = self._untold[reason]
        loss.setdefault("first", seq)
        loss["last"] = seq

    def refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1
        self._note(reason)

    def _note(self, reason: str) -> None:
        now = event.timestamp()
        loss = self._untold.setdefault(reason, {"n": 0, "reason": reason, "from": now})
        loss["n"] += 1
        loss["to"] = now

    def untold(self) -> list[dict[str, Any]]:
        """What is to be told: `reason`, `n` events, `from` and `to` when, `first` and `last` of the numbers that are missing."""
        return list(self._untold.values())

    def told(self, loss: dict[str, Any]) -> None:
        del self._untold[loss["reason"]]
