"""From what a producer gives to an event that only its number is missing to: checked, redacted, its frame prepared."""

from __future__ import annotations

from typing import Any, Mapping, TypeAlias

from . import event, syslog
from .redact import Redactor

_SEVERITY = {"failure": 4, "denied": 4, "unknown": 5}  # RFC 5424 section 6.2.1; everything else: 6, informational
_ALIKE_MAX = 1000  # kinds of frames that are remembered; what repeats is soon back

#: An event before it has a number: id, moment, what of its line follows `prev`, parts of its frame.
Draft: TypeAlias = "tuple[str, str, str, syslog.Parts]"


class Drafts:
    """Makes the drafts of one epoch. Thread-safe: it remembers, and what two threads remember at once is the same.

    Args:
        host, claim, procid, epoch: of the frames; `claim` is the agent's name where an event brings none of its own.
        facility, sd_id: see `syslog.Header`. Raises ConfigurationError for one that is none.
    """

    def __init__(self, redactor: Redactor, host: str, claim: str, procid: str, epoch: str, facility: int, sd_id: str) -> None:
        self.redactor, self.claim = redactor, claim
        self._host, self._procid, self._epoch, self._facility, self._sd_id = host, procid, epoch, facility, sd_id
        self._parts: dict[tuple[Any, ...], syslog.Parts] = {}  # of the frames, for events alike
        self._header(claim)

    def make(self, kind: str, outcome: str, fields: dict[str, Any], moment: str, claim: str) -> Draft:
        """A draft of the event; `moment` as `event.timestamp` writes it. Raises EventError."""
        body, tail = event.encode(kind, outcome, fields, self.redactor)
        alike = (
            claim,
            kind,
            outcome,
            body["session"],
            body["run"],
            group.get("name") if "tool" in body and type(group := body["tool"]) is dict else None,
            group.get("name") if "credential" in body and type(group := body["credential"]) is dict else None,
            group.get("severity") if "log" in body and type(group := body["log"]) is dict else None,
        )
        try:
            parts = self._parts[alike]
        except (KeyError, TypeError):
            parts = self._new_parts(body, *alike)
        return event.uuid7(), moment, tail[1:], parts

    def between(self, claim: str, kind: str) -> bytes:
        """Of every frame of these: its text between its time and its number; see `syslog.Header.parts`."""
        return self._header(claim).parts(6, kind, ())[1].encode()

    def own(self, kind: str, outcome: str, fields: dict[str, Any]) -> Draft:
        """Of an event about the trail itself, now."""
        return self.make(kind, outcome, fields, event.timestamp(), self.claim)

    def _header(self, claim: str) -> syslog.Header:
        return syslog.Header(self._host, claim, self._procid, self._epoch, self._facility, self._sd_id)

    def _new_parts(self, body: Mapping[str, Any], claim: str, kind: str, outcome: str, *named: Any) -> syslog.Parts:
        *values, level = named
        params = [("category", body["category"]), ("outcome", outcome)]
        for key, value in zip(("session", "run", "tool", "credential"), values):
            if value and isinstance(value, str):
                params.append((key, value[:255] if key in ("tool", "credential") else value))
        severity = level if type(level) is int and 0 <= level <= 7 else _SEVERITY.get(outcome, 6)
        parts = self._header(claim).parts(severity, kind, tuple(params))
        if all(value is None or type(value) in (str, int) for value in named):
            if len(self._parts) >= _ALIKE_MAX:
                self._parts.clear()
            self._parts[claim, kind, outcome, *named] = parts
        return parts
