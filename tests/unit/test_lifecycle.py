"""How a process lives and ends with a recorder in it: signals, threads, event loops, heartbeats, every kind of exit."""

import asyncio
import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from apart import judge, whole
from clawtrail import shipper
from clawtrail.errors import QueueFull
from support import eventually


def payloads(receiver, who="main"):
    return [e["params"]["i"] for e in receiver.events("tool.call") if e["params"]["who"] == who]


def record(recorder, i, who="main", **fields):
    return recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"who": who, "i": i}, **fields)


def settled(recorder, receiver):
    """Everything that was accepted has come, in one chain."""
    eventually(lambda: len(receiver.events()) >= recorder.stats()["accepted"], state=recorder.stats)
    (events,) = judge(receiver.messages).values()
    stats = recorder.stats()
    assert len(events) == stats["accepted"] and whole(stats) and stats["dropped"] == stats["refused"] == {}
    return events


# -- signals -------------------------------------------------------------------------------------------------------


class Storm:
    """SIGALRM again and again while the block runs, at moments that nobody chose; `handler` gets the count."""

    def __init__(self, handler, every=0.0005):
        self._handler, self._every, self.count = handler, every, 0
        self._over = False

    def __enter__(self):
        self._old = signal.signal(signal.SIGALRM, self._signal)
        self._hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # it may strike in somebody's finalizer too
        self._next()
        return self

    def __exit__(self, *_):
        self._over = True  # one that is on its way must not set the next
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._old)
        sys.unraisablehook = self._hook

    def _next(self):
        signal.setitimer(signal.ITIMER_REAL, random.uniform(self._every / 10, self._every))

    def _signal(self, *_):
        if self._over:
            return
        self.count += 1
        try:
            self._handler(self.count)
        finally:
            self._next()


@pytest.mark.parametrize("durability", ["write", "disk", "memory"])
def test_a_signal_handler_that_records_in_the_middle_of_record_loses_and_garbles_nothing(durability, receiver, make_recorder):
    recorder = make_recorder(receiver.address, durability=durability)
    n = 800 if durability == "disk" else 8000  # long enough for the signals that are wanted below
    with Storm(lambda i: record(recorder, i, "signal"), every=0.002 if durability == "disk" else 0.0005) as storm:
        for i in range(n):
            record(recorder, i)
    settled(recorder, receiver)
    assert payloads(receiver) == list(range(n)) and storm.count > 20
    assert sorted(payloads(receiver, "signal")) == list(range(1, storm.count + 1))


def test_the_first_event_may_come_from_a_signal_handler_that_interrupts_the_first_event(receiver, make_recorder):
    for _ in range(40):
        recorder = make_recorder(receiver.address)
        with Storm(lambda i: record(recorder, i, "signal"), every=0.0003):
            record(recorder, 0)
            time.sleep(0.002)
        assert recorder.close(10), recorder
        assert whole(recorder.stats()) and recorder.stats()["connects"] == 1
    assert len(judge(receiver.messages)) == 40 and payloads(receiver) == [0] * 40


def test_shipping_begins_once_there_is_room_for_its_thread(receiver, recorder, monkeypatch):
    def full(_):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        for i in range(5):
            record(recorder, i)
        assert recorder.stats()["last_error"] == "can't start new thread" and recorder.stats()["connects"] == 0
    record(recorder, 5)
    settled(recorder, receiver)


class Interrupted(BaseException):
    """As KeyboardInterrupt is."""


def test_an_exception_that_a_signal_raises_inside_record_breaks_neither_the_recorder_nor_the_chain(receiver, recorder):
    def interrupt(i):
        nonlocal broke
        if inside:
            record(recorder, i, "signal")
            broke += 1
            raise Interrupted

    inside, broke, receipts = False, 0, {}
    with Storm(interrupt, every=0.0004) as storm:
        for i in range(15_000):  # so many that signals strike often enough
            try:
                inside = True
                receipts[i] = record(recorder, i)
            except Interrupted:
                pass
            finally:
                inside = False
    record(recorder, "after")
    settled(recorder, receiver)
    came = payloads(receiver)
    assert broke > 100 and len(came) == len(set(came)) and set(receipts) <= set(came)
    signals = payloads(receiver, "signal")
    assert len(signals) == len(set(signals)) == broke, (len(signals), broke, storm.count)


def test_an_interrupt_at_any_moment_of_the_first_event_leaves_a_recorder_that_works(receiver, make_recorder):
    def interrupt(_):
        if inside:
            raise Interrupted

    broke = 0
    for n in range(60):
        recorder, inside = make_recorder(receiver.address), False
        with Storm(interrupt, every=0.0001 + n * 0.00005):
            try:
                inside = True
                record(recorder, n)
            except Interrupted:
                broke += 1
            finally:
                inside = False
        record(recorder, n, "after")
        record(recorder, n, "after")
        assert recorder.close(10), recorder
        assert whole(recorder.stats()) and recorder.stats()["connects"] == 1
    judge(receiver.messages)
    assert broke > 5 and payloads(receiver, "after") == [n for n in range(60) for _ in range(2)]


