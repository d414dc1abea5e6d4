"""The forwarder: a process of its own, a real unix socket, peers of other uids and of other ancestry."""

import asyncio
import json
import os
import select
import shutil
import subprocess
import sys

import pytest

from clawtrail import forwarder, health
from clawtrail.errors import EventError
from sidecar import Client, call, folder, start  # noqa: F401
from support import eventually, secrets

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act under other uids and in other process namespaces")

def commands(receiver):
    return [e["params"]["command"] for e in receiver.events("tool.call")]


def under_uid(uid, work):
    """What `work` returns in a child process of this uid."""
    r, w = os.pipe()
    if os.fork() == 0:
        try:
            os.setgid(uid)
            os.setuid(uid)
            answer = work()
        except BaseException as e:
            answer = repr(e)
        os.write(w, json.dumps(answer).encode())
        os._exit(0)
    os.close(w)
    with os.fdopen(r) as f:
        answer = json.load(f)
    os.wait()
    return answer


def test_records_are_acknowledged_in_order_and_arrive_in_order(start, receiver):
    client = Client(start().path).send(*(call(n) for n in range(300)))
    assert [client.answer() for _ in range(300)] == [{"ack": n} for n in range(300)]
    eventually(lambda: len(commands(receiver)), 300)
    assert commands(receiver) == [f"echo {n}" for n in range(300)]
    assert {e["session"] for e in receiver.events("tool.call")} == {"s1"}


def test_a_heartbeat_says_that_the_forwarder_lives(start, receiver):
    start()
    eventually(lambda: receiver.events("system.heartbeat"))
    assert receiver.events("system.heartbeat")[0]["health"]["component"] == "forwarder"


def test_a_ping_is_answered_and_not_recorded(start, receiver):
    client = Client(start().path)
    assert client.ask({"n": 1, "ping": True}) == {"ack": 1} and client.ask(call(2)) == {"ack": 2}
    eventually(lambda: commands(receiver))
    assert {e["kind"] for e in receiver.events()} <= {"system.start", "system.heartbeat", "tool.call"}


def test_a_record_without_a_hook_is_recorded_as_it_says(start, receiver):
    client = Client(start().path)
    assert client.ask({"n": 1, "kind": "session.start", "outcome": "success", "session": "s2"}) == {"ack": 1}
    assert client.ask({"n": 2, "kind": "session.start", "seq": 1})["ok"] is False
    eventually(lambda: receiver.events("session.start"))
    assert receiver.events("session.start")[0]["session"] == "s2"


def test_a_record_that_is_sent_again_is_recorded_once_and_acknowledged_every_time(start, receiver):
    path = start().path
    assert Client(path).ask(call(1, rid="a")) == {"ack": 1}
    again = Client(path)
    assert [again.ask(call(7, rid="a")), again.ask(call(2, rid="b")), again.ask(call(3))] == [{"ack": 7}, {"ack": 2}, {"ack": 3}]
    eventually(lambda: len(commands(receiver)), 3)
    assert commands(receiver) == ["echo 1", "echo 2", "echo 3"]


GARBAGE = [
    b"\n", b"hello\n", b"[1, 2]\n", b"\xff\xfe\0\n", b'{"n": 5}\n', b'{"n": 5, "hook": "no_such_hook"}\n', b'{"n": 5, "hook": ["x"]}\n',
    b'{"n": 5, "hook": "before_tool_call", "at": "yesterday"}\n', b'{"n": 5, "hook": "after_tool_call", "event": {"durationMs": NaN}}\n',
    b'{"n": 5, "kind": "tool.call", "outcome": []}\n', b"[" * 100_000 + b"\n", b'{"n": 5, "kind": "tool.call", "params": ' + b"9" * 5000 + b"}\n",
]  # fmt: skip


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_what_will_never_be_accepted_is_refused_for_good_and_is_on_record(garbage, start, receiver):
    client = Client(start().path)
    refusal = client.ask(garbage)
    assert refusal["ok"] is False and refusal["retry"] is False and refusal["error"]
    assert client.ask(call(6)) == {"ack": 6}, "the connection goes on"
    eventually(lambda: commands(receiver))
    (drop,) = receiver.events("system.drop")
    assert drop["dropped"] == {"n": 1, "reason": "rejected"} and drop["error"]["message"] == refusal["error"][: len(drop["error"]["message"])]
    assert drop["content"]["size"] == len(garbage) - 1


