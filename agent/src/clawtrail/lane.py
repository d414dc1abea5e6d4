"""The quick way of an event into the spool: what the compiled lane has to know, or what stands in for it.

A lane does in one call what `Drafts.make`, `Recorder._append` and `Spool.append` do one after the other, with the same
bytes, for events that need nothing out of the ordinary: no secret, no cut, no full spool, no new segment. All others it
leaves alone, and they go the long way. See `native/lane.c`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from . import event
from .native import native
from .patterns import COMPILED

if TYPE_CHECKING:
    from .recorder import Receipt

#: What `logging` itself sets, in its order.
ATTRIBUTES = tuple(vars(logging.LogRecord("", 0, "", 0, "", (), None)))
#: `message` and `asctime` come from formatters, `taskName` from Python 3.12 and later, the rest from structlog
STANDARD = frozenset(ATTRIBUTES) | {"message", "asctime", "taskName", "_logger", "_name", "_record", "_from_structlog"}
#: Names in `extra` that a producer decides an event by.
MEANT = (frozenset(event.FIELDS) | {"kind", "outcome", "agent_id"}) - STANDARD - {"log"}
_SKIP, _KIND, _OUTCOME, _CLAIM, _RARE = -2, -3, -4, -5, -6  # of an enum in lane.c


class Closed:
    """A lane that no event goes: what a recorder has where there is no compiled one."""

    def put(self, recorder: object, kind: str, outcome: str, fields: dict[str, Any]) -> Receipt | None:
        """The receipt; None: nothing was recorded, the event has to go the long way."""
        return None

    def log(self, recorder: object, record: object, agent: str | None, formatter: logging.Formatter | None) -> bool:
        """Of a log record. False: nothing was recorded, the event has to go the long way."""
        return False

    def open(self) -> bool:
        """Under the recorder's lock, after an event went the long way: from now on events may go this one."""
        return False

    def shut(self) -> int:
        """Under the recorder's lock, before anybody else appends. Returns the bytes of frames that went this way since `open`."""
        return 0


def _roles() -> dict[str, int]:
    roles = {name: at for at, name in enumerate(event.FIELDS) if name in MEANT}
    roles |= {"kind": _KIND, "outcome": _OUTCOME, "agent_id": _CLAIM, "content": _RARE, "extra": _RARE}
    return roles | dict.fromkeys(STANDARD, _SKIP)


#: The type of a lane: `Lane(chain=…, outbox=…, …)`; None where there is none.
Lane: Any = native.Lane if COMPILED else None
if COMPILED:
    native.tables(event.FIELDS, event.SINGLE, _roles(), event.KINDS, ATTRIBUTES)