@pytest.mark.parametrize("then", ["and goes on", "and raises SystemExit"])
def test_a_signal_handler_that_closes_the_recorder_in_the_middle_of_record(then, receiver, make_recorder):
    ended = 0
    for n in range(30):
        recorder = make_recorder(receiver.address)
        record(recorder, "first")

        def close(_):
            recorder.close(2)
            if then == "and raises SystemExit":
                raise SystemExit

        accepted = []
        with Storm(close, every=0.001 + 0.00005 * n):
            try:
                for i in itertools.count():
                    accepted.append(record(recorder, i).id)
            except (QueueFull, SystemExit):
                ended += 1
        recorder.close(5)
        assert whole(recorder.stats())
        assert set(accepted) <= {e["id"] for e in receiver.events()}
    assert ended == 30
    judge(receiver.messages)


class Talkative:
    def __init__(self, recorder, where):
        self._recorder, self._where = recorder, where

    def __str__(self):
        record(self._recorder, self._where, "value")
        return "written"

    __repr__ = __str__


class Finalized:
    """Garbage that only the collector finds, which comes at moments that nobody chose."""

    def __init__(self, recorder, i):
        self._me, self._recorder, self._i = self, recorder, i

    def __del__(self):
        record(self._recorder, self._i, "finalizer")


def test_values_and_finalizers_that_record_while_they_are_recorded_are_on_record_too(receiver, recorder):
    before = gc.get_threshold()
    gc.set_threshold(50)
    try:
        for i in range(500):
            Finalized(recorder, i)
            record(recorder, i, error={"message": Talkative(recorder, i)})
    finally:
        gc.set_threshold(*before)
    gc.collect()
    settled(recorder, receiver)
    assert payloads(receiver) == list(range(500)) and sorted(payloads(receiver, "finalizer")) == list(range(500))
    assert set(payloads(receiver, "value")) == set(range(500))


# -- threads and event loops ---------------------------------------------------------------------------------------


def test_eight_threads_share_one_chain_and_each_keeps_its_order(receiver, recorder):
    start = threading.Barrier(8)

    def work(who):
        start.wait()
        for i in range(2000):
            record(recorder, i, who)

    workers = [threading.Thread(target=work, args=(who,)) for who in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert len(settled(recorder, receiver)) == 16_001 and recorder.stats()["connects"] == 1
    for who in range(8):
        assert payloads(receiver, who) == list(range(2000))


async def lag(done):
    """The longest time that the loop did not turn, in seconds."""
    worst = 0.0
    while not done.is_set():
        began = time.monotonic()
        await asyncio.sleep(0.001)
        worst = max(worst, time.monotonic() - began)
    return worst


#: seconds: a turn of the loop with a full spool, on a busy machine. One that waited for room takes `full_timeout`, 30
TURN = 1.0


@pytest.mark.parametrize("fault", ["is away", "hangs"])
def test_an_event_loop_turns_while_the_spool_is_full_and_the_receiver(fault, receiver, make_recorder):
    recorder = make_recorder(receiver.address, quota=1 << 20, full_timeout=30.0)
    if fault == "is away":
        receiver.kill()
    else:
        receiver.hang = True
    text = "x" * 1500

    async def agent():
        done, refused, accepted = asyncio.Event(), 0, 0
        ticker = asyncio.create_task(lag(done))
        for i in range(1500):
            try:
                record(recorder, i, content={"excerpt": text})
                accepted += 1
            except QueueFull:
                refused += 1
            if i % 10 == 0:
                await asyncio.sleep(0)
        waiting = asyncio.create_task(recorder.arecord("tool.call", "attempt", tool={"name": "exec"}, params={"who": "main", "i": "waited"}, content={"excerpt": text}))
        assert await recorder.aflush(0.3) is False
        assert not waiting.done()
        if fault == "is away":
            receiver.start()
        receiver.hang = False
        receipt = await asyncio.wait_for(waiting, 20)
        assert await recorder.aflush(20) is True
        done.set()
        return await ticker, refused, accepted, receipt

    worst, refused, accepted, receipt = asyncio.run(agent())
    assert worst < TURN and refused > 300, (worst, refused)
    eventually(lambda: "waited" in payloads(receiver), state=recorder.stats)
    assert payloads(receiver) == [*range(accepted), "waited"] and receipt.id in {e["id"] for e in receiver.events()}
    judge(receiver.messages)


def test_an_event_loop_turns_while_arecord_waits_for_the_disk(receiver, make_recorder, monkeypatch):
    recorder = make_recorder(receiver.address, durability="disk")
    sync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (time.sleep(0.3), sync(fd)))

    async def agent():
        done = asyncio.Event()
        ticker = asyncio.create_task(lag(done))
        began = time.monotonic()
        for i in range(3):
            await recorder.arecord("tool.call", "attempt", tool={"name": "exec"}, params={"who": "main", "i": i})
            record(recorder, f"not waited {i}")  # in a loop it is handed to the kernel, and that is all
        took = time.monotonic() - began
        done.set()
        return took, await ticker

    took, worst = asyncio.run(agent())
    assert took >= 0.9 and worst < 0.25, (took, worst)


