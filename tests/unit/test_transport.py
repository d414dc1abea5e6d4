"""The connection: whom it refuses, how it says so, and that nothing of an event ever leaves in clear."""

import re
import ssl
import time

import pytest

from clawtrail import Recorder, shipper
from clawtrail.errors import ConfigurationError
from clawtrail.transport import Deadlines, TLSFiles
from receiver import Tap
from support import eventually, letters

MARK = "event-" + letters(24, seed=9)


@pytest.fixture
def tap():
    made = []

    def make(address):
        made.append(Tap(address))
        return made[-1]

    yield make
    for one in made:
        one.close()


def in_clear(data: bytes) -> bool:
    return any(word in data for word in (MARK.encode(), b"tool.call", b"audit@32473", b'"kind"'))


def send(make_recorder, address, tls=None, **options):
    recorder = make_recorder(address, tls, deadlines=Deadlines(connect=2, handshake=1), **options)
    for _ in range(5):
        recorder.record("tool.call", "attempt", params={"mark": MARK})
    return recorder


def refused(recorder, words):
    eventually(lambda: re.search(words, recorder.stats()["last_error"]), state=recorder.stats)
    stats = recorder.stats()
    assert not stats["connected"] and stats["proven"] == 0 and stats["queued"] == stats["accepted"] == 6
    assert "127.0.0.1" in stats["last_error"]


@pytest.mark.parametrize("tls", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize(
    ("client", "words"),
    [
        ("none", "refused us: it requires a client certificate"),
        ("stranger", "refused us: it does not trust the CA of our client certificate"),
        ("expired_client", "refused us: our client certificate has expired"),
    ],
)
def test_a_client_that_the_receiver_does_not_admit_is_told_why_and_keeps_its_events(client, words, tls, pki, make_receiver, make_recorder, tap):
    receiver = make_receiver(tls=tls)
    between = tap(receiver.address)
    recorder = send(make_recorder, between.address, TLSFiles(pki.ca) if client == "none" else getattr(pki, client))
    refused(recorder, words)
    assert recorder.stats()["connects"] == 0  # it never counted as connected, not even for a moment
    assert receiver.raw == [] and between.sent and not in_clear(between.sent)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("foreign_server", "is not verified: .*expected a valid certificate for '127.0.0.1' signed by the configured CA; nothing was sent"),
        ("misnamed_server", "is not verified: IP address mismatch.*nothing was sent"),
        ("expired_server", "is not verified: certificate has expired.*nothing was sent"),
    ],
)
def test_a_receiver_that_is_not_the_right_one_gets_no_event(server, words, pki, make_receiver, make_recorder, tap):
    receiver = make_receiver(getattr(pki, server))
    between = tap(receiver.address)
    recorder = send(make_recorder, between.address)
    refused(recorder, words)
    assert receiver.raw == [] and between.sent and not in_clear(between.sent)


def test_a_receiver_that_shows_its_client_ca_as_its_own_gets_no_event(pki, make_receiver, make_recorder):
    receiver = make_receiver((pki.client / "client.crt", pki.client / "client.key"))  # a client's certificate is no receiver's
    refused(send(make_recorder, receiver.address), "is not verified")
    assert receiver.raw == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "did not finish the TLS handshake in time"),
        (b"220 mail.example ESMTP\r\n", "does not speak TLS .*nothing was sent"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS .*nothing was sent"),
        (b"\0" * 64, "TLS"),
    ],
    ids=["silent", "mail", "http", "zeros"],
)
def test_a_listener_that_speaks_no_tls_gets_a_client_hello_and_nothing_of_an_event(answer, words, make_recorder, plain_listener):
    listener = plain_listener(answer)
    recorder = send(make_recorder, listener.address)
    refused(recorder, words)
    recorder.close(0.5)
    assert listener.connections and listener.received[:1] == b"\x16" and not in_clear(listener.received)


def test_what_goes_over_a_good_connection_is_not_readable_on_the_way(receiver, make_recorder, tap):
    between = tap(receiver.address)
    recorder = send(make_recorder, between.address)
    eventually(lambda: len(receiver.raw), 6, state=recorder.stats)
    assert recorder.close() and len(between.sent) > 1000 and not in_clear(between.sent)


