"""The connection: whom it refuses, how it says so, how long it waits, and that nothing of an event ever leaves in clear."""

import ctypes
import fcntl
import ipaddress
import logging
import os
import re
import resource
import select
import socket
import ssl
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from clawtrail import Recorder, dial, shipper
from clawtrail.errors import ConfigurationError, TransportError
from clawtrail.pki import Authority, _builder, _name, _usage, pem
from clawtrail.transport import TLS, Connection, Deadlines, TLSFiles
from conftest import client_folder, server_files
from receiver import Tap
from support import eventually, letters

MARK = "event-" + letters(24, seed=9)
SHORT = Deadlines(connect=2, handshake=1, close=1, resolve=1)


@pytest.fixture
def tap():
    made = []

    def make(address):
        made.append(Tap(address))
        return made[-1]

    yield make
    for one in made:
        one.close()


class Server:
    """A TLS server of one address family, with a context of the test's choice; it keeps the names that clients showed."""

    def __init__(self, context, host="127.0.0.1", talk=None):
        self.context, self.talk, self.subjects, self.peers = context, talk, [], []
        self._listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        self.address = (host, self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while True:
            try:
                raw = self._listener.accept()[0]
            except OSError:
                return
            raw.settimeout(2)
            try:
                peer = self.context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False)
            except OSError:
                raw.close()
                continue
            subject = dict(pair[0] for pair in (peer.getpeercert() or {}).get("subject", ()))
            self.subjects.append(subject.get("commonName"))
            self.peers.append(peer)
            if self.talk:
                threading.Thread(target=self._talk, args=(peer,), daemon=True).start()

    def _talk(self, peer):
        try:
            self.talk(peer)
        except OSError:
            pass

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for peer in self.peers:
            socket.socket.close(peer)


@pytest.fixture
def serve(pki):
    made = []

    def make(files=None, host="127.0.0.1", talk=None, client_ca=None, ciphers=None, **settings):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*(files or pki.server))
        context.load_verify_locations(client_ca or pki.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
        for name, value in settings.items():
            setattr(context, name, value)
        if ciphers:
            context.set_ciphers(ciphers)
        made.append(Server(context, host, talk))
        return made[-1]

    yield make
    for server in made:
        server.close()


@contextmanager
def connected(address, tls, deadlines=SHORT):
    connection = Connection(*address[:2], tls.context, tls.server_hostname or address[0], deadlines)
    try:
        yield connection
    finally:
        connection.abort()


def refusal(address, tls, deadlines=SHORT):
    """What is said of a connection that does not come up."""
    with pytest.raises(TransportError) as caught, connected(address, tls, deadlines):
        pass
    assert dial.peer(*address[:2]) in str(caught.value)
    return str(caught.value)


def in_clear(data: bytes) -> bool:
    return any(word in data for word in (MARK.encode(), b"tool.call", b"audit@32473", b'"kind"'))


def send(make_recorder, address, tls=None, **options):
    recorder = make_recorder(address, tls, deadlines=SHORT, **options)
    for _ in range(5):
        recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"mark": MARK})
    return recorder


# -- who is refused, and how it is said ---------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
@pytest.mark.parametrize(
    ("client", "words"),
    [
        ("none", "refused us: it requires a client certificate"),
        ("stranger", "refused us: it does not trust the CA of our client certificate"),
        ("expired_client", "refused us: our client certificate has expired"),
    ],
)
@pytest.mark.parametrize("tickets", [0, 2])
def test_a_client_that_the_receiver_does_not_admit_is_told_why_and_never_counts_as_connected(client, words, version, tickets, pki, serve):
    server = serve(maximum_version=version, num_tickets=tickets)
    assert words in refusal(server.address, TLS(TLSFiles(pki.ca) if client == "none" else getattr(pki, client), minimum_version=version))


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ("foreign_server", ("is not verified", "expected a valid certificate for '127.0.0.1' signed by the configured CA; nothing was sent")),
        ("misnamed_server", ("is not verified: IP address mismatch", "for '127.0.0.1'", "nothing was sent")),
        ("expired_server", ("is not verified: certificate has expired", "nothing was sent")),
    ],
)
def test_a_receiver_that_is_not_the_right_one_gets_no_event_and_the_events_are_kept(server, words, pki, make_receiver, make_recorder, tap):
    receiver = make_receiver(getattr(pki, server))
    between = tap(receiver.address)
    recorder = send(make_recorder, between.address)
    said = eventually(lambda: recorder.stats()["last_error"], state=recorder.stats)
    assert all(word in said for word in words) and "127.0.0.1" in said
    stats = recorder.stats()
    assert not stats["connected"] and stats["connects"] == stats["proven"] == 0 and stats["accepted"] == 6
    assert receiver.raw == [] and between.sent and not in_clear(between.sent)


