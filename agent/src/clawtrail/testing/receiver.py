"""An RFC 5425 receiver that runs in this process, well or failing."""

from __future__ import annotations

import json
import socket
import ssl
import struct
import threading
from collections import deque
from os import PathLike
from types import TracebackType
from typing import Any, Callable, Iterable, Literal, Protocol

from .. import syslog

Refusal = Literal["connect", "accept", "certificate"]
_TICK = 0.02  #: seconds: longest time until a thread sees that a setting has changed


class Framing(Protocol):
    """Takes one connection's bytes apart into messages; raises on bytes that are no frame."""

    def feed(self, data: bytes, /) -> Iterable[bytes]: ...


class Receiver:
    """RFC 5425 over (mutual) TLS, in this process; one thread accepts, one thread per connection reads.

    Args:
        certificate, key: PEM files of the receiver.
        client_ca: PEM file of the CA whose clients are admitted; None: nobody is asked for a certificate.
        tls: the one protocol version that is spoken; None: TLS 1.2 and 1.3.
        tickets: TLS 1.3 session tickets per connection.
        host: the address to listen on; the port is a free one, and stays the same over `kill()` and `start()`.

    It is well until told otherwise. These may be set and taken back at any time:
        hang: connections are accepted, and not read.
        hang_handshake: connections are accepted, and the handshake is not answered.
        reset_after: a connection is reset (RST) after so many bytes of frames; what lies behind them is not read.
        slice: (n, seconds): at most n bytes of TLS are read or written at a time, with a pause after each.
        refuse: "connect": nobody listens, open connections live on; "accept": closed as soon as accepted;
            "certificate": no client's certificate is good enough.
        close_notify: False: a connection ends without it, its own and the answer to the sender's.

    Counted: connections (handshakes that were completed), clean_ends (the sender's close_notify came),
    ragged_ends (it ended without), handshakes_failed (why), subjects (common name per connection), bytes_read.
    """

    def __init__(
        self,
        certificate: str | PathLike[str],
        key: str | PathLike[str],
        client_ca: str | PathLike[str] | None = None,
        tls: ssl.TLSVersion | None = None,
        *,
        tickets: int = 2,
        host: str = "127.0.0.1",
    ) -> None:
        self.context, self._refusing = (_context(certificate, key, tls, tickets) for _ in range(2))
        if client_ca:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(client_ca)
        self._refusing.verify_mode = ssl.CERT_REQUIRED  # and trusts nobody
        self.host, self.port = host, 0
        self.hang = self.hang_handshake = False
        self.reset_after: int | None = None
        self.slice: tuple[int, float] | None = None
        self.close_notify = True
        self.connections = self.clean_ends = self.ragged_ends = self.bytes_read = 0
        self.handshakes_failed: list[str] = []
        self.subjects: list[str] = []
        self.failures: list[BaseException] = []  #: bytes that are no frames, above all; raised by `raw` too
        self._refuse: Refusal | None = None
        self._lock = threading.Lock()
        self._unsplit: deque[tuple[Framing, bytes]] = deque()  # as it came: whoever reads fast has no time to parse
        self._raw: list[bytes] = []
        self._messages: list[Any] = []
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._open: set[_Peer] = set()

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def refuse(self) -> Refusal | None:
        return self._refuse

    @refuse.setter
    def refuse(self, what: Refusal | None) -> None:
        self._refuse = what
        if what == "connect":
            self._deafen()
        elif self._listener is None and self.port and not self._killed:
            self._listen()

    @staticmethod
    def framing() -> Framing:
        """What takes the bytes of one connection apart; a subclass may bring its own."""
        return syslog.Frames()

    @staticmethod
    def parse(raw: bytes) -> Any:
        """What takes one message apart, the event as its `msg`; a subclass may bring its own."""
        return syslog.parse(raw)

    # -- what came ---------------------------------------------------------------------------------------------

    @property
    def raw(self) -> list[bytes]:
        """Every message as it came, without its frame's length, duplicates too. Raises what `failures` holds."""
        with self._lock:
            while self._unsplit:
                framing, data = self._unsplit.popleft()
                try:
                    self._raw += framing.feed(data)
                except Exception as e:
                    self.failures.append(e)
            if self.failures:
                raise self.failures[0]
            return list(self._raw)

    @property
    def messages(self) -> list[Any]:
        """`raw`, each taken apart by `parse`: a `syslog.Parsed`."""
        raw = self.raw
        with self._lock:
            self._messages += (self.parse(r) for r in raw[len(self._messages) :])
            return list(self._messages)

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        """The events, each once however often it was sent, in the order of their first arrival."""
        found: dict[tuple[str, int], dict[str, Any]] = {}
        for event in (json.loads(m.msg) for m in self.messages):
            found.setdefault((event["epoch"], event["seq"]), event)
        return [e for e in found.values() if kind is None or e["kind"] == kind]

    # -- life --------------------------------------------------------------------------------------------------

    _killed = True

    def start(self) -> Receiver:
        """Listens; after `kill()` on the same port again."""
        self._killed = False
        if self._refuse != "connect":
            self._listen()
        return self

    def hang_up(self) -> None:
        """Ends every connection from this side, with close_notify unless that is switched off, and goes on listening."""
        peers = self._peers()
        for peer in peers:
            peer.leave.set()
        for peer in peers:
            peer.gone.wait(10)

    def kill(self) -> None:
        """Every connection is reset, what was not read yet is lost, nobody listens any more."""
        self._killed = True
        self._deafen()
        for peer in self._peers():
            peer.killed.set()
        for thread in self._threads:
            thread.join(10)
        if any(t.is_alive() for t in self._threads):
            raise RuntimeError("a thread of the receiver did not end within 10 s")
        self._threads.clear()

    def __enter__(self) -> Receiver:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def __repr__(self) -> str:
        state = "killed" if self._killed else f"connections={self.connections} open={len(self._open)}"
        return f"<Receiver {self.host}:{self.port} {state} bytes_read={self.bytes_read}>"

    def _peers(self) -> list[_Peer]:
        with self._lock:
            return list(self._open)

    def _listen(self) -> None:
        listener = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((self.host, self.port))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        listener.settimeout(_TICK)
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._spawn(self._accept, listener)

    def _deafen(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            try:
                listener.shutdown(socket.SHUT_RDWR)  # at once: a close waits for the thread that waits in accept()
            except OSError:
                pass
            listener.close()

    def _spawn(self, run: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=run, args=args, name="clawtrail-testing-receiver", daemon=True)
        self._threads = [t for t in self._threads if t.is_alive()] + [thread]
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while self._listener is listener:
            try:
                sock = listener.accept()[0]
            except TimeoutError:
                continue
            except OSError:
                return
            peer = _Peer(self, sock, self._refusing if self._refuse == "certificate" else self.context)
            with self._lock:
                self._open.add(peer)
            if self._killed:  # killed meanwhile, and nobody told this one
                peer.killed.set()
            self._spawn(peer.run)


class _Peer:
    """One connection. TLS runs over two buffers, so that every byte that is read or written passes through here."""

    def __init__(self, receiver: Receiver, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.killed, self.leave, self.gone = threading.Event(), threading.Event(), threading.Event()
        self._receiver, self._sock = receiver, sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._framing = receiver.framing()
        self._up, self._count = False, 0
        sock.settimeout(_TICK)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def run(self) -> None:
        try:
            if self._receiver.refuse != "accept" and self._handshake():
                self._read()
        except OSError:  # reset by the sender
            with self._receiver._lock:
                self._receiver.ragged_ends += self._up
        except BaseException as e:
            self._receiver.failures.append(e)
        finally:
            if self.killed.is_set():
                reset(self._sock)
            self._sock.close()
            with self._receiver._lock:
                self._receiver._open.discard(self)
            self.gone.set()

    def _handshake(self) -> bool:
        receiver = self._receiver
        try:
            while True:
                try:
                    self._tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    self._flush()
                    if not self._fill():
                        raise ConnectionError("it ended within the handshake") from None
        except (OSError, ValueError) as e:
            if not self.killed.is_set():
                receiver.handshakes_failed.append(str(e))
                self._flush()  # the alert that says why
            return False
        certificate: Any = self._tls.getpeercert() or {}
        names = [value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
        with receiver._lock:
            receiver.connections += 1
            receiver.subjects.append(names[0] if names else "")
        self._up = True
        self._flush()  # the session tickets
        return True

    def _read(self) -> None:
        while True:
            try:
                while data := self._tls.read(65536):
                    if not self._keep(data):
                        return
                with self._receiver._lock:
                    self._receiver.clean_ends += 1
                return self._close()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fill():
                    break
        if self.leave.is_set() and not self.killed.is_set():
            self._close()
        elif not self.killed.is_set():
            with self._receiver._lock:
                self._receiver.ragged_ends += 1

    def _keep(self, data: bytes) -> bool:
        """Hands over what was read. False: it was enough, the connection is reset."""
        receiver, limit = self._receiver, self._receiver.reset_after
        enough = limit is not None and self._count + len(data) >= limit
        if limit is not None and enough:
            data = data[: max(0, limit - self._count)]
        self._count += len(data)
        with receiver._lock:
            receiver.bytes_read += len(data)
            receiver._unsplit.append((self._framing, data))
        if enough:
            reset(self._sock)
        return not enough

    def _close(self) -> None:
        if not self._receiver.close_notify:
            return
        try:
            self._tls.unwrap()
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):  # the sender's own close_notify may come or not
            pass
        self._flush()

    def _going(self) -> bool:
        return self.killed.is_set() or self.leave.is_set()

    def _hanging(self) -> bool:
        return self._receiver.hang if self._up else self._receiver.hang_handshake

    def _fill(self) -> bool:
        """Reads from the socket into TLS. False: the connection has ended, or is to end."""
        while not self._going():
            if self._hanging():
                self.killed.wait(0.005)
                continue
            try:
                data = self._sock.recv(self._piece() or 65536)
            except TimeoutError:
                continue
            while self._hanging() and not self._going():  # it hung while we waited: nobody has read this
                self.killed.wait(0.005)
            if self._going() or not data:
                return False
            self._in.write(data)
            self._pause()
            return True
        return False

    def _flush(self) -> None:
        data = memoryview(self._out.read())
        while data and not self.killed.is_set():
            try:
                data = data[self._sock.send(data[: self._piece() or len(data)]) :]
            except TimeoutError:
                continue
            self._pause()

    def _piece(self) -> int | None:
        return self._receiver.slice[0] if self._receiver.slice else None

    def _pause(self) -> None:
        if self._receiver.slice and self._receiver.slice[1]:
            self.killed.wait(self._receiver.slice[1])


def reset(sock: socket.socket) -> None:
    """Ends a connection with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def _context(certificate: str | PathLike[str], key: str | PathLike[str], tls: ssl.TLSVersion | None, tickets: int) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.num_tickets = tickets
    if tls:
        context.minimum_version = context.maximum_version = tls
    return context