@pytest.mark.parametrize("fault, longest", [("refuses", 6.4), ("breaks", 2.0)])
def test_a_receiver_that_keeps_failing_is_asked_less_and_less_often(fault, longest, pki, receiver, monkeypatch):
    """Also one that breaks after a handshake that went well: that is no reason to begin anew with short waits."""
    waits, pause = [], shipper.Shipper._pause
    monkeypatch.setattr(shipper, "BACKOFF", (0.4, 15.0))
    monkeypatch.setattr(shipper.Shipper, "_pause", lambda self, most: (waits.append(most), pause(self, 0.01)))
    receiver.reset_after = 1
    with Recorder(receiver.address, TLSFiles(pki.ca) if fault == "refuses" else pki.client, agent="agent-1") as recorder:
        recorder.record("log.record")
        eventually(lambda: len(waits) >= 5, state=recorder.stats)
        recorder.close(0.1)
    assert waits[:3] == [0.4, 0.8, 1.6] and 2.0 <= waits[3] <= waits[4] <= longest


def test_events_that_were_refused_arrive_when_the_receiver_has_its_certificate(pki, make_receiver, make_recorder):
    receiver = make_receiver(pki.expired_server)
    recorder = send(make_recorder, receiver.address)
    refused(recorder, "expired")
    receiver.kill()
    receiver.context.load_cert_chain(*pki.server)
    receiver.start()
    eventually(lambda: len(receiver.events()) >= 6, state=recorder.stats)


def test_the_name_in_the_certificate_may_differ_from_the_address(pki, make_receiver, make_recorder):
    receiver = make_receiver(pki.misnamed_server)
    recorder = send(make_recorder, receiver.address, server_hostname="other.example")
    eventually(lambda: len(receiver.raw), 6, state=recorder.stats)


def test_a_name_that_does_not_resolve_is_said_and_blocks_nobody(make_recorder):
    began = time.monotonic()
    recorder = make_recorder(("no-such-host.invalid", 6514))
    recorder.record("tool.call")
    assert time.monotonic() - began < 1.0
    eventually(lambda: "no-such-host.invalid:6514: the name does not resolve" in recorder.stats()["last_error"], within=30, state=recorder.stats)


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (lambda p: TLSFiles(p.base / "absent.crt"), "CA certificate .*absent.crt: No such file or directory; expected a readable PEM file"),
        (lambda p: TLSFiles(p.base), "CA certificate .*: Is a directory; expected"),
        (lambda p: TLSFiles(p.client / "client.key"), "CA certificate .*client.key: .*expected a PEM certificate"),
        (lambda p: TLSFiles(p.ca, p.client / "absent", p.client / "client.key"), "client certificate .*absent: No such file"),
        (lambda p: TLSFiles(p.ca, p.client / "client.crt", p.client / "absent"), "client key .*absent: No such file"),
        (lambda p: TLSFiles(p.ca, p.client / "client.crt"), "a client certificate needs its key"),
        (lambda p: TLSFiles(p.ca, p.client / "client.crt", p.stranger / "client.key"), "client certificate .*MISMATCH|mismatch"),
    ],
    ids=["no CA", "a folder", "a key as CA", "no certificate", "no key", "key not given", "foreign key"],
)
def test_files_that_cannot_work_are_refused_at_once_and_named(files, words, pki):
    with pytest.raises(ConfigurationError, match=words):
        Recorder(("127.0.0.1", 1), files(pki), agent="a")


def test_a_client_certificate_beside_the_ca_is_found(pki):
    assert TLSFiles.beside(pki.client / "ca.crt") == TLSFiles.bundle(pki.client)
    assert TLSFiles.beside(pki.ca) == TLSFiles(pki.ca)


def test_the_password_of_a_key_is_not_shown():
    assert "hidden" not in repr(TLSFiles("a", "b", "c", "hidden"))


def test_a_context_verifies_strictly_and_takes_no_old_protocol(pki):
    context = TLSFiles.bundle(pki.client).context()
    assert context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED
    assert context.verify_flags & ssl.VERIFY_X509_STRICT and context.minimum_version >= ssl.TLSVersion.TLSv1_2