def test_what_is_kept_of_a_refused_record_holds_no_secret(start, receiver):
    secret = secrets()["github"]
    client = Client(start().path)
    assert client.ask(b"garbage " + secret.encode() + b"\n")["ok"] is False
    assert client.ask({"n": 1, "hook": f"x {secret}"})["ok"] is False
    eventually(lambda: len(receiver.events("system.drop")), 2)
    assert secret.encode() not in b"".join(receiver.raw)


def test_a_line_without_end_is_refused_and_the_next_client_is_served(start, receiver):
    path = start().path
    client = Client(path)
    try:
        client.send(b"x" * (forwarder.LINE_MAX + 100_000))
        answer = client.answer()
        assert answer["ok"] is False and "more than 1048576 bytes" in answer["error"]
        assert client.answer() is None
    except ConnectionError:  # it has hung up while we were still sending
        pass
    assert Client(path).ask(call(1)) == {"ack": 1}
    eventually(lambda: commands(receiver) and receiver.events("system.drop"))


def test_a_full_queue_is_answered_with_retry_and_the_record_is_taken_later(start, receiver):
    running = start()
    client = Client(running.path)
    assert client.ask(call(0)) == {"ack": 0}
    receiver.kill()
    refused = None
    for n in range(1, 5000):
        if "ok" in (answer := client.ask(call(n, rid=str(n)))):
            refused = n, answer
            break
    assert refused and refused[1]["retry"] is True and "the spool is full" in refused[1]["error"]
    receiver.start()
    eventually(lambda: client.ask(call(refused[0], rid=str(refused[0]))) == {"ack": refused[0]})
    eventually(lambda: len(commands(receiver)) >= refused[0] + 1)
    assert commands(receiver) == [f"echo {n}" for n in range(refused[0] + 1)]
    assert sum(e["dropped"]["n"] for e in receiver.events("system.drop")) >= 1


def test_everything_that_was_acknowledged_has_arrived_when_the_forwarder_is_told_to_stop(start, receiver):
    running = start()
    client = Client(running.path).send(*(call(n) for n in range(500)))
    assert [client.answer() for _ in range(500)][-1] == {"ack": 499}
    assert running.stop() == 0
    assert len(commands(receiver)) == 500 and receiver.events()[-1]["kind"] == "system.stop" and not running.path.exists()
    assert client.answer() is None


RULES = """
version: 1
rules:
- {id: my.no, name: no, on: [command], match: '\\bforbidden\\b', severity: high, technique: [T1059], action: deny, why: never here, hit: [echo forbidden], miss: [id]}
- {id: my.ask, name: ask, on: [command], match: '\\bdelicate\\b', severity: medium, technique: [T1059], action: approve, why: ask first, hit: [delicate -x], miss: [id]}
"""


def tool_call(n, command, **more):
    return call(n, gate=True, **more) | {"event": {"toolName": "exec", "toolCallId": f"c{n}", "params": {"command": command}}}


@pytest.mark.parametrize("durability", ["write", "disk"])
def test_a_rule_that_forbids_is_a_no_and_one_that_wants_a_person_is_a_question(durability, start, receiver, folder):
    client = Client(start(rules=RULES, durability=durability).path)
    secret = secrets()["github"]
    no = client.ask(tool_call(1, "echo forbidden"))
    assert no == {"ack": 1, "ok": False, "error": "forbidden by the rule my.no: never here", "retry": False, "denied": "my.no"}
    ask = client.ask(tool_call(2, f"delicate --token {secret}"))
    shown = ask.pop("action")
    assert ask == {"ack": 2, "ok": False, "error": "needs approval by the rule my.ask: ask first", "retry": False, "denied": "my.ask",
                   "approve": True, "severity": "medium"}  # fmt: skip
    assert shown.startswith("exec: delicate --token ") and secret not in shown
    assert client.ask(tool_call(3, "echo fine")) == {"ack": 3}
    eventually(lambda: len(receiver.events("tool.call")), 3)
    calls = receiver.events("tool.call")
    assert [e.get("policy", {}).get("verdict") for e in calls] == ["deny", "ask", None] and calls[1]["policy"]["rule"] == "my.ask"
    (decision,) = receiver.events("policy.decision")
    (asked,) = receiver.events("approval.request")
    assert (decision["outcome"], decision["caused_by"], decision["policy"]["rule"]) == ("denied", calls[0]["id"], "my.no")
    assert (asked["outcome"], asked["caused_by"], asked["approval"]["state"]) == ("attempt", calls[1]["id"], "pending")
    assert asked["tool"]["call_id"] == "c2" and asked["flag"]["severity"] == "medium"


