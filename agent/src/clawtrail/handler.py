"""A `logging.Handler` that ships records as audit events over RFC 5425 syslog/TLS. Loads from dictConfig and YAML.

It takes the place of `logging.handlers.SysLogHandler` in an existing configuration: the same `address`, `socktype`
and `facility` in every spelling that occurs, `ssl` in place of a hand-made wrapper. Wrong settings raise at once;
a receiver that is away never does, and `emit` never touches the network.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import traceback
from itertools import islice
from typing import Any, Iterator

from . import event, settings
from .errors import QueueFull, SpoolError
from .lane import ATTRIBUTES, MEANT, STANDARD
from .recorder import Recorder
from .redact import Found

FRAMES = 10  #: of a traceback, the innermost; cut by frame and not by character, so that no secret is cut before it is found
NESTED_MAX = 8  #: records that are logged while a record is handled, by one thread

*_, _LAST = ATTRIBUTES
_COUNT = len(ATTRIBUTES)
_GROUPS = frozenset(event.FIELDS) - event.SINGLE  # objects, in an event
_BUILTIN = frozenset({str, int, float, bool, type(None)})
_SEVERITY = {10: 7, 20: 6, 30: 4, 40: 3, 50: 2}  # RFC 5424 section 6.2.1
_RAISED = re.compile(r"^([A-Za-z_][\w.]{0,200})(?:: (.*))?$", re.M)  # the line of a traceback that names the exception


class _Thread(threading.local):
    nested: list[tuple[TLSSysLogHandler, logging.LogRecord]] | None = None  #: None: this thread is not in a handler


_thread = _Thread()


class TLSSysLogHandler(logging.Handler):
    """Each log record becomes one event; with `extra={"kind": "tool.call", "tool": {…}}` it becomes that event.

    Every other member of `extra` is kept in `log.fields`. The members of a dict message (structlog) and of
    `record.extra` (loguru) count as `extra`; an exception becomes `error` with type, message and stack.

    Args:
        address: [host, port], "host:port", "[2001:db8::1]:port", or a list of these, the preferred one first.
        socktype: SOCK_STREAM in any spelling; a datagram socket cannot carry TLS and is refused.
        ssl: true (the default), a mapping of the TLS settings below, or an SSLContext that verifies. Never in clear.
        cafile: the CA of the receiver. `client.crt` and `client.key` beside it are used as client certificate.
        certfile, keyfile, keyfile_password: the client certificate, when it is elsewhere.
        tls: instead of the files, the folder that `clawtrail setup` made for this client.
        server_hostname: the name in the receiver's certificate, when it is not the host.
        minimum_version: "TLSv1.3" or "TLSv1.2".
        agent: the name the events claim; else the record's `agent_id`, else the host's name.
        facility: number or name, log audit (13) unless given.
        timeout: of a connection and its handshake, each.
        spool, durability, quota, when_full, full_timeout, retain, proof, window, heartbeat, sd_id: see `Recorder`.

    Sizes are bytes or "256 MiB", durations seconds or "24h". Paths and addresses may contain environment variables,
    a password may be one. Records of the logger `clawtrail` and below are never shipped by this handler.

    No record waits for another thread's. With `when_full="fail"` an event that is refused raises QueueFull or
    SpoolError into the caller; otherwise nothing does: it is counted, and told on standard error once a second.
    A record that is logged while the same thread handles one (by a filter, a formatter, an argument's `__str__`, a
    finalizer, a signal handler) follows after it, past filters and formatter, its arguments only if they are builtin.
    """

    def __init__(self, *, level: int | str = logging.NOTSET, **given: Any) -> None:
        made = settings.parse(given)
        self._agent = event.written(made.agent) if made.agent else None
        self._fail = made.options.get("when_full") == "fail"
        self._next_word, self._unsaid = 0.0, 0
        self._syncs = made.options.get("durability") == "disk"
        self.recorder = Recorder(made.address, made.tls, agent=made.name, **made.options)
        super().__init__(level)

    def createLock(self) -> None:
        self.lock = None  # the recorder has its own, held for as long as an append takes

    def handle(self, record: logging.LogRecord) -> Any:
        """Filters and emits; not for our own loggers. False when a filter rejects the record."""
        waiting = _thread.nested  # for the end of the record that this thread is in the middle of
        if waiting is None and not self.filters and self._quick(record):
            return True
        name = record.name
        if isinstance(name, str) and name.startswith("clawtrail") and (len(name) == 9 or name[9] == "."):
            return False
        if waiting is not None:
            waiting.append((self, record))
            return True
        nested: list[tuple[TLSSysLogHandler, logging.LogRecord]] = []
        _thread.nested = nested
        try:
            kept: Any = True
            if self.filters:
                try:
                    kept = self.filter(record)
                except Exception:  # a filter that fails has rejected nothing
                    self.handleError(record)
            if kept:
                self.emit(kept if isinstance(kept, logging.LogRecord) else record)  # a filter may replace it, from 3.12 on
            return kept
        finally:
            try:
                for n, (handler, late) in enumerate(nested):
                    if n < NESTED_MAX:
                        handler._ship(late, nested=True)
                    else:
                        handler._lose("recursion", late)
            finally:
                _thread.nested = None

    def emit(self, record: logging.LogRecord) -> None:
        """What goes wrong is counted and goes to `handleError`; only with `when_full="fail"` it is raised."""
        if not self._quick(record):
            self._ship(record)

    def _quick(self, record: logging.LogRecord) -> bool:
        """Whether the record went the quick way; see `lane`. Nothing foreign is called there, so nothing can be nested in it."""
        formatter = self.formatter
        if self._syncs or formatter is not None and type(formatter) is not logging.Formatter:
            return False
        recorder = self.recorder
        return recorder.lane.log(recorder, record, self._agent, formatter)

    def _ship(self, record: logging.LogRecord, nested: bool = False) -> None:
        fields: dict[str, Any] = {}
        claim, raises = self._agent, self._fail and not nested
        try:
            try:
                kind, outcome, claim = self._nested_event(record, fields) if nested else self._event(record, fields)
                self.recorder.put_log(kind, outcome, fields, record.created, claim, not raises)
            except (QueueFull, SpoolError):
                raise
            except Exception as e:  # what was meant does not fit the schema; that it was logged is still on record
                kept: dict[str, Any] = {"claim": claim} | {k: fields[k] for k in ("content",) if k in fields}
                kept |= {k: fields[k] for k in ("session", "run") if isinstance(fields.get(k), str)}
                log = _log(record) | {k: _safe(v) for k, v in fields.get("log", {}).items()}
                error = {"type": type(e).__name__, "message": event.written(e)}
                self.recorder.put("log.record", "unknown", {"error": error, "log": log, **kept}, not raises)
                self.handleError(record)
        except (QueueFull, SpoolError):  # counted by the recorder; or accepted, and only not known to be on the disk
            if raises:
                raise
            self.handleError(record)
        except Exception:
            self._lose("unrecordable", record)

    def _lose(self, reason: str, record: logging.LogRecord) -> None:
        try:
            self.recorder.lost(reason)
        except Exception:  # not even a number: the line on standard error is all that is left
            pass
        self.handleError(record)

    def _event(self, record: logging.LogRecord, fields: dict[str, Any]) -> tuple[str, str, str | None]:
        message, exc_info, exc_text, failed = record.msg, record.exc_info, record.exc_text, None
        try:
            if self.formatter is not None:
                text = self.formatter.format(record)
            else:
                text = event.written(message["event"]) if isinstance(message, dict) and "event" in message else record.getMessage()
        except Exception as e:  # a record that its formatter cannot write is an event all the same
            failed = {"type": type(e).__name__, "message": f"the formatter failed: {event.written(e)}"}
            text = f"{event.written(message)} {event.written(record.args)}" if record.args else event.written(message)
        fields["content"] = content = self._content(text)
        fields["log"] = log = _log(record)
        given: dict[str, Any] = {}
        if len(attributes := record.__dict__) > _COUNT:
            _sort_extra(attributes, given, log)
        if isinstance(message, dict):
            _sort({k: v for k, v in message.items() if k not in ("event", "exc_info", "exception")}, given, log)
            exc_info, exc_text = exc_info or message.get("exc_info"), exc_text or message.get("exception")
        if given:
            if isinstance(given.get("tool"), str):
                given["tool"] = {"name": given["tool"]}
            for name in [n for n, value in given.items() if n in _GROUPS and not isinstance(value, dict)]:
                log.setdefault("fields", {})[name] = given.pop(name)  # a name of ours, used for something else
            content |= given.pop("content", {})
            fields |= given
        if exc_info or exc_text:
            more = fields.get("error")
            fields["error"] = _error(exc_info, exc_text) | (more if isinstance(more, dict) else {})
        elif failed:
            fields.setdefault("error", failed)
        if record.stack_info:
            log["stack"] = "\n".join(event.written(record.stack_info).splitlines()[-2 * FRAMES :])
        if not given:
            return "log.record", "unknown", self._agent
        kind, outcome, claim = fields.pop("kind", None), fields.pop("outcome", None), fields.pop("agent_id", None)
        if self._agent or not claim:
            claim = self._agent
        elif type(claim) is not str or not claim.isascii():
            claim = event.written(claim)
        if outcome is None:
            outcome = "unknown" if kind is None else "success"
        return "log.record" if kind is None else kind, outcome, claim

    def _nested_event(self, record: logging.LogRecord, fields: dict[str, Any]) -> tuple[str, str, str | None]:
        """Calls nothing foreign: what logs while it is converted would be nested without end."""
        text = record.msg if type(record.msg) is str else f"<{type(record.msg).__name__}>"
        args = record.args if isinstance(record.args, tuple) else ()
        if args and all(type(a) in _BUILTIN for a in args):
            try:
                text = text % args
            except (TypeError, ValueError):
                pass
        fields["content"], fields["log"] = self._content(text), _log(record)
        return "log.record", "unknown", self._agent

    def _content(self, text: str) -> dict[str, Any]:
        size = len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
        if len(text) <= event.LEAF_MAX:  # not cut, not hashed: the recorder's redaction comes early enough
            return {"size": size, "excerpt": text}
        redacted = self.recorder.redactor.string(text, found := Found())
        return event.log_content(redacted, size, **found.fields())

    def handleError(self, record: logging.LogRecord) -> None:
        """At most one line a second on standard error, none when `logging.raiseExceptions` is off. Never raises."""
        now = time.monotonic()
        if not logging.raiseExceptions or now < self._next_word:
            self._unsaid += 1
            return
        unsaid, self._unsaid, self._next_word = self._unsaid, 0, now + 1.0
        try:
            error = sys.exc_info()[1]
            why = f"{type(error).__name__}: {error}" if error else "logged while records are handled, without end"
            why = " ".join(self.recorder.redactor.string(why, Found())[:500].split())
            print(f"clawtrail: a record of {record.name!r:.100} failed: {why}" + f" ({unsaid} more before)" * bool(unsaid), file=sys.stderr)
        except Exception:  # standard error may be closed, or a program's own
            pass

    def stats(self) -> dict[str, Any]:
        """The recorder's counters; see `Recorder.stats`."""
        return self.recorder.stats()

    def flush(self) -> None:
        """Waits until all is handed to the connection, at most 3 seconds; not at all while there is none."""
        if self.recorder.stats()["connected"]:
            self.recorder.flush(3.0)

    async def aflush(self, timeout: float = 3.0) -> bool:
        """As `flush`, and the event loop runs on. True: everything was handed to the connection."""
        return await self.recorder.aflush(timeout)

    def close(self) -> None:
        """Bounded: sends what waits, at most 3 seconds. What is logged later is counted as dropped."""
        for name in ("shipper", "transport"):  # dictConfig closes under the lock of logging: the recorder's thread, when it
            for level in (logging.INFO, logging.WARNING, logging.ERROR):  # logs now, must find this answer in the cache
                logging.getLogger(f"clawtrail.{name}").isEnabledFor(level)
        self.recorder.close()
        super().close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {getattr(self, 'recorder', 'not configured')!r}>"


