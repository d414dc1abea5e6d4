"""What a fork's tests stand on: the receiver does what it is told, as a plain TLS socket sees it; what is captured is what is stored."""

import json
import logging.config
import os
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

from clawtrail import Recorder, context, testing
from clawtrail.errors import ClawtrailError, ConfigurationError, EventError
from clawtrail.transport import TLSFiles
from support import eventually, secrets

MESSAGE = b'<110>1 2026-01-01T00:00:00.000000Z host agent-1 7 tool.call - {"epoch":"e","seq":%d,"kind":"tool.call"}'


def frames(first, last):
    return b"".join(b"%d %b" % (len(m), m) for m in (MESSAGE % n for n in range(first, last + 1)))


@pytest.fixture
def dial(pki):
    made = []

    def dial(receiver, folder=pki.client, timeout=5, on_message=None):
        context = TLSFiles.bundle(folder).context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
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


# -- what was recorded -----------------------------------------------------------------------------------------------


def test_a_recorder_that_ships_nothing_is_a_real_one_and_its_events_are_captured_in_order():
    with testing.capture() as events, testing.recorder(agent="tested") as audit, context(session="s1"):
        for n in range(50):
            audit.record("tool.call", "attempt", tool={"name": "exec"}, params={"n": n})
        assert audit.flush() and audit.stats()["proven"] == audit.stats()["accepted"] == 51
        assert audit.close()
    calls = testing.find(events, "tool.call")
    assert [e["params"]["n"] for e in calls] == list(range(50))
    assert {(e["agent"]["name"], e["session"]) for e in calls} == {("tested", "s1")}
    assert [e["seq"] for e in events] == sorted(e["seq"] for e in events)


def test_what_is_captured_is_the_line_that_would_be_stored():
    made = secrets()
    with testing.capture() as events:
        receipt = testing.recorder().record("tool.call", tool={"name": "exec"}, params=dict(made))
    assert testing.one(events, "tool.call") == json.loads(receipt.line)
    assert not any(secret in str(events) for secret in made.values())


def test_nothing_is_captured_after_the_block_or_of_events_that_were_refused():
    with testing.capture() as events:
        audit = testing.recorder()
        with pytest.raises(EventError):
            audit.record("no.such.kind")
        assert not testing.find(events, "no.such.kind")
        audit.record("tool.call", tool={"name": "exec"})
    audit.record("tool.result", tool={"name": "exec"})
    assert testing.find(events, "tool.call") and not testing.find(events, "tool.result")
    audit.close()


def test_a_block_within_a_block_captures_for_both_and_ends_for_itself():
    with testing.capture() as outer, testing.recorder() as audit:
        with testing.capture() as inner:
            audit.record("tool.call", tool={"name": "exec"})
        audit.record("tool.result", tool={"name": "exec"})
    assert len(testing.find(outer, "tool.call")) == len(testing.find(inner, "tool.call")) == 1
    assert testing.find(outer, "tool.result") and not testing.find(inner, "tool.result")


def test_a_logging_configuration_for_production_is_tested_without_its_certificates_and_its_receiver(monkeypatch):
    asked, before = [], threading.enumerate()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: asked.append(a) or [])
    handler = {"()": "clawtrail.TLSSysLogHandler", "address": ["logs.example", 6514], "cafile": "/etc/clawtrail/ca.crt", "agent": "a-7"}
    log = logging.getLogger("agent.tested")
    config = {"handlers": {"audit": handler}, "loggers": {log.name: {"handlers": ["audit"], "level": "INFO"}}}
    with testing.capture() as events:
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **config})
        log.info("it ran", extra={"kind": "tool.call", "tool": "exec"})
        log.removeHandler(handler := log.handlers[0])
        handler.close()
    assert testing.one(events, tool__name="exec")["agent"]["name"] == "a-7"
    assert not asked and [t for t in threading.enumerate() if t not in before] == []


def test_settings_that_are_wrong_are_refused_inside_the_block_too():
    with testing.capture(), pytest.raises(ConfigurationError, match="expected \\(host, port\\)"):
        Recorder(("logs.example", 0), "/etc/clawtrail", agent="a")


