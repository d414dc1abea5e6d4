"""Secrets end to end: resolved on the record, refused without it, and in no place where an event comes by."""

from __future__ import annotations

import base64
import json
import random
import sys
import uuid
from pathlib import Path

import pytest
from harness import Stack, eventually

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
from support import letters, secrets

RESOLVER = "/opt/clawtrail/resolver/secret-resolver"
REQUEST = '{"protocolVersion":1,"provider":"clawtrail","ids":["agent-token"]}'


def test_the_resolution_at_the_start_of_the_gateway_is_on_record(running: Stack) -> None:
    found = running.find('{category="credential", outcome="success"} | credential="agent-token"', within=30)
    event = json.loads(found[0].line)
    assert event["credential"]["use"] == "resolve" and event["credential"]["provider"] == "clawtrail" and len(event["credential"]["fp"]) == 8
    assert RESOLVER in event["target"]["id"]


def test_the_gateway_s_container_holds_no_model_credential_and_its_environment_no_secret(running: Stack) -> None:
    token = (running.folder / "secrets" / "agent-token").read_text()
    code, listed = running.run_inside("openclaw", "sh", "-c", "ls /run/secrets; env")
    assert code == 0 and "agent-token" not in listed and "model-key" not in listed and token not in listed
    assert (running.folder / "secrets" / "gateway-token").read_text() not in listed


def test_a_child_of_the_agent_that_runs_the_resolver_is_refused_recorded_and_flagged(running: Stack) -> None:
    session = f"resolver-{uuid.uuid4().hex[:8]}"
    for command in (f"echo '{REQUEST}' | {RESOLVER}", f"{RESOLVER} <<'E'\n{REQUEST}\nE\n"):
        running.turn(session, ("exec", {"command": command}))
    token = (running.folder / "secrets" / "agent-token").read_text()
    denied = running.find('{category="credential", outcome="denied"} | credential="agent-token"', count=2, within=30)
    for one in denied:
        event = json.loads(one.line)
        assert event["flag"]["rule"] == "cred.secret-provider" and event["flag"]["severity"] == "critical" and event["policy"]["verdict"] == "deny"
    calls = [json.loads(e.line) for e in running.find('{category="tool", outcome="attempt"} | session="agent:main:%s"' % session, count=2)]
    assert all("cred.secret-provider" in (c["flag"]["rule"] + " " + c["flag"].get("also", "")) for c in calls)
    results = [json.loads(e.line) for e in running.find('{category="tool"} | session="agent:main:%s" | outcome!="attempt"' % session, count=2)]
    assert all(token not in e.line for e in running.query('{job=~".+"} |= "%s"' % token)) and all("REFUSED" in json.dumps(r) for r in results)


@pytest.mark.stops("forwarder", "openclaw")
def test_without_the_forwarder_there_is_no_secret(running: Stack) -> None:
    running.container("forwarder").stop(timeout=10)
    done = running.container("openclaw").exec_run(["sh", "-c", f"echo '{REQUEST}' | {RESOLVER}"])
    answer = json.loads(done.output)
    assert answer["values"] == {} and answer["errors"]["agent-token"]["code"] == "AUDIT_UNAVAILABLE"
    assert "no record, no secret" in answer["errors"]["agent-token"]["message"]


def inside(secret: str) -> str:
    """What is nowhere but in this secret: the middle of its longest line, armour left out."""
    line = max((line for line in secret.splitlines() if "-----" not in line), key=len)
    return line[max(0, len(line) // 2 - 8) :][:16]


def test_no_secret_of_the_corpus_is_anywhere_in_the_stack(running: Stack) -> None:
    """Parameters and results of the real agent, and the Python API; then every file and log that an event passes."""
    base = random.randrange(1 << 30)
    corpus, *others = (secrets(seed=base + n) for n in range(5))  # the agent's, and one for each way in which Python nests it
    everything = [secret for one in (corpus, *others) for secret in one.values()]
    assert len(corpus) >= 40 and len(set(everything)) >= 300
    session = f"corpus-{uuid.uuid4().hex[:8]}"
    kinds = list(corpus)
    script = []
    for i in range(0, len(kinds), 8):
        some = [corpus[k] for k in kinds[i : i + 8]]
        text = "\n".join(some[:4] + [base64.b64encode(s.encode()).decode() for s in some[4:]])
        script.append(("write", {"path": f"corpus-{i}.txt", "content": text}))
        script.append(("exec", {"command": f"cat corpus-{i}.txt"}))
        script.append(("read", {"path": f"corpus-{i}.txt"}))
    running.turn(session, *script, timeout=120)
    with running.recorder("nano-claw") as recorder:
        for n, (deep, written, name, encoded) in enumerate(zip(*(one.values() for one in others))):
            for params in ({"a": [{"b": {"c": [[{"d": deep}]]}}]}, {"body": json.dumps({"x": written})}, {name: 1}, {"b": base64.b64encode(encoded.encode()).decode()}):
                recorder.record("tool.call", "attempt", session=session, tool={"name": "t"}, params=params, step=n)
            recorder.record("tool.call", "attempt", session=session, tool={"name": "t"}, params={"password": letters(20, seed=n)})
        assert recorder.close(30)
    running.find('{agent="nano-claw"} | session="%s"' % session, count=5 * len(corpus), within=60)
    eventually(lambda: len(running.query('{category="tool"} | session="agent:main:%s"' % session)) >= 2 * len(script), 60, "the agent's calls")
    plain = [inside(secret) for secret in everything] + [letters(20, seed=n) for n in range(len(corpus))]
    assert all(len(window) >= 12 for window in plain), "each secret can be recognised"
    encoded_too = [w for s in everything if len(w := base64.b64encode(s.encode()).decode()[20:44]) >= 12]
    needles = "\n".join(sorted({*plain, *encoded_too})) + "\n"
    line = next(e.line for e in running.query('{agent="nano-claw"} | session="%s"' % session))
    assert "redacted" in line
    found = {(e.labels["category"], e.line[max(e.line.index(w) - 60, 0) :][:140]) for e in running.query('{job=~".+"}') for w in needles.split() if w in e.line}
    assert not found, "\n".join(map(str, sorted(found)))
    (running.folder / "needles").write_text(needles)
    client = running.docker
    grafana = ["grafana-data"] if "grafana" in running.env["COMPOSE_PROFILES"] else []
    volumes = {f"{running.project}_{v}": {"bind": f"/v/{v}", "mode": "ro"} for v in ("spool", "archive", "syslog-ng-data", "loki-data", *grafana)}
    image = f"clawtrail/agent:{running.env['CLAWTRAIL_VERSION']}"
    grep = "grep -rlaF -f /needles /v /s; test $? -eq 1 && find /v -type f | wc -l"
    said = client.containers.run(
        image, ["sh", "-c", grep], user="0:0", network_mode="none", remove=True,
        volumes={**volumes, str(running.folder / "needles"): {"bind": "/needles", "mode": "ro"}, str(running.folder / "spool"): {"bind": "/s", "mode": "ro"}},
    ).decode()  # fmt: skip
    assert said.strip().isdigit() and int(said) >= 4, said
    for name, log in running.logs(tail=100_000):
        assert not [w for w in needles.split() if w in log], name
