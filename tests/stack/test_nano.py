"""The Python agent of the profile `nano`: the real nanobot, its forwarder and model proxy, beside OpenClaw in one trail."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from harness import Stack, eventually

TURN = ["clawtrail", "nanobot", "--secret=MODEL_KEY=/run/secrets/nano-agent-token", "agent", "--config=/var/lib/nano/config.json"]


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


def test_a_run_of_nano_is_whole_in_the_store_told_by_the_hook_and_by_the_model_proxy(nano: Stack) -> None:
    session = f"nano-{uuid.uuid4().hex[:8]}"
    code, said = turn(nano, session, "exec", {"command": "echo hello-from-nano; cat ~/.ssh/id_ed25519"})
    assert code == 0 and "hello-from-nano" in said, said
    found = events(nano, f'{{job="audit", agent="nano-claw"}} | session="{session}"', 16)
    assert [f"{e['kind']} {e['model']['via']}" if e["kind"].startswith("model.") else e["kind"] for e in found] == [
        "message.in", "run.start",
        "model.request hook", "model.request proxy", "model.decision proxy", "model.decision hook",
        "tool.call", "credential.access", "tool.result", "credential.access",
        "model.request hook", "model.request proxy", "model.decision proxy", "model.decision hook",
        "message.out", "run.end",
    ]  # fmt: skip
    by_id = {e["id"]: e for e in found}
    call = next(e for e in found if e["kind"] == "tool.call")
    result = next(e for e in found if e["kind"] == "tool.result")
    assert by_id[result["caused_by"]] is call and by_id[call["caused_by"]]["decision"]["calls"][0]["tool"] == "exec"
    assert call["flag"]["rule"] == "cred.ssh-key"
    hook, proxy = (next(e for e in found if e["kind"] == "model.request" and e["model"]["via"] == via) for via in ("hook", "proxy"))
    assert hook["trace"] == proxy["trace"] and hook["run"] == proxy["run"] and proxy["actor"]["id"] == "nano-claw"
    assert len({(e["epoch"], e["agent"]["name"]) for e in found}) == 1, "one recorder, one chain"


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
    eventually(lambda: nano.query(query), 90, "what the forwarder has kept meanwhile")


def test_the_same_secret_at_openclaw_and_at_nano_is_one_fingerprint_and_one_query(nano: Stack) -> None:
    key, secret = f"shared-{uuid.uuid4().hex[:8]}", f"Tr0ub4dor-{uuid.uuid4().hex[:12]}"
    assert nano.turn(key, ("exec", {"command": f"echo password={secret}"})).returncode == 0
    assert turn(nano, key, "exec", {"command": f"echo password={secret}"})[0] == 0
    first = events(nano, f'{{job="audit", agent="openclaw"}} | session="agent:main:{key}" | event="tool.call"')[0]
    fps = first["content"]["fps"]
    both = events(nano, f'{{job="audit", category="tool"}} | event="tool.call" | json | content_fps="{fps}"', 2)
    assert {(e["agent"]["name"], e["session"]) for e in both} == {("openclaw", f"agent:main:{key}"), ("nano-claw", key)}
    assert not nano.query(f'{{job="audit"}} |= "{secret}"')


@pytest.mark.stops("nano-forwarder")
def test_without_its_forwarder_nano_runs_nothing_and_works_again_when_it_is_back(nano: Stack) -> None:
    marker = f"/tmp/{uuid.uuid4().hex}"
    nano.container("nano-forwarder").stop(timeout=10)
    code, said = turn(nano, "s", "exec", {"command": f"touch {marker}"})
    assert code != 0 and "no record, no action" in said, said
    assert nano.run_inside("nano", "test", "-e", marker)[0] != 0
    nano.container("nano-forwarder").start()
    nano.wait_healthy("nano-forwarder")
    code, said = turn(nano, "s", "exec", {"command": f"touch {marker}"})
    assert code == 0 and nano.run_inside("nano", "test", "-e", marker)[0] == 0, said


def test_nanobot_without_our_hook_gets_no_model_and_is_on_record(nano: Stack) -> None:
    marker = f"/tmp/{uuid.uuid4().hex}"
    command = f"MODEL_KEY=$(cat /run/secrets/nano-agent-token) nanobot agent --config=/var/lib/nano/config.json --message 'TOOL exec {{\"command\": \"touch {marker}\"}}'"
    code, said = nano.run_inside("nano", "sh", "-c", command)
    assert "no recorded run matches" in said and nano.run_inside("nano", "test", "-e", marker)[0] != 0, (code, said)
    denied = events(nano, '{job="audit", agent="nano-claw", outcome="denied"} | event="model.request" | json | flag_rule="trail.bypass" | policy_rule="run-gate"')
    assert denied[-1]["flag"]["severity"] == "high"


CHILD = """import socket, urllib.request as r, urllib.error as e
s = socket.socket(socket.AF_UNIX); s.settimeout(5); s.connect("/run/clawtrail/audit.sock")
s.sendall(b'{"n":1,"kind":"run.start","outcome":"attempt","fields":{"run":"made-up","trace":{"id":"%s"}}}\\n' % (b"ab" * 16)); print("SOCKET", s.recv(1000))
token = open("/run/secrets/nano-agent-token").read()
body = b'{"model":"demo","messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"exec"}}]}'
ask = r.Request("http://nano-forwarder:8300/model/chat/completions", body, {"authorization": "Bearer " + token, "content-type": "application/json", "traceparent": "00-" + "ab" * 16 + "-" + "cd" * 8 + "-01"})
try: print("MODEL", r.urlopen(ask).status)
except e.HTTPError as x: print("MODEL", x.code, x.read())
"""


def test_a_child_of_nanos_exec_cannot_speak_for_it_nor_ask_a_model(nano: Stack) -> None:
    session = f"child-{uuid.uuid4().hex[:8]}"
    written = turn(nano, session, "write_file", {"path": "/var/lib/nano/workspace/child.py", "content": CHILD})
    assert written[0] == 0, written[1]
    code, said = turn(nano, session, "exec", {"command": "/opt/nano/bin/python /var/lib/nano/workspace/child.py > /tmp/child.txt 2>&1"})
    assert code == 0, said
    tried = nano.run_inside("nano", "cat", "/tmp/child.txt")[1]
    assert "refused: process" in tried and "MODEL 400" in tried and "no recorded run" in tried, tried
    refused = events(nano, '{job="audit", agent="nano-claw", category="policy"} | json | flag_rule="trail.tamper"')
    assert any("child.py" in (e.get("target") or {}).get("id", "") for e in refused)
    flagged = events(nano, '{job="audit", agent="nano-claw", outcome="denied"} | event="model.request" | json | trace_id="' + "ab" * 16 + '"')
    assert flagged[0]["policy"]["rule"] == "run-gate"


def test_nano_has_no_way_out_but_the_model_proxy_and_no_key_of_anything(nano: Stack) -> None:
    code, said = nano.run_inside("nano", "sh", "-c", "id -u; ls /run/secrets; ls /etc/clawtrail 2>/dev/null; touch /opt/x /etc/x /run/clawtrail/x 2>&1 | grep -c Read-only")
    assert said.split() == ["6515", "nano-agent-token", "3"], said
    reach = "import socket,sys\ntry: socket.create_connection((sys.argv[1], int(sys.argv[2])), 3); print('open')\nexcept OSError as e: print('closed')"
    ways = {"nano-forwarder:8300": "open", f"{nano.address('syslog-ng', 'ingest')}:6514": "closed", f"{nano.address('demo-model', 'models')}:8080": "closed",
            f"{nano.address('loki', 'store')}:3100": "closed", f"{nano.address('openclaw', 'agents')}:18789": "closed", "1.1.1.1:443": "closed"}  # fmt: skip
    for way, state in ways.items():
        assert nano.run_inside("nano", "/opt/nano/bin/python", "-c", reach, *way.rsplit(":", 1))[1].strip() == state, way
