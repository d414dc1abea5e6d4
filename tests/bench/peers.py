"""Who is measured: a name, how the sink must listen, how its handler is made and what it has to be told.

Every peer gets the same event; who needs a formatter gets the same JSON formatter. TLS everywhere with a verified
receiver and a client certificate, except where a peer knows no TLS, which is in its favour.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import socket
import ssl
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from .events import MESSAGE, Event, JSONFormatter, direct

AGENT = "bench"


@dataclass(frozen=True)
class Place:
    """Where a handler finds its receiver, its certificates and its disk."""

    port: int
    certificates: Path
    spool: Path

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.certificates / "ca.crt"))
        context.load_cert_chain(self.certificates / "client.crt", self.certificates / "client.key")
        return context


class Subject:
    """One peer at work: `prepare` an event outside of what is timed, `call` with what came of it."""

    def __init__(self, handler: logging.Handler) -> None:
        self.handler = handler
        self.errors = 0
        self._log = logging.getLogger("bench.agent")
        self._log.setLevel(logging.INFO)
        self._log.propagate = False
        self._log.addHandler(handler)
        handler.handleError = self._count  # type: ignore[method-assign]

    def _count(self, record: logging.LogRecord) -> None:
        self.errors += 1

    def prepare(self, event: Event) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (MESSAGE, *event[:3]), {"extra": event.fields}

    @property
    def call(self) -> Callable[..., Any]:
        return self._log.info

    def stats(self) -> dict[str, Any]:
        """Our own counters; a peer has none."""
        stats = getattr(self.handler, "stats", None)
        return dict(stats()) if stats else {}


class Direct(Subject):
    """`Recorder.record`, past `logging`."""

    def prepare(self, event: Event) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return ("tool.result", "success"), direct(event)

    @property
    def call(self) -> Callable[..., Any]:
        return self.handler.recorder.record  # type: ignore[attr-defined, no-any-return]


@dataclass(frozen=True)
class Peer:
    """`patience`: seconds without a delivery after which what is missing will not come any more.

    `share`: the part of a measurement's events that a slow peer is given, so that a run stays bounded.
    """

    mode: str
    make: Callable[[Place], logging.Handler]
    package: str = ""
    patience: float = 3.0
    share: float = 1.0
    ours: bool = False
    delivers: bool = True
    subject: type[Subject] = Subject
    environment: tuple[tuple[str, str], ...] = ()


def _formatted(handler: logging.Handler) -> logging.Handler:
    handler.setFormatter(JSONFormatter())
    return handler


class _Null(logging.Handler):
    """Takes the record and does nothing: the floor that `logging` itself sets."""

    def emit(self, record: logging.LogRecord) -> None:
        pass


class _SyncWrite(logging.Handler):
    """The least that a synchronous handler can do: format, one `sendall` over TLS."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        sock = socket.create_connection(place.address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = place.context().wrap_socket(sock, server_hostname=place.address[0])

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._socket.sendall(self.format(record).encode() + b"\n")
        except OSError:
            self.handleError(record)


def _stdlib(place: Place) -> logging.Handler:
    return _formatted(logging.handlers.SysLogHandler(place.address, socktype=socket.SOCK_STREAM))


def _tlssysloghandler(place: Place) -> logging.Handler:
    from tlssysloghandler import TLSSysLogHandler

    return _formatted(TLSSysLogHandler(place.address, socktype=socket.SOCK_STREAM, secure=place.context()))


def _rfc5424(place: Place) -> logging.Handler:
    from rfc5424logging import Rfc5424SysLogHandler, transport

    return _formatted(
        Rfc5424SysLogHandler(
            place.address,
            socktype=socket.SOCK_STREAM,
            framing=transport.FRAMING_OCTET_COUNTING,
            tls_enable=True,
            tls_ca_bundle=str(place.certificates / "ca.crt"),
            tls_client_cert=str(place.certificates / "client.crt"),
            tls_client_key=str(place.certificates / "client.key"),
        )
    )


def _otel(place: Place) -> logging.Handler:
    warnings.simplefilter("ignore")
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.sdk._logs import LoggerProvider, LoggingHandler
    from opentelemetry.sdk._logs.export import BatchLogRecordProcessor

    provider = LoggerProvider()
    provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter(endpoint=f"http://127.0.0.1:{place.port}/v1/logs")))
    return LoggingHandler(logger_provider=provider)


def _logstash(place: Place) -> logging.Handler:
    from logstash_async.handler import AsynchronousLogstashHandler

    return _formatted(
        AsynchronousLogstashHandler(
            *place.address,
            database_path=None,
            ssl_enable=True,
            ca_certs=str(place.certificates / "ca.crt"),
            certfile=str(place.certificates / "client.crt"),
            keyfile=str(place.certificates / "client.key"),
        )
    )


def _ours(**settings: Any) -> Callable[[Place], logging.Handler]:
    def make(place: Place) -> logging.Handler:
        from clawtrail import TLSSysLogHandler

        return TLSSysLogHandler(address=list(place.address), tls=os.fspath(place.certificates), agent=AGENT, spool=os.fspath(place.spool), **settings)

    return make


#: Ours, as it comes: durability `write` on a spool on disk, redaction, numbers, hash chain, proof `window`.
OURS = "clawtrail"
PEERS: dict[str, Peer] = {
    "null": Peer("tcp", lambda _: _Null(), delivers=False),
    "sync TLS write": Peer("tls", lambda place: _formatted(_SyncWrite(place))),
    "stdlib SysLogHandler": Peer("tcp", _stdlib),
    "tlssysloghandler": Peer("tls", _tlssysloghandler, "tlssysloghandler"),
    "rfc5424": Peer("tls", _rfc5424, "rfc5424-logging-handler"),
    "OTel": Peer("http", _otel, "opentelemetry-sdk", patience=8.0),
    "logstash-async": Peer("tls", _logstash, "python-logstash-async", patience=30.0, share=0.1),
    OURS: Peer("tls", _ours(), "clawtrail", patience=15.0, ours=True),
    "clawtrail memory": Peer("tls", _ours(durability="memory"), ours=True, patience=15.0),
    "clawtrail disk": Peer("tls", _ours(durability="disk"), ours=True, patience=15.0),
    "clawtrail pure": Peer("tls", _ours(), ours=True, patience=15.0, environment=(("CLAWTRAIL_NATIVE", "0"),)),
    "record()": Peer("tls", _ours(), ours=True, patience=15.0, subject=Direct),
}
