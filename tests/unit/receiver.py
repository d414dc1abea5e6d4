"""What the package's own receiver is checked with, and what else may stand at the other end.

The parser in here was written from RFC 5424 and RFC 5425 alone. It shares nothing with `clawtrail.syslog`, so that
the two have to agree about what is on the wire.
"""

from __future__ import annotations

import json
import select
import socket
import threading
from dataclasses import dataclass, field

from clawtrail import testing


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


class StrictFrames:
    """One connection's bytes as they come."""

    def __init__(self) -> None:
        self.rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        frames, self.rest = split_frames(self.rest + data)
        return frames


class Receiver(testing.Receiver):
    """The receiver that ships in the package, with the parser in here: every frame and every message is checked by it."""

    framing = StrictFrames
    parse = staticmethod(parse_message)


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