def _log(record: logging.LogRecord) -> dict[str, Any]:
    level = record.levelno
    return {"logger": record.name, "level": record.levelname, "severity": _SEVERITY.get(level) or _severity(level)}


def _severity(level: int) -> int:
    for limit in (50, 40, 30, 20):
        if isinstance(level, int) and level >= limit:  # a record made from foreign data may have any level
            return _SEVERITY[limit]
    return 7


def _sort_extra(attributes: dict[str, Any], fields: dict[str, Any], log: dict[str, Any]) -> None:
    names: Iterator[str] = islice(attributes, _COUNT - 1, None)
    if next(names, None) != _LAST:  # somebody's own kind of record; in every other, `extra` stands behind what logging set
        names = iter(attributes)
    extra = tuple(names)
    meant, others, nested = _sorted.get(extra) or _remember_sorted(extra)
    if nested:
        _sort({name: attributes[name] for name in extra if name not in STANDARD}, fields, log)
        return
    for name in meant:
        fields[name] = attributes[name]
    if others:
        log["fields"] = {name: attributes[name] for name in others}


#: names of extras → those that the schema knows, the others, whether one of them may hold more of both
_sorted: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...], bool]] = {}


def _remember_sorted(extra: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    if len(_sorted) >= 1024:
        _sorted.clear()
    wanted = [name for name in extra if name not in STANDARD]
    meant, others = (tuple(name for name in wanted if (name in MEANT) is known) for known in (True, False))
    _sorted[extra] = found = meant, others, "extra" in others
    return found


def _sort(members: dict[str, Any], fields: dict[str, Any], log: dict[str, Any]) -> None:
    """What the schema knows into `fields`, the rest into `log.fields`."""
    for name, value in members.items():
        if name == "extra" and isinstance(value, dict):
            _sort({k: v for k, v in value.items() if v is not value}, fields, log)
        elif name in MEANT:
            fields[name] = value
        else:
            log.setdefault("fields", {})[name] = value


def _safe(value: Any, depth: int = 0) -> Any:
    if type(value) is dict and depth == 0:
        return {event.written(k): _safe(v, 1) for k, v in value.items()}
    try:
        return event.clean(value)
    except Exception as e:  # a dict that is none, an object that is nothing
        return f"<{type(value).__name__}: {type(e).__name__}>"


def _error(exc_info: Any, exc_text: Any) -> dict[str, Any]:
    if exc_info is True:
        exc_info = sys.exc_info()
    if isinstance(exc_info, BaseException):
        exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
    if isinstance(exc_info, tuple) and len(exc_info) == 3 and isinstance(exc_info[1], BaseException):
        kind, value, _ = exc_info
        try:
            stack = "".join(traceback.format_exception(*exc_info, limit=-FRAMES)).rstrip("\n")
        except Exception as e:
            stack = f"the traceback cannot be written: {type(e).__name__}"
        return {"type": kind.__name__, "message": event.written(value), "stack": stack}
    if not exc_text:
        return {}
    raised = list(_RAISED.finditer(stack := event.written(exc_text)))  # it came over a queue, as text
    return ({"type": raised[-1][1], "message": raised[-1][2] or ""} if raised else {}) | {"stack": stack}
