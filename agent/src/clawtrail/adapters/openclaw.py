"""OpenClaw's plugin hooks → events. The plugin only passes on; what a hook means is decided here.

A record is `{"hook": name, "at": RFC 3339, "event": {…}, "ctx": {…}}`, the two arguments that OpenClaw gives a hook.
An action becomes two events, the attempt before and the outcome after, joined by `caused_by`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Callable, NamedTuple

from .. import event as ev
from ..errors import Denied, EventError
from ..recorder import Receipt, Recorder
from ..redact import Found
from ..rules import Hit, Rules, flag, wants
from ..runs import Runs
from ..watch import Watch, marks
from . import hooks

_REMEMBER = 10_000  #: attempts whose outcome may still come
_SOURCES = {"user", "cron", "heartbeat", "webhook", "message", "agent", "system"}
#: Hooks whose content other hooks report in full.
_SAID_ELSEWHERE = frozenset({"diag:run.started", "diag:exec.process.completed"})
_STOP = {"stop": "end", "toolUse": "tool", "length": "length", "error": "error", "aborted": "cancel"}


class Recorded(NamedTuple):
    """One event that a record became."""

    kind: str
    fields: dict[str, Any]
    receipt: Receipt


class OpenClaw:
    """Turns hook records into events of one recorder, and tells `runs` what is open. Not thread-safe.

    Args:
        watch: adds what a session's history tells.
        rules: which tool calls are flagged, and which are attempts at a credential; the packaged ones by default.
    """

    def __init__(self, recorder: Recorder, runs: Runs | None = None, watch: Watch | None = None, rules: Rules | None = None) -> None:
        self._recorder = recorder
        self._watch = watch or Watch()
        self._open = runs or Runs()
        self._rules = Rules.load() if rules is None else rules
        self._recorded: list[Recorded] = []
        self._attempts: OrderedDict[str, str] = OrderedDict()
        self._credentials: OrderedDict[str, list[tuple[str, dict[str, Any]]]] = OrderedDict()
        self._steps: OrderedDict[str, int] = OrderedDict()
        self._runs: OrderedDict[str, None] = OrderedDict()
        self._current: OrderedDict[str, str] = OrderedDict()
        self._inputs: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._hooks: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
            "before_agent_run": self._run_start,
            "before_tool_call": self._tool_call,
            "after_tool_call": self._tool_result,
            "before_message_write": self._message_write,
            "llm_input": self._llm_input,
            "llm_output": self._llm_output,
            "model_call_started": self._model_request,
            "model_call_ended": self._model_ended,
            "agent_end": self._run_end,
            "message_received": self._message_in,
            "message_sending": self._message_sending,
            "reply_payload_sending": self._message_sending,
            "message_sent": self._message_sent,
            "session_start": self._session_start,
            "session_end": self._session_end,
            "before_reset": self._session_end,
            "subagent_spawned": self._subagent_start,
            "subagent_ended": self._subagent_end,
            "before_install": self._install,
            "gateway_start": self._gateway_start,
            "gateway_stop": self._gateway_stop,
            "heartbeat": self._heartbeat,
            "cron_changed": self._cron,
            "cron_reconciled": self._cron,
            "skill_changed": self._skill,
            "skill_proposal_changed": self._skill,
            "before_compaction": self._compaction_attempt,
            "after_compaction": self._compaction,
            "channel_pairing_requested": self._pairing,
            "dropped": self._dropped,
            "diag:run.completed": self._run_completed,
            "diag:security.event": self._security,
            "diag:tool.execution.blocked": self._blocked,
            "diag:exec.approval.followup_suppressed": self._approval_suppressed,
            "diag:model.failover": self._failover,
            "diag:diagnostic.async_queue.dropped": self._dropped,
            "diag:gateway.rpc": self._operator,
        }

    @property
    def hooks(self) -> frozenset[str]:
        """The hooks whose records are understood."""
        return frozenset(self._hooks)

    def take(self, record: dict[str, Any]) -> list[Recorded]:
        """Records what one hook reported; its events. Raises EventError for a record that is none, Denied when a rule forbids
        the action (all of it is on record by then), QueueFull as the recorder does.
        """
        hook = str(record.get("hook"))
        self._open.beat()
        if hook in _SAID_ELSEWHERE:
            return []
        handle = self._internal if hook.startswith("internal:") else self._hooks.get(hook)
        if handle is None:
            raise EventError(f"hook {hook!r} is unknown; expected one of {' '.join(sorted(self._hooks))}")
        self._hook, self._time = hook, hooks.seconds(record.get("at"))
        recorded: list[Recorded] = []
        self._recorded = recorded
        handle(hooks.group(record.get("event")), hooks.group(record.get("ctx")))
        return recorded

    # -- runs and sessions ---------------------------------------------------------------------------------------

    def _run_start(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        trigger = ctx.get("trigger")
        started = {"type": trigger if isinstance(trigger, str) and trigger in _SOURCES else "system", "ref": ctx.get("jobId") or event.get("messageId")}
        fields = self._common(event, ctx) | {
            "actor": hooks.some({"type": "user", "id": event.get("senderId"), "owner": event.get("senderIsOwner"),
                            "surface": ctx.get("channel") or ctx.get("messageProvider")}),
            "trigger": hooks.some(started),
            "content": hooks.without_excerpt(self._content(hooks.text(event.get("prompt")))),
            "model": hooks.some({"provider": ctx.get("modelProviderId"), "requested": ctx.get("modelId"),
                            "system": hooks.digest(event.get("systemPrompt"))}),
        }  # fmt: skip
        self._remember(f"run:{fields.get('run')}", self._record("run.start", "attempt", fields))
        self._runs[str(fields.get("run"))] = None
        _bound(self._runs)
        self._current[str(fields.get("session"))] = str(fields.get("run"))
        _bound(self._current)
        if fields["run"]:
            self._open.started(fields["run"], fields["session"], hooks.group(fields["trace"]).get("id"))

    def _run_completed(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """The host's own diagnostics, which no hook gates: a run that it knows and we do not went past the gate."""
        if str(event.get("runId")) not in self._runs:
            self._record("policy.decision", "unknown", self._common(event, ctx) | {
                "policy": {"engine": "clawtrail", "rule": "run-gate", "verdict": "none", "reason": "the run ended and its start was never recorded"},
                "flag": {"rule": "trail.bypass", "severity": "critical", "technique": "T1562.001"}})  # fmt: skip

    def _run_end(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        fields = self._common(event, ctx)
        run = fields.get("run")
        fields |= {
            "caused_by": self._attempts.pop(f"run:{run}", None),
            "usage": hooks.some({"steps": self._steps.pop(str(run), None)}),
            "error": hooks.error(event.get("error")),
            "duration_us": hooks.micros(event.get("durationMs")),
        }
        self._open.ended(str(run))
        success = event.get("success")
        self._record("run.end", "success" if success is True else "failure" if success is False else "unknown", fields)

    def _session_start(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("session.start", "success", self._common(event, ctx) | {
            "trigger": hooks.some({"type": "session", "ref": event.get("resumedFrom")}) if event.get("resumedFrom") else None})  # fmt: skip

    def _session_end(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("session.end", "success", self._common(event, ctx) | {
            "health": hooks.some({"reason": event.get("reason"), "messages": event.get("messageCount")}),
            "duration_us": hooks.micros(event.get("durationMs"))})  # fmt: skip

    def _subagent_start(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        child = event.get("childSessionKey") or ctx.get("childSessionKey")
        fields = self._common(event, {**ctx, "sessionKey": ctx.get("requesterSessionKey") or ctx.get("sessionKey")}) | {
            "peer": hooks.some({"agent": event.get("agentId"), "session": child, "run": event.get("runId"), "role": event.get("label"), "proof": "host"}),
            "model": hooks.some({"provider": event.get("resolvedProvider"), "requested": event.get("resolvedModel")}),
        }  # fmt: skip
        self._remember(f"subagent:{child}", self._record("subagent.start", "attempt", fields))

    def _subagent_end(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        child = event.get("targetSessionKey") or ctx.get("childSessionKey")
        outcome = {"ok": "success", "error": "failure", "timeout": "failure", "killed": "denied"}.get(str(event.get("outcome")), "unknown")
        self._record("subagent.end", outcome, self._common(event, {**ctx, "sessionKey": ctx.get("requesterSessionKey")}) | {
            "caused_by": self._attempts.pop(f"subagent:{child}", None),
            "peer": hooks.some({"session": child, "run": event.get("runId"), "proof": "host"}),
            "health": hooks.some({"reason": event.get("reason")}),
            "error": hooks.error(event.get("error"))})  # fmt: skip

    # -- tools ---------------------------------------------------------------------------------------------------

    def _tool_call(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        params = hooks.group(event.get("params"))
        tool = self._tool(event, ctx)
        requester = hooks.group(ctx.get("requester"))
        common = self._common(event, ctx)
        written = ev.dumps(ev.clean(params))
        fields = common | {
            "step": self._step(common.get("run")),
            "caused_by": self._attempts.get(f"decision:{tool.get('call_id')}") or self._attempts.get(f"run:{common.get('run')}"),
            "actor": hooks.some({"type": "user", "id": requester.get("senderId"), "owner": requester.get("senderIsOwner"),
                            "surface": requester.get("channel")}),
            "tool": tool,
            "params": params,
            "content": hooks.without_excerpt(self._content(written)),
            "target": hooks.target(event, params),
        }  # fmt: skip
        paths, standing, asked_by_owner = event.get("derivedPaths"), self._watch.standing(common["session"], common["run"]), requester.get("senderIsOwner")
        hits = self._rules.hits(
            hooks.text(tool.get("name")), params, paths=[p for p in paths if isinstance(p, str)] if isinstance(paths, list) else (),
            agent=hooks.text(ctx.get("agentId")), surface=hooks.text(requester.get("channel")), tainted=standing.tainted,
            owner=asked_by_owner if isinstance(asked_by_owner, bool) else standing.owner,
        )  # fmt: skip
        fields["flag"] = flag(hits)
        attempt = self._record("tool.call", "attempt", fields)
        self._remember(f"call:{tool.get('call_id')}", attempt)
        self._open.tool_started(str(tool.get("call_id")), tool["name"])
        for hit in hits:
            if not hit.rule.credential:
                continue
            access = common | {
                "caused_by": attempt,
                "tool": tool,
                "credential": {"name": hit.rule.name, "use": "read"},
                "target": fields["target"],
                "flag": flag([hit]),
            }
            asked = self._record("credential.access", "attempt", access)
            self._credentials.setdefault(str(tool.get("call_id")), []).append((asked, access))
        _bound(self._credentials)
        if forbidden := wants(hits, "deny") or wants(hits, "approve"):
            self._forbid(forbidden, common | {"caused_by": attempt, "tool": tool})

    def _forbid(self, hit: Hit, fields: dict[str, Any]) -> None:
        approve = hit.rule.action == "approve"
        verdict = {"engine": "clawtrail", "rule": hit.rule.id, "verdict": "flag" if approve else "deny", "reason": hit.rule.why}
        self._record("policy.decision", "unknown" if approve else "denied", fields | {"policy": verdict, "flag": flag([hit])})
        raise Denied(hit.rule.id, hit.rule.why, approve)

    def _tool_result(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        result = hooks.group(event.get("result"))
        details = hooks.group(result.get("details"))
        tool, error = self._tool(event, ctx), event.get("error")
        self._open.tool_ended(str(tool.get("call_id")))
        if details.get("mcpServer"):
            tool["server"] = details["mcpServer"]
        outcome = hooks.tool_outcome(error, result, details)
        fields = self._common(event, ctx) | {
            "step": self._steps.get(str(ctx.get("runId") or event.get("runId"))),
            "caused_by": self._attempts.pop(f"call:{tool.get('call_id')}", None),
            "tool": tool,
            "content": self._content(hooks.text(result.get("content"))) if result else None,
            "error": hooks.error(error) or hooks.exit_error(details),
            "duration_us": hooks.micros(event.get("durationMs")),
        }
        self._record("tool.result", outcome, fields)
        for asked, access in self._credentials.pop(str(tool.get("call_id")), []):
            self._record("credential.access", outcome, access | {"caused_by": asked})

    def _tool(self, event: dict[str, Any], ctx: dict[str, Any]) -> dict[str, Any]:
        name = hooks.text(event.get("toolName") or ctx.get("toolName")) or "unknown"
        server, _, inner = name.partition("__")
        return hooks.some({
            "name": name, "type": "mcp" if inner else event.get("toolKind") or "builtin",
            "call_id": event.get("toolCallId") or ctx.get("toolCallId"), "server": server if inner else None}) or {}  # fmt: skip

    # -- the model -----------------------------------------------------------------------------------------------

    def _llm_input(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """Once per run: what every request of the run carries. Goes into their `model` group."""
        tools = hooks.group(event.get("tools"))
        names = tools.get("names")
        self._inputs[str(event.get("runId") or ctx.get("runId"))] = {
            "system": hooks.digest(event.get("systemPrompt")), "tools": tools.get("sha256"),
            "tools_n": len(names) if isinstance(names, list) else None}  # fmt: skip
        _bound(self._inputs)

    def _llm_output(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """The answer is on record as decisions; what counts here is who ran the model: another harness has no gate of ours."""
        harness = event.get("harnessId")
        if harness not in (None, "openclaw"):
            self._record("policy.decision", "unknown", self._common(event, ctx) | {
                "policy": {"engine": "clawtrail", "rule": "harness", "verdict": "none", "reason": f"the run used the harness {harness}"},
                "flag": {"rule": "trail.bypass", "severity": "high", "technique": "T1562.001"}})  # fmt: skip

    def _model_request(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        fields = self._common(event, ctx)
        fields["model"] = hooks.some({**(hooks.model(event) or {}), **self._inputs.get(str(fields["run"]), {})})
        fields["caused_by"] = self._attempts.get(f"run:{fields.get('run')}")
        asked = self._record("model.request", "attempt", fields)
        self._remember(f"model:{event.get('callId')}", asked)
        if span := hooks.group(fields["trace"]).get("span"):
            self._open.called(span, fields["run"], fields["session"], asked)

    def _model_ended(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        asked = self._attempts.pop(f"model:{event.get('callId')}", None)
        if event.get("outcome") == "completed":
            return  # the decision itself comes with before_message_write
        self._open.came_to_nothing(hooks.text(hooks.group(ctx.get("trace")).get("spanId")))
        fields = self._common(event, ctx) | {
            "caused_by": asked, "model": hooks.model(event), "decision": {"stop": "error"},
            "error": hooks.some({"type": event.get("errorCategory") or "model", "code": event.get("failureKind")}),
            "duration_us": hooks.micros(event.get("durationMs")),
        }  # fmt: skip
        self._record("model.decision", "failure", fields)

    def _message_write(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        message = hooks.group(event.get("message"))
        role = message.get("role")
        if not ctx.get("runId"):  # this hook does not say which run it belongs to; a session has one at a time
            ctx = {**ctx, "runId": self._current.get(hooks.text(ctx.get("sessionKey")))}
        if role == "user":
            self._record("message.in", "success", self._common(event, ctx) | {"content": self._content(hooks.text(message.get("content")))})
        elif role == "assistant":
            self._decision(event, ctx, message)
        # a toolResult is on record as tool.result

    def _decision(self, event: dict[str, Any], ctx: dict[str, Any], message: dict[str, Any]) -> None:
        calls = [hooks.some({"id": p.get("id"), "tool": p.get("name")}) for p in hooks.parts(message) if p.get("type") == "toolCall"]
        stop = message.get("stopReason")
        usage = hooks.group(message.get("usage"))
        fields = self._common(event, ctx) | {
            "content": self._content(hooks.text(message.get("content"))),
            "model": hooks.some({"via": "hook", "provider": message.get("provider"), "answered": message.get("model"), "response": message.get("responseId")}),
            "decision": hooks.some({"stop": _STOP.get(str(stop), stop), "calls": calls or None}),
            "usage": hooks.some({"input": usage.get("input"), "output": usage.get("output"),
                            "cache_read": usage.get("cacheRead"), "cache_write": usage.get("cacheWrite")}),
            "error": hooks.error(message.get("errorMessage")),
        }  # fmt: skip
        decided = self._record("model.decision", "failure" if stop in ("error", "aborted") else "success", fields)
        for call in calls:
            self._remember(f"decision:{(call or {}).get('id')}", decided)

    # -- messages ------------------------------------------------------------------------------------------------

    def _message_in(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("message.in", "success", self._common(event, ctx) | {
            "actor": hooks.some({"type": "user", "id": event.get("senderId") or event.get("from"), "surface": ctx.get("channelId")}),
            "content": self._content(hooks.text(event.get("content")))})  # fmt: skip

    def _message_sending(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._message_out("attempt", event, ctx)

    def _message_sent(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._message_out("failure" if event.get("success") is False or event.get("error") else "success", event, ctx)

    def _message_out(self, outcome: str, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        payload = hooks.group(event.get("payload"))
        self._record("message.out", outcome, self._common(event, ctx) | {
            "content": self._content(hooks.text(event.get("content") or payload.get("text"))),
            "target": hooks.some({"type": "channel", "id": event.get("to") or ctx.get("conversationId") or ctx.get("channelId")}),
            "error": hooks.error(event.get("error"))})  # fmt: skip

    # -- the gateway ---------------------------------------------------------------------------------------------

    def _gateway_start(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("system.start", "success", {"health": hooks.some({"component": "openclaw", "port": event.get("port") or ctx.get("port")})})

    def _gateway_stop(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("system.stop", "success", {"health": hooks.some({"component": "openclaw", "reason": event.get("reason")})})

    def _heartbeat(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("system.heartbeat", "success", {"health": {"component": "openclaw", "plugin": "loaded"} | event})

    def _dropped(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        counts = hooks.group(event.get("counts"))
        number = sum(n for n in counts.values() if isinstance(n, int)) or event.get("count") or event.get("droppedCount")
        self._record("system.drop", "failure", {
            "dropped": hooks.some({"n": number, "reason": "queue-full", "lane": "openclaw" if self._hook.startswith("diag:") else "plugin",
                              "hooks": " ".join(f"{hook}:{n}" for hook, n in counts.items())}),
            "error": hooks.error(event.get("error"))})  # fmt: skip

    def _internal(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """Events that OpenClaw names with colons: commands of the user, session settings, a restart."""
        name = self._hook.removeprefix("internal:")
        if name.startswith("command:"):
            self._record("message.in", "success", self._common(event, ctx) | {"content": self._content("/" + name.removeprefix("command:"))})
        elif name.startswith("gateway:"):
            self._record("system.stop", "attempt", {"health": {"component": "openclaw", "reason": name}})
        else:
            self._change("success", {"what": "config", "name": name, "after": hooks.text(event.get("context"))}, event, ctx)

    def _operator(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """A call of the gateway's control interface."""
        outcome = {"ok": "success", "success": "success", "completed": "success", "error": "failure"}.get(hooks.text(event.get("outcome")), "unknown")
        self._change(outcome, {"what": "config", "name": event.get("method"), "by": "operator"}, event, ctx)

    def _pairing(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("auth.login", "attempt", self._common(event, ctx) | {
            "actor": hooks.some({"type": "user", "id": event.get("senderId"), "auth": "none", "surface": event.get("channel") or ctx.get("channelId")})})  # fmt: skip

    def _compaction_attempt(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._change("attempt", {"what": "prompt", "name": "compaction", "before": event.get("messageCount")}, event, ctx)

    def _compaction(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._change("success", {"what": "prompt", "name": "compaction", "after": event.get("compactedCount")}, event, ctx)

    def _failover(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._change("success", {"what": "model", "name": "failover", "before": hooks.text(event.get("from") or event.get("fromModel")),
                                 "after": hooks.text(event.get("to") or event.get("toModel")), "by": hooks.text(event.get("reason"))}, event, ctx)  # fmt: skip

    def _blocked(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("policy.decision", "denied", self._common(event, ctx) | {
            "tool": self._tool(event, ctx),
            "policy": hooks.some({"engine": "openclaw", "verdict": "deny", "rule": event.get("deniedReason") or event.get("code"),
                             "reason": event.get("reason")})})  # fmt: skip

    def _approval_suppressed(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("approval.result", "unknown", self._common(event, ctx) | {
            "approval": hooks.some({"id": event.get("approvalId"), "state": "suppressed"}), "error": hooks.error(event.get("reason"))})  # fmt: skip

    def _install(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._change("attempt", {"what": event.get("targetType") or "plugin", "name": event.get("targetName")}, event, ctx)

    def _cron(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        job = hooks.group(event.get("job"))
        self._change("success", {"what": "schedule", "name": job.get("name") or event.get("jobId") or "all",
                                 "after": event.get("action") or event.get("reason")}, event, ctx)

    def _skill(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._change("success", {"what": "skill", "name": event.get("name"), "before": hooks.text(event.get("before")),
                                 "after": hooks.text(event.get("after"))}, event, ctx)  # fmt: skip

    def _change(self, outcome: str, change: dict[str, Any], event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("config.change", outcome, self._common(event, ctx) | {"change": hooks.some(change)})

    def _security(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        action = hooks.text(event.get("action"))
        outcome = {"succeeded": "success", "success": "success", "allowed": "success", "denied": "denied", "failed": "failure",
                   "failure": "failure"}.get(hooks.text(event.get("outcome")), "unknown")  # fmt: skip
        policy = hooks.group(event.get("policy"))
        fields = self._common(event, ctx) | {"policy": hooks.some({"engine": "openclaw", "rule": action, "verdict": policy.get("decision"),
                                                              "reason": policy.get("reason")})}  # fmt: skip
        if action.startswith("exec.approval."):
            state = action.rpartition(".")[2]
            kind = "approval.request" if state == "requested" else "approval.result"
            outcome = {"requested": "attempt", "approved": "success", "denied": "denied"}.get(state, outcome)
            self._record(kind, outcome, fields | {"approval": {"state": state}})
        elif action.startswith(("gateway.auth.", "device.")):
            self._record("auth.login", outcome, fields | {"actor": hooks.some({"type": "user", "auth": "verified" if outcome == "success" else "none"})})
        else:
            self._record("policy.decision", outcome, fields)

    # -- shared --------------------------------------------------------------------------------------------------

    def _record(self, kind: str, outcome: str, fields: dict[str, Any]) -> str:
        fields = self._watch.see(kind, outcome, fields)
        receipt = self._recorder.record(kind, outcome, time=self._time, **fields)
        self._watch.recorded(kind, fields, receipt.id)
        self._recorded.append(Recorded(kind, fields, receipt))
        return receipt.id

    def _common(self, event: dict[str, Any], ctx: dict[str, Any]) -> dict[str, Any]:
        trace = hooks.group(ctx.get("trace") or event.get("trace"))
        return {
            "session": hooks.text(ctx.get("sessionKey") or event.get("sessionKey")) or None,
            "run": hooks.text(ctx.get("runId") or event.get("runId")) or None,
            "trace": hooks.some({"id": trace.get("traceId"), "span": trace.get("spanId"), "parent": trace.get("parentSpanId")}),
        }

    def _content(self, text: str) -> dict[str, Any]:
        found = Found()
        redacted = self._recorder.redactor.string(text, found)
        return ev.content(redacted, len(text.encode("utf-8", "replace")), **found.fields(), **marks(redacted))

    def _step(self, run: object) -> int | None:
        if not run:
            return None
        self._steps[str(run)] = self._steps.get(str(run), 0) + 1
        _bound(self._steps)
        return self._steps[str(run)]

    def _remember(self, key: str, ident: str) -> None:
        self._attempts[key] = ident
        _bound(self._attempts)


def _bound(memory: OrderedDict[str, Any]) -> None:
    while len(memory) > _REMEMBER:
        memory.popitem(last=False)
