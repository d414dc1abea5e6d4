"""The receiver that ships in the package does what it is told, seen by a sender that is nothing but a TLS socket."""

import socket
import ssl
import subprocess
import sys
import time

import pytest

from clawtrail import testing
from clawtrail.errors import ClawtrailError
from clawtrail.transport import TLSFiles
from support import eventually

MESSAGE = b'<110>1 2026-01-01T00:00:00.000000Z host agent-1 7 tool.call - {"epoch":"e","seq":%d,"kind":"tool.call"}'


def frames(first, last):
    return b"".join(b"%d %b" % (len(m), m) for m in (MESSAGE % n for n in range(first, last + 1)))


@pytest.fixture
def dial(pki):
    made = []

    def dial(receiver, folder=pki.client, timeout=5, on_message=None):
        context = TLSFiles.bundle(folder).context()
        context._msg_callback = on_message
        raw = socket.create_connection(receiver.address, timeout)
        made.append(raw)
        sock = context.wrap_socket(raw, server_hostname="localhost", suppress_ragged_eofs=False)
        made.append(sock)
        return sock

    yield dial
    for sock in made:
        sock.close()


def sequence(receiver):
    return [e["seq"] for e in receiver.events()]


# -- a receiver that is well ---------------------------------------------------------------------------------------


def test_what_is_sent_is_kept_in_order_with_its_repetitions_and_each_event_is_there_once(receiver, dial):
    dial(receiver).sendall(frames(1, 3) + frames(2, 4))
    eventually(lambda: len(receiver.raw), 6)
    assert [m.event["seq"] for m in receiver.messages] == [1, 2, 3, 2, 3, 4]
    assert sequence(receiver) == [1, 2, 3, 4] and receiver.events("tool.result") == []
    assert receiver.bytes_read == len(frames(1, 3) + frames(2, 4))
    assert (receiver.connections, receiver.subjects) == (1, ["agent-1"])


def test_it_takes_frames_apart_by_itself_and_says_what_is_none(pki, dial):
    with testing.Receiver(*pki.server, pki.client_ca) as receiver:
        sock = dial(receiver)
        sock.sendall(frames(1, 2))
        eventually(lambda: len(receiver.raw), 2)
        assert sequence(receiver) == [1, 2] and receiver.messages[0].app == "agent-1"
        sock.sendall(b"<110>1 no length")
        with pytest.raises(ClawtrailError, match="no length"):
            eventually(lambda: receiver.raw and None)
        assert len(receiver.failures) == 1


def test_it_answers_a_close_notify_after_it_has_read_everything_before_it(receiver, dial):
    sock = dial(receiver)
    sock.sendall(frames(1, 2000))
    sock.unwrap()
    assert len(receiver.raw) == 2000
    eventually(lambda: (receiver.clean_ends, receiver.ragged_ends), (1, 0))


def test_an_end_without_close_notify_is_counted_apart(receiver, dial):
    dial(receiver).close()
    eventually(lambda: (receiver.clean_ends, receiver.ragged_ends), (0, 1))


@pytest.mark.parametrize("tls", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda v: v.name)
def test_it_speaks_the_one_version_it_was_given(tls, make_receiver, dial):
    assert dial(make_receiver(tls=tls)).version() == tls.name.replace("_", ".")


@pytest.mark.parametrize("tickets", [0, 1, 4])
def test_it_issues_as_many_session_tickets_as_it_was_told(tickets, pki, dial):
    with testing.Receiver(*pki.server, pki.client_ca, tickets=tickets) as receiver:
        seen = []
        sock = dial(receiver, on_message=lambda _socket, _way, _version, _type, message, _data: seen.append(getattr(message, "name", "")))
        sock.unwrap()
        assert seen.count("NEWSESSION_TICKET") == tickets


def test_it_may_ask_nobody_for_a_certificate(pki, dial):
    with testing.Receiver(*pki.server) as receiver:
        dial(receiver, pki.stranger).sendall(frames(1, 1))
        eventually(lambda: len(receiver.raw), 1)
        assert receiver.subjects == [""]


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_it_listens_on_ipv6_too(pki, dial):
    with testing.Receiver(*pki.server, pki.client_ca, host="::1") as receiver:
        dial(receiver).sendall(frames(1, 1))
        eventually(lambda: len(receiver.raw), 1)


SENDER = """
import socket, ssl, sys, time
from clawtrail.transport import TLSFiles
port, folder, n = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
message = b"<110>1 2026-01-01T00:00:00.000000Z host agent-1 7 tool.call - " + b"x" * 730
block = (b"%d %b" % (len(message), message)) * 20
sock = TLSFiles.bundle(folder).context().wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")
began = time.monotonic()
for _ in range(n // 20):
    sock.sendall(block)
sock.unwrap()
print(n / (time.monotonic() - began))
"""


def test_it_keeps_up_with_a_sender_of_20_000_events_a_second(receiver, pki):
    # a receiver that is slower than what it measures would measure itself
    n = 40_000
    rates = []

    def fast_enough():
        command = [sys.executable, "-c", SENDER, str(receiver.port), str(pki.client), str(n)]
        rates.append(float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout))
        return rates[-1] > 20_000

    eventually(fast_enough, within=60, state=lambda: rates)  # the machine may be busy with something else once
    assert len(receiver.raw) == n * len(rates)


