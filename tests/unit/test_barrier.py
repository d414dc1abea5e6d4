"""Proof by barrier: only what the receiver has read before it answered the end of a connection is proven."""

import random
import socket
import ssl
import threading
import time

import pytest

from apart import Apart, Load, judge, once, whole
from clawtrail import shipper
from clawtrail.transport import Deadlines
from support import eventually


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(shipper, "BARRIER", (0.05, 0.2, 500))
    monkeypatch.setattr(shipper, "TICK", 0.05)


@pytest.fixture
def recorder(receiver, make_recorder):
    return make_recorder(receiver.address, proof="barrier")


def more(load, recorder, n=300):
    eventually(lambda target=load.count + n: load.count > target, state=recorder.stats)


def fill(recorder, n, size=400):
    for i in range(n):
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": i}, content={"excerpt": "x" * size})


def test_what_is_proven_was_read_before_a_barrier(receiver, recorder):
    with Load(recorder) as load:
        while load.count < 2000:
            proven = recorder.stats()["proven"]
            assert proven <= len(receiver.events())
            time.sleep(0.01)
    load.arrived(receiver)
    eventually(lambda: recorder.stats()["spooled"] == 0, state=recorder.stats)  # the last ones too, by one when idle
    assert receiver.clean_ends >= 4 and receiver.ragged_ends == 0 and recorder.stats()["resent"] == 0


def test_without_a_barrier_nothing_is_proven(receiver, recorder, monkeypatch):
    monkeypatch.setattr(shipper, "BARRIER", (60.0, 60.0, 10**9))
    fill(recorder, 1000)
    eventually(lambda: len(receiver.raw), 1001, state=recorder.stats)
    time.sleep(0.3)
    assert recorder.stats()["proven"] == 0 and receiver.clean_ends == 0
    monkeypatch.setattr(shipper, "BARRIER", (0.05, 0.2, 500))
    eventually(lambda: recorder.stats()["proven"], 1001, state=recorder.stats)
    assert receiver.clean_ends == 1


def test_an_idle_connection_with_nothing_to_prove_is_left_alone(receiver, recorder):
    fill(recorder, 10)
    eventually(lambda: recorder.stats()["proven"], 11, state=recorder.stats)
    eventually(lambda: recorder.stats()["connects"], 2, state=recorder.stats)  # the one after the barrier
    time.sleep(0.6)
    assert recorder.stats()["connects"] == 2 and recorder.stats()["connected"]


def test_a_backlog_that_takes_long_is_proven_piece_by_piece(receiver, recorder, monkeypatch):
    monkeypatch.setattr(shipper, "BARRIER", (60.0, 60.0, 500))  # by the number of events alone
    receiver.kill()
    fill(recorder, 8000)
    receiver.start()
    eventually(lambda: len(receiver.raw) >= 8001, state=recorder.stats)
    assert recorder.stats()["proven"] >= 6000 and receiver.clean_ends >= 10
    judge(receiver.messages)


def test_a_receiver_that_is_killed_again_and_again_had_all_that_is_proven_and_gets_the_rest_again(pki, tmp_path, make_recorder):
    apart = Apart(pki, tmp_path / "received")
    recorder = make_recorder(apart.address, proof="barrier")
    proven = 0
    try:
        with Load(recorder) as load:
            for _ in range(6):
                more(load, recorder, random.randint(150, 500))
                apart.kill()
                time.sleep(0.02)  # what was answered before the kill is counted now
                stats, had = recorder.stats(), {m.seq for m in apart.messages()}
                assert set(range(1, stats["proven"] + 1)) <= had, "proven, and not there"
                assert stats["proven"] >= proven and whole(stats)
                proven = stats["proven"]
                apart.start()
        load.arrived(apart)
        assert proven > 300 and recorder.stats()["resent"] > 0
        eventually(lambda: recorder.stats()["spooled"] == 0, state=recorder.stats)
    finally:
        apart.kill()


def test_a_receiver_that_ends_by_itself_without_having_read_gets_the_window_again(receiver, recorder, monkeypatch):
    monkeypatch.setattr(shipper, "BARRIER", (60.0, 60.0, 10**9))
    fill(recorder, 200)
    eventually(lambda: len(receiver.raw), 201, state=recorder.stats)
    receiver.hang = True
    fill(recorder, 300)
    assert recorder.flush(10)
    receiver.hang_up()  # its close_notify comes, and 300 events lie unread
    assert recorder.stats()["proven"] == 0
    receiver.hang = False
    eventually(lambda: len(receiver.events()), 501, state=recorder.stats)
    judge(receiver.messages)
    assert recorder.stats()["resent"] >= 300


