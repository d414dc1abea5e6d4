"""Who sent it is proven: the store's name comes from the certificate, never from what a message claims."""

from __future__ import annotations

import json
import uuid

from harness import Stack


def test_a_sender_with_certificate_a_that_claims_b_is_stored_as_a_and_marked(running: Stack) -> None:
    session = f"spoof-{uuid.uuid4().hex[:8]}"
    with running.recorder("agent-a", agent="agent-b") as recorder:
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, session=session)
    entry = running.find(f'{{job="audit", agent="agent-a"}} | session="{session}" | spoof="1"')[0]
    assert entry.labels["claimed"] == "agent-b"
    assert not running.query(f'{{job="audit", agent="agent-b"}} | session="{session}"')


def test_what_the_agent_starts_cannot_speak_for_the_gateway(running: Stack) -> None:
    """A command of the agent has the gateway's uid and reaches the socket; the kernel tells them apart."""
    session = f"forge-{uuid.uuid4().hex[:8]}"
    forged = json.dumps({"n": 1, "hook": "agent_end", "event": {"success": True}, "ctx": {"sessionKey": "forged-by-the-agent"}})
    script = (
        "const s=require('net').connect('/run/clawtrail/audit.sock');"
        f"s.on('error',e=>console.log('error',e.code));s.on('data',d=>console.log(String(d)));s.on('close',()=>process.exit());s.write({json.dumps(forged)}+'\\n')"
    )
    answer = running.turn(session, ("exec", {"command": f"node -e {json.dumps(script)}".replace("$", "\\$")}))
    assert "refused" in answer.stdout, answer
    denied = running.find('{job="audit", agent="openclaw", category="policy", outcome="denied"} |= "gateway-only"')
    assert json.loads(denied[-1].line)["flag"]["rule"] == "trail.tamper"
    assert not running.query('{job="audit"} | session="forged-by-the-agent"')
