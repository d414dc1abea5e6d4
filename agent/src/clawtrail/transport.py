"""One TLS connection to the receiver: verified, never in clear, every wait bounded.

TLS 1.3 lets a client finish its handshake before the receiver has judged the client's certificate: a refusal shows
on the first read only. So the connection reads as well as it writes, and looks for a refusal before it counts as up.
"""

from __future__ import annotations

import logging
import os
import re
import select
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .dial import DEAD_PEER, all_acknowledged, bear, connect, names, peer
from .errors import ConfigurationError, TransportError

AFTERWORD = 0.2  #: seconds at most for the end of TCP behind the end of TLS
log = logging.getLogger("clawtrail.transport")

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"  #: of TLS 1.2: AEAD with forward secrecy; all of TLS 1.3's are that
_VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}


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

    def context(self, minimum_version: object = "TLSv1.3") -> ssl.SSLContext:
        """A context that verifies the receiver's name and chain. Raises ConfigurationError naming the file or the setting."""
        version = _version(minimum_version)
        for what, path in (("CA certificate", self.ca), ("client certificate", self.cert), ("client key", self.key)):
            if path is not None:
                _readable(what, path)
        if (self.cert is None) != (self.key is None):
            raise ConfigurationError("a client certificate needs its key and the key its certificate; only one was given")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = version
        context.set_ciphers(CIPHERS)
        context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(self.ca)
        except (OSError, ValueError) as e:
            raise ConfigurationError(f"CA certificate {self.ca}: {e}; expected a PEM certificate") from None
        if self.cert and self.key:
            try:
                context.load_cert_chain(self.cert, self.key, self.password or "")
            except (OSError, ValueError) as e:
                raise ConfigurationError(f"client certificate {self.cert} with key {self.key}: {e}") from None
        return context

    def state(self) -> tuple[tuple[int, int, int] | None, ...]:
        """(mtime in ns, size, inode) of each file, None for one that is not there."""
        return tuple(_stat(path) for path in (self.ca, self.cert, self.key) if path is not None)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _readable(what: str, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as e:
        raise ConfigurationError(f"{what} {path}: {e.strerror}; expected a readable PEM file") from None


def _version(given: object) -> ssl.TLSVersion:
    text = given.name if isinstance(given, ssl.TLSVersion) else str(given)
    plain = re.sub(r"^TLS[ _-]?V?", "", text.strip().upper()).replace("_", ".")
    if plain not in _VERSIONS:
        nearest = "TLSv1.2" if re.fullmatch(r"(SSL.*|V?[12](\.[01])?)", plain) else "TLSv1.3"
        raise ConfigurationError(f"minimum_version {given!r}; expected TLSv1.3 or TLSv1.2, the nearest is {nearest!r}")
    return _VERSIONS[plain]


class TLS:
    """The certificates in use, and how they are replaced while the process runs.

    A rotation replaces the files of a folder one by one. What does not fit together in the middle of it is left alone:
    the context that was loaded before stays in use until the files make a whole again.

    Args:
        files: the certificate files, or a client's folder.
        server_hostname: the name in the receiver's certificate, when it is not the host.
        minimum_version: "TLSv1.3"; "TLSv1.2" admits that too, with AEAD ciphers of forward secrecy only.

    Attributes:
        error: why the last `reload()` failed, empty when it did not.

    Raises ConfigurationError at once for files and settings that cannot work.
    """

    def __init__(self, files: TLSFiles | Path | str, server_hostname: str | None = None, minimum_version: object = "TLSv1.3") -> None:
        self.files = files if isinstance(files, TLSFiles) else TLSFiles.bundle(files)
        self.server_hostname = names(server_hostname)[1] if server_hostname else None
        self.error = ""
        self._minimum, self._warned = _version(minimum_version), set[str]()
        self._loaded = self.files.state()  # before the load: what changes during it counts as changed after it
        self._context = self.files.context(self._minimum)

    @property
    def context(self) -> ssl.SSLContext:
        """The context for the next connection; those that are up keep theirs."""
        return self._context

    def changed(self) -> bool:
        """True when a file differs (time of change, size or inode) from what is loaded."""
        return self.files.state() != self._loaded

    def reload(self) -> bool:
        """Loads the files anew. False: they do not work together (now), and the context that was loaded before stays."""
        state = self.files.state()
        try:
            self._context = self.files.context(self._minimum)
        except ConfigurationError as e:
            self.error = str(e)
            if self.error not in self._warned:
                self._warned.add(self.error)
                log.warning("%s; the certificates that were loaded before stay in use", e)
            return False
        self._loaded, self.error = state, ""
        self._warned.clear()
        return True


@dataclass(frozen=True)
class Deadlines:
    """Seconds. `connect` is for all addresses together; `stall`: no byte could be written, and the peer is given up."""

    connect: float = 5.0
    handshake: float = 5.0
    stall: float = 10.0
    close: float = 2.0
    resolve: float = 5.0


class Connection:
    """A connected, verified, non-blocking TLS socket.

    Args:
        host: a name (an internationalised one too) or an address; IPv6 with or without brackets and scope.
        name: what the receiver's certificate must carry.
    """

    def __init__(self, host: str, port: int, context: ssl.SSLContext, name: str, deadlines: Deadlines) -> None:
        self.peer = peer(host, port)
        self._deadlines = deadlines
        self._paused = False
        raw = connect(host, port, deadlines.resolve, deadlines.connect)
        self._sock = handshake(raw, context, name, self.peer, deadlines.handshake)

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, data: bytes | memoryview) -> int:
        """Writes what fits now; 0 when nothing does. Raises TransportError when the connection is gone."""
        try:
            sent = self._sock.send(data)
            if self._paused:
                self._paused = False
                bear(self._sock, 0.0)
            return sent
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return 0
        except (OSError, ValueError) as e:
            raise TransportError(explain(e, self.peer)) from e

    def bear(self) -> None:
        """Nothing could be written: a receiver that is there and reads nothing is borne as long as the deadline `stall` says."""
        self._paused = True
        bear(self._sock, self._deadlines.stall + DEAD_PEER)

    def pump(self) -> None:
        """Reads what there is: session tickets, alerts, the end. Raises TransportError when the connection is gone."""
        broken = 0
        try:
            broken = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # OpenSSL makes an end without a reason of it
            for _ in range(64):  # a peer that never stops talking must not keep us from writing
                if not self._sock.recv(16384):
                    raise TransportError(f"receiver {self.peer} closed the connection")
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except (OSError, ValueError) as e:
            ended = isinstance(e, (ssl.SSLEOFError, ConnectionError))
            raise TransportError(explain(OSError(broken, os.strerror(broken)) if broken and ended else e, self.peer)) from e

    def close(self) -> bool:
        """Both sides' close_notify, bounded. True: the receiver has read everything that was sent before."""
        deadline = time.monotonic() + self._deadlines.close
        try:
            while True:
                try:
                    self._sock.unwrap()
                    return not self._was_reset(min(deadline, time.monotonic() + AFTERWORD))
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLWantWriteError:
                    wanted = select.POLLOUT
                if not _ready(self, wanted, deadline):
                    return False
        except (OSError, ValueError):
            return False
        finally:
            self.abort()

    def _was_reset(self, deadline: float) -> bool:
        """Whether the receiver's kernel threw away what we sent: then its close_notify was no answer, it crossed ours."""
        while _ready(self, select.POLLIN, deadline) and self._sock.recv(4096):  # after the end of TLS: the end of TCP
            pass
        while not all_acknowledged(self._sock) and time.monotonic() < deadline:
            time.sleep(0.0005)
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def abort(self) -> None:
        """Closes the descriptor and says nothing to the peer (also right in a forked child)."""
        try:
            socket.socket.close(self._sock)
        except OSError:
            pass


