"""The settings of the logging handler, in every spelling that logging configurations use, or a refusal that says what to write.

No setting, and no way to write one, leads to a connection that is in clear or not verified.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import socket
import ssl as _ssl
from dataclasses import dataclass, field, replace
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Any, Mapping, NoReturn

from .errors import ConfigurationError
from .transport import Deadlines, TLSFiles

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0", "none", ""}
_STREAM = {"sock_stream", "socket.sock_stream", "ext://socket.sock_stream", "tcp", "stream", "1"}
_DGRAM = {"sock_dgram", "socket.sock_dgram", "ext://socket.sock_dgram", "udp", "dgram", "2"}
_TLS = ("cafile", "certfile", "keyfile", "keyfile_password", "server_hostname", "minimum_version")
_SIZES, _DURATIONS = ("quota", "window"), ("full_timeout", "retain", "heartbeat")
_AS_GIVEN = ("agent_type", "agent_version", "durability", "when_full", "proof", "sd_id")
_KEYS = ("address", "facility", "socktype", "ssl", "agent", "timeout", "tls", *_TLS, "spool", *_AS_GIVEN, *_SIZES, *_DURATIONS)
#: What the same thing is called by others: `ssl` module, tlssysloghandler, rfc5424-logging-handler, logstash-async …
_ELSEWHERE = {
    "ssl": "secure tls_enable use_tls use_ssl ssl_enable enable_tls enable_ssl tls_enabled ssl_context sslcontext context security",
    "cafile": "ca ca_certs ca_cert ca_file cacert cadata capath ca_bundle tls_ca_bundle tls_ca ssl_ca root_ca verify_locations trusted_ca",
    "certfile": "cert certificate cert_file client_cert tls_client_cert ssl_cert ssl_certfile tls_cert",
    "keyfile": "key key_file private_key client_key tls_client_key ssl_key ssl_keyfile tls_key",
    "keyfile_password": "password passphrase key_password tls_key_password ssl_password",
    "minimum_version": "ssl_version tls_version min_version tls_min_version protocol",
    "server_hostname": "sni servername server_name assert_hostname",
    "address": "host port hosts hostname server endpoints endpoint url",
    "socktype": "transport sock_type socket_type proto",
    "agent": "appname app_name ident tag program",
    "sd_id": "enterprise_id",
    "spool": "database_path queue_dir spool_dir path directory",
    "quota": "queue_bytes queue_size max_bytes maxsize capacity",
    "when_full": "overflow on_full full_policy",
}  # fmt: skip
_HERE = {theirs: ours for ours, names in _ELSEWHERE.items() for theirs in names.split()}
_ALWAYS = frozenset(
    "tls_verify ssl_verify verify verify_ssl verify_mode verify_peer cert_reqs check_hostname insecure insecure_skip_verify ciphers".split()
)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_BYTES = {"": 1, "b": 1} | {f"{p}{i}b": (1024 if i else 1000) ** n for n, p in enumerate("kmgt", 1) for i in ("", "i")}
_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_VERSIONS = (_ssl.TLSVersion.TLSv1_2, _ssl.TLSVersion.TLSv1_3)
_NUMBER = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([a-z]*)", re.ASCII)


@dataclass(frozen=True)
class Settings:
    """What `Recorder` wants. `agent` is None when the records are to say who speaks; `options` has only what was given."""

    address: Any
    tls: TLSFiles
    agent: str | None
    name: str
    options: dict[str, Any]


def parse(given: Mapping[str, Any]) -> Settings:
    """Reads a handler's keyword arguments. Raises TypeError for an unknown name, ConfigurationError for a bad value."""
    for name in given:
        if name not in _KEYS:
            _unknown(name, _KEYS, TypeError)
    values = {k: v for k, v in plain(given).items() if k == "ssl" or v is not None}
    _check_socktype(values.get("socktype"))
    endpoints = addresses(values.get("address"))
    tls = _tls(values)
    options: dict[str, Any] = {k: _word(k, values[k]) for k in _AS_GIVEN if k in values}
    options |= {k: size(k, values[k]) for k in _SIZES if k in values}
    options |= {k: duration(k, values[k]) for k in _DURATIONS if k in values}
    if "spool" in values:
        options["spool"] = _path("spool", values["spool"])
    if "timeout" in values:
        seconds = duration("timeout", values["timeout"])
        options["deadlines"] = Deadlines(connect=seconds, handshake=seconds)
    if "facility" in values:
        options["facility"] = _facility(values["facility"])
    options |= {k: tls.pop(k) for k in ("server_hostname", "minimum_version") if k in tls}
    agent = _word("agent", values["agent"]) if "agent" in values else None
    name = agent or os.environ.get("CLAWTRAIL_AGENT") or socket.gethostname()
    return Settings(endpoints[0] if len(endpoints) == 1 else endpoints, _files(tls), agent, name, options)


