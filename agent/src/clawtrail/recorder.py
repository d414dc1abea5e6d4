"""The direct API: one call, one event, on its way off the host."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import os
import platform
import socket
import sys
import threading
import time
import weakref
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, Mapping

from . import __version__, event, syslog
from .chain import Chain
from .errors import ConfigurationError, EventError, QueueFull
from .queue import MemoryQueue
from .redact import Found, Redactor
from .shipper import Shipper
from .transport import Deadlines, TLSFiles

_SEVERITY = {"failure": 4, "denied": 4, "unknown": 5}  # RFC 5424 section 6.2.1; everything else: 6, informational
_NEVER_SECRET = ("kind", "category", "outcome", "duration_us")
_context: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("clawtrail_context", default={})


@contextmanager
def context(**fields: Any) -> Iterator[None]:
    """Inside the block every event of this thread or task carries these fields, `session` and `run` above all.

    Raises EventError at once for a field that no event could carry.
    """
    event.body("log.record", "unknown", fields)
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


@dataclass(frozen=True)
class Receipt:
    """What `record()` returns: the event is accepted. `line` is the event as it is sent and stored."""

    id: str
    epoch: str
    seq: int
    line: bytes


class Recorder:
    """Redacts, numbers, chains, frames and queues events; a thread ships them over mutual TLS.

    Args:
        address: (host, port) of an RFC 5425 receiver.
        tls: the certificate files, or the folder that `clawtrail setup` made for this client.
        agent: the name the events claim; the receiver compares it with the client certificate's common name.
        server_hostname: the name in the receiver's certificate, when it is not the host.
        queue_bytes: bytes of frames held while the receiver is away.
        full_timeout: seconds that `record()` waits for room in a full queue before it raises QueueFull.
        fingerprint_key: key of the redactor's fingerprints; see `redact.Redactor`.

    Raises ConfigurationError at once for wrong settings; an absent receiver is no error.
    """

    def __init__(
        self,
        address: tuple[str, int],
        tls: TLSFiles | str | os.PathLike[str],
        *,
        agent: str,
        agent_type: str = "python",
        agent_version: str = "",
        server_hostname: str | None = None,
        queue_bytes: int = 64 << 20,
        full_timeout: float = 5.0,
        fingerprint_key: bytes | None = None,
        facility: int = syslog.FACILITY,
        sd_id: str = syslog.SD_ID,
        deadlines: Deadlines = Deadlines(),
    ) -> None:
        host, port = address
        if not agent:
            raise ConfigurationError("agent is empty; expected the name in the client certificate")
        if not isinstance(host, str) or not host or not isinstance(port, int) or not 0 < port < 65536:
            raise ConfigurationError(f"address {address!r}; expected (host, port), for example ('logs.example', 6514)")
        files = tls if isinstance(tls, TLSFiles) else TLSFiles.bundle(tls)
        self._context = files.context()
        self.address, self.agent = (host, port), agent
        self.redactor = Redactor(fingerprint_key)
        self._server_hostname, self._deadlines = server_hostname, deadlines
        self._queue_bytes, self._full_timeout = queue_bytes, full_timeout
        self._facility, self._sd_id = facility, sd_id
        self._host = platform.node() or socket.gethostname() or "localhost"
        named = {"name": event.text(agent), "type": agent_type}
        if agent_version:
            named["version"] = agent_version
        self._identity = f'"agent":{event.dumps(named)},"host":{event.dumps({"name": self._host, "boot": _boot_id()})},'
        self._start()
        _live.add(self)

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._chain = Chain()
        self._queue = MemoryQueue(self._queue_bytes)
        self._shipper = Shipper(self._queue, self.address, self._context, self._server_hostname, self._deadlines)
        self._closed = False
        self.accepted = 0
        self.dropped: dict[str, int] = {}
        self._unreported: dict[str, Any] = {}

    # -- recording ---------------------------------------------------------------------------------------------

    def record(self, kind: str, outcome: str = "success", **fields: Any) -> Receipt:
        """Records one event and returns when it is accepted.

        Args:
            kind: one of `event.KINDS`, for example `tool.call`.
            outcome: attempt, success, failure, denied or unknown.
            fields: the event's groups, for example `session="…"`, `tool={"name": "exec"}`, `params={…}`;
                `time` is the moment in seconds since the epoch, now unless given.

        Raises EventError for a bad event, QueueFull when the queue has no room; in both cases nothing is recorded,
        and the second is counted and reported by a `system.drop` event as soon as there is room.
        """
        moment = _moment(fields.pop("time", None))
        claim = event.written(fields.pop("claim", None) or self.agent)
        ambient = _context.get()
        body = event.body(kind, outcome, {**ambient, **fields} if ambient else fields)
        self._redact(body)
        return self._accept(body, moment, claim)

    def _redact(self, body: dict[str, Any]) -> None:
        found, written = Found(), {k: v for k, v in body.items() if k not in _NEVER_SECRET}
        try:
            body.update((name, self.redactor.value(value, found)) for name, value in written.items())
        except Exception as e:  # what could not be redacted is not stored: its size and the fact are
            for name in written:
                del body[name]
            body.update(session=None, run=None)
            body["content"] = {"size": len(event.dumps(written).encode())}
            body["error"] = {"type": "redaction", "message": f"the redactor failed: {type(e).__name__}"}
            return
        if found.count:
            content = body.get("content")
            body["content"] = _with_redactions(content if isinstance(content, dict) else {"excerpt": content} if content else {}, found)

    def _accept(self, body: dict[str, Any], moment: str, claim: str) -> Receipt:
        ident = event.uuid7()
        tail = event.fit(body)[1:]
        head = f'{{"v":{event.VERSION},"id":"{ident}","ts":"{moment}",{self._identity}'
        size = len(head) + len(tail) + 1024
        if not self._queue.has_room(size):
            self._wait_for_room(size)
        with self._lock:
            if self._closed:
                self._drop("closed", moment)
                raise QueueFull("the recorder is closed; the event was not accepted")
            if self._chain.seq == 0:
                _unclosed.add(self)
                self._append_own("system.start", moment, health={"library": f"clawtrail {__version__}", "pid": self._pid})
            if self._unreported:
                report, self._unreported = self._unreported, {}
                self._append_own("system.drop", moment, "failure", dropped=report)
            line = self._append(body, head, tail, moment, claim)
            receipt = Receipt(ident, self._chain.epoch, self._chain.seq, line)
        self._shipper.wake()
        return receipt

    def _append_own(self, kind: str, moment: str, outcome: str = "success", **fields: Any) -> None:
        body = event.body(kind, outcome, fields)
        head = f'{{"v":{event.VERSION},"id":"{event.uuid7()}","ts":"{moment}",{self._identity}'
        self._append(body, head, event.fit(body)[1:], moment, self.agent)

    def _append(self, body: dict[str, Any], head: str, tail: str, moment: str, claim: str) -> bytes:
        line = self._chain.link(head, tail)
        self._queue.append(self._frame(body, line, moment, claim))
        self.accepted += 1
        return line

    def _frame(self, body: dict[str, Any], line: bytes, moment: str, claim: str) -> bytes:
        params = {
            "agent": claim[:255],
            "epoch": self._chain.epoch,
            "seq": str(self._chain.seq),
            "category": body["category"],
            "outcome": body["outcome"],
        }
        for key, value in (
            ("session", body["session"]),
            ("run", body["run"]),
            ("tool", _member(body, "tool")),
            ("credential", _member(body, "credential")),
        ):
            if value:
                params[key] = value
        return syslog.frame(
            syslog.message(
                line,
                severity=_severity(body),
                time=moment,
                host=self._host,
                app=claim,
                procid=str(self._pid),
                msgid=body["kind"],
                sd=syslog.structured_data(params, self._sd_id),
                facility=self._facility,
            )
        )

    def _wait_for_room(self, size: int) -> None:
        timeout = 0.0 if _in_event_loop() else self._full_timeout
        if not self._queue.wait_for_room(size, timeout):
            with self._lock:
                self._drop("queue-full", event.timestamp())
            raise QueueFull(
                f"the queue is full: {self._queue.size} bytes wait for {self.address[0]}:{self.address[1]} "
                f"({self._shipper.last_error or 'connected'}); the event was not accepted"
            )

    def _drop(self, reason: str, moment: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        report = self._unreported or {"n": 0, "reason": reason, "from": moment}
        report["n"] += 1
        self._unreported = report

    # -- state -------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counters: accepted = proven + queued at every moment; dropped by reason; connected, connects, resent, last_error."""
        with self._lock:
            queued = len(self._queue)
            return {
                "agent": self.agent,
                "epoch": self._chain.epoch,
                "accepted": self.accepted,
                "proven": self.accepted - queued,
                "queued": queued,
                "unsent": self._queue.unsent,
                "queue_bytes": self._queue.size,
                "dropped": dict(self.dropped),
                "connected": self._shipper.connected,
                "connects": self._shipper.connects,
                "resent": self._shipper.resent,
                "last_error": self._shipper.last_error,
                "proof": "window",
            }

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits until nothing is unsent, at most `timeout` seconds. True: everything was handed to the connection."""
        deadline = time.monotonic() + timeout
        while self._queue.unsent and time.monotonic() < deadline:
            time.sleep(0.005)
        return not self._queue.unsent

    def close(self, timeout: float = 3.0) -> bool:
        """Records `system.stop`, sends what waits, closes. Bounded by `timeout` seconds. True: the receiver has read all."""
        with self._lock:
            if self._closed:
                return len(self._queue) == 0
            if self._chain.seq:
                self._append_own("system.stop", event.timestamp(), health={"reason": "close"})
            self._closed = True
        _live.discard(self)
        _unclosed.discard(self)
        return self._shipper.close(timeout)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Recorder agent={self.agent} accepted={self.accepted} {self._shipper!r}>"

    def _after_fork(self) -> None:
        """A child is another process life: its own epoch, queue and connection; the parent ships what the parent recorded."""
        self._shipper.abandon()
        self._start()


def _moment(seconds: Any) -> str:
    try:
        return event.timestamp(seconds)
    except (TypeError, ValueError, OverflowError, OSError):
        raise EventError(f"time {seconds!r}; expected seconds since the epoch") from None


def _with_redactions(content: dict[str, Any], found: Found) -> dict[str, Any]:
    """The content group with what was removed from this event, beside what its producer removed from the text before."""
    before = Found()
    if isinstance(given := content.get("redactions"), int):
        before.count = given
    before.classes, before.fps = (str(content.get(k, "")).split() for k in ("classes", "fps"))
    if set(found.fps) <= set(before.fps) and set(found.classes) <= set(before.classes):
        return content
    before.merge(found)
    return {**content, **before.fields()}


def _member(body: Mapping[str, Any], group: str) -> str | None:
    value = body.get(group)
    name = value.get("name") if isinstance(value, dict) else None
    return name[:255] if isinstance(name, str) else None


def _severity(body: Mapping[str, Any]) -> int:
    level = body.get("log", {}).get("severity") if isinstance(body.get("log"), dict) else None
    return level if isinstance(level, int) and 0 <= level <= 7 else _SEVERITY.get(body["outcome"], 6)


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as f:
            return f.read().strip()
    except OSError:
        return "unknown"


_live: weakref.WeakSet[Recorder] = weakref.WeakSet()
_unclosed: set[Recorder] = set()  #: from its first event on a recorder lives until it is closed, whoever lets go of it


@atexit.register
def _close_all() -> None:
    for recorder in list(_unclosed):
        try:
            recorder.close()
        except Exception as e:  # the interpreter is going; say what was not sent
            print(f"clawtrail: close at exit failed: {e}", file=sys.stderr)


def _reset_after_fork() -> None:
    for recorder in list(_live):
        recorder._after_fork()
    if util := sys.modules.get("multiprocessing.util"):
        util.register_after_fork(_close_all, _close_at_end_of_worker)


def _close_at_end_of_worker(_: object = None) -> None:
    """A worker of multiprocessing leaves by os._exit(), past atexit; it runs its own list of finalizers."""
    sys.modules["multiprocessing.util"].Finalize(None, _close_all, exitpriority=0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
if (process := sys.modules.get("multiprocessing.process")) and process.parent_process() is not None:
    _close_at_end_of_worker()  # imported for the first time inside of a worker
