"""Who is refused, how it is said, and that nothing leaves in clear."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest
from harness import Stack, eventually

from clawtrail import Recorder
from clawtrail.pki import Authority
from clawtrail.transport import TLSFiles


def refusal(recorder: Recorder) -> str:
    """What a recorder says that tried to ship one event and could not."""
    recorder.record("log.record", "unknown", content={"excerpt": "must-not-arrive"})
    said = eventually(lambda: recorder.stats()["last_error"], what="a refusal")
    assert recorder.stats()["proven"] == 0
    recorder.close(0.1)
    return str(said)


def test_without_a_client_certificate_the_receiver_refuses_and_it_is_said(running: Stack) -> None:
    folder = running.client("nobody")
    said = refusal(Recorder(running.receiver, TLSFiles(folder / "ca.crt"), agent="nobody"))
    assert "requires a client certificate" in said
    assert not running.query('{job=~"audit.*"} |= "must-not-arrive"')


def test_a_client_certificate_of_another_ca_is_refused_and_it_is_said(running: Stack) -> None:
    folder = running.client("stranger", authority=Authority.create("another CA"))
    assert "refused us" in refusal(Recorder(running.receiver, folder, agent="stranger"))


def test_an_expired_client_certificate_is_refused_and_it_is_said(running: Stack) -> None:
    folder = running.client("late", days=-1)
    assert "expired" in refusal(Recorder(running.receiver, folder, agent="late"))


def test_the_receivers_own_certificate_is_no_client_certificate(running: Stack) -> None:
    folder = running.client("server")
    ca = running.folder / "copy/ca"
    certificate, key = Authority.load(ca / "server-ca.crt", ca / "server-ca.key").server(["localhost"])
    (folder / "client.crt").write_bytes(certificate)
    (folder / "client.key").write_bytes(key)
    assert "refused us" in refusal(Recorder(running.receiver, folder, agent="server"))


def test_a_receiver_of_another_ca_gets_nothing_and_it_is_said(running: Stack) -> None:
    folder = running.client("eta", receiver_ca=Authority.create("another CA"))
    said = refusal(Recorder(running.receiver, folder, agent="eta"))
    assert "is not verified" in said and "nothing was sent" in said


def test_a_receiver_under_another_name_gets_nothing_and_it_is_said(running: Stack) -> None:
    folder = running.client("theta")
    said = refusal(Recorder(running.receiver, folder, agent="theta", server_hostname="other.example"))
    assert "other.example" in said and "nothing was sent" in said


def test_nothing_is_sent_in_clear_to_a_port_without_tls(running: Stack) -> None:
    heard = bytearray()
    listener = socket.create_server(("127.0.0.1", 0))

    def listen() -> None:
        peer, _ = listener.accept()
        peer.settimeout(3)
        try:
            while data := peer.recv(4096):
                heard.extend(data)
                peer.sendall(b"220 not tls\r\n")
        except OSError:
            pass

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    said = refusal(Recorder(("localhost", listener.getsockname()[1]), running.client("iota"), agent="iota"))
    thread.join(5)
    listener.close()
    assert "nothing was sent" in said
    assert heard[:1] == b"\x16" and b"must-not-arrive" not in heard and b"iota" not in heard


@pytest.mark.parametrize("port", ["receiver", "lines"])
def test_a_sender_in_clear_is_cut_off_and_stored_nowhere(running: Stack, port: str) -> None:
    with socket.create_connection(getattr(running, port), timeout=5) as sender:
        sender.sendall(b"<14>2026-01-01 00:00:00,000 - x - INFO - [a] - in-the-clear\n" * 3)
        sender.settimeout(5)
        try:
            assert sender.recv(4096)[:1] in (b"", b"\x15")  # closed, or a TLS alert
        except ConnectionError:
            pass
    assert not running.query('{job=~"audit.*"} |= "in-the-clear"')


def test_keys_are_readable_by_their_user_alone(running: Stack) -> None:
    certs: Path = running.folder / "certs"
    owners = {"ca/server-ca.key": 0, "ca/client-ca.key": 0, "server/server.key": 5140, "clients/openclaw/client.key": 6514}
    for name, uid in owners.items():
        found = (certs / name).stat()
        assert (found.st_uid, found.st_mode & 0o777) == (uid, 0o600), name