def test_a_receiver_that_shows_a_clients_certificate_is_refused(pki, serve):
    server = serve((pki.client / "client.crt", pki.client / "client.key"))
    assert "is not verified" in refusal(server.address, TLS(pki.client))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "did not finish the TLS handshake in time (1 s)"),
        (b"220 mail.example ESMTP\r\n", "nothing was sent"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "nothing was sent"),
        (b"\0" * 64, "TLS"),
    ],
    ids=["silent", "mail", "http", "zeros"],
)
def test_a_listener_that_speaks_no_tls_gets_a_client_hello_and_nothing_of_an_event(answer, words, make_recorder, plain_listener):
    listener = plain_listener(answer)
    recorder = send(make_recorder, listener.address)
    eventually(lambda: words in recorder.stats()["last_error"], state=recorder.stats)
    recorder.close(0.5)
    assert listener.connections and listener.received[:1] == b"\x16" and not in_clear(listener.received)


def authority(path_length=0, usage=True, constraints=True):
    """A CA as people make them, without this or that extension."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _builder(_name("home CA"), _name("home CA"), key.public_key(), 1)
    if constraints:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    if usage:
        builder = builder.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Authority(builder.sign(key, hashes.SHA256()), key)


@pytest.mark.parametrize(("left_out", "words"), [("usage", "keyUsage=critical,keyCertSign"), ("constraints", "basicConstraints=critical,CA:TRUE")])
def test_a_ca_that_lacks_an_extension_is_refused_and_the_extension_is_named(left_out, words, pki, serve, tmp_path):
    ca = authority(**{left_out: False})
    (tmp_path / "ca.crt").write_bytes(pem(ca.certificate))
    server = serve(server_files(tmp_path / "server", ca, ["127.0.0.1"]))
    assert words in refusal(server.address, TLS(TLSFiles(tmp_path / "ca.crt", pki.client / "client.crt", pki.client / "client.key")))


@pytest.mark.parametrize("weak", ["no name check", "no chain check"])
def test_a_context_that_would_not_verify_is_not_used(weak, pki, serve):
    context = TLSFiles.bundle(pki.client).context()
    context.check_hostname = False
    if weak == "no chain check":
        context.verify_mode = ssl.CERT_NONE
    server = serve()
    with pytest.raises(ConfigurationError, match="would not verify 127.0.0.1.*expected check_hostname and CERT_REQUIRED"):
        Connection(*server.address, context, "127.0.0.1", SHORT)
    assert server.subjects == []


# -- versions and ciphers ------------------------------------------------------------------------------------------


def test_tls_1_2_is_refused_by_default_and_it_is_said_what_would_admit_it(pki, serve):
    server = serve(maximum_version=ssl.TLSVersion.TLSv1_2)
    said = refusal(server.address, TLS(pki.client))
    assert "shares no TLS version with us" in said and "expected TLSv1.3, or TLSv1.2 where minimum_version admits it" in said


@pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"])
def test_tls_1_2_is_spoken_by_setting_with_aead_and_forward_secrecy(cipher, pki, serve):
    server = serve(maximum_version=ssl.TLSVersion.TLSv1_2, ciphers=cipher)
    with connected(server.address, TLS(pki.client, minimum_version="TLSv1.2")) as connection:
        assert connection._sock.cipher()[:2] == (cipher, "TLSv1.2")


def test_tls_1_2_with_a_cipher_that_is_not_aead_is_refused(pki, serve):
    server = serve(maximum_version=ssl.TLSVersion.TLSv1_2, ciphers="ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
    assert "shares no cipher with us (of TLS 1.2 only ECDHE with AES-GCM or ChaCha20)" in refusal(
        server.address, TLS(pki.client, minimum_version="TLSv1.2")
    )


def test_every_cipher_that_is_offered_is_aead_with_forward_secrecy(pki):
    for cipher in TLS(pki.client, minimum_version="TLSv1.2").context.get_ciphers():
        assert cipher["aead"] and ("ECDHE" in cipher["name"] or cipher["protocol"] == "TLSv1.3")


@pytest.mark.parametrize("least", ["TLSv1.2", "TLSv1_2", "1.2", 1.2, " tls 1.2", "TLS1.2", ssl.TLSVersion.TLSv1_2])
def test_a_setting_of_tls_1_2_lowers_nothing_where_1_3_is_spoken(least, pki, serve):
    with connected(serve().address, TLS(pki.client, minimum_version=least)) as connection:
        assert connection._sock.version() == "TLSv1.3"
    assert TLS(pki.client, minimum_version=least).context.minimum_version == ssl.TLSVersion.TLSv1_2


@pytest.mark.parametrize("least", ["TLSv1.3", "1.3", "tlsv1_3", 1.3, ssl.TLSVersion.TLSv1_3])
def test_the_spellings_of_tls_1_3(least, pki):
    assert TLS(pki.client, minimum_version=least).context.minimum_version == ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("given", "nearest"),
    [("TLSv1.1", "TLSv1.2"), ("TLSv1", "TLSv1.2"), ("SSLv3", "TLSv1.2"), (1.0, "TLSv1.2"), (ssl.TLSVersion.TLSv1_1, "TLSv1.2"),
     ("TLSv1.4", "TLSv1.3"), ("TLSv13", "TLSv1.3"), (True, "TLSv1.3"), (None, "TLSv1.3"), ("", "TLSv1.3"), (ssl.TLSVersion.MINIMUM_SUPPORTED, "TLSv1.3")],
)  # fmt: skip
def test_another_version_is_refused_at_once_and_the_nearest_right_one_is_named(given, nearest, pki):
    with pytest.raises(ConfigurationError, match=f"expected TLSv1.3 or TLSv1.2, the nearest is '{nearest}'"):
        TLS(pki.client, minimum_version=given)


# -- every wait is bounded -----------------------------------------------------------------------------------------


def test_a_peer_that_sends_byte_by_byte_does_not_stretch_the_handshake(pki):
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def drip():
        peer = listener.accept()[0]
        try:
            for byte in b"\x16\x03\x03\x40\x00" + b"\0" * 1000:  # a record that would be 16 KiB long
                if ended.wait(0.02):
                    return
                peer.send(bytes([byte]))
        except OSError:
            pass
        finally:
            peer.close()

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    began = time.monotonic()
    said = refusal(listener.getsockname(), TLS(pki.client), Deadlines(handshake=0.5))
    took = time.monotonic() - began
    ended.set()
    thread.join(5)
    listener.close()
    assert "did not finish the TLS handshake in time (0.5 s)" in said and 0.4 < took < 2


def test_a_resolver_that_hangs_blocks_for_its_deadline_is_asked_once_and_its_late_answer_is_used(pki, serve, monkeypatch):
    server, ask, go = serve(), socket.getaddrinfo, threading.Event()
    asked = []

    def hang(host, *args, **options):
        asked.append(host)
        assert go.wait(30)
        return ask("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    address, tls, deadlines = ("slow.example", server.address[1]), TLS(pki.client, "127.0.0.1"), Deadlines(resolve=0.2)
    for _ in range(3):
        began = time.monotonic()
        assert "the resolver did not answer within 0.2 s" in refusal(address, tls, deadlines)
        assert time.monotonic() - began < 1.5
    assert asked == ["slow.example"]
    go.set()
    eventually(lambda: not any(t.name == "clawtrail-resolver" for t in threading.enumerate()))
    monkeypatch.setattr(socket, "getaddrinfo", None)  # nobody asks anew
    with connected(address, tls, deadlines):
        pass
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with connected(address, tls, deadlines):
        pass
    assert asked == ["slow.example"] * 2


def test_a_forked_child_asks_the_resolver_itself(pki, serve):
    """The parent's lookup hangs at the fork; its thread does not exist in the child."""
    code = """
import os, socket, sys, threading, time
from clawtrail import dial
real, go = socket.getaddrinfo, threading.Event()
socket.getaddrinfo = lambda *a, **o: go.wait(30) and []
try:
    dial.connect("localhost", int(sys.argv[1]), 0.1, 1)
except Exception as e:
    assert "the resolver did not answer" in str(e), e
if os.fork() == 0:
    socket.getaddrinfo = real
    dial.connect("localhost", int(sys.argv[1]), 5, 1).close()
    os._exit(7)
status = os.waitstatus_to_exitcode(os.wait()[1])
go.set()
sys.exit(status)
"""
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(serve().address[1])], timeout=30, capture_output=True)
    assert ran.returncode == 7, ran.stderr


