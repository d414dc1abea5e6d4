"""What must reach a person fires in the store's own rules, and ordinary events that speak of it do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterator

import pytest
import requests
from docker.models.containers import Container
from harness import ROOT, Stack, eventually, frame, send_raw
from test_commands import make
from test_gates_live import glass

WITHIN = 100  # seconds: 30 between two looks of the ruler, and what a busy machine adds


#: What Alertmanager's API v2 takes, one JSON list per line of output.
LISTENER = """
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        print(body.decode() if self.path == "/api/v2/alerts" else "[]", flush=True)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer(("", 9093), Handler).serve_forever()
"""


@pytest.fixture
def alertmanager(running: Stack) -> Iterator[Container]:
    """Stands where .env says that the alerts go."""
    container = running.docker.containers.run(
        f"clawtrail/agent:{running.env['CLAWTRAIL_VERSION']}", ["python3", "-c", LISTENER], name=f"{running.project}-alertmanager",
        network=f"{running.project}_store", init=True, detach=True, read_only=True, mem_limit="64m",
    )  # fmt: skip
    try:
        yield container
    finally:
        container.remove(force=True)


def received(alertmanager: Container) -> set[tuple[str, str]]:
    told = [alert["labels"] for line in alertmanager.logs().decode().splitlines() for alert in json.loads(line)]
    return {(labels["alertname"], labels.get("agent", "")) for labels in told}


def firing(stack: Stack) -> set[tuple[str, str]]:
    found = requests.get(f"{stack.loki_url}/prometheus/api/v1/alerts", timeout=10).json()["data"]["alerts"]
    return {(a["labels"]["alertname"], a["labels"].get("agent", "")) for a in found if a["state"] == "firing"}


def test_each_rule_fires_for_its_agent_and_for_no_other_and_is_sent_on(running: Stack, alertmanager: Container) -> None:
    flag = {"rule": "trail.bypass", "severity": "high", "technique": "T1562.001"}
    with running.recorder("alert-bypass") as recorder:
        recorder.record("model.request", "denied", session="alerts", model={"requested": "m"}, flag=flag)
    with running.recorder("alert-flag") as recorder:
        recorder.record("tool.call", "attempt", session="alerts", tool={"name": "exec"}, flag={"rule": "trail.tamper", "severity": "critical"})
    with running.recorder("alert-drop") as recorder:
        recorder.record("system.drop", "failure", dropped={"n": 1, "reason": "rejected"})
    with running.recorder("alert-spoof", agent="somebody-else") as recorder:
        recorder.record("tool.call", "attempt", session="alerts", tool={"name": "exec"})
    with running.recorder("alert-open") as recorder:  # an opening that is older than the rule looks back
        recorder.record("system.heartbeat", health={"component": "forwarder", "gate_open": "2099-01-01T00:00:00.000000Z"})
    send_raw(running, running.receiver, "alert-dead", frame(b"no syslog message"))
    with running.recorder("alert-talk") as recorder:  # what an attacker can write into an event
        said = '"flag":{"severity":"critical","rule":"trail.bypass"},"policy":{"rule":"gate.open"}, "spoof":"1"'
        recorder.record("tool.call", "attempt", session="alerts", tool={"name": "exec"}, params={"command": said, "flag": {"severity": "critical"}})
        recorder.record("policy.decision", "success", session="alerts", policy={"rule": "gate.close", "verdict": "allow", "reason": said})
    expected = {("Bypass", "alert-bypass"), ("CriticalFlag", "alert-flag"), ("EventsLost", "alert-drop"), ("GateOpen", "alert-open"),
                ("IdentityMismatch", "alert-spoof"), ("DeadLetter", "alert-dead"), ("Watchdog", "")}  # fmt: skip
    running.find('{job="audit", agent="alert-talk"} | event="policy.decision"')
    found = eventually(lambda: f if expected <= (f := firing(running)) else print(sorted(f)), WITHIN, "every alert fires")
    assert {one for one in found if one[1].startswith("alert-")} == expected - {("Watchdog", "")}
    eventually(lambda: expected <= received(alertmanager), WITHIN, "every alert is sent to the Alertmanager")


def test_an_opening_of_the_gates_alarms_and_one_command_shows_it(running: Stack) -> None:
    glass(running, "--for", "1m", "--reason", "to hear the alarm", "--by", "ada")
    glass(running, "--close", "--by", "ada")
    eventually(lambda: {("GateOpen", "openclaw"), ("CriticalFlag", "openclaw")} <= firing(running), WITHIN, "the opening alarms")
    shown = make(running, "alerts")
    assert shown.returncode == 0, shown.stderr
    [line] = [line for line in shown.stdout.splitlines() if " GateOpen " in line and " openclaw: " in line]
    assert line.startswith("critical") and "openclaw: somebody opened the gates" in line
    assert shown.stdout.startswith("SEVERITY") and "Watchdog" not in shown.stdout


def test_rules_that_cannot_be_read_are_told_and_not_taken_for_quiet(running: Stack, tmp_path: Path) -> None:
    """One broken rule takes all of them with it; nothing fires then, and that must not look like peace."""
    rules = tmp_path / "rules/fake"
    rules.mkdir(parents=True)
    (rules / "trail.yaml").write_text((ROOT / "loki/rules/fake/trail.yaml").read_text())
    (rules / "own.yaml").write_text("groups: [{name: own, rules: [{alert: Broken, expr: 'sum(('}]}]\n")
    for path in (tmp_path, *tmp_path.parents[:2], rules.parent, rules):
        path.chmod(0o755)
    name = f"{running.project}-loki-broken"
    its = running.container("loki")
    loki = running.docker.containers.run(
        its.image, its.attrs["Config"]["Cmd"], entrypoint=[], user="10001:10001", name=name, network=f"{running.project}_store", detach=True,
        read_only=True, mem_limit="512m", tmpfs={"/loki": "uid=10001"}, environment={"RETENTION": running.env["RETENTION"]},
        volumes={str(ROOT / "loki/loki.yaml"): {"bind": "/etc/loki/loki.yaml", "mode": "ro"}, str(rules.parent): {"bind": "/etc/loki/rules", "mode": "ro"}},
    )  # fmt: skip
    try:
        eventually(lambda: b"own.yaml" in loki.logs(), 90, "Loki names the file")
        shown = running.compose("run", "--rm", "-T", "operator", "clawtrail", "alerts", "--loki", f"http://{name}:3100", check=False)
        assert shown.returncode == 1 and "Watchdog is missing" in shown.stderr
    finally:
        loki.remove(force=True)
