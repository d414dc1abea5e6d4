"""OpenClaw's hooks become events: over records that a real OpenClaw made, and over what it could send at worst."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawtrail import event as ev
from clawtrail.adapters.openclaw import _SAID_ELSEWHERE, OpenClaw
from clawtrail.errors import ClawtrailError, EventError
from support import secrets

RECORDS = [json.loads(line) for line in (Path(__file__).with_name("data") / "openclaw-records.jsonl").read_text().splitlines()]
PLUGIN = (Path(__file__).parents[2] / "agent/openclaw/plugin/index.js").read_text()


@pytest.fixture
def openclaw(recorder):
    adapter = OpenClaw(recorder)
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
    assert shipped <= openclaw.hooks | _SAID_ELSEWHERE
    for name in ("command:new", "command:stop", "session:patch", "gateway:pre-restart"):
        assert take(openclaw, f"internal:{name}", {"context": {"a": 1}})


def test_an_unknown_hook_is_refused_and_named(openclaw):
    for hook in ("no_such_hook", None, 7, ["before_tool_call"]):
        with pytest.raises(EventError, match="(?s)hook .* is unknown; expected one of .*before_tool_call"):
            openclaw.take({"hook": hook})
    assert openclaw.made == []


def test_every_captured_record_becomes_an_event_or_is_said_by_another(openclaw):
    silent = {"diag:run.started", "diag:run.completed", "diag:exec.process.completed", "llm_input", "llm_output", "model_call_ended", "before_message_write"}
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


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
_FIELDS = (
    "message params toolName toolCallId result error runId callId outcome counts tools policy action reason durationMs job payload content success "
    "sessionKey trigger requester trace role usage stopReason names details type from to method childSessionKey systemPrompt derivedPaths"
).split()


@pytest.mark.odd_events("hooks of any shape")
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
