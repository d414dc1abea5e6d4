"""Each container reaches what the design allows and has the rights that it needs, and no more."""

from __future__ import annotations

import json
import re
import uuid

import pytest
from harness import Stack, eventually

RUNNING = ("pod", "openclaw", "forwarder", "syslog-ng", "loki", "demo-model")
CONNECT = {  # each container's own means to open a connection; exit code 0: connected
    "openclaw": ("node", "-e", "const s=require('net').connect({0},'{1}');s.setTimeout(2000,()=>process.exit(1));"
                               "s.on('connect',()=>process.exit(0));s.on('error',()=>process.exit(1))"),
    "forwarder": ("python3", "-c", "import socket;socket.create_connection(('{1}',{0}),2)"),
    "demo-model": ("python3", "-c", "import socket;socket.create_connection(('{1}',{0}),2)"),
    "syslog-ng": ("timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/{1}/{0}"),
}  # fmt: skip
TARGETS = {
    "loki": ("loki", "store", 3100),
    "loki grpc": ("loki", "store", 9096),
    "receiver": ("syslog-ng", "ingest", 6514),
    "receiver from the store": ("syslog-ng", "store", 6514),
    "lines": ("syslog-ng", "ingest", 6515),
    "model": ("demo-model", "models", 8080),
    "model proxy": ("forwarder", "agents", 8300),
    "gateway": ("openclaw", "agents", 18789),
}
ALLOWED = {
    ("openclaw", "model proxy"), ("forwarder", "model proxy"), ("forwarder", "model"), ("demo-model", "model"),
    ("forwarder", "receiver"), ("forwarder", "lines"),
    ("syslog-ng", "loki"),
    ("syslog-ng", "receiver"), ("syslog-ng", "lines"), ("syslog-ng", "receiver from the store"),
}  # fmt: skip


@pytest.mark.parametrize("source", CONNECT)
@pytest.mark.parametrize("target", TARGETS)
def test_a_container_reaches_what_the_design_allows_and_nothing_else(running: Stack, source: str, target: str) -> None:
    service, network, port = TARGETS[target]
    command = [part.replace("{0}", str(port)).replace("{1}", running.address(service, network)) for part in CONNECT[source]]
    code, said = running.run_inside(source, *command)
    assert (code == 0) == ((source, target) in ALLOWED), said


@pytest.mark.parametrize("source", ["openclaw", "forwarder", "demo-model"])
def test_the_published_ports_are_not_a_way_round(running: Stack, source: str) -> None:
    """The host's side of a container's network is a way to ports published on all addresses; ours are on loopback."""
    for network in running.container(source).attrs["NetworkSettings"]["Networks"].values():
        for port in (running.env["RECEIVER_PORT"], running.env["LINES_PORT"], running.env["GRAFANA_PORT"]):
            command = [part.replace("{0}", port).replace("{1}", network["Gateway"]) for part in CONNECT[source]]
            assert running.run_inside(source, *command)[0] != 0


@pytest.mark.parametrize("service", RUNNING)
def test_every_service_runs_with_the_least_rights(running: Stack, service: str) -> None:
    attributes = running.container(service).attrs
    host, user = attributes["HostConfig"], attributes["Config"]["User"]
    assert host["ReadonlyRootfs"] and not host["Privileged"]
    assert host["CapDrop"] == ["ALL"] and not host["CapAdd"]
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert host["Memory"] > 0 and host["PidsLimit"] > 0
    assert user.partition(":")[0] not in ("", "0", "root")
    for bindings in (host["PortBindings"] or {}).values():
        assert {b["HostIp"] for b in bindings} == {"127.0.0.1"}


@pytest.mark.parametrize("service", [s for s in RUNNING if s != "pod"])
def test_every_service_is_asked_whether_it_works(running: Stack, service: str) -> None:
    assert running.health(service) == "healthy"