def plain(value: Any) -> Any:
    """dictConfig hands over converting containers: plain ones, item by item, so that `ext://` inside is resolved."""
    if isinstance(value, Mapping):
        return {k: plain(value[k]) for k in value}
    if isinstance(value, (list, tuple)):
        return [plain(value[i]) for i in range(len(value))]
    return value


def _unknown(name: str, known: tuple[str, ...], error: type[Exception], where: str = "") -> NoReturn:
    if name in _ALWAYS:
        raise error(f"{where}unknown setting {name!r}; leave it out: the receiver's certificate and name are always verified")
    near = [_HERE[name]] if _HERE.get(name) in known else difflib.get_close_matches(name, known, 1)
    raise error(f"{where}unknown setting {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"))


def expand(name: str, value: str) -> str:
    """The text with `$NAME` and `${NAME}` replaced from the environment. An unset variable is an error, not an empty text."""

    def variable(m: re.Match[str]) -> str:
        key = m[1] or m[2]
        if not os.environ.get(key):
            raise ConfigurationError(f"{name}: {value!r}: the environment variable {key} is not set")
        return os.environ[key]

    return _VARIABLE.sub(variable, value)


def _word(name: str, value: Any) -> Any:
    """The value; when it is wholly an environment variable, that variable's."""
    return expand(name, value) if isinstance(value, str) and _VARIABLE.fullmatch(value) else value


