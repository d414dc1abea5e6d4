"""A `logging.Handler` that ships records as audit events over RFC 5425 syslog/TLS. Loads from dictConfig and YAML.

It takes the place of `logging.handlers.SysLogHandler` in an existing configuration: the same `address`, `socktype`
and `facility` in every spelling that occurs, `ssl` in place of a hand-made wrapper. Wrong settings raise at once;
a receiver that is away never does, and `emit` never touches the network.
"""

from __future__ import annotations

import difflib
import logging
import os
import socket
import ssl as _ssl
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Any, Mapping

from . import event, syslog
from .errors import ConfigurationError, EventError
from .recorder import Recorder
from .redact import Found
from .transport import TLSFiles

_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0", "none", ""}
_STREAM = {"sock_stream", "socket.sock_stream", "ext://socket.sock_stream", "tcp", "stream"}
_DGRAM = {"sock_dgram", "socket.sock_dgram", "ext://socket.sock_dgram", "udp", "dgram"}
_TLS_KEYS = ("cafile", "certfile", "keyfile", "keyfile_password", "server_hostname")
_KEYS = ("address", "facility", "socktype", "ssl", "agent", "tls", "queue_bytes", "full_timeout", "sd_id", *_TLS_KEYS)
_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None)))
_GROUPS = frozenset(event.FIELDS) - _STANDARD


class TLSSysLogHandler(logging.Handler):
    """Each log record becomes one event; with `extra={"kind": "tool.call", "tool": {…}}` it becomes that event.

    Args:
        address: [host, port] or "host:port".
        socktype: SOCK_STREAM in any spelling; a datagram socket cannot carry TLS and is refused.
        ssl: true (the default), or a mapping of the TLS settings below. There is no way to send in clear.
        cafile: the CA of the receiver. `client.crt` and `client.key` beside it are used as client certificate.
        certfile, keyfile, keyfile_password: the client certificate, when it is elsewhere.
        tls: instead of the files, the folder that `clawtrail setup` made for this client.
        server_hostname: the name in the receiver's certificate, when it is not the host.
        agent: the name the events claim; else the record's `agent_id`, else the host's name.
        facility: number or name, log audit (13) unless given.
        queue_bytes, full_timeout, sd_id: see `Recorder`.

    Paths may contain environment variables. A record of the logger `clawtrail` is never shipped by this handler.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        for name in settings:
            if name not in _KEYS:
                near = difflib.get_close_matches(name, _KEYS, 1)
                raise TypeError(f"unknown setting {name!r}; " + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KEYS)}"))
        settings = {k: _plain(v) for k, v in settings.items()}
        tls = _ssl_settings(settings)
        _check_socktype(settings.get("socktype"))
        self._agent = settings.get("agent")
        options = {k: settings[k] for k in ("queue_bytes", "full_timeout", "sd_id") if k in settings}
        self.recorder = Recorder(
            _address(settings.get("address")),
            _tls_files(tls),
            agent=self._agent or os.environ.get("CLAWTRAIL_AGENT") or socket.gethostname(),
            server_hostname=tls.get("server_hostname"),
            facility=_facility(settings.get("facility")),
            **options,
        )

    def emit(self, record: logging.LogRecord) -> None:
        """Never raises into the agent: what goes wrong is counted and goes to `handleError`."""
        if f"{record.name}.".startswith("clawtrail."):
            return
        try:
            kind, outcome, fields = self._event(record)
            try:
                self.recorder.record(kind, outcome, time=record.created, **fields)
            except EventError as e:  # what was meant does not fit the schema; that it was logged is still on record
                kept = {k: fields[k] for k in ("content", "log", "claim") if k in fields}
                self.recorder.record("log.record", "unknown", time=record.created, error={"type": "EventError", "message": str(e)}, **kept)
                self.handleError(record)
        except Exception:
            self.handleError(record)

    def _event(self, record: logging.LogRecord) -> tuple[str, str, dict[str, Any]]:
        given = record.__dict__
        fields = {name: given[name] for name in _GROUPS & given.keys()}
        if isinstance(fields.get("tool"), str):
            fields["tool"] = {"name": fields["tool"]}
        message = self._text(record, fields)
        redacted = self.recorder.redactor.string(message, found := Found())
        more = fields.get("content", {})
        fields["content"] = event.content(redacted, len(message.encode("utf-8", "replace")), **found.fields())
        fields["content"] |= more if isinstance(more, dict) else {"extra": more}
        fields["log"] = {"logger": record.name, "level": record.levelname, "severity": _severity(record.levelno)}
        claim = self._agent or given.get("agent_id")
        if claim:
            fields["claim"] = str(claim)
        return given.get("kind", "log.record"), given.get("outcome", "success" if "kind" in given else "unknown"), fields

    def _text(self, record: logging.LogRecord, fields: dict[str, Any]) -> str:
        try:
            return self.format(record)
        except Exception as e:  # a record that its formatter cannot write is an event all the same
            fields["error"] = {"type": type(e).__name__, "message": f"the formatter failed: {e}"}
            return f"{event.written(record.msg)} {event.written(record.args)}" if record.args else event.written(record.msg)

    def stats(self) -> dict[str, Any]:
        """The recorder's counters; see `Recorder.stats`."""
        return self.recorder.stats()

    def flush(self) -> None:
        """Waits until all is handed to the connection, at most 3 seconds; not at all while there is none."""
        if self.recorder.stats()["connected"]:
            self.recorder.flush(3.0)

    def close(self) -> None:
        """Bounded: sends what waits, at most 3 seconds."""
        recorder = getattr(self, "recorder", None)
        if recorder is not None:
            recorder.close()
        super().close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.recorder!r}>"


