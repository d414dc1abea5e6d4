"""Each container reaches what the design allows and has the rights that it needs, and no more."""

from __future__ import annotations

import pytest
from harness import Stack

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
