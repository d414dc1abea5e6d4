"""`clawtrail pipe` as a process of its own: real pipes, a receiver that really listens, or does not."""

import json
import os
import signal
import subprocess
import sys

import pytest

from clawtrail.adapters.scribe import trace
from clawtrail.pipe import LINE_MAX
from support import eventually, secrets

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def start(pki, spool):
    made = []

    def run(port, *options, **environment):
        command = [sys.executable, "-m", "clawtrail.cli", "pipe", "--receiver", f"127.0.0.1:{port}", "--tls", str(pki.client), "--agent", "agent-1", *options]
        made.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **environment},
                                     preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)))  # what is started in the background ignores it, and its children do
        return made[-1]

    yield run
    for process in made:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()


def lines(*events):
    return b"".join(e if isinstance(e, bytes) else json.dumps(e).encode() + b"\n" for e in events)


def stored(receiver, kind=None):
    events = [json.loads(m.msg) for m in receiver.messages]
    return [e for e in events if e["kind"] == kind or (kind is None and not e["kind"].startswith("system."))]


CALL = {"kind": "tool.call", "outcome": "attempt", "session": "s-1", "tool": {"name": "exec", "call_id": "c-1"}, "params": {"command": "date"}}
RESULT = {"kind": "tool.result", "session": "s-1", "tool": {"name": "exec", "call_id": "c-1"}, "duration_us": 7}


def test_each_line_is_an_event_and_has_arrived_when_the_pipe_ends(start, receiver):
    out, err = (process := start(receiver.port)).communicate(lines(CALL, b"\n", RESULT), 20)
    assert (process.returncode, out, err) == (0, b"", b"")
    call, result = stored(receiver)
    assert (call["kind"], call["outcome"], call["params"]) == ("tool.call", "attempt", {"command": "date"})
    assert (result["outcome"], result["caused_by"]) == ("success", call["id"]), "an outcome finds its attempt by the call's id"
    assert call["agent"]["type"] == "pipe"


def test_a_script_is_answered_before_it_acts(start, receiver):
    process = start(receiver.port, "--ack")
    for n in range(3):
        process.stdin.write(lines({**CALL, "params": {"n": n}}))
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        eventually(lambda: answer["ack"] in [e["id"] for e in stored(receiver)])
    process.stdin.close()
    assert process.wait(20) == 0


def test_the_answers_come_in_the_order_of_the_lines_and_name_what_is_wrong(start, receiver):
    bad = [b"no json\n", b"[1]\n", b'{"outcome": "attempt"}\n', lines({"kind": "tool.cal"}), lines({**CALL, "outcom": "x"}), b'{"kind":"log.record","session":7}\n',
           b'{"kind":"log.record","time":"noon"}\n', b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"x" * (LINE_MAX + 9) + b"\n"]  # fmt: skip
    out, err = (process := start(receiver.port, "--ack")).communicate(lines(CALL, *bad, {**CALL, "self": 1}, RESULT), 20)
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == len(bad) + 3
    assert "ack" in answers[0] and "ack" in answers[-1]
    assert all(a["retry"] is False for a in answers[1:-1])
    assert "expected one object per line" in answers[1]["error"] and "expected one of tool.call" in answers[4]["error"]
    assert "expected fewer" in answers[10]["error"]
    assert process.returncode == 1
    said = err.decode()
    assert "line 2 is not recorded" in said and f"{len(bad) + 1} of {len(bad) + 3} lines are refused" in said
    assert [e["kind"] for e in stored(receiver)] == ["tool.call", "tool.result"]
    drops = stored(receiver, "system.drop")
    assert sum(d["dropped"]["n"] for d in drops) == len(bad) + 1
    assert drops[0]["error"]["message"] and drops[0]["content"]["excerpt"] == "no json"


def test_text_is_a_log_record_even_when_it_looks_like_an_event(start, receiver):
    secret = secrets()["github"]
    text = f"hello {secret}\n".encode() + lines(CALL) + b"\xff\n"
    process = start(receiver.port, "--text", "--session", "s-9", "--run", "r-9", TRACEPARENT=TRACE)
    process.communicate(text, 20)
    assert process.returncode == 0
    events = stored(receiver)
    assert [e["kind"] for e in events] == ["log.record"] * 3
    assert all((e["session"], e["run"]) == ("s-9", "r-9") and e["trace"] == {"id": TRACE[3:35], "parent": TRACE[36:52]} for e in events)
    assert events[0]["content"]["excerpt"].startswith("hello [redacted:") and secret not in json.dumps(events)


def test_what_a_line_says_itself_wins_over_the_options(start, receiver):
    start(receiver.port, "--session", "s-9").communicate(lines(CALL, {"kind": "log.record", "outcome": "unknown"}), 20)
    assert [e["session"] for e in stored(receiver)] == ["s-1", "s-9"]


def test_with_the_receiver_away_every_line_is_accepted_and_the_next_pipe_brings_it(start, make_receiver):
    receiver = make_receiver()
    receiver.refuse = "connect"
    out, err = (process := start(receiver.port, "--ack")).communicate(lines(CALL, RESULT), 30)
    assert process.returncode == 0
    assert all("ack" in json.loads(line) for line in out.splitlines())
    assert b"in the spool, for the next process" in err
    receiver.refuse = None
    start(receiver.port).communicate(lines({"kind": "log.record", "outcome": "unknown"}), 30)
    eventually(lambda: [e["kind"] for e in stored(receiver)] == ["tool.call", "tool.result", "log.record"], state=lambda: stored(receiver))


