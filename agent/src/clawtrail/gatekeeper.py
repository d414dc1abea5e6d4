"""Holds an action until its event has come far enough; the same for what the gateway asks and what the proxy lets through."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Iterable, Mapping

from .breakglass import BreakGlass
from .errors import ClawtrailError, SpoolError
from .gates import Gates, refusal
from .recorder import Receipt, Recorder

_COMMON = ("session", "run", "step", "trace", "tool", "model")  #: what a refusal says of the action that it refuses


class Gatekeeper:
    """One per recorder.

    Args:
        recorder: where the events are.
        gates: which level each category needs.
    """

    def __init__(self, recorder: Recorder, gates: Gates = Gates()) -> None:
        self.recorder, self.gates = recorder, gates
        self.break_glass = BreakGlass(recorder, recorder.folder)
        self.refused = 0  #: actions, because their event had not come far enough at the deadline

    def level(self, categories: Iterable[str]) -> str:
        """What the events of an action have to reach; `off` while an operator has broken the glass."""
        return "off" if self.break_glass.open else self.gates.level(categories)

    async def refusal(self, level: str, receipt: Receipt, attempt: str, fields: Mapping[str, Any]) -> str | None:
        """Waits until the event has reached the level. None: the action may run; else why not, in words for its user.

        Args:
            receipt: of the last event that the action needs on record.
            attempt: the id of the action's own event; the refusal is recorded with it as `caused_by`.
            fields: that event's.
        """
        try:
            if await self.recorder.reached(receipt, level, self.gates.deadline):
                return None
            stats = self.recorder.stats()
            trouble = stats["last_error"] or (stats["proof_error"] if level == "stored" else "")
        except SpoolError as e:
            trouble = str(e)
        return self.refuse(level, trouble, attempt, fields)

    def refuse(self, level: str, trouble: str, attempt: str, fields: Mapping[str, Any]) -> str:
        """Records that the action is refused; returns why, in words for its user."""
        why = refusal(level, self.gates.deadline, trouble)
        self.refused += 1
        with suppress(ClawtrailError):
            self.recorder.record(
                "policy.decision",
                "denied",
                **{name: fields[name] for name in _COMMON if name in fields},
                caused_by=attempt,
                policy={"engine": "clawtrail", "rule": f"gate.{level}", "verdict": "deny", "mode": "closed", "reason": why},
                flag={"rule": "gate.refused", "severity": "medium"},
            )
        return why
