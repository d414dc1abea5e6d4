"""A receiver for RFC 5425 frames that runs in this process, and misbehaves on request.

The parser in here was written from RFC 5424 and RFC 5425 alone. It shares nothing with `clawtrail.syslog`, so that
the two have to agree about what is on the wire.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import threading
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Message:
    """One SYSLOG-MSG, taken apart character by character. `raw` is the message without its frame length."""

    raw: bytes
    pri: int
    version: int
    timestamp: str
    hostname: str
    appname: str
    procid: str
    msgid: str
    sd: dict[str, dict[str, str]] = field(default_factory=dict)
    msg: bytes = b""

    @property
    def event(self) -> dict:
        return json.loads(self.msg)

    @property
    def params(self) -> dict[str, str]:
        return self.sd["audit@32473"]

    @property
    def seq(self) -> int:
        return self.event["seq"]


def parse_message(raw: bytes) -> Message:
    """HEADER SP STRUCTURED-DATA [SP MSG], RFC 5424 section 6. Fails with an AssertionError that shows the place."""
    at = 0

    def expect(wanted: bytes) -> None:
        nonlocal at
        assert raw[at : at + len(wanted)] == wanted, f"at {at}: {raw[at : at + 30]!r}, expected {wanted!r}"
        at += len(wanted)

    def word() -> str:
        nonlocal at
        end = raw.index(b" ", at)
        found, at = raw[at:end], end + 1
        assert found and all(33 <= c <= 126 for c in found), f"header field {found!r}"
        return found.decode("ascii")

    expect(b"<")
    end = raw.index(b">", at)
    pri, at = int(raw[at:end]), end + 1
    assert 0 <= pri <= 191, pri
    version, timestamp, hostname, appname, procid, msgid = (word() for _ in range(6))
    for value, limit in ((hostname, 255), (appname, 48), (procid, 128), (msgid, 32)):
        assert len(value) <= limit, value
    message = Message(raw, pri, int(version), timestamp, hostname, appname, procid, msgid)
    if raw[at : at + 1] == b"-":
        at += 1
    else:
        while raw[at : at + 1] == b"[":
            at = _element(raw, at + 1, message.sd)
    if at < len(raw):
        expect(b" ")
        message.msg = raw[at:]
    return message


def _element(raw: bytes, at: int, sd: dict[str, dict[str, str]]) -> int:
    name = bytearray()
    while raw[at : at + 1] not in (b" ", b"]"):
        name += raw[at : at + 1]
        at += 1
    params = sd.setdefault(name.decode("ascii"), {})
    while raw[at : at + 1] == b" ":
        equals = raw.index(b'="', at)
        key, at, value = raw[at + 1 : equals].decode("ascii"), equals + 2, bytearray()
        while raw[at : at + 1] != b'"':
            c = raw[at : at + 1]
            assert c not in (b"", b"]"), f"an unescaped {c!r} at {at}"
            if c == b"\\" and raw[at + 1 : at + 2] in (b'"', b"\\", b"]"):
                at, c = at + 1, raw[at + 1 : at + 2]
            value += c
            at += 1
        assert key not in params, f"{key} twice"
        params[key] = value.decode("utf-8")
        at += 1
    assert raw[at : at + 1] == b"]", raw[at : at + 20]
    return at + 1


def split_frames(data: bytes) -> tuple[list[bytes], bytes]:
    """The whole frames in `data` and what is left: MSG-LEN SP SYSLOG-MSG, RFC 5425 section 4.3."""
    frames, at = [], 0
    while True:
        digits = at
        while digits < len(data) and data[digits] in b"0123456789":
            digits += 1
        if digits == len(data):
            return frames, data[at:]
        assert digits > at and data[at] != ord("0") and data[digits] == ord(" "), f"no frame begins {data[at : at + 30]!r}"
        end = digits + 1 + int(data[at:digits])
        if end > len(data):
            return frames, data[at:]
        frames.append(data[digits + 1 : end])
        at = end


class Receiver:
    """Mutual TLS on 127.0.0.1; one thread accepts, one thread per connection reads.

    `hang`: connections are accepted and never read. `reset_after`: the connection is reset after so many bytes.
    Both may be set and taken back at any time. `kill()` resets everything, `start()` comes back on the same port.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None, tls: ssl.TLSVersion | None = None) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate, key)
        if client_ca:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(client_ca)
        if tls:
            self.context.minimum_version = self.context.maximum_version = tls
        self.host, self.port = "127.0.0.1", 0
        self.hang = False
        self.reset_after: int | None = None
        self.raw: list[bytes] = []  #: every message as it came, duplicates too
        self.connections = 0
        self.handshakes_failed: list[str] = []
        self.subjects: list[str] = []
        self.clean_ends = 0
        self.failures: list[BaseException] = []
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def messages(self) -> list[Message]:
        with self._lock:
            raw = list(self.raw)
        return [parse_message(r) for r in raw]

    def events(self, kind: str | None = None) -> list[dict]:
        """The events, each once, in the order of their first arrival."""
        found: dict[tuple[str, int], dict] = {}
        for event in [m.event for m in self.messages]:
            found.setdefault((event["epoch"], event["seq"]), event)
        return [e for e in found.values() if kind is None or e["kind"] == kind]

    def start(self) -> Receiver:
        self._stop = threading.Event()
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        listener.listen(16)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._spawn(self._accept, listener, self._stop)
        return self

    def kill(self) -> None:
        """Every connection is reset, what was not read yet is lost, nobody listens any more."""
        self._stop.set()
        if self._listener:
            self._listener.close()
            self._listener = None
        for thread in self._threads:
            thread.join(10)
        assert not any(t.is_alive() for t in self._threads)
        self._threads.clear()

    def _spawn(self, run, *args) -> None:
        thread = threading.Thread(target=run, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                if not select.select([listener], [], [], 0.02)[0]:
                    continue
                raw, _ = listener.accept()
            except (OSError, ValueError):
                return
            self._spawn(self._serve, raw, stop)

    def _serve(self, raw: socket.socket, stop: threading.Event) -> None:
        try:
            raw.settimeout(5)
            sock = self.context.wrap_socket(raw, server_side=True, suppress_ragged_eofs=False)
        except (OSError, ValueError) as e:
            self.handshakes_failed.append(str(e))
            raw.close()
            return
        try:
            self.connections += 1
            subject = dict(pair[0] for pair in (sock.getpeercert() or {}).get("subject", ()))
            self.subjects.append(subject.get("commonName", ""))
            self._read(sock, stop)
        except BaseException as e:  # shown by the fixture: a frame that our own parser refuses fails the test
            self.failures.append(e)
        finally:
            sock.close()

    def _read(self, sock: ssl.SSLSocket, stop: threading.Event) -> None:
        sock.setblocking(False)
        rest, count = b"", 0
        while not stop.is_set():
            if self.hang:
                stop.wait(0.01)
                continue
            try:
                data = sock.recv(65536)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                select.select([sock], [], [], 0.02)
                continue
            except OSError:
                return
            if not data:
                self.clean_ends += 1
                sock.setblocking(True)
                try:
                    sock.unwrap()
                except OSError:
                    pass
                return
            count += len(data)
            if self.reset_after is not None and count >= self.reset_after:
                data = data[: len(data) - (count - self.reset_after)]
                reset(sock)
            frames, rest = split_frames(rest + data)
            with self._lock:
                self.raw += frames
            if sock.fileno() < 0:
                return
        reset(sock)


def reset(sock: socket.socket) -> None:
    """Ends a connection with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.socket.close(sock)


class PlainListener:
    """A TCP listener that never speaks TLS. It keeps every byte that it is sent, and answers with `answer`."""

    def __init__(self, answer: bytes = b"") -> None:
        self._answer, self.received = answer, b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()[:2]
        self.connections = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        open_: list[socket.socket] = []
        while True:
            try:
                readable = select.select([self._listener, *open_], [], [], 0.05)[0]
                for sock in readable:
                    if sock is self._listener:
                        peer = self._listener.accept()[0]
                        self.connections += 1
                        open_.append(peer)
                        if self._answer:
                            peer.sendall(self._answer)
                    elif data := sock.recv(65536):
                        self.received += data
                    else:
                        open_.remove(sock)
                        sock.close()
            except ConnectionError:
                open_.remove(sock)
                sock.close()
            except (OSError, ValueError):
                for sock in open_:
                    sock.close()
                return

    def close(self) -> None:
        self._listener.close()
        self._thread.join(5)


class Tap:
    """Stands between a sender and a receiver, passes every byte on, and keeps what the sender sent."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target, self.sent = target, b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()[:2]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        pairs: dict[socket.socket, socket.socket] = {}
        senders: set[socket.socket] = set()
        while True:
            try:
                readable = select.select([self._listener, *pairs], [], [], 0.05)[0]
            except (OSError, ValueError):
                for sock in pairs:
                    sock.close()
                return
            for sock in readable:
                if sock is self._listener:
                    try:
                        here = self._listener.accept()[0]
                    except OSError:
                        continue
                    there = socket.create_connection(self._target)
                    pairs |= {here: there, there: here}
                    senders.add(here)
                elif sock in pairs:
                    try:
                        data = sock.recv(65536)
                        if sock in senders:
                            self.sent += data
                        pairs[sock].sendall(data)
                    except OSError:
                        data = b""
                    if not data:
                        other = pairs.pop(sock)
                        pairs.pop(other, None)
                        sock.close()
                        other.close()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(5)
