"""The commands of the README and of the Makefile, run as a user runs them, on the tests' stack."""

from __future__ import annotations

import json
import os
import re
import subprocess

from harness import ROOT, Stack


def make(stack: Stack, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "ENV_FILE": str(stack.env_file), **environment}
    return subprocess.run(["make", "-s", "-C", str(ROOT), *arguments], env=env, capture_output=True, text=True, timeout=300)


def test_make_query_prints_json_lines(running: Stack) -> None:
    with running.recorder("xi") as recorder:
        sent = recorder.record("tool.call", "attempt", session='pi "1" `2` $HOME', tool={"name": "exec"})
    running.find(f'{{job="audit", agent="xi"}} | epoch="{sent.epoch}" | seq="{sent.seq}"')
    done = make(running, "query", 'Q={job="audit", agent="xi"} | session="pi \\"1\\" `2` $HOME"', "SINCE=1h")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [sent.id]


def test_make_query_prints_what_is_no_json_inside_json(running: Stack) -> None:
    for line in make(running, "query", 'Q={job=~"audit.*", agent=~"mu|nu|lambda|gamma"}').stdout.splitlines():
        assert isinstance(json.loads(line), dict)


def test_an_invalid_query_gives_lokis_own_words_and_exit_code_2(running: Stack) -> None:
    done = make(running, "query", 'Q={job="audit"')
    assert done.returncode == 2
    assert "parse error at line 1" in done.stderr and not done.stdout


def test_a_second_make_up_changes_nothing_and_proves_itself_again(running: Stack) -> None:
    before = {s: running.container(s).attrs["State"]["StartedAt"] for s in ("loki", "syslog-ng", "forwarder", "openclaw")}
    done = make(running, "up")
    assert done.returncode == 0, done.stdout + done.stderr
    steps = re.findall(r"^\[\+\] (\w+)", done.stdout, re.M)
    assert [s for s in steps if s not in ("Grafana",)] == ["Checks", "Images", "Secrets", "Certificates", "Containers", "Proof"], done.stdout
    for name in ("Secrets", "Certificates", "Containers"):
        assert re.search(rf"^\[\+\] {name} .*unchanged$", done.stdout, re.M), done.stdout
    assert {s: running.container(s).attrs["State"]["StartedAt"] for s in before} == before


def test_make_demo_shows_the_trail_of_a_real_openclaw(running: Stack) -> None:
    done = make(running, "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r"\d\d:\d\d:\d\d", line)]
    assert {"tool.call", "tool.result", "credential.access", "model.decision", "run.end", "subagent.start", "subagent.end"} <= {r[1] for r in rows}
    outcomes = {(r[1], r[2], r[3]) for r in rows}
    assert {("tool.result", "exec", "success"), ("tool.result", "exec", "failure"), ("tool.result", "read", "failure"),
            ("credential.access", "read", "attempt")} <= outcomes  # fmt: skip
    assert any("subagent" in r[4] for r in rows if len(r) > 4 and r[1] == "tool.call")


def test_make_status_logs_password_and_help_answer(running: Stack) -> None:
    status = make(running, "status").stdout
    assert all(service in status for service in ("openclaw", "forwarder", "syslog-ng", "loki"))
    assert "listening on" in make(running, "logs", "S=forwarder").stdout
    assert re.fullmatch(r"\S{20,}", make(running, "password").stdout.strip())
    assert "make up" in make(running).stdout


def test_the_readmes_command_blocks_run(running: Stack) -> None:
    """Every block marked `sh` of the README, in order, against the tests' stack; cloning is what the tests ran from."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks
    env = {**os.environ, "ENV_FILE": str(running.env_file)}
    for block in blocks:
        script = "\n".join(line for line in block.splitlines() if not line.startswith(("git clone", "cd ")))
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