def test_a_name_that_does_not_resolve_is_said_and_blocks_nobody(make_recorder):
    began = time.monotonic()
    recorder = make_recorder(("no-such-host.invalid", 6514))
    recorder.record("tool.call", tool={"name": "exec"})
    assert time.monotonic() - began < 1.0
    said = ("no-such-host.invalid:6514: the name does not resolve", "no-such-host.invalid:6514: the resolver did not answer")
    eventually(lambda: recorder.stats()["last_error"].removeprefix("receiver ").startswith(said), within=30, state=recorder.stats)


@contextmanager
def deaf(host, family):
    """A port that answers no further connection: its queue is full."""
    listener = socket.socket(family)
    listener.bind((host, 0))
    listener.listen(0)
    waiting = []
    for _ in range(3):
        one = socket.socket(family)
        one.setblocking(False)
        one.connect_ex(listener.getsockname())
        waiting.append(one)
    try:
        yield listener.getsockname()
    finally:
        for one in (*waiting, listener):
            one.close()


def found(family, address):
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address


def test_the_families_take_turns_in_the_resolvers_order():
    six, four = socket.AF_INET6, socket.AF_INET
    entries = [found(six, ("a",)), found(six, ("b",)), found(six, ("b",)), found(six, ("c",)), found(four, ("1",)), found(four, ("2",))]
    assert [e[4][0] for e in dial._interleaved(entries)] == ["a", "1", "b", "2", "c"]
    assert [e[4][0] for e in dial._interleaved(entries[::-1])] == ["2", "c", "1", "b", "a"]