def test_the_agent_holds_no_key_of_the_log_path_and_cannot_change_its_configuration(running: Stack) -> None:
    code, found = running.run_inside("openclaw", "sh", "-c", "ls /etc/clawtrail /etc/syslog-ng /run/secrets; touch /etc/openclaw/openclaw.json /run/clawtrail/x")
    assert code != 0
    assert "gateway-token" in found and "fingerprint-key" not in found and "client.key" not in found
    assert found.count("Read-only file system") + found.count("Permission denied") >= 2


# -- what a child of the agent's `exec` tries ----------------------------------------------------------------------

ASK = (
    "const s=require('net').connect('/run/clawtrail/audit.sock',()=>s.write(JSON.stringify({n:1,kind:'tool.call',outcome:'attempt',session:'forged'})+'\\n'));"
    "s.on('data',d=>{console.log(String(d));s.destroy()});s.on('error',e=>console.log(e.message))"
)
OPEN = ASK.replace("{n:1,kind:'tool.call',outcome:'attempt',session:'forged'}", "{n:1,open:{seconds:900,reason:'let me through'}}")
PTRACE = 'perl -e \'$!=0; syscall($ARGV[0],16,PID,0,0)==-1 and print "ptrace: $!"\' $([ "$(uname -m)" = aarch64 ] && echo 117 || echo 101)'
REQUEST = "fetch('http://127.0.0.1:18789/v1/chat/completions',{method:'POST',body:'{}'}).then(r=>console.log('status '+r.status))"
#: What it tries → the command (PID: the forwarder's), words of the refusal, the rule whose flag the call carries.
TRIED = {
    "to forge a record": (f'node -e "{ASK}"', "expected the gateway itself", "trail.tamper"),
    "to open the gates": (f'node -e "{OPEN}"', "expected the gateway itself", "trail.tamper"),
    "to replace the socket": ("rm -f /run/clawtrail/audit.sock; ls /run/clawtrail", "Read-only file system", "trail.tamper"),
    "to kill the forwarder": ("kill -9 PID", "not permitted", "trail.signal"),
    "to stop the forwarder": ("kill -STOP PID", "not permitted", "trail.signal"),
    "to trace the forwarder": (f"{PTRACE} # PTRACE_ATTACH", "not permitted", "trail.trace"),
    "to read the forwarder's environment": ("cat /proc/PID/environ", "Permission denied", "trail.trace"),
    "to read the forwarder's memory": ("head -c 64 /proc/PID/mem", "Permission denied", "trail.trace"),
    "to read the forwarder's files": ("cat /proc/PID/root/etc/clawtrail/tls/client.key", "Permission denied", "trail.trace"),
    "to read the forwarder's descriptors": ("ls -l /proc/PID/fd/", "Permission denied", "trail.trace"),
    "to read the spool": ("ls /var/lib/clawtrail/spool", "No such file", "trail.tamper"),
    "to edit the plugin": ("echo 'export default {}' > /opt/clawtrail/plugin/index.js", "Read-only file system|Permission denied", "trail.tamper"),
    "to remove the plugin": ("rm -rf /opt/clawtrail/plugin", "Read-only file system|Permission denied", "trail.tamper"),
    "to edit the configuration": ("echo '{}' > /etc/openclaw/openclaw.json", "Read-only file system|Permission denied", "trail.tamper"),
    "to switch the plugin off": ("OPENCLAW_CONFIG_READONLY= openclaw config set plugins.entries.clawtrail.enabled false",
                                 "EROFS|EACCES|EBUSY|[Rr]ead-only|[Pp]ermission|managed|refus", "trail.tamper"),
    "to ask the gateway without its token": (f'node -e "{REQUEST}"', "status 401", "trail.gateway"),
}  # fmt: skip


def forwarder_pid(stack: Stack) -> str:
    """As the agent sees it: the two containers share one process namespace."""
    found = stack.run_inside("openclaw", "sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline | grep -q '[c]lawtrail forwarder --socket' && echo ${p#/proc/}; done 2>/dev/null")[1]
    return found.split()[0]


