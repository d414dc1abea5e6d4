"""What the hooks tell of the gateway itself: messages, sessions, the people who steer it, and changes of what it is."""

from __future__ import annotations

from typing import Any

from .desk import Call, Desk, Memory
from . import hooks

_OUTCOMES = {"succeeded": "success", "success": "success", "allowed": "success", "ok": "success", "completed": "success",
             "denied": "denied", "failed": "failure", "failure": "failure", "error": "failure"}  # fmt: skip
_APPROVALS = {"requested": "attempt", "approved": "success", "denied": "denied"}
_DECIDED = {"allowed": "success", "denied": "denied", "expired": "denied", "cancelled": "denied"}
_LOCAL = ("webchat", "")  #: surfaces whose sender is what the client says of itself
_ABSENT = "none"


class Gateway(Desk):
    """Messages, sessions, authentication, approvals, configuration."""

    def __init__(self, *shared: Any) -> None:
        super().__init__(*shared)
        self._said: Memory[str] = Memory()  # session: SHA-256 of the message that came in last
        self._came: Memory[bool] = Memory()  # messages that a channel's hook has told, by session and the channel's id
        self._written: Memory[bool] = Memory()  # messages that are in a transcript, by OpenClaw's own key
        self._asked: Memory[str] = Memory()  # approval: id of the event that asks
        self._answered: Memory[str] = Memory()
        self._held: Memory[tuple[str, str]] = Memory()  # tool call that waits for a person: id of the event that asks, our rule
        self._files: Memory[list[tuple[str, int]]] = Memory()  # session: what its prompt was built from

    # -- messages ------------------------------------------------------------------------------------------------

    def _message_in(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        metadata, surface = hooks.group(event.get("metadata")), hooks.text(ctx.get("channelId") or event.get("channel"))
        media = hooks.attachments(event.get("media"))
        content = self._content(hooks.text(event.get("content"))) | media
        common = self._common(event, ctx)
        self._said.put(common["session"], content["sha256"])
        self._came.put(f"{common['session']} {hooks.text(event.get('messageId') or ctx.get('messageId'))}", True)
        self._record("message.in", "success", common | {"actor": _person(event, metadata, surface), "content": content})

    def _user_wrote(self, event: dict[str, Any], ctx: dict[str, Any], message: dict[str, Any]) -> None:
        """What entered the transcript: said already by the channel's hook, or, from HTTP and other agents, here alone."""
        content, common = self._content(hooks.text(message.get("content"))), self._common(event, ctx)
        key = message.get("idempotencyKey")
        if key and f"{common['session']} {key}" in self._written:
            return  # the same message is written when it is queued and when its run begins
        if key:
            self._written.put(f"{common['session']} {key}", True)
        transport = hooks.group(hooks.group(message.get("__openclaw")).get("transport"))
        told = f"{common['session']} {hooks.text(transport.get('messageId'))}" in self._came  # what the host adds, of a picture, is not the sender's
        if self._said.pop(str(common["session"]), None) != content["sha256"] and not (told and transport.get("messageId")):
            self._record("message.in", "success", common | {"content": content})

    def _message_sending(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        content, common = self._outgoing(event), self._common(event, ctx)
        key = f"out:{common['session']}:{content['sha256']}"
        if key not in self._attempts:  # two hooks stand before one message; a text that changed between them is a new one
            self._attempts.put(key, self._record("message.out", "attempt", common | {"content": content, "target": _addressee(event, ctx)}))

    def _message_sent(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        content, common = self._outgoing(event), self._common(event, ctx)
        self._record("message.out", "failure" if event.get("success") is False or event.get("error") else "success", common | {
            "caused_by": self._attempts.pop(f"out:{common['session']}:{content['sha256']}", None),
            "content": content, "target": _addressee(event, ctx), "error": hooks.error(event.get("error"))})  # fmt: skip

    def _outgoing(self, event: dict[str, Any]) -> dict[str, Any]:
        return self._content(hooks.text(event.get("content") or hooks.group(event.get("payload")).get("text")))

    def _webhook(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("message.in", "failure" if event.get("error") else "success", self._common(event, ctx) | {
            "actor": hooks.some({"type": "system", "id": event.get("chatId"), "surface": f"webhook:{hooks.text(event.get('channel'))}"}),
            "error": hooks.error(event.get("error"))})  # fmt: skip

    # -- sessions ------------------------------------------------------------------------------------------------

    def _session_start(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        resumed = event.get("resumedFrom")
        self._record("session.start", "success", self._common(event, ctx) | {"trigger": {"type": "system", "ref": resumed} if resumed else None})

    def _reset(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        common = self._common(event, ctx)
        health = hooks.some({"reason": event.get("reason") or "reset", "messages": hooks.group(event.get("messages")).get("count")})
        self._attempts.put(f"reset:{common['session']}", self._record("session.end", "attempt", common | {"health": health}))

    def _session_end(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        common = self._common(event, ctx)
        self._record("session.end", "success", common | {
            "caused_by": self._attempts.pop(f"reset:{common['session']}", None),
            "health": hooks.some({"reason": event.get("reason"), "messages": event.get("messageCount")}),
            "duration_us": hooks.micros(event.get("durationMs"))})  # fmt: skip

    def _compaction_attempt(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._attempts.put(f"compaction:{ctx.get('sessionKey')}", self._change(
            "attempt", {"what": "prompt", "name": "compaction", "before": hooks.count("messages", event.get("messageCount"))}, event, ctx))  # fmt: skip

    def _compaction(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        asked = self._attempts.pop(f"compaction:{ctx.get('sessionKey')}", None)
        self._change("success", {"what": "prompt", "name": "compaction", "after": hooks.count("messages", event.get("messageCount")),
                                 "spec": hooks.count("compacted", event.get("compactedCount"))}, event, ctx, caused_by=asked)  # fmt: skip

    # -- the gateway's life --------------------------------------------------------------------------------------

    def _gateway_start(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        known = hooks.group(event.get("inventory"))
        tools, servers = hooks.group(known.get("tools")), [s for s in hooks.listed(known.get("mcp")) if isinstance(s, dict)]
        config = hooks.digest(known.get("file"))
        self._record("system.start", "success", {"health": hooks.some({
            "component": "openclaw", "port": event.get("port") or ctx.get("port"), "hooks": event.get("hooks"), "config": config,
            "mcp": hooks.words(s.get("name") for s in servers), "plugins": hooks.words(known.get("plugins")), "profile": tools.get("profile"),
            "denied_tools": hooks.words(tools.get("deny")), "exec": tools.get("security"), "ask": tools.get("ask")})})  # fmt: skip
        if config:
            self._compare("config", "openclaw.json", config)
        self._compare_gates(hooks.group(known.get("gates")), tuple(f"agents.entries.{hooks.text(a)}." for a in hooks.listed(known.get("agents"))))
        self._compare("policy", "tools.deny", hooks.words(tools.get("deny")) or _ABSENT, first=False)
        for server in servers:
            self._compare("mcp", hooks.text(server.get("name")), hooks.text(server.get("sha256"))[:16], spec=server.get("spec"))
        for name in [k.removeprefix("mcp ") for k in self._versions if k.startswith("mcp ")]:
            if name not in {hooks.text(s.get("name")) for s in servers}:
                self._compare("mcp", name, _ABSENT)

    def _compare_gates(self, gates: dict[str, Any], agents: tuple[str, ...]) -> None:
        """What stands between the agents and the host: what it is at first is no change, and one that is gone is off."""
        now = {f"{'sandbox' if name.endswith('sandbox.mode') else 'approval'} {name}": hooks.text(value) for name, value in gates.items()}
        for key in [k for k in self._versions if k.startswith(("sandbox ", "approval "))]:
            name = key.partition(" ")[2]
            if name.startswith("agents.entries.") and not name.startswith(agents):
                self._versions.drop(key)  # with its agent
            else:
                now.setdefault(key, _ABSENT)
        for key, value in now.items():
            what, _, name = key.partition(" ")
            self._compare(what, name, value, first=False)

    def _gateway_stop(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("system.stop", "success", {"health": hooks.some({"component": "openclaw", "reason": event.get("reason")})})

    def _heartbeat(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        told = {k: v for k, v in event.items() if k not in ("hooksSeen", "hooksMissing", "stateError")}
        self._record("system.heartbeat", "success", {"health": {"component": "openclaw", "plugin": "loaded"} | told | (hooks.some({
            "hooks_seen": event.get("hooksSeen"), "hooks_missing": event.get("hooksMissing"), "state_error": event.get("stateError")}) or {})})  # fmt: skip

    def _dropped(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        counts = hooks.group(event.get("counts"))
        number = sum(n for n in counts.values() if isinstance(n, int)) or event.get("count") or event.get("droppedCount")
        self._record("system.drop", "failure", {
            "dropped": hooks.some({"n": number, "reason": "queue-full", "lane": "openclaw" if self._hook.startswith("diag:") else "plugin",
                              "hooks": " ".join(f"{hook}:{n}" for hook, n in counts.items())}),
            "error": hooks.error(event.get("error"))})  # fmt: skip

    def _internal(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """Events that OpenClaw names with colons: commands of the user, session settings, a restart."""
        name, context = self._hook.removeprefix("internal:"), hooks.group(event.get("context"))
        if name == "agent:bootstrap":
            self._bootstrap(event, context)
        elif name == "message:transcribed":
            self._message_in({**context, "content": context.get("transcript"), "sessionKey": event.get("sessionKey")}, context)
        elif name == "session:auto-reset":
            self._reset({**event, "reason": context.get("reason")}, ctx)
        elif name.startswith("command:"):
            actor = hooks.some({"type": "user", "id": context.get("senderId"), "surface": context.get("commandSource")})
            self._record("message.in", "success", self._common(event, ctx) | {"actor": actor, "content": self._content("/" + name.removeprefix("command:"))})
        elif name.startswith("gateway:"):
            self._record("system.stop", "attempt", {"health": hooks.some({"component": "openclaw", "reason": f"{name} {hooks.text(context.get('reason'))}".strip()})})
        else:
            self._change("success", {"what": "config", "name": name, "after": hooks.text(context.get("patch") or context)}, event, ctx)

    def _bootstrap(self, event: dict[str, Any], context: dict[str, Any]) -> None:
        """The files that the prompt is built from. Their hashes are keyed: a short file could be guessed from a plain one."""
        found = []
        for file in hooks.listed(context.get("files")):
            file = hooks.group(file)
            path, digest = hooks.text(file.get("path") or file.get("name")), hooks.digest(file)
            if digest or f"prompt {path}" in self._versions:
                self._compare("prompt", path, self._recorder.redactor.fingerprint(digest) if digest else _ABSENT)
            if digest:
                found.append((hooks.text(file.get("name")), size if isinstance(size := file.get("bytes"), int) else 0))
        if found:
            self._files.put(event.get("sessionKey"), found)

    def _bootstrapped(self, session: object) -> dict[str, Any] | None:
        files = self._files.pop(str(session), [])
        if not files:
            return None
        return {"kind": "memory", "op": "read", "name": "bootstrap", "item": hooks.words(n for n, _ in files), "n": len(files), "size": sum(s for _, s in files)}

    # -- who steers it -------------------------------------------------------------------------------------------

    def _operator(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """A call of the gateway's control interface."""
        outcome = _OUTCOMES.get(hooks.text(event.get("outcome")), "unknown")
        self._change(outcome, {"what": "config", "name": event.get("method"), "by": "operator"}, event, ctx, duration_us=hooks.micros(event.get("durationMs")))

    def _pairing(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        metadata, surface = hooks.group(event.get("metadata")), hooks.text(event.get("channel") or ctx.get("channelId"))
        actor = (_person(event, metadata, surface) or {"type": "user"}) | {"auth": "none"}
        self._record("auth.login", "attempt", self._common(event, ctx) | {"actor": actor, "policy": {"engine": "openclaw", "rule": "channel.pairing", "verdict": "none"}})

    def _security(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        action, policy, who = hooks.text(event.get("action")), hooks.group(event.get("policy")), hooks.group(event.get("actor"))
        if action.startswith("exec.approval."):
            return self._approval_told(action.rpartition(".")[2], event, ctx)
        if action == "tool.execution.blocked":
            return  # told with the call's id by the diagnostic of that name
        outcome = _OUTCOMES.get(hooks.text(event.get("outcome")), "unknown")
        device = action.startswith("device.")
        if device and action.endswith((".rejected", ".removed", ".revoked")):
            outcome = "denied"  # to the device; that the operator could say so is the success
        fields = self._common(event, ctx) | {
            "policy": hooks.some({"engine": "openclaw", "rule": action, "verdict": policy.get("decision"), "reason": policy.get("reason") or event.get("reason")}),
        }  # fmt: skip
        if action.startswith(("gateway.auth.", "device.")):
            target = hooks.group(event.get("target"))
            identity = target.get("idHash") if device else who.get("deviceIdHash") or who.get("idHash")
            answer = hooks.some({"state": action.rpartition(".")[2], "by": who.get("role") or who.get("kind")}) if device else None
            self._record("auth.login", outcome, fields | {"approval": answer, "actor": hooks.some({
                "type": "user", "id": identity, "role": None if device else who.get("role"), "surface": target.get("name") or target.get("kind"),
                "auth": "verified" if outcome == "success" else "none"})})  # fmt: skip
        else:
            self._record("policy.decision", outcome, fields)

    # -- approvals -----------------------------------------------------------------------------------------------

    def _approval_told(self, state: str, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """The gateway's diagnostic names neither the call nor who answered: the row of its database does, where it could be read."""
        rows = [row for row in hooks.listed(event.get("approvals")) if isinstance(row, dict)]
        for row in rows:
            self._approval({**row, "trace": event.get("trace")}, ctx)
        call = self._call_of(self._common(event, ctx))
        if any(_matches(row, state) for row in rows) or call and f"{call.call_id}:{state}" in self._answered:
            return
        outcome, policy = _APPROVALS.get(state, "unknown"), hooks.group(event.get("policy"))
        fields = self._common(event, ctx) | self._of_call(call) | {
            "approval": {"state": state},
            "policy": hooks.some({"engine": "openclaw", "rule": "exec.approval", "verdict": policy.get("decision"), "reason": policy.get("reason")}),
        }  # fmt: skip
        self._record("approval.request" if state == "requested" else "approval.result", outcome, fields)

    def _approval(self, row: dict[str, Any], ctx: dict[str, Any]) -> None:
        """One row of `operator_approvals`, as it is now: a request, and its answer once there is one."""
        ident, status = hooks.text(row.get("approval_id")), hooks.text(row.get("status"))
        presentation, call_id = hooks.group(row.get("presentation")), hooks.text(row.get("source_tool_call_id"))
        command = hooks.text(presentation.get("commandText"))
        content = self._content(command)
        common = self._common({"sessionKey": row.get("source_session_key"), "runId": row.get("source_run_id"), "trace": row.get("trace")}, {})
        call = self._calls.get(call_id)
        common |= {"trace": common["trace"] or (call.trace if call else None),
                   "tool": hooks.some({"name": row.get("source_tool_name") or (call.name if call else row.get("kind")), "call_id": call_id})}  # fmt: skip
        approval = {"id": ident, "scope": content["sha256"][:16]}
        asks, rule = self._held.get(call_id, ("", "")) if row.get("kind") == "plugin" else ("", "")
        if asks:
            self._asked.put(ident, asks)
        if ident not in self._asked:
            self._asked.put(ident, self._record("approval.request", "attempt", common | {
                "caused_by": call.event if call else None, "approval": approval | {"state": "pending"},
                "params": {"command": command} if command else None, "content": hooks.without_excerpt(content)}))  # fmt: skip
            self._answered.put(f"{call_id}:requested", ident)
        if status in _DECIDED and f"{ident}:{status}" not in self._answered:
            self._answered.put(f"{ident}:{status}", ident)
            self._answered.put(f"{call_id}:{'approved' if status == 'allowed' else 'denied'}", ident)
            self._answered.put(f"{call_id}:resolved", ident)
            kind, by = hooks.text(row.get("resolver_kind")), row.get("resolver_id")
            self._record("approval.result", _DECIDED[status], common | {
                "caused_by": self._asked.get(ident),
                "actor": hooks.some({"type": "user" if kind in ("device", "channel") else "system", "id": by}),
                "policy": hooks.some({"engine": "clawtrail" if rule else "openclaw", "rule": rule or f"{hooks.text(row.get('kind')) or 'exec'}.approval",
                                      "verdict": "allow" if status == "allowed" else "deny",
                                      "reason": row.get("terminal_reason")}),
                "approval": approval | (hooks.some({
                    "state": row.get("decision") or status, "by": by, "by_auth": "verified" if kind in ("device", "channel") else "none",
                    "waited_ms": hooks.between(row.get("created_at_ms"), row.get("resolved_at_ms"))}) or {})})  # fmt: skip

    def _approval_resolved(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """What became of a question that one of our rules asked: the gateway's row says who answered, where there is one."""
        for row in hooks.listed(event.get("approvals")):
            self._approval(hooks.group(row), ctx)
        call_id = hooks.text(event.get("toolCallId"))
        asks, rule = self._held.get(call_id, (None, hooks.text(event.get("rule"))))
        if f"{call_id}:resolved" in self._answered:
            return
        self._answered.put(f"{call_id}:resolved", call_id)
        resolution, call = hooks.text(event.get("resolution")) or "unknown", self._calls.get(call_id)
        allowed = resolution.startswith("allow-")
        self._record("approval.result", "success" if allowed else "denied", self._common(event, ctx) | {
            "caused_by": asks, "tool": hooks.some({"name": event.get("toolName") or (call.name if call else "unknown"), "call_id": call_id}),
            "policy": hooks.some({"engine": "clawtrail", "rule": rule, "verdict": "allow" if allowed else "deny", "reason": resolution}),
            "approval": hooks.some({"state": resolution, "scope": call.params[:16] if call else None})})  # fmt: skip

    def _approval_suppressed(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._record("approval.result", "unknown", self._common(event, ctx) | {
            "caused_by": self._asked.get(hooks.text(event.get("approvalId"))),
            "approval": hooks.some({"id": event.get("approvalId"), "state": "suppressed"}), "error": hooks.error(event.get("reason"))})  # fmt: skip

    def _call_of(self, common: dict[str, Any]) -> Call | None:
        """The newest open call of the trace: what is asked about now is what was called last."""
        trace = hooks.group(common["trace"]).get("id")
        return next((c for c in reversed(self._calls.values()) if c.trace and c.trace.get("id") == trace), None) if trace else None

    def _of_call(self, call: Call | None) -> dict[str, Any]:
        if call is None:
            return {}
        return {"session": call.session, "run": call.run, "caused_by": call.event, "tool": {"name": call.name, "call_id": call.call_id}}

    # -- changes -------------------------------------------------------------------------------------------------

    def _config_audit(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """OpenClaw's own account of who wrote its configuration."""
        result = hooks.text(event.get("result"))
        outcome = "denied" if result == "rejected" else "failure" if result == "failed" else "success"
        code = event.get("errorCode")
        self._change(outcome, {
            "what": "config", "name": event.get("configPath"), "before": event.get("previousHash"), "after": event.get("nextHash"),
            "by": event.get("origin") or event.get("detectedBy") or event.get("event"), "spec": hooks.words(event.get("changedPaths"))}, event, ctx,
            params=hooks.some({"argv": hooks.words(event.get("argv")), "cwd": event.get("cwd"), "pid": event.get("pid"), "event": event.get("event")}),
            error=hooks.some({"type": "config", "code": code, "message": event.get("errorMessage")}) if code else None)  # fmt: skip

    def _failover(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._change("success", {"what": "model", "name": "failover",
            "before": hooks.model_name(event, "from"), "after": hooks.model_name(event, "to"), "by": hooks.text(event.get("reason"))}, event, ctx)  # fmt: skip

    def _install(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        self._change("attempt", {"what": event.get("targetType") or "plugin", "name": event.get("targetName"),
                                 "spec": hooks.text(event.get("sourcePath") or event.get("request"))}, event, ctx)  # fmt: skip

    def _cron(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        job, action = hooks.group(event.get("job")), hooks.text(event.get("action"))
        schedule, job_id = hooks.group(job.get("schedule")), event.get("jobId")
        ends = "once" if schedule.get("kind") == "at" else "never" if schedule else None
        outcome = {"error": "failure", "skipped": "denied"}.get(hooks.text(event.get("status")), "success")
        self._change(outcome, {
            "what": "schedule", "name": job.get("name") or job_id or "all", "after": action or event.get("reason"),
            "spec": hooks.words(f"{k}={hooks.text(v)}" for k, v in schedule.items()), "ends": ends}, event, ctx,
            trigger={"type": "cron", "ref": job_id} if job_id else None, error=hooks.error(event.get("error")),
            duration_us=hooks.micros(event.get("durationMs")))  # fmt: skip

    def _skill(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """A live skill was created, updated or removed. Before and after are the hashes of its whole folder."""
        before, after = hooks.group(event.get("before")), hooks.group(event.get("after"))
        by = event.get("source")
        if by == "workshop" and any(tool.tool == "skill_workshop" for tool in self._open.open_tools()):
            by = "agent"  # else a person, through the control interface
        self._change("success", {
            "what": "skill", "name": after.get("name") or before.get("name") or event.get("name"),
            "before": hooks.revision(before) or _ABSENT, "after": hooks.revision(after) or _ABSENT,
            "by": by, "spec": after.get("skillFile") or before.get("skillFile")}, event, ctx)  # fmt: skip

    def _skill_proposal(self, event: dict[str, Any], ctx: dict[str, Any]) -> None:
        """What the agent would like to learn, and what became of it: created, applied, rejected."""
        proposal = hooks.group(event.get("proposal"))
        self._change("attempt" if event.get("action") == "created" else "success", {
            "what": "skill", "name": proposal.get("skillName") or proposal.get("id"), "after": event.get("action"),
            "by": "proposal", "spec": hooks.words([proposal.get("kind"), proposal.get("status"), proposal.get("revisionSha256")])}, event, ctx)  # fmt: skip


def _person(event: dict[str, Any], metadata: dict[str, Any], surface: str) -> dict[str, Any] | None:
    """Who wrote. The platform vouches for the id on a channel; the name that is shown is never more than a claim."""
    ident = event.get("senderId") or metadata.get("senderId") or event.get("from")
    auth = ("asserted" if surface in _LOCAL else "verified") if ident else None
    display = metadata.get("senderName") or metadata.get("senderUsername")
    return hooks.some({"type": "user", "id": ident, "display": display, "auth": auth, "surface": surface, "tenant": event.get("accountId")})


def _addressee(event: dict[str, Any], ctx: dict[str, Any]) -> dict[str, Any] | None:
    return hooks.some({"type": "channel", "id": event.get("to") or ctx.get("conversationId") or ctx.get("channelId")})


def _matches(row: dict[str, Any], state: str) -> bool:
    return state == "requested" or (state == "approved") == (row.get("status") == "allowed")