def test_a_refused_call_that_is_sent_again_is_refused_again_and_recorded_once(start, receiver):
    path = start(rules=RULES).path
    for command, rule in (("echo forbidden", "my.no"), ("delicate", "my.ask")):
        answers = [Client(path).ask(tool_call(n, command, rid=rule)) for n in (1, 2)]
        assert [a.pop("ack") for a in answers] == [1, 2] and answers[0] == answers[1] and answers[0]["denied"] == rule
    eventually(lambda: len(receiver.events("approval.request")), 1)
    assert len(receiver.events("tool.call")) == 2 and len(receiver.events("policy.decision")) == 1


def test_a_question_is_not_asked_before_its_events_have_come_as_far_as_the_gate_wants(start, receiver):
    receiver.refuse = "connect"
    client = Client(start(rules=RULES, gate="tool:sent", gate_deadline=0.3).path)
    late = client.ask(tool_call(1, "delicate"))
    assert late["ok"] is False and "not sent to the audit server" not in late.get("denied", "") and "approve" not in late and late["retry"] is True
    assert client.ask(tool_call(2, "echo forbidden"))["denied"] == "my.no", "a no needs no receiver"


def test_a_socket_that_a_killed_forwarder_left_is_replaced(start, folder):
    running = start()
    running.process.kill()
    running.process.wait(10)
    assert running.path.is_socket()
    (folder / "log").write_text("")
    assert Client(start().path).ask(call(1)) == {"ack": 1}


@root
def test_a_peer_of_another_uid_is_refused_recorded_and_flagged(start, receiver):
    path = start(uid=1000).path
    refused = under_uid(1001, lambda: (lambda c: [c.answer(), c.answer()])(Client(path)))
    assert refused[0]["ok"] is False and "uid 1001; expected the gateway's uid 1000" in refused[0]["error"] and refused[1] is None
    assert under_uid(1000, lambda: Client(path).ask(call(2))) == {"ack": 2}
    eventually(lambda: commands(receiver) == ["echo 2"] and receiver.events("policy.decision"))
    (decision,) = receiver.events("policy.decision")
    assert decision["outcome"] == "denied" and "uid 1001" in decision["policy"]["reason"] and decision["flag"]["severity"] == "critical"


@root
def test_a_process_that_the_gateway_started_is_refused_though_its_uid_is_the_gateways(start, receiver):
    path = start(uid=1000, main="main").path
    refused = under_uid(1000, lambda: Client(path).answer())
    assert refused["ok"] is False and f"was started by process {os.getpid()}; expected the gateway itself" in refused["error"]
    eventually(lambda: receiver.events("policy.decision"))
    assert commands(receiver) == []