@pytest.mark.parametrize("tried", TRIED)
def test_what_a_child_of_the_agent_tries_is_refused_recorded_and_flagged(running: Stack, tried: str) -> None:
    command, refusal, rule = TRIED[tried]
    pid = forwarder_pid(running)
    session = f"wall-{uuid.uuid4().hex[:8]}"
    running.turn(session, ("exec", {"command": f"({command.replace('PID', pid)}\n) 2>&1"}))
    query = f'{{job="audit", agent="openclaw"}} | session="agent:main:{session}"'
    (call,) = running.find(f'{query} | event="tool.call" | tool="exec"')
    (result,) = running.find(f'{query} | event="tool.result" | tool="exec"')
    said = json.loads(result.line)
    assert re.search(refusal, json.dumps([said.get("content"), said.get("error")])), said
    flag = json.loads(call.line).get("flag", {})
    assert rule in f"{flag.get('rule', '')} {flag.get('also', '')}".split(), flag
    assert forwarder_pid(running) == pid
    code, health = running.run_inside("openclaw", "node", "/opt/clawtrail/healthcheck.mjs")
    assert code == 0, health
    assert not running.query('{job="audit"} | session="forged"')


def test_a_process_of_the_agent_that_knocks_at_the_socket_is_named_on_the_record(running: Stack) -> None:
    session = f"knock-{uuid.uuid4().hex[:8]}"
    running.turn(session, ("exec", {"command": f'node -e "{ASK}" {session}'}))
    wanted = '{job="audit", agent="openclaw", outcome="denied"} | event="policy.decision"'
    eventually(lambda: any(session in json.loads(e.line).get("target", {}).get("id", "") for e in running.query(wanted)), 15, "the knock is on record")
    flags = [json.loads(e.line)["flag"] for e in running.query(wanted) if session in e.line]
    assert flags[0]["rule"] == "trail.tamper" and flags[0]["severity"] == "critical"


@pytest.mark.parametrize("tool", ["gateway", "plugins", "openclaw"])
def test_the_agents_own_tools_do_not_reach_its_configuration(running: Stack, tool: str) -> None:
    session = f"tool-{uuid.uuid4().hex[:8]}"
    running.turn(session, (tool, {"action": "disable", "id": "clawtrail", "name": "clawtrail", "patch": {"plugins": {"enabled": False}}}))
    running.find(f'{{job="audit", agent="openclaw"}} | session="agent:main:{session}" | event="model.decision"')
    code, health = running.run_inside("openclaw", "node", "/opt/clawtrail/healthcheck.mjs")
    assert code == 0, health
    assert not running.query(f'{{job="audit", outcome="success"}} | session="agent:main:{session}" | event="tool.result" | tool="{tool}"')


def test_an_agent_that_calls_its_gateway_with_the_token_is_recorded_like_any_other_and_flagged(running: Stack) -> None:
    """The token is readable by the gateway's uid, and so by what the agent starts: what it does with it goes through the same gates."""
    outer, inner = (f"{n}-{uuid.uuid4().hex[:8]}" for n in ("outer", "inner"))
    inside = f"node /opt/clawtrail/turn.mjs --session {inner} < /tmp/{inner} # /run/secrets/gateway-token"
    running.turn(outer, ("exec", {"command": f"echo 'TOOL exec {{\"command\":\"echo inner-ran\"}}' > /tmp/{inner}; {inside}"}))
    running.find(f'{{job="audit", agent="openclaw"}} | session="agent:main:{inner}" | event="run.start"')
    running.find(f'{{job="audit", agent="openclaw"}} | session="agent:main:{inner}" | event="tool.call"')
    (call,) = running.find(f'{{job="audit", agent="openclaw"}} | session="agent:main:{outer}" | event="tool.call"')
    assert json.loads(call.line)["flag"]["rule"].startswith("trail.")
