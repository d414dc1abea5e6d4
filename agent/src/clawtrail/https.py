"""GET over mutual TLS: one kept connection, bounded in bytes and, as a whole, in time; no proxy, no redirect, no cookie."""

from __future__ import annotations

import http.client
import io
import os
import re
import select
import socket
import ssl
import time
import urllib.parse
from typing import Any, cast

from .dial import connect, names, peer
from .errors import ConfigurationError, TransportError
from .transport import TLS, explain, handshake

MOST = 64 * 1024  #: bytes of one answer, its header included


class HTTPSClient:
    """Asks one server, with the client's certificate. For one thread at a time; right after a fork too.

    Raises ConfigurationError at once for a url that is none, or not https.
    """

    def __init__(self, url: str, tls: TLS) -> None:
        expected = "expected https://host:port, for example https://logs.example:6516"
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except (ValueError, AttributeError) as e:
            raise ConfigurationError(f"url {url!r}: {e}; {expected}") from None
        if parts.scheme != "https":
            raise ConfigurationError(f"url {url!r} would be asked in clear or not at all; {expected}")
        if not port or "@" in parts.netloc or re.search(r"[?#\\\s]", url):
            raise ConfigurationError(f"url {url!r}; {expected}, without user, query and fragment")
        self.peer = peer(names(host)[0], port)
        self._path = urllib.parse.quote(parts.path.rstrip("/"), safe="/%~")
        self._host, self._port, self._tls = host, port, tls
        self._kept: tuple[int, ssl.SSLContext, ssl.SSLSocket] | None = None  # the process, and what it was made with

    def get(self, path: str, deadline: float) -> bytes:
        """The body of a 200. `path` is in ASCII, `deadline` a value of time.monotonic(). Raises TransportError for all else."""
        request = f"GET {self._path}{path} HTTP/1.1\r\nHost: {self.peer}\r\nAccept: application/json\r\n\r\n".encode("ascii")
        try:
            if kept := self._take():
                try:
                    return self._exchange(kept, request, deadline)
                except (ConnectionError, ssl.SSLError):  # it was ended while we asked; a question may be asked twice
                    pass
            return self._exchange(self._dial(deadline), request, deadline)
        except TimeoutError:
            raise TransportError(f"server {self.peer} did not answer in time") from None
        except OSError as e:
            raise TransportError(explain(e, self.peer)) from e
        except http.client.HTTPException as e:
            raise TransportError(f"server {self.peer}: {type(e).__name__} {str(e):.200}; expected an HTTP answer") from e

    def close(self) -> None:
        """Closes the connection; the next question opens another."""
        if self._kept:
            socket.socket.close(self._kept[2])
            self._kept = None

    def _take(self) -> ssl.SSLSocket | None:
        """The kept connection when it is ours, of the certificates in use, and silent: what comes unasked is no answer."""
        if self._tls.changed():
            self._tls.reload()
        if self._kept is None:
            return None
        process, context, sock = self._kept
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        if process == os.getpid() and context is self._tls.context and not poll.poll(0):
            self._kept = None
            return sock
        self.close()
        return None

    def _dial(self, deadline: float) -> ssl.SSLSocket:
        raw = connect(self._host, self._port, _left(deadline), _left(deadline))
        name = self._tls.server_hostname or self._host
        return handshake(raw, self._tls.context, name, self.peer, max(0.01, deadline - time.monotonic()))

    def _exchange(self, sock: ssl.SSLSocket, request: bytes, deadline: float) -> bytes:
        try:
            sock.settimeout(_left(deadline))
            sock.sendall(request)
            answer = http.client.HTTPResponse(cast(socket.socket, _Answer(sock, deadline, self.peer)), method="GET")
            answer.begin()
            body = answer.read(MOST)
            if answer.status != 200:
                raise TransportError(f"server {self.peer} answered {answer.status} {body[:120]!r}; expected 200")
        except BaseException:
            socket.socket.close(sock)
            raise
        if answer.will_close or not answer.isclosed():  # not closed: there is more than was read
            socket.socket.close(sock)
        else:
            self._kept = os.getpid(), sock.context, sock
        return body


class _Answer(io.RawIOBase):
    """What http.client reads from."""

    def __init__(self, sock: ssl.SSLSocket, deadline: float, whom: str) -> None:
        self._sock, self._deadline, self._whom, self._count = sock, deadline, whom, 0

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        self._count += (count := self._sock.recv_into(buffer))
        if self._count > MOST:
            raise TransportError(f"server {self._whom} answered with more than {MOST} bytes; expected no more")
        return count


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
