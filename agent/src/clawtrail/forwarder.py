"""The sidecar: takes records from the agent's gateway over one unix socket, acknowledges each when it has come far enough.

Protocol: JSON lines. `{"n": 7, "rid": "…", "hook": "…", "at": "…", "event": {…}, "ctx": {…}}` is answered by
`{"ack": 7}` when its events are in the spool, as durably as the recorder is told to, or by `{"ack": 7, "ok": false,
"error": "…", "retry": false}` when it was not accepted. With `"gate": true` an action waits for the answer: it comes when
the events have reached the level of their gate, or as a refusal, in words for the person who uses the agent, at the
gate's deadline. An action that a rule forbids is answered with `"denied": rule` besides; with `"approve": true, "action":
"…", "severity": "…"`, once its events have come as far, when it may run if a person says yes. Answers come as each is
ready, in any order. `{"n": 8, "ping": true}` is answered and not recorded. Instead of a hook, a record may be an event in
the making (`adapters.relay`) or one of Claude Code's hooks (`adapters.claude`).

Who is heard is decided in `peers`. An operator's process is answered `{"n": 9, "status": true}` with the counters, and
may open and close the gates: `{"n": 1, "open": {"seconds": 900, "reason": "…", "by": "…"}}`, `{"n": 2, "close": {"by": "…"}}`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import time
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Mapping

from . import slices
from .adapters.claude import ClaudeCode
from .adapters.openclaw import OpenClaw, Recorded
from .adapters.relay import Relayed
from .errors import ClawtrailError, Denied, EventError, QueueFull, SpoolError
from .event import KINDS
from .gatekeeper import Gatekeeper
from .gates import without_room
from .lines import LINE_MAX, STAYS, Hear, Lines
from .peers import Admission, Peer
from .recorder import Receipt, Recorder
from .redact import Found
from .rules import Rules
from .runs import Runs
from .secrets_provider import SecretsProvider
from .watch import Watch

if TYPE_CHECKING:
    from .proxy import Config, Proxy

log = logging.getLogger("clawtrail.forwarder")

_REMEMBER = 20_000  #: record ids kept, so that a record that is sent again is recorded once
_HELD_MAX = 1000  #: actions that wait for more than the spool
_BACKLOG = 1024  #: connections that are not taken yet: many that knock must not keep the gateway from its turn
_LULL = 0.003  #: seconds from a record to its way off the host; none where an action waits for that
_LINGERING_MAX = 64  #: connections of refused peers that are still open
#: Hook → category of the action that it announces.
_GATED = {"before_tool_call": "tool", "before_agent_run": "session", "before_install": "config", "message_sending": "message",
          "reply_payload_sending": "message"}  # fmt: skip


class Forwarder:
    """Serves the socket until SIGTERM or SIGINT.

    Args:
        recorder: where accepted records go; its `gates` say how far an event must have come before its action runs.
        path: the unix socket; a stale one is replaced.
        gateway_uid, main_process: see `peers.Admission`.
        runs: what is open in the gateway, for the model proxy.
        watch: the state of sessions, shared with the model proxy.
        rules: which tool calls are flagged or refused; the packaged ones by default.
        kept: hear the hooks of Claude Code too; the folder where their adapter keeps what joins them.
        idle: seconds without a record and a connection after which it stops; 0: never.
        proxy: the model proxy's settings; None: it is not served.
        secrets_path, secrets: socket and secrets of the audited provider; none: it is not served.
    """

    def __init__(
        self,
        recorder: Recorder,
        path: str,
        gateway_uid: int | None,
        main_process: bool = True,
        runs: Runs | None = None,
        watch: Watch | None = None,
        rules: Rules | None = None,
        proxy: Config | None = None,
        kept: Path | None = None,
        idle: float = 0.0,
        secrets_path: str = "",
        secrets: Mapping[str, str] | None = None,
    ) -> None:
        self._idle, self._last_heard = idle, time.monotonic()
        self.recorder, self.path, self.runs, self.watch = recorder, path, runs or Runs(), watch or Watch(rules)
        self.gatekeeper = Gatekeeper(recorder)
        self.proxy = self._proxy(proxy) if proxy is not None else None
        self.secrets = SecretsProvider(recorder, self.gatekeeper, self.runs, secrets_path, secrets, gateway_uid, main_process) if secrets else None
        recorder.health = lambda: {"component": "forwarder", **self._counted()}
        self._admission = Admission(gateway_uid, main_process)
        self._claude = ClaudeCode(recorder, rules, self.watch, kept) if kept else None
        self._openclaw = OpenClaw(recorder, self.runs, self.watch, rules)
        self._relayed = Relayed(recorder, self.runs, rules, self.watch)
        self._seen: OrderedDict[str, tuple[Receipt | None, Denied | None]] = OrderedDict()
        self._accepted: list[tuple[Lines, Any, bytes, list[Recorded]]] = []  # waits for the disk; the events only of what holds an action up
        self._held: set[asyncio.Task[None]] = set()
        self._connections: set[Lines] = set()
        self._lingering: set[Lines] = set()
        self._last_refusal = 0.0
        self._shipping: asyncio.TimerHandle | None = None
        self.counters = {"connections": 0, "refused": 0, "acknowledged": 0, "rejected": 0, "denied": 0, "repeated": 0, "ungated": 0}

    def _proxy(self, config: Config) -> Proxy:
        from .proxy import Proxy  # aiohttp: for those who serve it

        return Proxy(self.recorder, self.runs, self.watch, config, self.gatekeeper)

    def _counted(self) -> dict[str, Any]:
        proxy = {"proxy": self.proxy.health()} if self.proxy is not None else {}
        gate = {"gate_refused": self.gatekeeper.refused, **self.gatekeeper.break_glass.state()}
        held = {"secrets": self.secrets.counters} if self.secrets is not None else {}
        return {**self.counters, **held, "watch": self.watch.counters, **gate, **proxy}

    # -- serving -----------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Listens, heartbeats, and returns after SIGTERM or SIGINT; every accepted record is handed to the recorder by then."""
        self._stopped = stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, stopped.set)
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        server = await self._loop.create_unix_server(lambda: Lines(self._made, self._endless, self._lost), self.path, backlog=_BACKLOG)
        os.chmod(self.path, 0o666)  # who may speak is decided by process, not by file mode
        slice_ = f"{ns // 1000} µs" if (ns := slices.current()) else "as the kernel has them"
        log.info("listening on %s; gates %s, %g s; slices %s", self.path, self.gatekeeper.gates, self.gatekeeper.gates.deadline, slice_)
        if self.proxy is not None:
            await self.proxy.start()
        if self.secrets is not None:
            await self.secrets.start()
        self.recorder.beat()
        gc.collect()
        gc.freeze()  # what is here now stays: a gate that is asked waits for no collection of it
        gc.set_threshold(20_000, 20, 50)
        ticking = asyncio.create_task(self._tick())
        await stopped.wait()
        ticking.cancel()
        if self.proxy is not None:
            await self.proxy.close()
        if self.secrets is not None:
            self.secrets.close()
        server.close()
        for connection in list(self._connections):
            connection.end()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    async def _tick(self) -> None:
        while True:
            self.gatekeeper.break_glass.tick()
            if self._idle and not self._connections and time.monotonic() - self._last_heard > self._idle:
                self._stopped.set()
            await asyncio.sleep(1.0)

    def _made(self, connection: Lines) -> Hear | None:
        peer = Peer.of(connection.transport.get_extra_info("socket"))
        self._connections.add(connection)
        if self._admission.operator(peer):
            return self._operator
        if why := self._admission.refusal(peer):
            self._refused(peer, why)
            connection.transport.write(_line({"ack": None, "ok": False, "error": f"refused: {why}"}))
            self._lingering.add(connection)
            connection.end(STAYS if len(self._lingering) <= _LINGERING_MAX else 0.0)
            return None
        self.counters["connections"] += 1
        log.info("gateway connected: pid %d", peer.pid)
        return self._take

    def _lost(self, connection: Lines) -> None:
        self._connections.discard(connection)
        self._lingering.discard(connection)

    def _refused(self, peer: Peer, why: str) -> None:
        self.counters["refused"] += 1
        log.warning("refused: %s", why)
        now = time.monotonic()
        if now - self._last_refusal < 1.0:  # an agent that knocks in a loop must not fill the trail; all are counted
            return
        self._last_refusal = now
        with suppress(ClawtrailError):
            self.recorder.record(
                "policy.decision",
                "denied",
                policy={"engine": "clawtrail", "rule": "gateway-only", "verdict": "deny", "reason": why},
                target={"type": "process", "id": peer.command} if peer.command else None,
                flag={"rule": "trail.tamper", "severity": "critical", "technique": "T1562.001"},
                health={"refused": self.counters["refused"]},
            )

    # -- records -----------------------------------------------------------------------------------------------

    def _take(self, connection: Lines, raw: bytes) -> bytes | None:
        """Records what one line says. Its answer, or None when that has to wait."""
        n, gate = None, False
        try:
            record = _object(raw)
            n, gate = record.get("n"), record.get("gate") is True
            if record.get("ping"):
                if record.get("beat"):
                    self.runs.beat()
                return _ack(n)
            rid = record.get("rid")
            if isinstance(rid, str) and rid in self._seen:
                self.counters["repeated"] += 1
                return self._acknowledge(connection, n, gate, [], *self._seen[rid])
            self.recorder.unhurried = True
            verdict = None
            try:
                recorded = self._heard(record)
            except Denied as e:  # on record already; the agent gets the rule's words
                self.counters["denied"] += 1
                recorded, verdict = e.recorded, e
            last = recorded[-1].receipt if recorded else None
            if isinstance(rid, str):
                kept = last and Receipt(last.id, last.epoch, last.seq, last.line[:1])  # its number is what may be waited for again
                self._seen[rid] = kept, verdict
                if len(self._seen) > _REMEMBER:
                    self._seen.popitem(last=False)
            self.counters["acknowledged"] += verdict is None
            return self._acknowledge(connection, n, gate, recorded, last, verdict)
        except (QueueFull, SpoolError) as e:
            if gate and self._passes(record):
                return _ack(n)
            return self._reject(n, without_room(str(e)) if gate else str(e), retry=True)
        except ClawtrailError as e:
            return self._reject(n, str(e), raw=raw)
        except Exception as e:  # a record that breaks the mapping is refused, so a gate stays closed
            log.exception("record not understood")
            return self._reject(n, f"{type(e).__name__}: {e}", raw=raw)
        finally:
            if self.recorder.unhurried:
                self.recorder.unhurried = False
                if not self._accepted:  # else it leaves when it is on the disk and answered
                    self._ship()

    def _ship(self) -> None:
        """The thread that ships is told a little later: awake it would keep this one from the interpreter and whoever got an
        answer from the processor, and what comes next is often a gate."""
        if self._shipping is None:
            self._shipping = self._loop.call_later(_LULL, self._lull)

    def _lull(self) -> None:
        self._shipping = None
        self.recorder.wake()

    def _passes(self, record: dict[str, Any]) -> bool:
        """Whether an action may run though there was no room for its event; the recorder reports what it refused."""
        if self.gatekeeper.level([_GATED.get(str(record.get("hook"))) or KINDS.get(str(record.get("kind")), "tool")]) != "off":
            return False
        self.counters["ungated"] += 1
        self.gatekeeper.break_glass.pass_by(accepted=False)
        return True

    def _heard(self, record: dict[str, Any]) -> list[Recorded]:
        self._last_heard = time.monotonic()
        if self._claude is not None and "claude" in record:
            return self._claude.take(record)
        if "fields" in record:
            return self._relayed.take(record)
        return self._openclaw.take(record) if "hook" in record else self._direct(record)

    def _direct(self, record: dict[str, Any]) -> list[Recorded]:
        kind = str(record.get("kind"))
        fields = {k: v for k, v in record.items() if k not in ("n", "rid", "gate", "kind", "outcome", "at")}
        fields = self.watch.see(kind, record.get("outcome", "success"), fields)
        return [Recorded(kind, fields, self.recorder.put(kind, record.get("outcome", "success"), dict(fields)))]

    def _acknowledge(
        self, connection: Lines, n: Any, gate: bool, recorded: list[Recorded], last: Receipt | None, verdict: Denied | None = None
    ) -> bytes | None:
        answer = _ack(n) if verdict is None else _verdict(n, verdict)
        if verdict is not None and not verdict.approve:
            return answer  # a no needs no disk
        level = self.gatekeeper.level(KINDS[one.kind] for one in recorded) if gate else "spooled"
        if level == "off":
            self.gatekeeper.break_glass.pass_by(accepted=True)
        if last is None or level == "off" or (level == "spooled" and self.recorder.durability != "disk"):
            return answer
        if level == "spooled":
            if not self._accepted:
                self._loop.call_soon(self._commit)
            self._accepted.append((connection, n, answer, recorded if gate else []))
            return None
        if len(self._held) >= _HELD_MAX:
            return self._reject(n, without_room(f"{_HELD_MAX} other actions wait"), retry=True)
        self.recorder.wake()
        task = self._loop.create_task(self._hold(connection, n, answer, level, recorded, last))
        self._held.add(task)
        task.add_done_callback(self._held.discard)
        return None

    def _commit(self) -> None:
        """One sync for all that came since the last look, whoever sent it."""
        batch, self._accepted = self._accepted, []
        late = self._loop.call_later(self.gatekeeper.gates.deadline, lambda: answer(TimeoutError()))

        def answer(error: Exception | None) -> None:
            nonlocal batch
            late.cancel()
            answered, batch = batch, []
            lines: dict[Lines, list[bytes]] = {}
            for connection, n, yes, recorded in answered:
                lines.setdefault(connection, []).append(yes if error is None else self._unsynced(n, recorded, error))
            for connection, answers in lines.items():
                connection.answer(b"".join(answers), len(answers))
            self.recorder.wake()

        self.recorder.on_disk(answer)

    def _unsynced(self, n: Any, recorded: list[Recorded], error: Exception) -> bytes:
        """The event is in the spool and will be sent; only that it is on the disk cannot be said."""
        trouble = str(error) or "the disk does not answer"
        why = self.gatekeeper.refuse("spooled", trouble, recorded[0].receipt.id, recorded[0].fields) if recorded else trouble
        return self._reject(n, why, retry=True)

    async def _hold(self, connection: Lines, n: Any, yes: bytes, level: str, recorded: list[Recorded], last: Receipt) -> None:
        """Answers when the events have come far enough, or at the deadline."""
        attempt, fields = (recorded[0].receipt.id, recorded[0].fields) if recorded else (last.id, {})
        why = await self.gatekeeper.refusal(level, last, attempt, fields)
        connection.answer(yes if why is None else self._reject(n, why, retry=True), 1)

    def _reject(self, n: Any, why: str, raw: bytes = b"", retry: bool = False) -> bytes:
        """Says no. What will never be accepted is on record all the same, with its beginning and the reason."""
        self.counters["rejected"] += 1
        log.warning("rejected: %s", why)
        if not retry:
            with suppress(ClawtrailError):
                excerpt = self.recorder.redactor.string(raw[:2048].decode("utf-8", "backslashreplace"), Found())
                self.recorder.record(
                    "system.drop",
                    "failure",
                    dropped={"n": 1, "reason": "rejected"},
                    error={"type": "rejected", "message": why},
                    content={"size": len(raw), "excerpt": excerpt},
                )
        return _line({"ack": n, "ok": False, "error": why, "retry": retry})

    def _endless(self) -> bytes:
        return self._reject(None, f"a record of more than {LINE_MAX} bytes")

    # -- the operator ------------------------------------------------------------------------------------------

    def _operator(self, connection: Lines, raw: bytes) -> bytes:
        try:
            asked = _object(raw)
            opening, closing = asked.get("open"), asked.get("close")
            if isinstance(opening, dict):
                state = self.gatekeeper.break_glass.start(opening.get("seconds", 0), opening.get("reason", ""), str(opening.get("by", "")))
            elif isinstance(closing, dict):
                state = self.gatekeeper.break_glass.stop(str(closing.get("by", "")))
            else:
                state = {**self.recorder.stats(), **self._counted(), "gates": str(self.gatekeeper.gates)}
        except EventError as e:
            return _line({"ack": None, "ok": False, "error": str(e)})
        return _line({"ack": asked.get("n"), **state})


def _object(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as e:
        raise EventError(f"record {raw[:60]!r} is not JSON ({e}); expected one object per line") from None
    if not isinstance(record, dict):
        raise EventError(f"record is {type(record).__name__}; expected an object")
    return record


def _ack(n: Any) -> bytes:
    return b'{"ack": %d}\n' % n if type(n) is int else _line({"ack": n})


def _verdict(n: Any, denied: Denied) -> bytes:
    asked = {"approve": True, "action": denied.action, "severity": denied.severity} if denied.approve else {}
    return _line({"ack": n, "ok": False, "error": str(denied), "retry": False, "denied": denied.rule, **asked})


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"
