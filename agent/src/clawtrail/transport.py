"""One TLS connection to the receiver: verified, never in clear, every wait bounded.

TLS 1.3 lets a client finish its handshake before the receiver has judged the client's certificate: a refusal shows
on the first read only. So the connection reads as well as it writes, and looks for a refusal before it counts as up.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ConfigurationError, TransportError

SEND_BUFFER = 256 * 1024  #: bytes; what lies in the kernel is what a receiver that dies has not read
_LINUX_TCP_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", 18)


@dataclass(frozen=True)
class TLSFiles:
    """Where the certificates are. `ca` is required: an audit trail goes to a verified receiver or nowhere."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def bundle(cls, folder: str | os.PathLike[str]) -> TLSFiles:
        """A client's folder as `clawtrail setup` makes it: ca.crt, client.crt, client.key."""
        base = Path(folder)
        return cls(base / "ca.crt", base / "client.crt", base / "client.key")

    @classmethod
    def beside(cls, ca: str | os.PathLike[str]) -> TLSFiles:
        """The CA file; the client's certificate and key too when they stand beside it as client.crt and client.key."""
        path = Path(ca)
        cert, key = path.with_name("client.crt"), path.with_name("client.key")
        return cls(path, cert, key) if cert.is_file() and key.is_file() else cls(path)

    def context(self) -> ssl.SSLContext:
        """A context that verifies the receiver's name and chain. Raises ConfigurationError naming the file."""
        for what, path in (("CA certificate", self.ca), ("client certificate", self.cert), ("client key", self.key)):
            if path is not None:
                _readable(what, path)
        if (self.cert is None) != (self.key is None):
            raise ConfigurationError("a client certificate needs its key and the key its certificate; only one was given")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(self.ca)
        except ssl.SSLError as e:
            raise ConfigurationError(f"CA certificate {self.ca}: {e}; expected a PEM certificate") from None
        if self.cert and self.key:
            try:
                context.load_cert_chain(self.cert, self.key, self.password or "")
            except ssl.SSLError as e:
                raise ConfigurationError(f"client certificate {self.cert} with key {self.key}: {e}") from None
        return context


def _readable(what: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as e:
        raise ConfigurationError(f"{what} {path}: {e.strerror}; expected a readable PEM file") from None


@dataclass(frozen=True)
class Deadlines:
    """Seconds. `stall`: no byte could be written for so long, and the peer is given up."""

    connect: float = 5.0
    handshake: float = 5.0
    stall: float = 10.0
    close: float = 2.0


class Connection:
    """A connected, verified, non-blocking TLS socket."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext, name: str, deadlines: Deadlines) -> None:
        self.peer = f"{host}:{port}"
        self._deadlines = deadlines
        raw = _connect(host, port, deadlines.connect)
        try:
            raw.settimeout(deadlines.handshake)
            self._sock = context.wrap_socket(raw, server_hostname=name, suppress_ragged_eofs=False)
            self._await_refusal()
        except TransportError:
            self.abort()
            raise
        except (OSError, ValueError) as e:
            raw.close()
            raise TransportError(explain(e, self.peer, name)) from e

    def _await_refusal(self) -> None:
        began = time.monotonic()
        self._sock.setblocking(False)
        wait = 0.05 if self._sock.version() == "TLSv1.3" else 0.0
        while (left := began + wait - time.monotonic()) > 0 and select.select([self._sock], [], [], left)[0]:
            self.pump()

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, data: memoryview) -> int:
        """Writes what fits now; 0 when nothing does. Raises TransportError when the connection is gone."""
        try:
            return self._sock.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
        except (OSError, ValueError) as e:
            raise TransportError(explain(e, self.peer)) from e

    def pump(self) -> None:
        """Reads what there is: session tickets, alerts, the end. Raises TransportError when the connection is gone."""
        try:
            while self._sock.recv(4096):
                pass
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, ValueError) as e:
            raise TransportError(explain(e, self.peer)) from e
        raise TransportError(f"receiver {self.peer} closed the connection")

    def close(self) -> bool:
        """Both sides' close_notify, bounded. True: the receiver has read everything that was sent before."""
        deadline = time.monotonic() + self._deadlines.close
        try:
            while True:
                try:
                    self._sock.unwrap()
                    return True
                except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as e:
                    left = deadline - time.monotonic()
                    reading = isinstance(e, ssl.SSLWantReadError)
                    if left <= 0 or not any(select.select([self] if reading else [], [] if reading else [self], [], left)):
                        return False
        except (OSError, ValueError):
            return False
        finally:
            self.abort()

    def abort(self) -> None:
        """Closes the descriptor and says nothing to the peer (also right in a forked child)."""
        sock = getattr(self, "_sock", None)
        if sock is not None:
            try:
                socket.socket.close(sock)
            except OSError:
                pass


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise TransportError(f"receiver {host}:{port}: the name does not resolve ({e.strerror})") from e
    last: OSError | None = None
    for family, kind, proto, _, address in found:
        sock = socket.socket(family, kind, proto)
        try:
            sock.settimeout(timeout)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
            for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, option):
                    sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
            if os.uname().sysname == "Linux":
                sock.setsockopt(socket.IPPROTO_TCP, _LINUX_TCP_USER_TIMEOUT, 10_000)
            sock.connect(address)
            return sock
        except OSError as e:
            sock.close()
            last = e
    raise TransportError(f"receiver {host}:{port}: {last.strerror or last if last else 'no address'}") from last


_ALERTS = {
    "CERTIFICATE_REQUIRED": "it requires a client certificate and got none",
    "HANDSHAKE_FAILURE": "it requires a client certificate, or shares no cipher with us",
    "UNKNOWN_CA": "it does not trust the CA of our client certificate",
    "BAD_CERTIFICATE": "it does not accept our client certificate",
    "CERTIFICATE_EXPIRED": "our client certificate has expired",
    "CERTIFICATE_REVOKED": "our client certificate is revoked",
    "CERTIFICATE_UNKNOWN": "it does not accept our client certificate",
    "ACCESS_DENIED": "our client certificate's subject is not allowed",
}


def explain(error: Exception, peer: str, name: str | None = None) -> str:
    """What a failed connection means, in one sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        expected = f" for {name!r} signed by the configured CA" if name else ""
        return f"receiver {peer} is not verified: {error.verify_message}; expected a valid certificate{expected}; nothing was sent"
    if isinstance(error, ssl.SSLEOFError):
        return f"receiver {peer} cut the connection"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        for alert, meaning in _ALERTS.items():
            if reason.endswith(f"ALERT_{alert}"):
                return f"receiver {peer} refused us: {meaning} ({reason})"
        if reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE"):
            return f"receiver {peer} does not speak TLS ({reason}); nothing was sent"
        return f"receiver {peer}: TLS failed ({reason})"
    if isinstance(error, TimeoutError):
        return f"receiver {peer} did not finish the TLS handshake in time"
    return f"receiver {peer}: {getattr(error, 'strerror', None) or error}"
