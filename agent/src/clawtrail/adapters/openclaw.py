"""OpenClaw's plugin hooks → events. The plugin only passes on; what a hook means is decided here.

A record is `{"hook": name, "at": RFC 3339, "event": {…}, "ctx": {…}}`, the two arguments that OpenClaw gives a hook.
An action becomes two events, the attempt before and the outcome after, joined by `caused_by`.
"""

from __future__ import annotations

from typing import Any, Callable

from .. import event as ev
from ..errors import Denied, EventError
from ..recorder import Recorder
from ..redact import Found
from ..rules import Hit, Rules, flag, verdict, wants
from ..runs import Runs
from ..watch import Watch
from . import hooks
from .desk import Call, Memory, Recorded
from .gateway import Gateway

__all__ = ["OpenClaw", "Recorded"]

_SOURCES = {"user", "cron", "heartbeat", "webhook", "message", "agent", "system"}
_KINDS = {"code_mode_exec": "code", "code": "code", "plugin": "plugin", "mcp": "mcp"}
_SHOWN_MAX = 300  #: characters of a call that a person is asked about
_STOP = {"stop": "end", "toolUse": "tool", "length": "length", "error": "error", "aborted": "cancel"}


class OpenClaw(Gateway):
    """Turns hook records into events of one recorder, and tells `runs` what is open. Not thread-safe.

    Args:
        watch: adds what a session's history tells.
        rules: which tool calls are flagged, and which are attempts at a credential; the packaged ones by default.
    """

    def __init__(self, recorder: Recorder, runs: Runs | None = None, watch: Watch | None = None, rules: Rules | None = None) -> None:
        super().__init__(recorder, runs, watch)
        self._rules = Rules.load() if rules is None else rules
        self._credentials: Memory[list[tuple[str, dict[str, Any]]]] = Memory()
        self._steps: Memory[int] = Memory()
        self._runs: Memory[dict[str, Any] | None] = Memory()  # run: its actor
        self._children: Memory[tuple[str, str | None]] = Memory()  # session of a subagent: event of its start, run of who started it
        self._inputs: Memory[dict[str, Any]] = Memory()
        self._definitions = self._kept("offers")  # of a tool, by the offer that it was part of
        self._defs: Memory[dict[str, str]] = Memory()  # run: each tool's contract
        self._failed: Memory[dict[str, Any]] = Memory()  # run: why its last model call came to nothing
        self._took: Memory[object] = Memory()  # run: milliseconds of its last model call
        self._hosts: Memory[str] = Memory()  # session: where its commands run
        self._hooks: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
            "before_agent_run": self._run_start,
            "before_tool_call": self._tool_call,
            "after_tool_call": self._tool_result,
            "resolve_exec_env": self._exec_host,
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
            "before_reset": self._reset,
            "subagent_spawned": self._subagent_start,
            "subagent_ended": self._subagent_end,
            "before_install": self._install,
            "gateway_start": self._gateway_start,
            "gateway_stop": self._gateway_stop,
            "heartbeat": self._heartbeat,
            "cron_changed": self._cron,
            "cron_reconciled": self._cron,
            "skill_changed": self._skill,
            "skill_proposal_changed": self._skill_proposal,
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
            "diag:tool.loop": self._tool_loop,
            "diag:webhook.received": self._webhook,
            "diag:webhook.error": self._webhook,
            "state:approval": self._approval,
            "approval.resolved": self._approval_resolved,
            "state:config-audit": self._config_audit,
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
        common = self._common(event, ctx)
        session, run = common["session"], common["run"]
        surface = hooks.text(ctx.get("channel") or ctx.get("messageProvider")) or None
        sort = "system" if ctx.get("trigger") in ("cron", "heartbeat") and not event.get("senderId") else "user"
        actor = hooks.some({"type": sort, "id": event.get("senderId"), "owner": event.get("senderIsOwner"), "surface": surface,
                            "tenant": event.get("accountId")}) or {}  # fmt: skip
        if actor.get("id"):
            actor["auth"] = "asserted" if surface == "webchat" else "verified"
        trigger, caused_by, actor = self._started_by(run, session, event, ctx, actor)
        fields = common | {
            "caused_by": caused_by,
            "actor": actor or None,
            "trigger": hooks.some(trigger),
            "content": hooks.without_excerpt(self._content(hooks.text(event.get("prompt")))),
            "model": hooks.some({"provider": ctx.get("modelProviderId"), "requested": ctx.get("modelId"),
                            "system": hooks.digest(event.get("systemPrompt"))}),
            "store": self._bootstrapped(session),
        }  # fmt: skip
        self._attempts.put(f"run:{run}", self._record("run.start", "attempt", fields))
        self._runs.put(run, actor or None)
        self._current.put(session, run or "")
        if run:
            self._open.started(run, session, hooks.group(fields["trace"]).get("id"))

    def _started_by(
        self, run: object, session: object, event: dict[str, Any], ctx: dict[str, Any], actor: dict[str, Any]
    ) -> tuple[dict[str, Any], str | None, dict[str, Any]]:
        """What a run's start names as its trigger, its cause and its actor. A subagent works for whoever its parent works for."""
        child = self._children.get(str(session))
        if isinstance(run, str) and run.startswith("announce:"):
            return {"type": "agent", "ref": run.rpartition(":")[2]}, self._attempts.get(f"ended:{run.rpartition(':')[2]}"), {"type": "agent"}
        if child:
            asked_by = hooks.group(self._runs.get(str(child[1])))
            root = asked_by.get("on_behalf_of") or asked_by.get("id")
            return {"type": "agent", "ref": child[1]}, child[0], {k: v for k, v in actor.items() if k != "id"} | {"type": "agent"} | ({"on_behalf_of": root} if root else {})
        trigger = ctx.get("trigger")
        started = {"type": trigger if isinstance(trigger, str) and trigger in _SOURCES else "system", "ref": ctx.get("jobId") or _job(session) or event.get("messageId")}
        return started, None, actor

    def _run_completed(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """The host's own diagnostics, which no hook gates: a run that it knows and we do not went past the gate."""
        if not self._open.knows(str(event.get("runId"))):
            self._record("policy.decision", "unknown", self._common(event, ctx) | {
                "policy": {"engine": "clawtrail", "rule": "run-gate", "verdict": "none", "reason": "the run ended and its start was never recorded"},
                "flag": {"rule": "trail.bypass", "severity": "critical", "technique": "T1562.001"}})  # fmt: skip

    def _run_end(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        fields = self._common(event, ctx)
        run, session = fields["run"], str(fields["session"])
        fields |= {
            "caused_by": self._attempts.pop(f"run:{run}", None),
            "usage": hooks.some({"steps": self._steps.pop(str(run), None)}),
            "error": hooks.error(event.get("error")),
            "duration_us": hooks.micros(event.get("durationMs")),
        }
        if self._current.get(session) == run:  # what is written from here on is of another run
            self._current.pop(session, None)
        self._open.ended(str(run))
        success, failed = event.get("success"), self._failed.pop(str(run), None)
        fields["error"] = fields["error"] or failed
        outcome = "failure" if success is False or failed else "success" if success is True else "unknown"  # the host calls it a success all the same
        self._attempts.put(f"ended:{run}", self._record("run.end", outcome, fields))

    def _subagent_start(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        child = event.get("childSessionKey") or ctx.get("childSessionKey")
        parent = hooks.text(ctx.get("requesterSessionKey") or ctx.get("sessionKey"))
        run = self._current.get(parent)
        fields = self._common({}, {"sessionKey": parent, "runId": run}) | {
            "peer": hooks.some({"agent": event.get("agentId"), "session": child, "run": event.get("runId"), "role": event.get("label") or "child", "proof": "host"}),
            "model": hooks.some({"provider": event.get("resolvedProvider"), "requested": event.get("resolvedModel")}),
        }  # fmt: skip
        started = self._record("subagent.start", "attempt", fields)
        self._attempts.put(f"subagent:{child}", started)
        self._children.put(child, (started, run))

    def _subagent_end(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        child = event.get("targetSessionKey") or ctx.get("childSessionKey")
        if event.get("targetKind") == "acp" and f"subagent:{child}" not in self._attempts:
            return  # every reset of a session reports the end of what never began
        outcome = {"ok": "success", "error": "failure", "timeout": "failure", "killed": "denied"}.get(str(event.get("outcome")), "unknown")
        self._record("subagent.end", outcome, self._common({}, {"sessionKey": ctx.get("requesterSessionKey")}) | {
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
        fields = common | {
            "step": self._step(common.get("run")),
            "caused_by": self._decided(tool, common),
            "actor": hooks.some({"type": self._sort_of_actor(common["run"], requester), "id": requester.get("senderId"),
                                 "owner": requester.get("senderIsOwner"), "role": hooks.words(requester.get("roleIds")),
                                 "surface": requester.get("channel"), "tenant": requester.get("accountId")}),
            "tool": tool,
            "params": params,
            "content": hooks.without_excerpt(self._parameters(params)),
            "target": hooks.target(event, params),
        }  # fmt: skip
        paths, standing = event.get("derivedPaths"), self._watch.standing(common["session"], common["run"], fields["actor"])
        hits = self._rules.hits(
            hooks.text(tool.get("name")), params, paths=[p for p in paths if isinstance(p, str)] if isinstance(paths, list) else (),
            agent=hooks.text(ctx.get("agentId")), surface=hooks.text(requester.get("channel")), tainted=standing.tainted,
            owner=standing.owner,
        )  # fmt: skip
        fields["flag"] = flag(hits)
        if forbidden := wants(hits, "deny") or wants(hits, "approve"):
            fields["policy"] = verdict(forbidden)
        attempt = self._record("tool.call", "attempt", fields)
        call_id = str(tool.get("call_id"))
        self._attempts.put(f"call:{call_id}", attempt)
        call = Call(attempt, tool["name"], call_id, common["session"], common["run"], common["trace"], fields["content"]["sha256"], hooks.mark(params))
        self._calls.put(call_id, call)
        if common["run"]:  # POST /tools/invoke has no run, and its end is told by no hook
            self._open.tool_started(call_id, tool["name"])
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
            self._credentials.put(call_id, [*self._credentials.get(call_id, []), (asked, access)])
        if forbidden:
            self._forbid(forbidden, call_id, common | {"caused_by": attempt, "tool": tool}, fields | {"params": params})

    def _sort_of_actor(self, run: object, requester: dict[str, Any]) -> str | None:
        """What its run says; else a person, where the host names one. Who calls `POST /tools/invoke` is not told."""
        return hooks.group(self._runs.get(str(run))).get("type") or ("user" if requester.get("senderId") else None)

    def _forbid(self, hit: Hit, call_id: str, fields: dict[str, Any], call: dict[str, Any]) -> None:
        """Raises Denied, with all that is on record of the call."""
        fields |= {"policy": verdict(hit), "flag": flag([hit])}
        denied = Denied(hit.rule.id, hit.rule.why, hit.rule.action == "approve", self._shown(call), hit.severity)
        if denied.approve:
            asked = {"params": call["params"], "content": call["content"], "approval": {"state": "pending", "scope": call["content"]["sha256"][:16]}}
            self._held.put(call_id, (self._record("approval.request", "attempt", fields | asked), hit.rule.id))
        else:
            self._record("policy.decision", "denied", fields)
        denied.recorded = self._recorded
        raise denied

    def _shown(self, call: dict[str, Any]) -> str:
        """What a person who is asked reads of a call: its tool and parameters, without secrets."""
        params, command = call["params"], call["params"].get("command")
        said = command if isinstance(command, str) and len(params) == 1 else ev.dumps(ev.clean(params))
        return f"{call['tool']['name']}: {self._recorder.redactor.string(said, Found())}"[:_SHOWN_MAX]

    def _tool_result(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        result = hooks.group(event.get("result"))
        details = hooks.group(result.get("details"))
        tool, error = self._tool(event, ctx), event.get("error")
        call_id = str(tool.get("call_id"))
        self._open.tool_ended(call_id)
        if details.get("mcpServer"):
            tool["server"] = details["mcpServer"]
        common, call = self._common(event, ctx), self._calls.pop(call_id, None)
        outcome = hooks.tool_outcome(error, result, details)
        fields = common | {
            "step": self._steps.get(str(common["run"])),
            "trace": common["trace"] or (call.trace and hooks.some({"id": call.trace.get("id")}) if call else None),
            "caused_by": call.event if call else self._decided(tool, common),  # bad arguments: decided, and never called
            "tool": tool,
            "content": self._content(hooks.text(result.get("content"))) if result else None,
            "policy": self._refusal(error, call_id) if outcome == "denied" else None,
            "error": hooks.tool_error(error) or hooks.exit_error(details),
            "duration_us": hooks.micros(event.get("durationMs")),
        }
        if call:
            fields |= self._rewritten(call, event)
        self._record("tool.result", outcome, fields)
        for asked, access in self._credentials.pop(call_id, []):
            self._record("credential.access", outcome, access | {"caused_by": asked})

    def _decided(self, tool: dict[str, Any], common: dict[str, Any]) -> str | None:
        return self._attempts.get(f"decision:{tool.get('call_id')}") or self._attempts.get(f"run:{common['run']}")

    def _rewritten(self, call: Call, event: dict[str, Any]) -> dict[str, Any]:
        """What ran is not what was asked for: another plugin changed the parameters after our gate had seen them."""
        ran = event.get("params")
        if not isinstance(ran, dict) or hooks.mark(ran) == call.mark:
            return {}
        after = self._content(ev.dumps(ev.clean(ran)))["sha256"]
        if after == call.params:
            return {}
        return {"params": ran, "policy": {"engine": "openclaw", "verdict": "modify", "rule": "before_tool_call", "before": call.params, "after": after}}

    def _refusal(self, error: object, call_id: str) -> dict[str, Any]:
        """Who said no. OpenClaw does not tell which plugin did; our own gate is known by its words, our rule by its question."""
        words = hooks.text(error)
        if call_id in self._held:
            return {"engine": "clawtrail", "rule": self._held[call_id][1], "verdict": "deny", "mode": "closed", "reason": words}
        ours = "no record, no action" in words.lower()
        return {"engine": "clawtrail" if ours else "openclaw", "rule": "gate" if ours else "before_tool_call",
                "verdict": "error" if ours else "deny", "mode": "closed", "reason": words}  # fmt: skip

    def _exec_host(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """Where the session's next command runs: `none` is the gateway's own container."""
        host = hooks.text(event.get("host"))
        self._hosts.put(ctx.get("sessionKey") or event.get("sessionKey"), {"gateway": "none"}.get(host, host))

    def _tool_loop(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        action = hooks.text(event.get("action"))
        self._record("policy.decision", "denied" if action == "block" else "success", self._common(event, ctx) | {
            "tool": self._tool(event, ctx),
            "policy": hooks.some({"engine": "openclaw", "rule": f"tool.loop {hooks.text(event.get('detector'))}".strip(),
                             "verdict": "block" if action == "block" else "flag", "reason": event.get("message")})})  # fmt: skip

    def _tool(self, event: dict[str, Any], ctx: dict[str, Any]) -> dict[str, Any]:
        name = hooks.text(event.get("toolName") or ctx.get("toolName")) or "unknown"
        definition = self._defs.get(str(event.get("runId") or ctx.get("runId")), {}).get(name)
        server, _, inner = name.partition("__")
        return hooks.some({
            "name": name, "type": "mcp" if inner else _KINDS.get(hooks.text(event.get("toolKind")), "builtin"),
            "call_id": event.get("toolCallId") or ctx.get("toolCallId"), "server": server if inner else None,
            "primitive": "tool" if inner else None, "def": definition, "sandbox": self._hosts.get(str(ctx.get("sessionKey"))) if name == "exec" else None}) or {}  # fmt: skip

    # -- the model -----------------------------------------------------------------------------------------------

    def _llm_input(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """Once per run: what every request of the run carries. Goes into their `model` group."""
        said = hooks.group(event.get("systemPrompt")).get("lines")
        self._watch.instructions(ctx.get("sessionKey") or event.get("sessionKey"), said if isinstance(said, list) else ())
        tools = hooks.group(event.get("tools"))
        names, defs = tools.get("names"), hooks.group(tools.get("defs"))
        self._inputs.put(event.get("runId") or ctx.get("runId"), {
            "system": hooks.digest(event.get("systemPrompt")), "prompt": self._content(hooks.text(event.get("prompt")))["sha256"],
            "tools": tools.get("sha256"), "tools_n": len(names) if isinstance(names, list) else None})  # fmt: skip
        self._defs.put(event.get("runId") or ctx.get("runId"), {str(name): hooks.text(hash) for name, hash in defs.items()})
        # A tool's text speaks of the other tools beside it and of what the run is for: only under the same offer is another text a change.
        offer = self._content(" ".join([*(hooks.text(ctx.get(k)) for k in ("agentId", "trigger", "channel")), *sorted(defs)]))["sha256"]
        for name, after in defs.items():
            before = self._definitions.get(f"{offer} {name}")
            self._definitions.put(f"{offer} {name}", hooks.text(after))
            if before and before != after:
                self._change("success", {"what": "tool", "name": name, "before": before, "after": after}, event, ctx)

    def _llm_output(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """The answer is on record as decisions; what counts here is who ran the model: another harness has no gate of ours."""
        harness = event.get("harnessId")
        if harness not in (None, "openclaw"):
            self._record("policy.decision", "unknown", self._common(event, ctx) | {
                "policy": {"engine": "clawtrail", "rule": "harness", "verdict": "none", "reason": f"the run used the harness {harness}"},
                "flag": {"rule": "trail.bypass", "severity": "high", "technique": "T1562.001"}})  # fmt: skip

    def _model_request(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        fields = self._common(event, ctx)
        budget = event.get("contextTokenBudget")
        fields["model"] = hooks.some({
            **(hooks.model(event) or {}), "params": {"context": str(budget)} if budget else None, **self._inputs.get(str(fields["run"]), {})})  # fmt: skip
        fields["caused_by"] = self._attempts.get(f"run:{fields['run']}")
        asked = self._record("model.request", "attempt", fields)
        self._attempts.put(f"model:{event.get('callId')}", asked)
        self._attempts.put(f"request:{fields['run']}", asked)
        if span := hooks.group(fields["trace"]).get("span"):
            self._open.called(span, fields["run"], fields["session"], asked)

    def _model_ended(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        asked = self._attempts.pop(f"model:{event.get('callId')}", None)
        if event.get("outcome") == "completed":
            self._took.put(event.get("runId") or ctx.get("runId"), event.get("durationMs"))
            return  # the decision itself comes with before_message_write
        self._open.came_to_nothing(hooks.text(hooks.group(ctx.get("trace")).get("spanId")))
        fields = self._common(event, ctx) | {
            "caused_by": asked, "model": hooks.model(event), "decision": {"stop": "error"},
            "error": hooks.some({"type": event.get("errorCategory") or "model", "code": event.get("failureKind")}),
            "duration_us": hooks.micros(event.get("durationMs")),
        }  # fmt: skip
        self._failed.put(fields["run"], fields["error"] or {"type": "model"})
        self._record("model.decision", "failure", fields)

    def _message_write(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        message = hooks.group(event.get("message"))
        role = message.get("role")
        if not ctx.get("runId"):  # this hook does not say which run it belongs to; a session has one at a time
            ctx = {**ctx, "runId": self._current.get(hooks.text(ctx.get("sessionKey")))}
        if role == "user":
            self._user_wrote(event, ctx, message)
        elif role == "assistant":
            self._decision(event, ctx, message)

    def _decision(self, event: dict[str, Any], ctx: dict[str, Any], message: dict[str, Any]) -> None:
        calls = [hooks.some({"id": p.get("id"), "tool": p.get("name")}) for p in hooks.parts(message) if p.get("type") == "toolCall"]
        stop = message.get("stopReason")
        usage = hooks.group(message.get("usage"))
        common = self._common(event, ctx)
        run = common["run"]
        if stop == "error" and not message.get("content") and str(run) in self._failed:
            return  # an empty answer to a call whose failure is on record
        if stop != "error":
            self._failed.pop(str(run), None)
        fields = common | {
            "caused_by": self._attempts.get(f"request:{run}"),
            "content": self._content(hooks.text(message.get("content"))),
            "model": hooks.some({"via": "hook", "provider": message.get("provider"), "answered": message.get("model"), "response": message.get("responseId")}),
            "decision": hooks.some({"stop": _STOP.get(str(stop), stop), "calls": calls or None}),
            "usage": hooks.some({"input": usage.get("input"), "output": usage.get("output"), "reasoning": usage.get("reasoning"),
                            "cache_read": usage.get("cacheRead"), "cache_write": usage.get("cacheWrite"), "cost_micro": _cost(usage)}),
            "error": hooks.error(message.get("errorMessage")),
            "duration_us": hooks.micros(self._took.pop(str(run), None)),
        }  # fmt: skip
        decided = self._record("model.decision", "failure" if stop in ("error", "aborted") else "success", fields)
        for call in calls:
            self._attempts.put(f"decision:{(call or {}).get('id')}", decided)

    def _blocked(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        tool = self._tool(event, ctx)
        self._record("policy.decision", "denied", self._common(event, ctx) | {
            "caused_by": self._attempts.get(f"call:{tool.get('call_id')}"), "tool": tool,
            "policy": hooks.some({"engine": "openclaw", "verdict": "deny", "rule": event.get("deniedReason") or event.get("code"),
                             "reason": event.get("reason")})})  # fmt: skip

    def _step(self, run: object) -> int | None:
        if not run:
            return None
        self._steps.put(run, self._steps.get(str(run), 0) + 1)
        return self._steps[str(run)]


def _cost(usage: dict[str, Any]) -> int | None:
    """Millionths of the currency; None for 0, which is what the host says of a model whose price it was not told."""
    total = hooks.group(usage.get("cost")).get("total")
    return round(total * 1e6) if isinstance(total, (int, float)) and 0 < total < 1e9 else None


def _job(session: object) -> str | None:
    """The job whose session this is: `agent:main:cron:JOB:run:…`."""
    _, cron, rest = str(session).partition(":cron:")
    return rest.partition(":")[0] if cron else None
