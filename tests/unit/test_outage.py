"""Receivers that die, hang, crawl, refuse, and a network that swallows: nothing is lost, and nobody who records waits."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from socket import create_server

import pytest

from apart import Apart, Load, judge, whole
from clawtrail.testing.receiver import reset
from clawtrail.transport import Deadlines
from support import eventually

OUTAGE = 3.0  #: seconds; ten and more are the benchmark's
#: seconds: the longest record(), on a machine that is busy with other tests too. One that waited for the receiver takes OUTAGE
BOUND = 1.0


@pytest.fixture
def apart(pki, tmp_path):
    made = Apart(pki, tmp_path / "received")
    yield made
    made.kill()


def test_a_receiver_that_is_dead_for_seconds_costs_no_event_no_order_and_nobody_waits(receiver, recorder, record_property):
    with Load(recorder) as load:
        eventually(lambda: load.count > 300, state=recorder.stats)
        receiver.kill()
        time.sleep(OUTAGE)
        assert recorder.stats()["spooled"] > 1000 and not recorder.stats()["connected"]
        receiver.start()
        eventually(lambda: recorder.stats()["connected"], state=recorder.stats)
        eventually(lambda n=load.count: load.count > n + 300, state=recorder.stats)
    load.arrived(receiver)
    assert load.count > 2000 and load.longest < BOUND and recorder.stats()["dropped"] == recorder.stats()["refused"] == {}
    record_property("longest record() in ms", round(load.longest * 1000, 1))
    print(f"{load.count} events, longest record() {load.longest * 1000:.1f} ms, resent {recorder.stats()['resent']}")


MEMORY = """
import sys
from clawtrail import Recorder

def anonymous():
    return sum(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(("RssAnon", "RssShmem")))

def fill(n):
    for i in range(n):
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": i}, content={"excerpt": text})

text, n = "x" * 1900, int(sys.argv[3])
recorder = Recorder(("127.0.0.1", int(sys.argv[1])), sys.argv[2], agent="agent-1")
fill(1000)
before = anonymous()
fill(n)
print(anonymous() - before, recorder.stats()["spool_bytes"])
recorder.close(0.1)
"""


def test_the_backlog_of_an_outage_lies_on_the_disk_and_not_in_memory(receiver, pki):
    receiver.kill()
    command = [sys.executable, "-c", MEMORY, str(receiver.port), str(pki.client), "15000"]
    grown, spooled = map(int, subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split())
    assert spooled > 30 << 20 and grown < spooled / 4, f"{grown >> 10} KiB more for {spooled >> 10} KiB of backlog"


# -- it hangs ------------------------------------------------------------------------------------------------------


def test_a_receiver_that_hangs_under_load_and_goes_on_costs_nothing(receiver, recorder):
    with Load(recorder) as load:
        eventually(lambda: load.count > 200, state=recorder.stats)
        receiver.hang = True
        time.sleep(1.5)
        receiver.hang = False
        eventually(lambda n=load.count: load.count > n + 200, state=recorder.stats)
    load.arrived(receiver)
    assert load.longest < BOUND


@pytest.mark.parametrize("then", ["goes on", "is killed and restarted"])
def test_a_receiver_that_was_stopped_under_load_costs_nothing_when_it(then, apart, make_recorder):
    recorder = make_recorder(apart.address)
    with Load(recorder, size=1900) as load:
        eventually(lambda: load.count > 200, state=recorder.stats)
        apart.signal(signal.SIGSTOP)
        sent = recorder.stats()["sent_bytes"]
        eventually(lambda: recorder.stats()["sent_bytes"] > sent, state=recorder.stats)  # the kernel takes it, nobody reads it
        time.sleep(1.5)
        if then == "goes on":
            apart.signal(signal.SIGCONT)
        else:
            apart.kill()
            apart.start()
        eventually(lambda n=load.count: load.count > n + 200, state=recorder.stats)
    load.arrived(apart)
    assert load.longest < BOUND


def test_a_receiver_that_crawls_is_no_reason_to_lose_or_to_wait(receiver, recorder):
    with Load(recorder) as load:
        eventually(lambda: load.count > 200, state=recorder.stats)
        receiver.slice = (1, 0.5)
        time.sleep(1.5)
        receiver.slice = None
        eventually(lambda n=load.count: load.count > n + 200, state=recorder.stats)
    load.arrived(receiver)
    assert load.longest < BOUND


# -- the network swallows ------------------------------------------------------------------------------------------

PARTITION = """
import json, os, subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
from apart import Apart, Load
from clawtrail import Recorder
from support import eventually

def firewall(what, port):
    for way in ("--dport", "--sport"):
        subprocess.run(["iptables", what, "INPUT", "-p", "tcp", way, str(port), "-j", "DROP"], check=True)

subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server, key, client_ca, client, folder = map(Path, sys.argv[1:])
apart = Apart(SimpleNamespace(server=(server, key), client_ca=client_ca), folder / "received")
recorder = Recorder(apart.address, client, agent="agent-1")
try:
    with Load(recorder) as load:
        eventually(lambda: load.count > 200, state=recorder.stats)
        firewall("-A", apart.address[1])
        began = time.monotonic()
        apart.kill()  # its kernel says so to nobody
        eventually(lambda: not recorder.stats()["connected"], within=15, state=recorder.stats)
        noticed, why = time.monotonic() - began, recorder.stats()["last_error"]
        apart.start()
        firewall("-D", apart.address[1])
        eventually(lambda: recorder.stats()["connected"], within=15, state=recorder.stats)
    load.arrived(apart)
finally:
    recorder.close(1)
    apart.kill()
print(json.dumps({"noticed": noticed, "why": why, "longest": load.longest, "count": load.count}))
"""


def test_a_partition_in_which_the_receiver_dies_is_noticed_within_5_seconds_and_costs_nothing(pki, tmp_path):
    if not all(map(shutil.which, ("unshare", "iptables", "ip"))):
        pytest.skip("needs unshare, iptables and ip")
    probe = "ip link set lo up && iptables -A INPUT -p tcp --dport 9 -j DROP"
    if (refused := subprocess.run(["unshare", "-n", "sh", "-c", probe], capture_output=True, text=True)).returncode:
        pytest.skip(f"no network namespace with a firewall here: {refused.stderr.strip()}")
    command = ["unshare", "-n", sys.executable, "-c", PARTITION, *map(str, (*pki.server, pki.client_ca, pki.client, tmp_path))]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    print(seen)
    assert seen["noticed"] < 5.0 + 0.5, seen  # half a second for a busy machine
    assert seen["longest"] < BOUND and seen["count"] > 2000


# -- it does not let anybody in ------------------------------------------------------------------------------------


@pytest.fixture
def resetting():
    """Listens on a port and resets every connection in the middle of the handshake."""
    made = []

    def make():
        listener = create_server(("127.0.0.1", 0))
        listener.settimeout(0.05)
        done = threading.Event()

        def run():
            while not done.is_set():
                try:
                    peer = listener.accept()[0]
                    peer.recv(1)
                    reset(peer)
                except OSError:
                    pass
            listener.close()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        made.append((thread, done))
        return listener.getsockname()[1], lambda: (done.set(), thread.join(5))

    yield make
    for thread, done in made:
        done.set()
        thread.join(5)


FAULTS = {  # and what is told about it
    "closes what it accepts": "cut the connection|closed|reset by peer",
    "refuses the certificate after the handshake": "refused us: it does not trust the CA",
    "does not answer the handshake": "did not finish the TLS handshake",
    "does not speak TLS": "does not speak TLS",
    "resets within the handshake": "cut the connection|reset by peer",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_counts_as_sent_and_nothing_is_lost_by_a_receiver_that(fault, make_receiver, make_recorder, plain_listener, resetting):
    receiver = make_receiver()
    back = lambda: None  # noqa: E731
    match fault:
        case "closes what it accepts":
            receiver.refuse = "accept"
        case "refuses the certificate after the handshake":
            receiver.refuse = "certificate"
        case "does not answer the handshake":
            receiver.hang_handshake = True
        case "does not speak TLS":
            plain = plain_listener(b"220 mail.example ESMTP\r\n")
            receiver.kill()
            receiver.port, back = plain.address[1], plain.close
        case "resets within the handshake":
            receiver.kill()
            receiver.port, back = resetting()
    recorder = make_recorder(receiver.address, deadlines=Deadlines(handshake=0.3))
    for i in range(300):
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"i": i}, content={"excerpt": "nobody may read this in clear"})
    eventually(lambda: re.search(FAULTS[fault], recorder.stats()["last_error"]), state=recorder.stats)
    for _ in range(30):
        stats = recorder.stats()
        assert whole(stats) and (stats["sent_bytes"], stats["proven"], stats["connects"], stats["resent"]) == (0, 0, 0, 0), stats
        time.sleep(0.01)
    if fault == "does not speak TLS":
        assert b"nobody may read" not in plain.received
    back()
    receiver.refuse, receiver.hang_handshake = None, False
    if receiver._killed:
        receiver.start()
    eventually(lambda: len(receiver.events("tool.call")), 300, state=recorder.stats)
    (events,) = judge(receiver.messages).values()
    assert [e["params"]["i"] for e in events[1:]] == list(range(300))


def test_a_receiver_that_ends_connections_without_close_notify_has_proven_nothing(receiver, recorder):
    receiver.close_notify = False
    with Load(recorder) as load:
        for _ in range(3):
            eventually(lambda n=load.count: load.count > n + 200, state=recorder.stats)
            receiver.hang_up()
    load.arrived(receiver)
    assert recorder.stats()["resent"] > 0 and recorder.stats()["proven"] == 0
    assert recorder.close(2) is False  # its answer to our close_notify did not come
    assert recorder.stats()["proven"] == 0 < recorder.stats()["spooled"]