def _plain(value: Any) -> Any:
    """dictConfig hands over converting containers: plain ones, item by item, so that `ext://` inside is resolved."""
    if isinstance(value, Mapping):
        return {k: _plain(value[k]) for k in value}
    if isinstance(value, (list, tuple)):
        return [_plain(value[i]) for i in range(len(value))]
    return value


def _ssl_settings(settings: dict[str, Any]) -> dict[str, Any]:
    given = settings.get("ssl", True)
    tls = {k: settings[k] for k in (*_TLS_KEYS, "tls") if settings.get(k) is not None}
    if isinstance(given, dict):
        for name in given:
            if name not in _TLS_KEYS:
                near = difflib.get_close_matches(name, _TLS_KEYS, 1)
                raise ConfigurationError(f"ssl: unknown setting {name!r}; known: {', '.join(near or _TLS_KEYS)}")
        return tls | given
    if isinstance(given, _ssl.SSLContext):
        raise ConfigurationError("ssl: got an SSLContext; expected true with cafile, certfile and keyfile")
    word = str(given).strip().lower()
    if word in _TRUE:
        return tls
    if word in _FALSE:
        raise ConfigurationError(f"ssl: {given!r}; an audit trail is never sent in clear: set ssl: true and cafile")
    raise ConfigurationError(f"ssl: {given!r}; expected true or a mapping of {', '.join(_TLS_KEYS)}")


def _check_socktype(value: Any) -> None:
    if value is None or value == socket.SOCK_STREAM:
        return
    word = str(value).strip().lower()
    if value == socket.SOCK_DGRAM or word in _DGRAM:
        raise ConfigurationError(f"socktype: {value!r}; TLS needs a stream: set socktype: socket.SOCK_STREAM")
    if word not in _STREAM:
        raise ConfigurationError(f"socktype: {value!r}; expected socket.SOCK_STREAM")


def _address(value: Any) -> tuple[str, int]:
    if isinstance(value, str) and ":" in value:
        value = value.rsplit(":", 1)
    if isinstance(value, (list, tuple)) and len(value) == 2:
        host, port = value
        if isinstance(port, str) and port.isdigit():
            port = int(port)
        if isinstance(host, str) and isinstance(port, int):
            return os.path.expandvars(host).strip("[]"), port
    raise ConfigurationError(f"address: {value!r}; expected [host, port], for example [logs.example, 6514]")


def _tls_files(tls: Mapping[str, Any]) -> TLSFiles:
    path = {k: os.path.expandvars(os.path.expanduser(str(tls[k]))) for k in ("cafile", "certfile", "keyfile", "tls") if tls.get(k)}
    if "tls" in path:
        return TLSFiles.bundle(path["tls"])
    ca = path.get("cafile") or os.environ.get("CLAWTRAIL_CA_FILE")
    if not ca:
        raise ConfigurationError("cafile is missing; expected the PEM file of the CA that signed the receiver's certificate")
    if "certfile" not in path and "keyfile" not in path:
        return TLSFiles.beside(ca)
    cert, key = path.get("certfile"), path.get("keyfile") or path.get("certfile")
    return TLSFiles(Path(ca), Path(cert) if cert else None, Path(key) if key else None, tls.get("keyfile_password"))  # a PEM may hold both


def _facility(value: Any) -> int:
    if value is None:
        return syslog.FACILITY
    number = SysLogHandler.facility_names.get(str(value).lower(), value)
    if isinstance(number, str) and number.isdigit():
        number = int(number)
    if not isinstance(number, int) or not 0 <= number <= 23:
        raise ConfigurationError(f"facility: {value!r}; expected a number from 0 to 23 or a name such as local0")
    return number


def _severity(level: int) -> int:
    """RFC 5424 severity of a logging level."""
    for limit, severity in ((50, 2), (40, 3), (30, 4), (20, 6)):
        if isinstance(level, int) and level >= limit:  # a record made from foreign data may have any level
            return severity
    return 7
