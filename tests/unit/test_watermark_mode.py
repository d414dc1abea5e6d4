"""Proof by the store's own word: it says what is proven, nobody else does, and while it is silent nothing is released."""

import json
import socketserver
import ssl
import subprocess
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler

import pytest

from apart import Load, judge, whole
from clawtrail import shipper
from clawtrail.errors import TransportError
from support import eventually


class Store:
    """What is asked for watermarks: it has what `receiver` has, up to `most`, unless it is away or lies."""

    def __init__(self, receiver=None) -> None:
        self.receiver, self.most, self.away, self.lie, self.asked = receiver, 2**53 - 1, False, None, set()

    def stored(self, epochs):
        self.asked |= set(epochs)
        if self.away:
            raise TransportError("the store is away, on purpose")
        if self.lie is not None:
            return {epoch: self.lie for epoch in epochs}
        numbers = {}
        for m in self.receiver.messages:
            numbers.setdefault(m.params["epoch"], set()).add(int(m.params["seq"]))
        return {e: min(self.most, _without_a_gap(numbers[e])) for e in epochs if e in numbers}


def _without_a_gap(numbers):
    return next(n for n in range(1, len(numbers) + 2) if n not in numbers) - 1


class HTTPSStore(socketserver.ThreadingTCPServer):
    """The same over mutual TLS: protocol version 1 of `proof.HTTPSWatermark`."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, store, pki) -> None:
        self.store, self.clients = store, []
        super().__init__(("127.0.0.1", 0), _Question)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*pki.server)
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._context.load_verify_locations(pki.client_ca)
        self.url = f"https://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def finish_request(self, request, client_address):
        with self._context.wrap_socket(request, server_side=True) as tls:
            self.clients.append(dict(part[0] for part in tls.getpeercert()["subject"])["commonName"])
            super().finish_request(tls, client_address)

    def handle_error(self, request, client_address):
        pass

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Question(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        epochs = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["epoch"]
        try:
            status, answer = 200, json.dumps({"v": 1, "stored": self.server.store.stored(epochs)}).encode()
        except TransportError as e:
            status, answer = 503, str(e).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def asks_often(monkeypatch):
    monkeypatch.setattr(shipper, "TICK", 0.05)
    monkeypatch.setattr(shipper, "BATCH", 4096)  #: what is proven in one piece; a store may stand still in the middle of it


@pytest.fixture
def store(receiver):
    return Store(receiver)


@pytest.fixture(params=["an object", "over HTTPS"])
def proof(request, store, pki):
    if request.param == "an object":
        yield store
    else:
        server = HTTPSStore(store, pki)
        yield server.url
        assert set(server.clients) <= {"agent-1"} and server.clients
        server.close()


def record(recorder, n, start=0):
    for i in range(start, start + n):
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": i})


def proven(recorder):
    return recorder.stats()["proven"]


def test_what_is_proven_follows_the_store(store, proof, receiver, make_recorder):
    recorder = make_recorder(receiver.address, proof=proof, window=0)
    store.most = 0
    record(recorder, 200)
    eventually(lambda: len(receiver.raw), 201, state=recorder.stats)
    eventually(lambda: recorder.stats()["epoch"] in store.asked, state=recorder.stats)
    assert proven(recorder) == 0  # it is sent, it is read, the window is none: the store has not said so
    for most in (1, 60, 60, 199):
        store.most = most
        record(recorder, 1)
        eventually(lambda: proven(recorder) > 0 or most < 60, state=recorder.stats)
        for _ in range(20):
            assert whole(stats := recorder.stats()) and stats["proven"] <= most, stats
            time.sleep(0.005)
    store.most = 2**53 - 1
    eventually(lambda: recorder.stats()["spooled"] == 0, state=recorder.stats)
    assert proven(recorder) == recorder.stats()["accepted"] == 205 and recorder.stats()["proof_error"] == ""


def test_while_the_store_is_away_nothing_is_released_and_everything_is_shipped(store, proof, receiver, make_recorder):
    recorder = make_recorder(receiver.address, proof=proof, window=0)
    store.away = True
    record(recorder, 500)
    eventually(lambda: len(receiver.raw), 501, state=recorder.stats)
    wanted = "on purpose" if proof is store else "answered 503 b'the store is away, on purpose'; expected 200"
    eventually(lambda: wanted in recorder.stats()["proof_error"], state=recorder.stats)
    record(recorder, 500, 500)
    eventually(lambda: len(receiver.raw), 1001, state=recorder.stats)
    assert proven(recorder) == 0 and recorder.stats()["connects"] == 1 and recorder.stats()["last_error"] == ""
    store.away = False
    eventually(lambda: proven(recorder), 1001, state=recorder.stats)
    assert recorder.stats()["proof_error"] == ""


def test_what_only_the_receiver_has_is_not_proven_by_a_clean_end(store, receiver, make_recorder):
    # syslog-ng reads on with its disk full; what it took is not what the store has
    recorder = make_recorder(receiver.address, proof=store)
    store.most = 100
    record(recorder, 300)
    eventually(lambda: len(receiver.raw), 301, state=recorder.stats)
    recorder.close()
    assert receiver.clean_ends == 1 and proven(recorder) <= 100
    again = make_recorder(receiver.address, proof=store)
    store.most = 2**53 - 1
    record(again, 1)
    eventually(lambda: again.stats()["spooled"] == 0 and again._outbox.unproven == 0, state=again.stats)
    assert again.stats()["adopted"] >= 202 and judge(receiver.messages)



@pytest.mark.parametrize("lie", [0, 2**53 - 1, -5], ids=["too little", "too much", "less than nothing"])
def test_a_store_that_lies_is_believed_no_further_than_was_sent(lie, store, receiver, make_recorder):
    store.lie = lie
    receiver.kill()
    recorder = make_recorder(receiver.address, proof=store)
    record(recorder, 200)
    eventually(lambda: recorder.stats()["last_error"], state=recorder.stats)
    assert proven(recorder) == 0
    receiver.start()
    with Load(recorder, rate=500) as load:
        for _ in range(100):
            stats = recorder.stats()
            assert 0 <= stats["proven"] <= stats["accepted"] and whole(stats)
            time.sleep(0.005)
        receiver.hang = True
        eventually(lambda n=load.count: load.count > n + 100, state=recorder.stats)
        unread = proven(recorder)
        receiver.hang = False
    eventually(lambda: len(receiver.events()) == recorder.stats()["accepted"], state=recorder.stats)
    if lie > 0:  # it was believed what could be true
        eventually(lambda: recorder.stats()["spooled"] == 0, state=recorder.stats)
        assert unread > 0
    else:
        assert proven(recorder) == unread == 0
    assert judge(receiver.messages)


def raises(epochs):
    raise LookupError("on purpose")


@pytest.mark.parametrize("answer", [raises, lambda e: None, lambda e: {e[0]: "7"}, lambda e: {e[0]: None}], ids=["raises", "nothing", "text", "a hole"])
def test_a_proof_that_is_broken_releases_nothing_says_why_and_is_asked_again(answer, store, receiver, make_recorder, monkeypatch):
    monkeypatch.setattr(store, "stored", answer)
    recorder = make_recorder(receiver.address, proof=store)
    record(recorder, 100)
    eventually(lambda: "Error: " in recorder.stats()["proof_error"], state=recorder.stats)
    eventually(lambda: len(receiver.raw), 101, state=recorder.stats)
    assert proven(recorder) == 0 and recorder.stats()["connects"] == 1
    monkeypatch.setattr(store, "stored", Store(receiver).stored)
    eventually(lambda: proven(recorder), 101, state=recorder.stats)


def test_a_store_that_forgets_takes_no_proof_back(store, receiver, make_recorder):
    recorder = make_recorder(receiver.address, proof=store)
    record(recorder, 100)
    eventually(lambda: proven(recorder), 101, state=recorder.stats)
    store.most = 5
    record(recorder, 100)
    eventually(lambda: len(receiver.raw), 201, state=recorder.stats)
    time.sleep(0.2)
    assert proven(recorder) == 101
    store.most = 2**53 - 1
    eventually(lambda: proven(recorder), 201, state=recorder.stats)


SCRIPT = """
import os, signal, sys
from clawtrail import Recorder, shipper
shipper.TICK, shipper.BATCH = 0.05, 4096
recorder = Recorder(("127.0.0.1", int(sys.argv[1])), sys.argv[2], agent="agent-1", proof=sys.argv[3])
for i in range(400):
    recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": i})
recorder.flush(10)
while recorder.stats()["proven"] < 150:
    pass
print(recorder.stats()["epoch"], flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_unproven_when_the_agent_was_killed_is_sent_again_until_it_is_proven(store, pki, receiver, make_recorder):
    server = HTTPSStore(store, pki)
    try:
        store.most = 150
        command = [sys.executable, "-c", SCRIPT, str(receiver.port), str(pki.client), server.url]
        epoch = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
        assert len(receiver.raw) >= 400 and epoch
        recorder = make_recorder(receiver.address, proof=server.url)
        record(recorder, 1)
        eventually(lambda: recorder.stats()["adopted"] >= 251, state=recorder.stats)
        eventually(lambda n=len(receiver.raw): [m.seq for m in receiver.messages if m.params["epoch"] == epoch][-1] == 401, state=recorder.stats)
        time.sleep(0.2)
        assert recorder._outbox.unproven >= 251  # sent twice by now, and the store says 150
        store.most = 2**53 - 1
        eventually(lambda: recorder._outbox.unproven == 0, state=recorder.stats)
        assert len(judge(receiver.messages)[epoch]) == 401
    finally:
        server.close()
