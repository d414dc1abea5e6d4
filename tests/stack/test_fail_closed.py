"""No record, no action: without the forwarder no tool runs and no run starts."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path

import pytest
from harness import ROOT, Stack, eventually

UNDERSTOOD = "This action was not carried out: the audit recorder does not answer, and what cannot be recorded is not done."
INVOKE = """
const token = require('fs').readFileSync('/run/secrets/gateway-token', 'utf8').trim();
fetch('http://127.0.0.1:18789/tools/invoke', {
  method: 'POST', headers: {authorization: `Bearer ${token}`, 'content-type': 'application/json', 'x-openclaw-session-key': 'agent:main:invoke'},
  body: JSON.stringify({tool: 'session_status', args: {}}),
}).then(async (r) => console.log(r.status, await r.text()));
"""


def invoke(stack: Stack) -> str:
    """A tool, asked for over the gateway's HTTP: status and answer."""
    return stack.run_inside("openclaw", "node", "-e", INVOKE)[1]


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
def test_without_the_forwarder_no_tool_runs_whoever_asks_for_it(running: Stack) -> None:
    """Over HTTP no model is asked, so it is the plugin's own no that is met here."""
    assert invoke(running).startswith("200 "), "it works while there is a forwarder"
    running.container("forwarder").stop(timeout=5)
    said = invoke(running)
    assert not said.startswith("200 ") and UNDERSTOOD in said, said


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
    (end,) = running.find(f'{{job="audit", agent="openclaw"}} | session="agent:main:{session}" | event="run.end"', within=60)[:1]
    assert json.loads(end.line)["outcome"] != "success"
    calls = running.query(f'{{job="audit", agent="openclaw", outcome="attempt"}} | session="agent:main:{session}" | event="tool.call"')
    assert len(calls) == 1, "without the forwarder no model is asked either, so there is no second call to refuse"


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


def test_openclaw_is_unhealthy_while_our_plugin_is_not_loaded(running: Stack, tmp_path: Path) -> None:
    """The gateway itself is ready without its plugin, and would let every tool run: only the health check tells."""
    config = json.loads((ROOT / "agent/openclaw/openclaw.json").read_text())
    config["plugins"]["entries"]["clawtrail"]["enabled"] = False
    (tmp_path / "openclaw.json").write_text(json.dumps(config))
    for folder in (tmp_path, tmp_path.parent):
        folder.chmod(0o755)
    secrets = running.folder / "secrets"
    gateway = running.docker.containers.run(
        f"clawtrail/openclaw:{running.env['OPENCLAW_VERSION']}-{running.env['CLAWTRAIL_VERSION']}",
        detach=True, read_only=True, network_mode="none", hostname="openclaw", mem_limit="2g",
        environment={k: running.env[k] for k in ("MODEL_API", "MODEL_NAME")},
        tmpfs={"/tmp": "mode=1777", "/home/node": "uid=1000,gid=1000,mode=700", "/state": "uid=1000,gid=1000,mode=700"},
        volumes={
            str(tmp_path / "openclaw.json"): {"bind": "/etc/openclaw/openclaw.json", "mode": "ro"},
            str(secrets / "gateway-token"): {"bind": "/run/secrets/gateway-token", "mode": "ro"},
        },
    )  # fmt: skip
    try:
        ready = ("node", "-e", "fetch('http://127.0.0.1:18789/readyz').then(r=>process.exit(r.ok?0:1),()=>process.exit(1))")
        eventually(lambda: gateway.exec_run(list(ready)).exit_code == 0, 90, "the gateway is ready")
        done = gateway.exec_run(["node", "/opt/clawtrail/healthcheck.mjs"])
        assert done.exit_code == 1 and b"plugin: not loaded" in done.output
    finally:
        gateway.remove(force=True, v=True)