def test_the_receivers_own_end_is_not_taken_for_its_answer(pki, make_recorder, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pki.server)
    ended = threading.Event()

    def serve():  # takes everything off the wire, keeps nothing, and ends by itself
        with context.wrap_socket(listener.accept()[0], server_side=True) as tls:
            tls.settimeout(10)
            while len(tls.recv(65536)) > 0 and not read.is_set():
                pass
            tls.settimeout(0.0)
            try:
                tls.unwrap()  # its close_notify goes out, ours is not waited for
            except OSError:
                pass
            ended.set()
            hold.wait(10)

    def just_then(self, now):  # a barrier comes due when the receiver has just ended, and nobody has seen it yet
        if ended.is_set() or self.outbox.unsent or not self.outbox.unproven:
            return False
        read.set()
        self._connection.send(memoryview(b" "))  # wakes it
        ended.wait(10)
        time.sleep(0.05)
        return True

    read, hold = threading.Event(), threading.Event()
    monkeypatch.setattr(shipper.Shipper, "_barrier_due", just_then)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=serve, daemon=True)
        server.start()
        recorder = make_recorder(listener.getsockname(), proof="barrier")
        fill(recorder, 100)
        assert ended.wait(10)
        hold.set()
        server.join(10)
    eventually(lambda: recorder.stats()["resent"] > 0, state=recorder.stats)
    assert recorder.stats()["proven"] == 0 and recorder.stats()["spooled"] == 101


def test_what_was_proven_is_sent_again_too_when_the_connection_breaks_after_it(receiver, recorder, monkeypatch):
    # the receiver had read it, and may have lost it with itself: its disk was full, it was killed with its queue
    fill(recorder, 500)
    eventually(lambda: recorder.stats()["proven"], 501, state=recorder.stats)
    monkeypatch.setattr(shipper, "BARRIER", (60.0, 60.0, 10**9))
    receiver.kill()
    eventually(lambda: not recorder.stats()["connected"], state=recorder.stats)
    receiver.start()
    eventually(lambda: len(receiver.raw), 1002, state=recorder.stats)
    assert recorder.stats()["proven"] == 501 and recorder.stats()["resent"] == 501
    judge(receiver.messages)


def test_a_break_while_the_window_is_sent_again_loses_nothing_behind_it(receiver, recorder, monkeypatch):
    fill(recorder, 3000)
    eventually(lambda: recorder.stats()["proven"] == 3001 and recorder.stats()["connected"], state=recorder.stats)  # the barrier's new connection
    monkeypatch.setattr(shipper, "BARRIER", (60.0, 60.0, 10**9))
    receiver.reset_after = 100_000  # bytes of two megabytes
    connects = recorder.stats()["connects"]
    receiver.hang_up()
    eventually(lambda: recorder.stats()["connects"] >= connects + 3, state=recorder.stats)
    receiver.reset_after = None
    fill(recorder, 300)
    eventually(lambda: len(receiver.events()), 3301, state=recorder.stats)
    assert recorder.stats()["unsent"] == 0
    judge(receiver.messages)


def test_what_was_proven_is_sent_again_when_the_receiver_dies_in_the_barrier(receiver, recorder):
    with Load(recorder) as load:
        for _ in range(5):
            ends = receiver.clean_ends
            eventually(lambda: receiver.clean_ends > ends, state=recorder.stats)
            receiver.kill()
            receiver.start()
    load.arrived(receiver)
    assert recorder.stats()["resent"] > 100


def test_a_receiver_that_never_answers_proves_nothing_is_told_about_and_is_asked_less_often(receiver, make_recorder):
    recorder = make_recorder(receiver.address, proof="barrier", deadlines=Deadlines(close=0.1))
    receiver.close_notify = False
    with Load(recorder) as load:
        more(load, recorder, 1500)
        stats = recorder.stats()
        assert stats["proven"] == 0 and "does not answer the end of the session" in stats["proof_error"]
        assert stats["connects"] <= shipper.PATIENCE + 1
        more(load, recorder, 300)
    load.arrived(receiver)


def test_load_over_barriers_and_ends_of_the_receiver_at_random_loses_nothing(receiver, recorder):
    with Load(recorder, rate=2000) as load:
        for _ in range(15):
            more(load, recorder, random.randint(50, 200))
            receiver.hang_up()
    load.arrived(receiver)
    eventually(lambda: recorder.stats()["spooled"] == 0, state=recorder.stats)
    assert len(once([m.event for m in receiver.messages])) == recorder.stats()["accepted"]