# -- heartbeats, and what the dead left ----------------------------------------------------------------------------


def test_heartbeats_carry_the_counters_and_come_when_nothing_happens(receiver, make_recorder, monkeypatch):
    monkeypatch.setattr(shipper, "TICK", 0.05)
    recorder = make_recorder(receiver.address, heartbeat=0.3)
    recorder.health = lambda: {"queue_of_mine": 7}
    for i in range(10):
        record(recorder, i)
    eventually(lambda: len(receiver.events("system.heartbeat")) >= 3, state=recorder.stats)
    beats = receiver.events("system.heartbeat")[:3]
    assert [b["health"]["accepted"] for b in beats] == [11, 12, 13] and all(b["health"]["queue_of_mine"] == 7 for b in beats)
    for health in (b["health"] for b in beats):
        assert health["accepted"] == health["proven"] + health["spooled"] + health["dropped"]
        assert {"resent", "reconnects", "refused", "last_error", "oldest_unproven_seconds", "proof", "spool_bytes", "sent_bytes"} <= health.keys()
    times = [b["ts"] for b in beats]
    assert times == sorted(times) and len(set(times)) == 3
    judge(receiver.messages)


def test_heartbeats_of_an_outage_tell_about_it_afterwards(receiver, make_recorder, monkeypatch):
    monkeypatch.setattr(shipper, "TICK", 0.05)
    recorder = make_recorder(receiver.address, heartbeat=0.2)
    record(recorder, 0)
    eventually(lambda: len(receiver.raw) >= 2, state=recorder.stats)
    receiver.kill()
    eventually(lambda: recorder.stats()["accepted"] > 6, state=recorder.stats)
    receiver.start()
    eventually(lambda: [b for b in receiver.events("system.heartbeat") if "refused" in (b["health"]["last_error"] or "")], state=recorder.stats)
    eventually(lambda: [b for b in receiver.events("system.heartbeat") if b["health"]["reconnects"] == 1], state=recorder.stats)
    judge(receiver.messages)


LEFT = """
import os, sys
from clawtrail import Recorder
recorder = Recorder(("127.0.0.1", int(sys.argv[1])), sys.argv[2], agent="agent-1")
for i in range(200):
    recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"who": sys.argv[3], "i": i})
os._exit(0)
"""


def test_what_dead_siblings_left_is_shipped_before_what_is_new(receiver, make_recorder, pki):
    receiver.kill()
    for who in ("first", "second"):
        subprocess.run([sys.executable, "-c", LEFT, str(receiver.port), str(pki.client), who], check=True, timeout=30)
    receiver.start()
    recorder = make_recorder(receiver.address)
    for i in range(50):
        record(recorder, i)
    eventually(lambda: len(receiver.events("tool.call")), 450, state=recorder.stats)
    assert [e["params"]["who"] for e in receiver.events("tool.call")] == ["first"] * 200 + ["second"] * 200 + ["main"] * 50
    assert recorder.stats()["adopted"] == 402 and len(judge(receiver.messages)) == 3


# -- exits ---------------------------------------------------------------------------------------------------------

HEAD = """
import atexit, logging, os, signal, sys, threading, time
def before():
    log.info("early atexit")
if "EARLY" in sys.argv[4:]:
    atexit.register(before)
from clawtrail import TLSSysLogHandler
handler = TLSSysLogHandler(address=["127.0.0.1", int(sys.argv[1])], tls=sys.argv[2], agent="agent-1")
log = logging.getLogger("agent")
log.setLevel("INFO")
log.addHandler(handler)
def work(n=500, who="main"):
    for i in range(n):
        log.info("%s %d", who, i)
"""