def test_a_recorder_that_was_made_before_the_block_is_captured_and_ships(receiver, recorder):
    with testing.capture() as events:
        receipt = recorder.record("tool.call", tool={"name": "exec"})
    assert testing.one(events, "tool.call")["id"] == receipt.id
    eventually(lambda: receiver.events("tool.call"))


def test_recorders_ship_as_ever_after_the_block(receiver, make_recorder):
    with testing.capture():
        testing.recorder().record("tool.call", tool={"name": "exec"})
    make_recorder(receiver.address).record("tool.result", tool={"name": "exec"})
    eventually(lambda: receiver.events("tool.result"))


def test_a_forked_child_ships_nothing_either():
    with testing.capture():
        audit = testing.recorder()
    if (child := os.fork()) == 0:
        code = 1
        try:
            audit.record("tool.call", tool={"name": "exec"})
            code = 0 if audit.close(0) and audit.stats()["proven"] else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    audit.close()


def test_nothing_is_written_to_the_disk(spool):
    with testing.capture(), testing.recorder(durability="disk") as audit:
        audit.record("tool.call", tool={"name": "exec"})
    assert not spool.exists()


EVENTS = [
    {"kind": "tool.call", "outcome": "attempt", "seq": 2, "tool": {"name": "exec"}, "params": {"command": "ls"}, "session": None},
    {"kind": "tool.call", "outcome": "denied", "seq": 3, "tool": {"name": "exec"}, "params": {"command": "rm -rf /"}, "session": "s1"},
    {"kind": "tool.result", "outcome": "success", "seq": 4, "tool": {"name": "read"}, "session": "s1"},
]


@pytest.mark.parametrize(
    ("kind", "fields", "found"),
    [
        (None, {}, [2, 3, 4]),
        ("tool.call", {}, [2, 3]),
        ("tool.call", {"tool__name": "exec", "outcome": "denied"}, [3]),
        (None, {"session": "s1"}, [3, 4]),
        (None, {"session": None}, [2]),
        (None, {"params__command": None}, []),  # absent is not null
        (None, {"tool__name__deeper": "exec"}, []),
        (None, {"tool": {"name": "read"}}, [4]),
        ("credential.read", {}, []),
    ],
)
def test_events_are_found_by_kind_and_by_values_at_any_depth(kind, fields, found):
    assert [e["seq"] for e in testing.find(EVENTS, kind, **fields)] == found


def test_one_event_is_returned_and_otherwise_all_that_was_recorded_is_shown():
    assert testing.one(EVENTS, "tool.call", outcome="denied")["seq"] == 3
    with pytest.raises(AssertionError) as none:
        testing.one(EVENTS, "tool.call", tool__name="write")
    assert str(none.value).startswith("0 events are tool.call tool.name='write'; expected 1 of the 3 recorded:\n")
    assert '3 tool.call denied {"tool": {"name": "exec"}, "params": {"command": "rm -rf /"}' in str(none.value)
    with pytest.raises(AssertionError, match="2 events are tool.call.*\n  > 2 .*\n  > 3 .*\n    4 "):
        testing.one(EVENTS, "tool.call")


# -- certificates ----------------------------------------------------------------------------------------------------


def test_certificates_and_a_receiver_are_all_that_a_real_delivery_needs(tmp_path):
    files = testing.certificates(tmp_path, "agent-9")
    with testing.Receiver(files.certificate, files.key, files.client_ca) as receiver:
        with Recorder(receiver.address, files.client, agent="agent-9") as audit:
            audit.record("tool.call", tool={"name": "exec"})
        assert [e["kind"] for e in receiver.events()][:2] == ["system.start", "tool.call"]
        assert receiver.subjects == ["agent-9"]


def test_the_host_without_cryptography_is_told_which_extra_makes_certificates(tmp_path):
    script = f"import sys; sys.modules['cryptography'] = None; from clawtrail import testing; testing.certificates({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert "ConfigurationError" in done.stderr and "pip install 'clawtrail[stack]'" in done.stderr
