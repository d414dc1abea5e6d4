"""Holds an action until its event has come far enough; the same for what the gateway asks and what the proxy lets through."""

from __future__ import annotations

from typing import Any, Iterable, Mapping

from .breakglass import BreakGlass
from .errors import SpoolError
from .gates import refuse
from .recorder import Receipt, Recorder


class Gatekeeper:
    """One per recorder.

    Args:
        recorder: where the events are; its `gates` say which level each category needs.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.recorder, self.gates = recorder, recorder.gates
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
        trouble = ""
        try:
            if await self.recorder.reached(receipt, level, self.gates.deadline):
                return None
        except SpoolError as e:
            trouble = str(e)
        return self.refuse(level, trouble, attempt, fields)

    def refuse(self, level: str, trouble: str, attempt: str, fields: Mapping[str, Any]) -> str:
        """As `gates.refuse`; counted."""
        self.refused += 1
        return refuse(self.recorder, self.gates, level, trouble, attempt, fields)
