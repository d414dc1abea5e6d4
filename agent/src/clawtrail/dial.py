"""From a host's name to a TCP connection: addresses of both families in turn, every wait bounded, the resolver's too."""

from __future__ import annotations

import ipaddress
import itertools
import os
import re
import socket
import struct
import threading
import time
from typing import Any

from .errors import ConfigurationError, TransportError

SEND_BUFFER = 256 * 1024  #: bytes; what lies in the kernel is what a receiver that dies has not read
NOT_SENT = 128 * 1024  #: bytes not sent yet from which on the kernel asks for no more
DEAD_PEER = 4.0  #: seconds without an acknowledgement after which the kernel gives up
_FRESH = 60.0  # seconds that a late answer of the resolver is good for
_Found = list[tuple[Any, ...]]  # what getaddrinfo returns
_OPTIONS = (
    (socket.IPPROTO_TCP, "TCP_NODELAY", 1),
    (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket.SOL_SOCKET, "SO_SNDBUF", SEND_BUFFER),
    (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
    (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
    (socket.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", int(DEAD_PEER * 1000)),
    (socket.IPPROTO_TCP, "TCP_NOTSENT_LOWAT", NOT_SENT),
)


def all_acknowledged(sock: socket.socket) -> bool:
    """Whether the peer's kernel has all that was sent. Where the system does not tell (only Linux does): True."""
    try:
        return not struct.unpack_from("I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28), 24)[0]
    except (AttributeError, OSError):
        return True


def bear(sock: socket.socket, seconds: float) -> None:
    """Gives the peer `seconds`, if its kernel acknowledged everything and its program reads nothing; else DEAD_PEER.

    TCP_USER_TIMEOUT alone cannot tell a receiver that pauses from one that is gone.
    """
    try:
        patience = max(seconds, DEAD_PEER) if all_acknowledged(sock) else DEAD_PEER
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(patience * 1000))
    except (AttributeError, OSError):  # not Linux; or gone, and the next read says so
        pass


def endpoints(address: Any) -> list[tuple[str, int]]:
    """(host, port), or a list of such pairs, as a list. Raises ConfigurationError, naming the one that is wrong."""
    pairs = [address] if isinstance(address, (tuple, list)) and len(address) == 2 and isinstance(address[1], int) else address
    if not isinstance(pairs, (tuple, list)) or not pairs:
        pairs = [address]
    for pair in pairs:
        good = isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str) and pair[0] and type(pair[1]) is int
        if not good or not 0 < pair[1] < 65536:
            raise ConfigurationError(f"address {pair!r}; expected (host, port), for example ('logs.example', 6514)")
        names(pair[0])
    return [(host, port) for host, port in pairs]


def names(host: str) -> tuple[str, str]:
    """What to dial for a host, and the name that its certificate must carry.

    Brackets go, the name is written in ASCII (RFC 3490); the certificate's has no scope (RFC 4007) and no final dot
    (RFC 6066 section 3). Raises ConfigurationError for what is neither a name nor an address.
    """
    expected = "expected a host name or an address alone, for example logs.example, 192.0.2.1 or 2001:db8::1"
    if not isinstance(host, str):
        raise ConfigurationError(f"host {host!r}; {expected}")
    plain = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if _is_address(plain):
        return plain, str(ipaddress.ip_address(plain)).partition("%")[0]
    if set(plain) & set("ßς\u200c\u200d"):  # two standards, two different names: the operator must say which one
        raise ConfigurationError(f"host {host!r} is one name in IDNA 2003 and another in IDNA 2008; expected it in ASCII, as xn--…")
    try:
        written = plain.encode("idna").decode("ascii")
    except UnicodeError as e:
        raise ConfigurationError(f"host {host!r} is no name ({e}); {expected}") from None
    if plain != host or len(written) > 254 or not re.fullmatch(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?", written):
        raise ConfigurationError(f"host {host!r}; {expected}")
    return written, written.removesuffix(".")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def peer(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def connect(host: str, port: int, resolve: float, timeout: float) -> socket.socket:
    """A TCP connection to the first of the host's addresses that accepts, IPv6 and IPv4 in turn.

    Args:
        resolve: seconds for the name.
        timeout: seconds for all the addresses together; each gets its share of what is left.

    Raises TransportError, which says what each address answered.
    """
    whom, failures = peer(host, port), dict[str, str]()
    found = _interleaved(_resolve(names(host)[0], port, whom, resolve))
    deadline = time.monotonic() + timeout
    for number, (family, kind, proto, _, address) in enumerate(found):
        share = max(0.01, (deadline - time.monotonic()) / (len(found) - number))
        sock = None
        try:
            sock = socket.socket(family, kind, proto)
            _set_options(sock)
            sock.settimeout(share)
            sock.connect(address)
            return sock
        except OSError as e:
            if sock is not None:
                sock.close()
            failures[str(address[0])] = str(e.strerror or (f"no answer within {share:.2g} s" if isinstance(e, TimeoutError) else e))
    told = [f"{address}: {why}" for address, why in sorted(failures.items())] if len(failures) > 1 else failures.values()
    raise TransportError(f"receiver {whom}: {'; '.join(told) or 'the name has no address'}")


def _set_options(sock: socket.socket) -> None:
    for level, name, value in _OPTIONS:
        option = getattr(socket, name, None)
        if option is not None:
            try:
                sock.setsockopt(level, option, value)
            except OSError:  # a kernel without it; the deadlines above hold all the same
                pass


def _interleaved(found: _Found) -> _Found:
    """One address of each family in turn, the resolver's first family first: RFC 8305 section 4."""
    families: dict[Any, _Found] = {}
    for entry in dict.fromkeys(found):
        families.setdefault(entry[0], []).append(entry)
    return [entry for turn in itertools.zip_longest(*families.values()) for entry in turn if entry]


# -- the resolver ------------------------------------------------------------------------------------------------


class _Lookup(threading.Thread):
    """getaddrinfo has no timeout of its own, so it is asked in a thread that may be left behind."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(name="clawtrail-resolver", daemon=True)
        self._question = host, port
        self._ended: float | None = None
        self.found: _Found = []
        self.error = ""

    def run(self) -> None:
        try:
            self.found = list(socket.getaddrinfo(*self._question, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as e:
            self.error = str(getattr(e, "strerror", None) or e)
        self._ended = time.monotonic()

    def usable(self) -> bool:
        return self._ended is None or time.monotonic() - self._ended < _FRESH


def _forget() -> None:
    global _lock, _lookups
    _lock, _lookups = threading.Lock(), {}


_lock: threading.Lock
_lookups: dict[tuple[str, int], _Lookup]
_forget()
os.register_at_fork(after_in_child=_forget)  # the threads stay with the parent


def _resolve(host: str, port: int, whom: str, timeout: float) -> _Found:
    if _is_address(host):
        try:
            return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
        except OSError as e:
            raise TransportError(f"receiver {whom}: no address of this host's networks ({e.strerror})") from e
    with _lock:
        lookup = _lookups.get((host, port))
        if lookup is None or not lookup.usable():
            lookup = _lookups[host, port] = _Lookup(host, port)
            try:
                lookup.start()
            except RuntimeError as e:
                del _lookups[host, port]
                raise TransportError(f"receiver {whom}: no thread for the resolver ({e})") from e
    lookup.join(timeout)
    if lookup.is_alive():
        raise TransportError(f"receiver {whom}: the resolver did not answer within {timeout:g} s; it is still asked")
    with _lock:
        if _lookups.get((host, port)) is lookup:
            del _lookups[host, port]
    if lookup.error:
        raise TransportError(f"receiver {whom}: the name does not resolve ({lookup.error})")
    return lookup.found