# -- a receiver that is not ----------------------------------------------------------------------------------------


def test_one_that_hangs_reads_nothing_until_it_is_well_again(receiver, dial):
    sock = dial(receiver)
    sock.sendall(frames(1, 1))
    eventually(lambda: len(receiver.raw), 1)
    receiver.hang = True
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):  # what fits into both kernels, and no byte more
        for n in range(100_000):
            sock.sendall(frames(2, 100))
    assert receiver.bytes_read == len(frames(1, 1)) and dial(receiver).version()
    receiver.hang = False
    eventually(lambda: len(receiver.raw) > 1)


def test_one_that_hangs_before_the_handshake_answers_nothing(receiver, dial):
    receiver.hang_handshake = True
    with pytest.raises(TimeoutError):
        dial(receiver, timeout=0.3)
    assert receiver.connections == 0
    receiver.hang_handshake = False
    dial(receiver)


@pytest.mark.parametrize("after", [0, 1, 1000])
def test_one_that_resets_has_read_exactly_so_many_bytes(after, receiver, dial):
    receiver.reset_after = after
    sock = dial(receiver)
    with pytest.raises(OSError):
        for n in range(1000):
            sock.sendall(frames(1, 30))
            time.sleep(0.001)
    assert receiver.bytes_read == after and len(receiver.raw) == frames(1, 30)[:after].count(b"}")
    receiver.reset_after = None
    dial(receiver).sendall(frames(1, 1))
    eventually(lambda: receiver.bytes_read, after + len(frames(1, 1)))


def test_one_that_reads_in_slices_stretches_a_stream_and_loses_none_of_it(receiver, dial):
    receiver.slice = (100, 0.001)
    began = time.monotonic()
    sock = dial(receiver)
    sock.sendall(frames(1, 300))
    sock.unwrap()
    assert time.monotonic() - began > len(frames(1, 300)) / 100 * 0.001
    assert sequence(receiver) == list(range(1, 301))


def test_one_that_refuses_connections_is_not_there_for_new_ones_and_keeps_the_old(receiver, dial):
    sock = dial(receiver)
    receiver.refuse = "connect"
    with pytest.raises(ConnectionRefusedError):
        dial(receiver)
    sock.sendall(frames(1, 1))
    eventually(lambda: len(receiver.raw), 1)
    receiver.refuse = None
    dial(receiver).sendall(frames(2, 2))
    eventually(lambda: sequence(receiver), [1, 2])


def test_one_that_refuses_after_accept_ends_before_the_handshake(receiver, dial):
    receiver.refuse = "accept"
    with pytest.raises((ssl.SSLEOFError, ConnectionError)):
        dial(receiver)
    assert receiver.connections == 0


def test_one_that_refuses_a_certificate_says_so_in_an_alert(receiver, dial):
    receiver.refuse = "certificate"
    sock = dial(receiver)
    with pytest.raises(ssl.SSLError, match="ALERT_UNKNOWN_CA"):
        sock.recv(1)
    assert receiver.connections == 0 and "CERTIFICATE_VERIFY_FAILED" in receiver.handshakes_failed[0]
    receiver.refuse = None
    dial(receiver).sendall(frames(1, 1))
    eventually(lambda: len(receiver.raw), 1)


@pytest.mark.parametrize("notify", [True, False], ids=["with close_notify", "without"])
def test_one_that_hangs_up_ends_every_connection_and_takes_new_ones(notify, receiver, dial):
    receiver.close_notify = notify
    socks = [dial(receiver) for _ in range(3)]
    eventually(lambda: receiver.connections, 3)
    receiver.hang_up()
    for sock in socks:
        if notify:
            assert sock.recv(1) == b""
        else:
            with pytest.raises(ssl.SSLEOFError):
                sock.recv(1)
    dial(receiver).sendall(frames(1, 1))
    eventually(lambda: len(receiver.raw), 1)


def test_one_that_leaves_a_close_notify_unanswered_just_ends(receiver, dial):
    receiver.close_notify = False
    sock = dial(receiver)
    sock.sendall(frames(1, 1))
    with pytest.raises((ssl.SSLError, OSError)):
        sock.unwrap()
    eventually(lambda: receiver.clean_ends, 1)


def test_one_that_dies_resets_everything_reads_no_more_and_comes_back_on_its_port(receiver, dial):
    sock, port = dial(receiver), receiver.port
    sock.sendall(frames(1, 1))
    eventually(lambda: len(receiver.raw), 1)
    receiver.hang = True
    sock.sendall(frames(2, 2))
    receiver.kill()
    with socket.socket(fileno=sock.detach()) as raw, pytest.raises(ConnectionResetError):
        while raw.recv(65536):  # the session tickets, and then no end but a reset
            pass
    with pytest.raises(ConnectionRefusedError):
        dial(receiver)
    receiver.hang = False
    receiver.start()
    dial(receiver).sendall(frames(3, 3))
    eventually(lambda: sequence(receiver), [1, 3])
    assert receiver.port == port and receiver.connections == 2
