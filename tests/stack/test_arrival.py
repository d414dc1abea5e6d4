"""Every way in leads to Loki: right labels, the line byte for byte, found by session, tool and agent."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import logging.handlers
import ssl
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import ROOT, Stack, eventually

from clawtrail import TLSSysLogHandler, event, recorder
from clawtrail.store import Entry


def fresh(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:8]}"


def assert_labels(entry: Entry, **expected: str) -> None:
    found = {k: entry.labels.get(k) for k in expected}
    assert found == expected


def test_an_event_by_record_is_stored_byte_for_byte_and_found_by_session_tool_and_agent(running: Stack) -> None:
    session = fresh("record")
    with running.recorder("alpha") as recorder:
        sent = recorder.record("tool.call", "attempt", session=session, run="r-1", tool={"name": "search"}, params={"q": "ü \\ \" ]"})
    entry = running.find(f'{{job="audit", agent="alpha"}} | session="{session}" | tool="search"')[0]
    assert entry.line.encode() == sent.line
    assert_labels(entry, job="audit", agent="alpha", category="tool", outcome="attempt", session=session, run="r-1", tool="search",
                  event="tool.call", epoch=sent.epoch, seq=str(sent.seq))  # fmt: skip
    assert "spoof" not in entry.labels


def test_the_wheel_in_an_empty_environment_ships_the_example_to_the_stack(running: Stack, tmp_path: Path) -> None:
    """As `pip install clawtrail` on a host that has nothing else, with nothing of this repository in reach."""
    run = functools.partial(subprocess.run, check=True, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--disable-pip-version-check", "-w", "wheel", str(ROOT / "agent")])
    run([sys.executable, "-m", "venv", "empty"])
    run(["empty/bin/python", "-m", "pip", "install", "-q", "--no-index", "--disable-pip-version-check", *map(str, tmp_path.glob("wheel/*.whl"))])
    listed = run(["empty/bin/python", "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]).stdout
    assert {line.partition("==")[0] for line in listed.splitlines()} <= {"clawtrail", "pip", "setuptools"}
    environment = {"CLAWTRAIL_TLS": str(running.client("my-agent")), "RECEIVER_PORT": str(running.receiver[1]), "CLAWTRAIL_SPOOL": "spool"}
    since = time.time_ns()
    assert run(["empty/bin/python", str(ROOT / "agent/examples/agent.py")], env=environment).stderr == ""
    stored = running.find('{job="audit", agent="my-agent"} | session="s-1" | tool="exec"', 2)
    call, result = (json.loads(e.line) for e in sorted(stored, key=lambda e: int(e.labels["seq"])))
    assert call["kind"] == "tool.call" and call["params"] == {"command": "date"} and call["ts"] > event.timestamp(since / 1e9)
    assert result["kind"] == "tool.result" and result["outcome"] == "success" and result["caused_by"] == call["id"]


def test_an_event_by_the_handler_is_stored_byte_for_byte_and_found_by_session_tool_and_agent(running: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    session, sent = fresh("handler"), []
    folder = running.client("beta")
    handler = TLSSysLogHandler(address=list(running.receiver), ssl=True, cafile=str(folder / "ca.crt"), agent="beta")
    monkeypatch.setattr(recorder, "_taps", {sent.append})
    log = logging.getLogger(fresh("agent"))
    log.addHandler(handler)
    log.warning("reading %s", "mail", extra={"kind": "tool.call", "outcome": "attempt", "tool": {"name": "mail"}, "session": session})
    handler.close()
    entry = running.find(f'{{job="audit", agent="beta"}} | session="{session}" | tool="mail"')[0]
    assert entry.line.encode() == sent[0]
    assert_labels(entry, agent="beta", category="tool", outcome="attempt", event="tool.call")


def test_the_forums_own_logging_yaml_ships_with_its_class_line_and_the_ca_changed(running: Stack) -> None:
    """That very file, run as its user would: in a container that knows the receiver by the name in it."""
    started = time.time()
    output = running.docker.containers.run(
        f"clawtrail/agent:{running.env['CLAWTRAIL_VERSION']}",
        ["python3", "/examples/nano_claw.py"],
        network=f"{running.project}_ingest",
        extra_hosts={"your.syslog.server.fqdn": running.address("syslog-ng", "ingest")},
        volumes={
            str(ROOT / "agent/examples"): {"bind": "/examples", "mode": "ro"},
            str(running.folder / "certs/clients/nano-claw"): {"bind": "/etc/clawtrail/tls", "mode": "ro"},
            str(Path(yaml.__file__).parent): {"bind": "/deps/yaml", "mode": "ro"},
        },
        environment={"CLAWTRAIL_SPOOL": "/tmp/spool", "PYTHONPATH": "/deps:/opt/clawtrail/lib/python3.13/site-packages", "PATH": "/opt/clawtrail/bin:/usr/bin:/bin"},
        user=str((running.folder / "certs/clients/nano-claw/client.key").stat().st_uid),
        remove=True,
        stderr=True,
    )
    assert b"Error" not in output, output.decode()
    query = '{job="audit", agent="nano-claw"} | session="forum-1" | tool="exec"'
    entry = eventually(lambda: [e for e in running.query(query) if e.time > (started - 5) * 1e9], what=query)[0]
    event = json.loads(entry.line)
    assert_labels(entry, category="log", outcome="unknown", event="log.record", run="r1")
    assert " - nano-claw - INFO - [nano-claw] - tool call: exec uname -a" in event["content"]["excerpt"]
    assert_chain_whole(running, entry.labels["epoch"])


def test_a_line_of_the_stock_handler_is_stored_as_its_formatter_wrote_it(running: Stack) -> None:
    """logging.handlers.SysLogHandler, wrapped in TLS by hand."""
    session, folder = fresh("stock"), running.client("gamma")
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "client.crt", folder / "client.key")
    handler = logging.handlers.SysLogHandler(address=running.lines, socktype=__import__("socket").SOCK_STREAM)
    handler.socket = context.wrap_socket(handler.socket, server_hostname="localhost")
    formatter = logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - [gamma] - %(message)s")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    written: list[str] = []
    handler.format = lambda record: written.append(formatter.format(record)) or written[-1]  # type: ignore[method-assign, func-returns-value]
    log = logging.getLogger(fresh("stock"))
    log.addHandler(handler)
    log.warning("tool call [agent-8] session=%s tool=exec run=r9", session)
    handler.close()
    entry = running.find(f'{{job="audit", agent="gamma"}} | session="{session}" | tool="exec"')[0]
    assert entry.line == written[0]
    assert_labels(entry, category="log", outcome="unknown", event="log.record", run="r9")
    assert "spoof" not in entry.labels


def test_a_tool_call_of_a_real_openclaw_is_stored_and_found_by_session_tool_and_agent(running: Stack) -> None:
    session = fresh("arrive")
    answer = running.turn(session, ("exec", {"command": "echo a-real-call"}))
    assert "a-real-call" in answer.stdout, answer.stderr
    query = f'{{job="audit", agent="openclaw", category="tool"}} | session="agent:main:{session}" | tool="exec"'
    call, result = running.find(query, 2)[:2]
    assert_labels(call, event="tool.call", outcome="attempt")
    assert_labels(result, event="tool.result", outcome="success")
    assert json.loads(call.line)["params"] == {"command": "echo a-real-call"}
    assert json.loads(result.line)["caused_by"] == json.loads(call.line)["id"]
    assert_chain_whole(running, call.labels["epoch"])


def assert_chain_whole(stack: Stack, epoch: str) -> None:
    """Every number from 1 on is there, and each line's `prev` is the SHA-256 of the stored line before it."""
    entries = sorted(stack.query(f'{{job="audit"}} | epoch="{epoch}"'), key=lambda e: int(e.labels["seq"]))
    assert [int(e.labels["seq"]) for e in entries] == list(range(1, len(entries) + 1))
    previous = "unknown"
    for entry in entries:
        assert json.loads(entry.line)["prev"] == previous, f"seq {entry.labels['seq']}"
        previous = hashlib.sha256(entry.line.encode()).hexdigest()


def test_two_agents_correlate_in_one_query(running: Stack) -> None:
    session = fresh("shared")
    for name in ("delta", "epsilon"):
        with running.recorder(name) as recorder:
            recorder.record("message.out", "success", session=session, peer={"agent": "delta" if name == "epsilon" else "epsilon"})
    entries = running.find(f'{{job="audit"}} | session="{session}"', 2)
    assert {e.labels["agent"] for e in entries} == {"delta", "epsilon"}


def test_the_archive_file_holds_what_loki_holds(running: Stack) -> None:
    with running.recorder("zeta") as recorder:
        sent = recorder.record("tool.call", "attempt", tool={"name": "exec"}, session=fresh("archive"))
    running.find(f'{{job="audit", agent="zeta"}} | epoch="{sent.epoch}" | seq="{sent.seq}"')
    code, text = eventually(
        lambda: found if (found := running.run_inside("syslog-ng", "grep", "-rhF", sent.id, "/var/log/audit"))[0] == 0 else None, what="archive file"
    )
    assert json.loads(text.splitlines()[0])["line"].encode() == sent.line