@root
def test_one_that_knocks_in_a_loop_is_counted_and_does_not_fill_the_trail(start, receiver):
    path = start(uid=1000).path
    for _ in range(50):
        assert under_uid(1001, lambda: Client(path).answer())["ok"] is False
    assert 1 <= len(receiver.events("policy.decision")) < 25


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@root
@pytest.mark.skipif(not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0, reason="no process namespace may be made here")
def test_in_a_shared_process_namespace_the_main_process_is_heard_and_its_children_are_not(start, receiver):
    # as in compose: the forwarder and the gateway are main processes of containers that share one process namespace
    running = start(uid=1000, main="main", prefix=NAMESPACE)
    inside = running.pid
    script = """
import json, os, socket, sys
def ask(record):
    s = socket.socket(socket.AF_UNIX); s.settimeout(15); s.connect(sys.argv[1]); s.sendall(json.dumps(record).encode() + b"\\n")
    return json.loads(s.makefile("rb").readline())
os.setuid(int(sys.argv[2]))
record = json.loads(sys.argv[3])
print(json.dumps(ask(record)), flush=True)
if os.fork() == 0:
    print(json.dumps(ask(record)), flush=True)
    os._exit(0)
os.wait()
if os.fork() == 0:  # an orphan gets a new parent, and that is process 1, not none
    if os.fork() == 0:
        while os.getppid() not in (0, 1): pass
        print(json.dumps(ask(record)), flush=True)
    os._exit(0)
os.wait()
"""

    def enter(uid, record, code=script):
        command = ["nsenter", "-t", str(inside), "-p", "-m", sys.executable, "-c", code, running.path, str(uid), json.dumps(record)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    done = enter(1000, call(1))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert answers[0] == {"ack": 1}, (done.stdout, done.stderr)
    assert [a["ok"] for a in answers[1:]] == [False] * (len(answers) - 1) and len(answers) >= 2
    assert "was started by process" in answers[1]["error"]
    assert Client(running.path).answer()["error"].startswith("refused: the process is not visible")
    status = enter(0, {}, "import sys, json\nfrom clawtrail.health import status\nprint(json.dumps(status(sys.argv[1])))")
    state = json.loads(status.stdout)
    assert state["connected"] and state["acknowledged"] == 1 and state["refused"] >= 2 and state["accepted"] >= 2
    eventually(lambda: commands(receiver) == ["echo 1"])


def test_status_says_when_nobody_answers_or_when_it_is_not_told(start, folder):
    with pytest.raises(OSError):
        health.status(str(folder / "absent.sock"))
    with pytest.raises(OSError, match="the forwarder answered"):
        health.status(str(start().path))  # this process is no container's main process


def test_a_peer_that_reads_no_answers_is_read_from_no_more_and_gets_them_all_in_the_end(start):
    client = Client(start().path)
    client.sock.setblocking(False)
    data, sent = b'{"n": 1, "ping": true}\n' * 1000, 0
    while sent < 16 << 20 and select.select([], [client.sock], [], 2)[1]:
        try:
            sent += client.sock.send(data[sent % 23 :])
        except BlockingIOError:
            pass
    assert sent < 16 << 20, "it goes on reading"
    client.sock.setblocking(True)
    whole = sent // 23  # the last one may be cut
    assert [client.answer() for _ in range(whole)] == [{"ack": 1}] * whole


@root
def test_refused_peers_that_stay_do_not_keep_the_gateway_out(start):
    running = start(uid=1000)
    knocking = [Client(running.path) for _ in range(300)]
    assert under_uid(1000, lambda: Client(running.path).ask(call(2))) == {"ack": 2}
    eventually(lambda: len(os.listdir(f"/proc/{running.pid}/fd")) < 40)
    assert {client.answer()["ok"] for client in knocking} == {False}


def test_records_of_two_peers_come_between_each_other(start, receiver):
    """A lane full of observations holds no gate up: who has much to say is heard in turns."""
    path = start(quota=64 << 20).path
    bulk, gates = Client(path), Client(path)
    bulk.send(*(call(n) for n in range(3000)))
    bulk.answer()
    assert gates.ask(call(9000)) == {"ack": 9000}
    assert [bulk.answer() for _ in range(2999)][-1] == {"ack": 2999}
    eventually(lambda: len(commands(receiver)), 3001)
    assert commands(receiver).index("echo 9000") < 2900


@pytest.mark.parametrize("durability", ["write", "disk"])
def test_what_was_recorded_is_handed_to_the_thread_that_ships_once_it_is_answered(durability, receiver, make_recorder, folder):
    recorder = make_recorder(receiver.address, durability=durability, heartbeat=0)
    serving = forwarder.Forwarder(recorder, str(folder / "audit.sock"), None)
    seen = []

    class Plugin:
        def answer(self, answers, count):
            seen.append("answered")

    recorder.wake = lambda: seen.append("woken")

    async def run():
        serving._loop = asyncio.get_running_loop()
        answer = serving._take(Plugin(), json.dumps(call(1)).encode())
        assert (answer is None) == (durability == "disk")
        if answer is not None:
            seen.append("answered")
        for _ in range(1000):
            if len(seen) == 2:
                break
            await asyncio.sleep(0.01)

    asyncio.run(run())
    assert seen == ["answered", "woken"] and recorder.unhurried is False


def test_a_record_with_half_a_character_is_understood():
    """A program that cuts UTF-16 in the middle writes such bytes; the event has them written out."""
    assert forwarder._object(b'{"a":"\xed\xa0\x80"}') == {"a": "\ud800"}
    with pytest.raises(EventError, match="is not JSON"):
        forwarder._object(b'{"a":"\xff"}')