def handshake(raw: socket.socket, context: ssl.SSLContext, name: str, whom: str, timeout: float) -> ssl.SSLSocket:
    """Makes a non-blocking TLS socket of a connected one, verified, and not refused; `timeout` is for the whole handshake.

    Closes the socket when it raises: TransportError, or ConfigurationError for a context that would not verify.
    """
    began = time.monotonic()
    sock = raw
    try:
        if not context.check_hostname or context.verify_mode != ssl.CERT_REQUIRED:
            raise ConfigurationError(f"a TLS context that would not verify {whom}; expected check_hostname and CERT_REQUIRED")
        raw.setblocking(False)
        sock = tls = context.wrap_socket(raw, server_hostname=names(name)[1], do_handshake_on_connect=False, suppress_ragged_eofs=False)
        while (wanted := _shake(tls)) is not None:
            if not _ready(tls, wanted, began + timeout):
                raise TransportError(f"receiver {whom} did not finish the TLS handshake in time ({timeout:g} s)")
        if tls.version() == "TLSv1.3":
            _await_refusal(tls, whom, time.monotonic() - began)
        return tls
    except BaseException as e:
        sock.close()
        if isinstance(e, OSError):
            raise TransportError(explain(e, whom, name)) from e
        raise


def _shake(tls: ssl.SSLSocket) -> int | None:
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return select.POLLIN
    except ssl.SSLWantWriteError:
        return select.POLLOUT
    return None


