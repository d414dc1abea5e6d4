"""What must reach a person fires in the store's own rules, and ordinary events that speak of it do not."""

from __future__ import annotations

import requests
from harness import Stack, eventually, frame, send_raw
from test_commands import make
from test_gates_live import glass

WITHIN = 100  # seconds: 30 between two looks of the ruler, and what a busy machine adds


def firing(stack: Stack) -> set[tuple[str, str]]:
    found = requests.get(f"{stack.loki_url}/prometheus/api/v1/alerts", timeout=10).json()["data"]["alerts"]
    return {(a["labels"]["alertname"], a["labels"].get("agent", "")) for a in found if a["state"] == "firing"}


def test_each_rule_fires_for_its_agent_and_for_no_other(running: Stack) -> None:
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


def test_an_opening_of_the_gates_alarms_and_one_command_shows_it(running: Stack) -> None:
    glass(running, "--for", "1m", "--reason", "to hear the alarm", "--by", "ada")
    glass(running, "--close", "--by", "ada")
    eventually(lambda: {("GateOpen", "openclaw"), ("CriticalFlag", "openclaw")} <= firing(running), WITHIN, "the opening alarms")
    shown = make(running, "alerts")
    assert shown.returncode == 0, shown.stderr
    [line] = [line for line in shown.stdout.splitlines() if " GateOpen " in line and " openclaw: " in line]
    assert line.startswith("critical") and "openclaw: somebody opened the gates" in line
    assert shown.stdout.startswith("SEVERITY") and "Watchdog" not in shown.stdout