def test_an_address_that_answers_nothing_keeps_nobody_from_the_next_family(pki, serve, monkeypatch):
    server = serve()
    with deaf("::1", socket.AF_INET6) as silent:
        answer = [found(socket.AF_INET6, silent), found(socket.AF_INET6, silent[:1] + (1, 0, 0)), found(socket.AF_INET, server.address)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: answer)
        began = time.monotonic()
        with connected(("two.example", 6514), TLS(pki.client, "127.0.0.1"), Deadlines(connect=1.5)) as connection:
            assert connection._sock.getpeername() == server.address
        assert time.monotonic() - began < 1.2  # a third of `connect` for the first, not all of it


def test_all_addresses_together_take_no_longer_than_connect_and_each_is_told(pki, monkeypatch):
    with deaf("::1", socket.AF_INET6) as six, deaf("127.0.0.1", socket.AF_INET) as four, deaf("127.0.0.2", socket.AF_INET) as other:
        answer = [found(socket.AF_INET6, six), found(socket.AF_INET, four), found(socket.AF_INET, other)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: answer)
        began = time.monotonic()
        said = refusal(("two.example", 6514), TLS(pki.client), Deadlines(connect=0.9))
        assert 0.8 < time.monotonic() - began < 2
    assert re.search(r"6514: 127.0.0.1: no answer within 0.\d+ s; 127.0.0.2: no answer within 0.\d+ s; ::1: no answer within 0.\d+ s$", said)


def test_a_name_with_no_address_is_said(pki, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **o: [])
    assert "the name has no address" in refusal(("empty.example", 6514), TLS(pki.client))


