"""`clawtrail hook` as the agent runs it: a process per hook, a recorder of its own making, a receiver that listens or does not."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apart import once
from clawtrail import testing
from support import eventually, secrets

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
BASE = {"session_id": "s-1", "transcript_path": "/t.jsonl", "cwd": "/work"}
CALL = {**BASE, "hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {"command": "date"}, "tool_use_id": "toolu_1"}
RESULT = {**CALL, "hook_event_name": "PostToolUse", "tool_response": {"stdout": "noon", "stderr": "", "interrupted": False}}
PROMPT = {**BASE, "hook_event_name": "UserPromptSubmit", "prompt": "what time is it?"}


class Hook:
    def __init__(self, port, tls, spool):
        self.spool, self.folder = spool, spool / ".hook-agent-1"
        self.base = ["--receiver", f"127.0.0.1:{port}", "--tls", str(tls), "--agent", "agent-1", "--spool", str(spool)]

    def raw(self, data, *options, **environment):
        command = [sys.executable, "-m", "clawtrail", "hook", *self.base, *options]
        return subprocess.run(command, input=data, capture_output=True, timeout=60, env={**os.environ, **environment})

    def __call__(self, told, *options, **environment):
        return self.raw(json.dumps(told).encode(), *options, **environment)

    @property
    def recorders(self):
        """Processes that were started for this folder, found by what they were started as."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                if f"--hooks={self.folder}/kept".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
            except OSError:
                pass
        return found

    def stop(self, number=signal.SIGTERM):
        for pid in self.recorders:
            os.kill(pid, number)
        eventually(lambda: not self.recorders)


@pytest.fixture
def make_hook(pki, spool):
    made = []

    def make(port):
        made.append(Hook(port, pki.client, spool))
        return made[-1]

    yield make
    for hook in made:
        hook.stop(signal.SIGKILL)


@pytest.fixture
def hook(make_hook, receiver):
    return make_hook(receiver.port)


def stored(receiver):
    """Each once: what a killed recorder had sent without proof, its successor sends again, byte for byte."""
    return [e for e in once([json.loads(m.msg) for m in receiver.messages]) if not e["kind"].startswith("system.") or e["kind"] == "system.drop"]


def arrived(receiver, count):
    return eventually(lambda: found if len(found := stored(receiver)) >= count else None, state=lambda: stored(receiver))


def test_a_call_and_its_result_are_joined_across_their_processes_in_one_epoch(hook, receiver):
    for told in (PROMPT, CALL, RESULT, {**BASE, "hook_event_name": "Stop", "stop_hook_active": False, "last_assistant_message": "noon"}):
        done = hook(told, TRACEPARENT=TRACE)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    said, start, call, result, answer, end = arrived(receiver, 6)
    assert [e["kind"] for e in (said, start, call, result, answer, end)] == ["message.in", "run.start", "tool.call", "tool.result", "message.out", "run.end"]
    assert (start["caused_by"], call["caused_by"], result["caused_by"], end["caused_by"]) == (said["id"], start["id"], call["id"], start["id"])
    assert call["params"] == {"command": "date"} and call["tool"] == {"name": "Bash", "type": "builtin", "call_id": "toolu_1"}
    assert result["content"]["excerpt"] == "noon" and result["outcome"] == "success"
    assert {e["session"] for e in (start, call, result, end)} == {"s-1"} and len({e["run"] for e in (start, call, result, end)}) == 1
    assert len({e["epoch"] for e in (said, call, result, end)}) == 1, "many short processes, one chain"
    assert call["trace"] == {"id": TRACE[3:35], "parent": TRACE[36:52]} and call["agent"]["type"] == "claude-code"
    assert len(hook.recorders) == 1