def _await_refusal(tls: ssl.SSLSocket, whom: str, took: float) -> None:
    """The answer to our certificate takes a round trip, as the handshake did. A session ticket comes when it is accepted
    (RFC 8446 section 4.6.1) and ends the wait but for a moment: some receivers judge the name in it only then."""
    deadline = time.monotonic() + min(1.0, 0.05 + 2 * took)
    while _ready(tls, select.POLLIN, deadline):
        try:
            if not tls.recv(16384):
                raise TransportError(f"receiver {whom} closed the connection")
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass
        if tls.session is not None and tls.session.has_ticket:
            deadline = min(deadline, time.monotonic() + 0.01)


def _ready(sock: Any, wanted: int, deadline: float) -> bool:
    """Waits until the socket can be read or written, not past the deadline, whatever the peer does."""
    left = deadline - time.monotonic()
    if left <= 0:
        return False
    poll = select.poll()
    poll.register(sock, wanted)
    return bool(poll.poll(left * 1000))


_ALERTS = {
    "CERTIFICATE_REQUIRED": "it requires a client certificate and got none",
    "HANDSHAKE_FAILURE": "it requires a client certificate, or shares no cipher with us (of TLS 1.2 only ECDHE with AES-GCM or ChaCha20)",
    "UNKNOWN_CA": "it does not trust the CA of our client certificate",
    "BAD_CERTIFICATE": "it does not accept our client certificate",
    "CERTIFICATE_EXPIRED": "our client certificate has expired",
    "CERTIFICATE_REVOKED": "our client certificate is revoked",
    "CERTIFICATE_UNKNOWN": "it does not accept our client certificate",
    "ACCESS_DENIED": "our client certificate's subject is not allowed",
}
_NO_TLS = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "UNKNOWN_PROTOCOL", "RECORD_LAYER_FAILURE")
_OLD_TLS = ("TLSV1_ALERT_PROTOCOL_VERSION", "UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION")
_BASIC, _USAGE = "basicConstraints=critical,CA:TRUE in the CA's", "keyUsage=critical,keyCertSign,cRLSign in the CA's"
_IDENTIFIER, _SERVER = "KeyIdentifier in the receiver's", "extendedKeyUsage=serverAuth in the receiver's"
#: X509_V_ERR_… of strict verification: the extension (RFC 5280 section 4.2.1) that is missing, and in whose certificate
_MISSING = {24: _BASIC, 79: _BASIC, 89: _BASIC, 81: _USAGE, 92: _USAGE, 26: _SERVER, 85: f"authority{_IDENTIFIER}", 86: f"subject{_IDENTIFIER}"}


def explain(error: Exception, peer: str, name: str | None = None) -> str:
    """What a failed connection means, in one sentence."""
    if isinstance(error, ssl.SSLCertVerificationError):
        expected = f" for {name!r} signed by the configured CA" if name else ""
        if error.verify_code in _MISSING:
            expected = f" chain, with the extension {_MISSING[error.verify_code]} certificate"
        return f"receiver {peer} is not verified: {error.verify_message}; expected a valid certificate{expected}; nothing was sent"
    if isinstance(error, ssl.SSLEOFError):
        return f"receiver {peer} cut the connection, or is gone"
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        for alert, meaning in _ALERTS.items():
            if reason.endswith(f"ALERT_{alert}"):
                return f"receiver {peer} refused us: {meaning} ({reason})"
        if reason in _OLD_TLS:
            return f"receiver {peer} shares no TLS version with us ({reason}); expected TLSv1.3, or TLSv1.2 where minimum_version admits it"
        if reason in _NO_TLS:
            return f"receiver {peer} does not speak TLS ({reason}); nothing was sent"
        return f"receiver {peer}: TLS failed ({reason})"
    if isinstance(error, TimeoutError):
        return f"receiver {peer} acknowledged nothing, or had no room, for {DEAD_PEER:g} s"
    return f"receiver {peer}: {getattr(error, 'strerror', None) or error}"