def vanish(sock):
    """From now on the kernel throws away every packet for this socket: the host is gone, nobody says so."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF: return 0
    sock.setsockopt(socket.SOL_SOCKET, 26, struct.pack("HP", 1, ctypes.addressof(program)))  # SO_ATTACH_FILTER


@pytest.mark.skipif(sys.platform != "linux", reason="TCP_USER_TIMEOUT and socket filters are Linux's")
def test_a_peer_that_vanishes_under_load_is_noticed_within_five_seconds(pki, serve):
    server = serve()
    with connected(server.address, TLS(pki.client)) as connection:
        eventually(lambda: server.peers)
        vanish(server.peers[0])
        began = time.monotonic()
        with pytest.raises(TransportError, match="acknowledged nothing, or had no room, for 4 s"):
            while time.monotonic() - began < 8:
                if select.select([connection], [], [], 0.02)[0]:
                    connection.pump()
                connection.send(memoryview(b"x" * 1000))
        assert 3.5 < time.monotonic() - began < 5.0


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="not on this platform")
def test_the_kernel_is_given_little_more_than_it_can_send(pki, serve):
    server = serve()
    with connected(server.address, TLS(pki.client)) as connection:
        sock = connection._sock
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 128 * 1024
        written = 0
        while select.select([], [sock], [], 0.3)[1]:
            written += connection.send(memoryview(b"x" * 16384))
        assert written < 8 << 20  # the peer reads nothing: its buffer, ours, no more


def test_a_platform_without_an_option_connects_all_the_same(pki, serve, monkeypatch):
    monkeypatch.setattr(dial, "_OPTIONS", ((socket.IPPROTO_TCP, "TCP_NO_SUCH_OPTION", 1), (socket.IPPROTO_TCP, "TCP_MAXSEG", 1 << 30)))
    with connected(serve().address, TLS(pki.client)) as connection:
        assert connection.send(memoryview(b"x")) == 1


def test_the_wait_for_a_refusal_is_short_where_tickets_come_and_bounded_where_none_do(pki, serve):
    took = {}
    for tickets in (2, 0):
        server = serve(num_tickets=tickets)
        times = []
        for _ in range(5):
            began = time.monotonic()
            with connected(server.address, TLS(pki.client)):
                times.append(time.monotonic() - began)
        took[tickets] = min(times)
    assert took[2] < took[0] < 0.5 and took[0] > 0.05


def test_a_peer_that_never_stops_talking_keeps_nobody_from_writing(pki, serve):
    """What it says is read in portions."""
    up = threading.Event()

    def talk(peer):
        assert up.wait(5)
        for _ in range(500):
            peer.send(b"noise")  # one TLS record of 27 bytes

    def waiting(connection):
        return struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4)))[0]

    with connected(serve(talk=talk).address, TLS(pki.client)) as connection:
        up.set()
        eventually(lambda: waiting(connection) >= 500 * 27)
        connection.pump()
        assert waiting(connection) and connection.send(memoryview(b"x" * 100)) == 100
        for _ in range(20):
            connection.pump()
        assert not waiting(connection)


def test_a_close_waits_for_the_peers_close_notify_and_not_for_ever(pki, serve):
    def read(peer):
        peer.settimeout(5)
        while peer.recv(4096):
            pass
        peer.unwrap()

    for talk, clean in ((read, True), (None, False)):
        with connected(serve(talk=talk).address, TLS(pki.client), Deadlines(close=0.5)) as connection:
            connection.send(memoryview(b"x" * 1000))
            began = time.monotonic()
            assert connection.close() is clean
            assert time.monotonic() - began < 1.5


def test_a_process_with_thousands_of_descriptors_connects(pki, serve):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    server, null = serve(), os.open(os.devnull, os.O_RDONLY)
    many = [null, *(os.dup(null) for _ in range(1100))]
    try:
        with connected(server.address, TLS(pki.client)) as connection:
            assert connection.fileno() > 1024 and connection.close() is False
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# -- names and addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_a_host_of_ipv4_in_every_spelling(host, pki, serve):
    server = serve()
    with connected((host, server.address[1]), TLS(pki.client)):
        assert eventually(lambda: server.subjects) == ["agent-1"]


@pytest.mark.parametrize("host", ["::1", "[::1]", "0:0:0:0:0:0:0:1"])
def test_a_host_of_ipv6_in_every_spelling(host, pki, serve):
    server = serve(host="::1")
    with connected((host, server.address[1]), TLS(pki.client)):
        assert eventually(lambda: server.subjects) == ["agent-1"]


def link_local():
    """An address of this machine that needs its scope, and the scope."""
    try:
        with open("/proc/net/if_inet6") as f:
            rows = [line.split() for line in f]
    except OSError:
        rows = []
    found_ = [(str(ipaddress.IPv6Address(int(row[0], 16))), row[5]) for row in rows if row[3] == "20" and not int(row[4], 16) & 0x40]
    return found_[-1] if found_ else pytest.skip("no link-local address")


@pytest.mark.parametrize("form", ["{}%{}", "[{}%{}]"])
def test_a_scope_is_dialled_and_is_no_part_of_the_name(form, serve, pki, tmp_path):
    address, scope = link_local()
    ca = authority()
    (tmp_path / "ca.crt").write_bytes(pem(ca.certificate))
    server = serve(server_files(tmp_path / "server", ca, [address]), host="::")
    with connected((form.format(address, scope), server.address[1]), TLS(TLSFiles(tmp_path / "ca.crt", pki.client / "client.crt", pki.client / "client.key"))):
        assert eventually(lambda: server.subjects) == ["agent-1"]


def test_a_scope_that_does_not_exist_is_said(pki):
    assert "[fe80::1%nowhere0]:6514: no address of this host's networks" in refusal(("fe80::1%nowhere0", 6514), TLS(pki.client))


def test_an_internationalised_name_is_dialled_and_verified_in_ascii(pki, serve, tmp_path, monkeypatch):
    ca = authority()
    (tmp_path / "ca.crt").write_bytes(pem(ca.certificate))
    server, asked = serve(server_files(tmp_path / "server", ca, ["xn--bcher-kva.example"])), []
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *a, **o: asked.append(host) or [found(socket.AF_INET, server.address)])
    with connected(("bücher.example.", 6514), TLS(TLSFiles(tmp_path / "ca.crt", pki.client / "client.crt", pki.client / "client.key"))):
        assert asked == ["xn--bcher-kva.example."]


@pytest.mark.parametrize(
    "host",
    ["", ".", "a..b", "a" * 64 + ".example", "https://logs.example", "logs.example:6514", "logs.example/x", "[logs.example]", "[::1",
     "user@logs.example", "two words", "line\nbreak", "nul\0", "*.example", None, 7, ("a", 1), ".example", "x." * 130],
)  # fmt: skip
def test_a_host_that_is_none_is_refused_and_shown(host, pki):
    with pytest.raises(ConfigurationError, match="expected a host name or an address alone"):
        dial.names(host)
    if isinstance(host, str) and host:
        with pytest.raises(ConfigurationError, match="expected a host name or an address alone"):
            TLS(pki.client, host)


def test_a_name_that_two_standards_read_differently_is_not_guessed():
    with pytest.raises(ConfigurationError, match="expected it in ASCII, as xn--"):
        dial.names("straße.example")


# -- while shipping ----------------------------------------------------------------------------------------------


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
    eventually(lambda: "expired" in recorder.stats()["last_error"], state=recorder.stats)
    receiver.kill()
    receiver.context.load_cert_chain(*pki.server)
    receiver.start()
    eventually(lambda: len(receiver.events()) >= 6, state=recorder.stats)


def test_the_name_in_the_certificate_may_differ_from_the_address(pki, make_receiver, make_recorder):
    receiver = make_receiver(pki.misnamed_server)
    recorder = send(make_recorder, receiver.address, server_hostname="other.example")
    eventually(lambda: len(receiver.raw), 6, state=recorder.stats)


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
    assert context.verify_flags & ssl.VERIFY_X509_STRICT and context.minimum_version == ssl.TLSVersion.TLSv1_3


# -- certificates that change while the process runs ---------------------------------------------------------------


def put(path, data):
    """As rotations do it: written beside, moved over."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(data)
    beside.rename(path)