def _path(name: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not str(value):
        raise ConfigurationError(f"{name}: {value!r}; expected a path")
    return os.path.expanduser(expand(name, str(value)))


# -- where to --------------------------------------------------------------------------------------------------------


def addresses(value: Any) -> list[tuple[str, int]]:
    """[host, port], "host:port", "[v6]:port", {"host": …, "port": …}, or a list of these; in their order."""
    one = _address(value)
    many = [one] if one else [_address(v) for v in value] if isinstance(value, list) else []
    found = [a for a in many if a]
    if not found or len(found) != len(many):
        raise ConfigurationError(f"address: {value!r}; expected [host, port] or a list of such pairs, for example [logs.example, 6514]")
    return found


def _address(value: Any) -> tuple[str, int] | None:
    host: Any
    port: Any
    if isinstance(value, str):
        host, _, port = expand("address", value).strip().rpartition(":")
        if ":" in host and not (host.startswith("[") and host.endswith("]")):
            return None  # which colon of a bare IPv6 address precedes the port, nobody can tell
    elif isinstance(value, Mapping) and set(value) == {"host", "port"}:
        host, port = value["host"], value["port"]
    elif isinstance(value, (list, tuple)) and len(value) == 2:
        host, port = value
    else:
        return None
    port = expand("address", port) if isinstance(port, str) else port
    if isinstance(port, str) and port.isascii() and port.isdigit():
        port = int(port)
    if not isinstance(host, str) or type(port) is not int:
        return None
    host = expand("address", host).strip()
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    return (host, port) if host and 0 < port < 65536 and not re.search(r"[\s/\[\]]", host) else None


def _check_socktype(value: Any) -> None:
    if value is None or value == socket.SOCK_STREAM:
        return
    word = str(value).strip().lower()
    if value == socket.SOCK_DGRAM or word in _DGRAM:
        raise ConfigurationError(f"socktype: {value!r}; TLS needs a stream: set socktype: socket.SOCK_STREAM")
    if word not in _STREAM:
        raise ConfigurationError(f"socktype: {value!r}; expected socket.SOCK_STREAM")


def _facility(value: Any) -> int:
    number = SysLogHandler.facility_names.get(str(value).lower(), value)
    if isinstance(number, str) and number.isascii() and number.isdigit():
        number = int(number)
    if type(number) is not int or not 0 <= number <= 23:
        raise ConfigurationError(f"facility: {value!r}; expected a number from 0 to 23 or a name such as local0")
    return number


# -- TLS -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LiveContext(TLSFiles):
    """A program's own SSLContext in the place of files. It is judged again at each use: a context can be changed later."""

    live: _ssl.SSLContext = field(default_factory=lambda: _ssl.SSLContext(_ssl.PROTOCOL_TLS_CLIENT))

    def context(self, *_: Any, **__: Any) -> _ssl.SSLContext:
        c = self.live
        weak = [s["name"] for s in c.get_ciphers() if s.get("strength_bits", 0) < 128 or s.get("auth") == "auth-null"]
        for wrong, reason in (
            (c.protocol == _ssl.PROTOCOL_TLS_SERVER, "it is a server's"),
            (c.verify_mode != _ssl.CERT_REQUIRED, f"verify_mode is {c.verify_mode.name}, expected CERT_REQUIRED"),
            (not c.check_hostname, "check_hostname is False"),
            (c.minimum_version not in _VERSIONS, "minimum_version is below TLSv1.2"),
            (bool(weak), f"it allows ciphers that hide nothing or know nobody: {' '.join(weak[:3])}"),
        ):
            if wrong:
                raise ConfigurationError(f"ssl: this SSLContext would not do: {reason}; use ssl.create_default_context(cafile=…)")
        return c


def _tls(values: Mapping[str, Any]) -> dict[str, Any]:
    given = values.get("ssl", True)
    tls: dict[str, Any] = {k: values[k] for k in (*_TLS, "tls") if k in values}
    if isinstance(given, dict):
        for name in given:
            if name not in _TLS:
                _unknown(name, _TLS, ConfigurationError, "ssl: ")
            if name in tls and given[name] != tls[name]:
                raise ConfigurationError(f"{name}: given twice, beside ssl and in it; expected it once")
        tls |= {k: v for k, v in given.items() if v is not None}
    elif isinstance(given, _ssl.SSLContext):
        if more := tls.keys() - {"server_hostname"}:
            raise ConfigurationError(f"{min(more)}: given beside an SSLContext; expected it in the context, or ssl: true")
        tls["live"] = given
    elif (word := str(given).strip().lower()) in _FALSE:
        raise ConfigurationError(f"ssl: {given!r}; an audit trail is never sent in clear: set ssl: true and cafile")
    elif word not in _TRUE:
        raise ConfigurationError(f"ssl: {given!r}; expected true or a mapping of {', '.join(_TLS)}")
    if "server_hostname" in tls:
        name = tls["server_hostname"] = _word("server_hostname", tls["server_hostname"])
        if not isinstance(name, str) or not name.strip() or name.startswith("."):
            raise ConfigurationError(f"server_hostname: {name!r}; expected the name in the receiver's certificate")
    if "minimum_version" in tls:
        tls["minimum_version"] = _version(tls["minimum_version"])
    return tls


def _version(value: Any) -> str:
    word = value.name if isinstance(value, _ssl.TLSVersion) else str(value)
    word = re.sub(r"^(ext://)?(ssl\.)?(tlsversion\.)?(tls)?[ _]?v?", "", word.strip().lower()).replace("_", ".")
    if word not in ("1.2", "1.3"):
        raise ConfigurationError(f"minimum_version: {value!r}; expected TLSv1.3 or TLSv1.2")
    return f"TLSv{word}"


def _files(tls: dict[str, Any]) -> TLSFiles:
    if "live" in tls:
        own = LiveContext(Path(), live=tls["live"])
        own.context()
        return own
    path = {k: Path(_path(k, tls[k])) for k in ("cafile", "certfile", "keyfile", "tls") if k in tls}
    password = _word("keyfile_password", tls.get("keyfile_password"))
    if password is not None and not isinstance(password, (str, int)):
        raise ConfigurationError(f"keyfile_password: {type(password).__name__}; expected text")
    if "tls" in path and len(path) > 1:
        raise ConfigurationError(f"tls names a folder with all of the files; leave out {' '.join(sorted(path.keys() - {'tls'}))}")
    if "tls" in path:
        files = TLSFiles.bundle(path["tls"])
    elif not (ca := path.get("cafile") or os.environ.get("CLAWTRAIL_CA_FILE")):
        raise ConfigurationError("cafile is missing; expected the PEM file of the CA that signed the receiver's certificate")
    elif "certfile" not in path and "keyfile" not in path:
        files = TLSFiles.beside(ca)
    else:
        files = TLSFiles(Path(ca), path.get("certfile"), path.get("keyfile") or path.get("certfile"))  # a PEM may hold both
    return replace(files, password=str(password)) if password is not None else files


# -- sizes and durations ---------------------------------------------------------------------------------------------


def _quantity(name: str, value: Any, units: Mapping[str, float], expected: str) -> float:
    word = _word(name, value)
    if isinstance(word, (int, float)) and not isinstance(word, bool) and math.isfinite(word) and word >= 0:
        return word
    m = _NUMBER.fullmatch(word.strip().lower()) if isinstance(word, str) else None
    if not m or m[2] not in units:
        raise ConfigurationError(f"{name}: {value!r}; expected {expected}")
    return float(m[1]) * units[m[2]]


def size(name: str, value: Any) -> int:
    """Bytes: 268435456, "256 MiB" (1024²), "64MB" (1000²)."""
    return int(_quantity(name, value, _BYTES, 'bytes, such as 268435456 or "256 MiB"'))


def duration(name: str, value: Any) -> float:
    """Seconds: 3, 0.5, "3s", "500ms", "24h"."""
    return float(_quantity(name, value, _SECONDS, 'seconds, such as 3, "3s" or "24h"'))
