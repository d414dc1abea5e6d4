"""From `record()` to a receiver that really reads: order, loss, repetition, fullness, the end."""

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import threading
import time

import pytest

from clawtrail import Recorder, context, redact
from clawtrail.errors import ConfigurationError, EventError, QueueFull
from clawtrail.event import LINE_MAX
from clawtrail.syslog import FRAME_MAX, frame
from clawtrail.transport import Deadlines
from support import eventually, secrets


def payloads(receiver):
    return [e["params"]["i"] for e in receiver.events("tool.call")]


def record(recorder, i, **fields):
    return recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": i}, **fields)


def resends_are_byte_identical(receiver):
    by_number = {}
    for m in receiver.messages:
        by_number.setdefault((m.params["epoch"], m.params["seq"]), set()).add(m.raw)
    return all(len(versions) == 1 for versions in by_number.values())


# -- what arrives ------------------------------------------------------------------------------------------------


def test_every_event_arrives_once_in_order_as_the_receipt_says(receiver, recorder):
    receipts = [record(recorder, i) for i in range(1000)]
    eventually(lambda: len(receiver.raw), 1001, state=recorder.stats)
    messages = receiver.messages
    assert [m.msg for m in messages[1:]] == [r.line for r in receipts]
    assert [m.seq for m in messages] == list(range(1, 1002)) and [r.seq for r in receipts] == list(range(2, 1002))
    assert messages[0].event["kind"] == "system.start"


def test_an_outcome_may_be_given_by_name(receiver, recorder):
    recorder.record("tool.call", outcome="attempt", tool={"name": "exec"})
    asyncio.run(recorder.arecord("tool.result", outcome="denied", tool={"name": "exec"}))
    assert recorder.close()
    assert [(e["kind"], e["outcome"]) for e in receiver.events() if e["category"] == "tool"] == [("tool.call", "attempt"), ("tool.result", "denied")]


def test_a_message_carries_what_the_receiver_needs_without_reading_its_json(receiver, recorder):
    receipt = recorder.record("tool.call", "denied", session="s:1", run="r1", tool={"name": 'a"]\\b'}, credential={"name": "aws"}, time=0.5)
    eventually(lambda: len(receiver.raw), 2, state=recorder.stats)
    m = receiver.messages[1]
    assert (m.pri, m.version, m.appname, m.procid, m.msgid) == (13 * 8 + 4, 1, "agent-1", str(os.getpid()), "tool.call")
    assert m.timestamp == m.event["ts"] == "1970-01-01T00:00:00.500000Z"
    assert m.params == {
        "agent": "agent-1", "epoch": receipt.epoch, "seq": "2", "category": "tool", "outcome": "denied",
        "session": "s:1", "run": "r1", "tool": 'a"]\\b', "credential": "aws",
    }  # fmt: skip
    assert list(m.event)[:7] == ["v", "id", "ts", "agent", "host", "epoch", "seq"]
    assert m.event["id"] == receipt.id and receiver.subjects == ["agent-1"]


