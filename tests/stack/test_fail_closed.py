"""No record, no action: without the forwarder no tool runs and no run starts."""

from __future__ import annotations

import json
import threading
import uuid

import pytest
from harness import Stack, eventually


def exists(stack: Stack, path: str) -> bool:
    return stack.run_inside("openclaw", "test", "-e", path)[0] == 0


@pytest.mark.stops("forwarder")
def test_without_the_forwarder_a_run_does_not_start(running: Stack) -> None:
    marker = f"/tmp/run-{uuid.uuid4().hex}"
    running.container("forwarder").stop(timeout=5)
    answer = running.turn(f"closed-{uuid.uuid4().hex[:8]}", ("exec", {"command": f"touch {marker}"}))
    assert answer.returncode != 0, answer.stdout
    assert b"before_agent_run not accepted" in running.container("openclaw").logs(tail=100)
    assert not exists(running, marker)


@pytest.mark.stops("forwarder")
def test_a_forwarder_that_stops_during_a_run_keeps_the_next_tool_from_running(running: Stack) -> None:
    session, name = f"midway-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    first, second = f"/tmp/first-{name}", f"/tmp/second-{name}"
    script = (("exec", {"command": f"touch {first} && sleep 5"}), ("exec", {"command": f"touch {second}"}))
    turn = threading.Thread(target=running.turn, args=(session, *script))
    turn.start()
    eventually(lambda: exists(running, first), 30, "the first tool runs")
    running.container("forwarder").stop(timeout=5)
    turn.join(60)
    assert not turn.is_alive()
    assert not exists(running, second)
    running.container("forwarder").start()
    query = f'{{job="audit", agent="openclaw", outcome="denied"}} | session="agent:main:{session}" | event="tool.result"'
    denied = running.find(query, within=60)
    assert "no record, no action" in json.loads(denied[0].line)["error"]["message"]


@pytest.mark.stops("forwarder")
def test_with_the_forwarder_back_the_agent_works_again(running: Stack) -> None:
    running.container("forwarder").restart(timeout=5)
    running.wait_healthy("forwarder")
    session = f"back-{uuid.uuid4().hex[:8]}"
    assert "it-works" in running.turn(session, ("exec", {"command": "echo it-works"})).stdout
    running.find(f'{{job="audit", agent="openclaw", outcome="success"}} | session="agent:main:{session}" | tool="exec"')


def test_openclaws_health_includes_the_plugin_and_its_way_to_the_forwarder(running: Stack) -> None:
    code, said = running.run_inside("openclaw", "node", "/opt/clawtrail/healthcheck.mjs")
    assert code == 0 and "plugin" in said and "gate" in said


def test_an_agent_outside_of_the_hooks_does_not_start(running: Stack) -> None:
    code, said = running.run_inside("openclaw", "openclaw", "agent", "exec", "hello")
    assert code == 78 and "cannot be recorded" in said
