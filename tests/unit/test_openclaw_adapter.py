"""OpenClaw's hooks become events: over records that a real OpenClaw made, and over what it could send at worst."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawtrail import event as ev
from clawtrail.adapters.openclaw import OpenClaw
from clawtrail.errors import ClawtrailError, Denied, EventError
from clawtrail.redact import Found
from clawtrail.rules import Rules
from clawtrail.runs import Runs
from clawtrail.watch import Kept, Watch
from support import secrets

RECORDS = [json.loads(line) for line in (Path(__file__).with_name("data") / "openclaw-records.jsonl").read_text().splitlines()]
PLUGIN = (Path(__file__).parents[2] / "agent/openclaw/plugin/index.js").read_text()


@pytest.fixture
def openclaw(recorder):
    return watched(OpenClaw(recorder), recorder)


def watched(adapter, recorder):
    made = []
    original = recorder.record

    def record(*args, **fields):
        receipt = original(*args, **fields)
        made.append(json.loads(receipt.line))
        return receipt

    recorder.record = record  # looks over its shoulder; the events are the real ones
    adapter.made = made
    return adapter


def replay(openclaw):
    for record in RECORDS:
        openclaw.take(record)
    return openclaw.made


def take(openclaw, hook, event=None, **ctx):
    before = len(openclaw.made)
    openclaw.take({"hook": hook, "at": "2026-11-23T14:46:42.000Z", "event": event or {}, "ctx": ctx})
    return openclaw.made[before:]


def words(name):
    block = re.search(rf"const {name} = [\[{{](.*?)\n?[\]}}];", PLUGIN, re.DOTALL)[1]
    return re.findall(r'"([^"]+)"', block) if name != "GATES" else re.findall(r"^  (\w+):", block, re.MULTILINE)


def test_every_hook_that_the_plugin_ships_is_understood(openclaw):
    shipped = {*words("GATES"), *words("OBSERVED"), *(f"diag:{d}" for d in words("DIAGNOSTICS")), "heartbeat", "dropped"}
    assert len(shipped) > 30 and {"before_tool_call", "agent_end", "diag:security.event"} <= shipped
    assert shipped <= openclaw.hooks
    assert {"agent:bootstrap", "message:transcribed"} <= set(words("INTERNAL"))
    for name in ("command:new", "command:stop", "session:patch", "session:auto-reset", "gateway:pre-restart", "message:transcribed"):
        assert take(openclaw, f"internal:{name}", {"context": {"a": 1}})


def test_an_unknown_hook_is_refused_and_named(openclaw):
    for hook in ("no_such_hook", None, 7, ["before_tool_call"]):
        with pytest.raises(EventError, match="(?s)hook .* is unknown; expected one of .*before_tool_call"):
            openclaw.take({"hook": hook})
    assert openclaw.made == []


def test_every_captured_record_becomes_an_event_or_is_said_by_another(openclaw):
    silent = {"diag:run.completed", "llm_input", "llm_output", "model_call_ended", "before_message_write"}
    for record in RECORDS:
        before = len(openclaw.made)
        openclaw.take(record)
        if record["hook"] not in silent:
            assert len(openclaw.made) > before, record
        role = record.get("event", {}).get("message", {}).get("role")
        if role in ("user", "assistant"):
            assert len(openclaw.made) == before + 1, record
    assert len(openclaw.made) > 50


def test_every_outcome_points_at_its_attempt(openclaw):
    made = replay(openclaw)
    by_id = {e["id"]: e for e in made}
    starts = {"tool.result": "tool.call", "run.end": "run.start", "subagent.end": "subagent.start"}
    for e in made:
        if e["kind"] in starts:
            cause = by_id[e["caused_by"]]
            assert cause["kind"] == starts[e["kind"]] and cause["outcome"] == "attempt"
            assert cause["seq"] < e["seq"] and cause["session"] == e["session"]
        if e["kind"] == "tool.result":
            assert by_id[e["caused_by"]]["tool"] == e["tool"] and by_id[e["caused_by"]]["run"] == e["run"]
        if e["kind"] == "run.end":
            assert by_id[e["caused_by"]]["run"] == e["run"]
        if e["kind"] == "subagent.end":
            assert by_id[e["caused_by"]]["peer"]["session"] == e["peer"]["session"]
    count = {kind: sum(e["kind"] == kind for e in made) for kind in (*starts, *starts.values())}
    assert count == {"tool.result": 7, "tool.call": 7, "run.end": 3, "run.start": 3, "subagent.end": 1, "subagent.start": 1}


def test_the_captured_outcomes_are_what_happened(openclaw):
    made = replay(openclaw)
    calls = {e["id"]: e for e in made if e["kind"] == "tool.call"}
    outcomes = {json.dumps(calls[e["caused_by"]]["params"])[:60]: e for e in made if e["kind"] == "tool.result"}
    found = [(e["tool"]["name"], e["outcome"], (e.get("error") or {}).get("type")) for e in outcomes.values()]
    assert found == [
        ("exec", "success", None), ("exec", "failure", "exit"), ("read", "failure", "error"), ("exec", "success", None),
        ("read", "success", None), ("sessions_spawn", "success", None), ("exec", "success", None),
    ]  # fmt: skip
    assert next(e for e in outcomes.values() if e["outcome"] == "failure")["error"]["code"] == 3
    assert [e["outcome"] for e in made if e["kind"] == "run.end"] == ["success"] * 3


def test_reaching_for_a_credential_is_an_attempt_and_has_an_outcome(openclaw):
    made = replay(openclaw)
    by_id = {e["id"]: e for e in made}
    access = [e for e in made if e["kind"] == "credential.access"]
    read = [e for e in access if e["tool"]["name"] == "read"]
    assert [e["outcome"] for e in read] == ["attempt", "success"]
    attempt, outcome = read
    assert by_id[attempt["caused_by"]]["kind"] == "tool.call" and outcome["caused_by"] == attempt["id"]
    assert attempt["credential"] == {"name": "aws-profile", "use": "read"} and attempt["flag"]["rule"] == "cred.aws-file"
    assert attempt["target"] == {"type": "file", "id": "/home/node/.aws/credentials"}
    assert sum(e["outcome"] == "attempt" for e in access) == sum(e["outcome"] != "attempt" for e in access)


def test_decisions_lead_to_the_calls_that_they_asked_for(openclaw):
    made = replay(openclaw)
    by_id = {e["id"]: e for e in made}
    decided = {c["id"]: e for e in made if e["kind"] == "model.decision" for c in e["decision"].get("calls", ())}
    calls = [e for e in made if e["kind"] == "tool.call"]
    assert {c["tool"]["call_id"] for c in calls} == decided.keys()
    assert all(by_id[c["caused_by"]]["kind"] in ("model.decision", "run.start") for c in calls)
    assert all(e["run"] for e in decided.values())


def test_steps_count_the_calls_of_a_run(openclaw):
    made = replay(openclaw)
    first = next(e["run"] for e in made if e["kind"] == "run.start")
    assert [e["step"] for e in made if e["kind"] == "tool.call" and e["run"] == first] == [1, 2, 3, 4, 5, 6]
    assert next(e for e in made if e["kind"] == "run.end")["usage"]["steps"] == 6


def test_the_captured_run_flags_no_bypass(openclaw):
    assert [e for e in replay(openclaw) if e["kind"] == "policy.decision"] == []


def test_a_run_that_began_before_the_forwarder_was_started_anew_went_past_no_gate(recorder, tmp_path):
    before = OpenClaw(recorder, Runs(tmp_path / "runs"))
    for run in ("r1", "r2"):
        before.take({"hook": "before_agent_run", "event": {"prompt": "hello"}, "ctx": {"runId": run, "sessionKey": "s"}})
    before.take({"hook": "agent_end", "event": {"success": True}, "ctx": {"runId": "r2", "sessionKey": "s"}})
    after = watched(OpenClaw(recorder, Runs(tmp_path / "runs")), recorder)
    assert take(after, "diag:run.completed", {"runId": "r1"}) == []
    take(after, "agent_end", {"success": True}, runId="r1", sessionKey="s")
    assert take(after, "diag:run.completed", {"runId": "r1"}) == [], "its end was told first"
    assert take(after, "diag:run.completed", {"runId": "r3"})[0]["flag"]["rule"] == "trail.bypass"


def test_a_run_that_ended_and_never_began_is_flagged(openclaw):
    (e,) = take(openclaw, "diag:run.completed", {"runId": "unseen"})
    assert (e["kind"], e["outcome"], e["flag"]["rule"]) == ("policy.decision", "unknown", "trail.bypass")


@pytest.mark.parametrize(
    ("event", "outcome"),
    [
        ({"error": "clawtrail: before_tool_call not accepted at write; no record, no action"}, "denied"),
        ({"error": "Tool call blocked by a policy"}, "denied"),
        ({"error": {"name": "Error", "message": "boom"}}, "failure"),
        ({"result": {"details": {"exitCode": 3}}}, "failure"),
        ({"result": {"details": {"exitCode": 0}}}, "success"),
        ({"result": {"details": {"exitSignal": "SIGKILL"}}}, "failure"),
        ({"result": {"details": {"timedOut": True}}}, "failure"),
        ({"result": {"details": {"status": "error"}}}, "failure"),
        ({"result": {"content": [{"type": "text", "text": "ok"}]}}, "success"),
        ({}, "unknown"),
        ({"result": "text"}, "unknown"),
    ],
)
def test_a_results_outcome(event, outcome, openclaw):
    (attempt,) = take(openclaw, "before_tool_call", {"toolName": "exec", "toolCallId": "c", "params": {}}, runId="r")
    (result,) = take(openclaw, "after_tool_call", {"toolName": "exec", "toolCallId": "c"} | event, runId="r")
    assert (result["outcome"], result["caused_by"]) == (outcome, attempt["id"])


@pytest.mark.parametrize(
    ("action", "kind", "outcome"),
    [
        ("exec.approval.requested", "approval.request", "attempt"), ("exec.approval.approved", "approval.result", "success"),
        ("exec.approval.denied", "approval.result", "denied"), ("exec.approval.expired", "approval.result", "unknown"),
        ("gateway.auth.failed", "auth.login", "denied"), ("device.paired", "auth.login", "denied"), ("tool.blocked", "policy.decision", "denied"),
    ],
)  # fmt: skip
def test_security_events(action, kind, outcome, openclaw):
    (e,) = take(openclaw, "diag:security.event", {"action": action, "outcome": "unknown" if "expired" in action else "denied"})
    assert (e["kind"], e["outcome"]) == (kind, outcome)


def test_what_the_plugin_had_to_drop_is_told(openclaw):
    (e,) = take(openclaw, "dropped", {"counts": {"llm_output": 3, "heartbeat": 1}, "error": "too big"})
    assert e["kind"] == "system.drop" and e["dropped"] == {"n": 4, "reason": "queue-full", "lane": "plugin", "hooks": "llm_output:3 heartbeat:1"}


def test_an_events_time_is_the_hooks(openclaw):
    assert take(openclaw, "gateway_start")[0]["ts"] == "2026-11-23T14:46:42.000000Z"
    with pytest.raises(EventError, match="at 'noon'; expected an RFC 3339 time"):
        openclaw.take({"hook": "gateway_start", "at": "noon"})


def test_no_secret_passes_whichever_hook_brings_it(openclaw, recorder):
    for secret in secrets().values():
        message = {"role": "assistant", "content": [{"type": "text", "text": f"it is {secret}"}], "stopReason": "stop"}
        take(openclaw, "before_tool_call", {"toolName": "exec", "toolCallId": "c", "params": {"command": f"echo {secret}"}}, runId="r")
        take(openclaw, "after_tool_call", {"toolName": "exec", "toolCallId": "c", "result": {"content": [{"type": "text", "text": secret}]}, "error": secret})
        take(openclaw, "before_message_write", {"message": message})
        take(openclaw, "before_agent_run", {"prompt": f"use {secret}"}, runId="r", sessionKey="s")
        take(openclaw, "message_sending", {"content": secret, "to": secret})
        take(openclaw, "internal:session:patch", {"context": {"key": secret}})
        take(openclaw, "gateway_stop", {"reason": secret})
        lines = json.dumps(openclaw.made[-7:])
        assert json.dumps(secret)[1:-1] not in lines and json.dumps(json.dumps(secret)[1:-1])[1:-1] not in lines
        assert openclaw.made[-7]["content"]["fps"]


def call(openclaw, call_id="c", run="r", params=None, **ctx):
    return take(openclaw, "before_tool_call", {"toolName": "exec", "toolCallId": call_id, "params": params or {"command": "id"}}, runId=run, **ctx)[0]


TRACE = {"traceId": "a" * 32, "spanId": "b" * 16}
ROW = {
    "approval_id": "ap-1", "kind": "exec", "status": "pending", "source_session_key": "s", "source_run_id": "r", "source_tool_call_id": "c",
    "presentation": {"commandText": "id"}, "created_at_ms": 1000, "updated_at_ms": 1000,
}  # fmt: skip
DENIED = ROW | {"status": "denied", "decision": "deny", "terminal_reason": "user", "resolved_at_ms": 3500, "resolver_kind": "device", "resolver_id": "phone"}


def approval(state, *rows):
    return {"action": f"exec.approval.{state}", "outcome": state, "trace": TRACE, "approvals": list(rows)}


def test_an_approval_names_its_call_what_was_shown_and_who_answered(openclaw):
    attempt = call(openclaw, sessionKey="s", trace=TRACE)
    (asked,) = take(openclaw, "diag:security.event", approval("requested", ROW))
    (answer,) = take(openclaw, "diag:security.event", approval("denied", DENIED))
    assert (asked["caused_by"], answer["caused_by"]) == (attempt["id"], asked["id"])
    assert asked["params"] == {"command": "id"} and asked["tool"] == answer["tool"] == {"name": "exec", "call_id": "c"}
    assert answer["outcome"] == "denied" and answer["approval"] == {
        "id": "ap-1", "scope": asked["approval"]["scope"], "state": "deny", "by": "phone", "by_auth": "verified", "waited_ms": 2500}  # fmt: skip
    assert take(openclaw, "state:approval", DENIED) == []


def test_an_approval_that_was_answered_before_its_row_was_read_is_told_once(openclaw):
    call(openclaw, sessionKey="s", trace=TRACE)
    told = take(openclaw, "diag:security.event", approval("requested", DENIED)) + take(openclaw, "diag:security.event", approval("denied"))
    assert [(e["kind"], e["outcome"]) for e in told] == [("approval.request", "attempt"), ("approval.result", "denied")]


def test_an_approval_whose_row_cannot_be_read_is_joined_by_its_trace(openclaw):
    attempt = call(openclaw, sessionKey="s", trace=TRACE)
    (asked,) = take(openclaw, "diag:security.event", approval("requested"))
    (answer,) = take(openclaw, "diag:security.event", approval("approved"))
    assert asked["caused_by"] == attempt["id"] and asked["tool"]["call_id"] == "c" and asked["session"] == "s"
    assert answer["outcome"] == "success" and answer["approval"] == {"state": "approved", **{k: answer["approval"][k] for k in ("waited_ms",)}}


def test_parameters_that_another_plugin_changed_are_shown_before_and_after(openclaw):
    attempt = call(openclaw)
    (ran,) = take(openclaw, "after_tool_call", {"toolName": "exec", "toolCallId": "c", "params": {"command": "id -u"}, "result": {}}, runId="r")
    assert ran["params"] == {"command": "id -u"}
    assert ran["policy"]["verdict"] == "modify" and ran["policy"]["before"] == attempt["content"]["sha256"] != ran["policy"]["after"]
    call(openclaw, "d")
    (same,) = take(openclaw, "after_tool_call", {"toolName": "exec", "toolCallId": "d", "params": {"command": "id"}, "result": {}}, runId="r")
    assert "policy" not in same and "params" not in same


def test_a_call_with_bad_arguments_is_caused_by_its_decision(openclaw):
    message = {"role": "assistant", "content": [{"type": "toolCall", "id": "c", "name": "read", "arguments": {}}], "stopReason": "toolUse"}
    (decided,) = take(openclaw, "before_message_write", {"message": message})
    (result,) = take(openclaw, "after_tool_call", {"toolName": "read", "toolCallId": "c", "error": "Validation failed for tool \"read\":", "result": {}})
    assert (result["outcome"], result["error"]["type"], result["caused_by"]) == ("failure", "validation", decided["id"])


@pytest.mark.parametrize(
    ("error", "details", "engine", "verdict"),
    [
        ("not in here", {"status": "blocked"}, "openclaw", "deny"),
        ("The recorder does not answer (no record, no action)", {}, "clawtrail", "error"),
    ],
)
def test_a_blocked_call_says_who_blocked_it(error, details, engine, verdict, openclaw):
    call(openclaw)
    (result,) = take(openclaw, "after_tool_call", {"toolName": "exec", "toolCallId": "c", "error": error, "result": {"details": details}}, runId="r")
    assert result["outcome"] == "denied" and (result["policy"]["engine"], result["policy"]["verdict"]) == (engine, verdict)
    assert result["policy"]["reason"] == error


def test_a_tool_that_no_run_called_is_not_held_open(openclaw):
    take(openclaw, "before_tool_call", {"toolName": "session_status", "params": {}}, sessionKey="s")
    assert not openclaw._open.open_tools()
    call(openclaw)
    assert [tool.call_id for tool in openclaw._open.open_tools()] == ["c"]


def test_a_subagent_works_for_whoever_asked_its_parent(openclaw):
    (parent,) = take(openclaw, "before_agent_run", {"prompt": "go", "senderId": "u1"}, runId="r1", sessionKey="s", channel="telegram")
    spawned = {"childSessionKey": "s:subagent:1", "runId": "r2", "agentId": "main"}
    (started,) = take(openclaw, "subagent_spawned", spawned, requesterSessionKey="s")
    (child,) = take(openclaw, "before_agent_run", {"prompt": "do"}, runId="r2", sessionKey="s:subagent:1")
    (ended,) = take(openclaw, "agent_end", {"success": True, "runId": "r2"}, runId="r2", sessionKey="s:subagent:1")
    (back,) = take(openclaw, "before_agent_run", {"prompt": "done"}, runId="announce:v1:s:subagent:1:r2", sessionKey="s")
    assert parent["actor"]["auth"] == "verified" and started["run"] == "r1"
    assert child["trigger"] == {"type": "agent", "ref": "r1"} and child["caused_by"] == started["id"]
    assert child["actor"] == {"type": "agent", "on_behalf_of": "u1"}
    assert back["trigger"] == {"type": "agent", "ref": "r2"} and back["caused_by"] == ended["id"]


def test_nobody_is_taken_for_a_person_who_is_not_named_as_one(openclaw):
    (job,) = take(openclaw, "before_agent_run", {"prompt": "tick", "senderIsOwner": False}, runId="r1", sessionKey="agent:main:cron:j:run:1", trigger="cron")
    assert job["actor"] == {"type": "system", "owner": False}
    assert call(openclaw, sessionKey="agent:main:cron:j:run:1", run="r1")["actor"] == {"type": "system"}
    take(openclaw, "before_agent_run", {"prompt": "go", "senderId": "u1"}, runId="r2", sessionKey="s", channel="telegram")
    assert call(openclaw, sessionKey="s", run="r2", requester={"channel": "telegram", "senderIsOwner": True})["actor"]["type"] == "user"
    take(openclaw, "subagent_spawned", {"childSessionKey": "s:subagent:1", "runId": "r3", "agentId": "main"}, requesterSessionKey="s")
    take(openclaw, "before_agent_run", {"prompt": "do"}, runId="r3", sessionKey="s:subagent:1")
    child = call(openclaw, sessionKey="s:subagent:1", run="r3", requester={"channel": "telegram", "senderIsOwner": False})
    assert child["actor"]["type"] == "agent"
    assert "actor" not in call(openclaw, run=None), "POST /tools/invoke"


def test_a_result_is_found_by_its_trace_and_says_no_span_that_the_host_did_not_say(openclaw):
    called = call(openclaw, trace=TRACE)
    (result,) = take(openclaw, "after_tool_call", {"toolName": "exec", "toolCallId": "c", "result": {"content": "ok"}}, runId="r")
    assert called["trace"] == {"id": "a" * 32, "span": "b" * 16} and result["trace"] == {"id": "a" * 32}


def test_the_end_of_a_subagent_that_never_began_is_only_a_reset(openclaw):
    assert take(openclaw, "subagent_ended", {"targetSessionKey": "s", "targetKind": "acp", "reason": "session-reset", "outcome": "reset"}) == []


def test_a_message_is_recorded_once_though_two_hooks_tell_it(openclaw):
    text = {"content": "hello", "senderId": "u1", "metadata": {"senderName": "Ada"}}
    (said,) = take(openclaw, "message_received", text, sessionKey="s", channelId="telegram")
    assert said["actor"] == {"type": "user", "id": "u1", "display": "Ada", "auth": "verified", "surface": "telegram"}
    written = {"message": {"role": "user", "content": "hello"}}
    assert take(openclaw, "before_message_write", written, sessionKey="s") == []
    assert len(take(openclaw, "before_message_write", written, sessionKey="s")) == 1
    (attempt,) = take(openclaw, "reply_payload_sending", {"payload": {"text": "hi"}}, sessionKey="s")
    assert take(openclaw, "message_sending", {"content": "hi", "to": "u1"}, sessionKey="s") == []
    (sent,) = take(openclaw, "message_sent", {"content": "hi", "to": "u1", "success": True}, sessionKey="s")
    assert (sent["outcome"], sent["caused_by"]) == ("success", attempt["id"])


def test_what_is_written_between_two_runs_belongs_to_neither(openclaw):
    take(openclaw, "before_agent_run", {"prompt": "go"}, runId="r1", sessionKey="s")
    take(openclaw, "agent_end", {"success": True, "runId": "r1"}, sessionKey="s", runId="r1")
    (said,) = take(openclaw, "before_message_write", {"message": {"role": "user", "content": "next"}}, sessionKey="s")
    assert said["run"] is None


def test_a_message_that_is_written_twice_is_one_message(openclaw):
    written = {"message": {"role": "user", "content": "hello", "idempotencyKey": "k"}}
    assert len(take(openclaw, "before_message_write", written, sessionKey="s")) == 1
    assert take(openclaw, "before_message_write", written, sessionKey="s") == []


def test_a_model_call_that_failed_is_one_decision_and_the_end_of_its_run(openclaw):
    take(openclaw, "before_agent_run", {"prompt": "go"}, runId="r", sessionKey="s")
    ended = {"runId": "r", "callId": "r:model:1", "outcome": "error", "errorCategory": "NotFound", "failureKind": "404"}
    (decision,) = take(openclaw, "model_call_ended", ended, runId="r", sessionKey="s")
    empty = {"role": "assistant", "content": [], "stopReason": "error", "errorMessage": "404"}
    assert take(openclaw, "before_message_write", {"message": empty}, sessionKey="s") == []
    (end,) = take(openclaw, "agent_end", {"success": True, "runId": "r"}, runId="r", sessionKey="s")
    assert (decision["outcome"], end["outcome"], end["error"]) == ("failure", "failure", decision["error"])


def test_a_run_whose_second_model_answered_is_a_success(openclaw):
    take(openclaw, "before_agent_run", {"prompt": "go"}, runId="r", sessionKey="s")
    take(openclaw, "model_call_ended", {"runId": "r", "callId": "c", "outcome": "error"}, runId="r", sessionKey="s")
    answer = {"role": "assistant", "content": [{"type": "text", "text": "yes"}], "stopReason": "stop"}
    take(openclaw, "before_message_write", {"message": answer}, sessionKey="s")
    assert take(openclaw, "agent_end", {"success": True, "runId": "r"}, runId="r", sessionKey="s")[0]["outcome"] == "success"


def test_a_scheduled_run_names_its_job(openclaw):
    (e,) = take(openclaw, "before_agent_run", {"prompt": "go"}, runId="r", sessionKey="agent:main:cron:j1:run:x", trigger="cron")
    assert e["trigger"] == {"type": "cron", "ref": "j1"}


def bootstrap(openclaw, digest):
    files = [{"name": "AGENTS.md", "path": "/w/AGENTS.md", **({"bytes": 9, "sha256": digest} if digest else {"missing": True})}]
    return take(openclaw, "internal:agent:bootstrap", {"sessionKey": "s", "context": {"files": files}})


def test_a_file_that_prompts_are_built_from_is_told_when_it_changes_and_named_in_each_run(openclaw, recorder):
    assert bootstrap(openclaw, None) == []
    (new,) = bootstrap(openclaw, "1" * 64)
    assert bootstrap(openclaw, "1" * 64) == []
    (run,) = take(openclaw, "before_agent_run", {"prompt": "go"}, runId="r", sessionKey="s")
    (changed,) = bootstrap(openclaw, "2" * 64)
    (gone,) = bootstrap(openclaw, None)
    key = recorder.redactor.fingerprint
    assert [(e["change"]["before"], e["change"]["after"]) for e in (new, changed, gone)] == [
        ("none", key("1" * 64)), (key("1" * 64), key("2" * 64)), (key("2" * 64), "none")]  # fmt: skip
    assert run["store"] == {"kind": "memory", "op": "read", "name": "bootstrap", "item": "AGENTS.md", "n": 1, "size": 9}


def test_a_tools_contract_is_on_each_call_and_told_when_it_changes(openclaw):
    def shown(digest, *others):
        defs = {"exec": digest} | {name: "e" * 16 for name in others}
        return take(openclaw, "llm_input", {"runId": "r", "tools": {"names": list(defs), "defs": defs, "sha256": "a" * 64}})

    assert shown("1" * 16) == [] and call(openclaw)["tool"]["def"] == "1" * 16
    (change,) = shown("2" * 16)
    assert change["change"] | {"what": "tool", "name": "exec", "before": "1" * 16, "after": "2" * 16} == change["change"]
    assert call(openclaw, "d")["tool"]["def"] == "2" * 16
    assert shown("3" * 16, "process") == [], "another offer has other words"


def start(openclaw, config, *servers, gates=None, agents=("main", "coder"), **tools):
    return take(openclaw, "gateway_start", {"port": 1, "hooks": "before_tool_call agent_end", "inventory": {
        "file": {"bytes": 1, "sha256": config}, "mcp": list(servers), "plugins": ["clawtrail"], "tools": {"deny": ["gateway"], "ask": "off"} | tools,
        "gates": gates, "agents": list(agents)}})  # fmt: skip


def test_a_gate_of_the_host_that_is_another_at_its_next_start_is_named_and_one_that_is_off_flagged(openclaw):
    ask, security, sandbox = "tools.exec.ask", "agents.entries.coder.tools.exec.security", "agents.defaults.sandbox.mode"
    first = start(openclaw, "c" * 64, gates={ask: "off", security: "deny", sandbox: "all"})
    assert [e["kind"] for e in first] == ["system.start", "config.change"], "what it is at first is no change of a gate"
    stricter = start(openclaw, "c" * 64, gates={ask: "always", security: "deny", sandbox: "all"})[1:]
    assert [e["change"] for e in stricter] == [{"what": "approval", "name": ask, "before": "off", "after": "always"}] and "flag" not in stricter[0]
    weaker = start(openclaw, "c" * 64, gates={ask: "off", security: "full"}, deny=[])[1:]
    assert [(e["change"]["what"], e["change"]["name"], e["change"]["after"], e.get("flag", {}).get("rule")) for e in weaker] == [
        ("approval", ask, "off", "approval.switched-off"), ("approval", security, "full", "approval.switched-off"),
        ("sandbox", sandbox, "none", "approval.switched-off"), ("policy", "tools.deny", "none", None)]  # fmt: skip
    assert len(start(openclaw, "c" * 64, gates={ask: "off", security: "full"}, deny=[])) == 1, "told once"
    assert len(start(openclaw, "c" * 64, gates={ask: "off"}, deny=[], agents=["main"])) == 1, "the agent itself is gone"


def test_who_calls_is_named_with_role_and_account(openclaw):
    asked = call(openclaw, requester={"senderId": "u1", "senderIsOwner": False, "roleIds": ["member", "guest"], "channel": "discord", "accountId": "acme"})
    assert asked["actor"] == {"type": "user", "id": "u1", "owner": False, "role": "member guest", "surface": "discord", "tenant": "acme"}


def test_what_changed_while_the_gateway_was_down_is_told_at_its_start(openclaw):
    server = {"name": "words", "transport": "stdio", "spec": "node words.mjs", "sha256": "1" * 64}
    started, *_ = start(openclaw, "c" * 64, server)
    assert started["health"] == {"component": "openclaw", "port": 1, "hooks": "before_tool_call agent_end", "config": "c" * 64, "mcp": "words",
                                 "plugins": "clawtrail", "denied_tools": "gateway", "ask": "off"}  # fmt: skip
    assert len(start(openclaw, "c" * 64, server)) == 1
    _, config, words = start(openclaw, "d" * 64)
    assert config["change"] == {"what": "config", "name": "openclaw.json", "before": "c" * 64, "after": "d" * 64}
    assert (words["change"]["what"], words["change"]["name"], words["change"]["after"]) == ("mcp", "words", "none")


def test_what_changed_while_both_gateway_and_forwarder_were_down_is_told_with_what_it_was_before(recorder, tmp_path):
    def forwarder():
        kept = Kept(tmp_path / "watch", lambda value: recorder.redactor.value(value, Found()))
        return watched(OpenClaw(recorder, watch=Watch(kept=kept)), recorder)

    server = {"name": "words", "transport": "stdio", "spec": "node words.mjs", "sha256": "1" * 64}
    start(forwarder(), "c" * 64, server)
    _, config, words = start(forwarder(), "d" * 64)
    assert config["change"] == {"what": "config", "name": "openclaw.json", "before": "c" * 64, "after": "d" * 64}
    assert words["change"] == {"what": "mcp", "name": "words", "before": "1" * 16, "after": "none"}
    assert len(start(forwarder(), "d" * 64)) == 1, "nothing has changed"


def test_openclaws_own_account_of_a_changed_configuration(openclaw):
    written = {"event": "config.write", "configPath": "/etc/openclaw.json", "argv": ["openclaw", "config", "set", "a", "b"], "previousHash": "1" * 64,
               "nextHash": "2" * 64, "changedPaths": ["tools.exec.ask"], "origin": "cli", "result": "rename", "pid": 7}  # fmt: skip
    (ok,) = take(openclaw, "state:config-audit", written)
    (failed,) = take(openclaw, "state:config-audit", written | {"result": "failed", "errorCode": "EPERM", "errorMessage": "no"})
    assert ok["outcome"] == "success" and ok["change"] == {"what": "config", "name": "/etc/openclaw.json", "before": "1" * 64, "after": "2" * 64,
                                                           "by": "cli", "spec": "tools.exec.ask"}  # fmt: skip
    assert ok["params"]["argv"] == "openclaw config set a b"
    assert failed["outcome"] == "failure" and failed["error"] == {"type": "config", "code": "EPERM", "message": "no"}


def test_a_skill_is_the_agent_s_own_while_its_tool_runs_and_an_operator_s_otherwise(openclaw):
    made = {"action": "created", "source": "workshop", "after": {"name": "wave", "revision": {"treeSha256": "1" * 64}}}
    assert take(openclaw, "skill_changed", made)[0]["change"]["by"] == "workshop"
    take(openclaw, "before_tool_call", {"toolName": "skill_workshop", "toolCallId": "w", "params": {"action": "apply"}}, runId="r")
    (own,) = take(openclaw, "skill_changed", made | {"after": {"name": "nod", "revision": {"treeSha256": "2" * 64}}})
    assert own["change"]["by"] == "agent" and own["flag"]["rule"] == "capability.added-by-agent"
    assert take(openclaw, "skill_changed", made | {"source": "clawhub"})[0]["change"]["by"] == "clawhub"


def test_a_skill_that_changed_is_named_with_its_hashes(openclaw):
    def skill(digit):
        return {"name": "greet", "skillFile": "/w/SKILL.md", "revision": {"treeSha256": f"sha256:{digit * 64}"}}

    (new,) = take(openclaw, "skill_changed", {"action": "created", "source": "workshop", "after": skill("1")})
    (changed,) = take(openclaw, "skill_changed", {"action": "updated", "source": "workshop", "before": skill("1"), "after": skill("2")})
    (proposed,) = take(openclaw, "skill_proposal_changed", {"action": "created", "proposal": {"id": "p", "skillName": "greet", "kind": "create"}})
    assert new["change"] | {"name": "greet", "before": "none", "after": "1" * 64, "by": "workshop"} == new["change"]
    assert (changed["change"]["before"], changed["change"]["after"]) == ("1" * 64, "2" * 64)
    assert (proposed["outcome"], proposed["change"]["name"], proposed["change"]["after"]) == ("attempt", "greet", "created")


def test_a_scheduled_jobs_end_has_its_outcome(openclaw):
    job = {"name": "tick", "schedule": {"kind": "every", "everyMs": 60000}}
    event = {"action": "finished", "jobId": "j", "job": job, "status": "error", "error": "no", "durationMs": 2, "sessionKey": "s", "runId": "r"}
    (e,) = take(openclaw, "cron_changed", event)
    assert (e["outcome"], e["duration_us"], e["trigger"], e["session"]) == ("failure", 2000, {"type": "cron", "ref": "j"}, "s")
    assert (e["change"]["after"], e["change"]["spec"], e["change"]["ends"]) == ("finished", "kind=every everyMs=60000", "never")


def test_the_heartbeat_tells_which_hooks_have_fired(openclaw):
    told = {"hooks": "a b", "hooksSeen": "a", "hooksMissing": "llm_input", "stateError": "no such file"}
    (e,) = take(openclaw, "heartbeat", told)
    assert e["health"] == {"component": "openclaw", "plugin": "loaded", "hooks": "a b", "hooks_seen": "a", "hooks_missing": "llm_input",
                           "state_error": "no such file"}  # fmt: skip


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_FIELDS = (
    "message params toolName toolCallId result error runId callId outcome counts tools policy action reason durationMs job payload content success "
    "sessionKey trigger requester trace role usage stopReason names details type from to method childSessionKey systemPrompt derivedPaths "
    "context files inventory mcp file defs approvals presentation status approval_id source_tool_call_id metadata media before after argv changedPaths "
    "schedule host transcript patch proposal revision senderId senderName senderIsOwner channel channelId accountId to messageId traceId spanId "
    "parentSpanId input output cacheRead exitCode exitSignal decision resolver_id resolver_kind terminal_reason created_at_ms resolved_at_ms "
    "deviceIdHash idHash kind target attributes targetType targetName idempotencyKey resolution rule path contentType url errorMessage responseId "
    "provider model harnessId prompt senderUsername requester"
).split()


@settings(max_examples=200)
@given(st.data())
def test_no_record_of_any_shape_gets_past_the_schema_or_brings_the_adapter_down(openclaw, data):
    hook = data.draw(st.sampled_from(sorted(openclaw.hooks)))
    groups = st.dictionaries(st.sampled_from(_FIELDS), _ANY | st.dictionaries(st.sampled_from(_FIELDS), _ANY, max_size=5), max_size=8)
    before = len(openclaw.made)
    try:
        openclaw.take({"hook": hook, "event": data.draw(groups), "ctx": data.draw(groups)})
    except ClawtrailError:
        pass
    for e in openclaw.made[before:]:
        assert ev.KINDS[e["kind"]] == e["category"] and e["outcome"] in ev.OUTCOMES


def test_numbers_where_the_schema_has_texts_are_written_out(openclaw):
    (said,) = take(openclaw, "message_received", {"content": 7, "senderId": 4711, "messageId": 12, "accountId": 3}, channelId="telegram", sessionKey="s")
    assert (said["actor"]["id"], said["actor"]["tenant"], said["content"]["excerpt"]) == ("4711", "3", "7")
    (attempt,) = take(openclaw, "before_tool_call", {"toolName": "exec", "toolCallId": 99, "params": {}}, runId=5, requester={"senderId": 1.5})
    assert (attempt["tool"]["call_id"], attempt["run"], attempt["actor"]["id"]) == ("99", "5", "1.5")
    (result,) = take(openclaw, "after_tool_call", {"toolName": "exec", "toolCallId": 99, "result": {}}, runId=5)
    assert result["caused_by"] == attempt["id"]


def test_what_cannot_be_what_the_schema_wants_is_kept_under_its_name(openclaw):
    message = {"role": "assistant", "content": "hi", "stopReason": "bored", "usage": {"input": "many", "output": -1, "cacheRead": 3}}
    (decided,) = take(openclaw, "before_message_write", {"message": message})
    assert decided["usage"] == {"cache_read": 3} and "stop" not in decided["decision"]
    assert decided["log"] == {"fields": {"decision.stop": "bored", "usage.input": "many", "usage.output": -1}}
    (called,) = take(openclaw, "before_tool_call", {"toolName": "exec", "params": {}}, trace={"traceId": "no trace"}, requester={"senderIsOwner": "yes"})
    assert called["log"]["fields"] == {"trace.id": "no trace", "actor.owner": "yes"}


def test_a_secret_in_a_text_that_is_too_long_is_not_cut_in_two(openclaw):
    secret = secrets()["github"]
    (said,) = take(openclaw, "message_received", {"content": "hi", "senderId": "x " * 115 + secret}, channelId="telegram")
    assert len(said["actor"]["id"]) <= 256 and secret[:12] not in said["actor"]["id"]


DELICATE = """
version: 1
rules:
- {id: my.ask, name: ask, on: [command], match: '\\bdelicate\\b', severity: high, technique: [T1059], action: approve, why: ask first, hit: [delicate -x], miss: [id]}
"""
ANSWERED = {"deny": "denied", "allow-once": "allowed", "timeout": "expired"}


@pytest.fixture
def held(openclaw, tmp_path):
    """A call that waits for a person, with what was recorded of it."""
    (tmp_path / "mine.yaml").write_text(DELICATE)
    openclaw._rules = Rules.load([tmp_path])
    with pytest.raises(Denied) as caught:
        call(openclaw, params={"command": "delicate -x"}, sessionKey="s")
    assert caught.value.approve and caught.value.action == "exec: delicate -x"
    assert [one.receipt.id for one in caught.value.recorded] == [e["id"] for e in openclaw.made]
    return openclaw.made[-2:]


def resolved(resolution, *rows):
    return {"toolName": "exec", "toolCallId": "c", "runId": "r", "rule": "my.ask", "resolution": resolution, "approvals": list(rows)}


@pytest.mark.parametrize(("resolution", "outcome"), [("allow-once", "success"), ("deny", "denied"), ("timeout", "denied")])
def test_a_question_of_a_rule_and_its_answer_are_one_each(resolution, outcome, openclaw, held):
    attempt, asked = held
    assert (attempt["kind"], asked["kind"], asked["caused_by"]) == ("tool.call", "approval.request", attempt["id"])
    row = ROW | {"kind": "plugin", "approval_id": "plugin:1", "presentation": {"kind": "plugin", "title": "May the agent?"}}
    done = row | {"status": ANSWERED[resolution], "decision": resolution, "resolved_at_ms": 2000, "resolver_kind": "channel", "resolver_id": "telegram"}
    assert take(openclaw, "state:approval", row) == []
    (answer,) = take(openclaw, "approval.resolved", resolved(resolution, done), sessionKey="s") + take(openclaw, "state:approval", done)
    assert (answer["kind"], answer["outcome"], answer["caused_by"]) == ("approval.result", outcome, asked["id"])
    assert answer["approval"]["by"] == "telegram" and answer["policy"]["rule"] == "my.ask" and answer["policy"]["engine"] == "clawtrail"


def test_a_question_that_the_gateway_could_ask_nobody_is_a_no_on_record(openclaw, held):
    (answer,) = take(openclaw, "approval.resolved", resolved("cancelled"), sessionKey="s")
    assert (answer["outcome"], answer["approval"]["state"], answer["caused_by"]) == ("denied", "cancelled", held[1]["id"])
    (result,) = take(openclaw, "after_tool_call", {"toolName": "exec", "toolCallId": "c", "error": "Denied by user. The tool call did not run.",
                                                   "result": {"details": {"status": "error"}}}, runId="r")  # fmt: skip
    assert result["outcome"] == "denied" and (result["policy"]["engine"], result["policy"]["rule"]) == ("clawtrail", "my.ask")


def test_a_picture_is_one_message_though_the_host_writes_more_into_the_transcript(openclaw):
    media = [{"path": "/m/1.png", "contentType": "image/png"}]
    (said,) = take(openclaw, "message_received", {"content": "look", "messageId": "11", "media": media}, channelId="telegram", sessionKey="s")
    message = {"role": "user", "content": "look\n\n[not analyzed]", "__openclaw": {"transport": {"channel": "telegram", "messageId": "11"}}}
    assert said["content"]["mime"] == "image/png" and take(openclaw, "before_message_write", {"message": message}, sessionKey="s") == []


def test_a_device_that_is_turned_away_is_named_and_denied(openclaw):
    told = {"action": "device.pairing.rejected", "outcome": "success", "actor": {"kind": "operator", "role": "operator"}, "target": {"kind": "device", "idHash": "sha256:1"}}
    (e,) = take(openclaw, "diag:security.event", told)
    assert (e["outcome"], e["actor"]["id"], e["approval"]) == ("denied", "sha256:1", {"state": "rejected", "by": "operator"})
