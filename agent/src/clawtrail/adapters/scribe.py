"""What every adapter does with an event before it is recorded: rules, the session's history, and what it belongs to.

A tool call that a rule flags carries the flag; one that reaches for a credential is followed by a `credential.access`,
whose outcome is the call's. An outcome finds its attempt by the call's id, a call the decision that chose it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, Generator, Mapping, Protocol, Sequence, TypeAlias

from .. import event as ev
from ..recorder import Receipt, Recorder
from ..redact import Found
from ..watch import Watch
from ..watch import Standing, marks
from . import hooks

REMEMBER = 10_000  #: calls whose outcome may still come

_Event: TypeAlias = "tuple[str, str, dict[str, Any]]"


class Judge(Protocol):
    """What flags a tool call; see `rules.Rules`."""

    def hits(
        self, tool: str, params: Mapping[str, Any], *, agent: str = "", tainted: bool = False, owner: bool | None = None
    ) -> Sequence[Any]: ...


class Scribe:
    """Records the events of one agent. Not thread-safe.

    Args:
        recorder: where they go.
        rules: what flags a tool call; None: nothing does.
        watch: the state of sessions; its own unless given.
    """

    def __init__(self, recorder: Recorder, rules: Judge | None = None, watch: Watch | None = None) -> None:
        self.recorder, self._rules, self.watch = recorder, rules, watch or Watch()
        self._causes: OrderedDict[tuple[str, Any, Any], str] = OrderedDict()
        self._accesses: OrderedDict[tuple[Any, Any], list[tuple[str, dict[str, Any]]]] = OrderedDict()

    def record(self, kind: str, outcome: str, fields: dict[str, Any]) -> Receipt:
        """As `Recorder.record`; `fields` is used up."""
        events = self._events(kind, outcome, fields)
        told = next(events)
        try:
            while True:
                told = events.send(self.recorder.put(told[0], told[1], dict(told[2])))
        except StopIteration as end:
            receipt: Receipt = end.value
            return receipt

    async def arecord(self, kind: str, outcome: str, fields: dict[str, Any]) -> Receipt:
        """As `Recorder.arecord`; `fields` is used up."""
        events = self._events(kind, outcome, fields)
        told = next(events)
        try:
            while True:
                told = events.send(await self.recorder.arecord(told[0], told[1], **told[2]))
        except StopIteration as end:
            receipt: Receipt = end.value
            return receipt

    def content(self, text: str) -> dict[str, Any]:
        """The `content` group of a text, without its secrets."""
        redacted = self.recorder.redactor.string(text, found := Found())
        return ev.content(redacted, len(text.encode("utf-8", "replace")), **found.fields(), **marks(redacted))

    def _events(self, kind: str, outcome: str, fields: dict[str, Any]) -> Generator[_Event, Receipt, Receipt]:
        tool, session = hooks.group(fields.get("tool")), fields.get("session")
        call = tool.get("call_id")
        key = (session if isinstance(session, str) else None, call) if isinstance(call, str) else None
        hits: Sequence[Any] = ()
        moment = {"time": fields["time"]} if "time" in fields else {}
        if kind == "tool.call" and outcome == "attempt":
            hits = self._hits(tool, fields)
            if key is not None:
                fields.setdefault("caused_by", self._causes.get(("decision", *key)))
        elif kind == "tool.result" and key is not None:
            attempt = self._causes.pop(("call", *key), None)
            fields.setdefault("caused_by", attempt)
        receipt = yield from self._one(kind, outcome, fields)
        if kind == "tool.call" and outcome == "attempt" and key is not None:
            self._remember(("call", *key), receipt.id)
        for hit in hits:
            if hit.rule.credential:
                access = {k: fields[k] for k in ("session", "run", "step", "trace", "tool", "target") if fields.get(k) is not None}
                access["credential"] = {"name": hit.rule.name, "use": "read"}
                access["flag"] = hooks.some({"rule": hit.rule.id, "severity": hit.severity, "technique": hit.rule.technique})
                asked = yield from self._one("credential.access", "attempt", {**access, **moment, "caused_by": receipt.id})
                if key is not None:
                    self._accesses.setdefault(key, []).append((asked.id, access))
                    while len(self._accesses) > REMEMBER:
                        self._accesses.popitem(last=False)
        if kind == "tool.result" and key is not None:
            for ident, access in self._accesses.pop(key, []):
                yield from self._one("credential.access", outcome, {**access, **moment, "caused_by": ident})
        if kind == "model.decision":
            calls = hooks.group(fields.get("decision")).get("calls")
            for one in calls if isinstance(calls, list) else ():
                chosen = one.get("id") if isinstance(one, Mapping) else one
                if isinstance(chosen, str):
                    self._remember(("decision", session, chosen), receipt.id)
        return receipt

    def _hits(self, tool: dict[str, Any], fields: dict[str, Any]) -> Sequence[Any]:
        params = fields.get("params")
        if self._rules is None or not isinstance(params, dict):
            return ()
        standing = self.watch.standing(fields.get("session"), fields.get("run"))
        hits = self._rules.hits(str(tool.get("name") or ""), params, agent=self.recorder.agent, tainted=standing.tainted, owner=standing.owner)
        if hits and fields.get("flag") is None:
            also = " ".join(hit.rule.id for hit in hits[1:])
            fields["flag"] = hooks.some({"rule": hits[0].rule.id, "severity": hits[0].severity, "technique": hits[0].rule.technique, "also": also})
        return hits

    def _one(self, kind: str, outcome: str, fields: dict[str, Any]) -> Generator[_Event, Receipt, Receipt]:
        seen = self.watch.see(kind, outcome, fields)
        receipt = yield kind, outcome, seen
        self.watch.recorded(kind, seen, receipt.id)
        return receipt

    def _remember(self, key: tuple[str, Any, Any], ident: str) -> None:
        self._causes[key] = ident
        while len(self._causes) > REMEMBER:
            self._causes.popitem(last=False)


def trace() -> dict[str, str] | None:
    """The trace that this process belongs to: $TRACEPARENT, as W3C's Trace Context level 2 writes it. None when there is none."""
    parts = os.environ.get("TRACEPARENT", "").strip().lower().split("-")
    if len(parts) < 4 or [len(p) for p in parts[:3]] != [2, 32, 16] or not all(c in "0123456789abcdef" for c in parts[1] + parts[2]):
        return None
    return {"id": parts[1], "parent": parts[2]} if int(parts[1], 16) and int(parts[2], 16) else None