@pytest.fixture
def rotation(tmp_path, serve):
    """A running server, a client's folder, and what will replace its files: the same CAs, another common name."""
    server_ca, client_ca = authority(), authority()
    new = client_folder(tmp_path / "new", server_ca, client_ca, "after")
    ours = client_folder(tmp_path / "ours", server_ca, client_ca, "before")
    (tmp_path / "client-ca.crt").write_bytes(pem(client_ca.certificate))
    server = serve(server_files(tmp_path / "server", server_ca, ["127.0.0.1"]), client_ca=tmp_path / "client-ca.crt")

    def known_as(tls):
        before = len(server.subjects)
        with connected(server.address, tls):
            eventually(lambda: len(server.subjects) > before)
        return server.subjects[-1]

    return SimpleNamespace(tls=TLS(ours), ours=ours, new=new, known_as=known_as)


def test_a_certificate_that_is_replaced_is_used_from_the_next_connection(rotation):
    r = rotation
    assert not r.tls.changed() and r.known_as(r.tls) == "before"
    for name in ("client.crt", "client.key"):
        put(r.ours / name, (r.new / name).read_bytes())
    assert r.tls.changed() and r.known_as(r.tls) == "before"
    assert r.tls.reload() and not r.tls.changed() and r.known_as(r.tls) == "after"