@pytest.mark.odd_events("groups that are lists, to make it large")
def test_the_largest_event_stays_below_the_frame_that_a_receiver_takes(receiver, make_recorder):
    # a receiver closes the connection on a larger one, and a sender that resends it would do so for ever
    recorder = make_recorder(receiver.address, agent="ä" * 64)
    for wide in ("😀", '"', "\x7f", "\\", "€"):
        recorder.record(
            "tool.call", session=wide * 9000, run=wide * 9000, tool={"name": wide * 9000}, credential={"name": wide * 9000},
            params={str(i): wide * 600 for i in range(60)}, content={str(i): list(range(200)) for i in range(9)},
        )  # fmt: skip
        for n in range(LINE_MAX - 8000, LINE_MAX, 500):  # one of them is just below the limit
            recorder.record("tool.call", session=wide * 9000, run=wide * 9000, tool={"name": wide * 255}, credential={"name": wide * 255}, params=[7] * (n // 2))
    eventually(lambda: len(receiver.raw), 86, state=recorder.stats)
    assert max(len(frame(r)) for r in receiver.raw) <= FRAME_MAX
    assert max(len(r) for r in receiver.raw) > LINE_MAX  # it was worth the question


def test_secrets_are_out_before_an_event_is_hashed_or_sent(receiver, recorder):
    made = secrets()
    for secret in made.values():
        recorder.record("tool.call", tool={"name": "exec"}, session=f"s {secret}", params={"command": f"echo {secret}"}, error={"message": secret}, target={"id": secret})
    eventually(lambda: len(receiver.raw), len(made) + 1, state=recorder.stats)
    wire = b"".join(receiver.raw)
    assert not [kind for kind, secret in made.items() if json.dumps(secret)[1:-1].encode() in wire]
    assert all(e["content"]["fps"] and e["content"]["redactions"] >= 4 for e in receiver.events("tool.call"))


def test_secrets_that_the_producer_removed_stay_on_record_beside_those_found_later(receiver, recorder):
    text, params = secrets(1)["github"], secrets(2)["github"]
    first, second = map(recorder.redactor.fingerprint, (text, params))
    content = {"excerpt": "…", "redactions": 1, "classes": "key", "fps": first}
    recorder.record("tool.call", tool={"name": "exec"}, content=content, params={"x": params})
    recorder.record("tool.call", tool={"name": "exec"}, content="password=" + params)
    eventually(lambda: len(receiver.raw), 3, state=recorder.stats)
    both, plain = receiver.events("tool.call")
    assert both["content"]["fps"] == f"{first} {second}" and both["content"]["redactions"] == 2 and both["content"]["classes"] == "key github"
    assert params not in plain["content"]["excerpt"] and plain["content"]["fps"] == second


def test_context_belongs_to_its_task_and_to_its_thread(receiver, recorder):
    async def agent(name):
        with context(session=name, run=f"{name}-run"):
            for i in range(20):
                record(recorder, i)
                await asyncio.sleep(0)
            with context(run=f"{name}-sub"):
                record(recorder, "sub")
            record(recorder, "end", session="explicit")

    async def both():
        await asyncio.gather(agent("a"), agent("b"))

    thread = threading.Thread(target=lambda: record(recorder, "thread"))
    with context(session="outer"):
        asyncio.run(both())
        thread.start()
        thread.join()
    record(recorder, "after")
    eventually(lambda: len(receiver.raw), 47, state=recorder.stats)
    seen = [(e["session"], e["run"], e["params"]["i"]) for e in receiver.events("tool.call")]
    for name in "ab":
        assert [i for s, r, i in seen if (s, r) == (name, f"{name}-run")] == list(range(20))
        assert (name, f"{name}-sub", "sub") in seen and ("explicit", f"{name}-run", "end") in seen
    assert seen[-2:] == [(None, None, "thread"), (None, None, "after")]


def test_a_context_that_no_event_could_carry_is_refused_at_once():
    for wrong in ({"session": 7}, {"sesion": "s"}):
        with pytest.raises(EventError), context(**wrong):
            pytest.fail("the block ran")


# -- faults ------------------------------------------------------------------------------------------------------


def test_nothing_is_lost_when_the_receiver_is_killed_and_restarted_under_load(receiver, recorder):
    done = threading.Event()

    def load():
        for i in range(2000):
            record(recorder, i, content={"excerpt": "x" * 300})
            if i % 20 == 0:
                time.sleep(0.005)
        done.set()

    worker = threading.Thread(target=load)
    worker.start()
    kills = 0
    while not done.is_set() and kills < 12:
        eventually(lambda n=len(receiver.raw): len(receiver.raw) > n + 50 or done.is_set(), state=recorder.stats)
        receiver.kill()
        receiver.start()
        kills += 1
    worker.join(30)
    eventually(lambda: len(receiver.events()) >= 2001, state=recorder.stats)
    assert kills >= 3 and payloads(receiver) == list(range(2000))
    assert recorder.stats()["connects"] > 3 and recorder.stats()["resent"] > 0 and recorder.stats()["dropped"] == {}
    assert resends_are_byte_identical(receiver)


class Broken:
    """Stands for an expression or a value that the redactor breaks on: none that does is known."""

    def sub(self, *_):
        raise MemoryError("on purpose")


@pytest.mark.odd_events("what was meant could not be read")
def test_a_text_that_the_redactor_breaks_on_is_not_stored_and_the_event_is(receiver, recorder, monkeypatch):
    monkeypatch.setattr(redact, "FORMATS", (("any", ("ghp_",), Broken()),))
    record(recorder, 1, session="s-1", content={"excerpt": "ghp_text-that-nobody may see"})
    event = eventually(lambda: receiver.events("tool.call"), state=recorder.stats)[0]
    assert event["session"] == "s-1" and event["params"] == {"i": 1}
    assert event["content"]["excerpt"].startswith("[withheld: the redactor failed (MemoryError) on 28 characters")
    assert event["content"]["classes"] == "redactor-failed" and not any(b"nobody" in raw for raw in receiver.raw)


@pytest.mark.odd_events("what was meant could not be read")
def test_an_event_that_the_redactor_breaks_on_is_stored_as_its_size_and_the_fact(receiver, recorder, monkeypatch):
    def broken(*_):
        raise RecursionError("on purpose")

    monkeypatch.setattr(recorder.redactor, "value", broken)
    record(recorder, 1, session="s-1", content={"excerpt": "nobody may see token=this1234"})
    event = eventually(lambda: receiver.events("tool.call"), state=recorder.stats)[0]
    assert event["error"] == {"type": "redaction", "message": "the redactor failed: RecursionError"}
    assert event["content"].keys() == {"size"} and event["content"]["size"] > 19
    assert "params" not in event and not any(b"nobody" in raw for raw in receiver.raw)


def test_a_connection_that_is_reset_in_the_middle_of_a_frame_loses_and_garbles_nothing(receiver, recorder):
    cuts = random.Random(7)
    for i in range(400):
        if i % 40 == 0:
            receiver.reset_after = cuts.randint(1, 3000)
        record(recorder, i)
        if i % 40 == 39:
            failed = recorder.stats()["connects"]
            eventually(lambda: recorder.stats()["connects"] > failed or not recorder.stats()["connected"], state=recorder.stats)
            receiver.reset_after = None
            eventually(lambda: len(receiver.events()) >= i + 2, state=recorder.stats)
    assert payloads(receiver) == list(range(400)) and resends_are_byte_identical(receiver)


def test_what_a_hanging_receiver_never_read_comes_again_when_it_is_killed(receiver, recorder):
    # far more than the socket buffers of both sides hold: all of it was "sent" as far as TCP can tell
    receiver.hang = True
    for i in range(600):
        record(recorder, i, log={"fields": {str(k): "x" * 2000 for k in range(17)}})
    eventually(lambda: recorder.stats()["connected"], state=recorder.stats)
    left = [0, -1]

    def stuck():
        time.sleep(0.2)
        left[:] = left[1], recorder.stats()["unsent"]
        return left[0] == left[1]

    eventually(stuck, state=recorder.stats)
    receiver.kill()
    receiver.hang = False
    receiver.start()
    eventually(lambda: len(receiver.events()) >= 601, within=30, state=recorder.stats)
    assert payloads(receiver) == list(range(600))


def test_a_receiver_that_reads_nothing_is_given_up_and_said_so(receiver, make_recorder):
    recorder = make_recorder(receiver.address, deadlines=Deadlines(stall=0.3))
    receiver.hang = True
    for i in range(400):
        record(recorder, i, log={"fields": {str(k): "x" * 2000 for k in range(17)}})
    eventually(lambda: re.search(r"took nothing for", recorder.stats()["last_error"]), state=recorder.stats)
    receiver.hang = False
    eventually(lambda: len(receiver.events()) >= 401, within=30, state=recorder.stats)
    assert payloads(receiver) == list(range(400))


def test_a_receiver_that_goes_away_is_noticed_without_a_new_event(receiver, recorder):
    record(recorder, 0)
    eventually(lambda: len(receiver.raw), 2, state=recorder.stats)
    receiver.kill()
    eventually(lambda: not recorder.stats()["connected"] and recorder.stats()["last_error"], state=recorder.stats)
    receiver.start()
    eventually(lambda: recorder.stats()["connected"], state=recorder.stats)


def test_events_recorded_before_the_receiver_exists_arrive_when_it_does(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address)
    for i in range(50):
        record(recorder, i)
    eventually(lambda: "refused" in recorder.stats()["last_error"], state=recorder.stats)
    assert recorder.stats()["accepted"] == recorder.stats()["spooled"] == 51
    receiver.start()
    eventually(lambda: len(receiver.events()) >= 51, state=recorder.stats)
    assert payloads(receiver) == list(range(50)) and recorder.stats()["last_error"] == ""


def test_threads_share_one_chain_and_one_connection(receiver, make_recorder):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            recorder = make_recorder(receiver.address)
            barrier = threading.Barrier(8)

            def work(recorder=recorder, barrier=barrier):
                barrier.wait()
                for i in range(5):
                    record(recorder, i)

            workers = [threading.Thread(target=work) for _ in range(8)]
            for w in workers:
                w.start()
            for w in workers:
                w.join()
            assert recorder.close(10), recorder
            assert recorder.stats()["connects"] == 1
    finally:
        sys.setswitchinterval(before)
    by_epoch = {}
    for m in receiver.messages:
        by_epoch.setdefault(m.params["epoch"], []).append(m.seq)
    assert list(by_epoch.values()) == [list(range(1, 43))] * 20
    assert receiver.connections == 20


# -- fullness ----------------------------------------------------------------------------------------------------


def fill(recorder, size=1000):
    accepted = 0
    for i in range(10_000):
        try:
            record(recorder, i, content={"excerpt": "x" * size})
            accepted += 1
        except QueueFull as e:
            return accepted, e
    pytest.fail("the queue has no bound")


def test_a_full_queue_refuses_counts_and_says_so_when_there_is_room_again(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address, quota=1 << 20, full_timeout=0.05)
    accepted, error = fill(recorder)
    assert re.search(r"the spool is full: \d+ of \d+ bytes wait for the receiver .*refused.*; the event was not accepted", str(error))
    for _ in range(2):
        with pytest.raises(QueueFull):
            record(recorder, "refused", content={"excerpt": "x" * 1000})
    stats = recorder.stats()
    assert stats["refused"] == {"quota": 3} and stats["dropped"] == {} and stats["spool_bytes"] <= 1 << 20
    assert stats["accepted"] == accepted + 2 == stats["proven"] + stats["spooled"]  # with the start, and the report of the full spool
    receiver.start()
    eventually(lambda: recorder.stats()["proven"] > 10, state=recorder.stats)
    record(recorder, "after")
    record(recorder, "and on")
    eventually(lambda: "and on" in payloads(receiver), state=recorder.stats)
    full, drop, after, _ = receiver.events()[-4:]
    assert full["kind"] == drop["kind"] == "system.drop" and full["outcome"] == drop["outcome"] == "failure"
    assert full["dropped"]["n"] == 1 and drop["dropped"]["n"] == 2 and drop["dropped"]["reason"] == "quota"
    assert full["dropped"]["from"] < drop["dropped"]["from"] <= drop["dropped"]["to"] < after["ts"] and "first" not in drop["dropped"]
    assert payloads(receiver) == [*range(accepted), "after", "and on"]


def test_a_writer_that_waits_for_room_gets_it_as_soon_as_the_receiver_is_back(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address, quota=1 << 20, full_timeout=0.01)
    accepted, _ = fill(recorder)
    recorder.full_timeout = 30.0
    waiter = threading.Thread(target=lambda: record(recorder, "waited", content={"excerpt": "x" * 1000}))
    waiter.start()
    receiver.start()
    waiter.join(15)
    assert not waiter.is_alive()
    eventually(lambda: "waited" in payloads(receiver), state=recorder.stats)
    assert recorder.stats()["refused"] == {"quota": 1} and recorder.stats()["dropped"] == {}


def test_recording_in_an_event_loop_never_blocks_it(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address, quota=1 << 20, full_timeout=30.0)

    async def agent():
        worst, refused = 0.0, 0
        for i in range(2000):
            began = time.monotonic()
            try:
                record(recorder, i, content={"excerpt": "x" * 1000})
            except QueueFull:
                refused += 1
            worst = max(worst, time.monotonic() - began)
        return worst, refused

    worst, refused = asyncio.run(agent())
    assert worst < 1.0 and refused > 500


def test_accepted_is_proven_plus_queued_at_every_moment_and_proof_is_never_taken_back(receiver, recorder):
    done, wrong = threading.Event(), []

    def look():
        last = 0
        while not done.is_set():
            stats = recorder.stats()
            if not last <= stats["proven"] <= stats["accepted"] or stats["spooled"] > stats["accepted"]:
                wrong.append((last, stats))
            last = stats["proven"]

    recorder._outbox.window = 2000
    looker = threading.Thread(target=look)
    looker.start()
    for i in range(2000):
        record(recorder, i)
    eventually(lambda: len(receiver.raw), 2001, state=recorder.stats)
    done.set()
    looker.join(10)
    assert not wrong, wrong[:2]


def test_ever_new_sessions_do_not_fill_the_memory(receiver, recorder):
    for i in range(2500):
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, session=f"s-{i}", params={"i": i})
    assert len(recorder._drafts._parts) <= 1000
    eventually(lambda: len(receiver.raw), 2501, state=recorder.stats)
    assert [m.params["session"] for m in receiver.messages[1:]] == [f"s-{i}" for i in range(2500)]


def test_a_refused_event_leaves_no_gap_in_the_numbers(receiver, recorder):
    record(recorder, 0)
    for wrong in ({"session": 7}, {"time": "yesterday"}, {"time": 1e300}, {"seq": 1}):
        with pytest.raises(EventError):
            record(recorder, "wrong", **wrong)
    record(recorder, 1, claim="\udc80")
    record(recorder, 2, claim=7)
    eventually(lambda: len(receiver.raw), 4, state=recorder.stats)
    assert [m.seq for m in receiver.messages] == [1, 2, 3, 4] and payloads(receiver) == [0, 1, 2]


# -- the end -----------------------------------------------------------------------------------------------------


def test_close_proves_that_the_receiver_has_read_everything(receiver, recorder):
    for i in range(500):
        record(recorder, i)
    assert recorder.close() is True
    assert recorder.stats()["spooled"] == 0 and receiver.clean_ends == 1
    assert payloads(receiver) == list(range(500)) and receiver.events()[-1]["kind"] == "system.stop"
    assert recorder.close() is True
    with pytest.raises(QueueFull, match="the recorder is closed"):
        record(recorder, "late")
    assert recorder.stats()["refused"] == {"closed": 1}


def test_a_recorder_that_recorded_nothing_sends_nothing(receiver, make_recorder):
    assert make_recorder(receiver.address).close() is True
    assert receiver.connections == 0


@pytest.mark.parametrize("fault", ["gone", "hangs", "no TLS"])
def test_close_is_bounded_while_the_receiver_is(fault, receiver, make_recorder, plain_listener):
    address = receiver.address
    if fault == "gone":
        receiver.kill()
    elif fault == "hangs":
        receiver.hang = True
    else:
        address = plain_listener().address
    recorder = make_recorder(address)
    for i in range(300):
        record(recorder, i, log={"fields": {str(k): "x" * 2000 for k in range(17)}})
    began = time.monotonic()
    assert recorder.close(0.5) is False
    assert time.monotonic() - began < 1.5 + 2.0  # the close itself, and a slow machine
    assert recorder.stats()["spooled"] > 0


CLOSED = """
import os, sys, threading, time
from clawtrail import Recorder

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def work():
    with Recorder(("127.0.0.1", int(sys.argv[1])), sys.argv[2], agent="agent-1") as recorder:
        recorder.record("tool.call", "attempt", tool={"name": "exec"})

work()  # what stays open once stays from here on
before, end = descriptors(), time.monotonic() + 10
for _ in range(10):
    work()
while (descriptors() > before or threading.active_count() > 1) and time.monotonic() < end:
    time.sleep(0.01)  # a thread that was joined for a bounded time may need a moment more
assert descriptors() <= before and threading.active_count() == 1, (before, descriptors(), threading.enumerate())
"""


def test_a_closed_recorder_gives_its_descriptors_and_its_thread_back(receiver, pki):
    """In a process of its own: others' threads and connections come and go in this one."""
    run = subprocess.run([sys.executable, "-c", CLOSED, str(receiver.port), pki.client], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


SCRIPT = """
import sys
from clawtrail import Recorder
recorder = Recorder(("127.0.0.1", int(sys.argv[1])), sys.argv[2], agent="agent-1", minimum_version="TLSv1.2")
for i in range(int(sys.argv[3])):
    recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": i})
END
"""


@pytest.mark.parametrize("tls", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("end", ["", "sys.exit(3)", "raise RuntimeError('crash')"], ids=["falls off the end", "sys.exit", "exception"])
def test_a_script_that_ends_without_closing_delivers_everything(end, tls, make_receiver, pki):
    import ssl

    receiver = make_receiver(tls=ssl.TLSVersion[tls])
    run = subprocess.run([sys.executable, "-c", SCRIPT.replace("END", end), str(receiver.port), pki.client, "200"], capture_output=True, text=True, timeout=30)
    assert run.returncode == {"": 0, "sys.exit(3)": 3}.get(end, 1), run.stderr
    eventually(lambda: len(receiver.raw), 202)
    assert payloads(receiver) == list(range(200)) and receiver.clean_ends == 1


def test_a_recorder_that_its_script_lost_sight_of_delivers_everything(receiver, pki):
    body = "\n".join("    " + line for line in SCRIPT.replace("END", "").strip().splitlines())
    script = f"def work():\n{body}\nwork()\nimport gc; gc.collect()"
    subprocess.run([sys.executable, "-c", script, str(receiver.port), pki.client, "200"], check=True, timeout=30)
    eventually(lambda: len(receiver.raw), 202)


def test_a_script_that_ends_without_a_receiver_ends_within_seconds(receiver, pki):
    receiver.kill()
    began = time.monotonic()
    run = subprocess.run([sys.executable, "-c", SCRIPT.replace("END", ""), str(receiver.port), pki.client, "10"], capture_output=True, timeout=30)
    assert run.returncode == 0 and time.monotonic() - began < 8


# -- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [("", 6514), ("h", 0), ("h", 65536), ("h", "6514"), (None, 1)])
def test_a_wrong_address_is_refused_at_once(address, pki):
    with pytest.raises(ConfigurationError, match="address .*expected"):
        Recorder(address, pki.client, agent="a")


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_an_agent_whose_name_no_certificate_has_is_refused_at_once(name, pki):
    with pytest.raises(ConfigurationError, match="expected the name in the client certificate"):
        Recorder(("h", 1), pki.client, agent=name)


def test_its_repr_tells_the_state_and_no_secret(receiver, recorder):
    record(recorder, 0)
    eventually(lambda: "connected" in repr(recorder), state=recorder.stats)
    assert "agent-1" in repr(recorder) and "accepted=2" in repr(recorder)
