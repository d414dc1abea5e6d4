"""What every adapter does with an event before it is recorded: rules, the session's history, and what it belongs to.

A tool call that a rule flags carries the flag; one that reaches for a credential is followed by a `credential.access`,
whose outcome is the call's. An outcome finds its attempt by the call's id, a call the decision that chose it.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import Any, Generator, Mapping, Sequence, TypeAlias

from .. import event as ev
from ..errors import Denied, GateClosed
from ..gates import LEVELS, refuse
from ..recorder import Receipt, Recorder
from ..redact import Found
from ..rules import Hit, Rules, flag, verdict, wants
from ..watch import Watch
from ..watch import Standing, marks
from . import hooks
from .desk import Recorded

REMEMBER = 10_000  #: calls whose outcome may still come

_Event: TypeAlias = "tuple[str, str, dict[str, Any]]"


class Scribe:
    """Records the events of one agent. Not thread-safe.

    Args:
        recorder: where they go.
        rules: what flags a tool call, and may refuse it; None: nothing does.
        watch: the state of sessions; its own unless given.
    """

    def __init__(self, recorder: Recorder, rules: Rules | None = None, watch: Watch | None = None) -> None:
        self.recorder, self._rules, self.watch = recorder, rules, watch or Watch(rules)
        self.told: list[Recorded] = []  #: what the last `take` recorded
        self._causes: OrderedDict[tuple[str, Any, Any], str] = OrderedDict()
        self._accesses: OrderedDict[tuple[Any, Any], list[tuple[str, dict[str, Any]]]] = OrderedDict()

    def record(self, kind: str, outcome: str, fields: dict[str, Any]) -> Receipt:
        """As `Recorder.record`; `fields` is used up. An attempt waits until it has come as far as the recorder's gates ask.

        Raises Denied when a rule forbids the action, GateClosed at the gate's deadline; all that is on record by then.
        """
        events = self._events(kind, outcome, fields)
        told = next(events)
        try:
            while True:
                told = events.send(self.recorder.put(told[0], told[1], dict(told[2])))
        except StopIteration as end:
            receipt: Receipt = end.value
        level = self._level(kind, outcome)
        if LEVELS.index(level) > 1 and not self.recorder.wait_reached(receipt, level, self.recorder.gates.deadline):
            raise GateClosed(refuse(self.recorder, self.recorder.gates, level, "", receipt.id, fields))
        return receipt

    async def arecord(self, kind: str, outcome: str, fields: dict[str, Any]) -> Receipt:
        """As `record`, without holding up the event loop."""
        events = self._events(kind, outcome, fields)
        told = next(events)
        try:
            while True:
                told = events.send(await self.recorder.arecord(told[0], told[1], **told[2]))
        except StopIteration as end:
            receipt: Receipt = end.value
        level = self._level(kind, outcome)
        if LEVELS.index(level) > 1 and not await self.recorder.reached(receipt, level, self.recorder.gates.deadline):
            raise GateClosed(refuse(self.recorder, self.recorder.gates, level, "", receipt.id, fields))
        return receipt

    def take(self, kind: str, outcome: str, fields: dict[str, Any], asks: bool = True) -> list[Recorded]:
        """As `record`, for who holds the action itself: no gate is waited for. What was recorded, the first one first.

        `asks`: where a rule wants an approval, a person can be asked.
        """
        self.told.clear()
        events = self._events(kind, outcome, fields, asks)
        told = next(events)
        try:
            while True:
                told = events.send(self.recorder.put(told[0], told[1], dict(told[2])))
        except Denied as e:
            e.recorded = list(self.told)
            raise
        except StopIteration:
            return list(self.told)

    def _level(self, kind: str, outcome: str) -> str:
        return self.recorder.gates.level([ev.KINDS[kind]]) if outcome == "attempt" else "spooled"

    @property
    def agent(self) -> str:
        return self.recorder.agent

    def content(self, text: str, excerpt: bool = True) -> dict[str, Any]:
        """The `content` group of a text, without its secrets."""
        redacted = self.recorder.redactor.string(text, found := Found())
        made = ev.content(redacted, len(text.encode("utf-8", "replace")), **found.fields(), **marks(redacted))
        return made if excerpt else hooks.without_excerpt(made)

    def digest(self, text: str) -> Any:
        """The SHA-256 of a text without its secrets, 64 hex digits."""
        return self.content(text)["sha256"]

    def _events(self, kind: str, outcome: str, fields: dict[str, Any], asks: bool = False) -> Generator[_Event, Receipt, Receipt]:
        """`asks`: whoever is told that a rule wants an approval can ask a person for it."""
        tool, session = hooks.group(fields.get("tool")), fields.get("session")
        call = tool.get("call_id")
        key = (session if isinstance(session, str) else None, call) if isinstance(call, str) else None
        hits: Sequence[Hit] = ()
        forbidden: Hit | None = None
        moment = {"time": fields["time"]} if "time" in fields else {}
        if kind == "tool.call" and outcome == "attempt":
            hits = self._hits(tool, fields)
            if (forbidden := wants(hits, "deny") or wants(hits, "approve")) and fields.get("policy") is None:
                fields["policy"] = verdict(forbidden)
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
                access["flag"] = flag([hit])
                asked = yield from self._one("credential.access", "attempt", {**access, **moment, "caused_by": receipt.id})
                if key is not None:
                    self._accesses.setdefault(key, []).append((asked.id, access))
                    while len(self._accesses) > REMEMBER:
                        self._accesses.popitem(last=False)
        if forbidden:
            approve = forbidden.rule.action == "approve"
            denial = {k: fields[k] for k in ("session", "run", "step", "trace", "tool") if fields.get(k) is not None}
            denial |= {"caused_by": receipt.id, "policy": verdict(forbidden), "flag": flag([forbidden]), **moment}
            yield from self._one("policy.decision", "unknown" if approve and asks else "denied", denial)
            raise Denied(forbidden.rule.id, forbidden.rule.why, approve, severity=forbidden.severity, asks=asks)
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

    def _hits(self, tool: dict[str, Any], fields: dict[str, Any]) -> Sequence[Hit]:
        params = fields.get("params")
        if self._rules is None or not isinstance(params, dict):
            return ()
        standing, actor = self.watch.standing(fields.get("session"), fields.get("run")), hooks.group(fields.get("actor"))
        hits = self._rules.hits(
            str(tool.get("name") or ""), params, agent=self.recorder.agent, surface=hooks.text(actor.get("surface")),
            tainted=standing.tainted, owner=standing.owner,
        )  # fmt: skip
        if hits and fields.get("flag") is None:
            fields["flag"] = flag(hits)
        return hits

    def _one(self, kind: str, outcome: str, fields: dict[str, Any]) -> Generator[_Event, Receipt, Receipt]:
        seen = self.watch.see(kind, outcome, fields)
        receipt = yield kind, outcome, seen
        self.watch.recorded(kind, seen, receipt.id)
        if len(self.told) < 100:
            self.told.append(Recorded(kind, seen, receipt))
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
