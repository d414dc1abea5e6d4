"""The Python agent of the profile `nano`: the real nanobot, under its own certificate, beside OpenClaw in one trail."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from harness import Stack, eventually

TURN = ["clawtrail", "nanobot", "--secret=MODEL_KEY=/run/secrets/nano-model-key", "agent", "--config=/var/lib/nano/config.json"]


@pytest.fixture(scope="module")
def nano(running: Stack) -> Stack:
    running.compose("--profile", "nano", "up", "--build", "--detach", "--wait", "nano", timeout=600)
    return running


def turn(stack: Stack, session: str, tool: str, params: dict[str, Any], environment: dict[str, str] | None = None) -> tuple[int, str]:
    command = [*TURN, f"--session={session}", "--message", f"TOOL {tool} {json.dumps(params)}"]
    done = stack.container("nano").exec_run(command, environment=environment or {})
    return done.exit_code, done.output.decode("utf-8", "replace")


def events(stack: Stack, query: str, count: int = 1) -> list[dict[str, Any]]:
    return sorted((json.loads(e.line) for e in stack.find(query, count, 30)), key=lambda e: (e["epoch"], e["seq"]))


def test_the_gateway_of_nano_runs_and_its_trail_has_begun(nano: Stack) -> None:
    assert nano.health("nano") == "healthy"
    started = events(nano, '{job="audit", agent="nano-claw", category="system"} | event="system.start" | json | agent_type="nanobot"')
    assert started[0]["agent"]["name"] == "nano-claw"


def test_a_run_of_nano_is_whole_in_the_store(nano: Stack) -> None:
    session = f"nano-{uuid.uuid4().hex[:8]}"
    code, said = turn(nano, session, "exec", {"command": "echo hello-from-nano; cat ~/.ssh/id_ed25519"})
    assert code == 0 and "hello-from-nano" in said, said
    found = events(nano, f'{{job="audit", agent="nano-claw"}} | session="{session}"', 12)
    assert [e["kind"] for e in found] == [
        "message.in", "run.start", "model.request", "model.decision", "tool.call", "credential.access", "tool.result", "credential.access",
        "model.request", "model.decision", "message.out", "run.end",
    ]  # fmt: skip
    by_id = {e["id"]: e for e in found}
    call = next(e for e in found if e["kind"] == "tool.call")
    result = next(e for e in found if e["kind"] == "tool.result")
    assert by_id[result["caused_by"]] is call and by_id[call["caused_by"]]["decision"]["calls"][0]["tool"] == "exec"
    assert call["flag"]["rule"] == "cred.ssh-key"


def test_one_query_shows_openclaw_and_nano_in_one_session_and_one_trace(nano: Stack) -> None:
    """OpenClaw hands over: nano works on under OpenClaw's session and trace."""
    key = f"together-{uuid.uuid4().hex[:8]}"
    session = f"agent:main:{key}"
    assert "from-openclaw" in nano.turn(key, ("exec", {"command": "echo from-openclaw"})).stdout
    query = f'{{job="audit"}} | session="{session}" | tool="exec" | event="tool.call"'
    trace = events(nano, query)[0]["trace"]
    code, said = turn(nano, session, "exec", {"command": "echo from-nano"}, {"TRACEPARENT": f"00-{trace['id']}-{trace['span']}-01"})
    assert code == 0 and "from-nano" in said, said
    both = events(nano, query, 2)
    assert {e["agent"]["name"] for e in both} == {"openclaw", "nano-claw"}
    traced = events(nano, f'{{job="audit"}} | session="{session}" | json | trace_id="{trace["id"]}" | event="tool.call"', 2)
    assert {e["agent"]["name"] for e in traced} == {"openclaw", "nano-claw"}


@pytest.mark.stops("syslog-ng")
def test_with_the_receiver_away_nano_works_on_and_its_trail_comes_later(nano: Stack) -> None:
    session = f"away-{uuid.uuid4().hex[:8]}"
    nano.container("syslog-ng").stop(timeout=5)
    code, said = turn(nano, session, "exec", {"command": "echo in-between"})
    assert code == 0 and "in-between" in said, said
    nano.container("syslog-ng").start()
    nano.wait_healthy("syslog-ng")
    query = f'{{job="audit", agent="nano-claw"}} | session="{session}" | event="run.end"'
    eventually(lambda: nano.query(query), 90, "the gateway takes over what the process of the turn left")


def test_nano_cannot_write_where_its_spool_is_not_and_runs_nothing_without_it(nano: Stack) -> None:
    marker = f"/tmp/{uuid.uuid4().hex}"
    code, said = turn(nano, "s", "exec", {"command": f"touch {marker}"}, {"CLAWTRAIL_SPOOL": "/etc/spool"})
    assert code == 2 and "expected a folder that can be written to" in said, said
    assert nano.run_inside("nano", "test", "-e", marker)[0] != 0


def test_nano_has_no_key_but_its_own(nano: Stack) -> None:
    code, said = nano.run_inside("nano", "sh", "-c", "id -u; ls /run/secrets /etc/clawtrail/tls; touch /opt/x /etc/x 2>&1 | grep -c Read-only")
    assert said.split() == ["6514", "/etc/clawtrail/tls:", "ca.crt", "client.crt", "client.key", "/run/secrets:", "nano-model-key", "2"], said
    assert code == 0