def run(body, receiver, pki, *args, python=sys.executable):
    """Runs a script; its exit status, what it wrote to standard error, how many seconds after its last words it ended."""
    script = HEAD + body + "\nprint(flush=True)\n"
    process = subprocess.Popen(
        [python, "-X", "dev", "-W", "ignore", "-c", script, str(receiver.port), str(pki.client), "-", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        process.stdout.readline()
        began = time.monotonic()
        _, errors = process.communicate(timeout=30)
        return process.returncode, errors, time.monotonic() - began
    finally:
        process.kill()


def texts(receiver, who="main"):
    return [e["content"]["excerpt"] for e in receiver.events("log.record") if e["content"]["excerpt"].startswith(f"{who} ")]


def lines(n=500, who="main"):
    return [f"{who} {i}" for i in range(n)]


def test_a_script_that_logs_and_leaves_delivers_all_500_in_tls_1_3_with_tickets(receiver, pki):
    code, errors, took = run("work()", receiver, pki)
    print(f"exit took {took * 1000:.0f} ms")
    assert (code, errors) == (0, "") and texts(receiver) == lines()  # it is there when the process is gone, and not some time later
    assert receiver.clean_ends == 1 and took < 3.0


def test_a_close_before_the_first_refused_connection_waits_for_nobody(receiver, make_recorder):
    receiver.kill()
    recorder = make_recorder(receiver.address)
    record(recorder, 0)
    began = time.monotonic()
    assert recorder.close(10) is False
    assert time.monotonic() - began < 3.0


def adopted(receiver, make_recorder):
    """The next start of the same agent; it delivers what the last one left."""
    recorder = make_recorder(receiver.address)
    record(recorder, "next")
    eventually(lambda: payloads(receiver), ["next"], state=recorder.stats)  # and all the others came before it
    return recorder


ENDS = {
    "": 0,
    "sys.exit(3)": 3,
    "raise RuntimeError('on purpose')": 1,
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); os.kill(os.getpid(), signal.SIGTERM)": 5,
    "os.kill(os.getpid(), signal.SIGTERM)": -15,
    "os.kill(os.getpid(), signal.SIGKILL)": -9,
    "os._exit(4)": 4,
    "os.abort()": -6,
}


@pytest.mark.parametrize("end", ENDS, ids=["falls off the end", "sys.exit", "exception", "SIGTERM handled", "SIGTERM", "SIGKILL", "os._exit", "abort"])
@pytest.mark.parametrize("away", [False, True], ids=["", "receiver away"])
def test_whatever_ends_a_process_its_events_are_delivered_by_it_or_by_the_next(end, away, receiver, make_recorder, pki):
    if away:
        receiver.kill()
    code, errors, took = run(f"work()\nprint(flush=True)\n{end}", receiver, pki)
    assert code == ENDS[end] and took < 2.5, (code, took, errors)
    assert ("Traceback" in errors) == ("raise" in end), errors
    if away:
        receiver.start()
        assert texts(receiver) == []
    recorder = adopted(receiver, make_recorder)
    assert texts(receiver) == lines()
    if away or code in (-15, -9, 4, -6):
        assert recorder.stats()["adopted"] >= (501 if away else 1)
    judge(receiver.messages)


THREADS = {
    "daemon threads that still log": ("""
for n in range(4):
    threading.Thread(target=lambda n=n: [work(1, f"d{n}-{i}") for i in range(10**9)], daemon=True).start()
work()
""", 500),
    "threads that log after the main one ended": ("""
def late():
    threading.main_thread().join()
    work(100, "late")
for _ in range(3):
    threading.Thread(target=late).start()
work()
""", 500),
    "an atexit callback of before": ("work()", 500),
    "an atexit callback of after": ("""
atexit.register(lambda: work(50, "atexit"))
work()
""", 500),
    "an atexit callback alone": ("""
atexit.register(lambda: work(50, "atexit"))
""", 0),
    "a finalizer at the end of the interpreter": ("""
class Last:
    def __del__(self):
        log.info("finalizer 0")
last = Last()
sys.modules["kept"] = type("Kept", (), {"last": Last()})
work()
""", 500),
}  # fmt: skip


@pytest.mark.parametrize("who", THREADS)
def test_no_exit_hangs_or_breaks_or_loses_what_it_accepted_with(who, receiver, make_recorder, pki):
    body, n = THREADS[who]
    code, errors, took = run(body, receiver, pki, *(["EARLY"] if "of before" in who else []))
    told = [line for line in errors.splitlines() if "clawtrail" not in line or "Traceback" in line]
    assert code == 0 and not told and took < 8.0, (code, errors, took)
    adopted(receiver, make_recorder)
    assert texts(receiver) == lines(n)
    late, alone = texts(receiver, "late"), texts(receiver, "atexit")
    if "after the main" in who:
        assert sorted(late) == sorted(lines(100, "late") * 3)
    if "callback of after" in who or "alone" in who:
        assert alone == lines(50, "atexit")
    judge(receiver.messages)