def test_every_documented_hook_is_an_event(hook, receiver):
    kinds = {
        "SessionStart": "session.start", "SessionEnd": "session.end", "SubagentStart": "subagent.start", "SubagentStop": "subagent.end",
        "PreCompact": "config.change", "Notification": "log.record", "PermissionRequest": "approval.request", "PostToolUseFailure": "tool.result",
        "SomethingNew": "log.record",
    }  # fmt: skip
    more = {"source": "startup", "reason": "exit", "agent_id": "a-1", "agent_type": "Explore", "trigger": "auto", "message": "done", "error": "no such file",
            "tool_name": "mcp__zendesk__list", "tool_input": {"n": 1}, "tool_use_id": "toolu_9"}  # fmt: skip
    for name in kinds:
        assert hook({**BASE, **more, "hook_event_name": name}).returncode == 0, name
    events = arrived(receiver, len(kinds))
    assert [e["kind"] for e in events] == list(kinds.values())
    by = dict(zip(kinds, events))
    assert by["SubagentStop"]["caused_by"] == by["SubagentStart"]["id"] and by["SubagentStop"]["peer"]["agent"] == "Explore"
    assert (by["PostToolUseFailure"]["outcome"], by["PostToolUseFailure"]["error"]["message"]) == ("failure", "no such file")
    assert by["PermissionRequest"]["tool"] == {"name": "mcp__zendesk__list", "type": "mcp", "server": "zendesk", "call_id": "toolu_9"}
    assert by["SomethingNew"]["log"]["fields"]["hook"] == "SomethingNew"


def test_with_the_receiver_away_the_agent_goes_on_and_everything_comes_later(make_hook, make_receiver):
    receiver = make_receiver()
    receiver.refuse = "connect"
    hook = make_hook(receiver.port)
    assert hook(CALL).returncode == hook(RESULT).returncode == 0
    receiver.refuse = None
    call, result = arrived(receiver, 2)
    assert result["caused_by"] == call["id"]


def test_a_recorder_that_is_killed_is_replaced_and_the_result_still_finds_its_call(hook, receiver):
    assert hook(CALL).returncode == 0
    hook.stop(signal.SIGKILL)
    assert hook(RESULT).returncode == 0
    call, result = arrived(receiver, 2)
    assert result["caused_by"] == call["id"] and result["epoch"] != call["epoch"]


def test_hooks_at_the_same_time_start_one_recorder(hook, receiver):
    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(lambda n: hook({**CALL, "tool_use_id": f"toolu_{n}"}), range(6)))
    assert [d.returncode for d in done] == [0] * 6, [d.stderr for d in done]
    assert len({e["epoch"] for e in arrived(receiver, 6)}) == 1 and len(hook.recorders) == 1


def test_a_full_spool_refuses_the_call_and_says_why(make_hook, make_receiver):
    receiver = make_receiver()
    receiver.refuse = "connect"
    hook = make_hook(receiver.port)
    big = {**CALL, "tool_input": {f"p{n}": "x y " * 500 for n in range(15)}}
    codes = [(done := hook(big, "--quota", "1 MiB")).returncode for _ in range(3)]
    assert codes == [0, 0, 0]
    for _ in range(60):
        done = hook(big, "--quota", "1 MiB")
        if done.returncode:
            break
    assert done.returncode == 2 and b"cannot be recorded now" in done.stderr and b"full" in done.stderr
    done = hook({**RESULT, "tool_response": big["tool_input"]}, "--quota", "1 MiB")
    assert done.returncode == 1, "what has happened is not stopped any more; 2 would make the agent go on with a turn that is over"


@pytest.mark.parametrize("data", [b"", b"no json", b"[]", b"{}", b'{"hook_event_name": 7}', b"[" * 100_000, b"\xff"])
def test_bad_input_refuses_and_is_on_record_as_that(hook, receiver, data):
    done = hook.raw(data)
    assert done.returncode == 2 and b"expected" in done.stderr
    event = testing.one(arrived(receiver, 1), "system.drop")
    assert event["dropped"] == {"n": 1, "reason": "rejected"} and "expected" in event["error"]["message"]


def test_a_rule_that_forbids_refuses_in_its_words_and_one_that_wants_a_person_asks_one(hook, receiver, tmp_path):
    (tmp_path / "mine.yaml").write_text("""
version: 1
rules:
- {id: my.no-date, name: no-date, on: [command], match: '\\bdate\\b', severity: high, technique: [T1059], action: deny, why: no clocks, hit: [date -u], miss: [uptime]}
- {id: my.ask, name: ask, on: [command], match: '\\buptime\\b', severity: high, technique: [T1059], action: approve, why: ask me, hit: [uptime -p], miss: [date]}
""")
    denied = hook(CALL, "--rules", str(tmp_path))
    assert denied.returncode == 2 and b"forbidden by the rule my.no-date: no clocks" in denied.stderr
    asked = hook({**CALL, "tool_input": {"command": "uptime"}}, "--rules", str(tmp_path))
    decision = json.loads(asked.stdout)["hookSpecificOutput"]
    assert (asked.returncode, decision["permissionDecision"]) == (0, "ask") and "ask me" in decision["permissionDecisionReason"]
    assert [e["kind"] for e in arrived(receiver, 4)] == ["tool.call", "policy.decision"] * 2


