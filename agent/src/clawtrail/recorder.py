"""The direct API: one call, one event, on its way off the host."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import os
import platform
import socket
import sys
import threading
import time
from collections import deque
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

from . import __version__, event, life, syslog
from .action import Action
from .chain import Chain
from .dial import endpoints
from .drafts import Draft, Drafts
from .errors import ConfigurationError, EventError, QueueFull, SpoolError, SpoolFull
from .losses import Losses
from .gates import DEADLINE, Gates
from .lane import Closed, Lane
from .outbox import Outbox, folder_of
from .progress import Progress
from .proof import HTTPSWatermark, Watermark
from .redact import Redactor
from .shipper import AWAY, Shipper
from .spool import Damage
from .transport import TLS, Deadlines, TLSFiles

ADOPT = 60.0  #: seconds between two looks for what dead processes left
NAME_MAX = 64  #: characters of a certificate's common name, RFC 5280 appendix A.1
DURABILITIES = ("disk", "write", "memory")
POLICIES = ("block", "fail", "drop")
PROOFS = ("window", "barrier")
_WAIT = 0.05  # seconds between two looks for room
_context: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("clawtrail_context", default={})
_taps: set[Callable[[bytes], None]] = set()  #: called with each line after it was accepted; see `testing.capture`


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


class Receipt(NamedTuple):
    """What `record()` returns: the event is accepted. `line` is the event as it is sent and stored.

    `seq` 0 and an empty `line`: it was recorded by a signal handler in the middle of another `record()`, right after
    that one. An empty `line` alone: the policy `drop` let it go; the number is spent, and reported.
    """

    id: str
    epoch: str
    seq: int
    line: bytes


class Recorder:
    """Redacts, numbers, chains and spools events; a thread ships them over mutual TLS.

    Args:
        address: (host, port) of an RFC 5425 receiver, or a list of such pairs, the preferred one first.
        tls: the certificate files, or the folder that `clawtrail setup` made for this client.
        agent: the name the events claim; the receiver compares it with the client certificate's common name.
        server_hostname: the name in the receiver's certificate, when it is not the host.
        minimum_version: "TLSv1.3", or "TLSv1.2" with AEAD ciphers only.
        spool: folder of the spools of all agents on this host; else $CLAWTRAIL_SPOOL, else clawtrail/spool below
            $XDG_STATE_HOME or ~/.local/state. Each process life has a folder of its own in there, and takes over what
            dead ones of the same agent left.
        durability: what `record()` has done when it returns: `disk` synced it, `write` handed it to the kernel, so that
            it survives the process, `memory` queued it.
        quota: bytes of the spool at most, proven events that are still kept included.
        when_full: `block` waits at most `full_timeout` seconds (in an event loop: not at all) and then raises,
            `fail` raises at once, `drop` loses the event; its number is spent, counted and reported.
        retain: seconds that proven events are kept.
        proof: `window`, `barrier`, or the https URL of a watermark service, or a `proof.Watermark`; see `outbox`.
        window: bytes of sent events that are sent again after a break; half of the quota at most.
        heartbeat: seconds between two `system.heartbeat` events, 0 for none.
        fingerprint_key: key of the redactor's fingerprints; see `redact.Redactor`.
        gate: how far an event must have come before its action runs, see `gates`; gate_deadline: seconds, then it does not run.
        facility, sd_id: see `syslog.Header`.

    Raises ConfigurationError at once for wrong settings; an absent receiver is no error.
    """

    def __init__(
        self,
        address: tuple[str, int] | Sequence[tuple[str, int]],
        tls: TLSFiles | str | os.PathLike[str],
        *,
        agent: str,
        agent_type: str = "python",
        agent_version: str = "",
        server_hostname: str | None = None,
        minimum_version: object = "TLSv1.3",
        spool: str | os.PathLike[str] | None = None,
        durability: str = "write",
        quota: int = 256 << 20,
        when_full: str = "block",
        full_timeout: float = 5.0,
        retain: float = 86400.0,
        proof: str | Watermark = "window",
        window: int | None = None,
        heartbeat: float = 30.0,
        fingerprint_key: bytes | None = None,
        gate: str = "spooled",
        gate_deadline: float | str = DEADLINE,
        facility: int = syslog.FACILITY,
        sd_id: str = syslog.SD_ID,
        deadlines: Deadlines = Deadlines(),
    ) -> None:
        if not agent or len(agent) > NAME_MAX:
            raise ConfigurationError(f"agent {agent[:80]!r}; expected the name in the client certificate, 1 to {NAME_MAX} characters")
        _one_of("durability", durability, DURABILITIES)
        _one_of("when_full", when_full, POLICIES)
        if quota < 1 << 20:
            raise ConfigurationError(f"quota {quota}; expected bytes, at least {1 << 20}")
        if window is not None and not 0 <= window <= quota // 2:
            raise ConfigurationError(f"window {window}; expected bytes, at most half of the quota ({quota // 2})")
        self.endpoints = endpoints(address)
        self.agent, self.durability, self.when_full, self.full_timeout = agent, durability, when_full, full_timeout
        self._syncs = durability == "disk"
        self._tls = TLS(tls if isinstance(tls, TLSFiles) else Path(tls), server_hostname, minimum_version)
        self.proof = proof if isinstance(proof, str) else type(proof).__name__
        self._proof = HTTPSWatermark(proof, self._tls) if isinstance(proof, str) and "://" in proof else proof
        if isinstance(self._proof, str):
            _one_of("proof", self._proof, PROOFS)
        self.gates = Gates.parse(gate, gate_deadline, self.proof)
        self.folder = None if durability == "memory" else folder_of(spool, agent)
        self.redactor = Redactor(fingerprint_key)
        self.health: Callable[[], Mapping[str, Any]] = dict  #: what a heartbeat tells beside the counters
        #: What is recorded leaves at the next `wake()`, or within a second: whoever waits for the disk is not kept from the processor.
        self.unhurried = False
        self._outbox_options = {
            "folder": self.folder,
            "durable": durability == "disk",
            "quota": quota,
            "retain": retain,
            "window": min(8 << 20, quota // 2) if window is None else window,
            "overlap": self._proof == "barrier",
        }
        self._deadlines, self._heartbeat = deadlines, heartbeat
        self._facility, self._sd_id = facility, sd_id
        self._host = platform.node() or socket.gethostname() or "localhost"
        self._claim = event.text(agent)
        named = {"name": self._claim, "type": agent_type}
        if agent_version:
            named["version"] = agent_version
        self._identity = f'"agent":{event.dumps(named)},"host":{event.dumps({"name": self._host, "boot": _boot_id()})},'
        self._start()
        life.live.add(self)

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._busy = False  # this thread stores an event: whoever comes now came by a signal or a finalizer
        self._deferred: deque[Draft] = deque()
        self._syncing: dict[int, int] = {}  # thread: up to which number
        self._pid = os.getpid()
        self._chain = Chain(self._identity)
        self._drafts = Drafts(self.redactor, self._host, self._claim, str(self._pid), self._chain.epoch, self._facility, self._sd_id)
        self._outbox = Outbox(**self._outbox_options)  # type: ignore[arg-type]
        self._progress = Progress(self._outbox)
        self._shipper = Shipper(self._outbox, self.endpoints, self._tls, self._deadlines, self._proof, self._tick, self._progress.moved)
        self.lane = self._new_lane()
        self._closed = False
        self.accepted_bytes = self.damaged = 0
        self._losses = Losses()
        self._untold: deque[Damage] = deque()  # found, and not reported yet
        self._begun = False  # the first event stands in the spool
        self._told = False  # the receiver is told that the spool is full
        self._next_beat = time.monotonic() + self._heartbeat
        self._next_adopt = 0.0

    def _new_lane(self) -> Closed:
        if Lane is None:
            return Closed()
        lane: Closed = Lane(
            chain=self._chain,
            outbox=self._outbox,
            shipper=self._shipper,
            redactor=self.redactor,
            between=self._drafts.between,
            claim=self._claim,
            facility=self._facility,
            context=_context,
            taps=_taps,
            receipt=Receipt,
        )
        return lane

    # -- recording ---------------------------------------------------------------------------------------------

    # Positional, because Python would compare each field's name with that of each other parameter.
    def record(self, kind: str, outcome: str = "success", /, **fields: Any) -> Receipt:
        """Records one event and returns when it is accepted.

        Args:
            kind: one of `event.KINDS`, for example `tool.call`.
            outcome: attempt, success, failure, denied or unknown; by name too.
            fields: the event's groups, for example `session="…"`, `tool={"name": "exec"}`, `params={…}`;
                `time` is the moment in seconds since the epoch, now unless given.

        In a running event loop it never waits: with durability `disk` the event is then handed to the kernel, and
        `await arecord(…)` is what waits for the disk.

        Raises EventError for a bad event, QueueFull when there was no room; in both cases nothing is recorded, and the
        second is counted and reported by a `system.drop` event. Raises SpoolError when the disk failed; its `accepted`
        tells whether the event will be sent nevertheless.
        """
        receipt = self.lane.put(self, kind, outcome, fields)
        if receipt is None:
            return self._put(self._draft(kind, fields.pop("outcome", outcome), fields), False)
        return self._durable(receipt) if self._syncs else receipt

    def put(self, kind: str, outcome: str, fields: dict[str, Any], lossy: bool = False) -> Receipt:
        """As `record`, with the fields as a dict that is used up.

        `lossy`: the caller goes on without the event when there was no room, so that is a loss: the event takes a number
        that is missing from then on, and counts as dropped. It raises all the same.
        """
        receipt = self.lane.put(self, kind, outcome, fields)
        return self._put(self._draft(kind, outcome, fields), lossy) if receipt is None else self._durable(receipt)

    def put_log(self, kind: str, outcome: str, fields: dict[str, Any], created: float, claim: str | None, lossy: bool) -> None:
        """As `put`, of a log record: its moment, and the claim as `event.written` gives it, or None."""
        self._put(self._drafted(kind, outcome, fields, _moment(created), claim or self._claim), lossy)

    def _put(self, draft: Draft, lossy: bool) -> Receipt:
        receipt = self._accept(draft)
        if isinstance(receipt, SpoolError):
            receipt = self._without_room(draft, receipt, lossy)
        return self._durable(receipt)

    def _durable(self, receipt: Receipt) -> Receipt:
        if self._syncs and not _in_event_loop():
            self._sync(receipt.seq)
        return receipt

    def _sync(self, seq: int) -> None:
        me = threading.get_ident()
        if me in self._syncing:  # a signal handler, in the middle of this: what it recorded is synced right after
            self._syncing[me] = seq
            return
        try:
            self._syncing[me] = seq
            done = -1
            while done != self._syncing[me]:
                done = self._syncing[me]
                self._outbox.sync(done)
        finally:
            self._syncing.pop(me, None)

    async def arecord(self, kind: str, outcome: str = "success", /, **fields: Any) -> Receipt:
        """As `record`; waits for room and for the disk without holding up the event loop."""
        if (quick := self.lane.put(self, kind, outcome, fields)) is not None:
            await self.async_sync()
            return quick
        draft = self._draft(kind, fields.pop("outcome", outcome), fields)
        deadline = time.monotonic() + self.full_timeout
        while isinstance(receipt := self._accept(draft), SpoolFull) and receipt.reason != "closed":
            if self.when_full != "block" or time.monotonic() >= deadline:
                break
            await asyncio.sleep(_WAIT)
        if isinstance(receipt, SpoolError):
            receipt = self._no_room(draft, receipt)
        await self.async_sync()
        return receipt

    async def async_sync(self) -> None:
        """With durability `disk`: returns when everything that was recorded so far is on it. Raises SpoolError."""
        if self.durability == "disk":
            await self._progress.synced(self._chain.seq)

    def on_disk(self, done: Callable[[SpoolError | None], None]) -> None:
        """As `async_sync`, for many at once: calls `done` in the running event loop, with the error if there was one."""
        if self.durability == "disk":
            self._progress.on_disk(self._chain.seq, done)
        else:
            done(None)

    async def reached(self, receipt: Receipt, level: str, timeout: float) -> bool:
        """Whether the event has come as far as `level`, one of `gates.LEVELS`, within `timeout` seconds. Raises SpoolError.

        `sent` is the connection that was there; what a receiver does not read of it is sent again. `stored` is what the
        recorder's `proof` says.
        """
        until = time.monotonic() + timeout
        if level == "off" or self._beyond(receipt):
            return level == "off"
        if self.durability == "disk":
            try:
                await asyncio.wait_for(self._progress.synced(receipt.seq), timeout)
            except TimeoutError:
                return False
        return level == "spooled" or await self._progress.awaited(receipt.seq, level, until - time.monotonic())

    def wait_reached(self, receipt: Receipt, level: str, timeout: float) -> bool:
        """As `reached`, in a thread that has no event loop; `record()` itself has waited for the disk there."""
        if level == "off" or self._beyond(receipt):
            return level == "off"
        return level == "spooled" or self._progress.wait(receipt.seq, level, timeout)

    def _beyond(self, receipt: Receipt) -> bool:
        """Of an event that was let go, or of another process life, nobody here can tell."""
        return not receipt.line or receipt.epoch != self._chain.epoch

    def wake(self) -> None:
        """The thread that ships is told of what was recorded while `unhurried` was set."""
        self._shipper.wake()

    def beat(self) -> None:
        """Records a `system.heartbeat` with the counters; by itself it does so every `heartbeat` seconds."""
        self._next_beat = time.monotonic() + self._heartbeat
        self._own("system.heartbeat", health=self._pulse())

    def action(self, name: str | None = None, *, kind: str = "tool.call", result: str = "tool.result", **fields: Any) -> Action:
        """Records an attempt before and an outcome after: `with recorder.action("exec", params={…}):`, also `async with`,
        also as a decorator of a function or coroutine function. What cannot be recorded does not run. `gate`: a level other than the recorder's. See `Action`."""
        return Action(self, name, kind=kind, result=result, **fields)

    def _draft(self, kind: str, outcome: str, fields: dict[str, Any]) -> Draft:
        moment = event.timestamp() if "time" not in fields else _moment(fields.pop("time"))
        claim = fields.pop("claim", None)
        return self._drafted(kind, outcome, fields, moment, event.written(claim) if claim else self._claim)

    def _drafted(self, kind: str, outcome: str, fields: dict[str, Any], moment: str, claim: str) -> Draft:
        if ambient := _context.get():
            fields = {**ambient, **fields}
        return self._drafts.make(kind, outcome, fields, moment, claim)

    def _accept(self, draft: Draft) -> Receipt | SpoolError:
        """Gives the event its number and stores it; the error when it could not be stored."""
        with self._lock:
            if self._busy:
                self._deferred.append(draft)
                return Receipt(draft[0], self._chain.epoch, 0, b"")
            self._busy = True
            try:
                self._shut()
                receipt = self._store(draft)
            except SpoolError as e:
                return e
            finally:
                try:
                    if self._deferred:
                        self._catch_up()
                finally:
                    self._busy = False
            self._open()
        if not self.unhurried:
            self._shipper.wake()
        if _taps:
            self._tap(receipt)
        return receipt

    def _shut(self) -> None:
        """Under the lock: no event goes the quick way until `_open`, and what went that way stands in our numbers."""
        self.accepted_bytes += self.lane.shut()

    def _open(self) -> None:
        """Under the lock: events may go the quick way, unless the next one has something to tell."""
        if self._begun and not (self._busy or self._closed or self._told or self._losses or self._deferred):
            self.lane.open()

    @property
    def accepted(self) -> int:
        """Events of this process life that took a number."""
        return self._chain.seq

    def _catch_up(self) -> None:
        """Stores what came in the middle of it; an exception that a signal raises in here loses none and repeats none."""
        while self._deferred:
            try:
                self._tap(self._store(self._deferred[0]))
            except SpoolError as e:
                self._drop(_reason(e))
                self._deferred.popleft()

    def _tap(self, receipt: Receipt) -> None:
        for tap in list(_taps):
            tap(receipt.line)

    def _store(self, draft: Draft) -> Receipt:
        if self._closed:
            raise SpoolFull("the recorder is closed; the event was not accepted", "closed")
        if not self._begun:
            self._begin()
        if self._losses:
            self._report_losses()
        receipt = self._append(draft)
        self._told = False
        return receipt

    def _begin(self) -> None:
        life.unclosed.add(self)
        if self._outbox.own is None:
            self._outbox.open(self._chain.epoch)
        if not self._outbox.last:
            self._append_own("system.start", health={"library": f"clawtrail {__version__}", "pid": self._pid, "durability": self.durability})
        self._begun = True

    def _append(self, draft: Draft, reserved: bool = False) -> Receipt:
        chain, own = self._chain, self._outbox.own
        assert own is not None
        ident, moment, tail, parts = draft
        line = chain.line(ident, moment, tail)
        seq = chain.seq + 1
        frame = syslog.assemble(parts, line, seq, moment)
        link, size = hashlib.sha256(line).hexdigest(), len(frame)
        try:
            self._outbox.append(seq, frame, reserved)
        finally:
            if own.last == seq:  # also when a signal's exception came in between; none can from here on, as nothing is called
                chain.prev, chain.seq = link, seq
                self.accepted_bytes += size
                if self._deferred and self._deferred[0] is draft:
                    del self._deferred[0]
        return Receipt(ident, chain.epoch, seq, line)

    def _append_own(self, kind: str, outcome: str = "success", reserved: bool = False, **fields: Any) -> None:
        self._append(self._drafts.own(kind, outcome, fields), reserved)

    # -- without room ------------------------------------------------------------------------------------------

    def _without_room(self, draft: Draft, error: SpoolError, lossy: bool) -> Receipt:
        deadline = time.monotonic() + (self.full_timeout if self.when_full == "block" and not _in_event_loop() else 0.0)
        while isinstance(error, SpoolFull) and error.reason != "closed" and (left := deadline - time.monotonic()) > 0:
            self._outbox.wait_for_room(min(left, _WAIT))
            receipt = self._accept(draft)
            if isinstance(receipt, Receipt):
                return receipt
            error = receipt
        return self._no_room(draft, error, lossy)

    def _no_room(self, draft: Draft, error: SpoolError, lossy: bool = False) -> Receipt:
        reason = _reason(error)
        with self._lock:
            self._shut()
            if self.when_full == "drop" and reason != "closed":
                return Receipt(draft[0], self._chain.epoch, self._drop(reason), b"")
            if lossy:
                self._drop(reason)
            else:
                self._losses.refuse(reason)
                self._tell()
        if not isinstance(error, SpoolFull):
            raise error
        why = self._shipper.last_error or "connected"
        raise QueueFull(str(error) if reason == "closed" else f"{error} ({why}); the event was not accepted", reason)

    def lost(self, reason: str) -> None:
        """An event could not even be offered: it takes a number that is missing from then on, and counts as dropped."""
        with self._lock:
            self._shut()
            self._drop(reason)

    def _drop(self, reason: str) -> int:
        seq = self._chain.seq + 1
        self._chain.seq = seq  # the gap is what shows it
        self._losses.drop(reason, seq)
        self._tell()
        return seq

    def _tell(self) -> None:
        """Of the first loss at once, as the reserve has room for one report; of the others when there is room again."""
        if not self._told and not self._closed and not self._busy and self._begun:
            self._told = self._busy = True
            try:
                self._report_losses(reserved=True)
            except SpoolError:
                pass
            finally:
                self._busy = False

    def _report_losses(self, reserved: bool = False) -> None:
        for loss in self._losses.untold():
            self._append_own("system.drop", "failure", reserved, dropped=loss)
            self._losses.told(loss)

    # -- the shipper's thread ----------------------------------------------------------------------------------

    def _tick(self) -> None:
        now = time.monotonic()
        with self._lock:
            damage = self._outbox.damage
            if lost := sum(one.lost for one in damage if one.epoch == self._chain.epoch):
                self._losses.dropped["spool-damage"] = self._losses.dropped.get("spool-damage", 0) + lost
        if now >= self._next_adopt:
            self._next_adopt = now + ADOPT
            damage += self._outbox.adopt()
        self.damaged += len(damage)
        self._untold.extend(damage)
        while self._untold and self._own("system.spool-damage", "failure", dropped=_lost(self._untold[0])):
            self._untold.popleft()
        if self._heartbeat and now >= self._next_beat:
            self.beat()

    def _pulse(self) -> dict[str, Any]:
        stats = self.stats()
        pulse = {k: stats[k] for k in ("accepted", "proven", "spooled", "resent", "reconnects", "last_error", "proof", "spool_bytes", "sent_bytes")}
        for name in ("dropped", "refused"):
            pulse[name] = sum(stats[name].values())
        return {**pulse, "oldest_unproven_seconds": int(stats["oldest_unproven_seconds"]), **self.health()}

    def _own(self, kind: str, outcome: str = "success", **fields: Any) -> bool:
        """An event about the trail itself: never waits. False: there is no room for it now."""
        return isinstance(self._accept(self._drafts.own(kind, outcome, fields)), Receipt)

    # -- state -------------------------------------------------------------------------------------------------

    def stats(self) -> dict[str, Any]:
        """Counters of this process life. At every moment: accepted = proven + spooled + all that was dropped.

        accepted, proven, spooled, unsent, resent, adopted (events that dead processes left): events; `unsent` counts
        those of dead processes too. dropped, refused: events by reason; a refused one raised an error and has no
        number. damaged: ranges of a spool. spool_bytes, accepted_bytes, sent_bytes: bytes. connects, reconnects:
        connections. `proof`: what "proven" means; `proof_error`: why nothing is
        proven by it now.
        """
        shipper, outbox = self._shipper, self._outbox
        with self._lock:
            self._shut()
            own = outbox.own
            found = sum(one.lost for one in own.damage) if own else 0  # damaged, and not counted as dropped yet
            appended, proven = (own.appended + found, own.released) if own else (0, 0)
            stats = {
                "agent": self.agent,
                "epoch": self._chain.epoch,
                "accepted": self.accepted,
                "proven": proven,
                "spooled": appended - proven,
                "unsent": outbox.unsent,
                "dropped": dict(self._losses.dropped),
                "refused": dict(self._losses.refused),
                "adopted": outbox.adopted,
                "damaged": self.damaged,
                "resent": shipper.resent,
                "connects": shipper.connects,
                "reconnects": max(0, shipper.connects - 1),
                "connected": shipper.connected,
                "endpoint": shipper.endpoint,
                "last_error": shipper.last_error,
                "oldest_unproven_seconds": round(outbox.oldest(), 1),
                "spool_bytes": outbox.used,
                "accepted_bytes": self.accepted_bytes,
                "sent_bytes": shipper.sent_bytes,
                "proof": self.proof,
                "proof_error": shipper.proof_error,
                "durability": self.durability,
            }
            self._open()
        return stats

    def flush(self, timeout: float = 5.0) -> bool:
        """Waits until nothing is unsent, at most `timeout` seconds. True: everything was handed to the connection."""
        deadline = time.monotonic() + timeout
        while self._outbox.unsent and time.monotonic() < deadline:
            time.sleep(0.005)
        return not self._outbox.unsent

    async def aflush(self, timeout: float = 5.0) -> bool:
        """As `flush`, without holding up the event loop."""
        deadline = time.monotonic() + timeout
        while self._outbox.unsent and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        return not self._outbox.unsent

    def close(self, timeout: float = 3.0) -> bool:
        """Records `system.stop`, sends what waits, closes. Bounded by `timeout` seconds. True: the receiver has read all.

        What a receiver that is away did not get stays in the spool for the next process; then there is nothing to wait for.
        In a signal handler that has interrupted a `record()` it closes nothing and returns False; the end of the process does.
        """
        with self._lock:
            if self._busy:  # a signal handler, in the middle of a record(): what is to be sent is not whole yet
                return False
            if self._closed:
                return not self._outbox.unproven
            self._busy = True
            try:
                self._shut()
                if self._outbox.own is not None:
                    self._catch_up()
                    if self._losses:
                        self._report_losses(reserved=True)
                    self._append_own("system.stop", reserved=True, health={"reason": "close"})
            except SpoolError as e:
                print(f"clawtrail: {e}", file=sys.stderr)
            finally:
                self._busy = False
            self._closed = True
            for _ in self._deferred:
                self._drop("closed")
        life.live.discard(self)
        life.unclosed.discard(self)
        self._progress.close()
        if self.folder is not None and self._shipper.last_error:
            timeout = min(timeout, AWAY)
        return self._shipper.close(timeout)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Recorder agent={self.agent} accepted={self.accepted} {self._shipper!r}>"

    def after_fork(self) -> None:
        """A child is another process life: its own epoch, spool and connection; the parent ships what the parent recorded."""
        self._shipper.abandon()
        self._start()


def _one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ConfigurationError(f"{name} {value!r}; expected one of {', '.join(allowed)}")


def _moment(seconds: Any) -> str:
    try:
        return event.timestamp(seconds)
    except (TypeError, ValueError, OverflowError, OSError):
        raise EventError(f"time {seconds!r}; expected seconds since the epoch") from None


def _lost(one: Damage) -> dict[str, Any]:
    lost = {"epoch": one.epoch, "segment": one.segment, "reason": one.reason, "first": one.first}
    if one.last is not None:
        lost |= {"last": one.last, "n": one.lost or one.last - one.first + 1}
    return lost | ({"start": one.start, "end": one.end} if one.end else {})


def _reason(error: SpoolError) -> str:
    return error.reason if isinstance(error, SpoolFull) else "spool-error"


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