def test_a_folder_that_is_half_replaced_breaks_nothing_and_is_said_once(rotation, caplog):
    r = rotation
    caplog.set_level(logging.WARNING)
    put(r.ours / "client.crt", (r.new / "client.crt").read_bytes())
    for _ in range(5):
        assert r.tls.changed() and not r.tls.reload() and r.known_as(r.tls) == "before"
    assert "client.crt with key" in r.tls.error and len(caplog.records) == 1
    put(r.ours / "client.key", (r.new / "client.key").read_bytes())
    assert r.tls.changed() and r.tls.reload() and r.tls.error == "" and r.known_as(r.tls) == "after"


@pytest.mark.parametrize("name", ["ca.crt", "client.crt", "client.key"])
@pytest.mark.parametrize(
    "damage",
    [lambda path: path.unlink(), lambda path: path.write_bytes(b""), lambda path: os.truncate(path, path.stat().st_size // 2),
     lambda path: os.truncate(path, path.stat().st_size - 20), lambda path: path.write_bytes(b"no PEM"), lambda path: (path.unlink(), path.mkdir())],
    ids=["absent", "empty", "half", "cut", "foreign", "folder"],
)  # fmt: skip
def test_a_file_that_is_damaged_leaves_the_loaded_certificates_in_use_until_it_is_whole(name, damage, rotation, caplog):
    r, whole = rotation, (rotation.ours / name).read_bytes()
    context = r.tls.context
    damage(r.ours / name)
    assert r.tls.changed() and not r.tls.reload() and name in r.tls.error
    assert r.tls.context is context and r.known_as(r.tls) == "before" and len(caplog.records) == 1
    if (r.ours / name).is_dir():
        (r.ours / name).rmdir()
    put(r.ours / name, whole)
    assert r.tls.changed() and r.tls.reload() and not r.tls.changed() and r.known_as(r.tls) == "before"


def test_a_reload_lowers_neither_the_version_nor_the_checks(rotation):
    assert rotation.tls.reload()
    context = rotation.tls.context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3 and context.check_hostname and context.verify_mode == ssl.CERT_REQUIRED


def test_a_ca_that_is_replaced_is_the_one_that_counts(rotation, pki):
    put(rotation.ours / "ca.crt", pki.foreign_ca.read_bytes())
    assert rotation.tls.changed() and rotation.tls.reload()
    with pytest.raises(TransportError, match="is not verified"):
        rotation.known_as(rotation.tls)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much is acknowledged")
def test_a_receiver_that_only_pauses_keeps_its_connection(receiver, make_recorder):
    recorder = make_recorder(receiver.address)
    recorder.record("tool.call", "attempt", tool={"name": "exec"})
    eventually(lambda: receiver.raw, state=recorder.stats)
    receiver.hang = True
    text = "lorem ipsum " * 150
    until = time.monotonic() + dial.DEAD_PEER + 3.0  # longer than a peer that is gone is given
    sent = 1
    while time.monotonic() < until:
        if recorder.stats()["unsent"] < 500:  # more than both kernels take
            recorder.record("tool.call", "attempt", tool={"name": "exec"}, params={"text": text})
            sent += 1
        else:
            time.sleep(0.01)
    assert recorder.stats()["connects"] == 1 and recorder.stats()["unsent"] > 100, recorder.stats()
    receiver.hang = False
    eventually(lambda: len(receiver.events("tool.call")), sent, state=recorder.stats)
    assert recorder.stats()["resent"] == 0 and receiver.connections == 1
