"""Gates: how far an event must have come before the action that it announces may run, and what is said when it has not.

Levels, each including those before it: `off`, the action does not wait; `spooled`, the event is accepted, as durably as
the recorder is told to; `sent`, it was handed to the receiver's connection; `stored`, the proof says that the receiver
or the store has it. Written as `stored` for all categories, or as `tool:spooled,credential:stored`, the rest `spooled`.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Iterable, Mapping

from .errors import ClawtrailError, ConfigurationError
from .event import KINDS

if TYPE_CHECKING:
    from .recorder import Recorder

LEVELS = ("off", "spooled", "sent", "stored")
CATEGORIES = tuple(sorted(set(KINDS.values()) - {"system", "log"}))  #: events of the other two announce no action
DEADLINE = 3.0  #: seconds
DEADLINES = (0.1, 60.0)  #: seconds: the shortest and the longest
_DONE = {"spooled": "written to the recorder's disk", "sent": "sent to the audit server", "stored": "stored by the audit server"}


@dataclass(frozen=True)
class Gates:
    """The level of each category, and after how many seconds without it the answer is no."""

    levels: Mapping[str, str] = field(default_factory=dict)
    deadline: float = DEADLINE

    @classmethod
    def parse(cls, text: str, deadline: float | str = DEADLINE, proof: str = "window") -> Gates:
        """From what a person wrote. `proof`: the recorder's; `window` proves nothing about one event.

        Raises ConfigurationError, naming what was found and what was expected.
        """
        levels: dict[str, str] = {}
        words = [word.strip() for word in text.split(",")] if text.strip() else []
        for word in words:
            category, colon, level = (part.strip() for part in word.rpartition(":"))
            if not colon and len(words) > 1 or colon and category not in CATEGORIES:
                raise ConfigurationError(f"gates: {word!r}; expected one level, or category:level with a category of {', '.join(CATEGORIES)}")
            if level not in LEVELS:
                raise ConfigurationError(f"gates: level {level!r}; expected one of {', '.join(LEVELS)}")
            for name in [category] if colon else CATEGORIES:
                if name in levels:
                    raise ConfigurationError(f"gates: {name} is there twice, {levels[name]} and {level}; expected one level")
                levels[name] = level
        if proof == "window" and (wanted := sorted(name for name, level in levels.items() if level == "stored")):
            raise ConfigurationError(
                f"gates: {wanted[0]}:stored with the proof 'window', which says of no event that it is stored; "
                "expected the proof barrier or the https URL of a watermark service"
            )
        return cls(levels, _seconds(deadline))

    def level(self, categories: Iterable[str]) -> str:
        """The highest level that one of these categories asks for."""
        return max((self.levels.get(category, "spooled") for category in categories), key=LEVELS.index, default="spooled")

    def __str__(self) -> str:
        return " ".join(f"{name}:{self.levels.get(name, 'spooled')}" for name in CATEGORIES)


def _seconds(value: float | str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    shortest, longest = DEADLINES
    if not shortest <= seconds <= longest:
        raise ConfigurationError(f"gate deadline {value!r}; expected seconds, {shortest:g} to {longest:g}")
    return seconds


def refusal(level: str, seconds: float, trouble: str = "") -> str:
    """What the person who uses the agent reads when an action was refused."""
    because = f" ({trouble})" if trouble else ""
    return (
        f"This action was not carried out: its audit record was not {_DONE[level]} within {seconds:g} s{because}. "
        "Nothing is wrong with the request. Try again in a moment; if it goes on, tell whoever operates this agent."
    )


_COMMON = ("session", "run", "step", "trace", "tool", "model")  #: what a refusal says of the action that it refuses


def refuse(recorder: Recorder, gates: Gates, level: str, trouble: str, attempt: str, fields: Mapping[str, Any]) -> str:
    """Records that an action is refused; returns why, in words for its user.

    Args:
        level: what its event has not reached.
        trouble: what is known of the cause; empty: what the recorder's counters say of the receiver.
        attempt: the id of its event, which becomes `caused_by`.
        fields: that event's.
    """
    if not trouble and level != "spooled":
        stats = recorder.stats()
        trouble = stats["last_error"] or (stats["proof_error"] if level == "stored" else "")
    why = refusal(level, gates.deadline, trouble)
    with suppress(ClawtrailError):
        recorder.record(
            "policy.decision",
            "denied",
            **{name: fields[name] for name in _COMMON if name in fields},
            caused_by=attempt,
            policy={"engine": "clawtrail", "rule": f"gate.{level}", "verdict": "deny", "mode": "closed", "reason": why},
            flag={"rule": "gate.refused", "severity": "medium"},
        )
    return why


def without_room(trouble: str) -> str:
    """As `refusal`, when the event was not accepted at all."""
    return f"This action was not carried out, because it cannot be recorded now: {trouble}. Tell whoever operates this agent."