def test_without_a_spool_and_a_receiver_the_exit_code_says_that_events_are_lost(start, make_receiver):
    receiver = make_receiver()
    receiver.refuse = "connect"
    process = start(receiver.port, "--durability", "memory")
    _, err = process.communicate(lines(CALL), 40)
    assert process.returncode == 1 and b"they are lost" in err


def test_a_full_spool_refuses_and_says_that_the_line_may_come_again(start, make_receiver):
    receiver = make_receiver()
    receiver.refuse = "connect"
    big = {**CALL, "params": {f"p{n}": "x y " * 500 for n in range(15)}}
    process = start(receiver.port, "--ack", "--quota", "1 MiB", "--when-full", "fail")
    out, err = process.communicate(lines(*[big] * 60), 30)
    answers = [json.loads(line) for line in out.splitlines()]
    refused = [a for a in answers if "error" in a]
    assert process.returncode == 1 and len(answers) == 60
    assert 0 < len(refused) < 60 and all(a["retry"] is True for a in refused)


def test_a_call_that_reaches_for_a_credential_is_flagged_and_so_is_its_outcome(start, receiver):
    call = {**CALL, "params": {"command": "cat ~/.ssh/id_ed25519"}}
    start(receiver.port).communicate(lines(call, {**RESULT, "outcome": "failure"}), 20)
    flagged, asked, result, access = stored(receiver)
    assert flagged["flag"]["rule"] == "cred.ssh-key"
    assert (asked["kind"], asked["outcome"], asked["caused_by"], asked["credential"]["use"]) == ("credential.access", "attempt", flagged["id"], "read")
    assert (access["kind"], access["outcome"], access["caused_by"]) == ("credential.access", "failure", asked["id"])
    assert result["caused_by"] == flagged["id"]


def test_a_rule_that_forbids_answers_so_and_the_attempt_is_on_record(start, receiver, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "version: 1\nrules:\n- {id: my.no-date, name: no-date, on: [command], match: '\\bdate\\b', severity: high, technique: [T1059], action: deny, "
        "why: no clocks here, hit: [date -u], miss: [uptime]}\n")  # fmt: skip
    out, err = (process := start(receiver.port, "--ack", "--rules", str(tmp_path))).communicate(lines(CALL), 20)
    assert json.loads(out) == {"error": "forbidden by the rule my.no-date: no clocks here", "retry": False}, err
    assert process.returncode == 1
    call, policy = stored(receiver)
    assert (policy["kind"], policy["outcome"], policy["policy"]["verdict"], policy["caused_by"]) == ("policy.decision", "denied", "deny", call["id"])


def test_a_rule_that_wants_a_person_is_a_no_that_says_that_nobody_can_be_asked(start, receiver, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "version: 1\nrules:\n- {id: my.ask, name: ask, on: [command], match: '\\bdate\\b', severity: high, technique: [T1059], action: approve, "
        "why: ask first, hit: [date -u], miss: [uptime]}\n")  # fmt: skip
    out, err = (process := start(receiver.port, "--ack", "--rules", str(tmp_path))).communicate(lines(CALL), 20)
    expected = "needs approval by the rule my.ask: ask first. Nobody can be asked for approval here, so it was not carried out"
    assert json.loads(out) == {"error": expected, "retry": False}, err
    call, policy = stored(receiver)
    assert (policy["outcome"], policy["policy"]["verdict"], call["policy"]["rule"]) == ("denied", "ask", "my.ask")


def test_with_a_gate_the_answer_waits_until_the_event_was_sent(start, make_receiver):
    receiver = make_receiver()
    out, _ = start(receiver.port, "--ack", "--gate", "tool:sent").communicate(lines(CALL), 20)
    assert "ack" in json.loads(out)
    receiver.refuse = "connect"
    out, _ = (process := start(receiver.port, "--ack", "--gate", "tool:sent", "--gate-deadline", "0.3")).communicate(lines(CALL, RESULT), 20)
    first, second = (json.loads(line) for line in out.splitlines())
    assert "was not carried out" in first["error"] and first["retry"] is True and "ack" in second, "an outcome has nothing to wait for"
    assert process.returncode == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_and_what_was_accepted_has_arrived(start, receiver, number):
    process = start(receiver.port, "--ack")
    process.stdin.write(lines(CALL))
    process.stdin.flush()
    assert "ack" in json.loads(process.stdout.readline())
    process.send_signal(number)
    assert process.wait(20) in (143, 130)
    assert [e["kind"] for e in stored(receiver)] == ["tool.call"]


def test_a_reader_of_answers_that_leaves_costs_no_event(start, receiver):
    process = start(receiver.port, "--ack")
    process.stdout.close()
    process.stdin.write(lines(*[CALL] * 50))
    process.stdin.close()
    assert process.wait(20) == 0
    eventually(lambda: len(stored(receiver)) == 50, state=lambda: len(stored(receiver)))


def test_wrong_settings_end_it_at_once_with_the_reason(start, receiver):
    for options, said in ((["--quota", "many"], "quota"), (["--proof", "trust"], "proof")):
        _, err = (process := start(receiver.port, *options)).communicate(b"", 20)
        assert process.returncode == 2 and said in err.decode()


@pytest.mark.parametrize("value", ["", "00-0-0-0", TRACE[:-30], f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'g' * 32}-{'1' * 16}-01"])
def test_a_traceparent_that_is_none_is_no_trace(monkeypatch, value):
    monkeypatch.setenv("TRACEPARENT", value)
    assert trace() is None
