"""What an exchange leaves on record: the request before it goes out, the decision before the answer may end."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

from .. import event as ev
from ..recorder import Receipt
from ..redact import Found
from ..runs import Run
from .inbound import Inbound
from .reading import Answer, Call, digest
from .refusal import Refused, Unrecorded

if TYPE_CHECKING:
    from .server import Proxy

CALLS_SHOWN = 32  #: calls of a decision that are named one by one
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_OF_REQUEST = ("params", "system", "tools", "tools_n")  # members of `model` that the decision does not repeat


class Record:
    """
    Attributes:
        run: whose request it is, as far as the plugin has told.
        reading: what the answer says; error: what went wrong; received: bytes of the answer. The exchange tells.
        attempted, committed: the request, the decision is on record.
    """

    def __init__(self, proxy: Proxy, inbound: Inbound) -> None:
        self._proxy, self._inbound = proxy, inbound
        trace = _TRACE.fullmatch(inbound.request.headers.get("traceparent", ""))
        self._trace: str | None = trace[1] if trace else None
        self._span: str | None = trace[2] if trace else None
        self.run: Run | None = None
        self._ambiguous = False
        self._caused_by: str | None = None
        self._began = time.perf_counter()
        self.reading: Answer | None = None
        self.error: dict[str, Any] | None = None
        self.received = 0
        self.attempted = self.committed = False

    def find_run(self) -> None:
        runs = self._proxy.runs
        open_runs = runs.all_of(self._trace)
        known = runs.by_span(self._span)
        self.run = next((r for r in open_runs if known is not None and r.run == known.run), None) or (open_runs[-1] if open_runs else None)
        self._ambiguous = known is None and len(open_runs) > 1

    # -- the request ---------------------------------------------------------------------------------------------

    async def attempt(self) -> None:
        """The request's event, acknowledged: no record, no model. Raises Refused."""
        proxy, fields = self._proxy, self._fields()
        if self.run is None:
            fields |= self._without_run()
            proxy.counters["no_tools"] += 1
        try:
            receipt = proxy.note("model.request", "attempt", fields)
            self._caused_by = receipt.id
            await proxy.acknowledged(receipt, fields)
        except Unrecorded as e:
            if e.accepted or e.hopeless or not proxy.ungated():
                raise self.unrecorded(e) from None
        if self._span:
            proxy.runs.asked(self._span, self.run, self._caused_by or "")
        self.attempted = True
        proxy.counters["requests"] += 1

    def _without_run(self) -> dict[str, Any]:
        """A call that can lead to no action needs no run. Without a span nothing will ever tell whose it was."""
        marked: dict[str, Any] = {"policy": {"engine": "clawtrail", "rule": "no-tools", "verdict": "allow"}}
        if self._span is None:
            severity = "medium" if self._proxy.runs.open_tools() else "low"  # a tool runs, and may be the one that asks
            marked["flag"] = {"rule": "trail.bypass", "severity": severity, "technique": "T1562.001"}
        return marked

    async def refused(self, refusal: Refused) -> Refused:
        """Records what can be recorded of a refusal. Returns the one to answer with: also this needs its event."""
        proxy = self._proxy
        proxy.counters["refused"] += refusal.recorded or refusal.rule == "agent-token"
        if self.attempted:
            return refusal
        if self._span:
            proxy.runs.refused(self._span)
        if refusal.recorded:
            fields = self._fields()
            fields["policy"] = {"engine": "clawtrail", "rule": refusal.rule, "verdict": "deny", "reason": str(refusal)}
            if refusal.severity:
                fields["flag"] = {"rule": "trail.bypass", "severity": refusal.severity, "technique": "T1562.001"}
            try:
                await proxy.acknowledged(proxy.note("model.request", "denied", fields), fields)
            except Unrecorded as e:
                return self.unrecorded(e)
        return refusal

    def unrecorded(self, why: object) -> Refused:
        """What the agent is told when the recorder does not take an event."""
        self._proxy.counters["unrecorded"] += 1
        return Refused(503, "recorder", f"the recorder does not accept records ({why}); no record, no model", recorded=False)

    def _fields(self) -> dict[str, Any]:
        """What the request and the decision have in common."""
        run, sent = self.run, self._inbound
        asked, api, upstream = sent.asked, sent.api, sent.upstream
        fields: dict[str, Any] = {
            "session": run.session if run else None,
            "run": run.run if run else None,
            "trace": _some({"id": self._trace, "span": self._span}) or None,
            "actor": {"type": "agent", "id": sent.agent or "unknown", "auth": "verified" if sent.agent else "none", "addr": sent.request.remote},
            "target": {"type": "host", "id": upstream.host} if upstream else None,
            "model": _some({
                "via": "proxy", "provider": sent.upstream_name if upstream else None, "api": api.name if api else "other", "requested": asked.model and asked.model[:256],
                "params": asked.params, "system": digest(asked.system) if asked.system else None, "tools": asked.tools_sha256,
                "tools_n": len(asked.tools) if api else None,
            }),
            "content": _some({"size": sent.size, "segments": asked.messages, "mime": None if api else sent.request.content_type,
                              "name": None if api else sent.path[:256]}),
        }  # fmt: skip
        if self._ambiguous:  # parent and subagents share a trace; which of them it was, the hook's span tells
            fields["asserted"] = ["session", "run"]
        return fields

    # -- the decision --------------------------------------------------------------------------------------------

    async def commit(self) -> bool:
        """Records the decision; whether it is acknowledged. One that the recorder does not take waits on disk."""
        if self.committed:
            return True
        receipt, fields = self.note_decision()
        try:
            if receipt is not None:
                await self._proxy.acknowledged(receipt, fields)
            if receipt is not None or self._proxy.ungated():
                return True
        except Unrecorded:
            pass
        self._proxy.counters["cut"] += 1
        return False

    def note_decision(self) -> tuple[Receipt | None, dict[str, Any]]:
        """Hands the decision over, such as it is by now; nobody waits until it is acknowledged."""
        self.committed = True
        outcome, fields = self._decision()
        self._proxy.counters["decisions"] += 1
        try:
            return self._proxy.note("model.decision", outcome, fields), fields
        except Unrecorded as e:
            if e.hopeless:
                self._proxy.recorder.lost("decision")
            elif not e.accepted:
                self._proxy.keep(fields, outcome)
        return None, fields

    def _decision(self) -> tuple[str, dict[str, Any]]:
        if (told := self._proxy.runs.by_span(self._span)) is not None:
            self.run, self._ambiguous = told, False  # the hook has told meanwhile whose call it was
        fields = self._fields()
        fields["caused_by"] = self._caused_by
        fields["duration_us"] = int((time.perf_counter() - self._began) * 1e6)
        model = fields["model"]
        for name in _OF_REQUEST:
            model.pop(name, None)
        reading, error = self.reading, self.error
        if reading is None:
            fields["content"] = {"size": self.received}
            fields["decision"] = {"stop": "error" if error else "end"}
        else:
            found = Found()
            redacted = self._proxy.recorder.redactor.string(reading.text, found)
            fields["content"] = ev.content(redacted, reading.size, **found.fields())
            model |= _some({"answered": reading.model and reading.model[:256], "response": reading.id and reading.id[:256]})
            if error is None and not reading.closing:
                error = {"type": "incomplete", "message": "the answer ended before its finish marker"}
            error = error or reading.error
            cancelled = error is not None and error["type"] == "client-abort"
            calls: list[Any] = [self._call(call) for call in list(reading.calls.values())[:CALLS_SHOWN]]
            more = len(reading.calls) - len(calls) + reading.more_calls
            calls += [f"[+{more}]"] if more else []
            fields["decision"] = _some({"stop": "cancel" if cancelled else "error" if error else reading.ending, "calls": calls})
            fields["usage"] = reading.usage or None
        fields["error"] = _some(error) if error else None
        return "failure" if error else "success", {k: v for k, v in fields.items() if v is not None}

    def _call(self, call: Call) -> dict[str, Any]:
        """A call's arguments as the hash that the event of the tool's call has when nothing was changed on the way."""
        arguments = call.arguments
        try:
            arguments = ev.dumps(ev.clean(json.loads(arguments)))
        except (ValueError, RecursionError):
            pass
        redacted = self._proxy.recorder.redactor.string(arguments, Found())
        return _some({"id": call.id and call.id[:256], "tool": call.tool and call.tool[:128], "sha256": digest(redacted), "size": call.characters})


def _some(members: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in members.items() if v not in (None, "", [], {})}