def test_secrets_are_nowhere_in_the_spool_and_its_neighbours(make_hook, make_receiver):
    receiver = make_receiver()
    receiver.refuse = "connect"
    hook = make_hook(receiver.port)
    secret = secrets()["github"]
    told = {**CALL, "tool_input": {"command": f"curl -H 'Authorization: Bearer {secret}' https://api.example"}}
    assert hook(told).returncode == 0 and hook({**RESULT, "tool_response": {"stdout": secret}}).returncode == 0
    hook.stop()
    written = b"".join(p.read_bytes() for p in hook.spool.rglob("*") if p.is_file())
    assert b"toolu_1" in written and secret.encode() not in written


def test_a_huge_result_is_cut_and_on_record(hook, receiver):
    assert hook(CALL).returncode == 0
    assert hook({**RESULT, "tool_response": {"stdout": "word " * 600_000}}).returncode == 0
    assert "[+" in arrived(receiver, 2)[1]["content"]["excerpt"]


def test_a_recorder_that_does_not_come_up_is_done_without_and_the_next_one_takes_over(make_hook, make_receiver):
    receiver = make_receiver()
    receiver.refuse = "connect"
    hook = make_hook(receiver.port)
    hook.folder.mkdir(mode=0o700, parents=True)
    (hook.folder / "socket").mkdir()  # nobody can listen there
    assert hook(CALL).returncode == 0, (hook.folder / "log").read_text()
    receiver.refuse = None
    (hook.folder / "socket").rmdir()
    assert hook(RESULT).returncode == 0
    events = arrived(receiver, 2)
    call, result = testing.one(events, "tool.call"), testing.one(events, "tool.result")
    assert result["caused_by"] == call["id"]


def test_where_nothing_can_be_written_nothing_runs(make_hook, receiver):
    hook = make_hook(receiver.port)
    done = hook(CALL, "--spool", "/dev/full/x")
    assert done.returncode == 2 and b"not on record" in done.stderr
    assert hook(RESULT, "--spool", "/dev/full/x").returncode == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_not_trusted(make_hook, receiver):
    hook = make_hook(receiver.port)
    hook.folder.mkdir(mode=0o700, parents=True)
    os.chown(hook.folder, 12345, 12345)
    done = hook(CALL)
    assert done.returncode == 2 and b"expected it to be ours alone" in done.stderr


def test_a_given_socket_is_used_and_nothing_is_started_instead(hook, tmp_path):
    done = hook(CALL, "--socket", str(tmp_path / "nobody"))
    assert done.returncode == 2 and b"no recorder answers" in done.stderr and not hook.recorders


def test_with_a_gate_the_call_waits_and_is_refused_at_the_deadline(make_hook, make_receiver):
    receiver = make_receiver()
    hook = make_hook(receiver.port)
    gate = ("--gate", "tool:sent", "--gate-deadline", "0.5")
    assert hook(CALL, *gate).returncode == 0
    receiver.refuse = "connect"
    receiver.kill()
    done = eventually(lambda: d if (d := hook(CALL, *gate)).returncode else None)
    assert done.returncode == 2 and b"was not carried out" in done.stderr
    assert hook(RESULT, *gate).returncode == 0


@pytest.mark.parametrize("command", ["hook", "health"])  # a process per tool call, a process every five seconds
def test_what_has_to_be_quick_imports_nothing_that_is_slow(command):
    code = f"""import sys; sys.argv = ["clawtrail", "{command}", "--help"]
from clawtrail.__main__ import main
try: main()
except SystemExit: print(*sys.modules)"""
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30).stdout.split())
    assert f"clawtrail.{command}" in loaded and not loaded & {"asyncio", "ssl", "logging", "subprocess", "clawtrail.recorder", "clawtrail.redact", "yaml"}
