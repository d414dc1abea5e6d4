"""Gates above the spool, and break-glass, on the real gateway."""

from __future__ import annotations

import json
import uuid
from typing import Callable, Iterator

import pytest
from harness import Stack, eventually


@pytest.fixture
def sent(running: Stack) -> Iterator[Stack]:
    """A stack in which a tool runs only when its event was handed to the receiver; runs start all the same."""
    yield from gated(running, GATES="tool:sent")


@pytest.fixture
def stored(running: Stack) -> Iterator[Stack]:
    """A stack in which a tool runs only when its event is proven to have been read by the receiver."""
    yield from gated(running, GATES="tool:stored", PROOF="barrier")


def gated(running: Stack, **settings: str) -> Iterator[Stack]:
    before = running.env_file.read_text()
    kept = [line for line in before.splitlines() if line.partition("=")[0] not in settings]
    running.env_file.write_text("\n".join([*kept, *(f"{k}={v}" for k, v in settings.items()), ""]))
    try:
        again(running)
        yield running
    finally:
        running.env_file.write_text(before)
        if running.container("syslog-ng").status != "running":
            running.container("syslog-ng").start()
        running.wait_healthy("syslog-ng")
        again(running)


def again(stack: Stack) -> None:
    stack.compose("up", "--detach", "--no-deps", "forwarder")
    stack.wait_healthy("forwarder")


def glass(stack: Stack, *arguments: str) -> str:
    return stack.compose("exec", "-T", "forwarder", "clawtrail", "break-glass", *arguments).stdout


def ran(stack: Stack, session: str) -> bool:
    marker = f"/tmp/{uuid.uuid4().hex}"
    stack.turn(session, ("exec", {"command": f"touch {marker}"}))
    return stack.run_inside("openclaw", "test", "-e", marker)[0] == 0


def test_a_tool_waits_for_the_receiver_and_an_operator_can_break_the_glass(sent: Stack) -> None:
    session = f"gate-{uuid.uuid4().hex[:8]}"
    assert ran(sent, session)
    sent.container("syslog-ng").stop(timeout=5)
    assert not ran(sent, session), "it ran, and its event was not sent"
    reason = f"the receiver is being moved, {session}"
    assert "until" in glass(sent, "--for", "10m", "--reason", reason, "--by", "ada")
    assert ran(sent, session)
    glass(sent, "--close", "--by", "ada")
    assert not ran(sent, session)
    sent.container("syslog-ng").start()
    sent.wait_healthy("syslog-ng")

    def decided(rule: str, which: Callable[[dict], bool], count: int = 1) -> list[dict]:
        def ask() -> list[dict]:
            found = [json.loads(e.line) for e in sent.query('{job="audit", agent="openclaw", category="policy"} | event="policy.decision"')]
            chosen = [d for d in found if d["policy"].get("rule") == rule and which(d)]
            return chosen if len(chosen) >= count else []

        return eventually(ask, 30, f"{count} {rule} are in the store")

    [opened] = decided("gate.open", lambda d: d["policy"]["reason"] == reason)
    assert opened["flag"]["severity"] == "critical" and opened["actor"]["id"] == "ada"
    [closed] = decided("gate.close", lambda d: d["caused_by"] == opened["id"])
    assert closed["health"]["passed"] >= 1
    refused = decided("gate.sent", lambda d: d["session"] == f"agent:main:{session}", 2)
    assert len(refused) == 2 and "This action was not carried out" in refused[0]["policy"]["reason"]
    calls = {json.loads(e.line)["id"] for e in sent.query(f'{{job="audit"}} | session="agent:main:{session}" | event="tool.call"')}
    assert {d["caused_by"] for d in refused} <= calls
    denied = sent.find(f'{{job="audit", outcome="denied"}} | session="agent:main:{session}" | event="tool.result"', 2)
    assert "tell whoever operates this agent" in denied[0].line, "the user's words"


def test_a_tool_waits_until_its_event_has_arrived_and_to_be_handed_over_is_not_enough(stored: Stack) -> None:
    session = f"stored-{uuid.uuid4().hex[:8]}"
    assert ran(stored, session)
    receiver = stored.container("syslog-ng")
    receiver.pause()  # its kernel goes on to take what is sent; nobody reads it
    try:
        assert not ran(stored, session), "it ran, and nobody had read its event"
    finally:
        receiver.unpause()
    stored.wait_healthy("syslog-ng")
    eventually(lambda: ran(stored, session), 60, "it runs again")
    found = stored.find('{job="audit", agent="openclaw"} | event="policy.decision" | json | policy_rule="gate.stored"')
    assert json.loads(found[-1].line)["outcome"] == "denied"


def test_nobody_but_the_forwarders_own_container_can_break_the_glass(running: Stack) -> None:
    ask = ("const s=require('net').connect('/run/clawtrail/audit.sock',()=>s.write(JSON.stringify({n:1,open:{seconds:9,reason:'let me'}})+'\\n'));"
           "s.on('data',d=>{console.log(String(d));s.destroy()})")  # fmt: skip
    _, said = running.run_inside("openclaw", "node", "-e", ask)  # a main process of the gateway's container, and its uid
    assert '"ok": false' in said
    assert "gate_open" not in running.compose("exec", "-T", "forwarder", "clawtrail", "health").stdout
