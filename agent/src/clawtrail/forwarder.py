"""The sidecar: takes records from the agent's gateway over one unix socket, acknowledges each after it is accepted.

Protocol: JSON lines. `{"n": 7, "rid": "…", "hook": "…", "at": "…", "event": {…}, "ctx": {…}}` is answered by
`{"ack": 7}` when its events are in the spool, as durably as the recorder is told to, or by `{"ack": 7, "ok": false, "error": "…", "retry": false}` when it was not accepted. `{"n": 8, "ping": true}` is
answered and not recorded; `{"n": 9, "status": true}` is answered with the counters.

What the agent starts runs under the gateway's uid and could write to the socket itself. The kernel names the peer's
process (SO_PEERCRED); only what the engine starts in a container, its main process above all, has no parent in the
shared process namespace, and nothing that an agent starts can get rid of its own. So that process is heard, and anyone else is refused, recorded and flagged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import struct
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .adapters.openclaw import OpenClaw
from .errors import ClawtrailError, EventError, QueueFull, SpoolError
from .recorder import Recorder
from .redact import Found
from .runs import Runs

log = logging.getLogger("clawtrail.forwarder")

LINE_MAX = 1 << 20  #: bytes of one record
REFUSED_STAYS = 0.5  #: seconds at most between a refusal and the end of the connection
_REMEMBER = 20_000  #: record ids kept, so that a record that is sent again is recorded once


@dataclass(frozen=True)
class Peer:
    """Who connected, as the kernel tells. pid 0: the process is outside of our process namespace."""

    pid: int
    uid: int

    @classmethod
    def of(cls, sock: socket.socket) -> Peer:
        pid, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return cls(pid, uid)

    @property
    def parent(self) -> int | None:
        """The parent's pid, 0 for a container's main process, None when the process is gone."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except OSError:
            return None
        return int(stat.rpartition(")")[2].split()[1])


class Forwarder:
    """Serves the socket until SIGTERM or SIGINT.

    Args:
        recorder: where accepted records go.
        path: the unix socket; a stale one is replaced.
        gateway_uid: uid of the gateway process; None: any uid (for a host where only the socket's mode decides).
        main_process: accept only a container's main process.
        runs: what is open in the gateway, for the model proxy.
    """

    def __init__(
        self, recorder: Recorder, path: str, gateway_uid: int | None, main_process: bool = True, runs: Runs | None = None
    ) -> None:
        self.recorder, self.path, self.runs = recorder, path, runs or Runs()
        recorder.health = lambda: {"component": "forwarder", **self.counters}
        self._gateway_uid, self._main_process = gateway_uid, main_process
        self._openclaw = OpenClaw(recorder, self.runs)
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._last_refusal = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self.counters = {"connections": 0, "refused": 0, "acknowledged": 0, "rejected": 0, "repeated": 0}

    async def serve(self) -> None:
        """Listens, heartbeats, and returns after SIGTERM or SIGINT; every accepted record is handed to the recorder by then."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopped.set)
        with suppress(FileNotFoundError):
            os.unlink(self.path)
        server = await asyncio.start_unix_server(self._connection, self.path, limit=LINE_MAX)
        os.chmod(self.path, 0o666)  # who may speak is decided by process, not by file mode
        log.info("listening on %s", self.path)
        self.recorder.beat()
        await stopped.wait()
        server.close()
        for writer in self._writers:
            writer.close()
        with suppress(FileNotFoundError):
            os.unlink(self.path)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer.of(writer.get_extra_info("socket"))
        self._writers.add(writer)
        try:
            if peer.uid == os.getuid() and peer.pid and peer.parent == 0:
                await self._answer(reader, writer, self._status)
                return
            if why := self._refusal(peer):
                self._refused(peer, why)
                writer.write(_line({"ack": None, "ok": False, "error": f"refused: {why}"}))
                with suppress(TimeoutError):  # it may still be writing, and would meet an end in place of the answer
                    await asyncio.wait_for(reader.read(LINE_MAX), REFUSED_STAYS)
                return
            self.counters["connections"] += 1
            log.info("gateway connected: pid %d", peer.pid)
            await self._answer(reader, writer, self._take)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    def _refusal(self, peer: Peer) -> str | None:
        if peer.pid == 0:
            return "the process is not visible; expected a peer in the same process namespace"
        if self._gateway_uid is not None and peer.uid != self._gateway_uid:
            return f"uid {peer.uid}; expected the gateway's uid {self._gateway_uid}"
        if self._main_process and (parent := peer.parent) != 0:
            return f"process {peer.pid} was started by process {parent}; expected the gateway itself"
        return None

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
                flag={"rule": "trail.tamper", "severity": "critical", "technique": "T1562.001"},
                health={"refused": self.counters["refused"]},
            )

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Any) -> None:
        while True:
            try:
                raw = await reader.readuntil(b"\n")
            except asyncio.LimitOverrunError:
                writer.write(_line(self._reject(None, f"a record of more than {LINE_MAX} bytes")))
                return
            answer = handle(raw)
            if error := await self._unsynced(answer):
                answer = error
            writer.write(_line(answer))
            await writer.drain()

    async def _unsynced(self, answer: dict[str, Any]) -> dict[str, Any] | None:
        """An acknowledgement waits until what it stands for is on the disk; the refusal when it does not get there."""
        if answer.get("ok") is False:
            return None
        try:
            await self.recorder.async_sync()
        except SpoolError as e:
            return self._reject(answer.get("ack"), str(e), retry=True)
        return None

    def _take(self, raw: bytes) -> dict[str, Any]:
        n = None
        try:
            record = _object(raw)
            n = record.get("n")
            if record.get("ping"):
                return {"ack": n}
            rid = record.get("rid")
            if isinstance(rid, str) and rid in self._seen:
                self.counters["repeated"] += 1
                return {"ack": n}
            if "hook" in record:
                self._openclaw.take(record)
            else:
                self._direct(record)
            if isinstance(rid, str):
                self._seen[rid] = None
                if len(self._seen) > _REMEMBER:
                    self._seen.popitem(last=False)
        except (QueueFull, SpoolError) as e:
            return self._reject(n, str(e), retry=True)
        except ClawtrailError as e:
            return self._reject(n, str(e), raw=raw)
        except Exception as e:  # a record that breaks the mapping is refused, so a gate stays closed
            log.exception("record not understood")
            return self._reject(n, f"{type(e).__name__}: {e}", raw=raw)
        self.counters["acknowledged"] += 1
        return {"ack": n}

    def _direct(self, record: dict[str, Any]) -> None:
        fields = {k: v for k, v in record.items() if k not in ("n", "rid", "kind", "outcome", "at")}
        self.recorder.record(str(record.get("kind")), record.get("outcome", "success"), **fields)

    def _reject(self, n: Any, why: str, raw: bytes = b"", retry: bool = False) -> dict[str, Any]:
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
        return {"ack": n, "ok": False, "error": why, "retry": retry}

    def _status(self, raw: bytes) -> dict[str, Any]:
        return {"ack": _object(raw).get("n"), **self.recorder.stats(), **self.counters}


def _object(raw: bytes) -> dict[str, Any]:
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise EventError(f"record {raw[:60]!r} is not JSON ({e}); expected one object per line") from None
    if not isinstance(record, dict):
        raise EventError(f"record is {type(record).__name__}; expected an object")
    return record


def _line(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def status(path: str, timeout: float = 3.0) -> dict[str, Any]:
    """The forwarder's counters, asked over its socket by a process of its own uid. Raises OSError when it does not answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(timeout)
        sock.connect(path)
        sock.sendall(b'{"n":1,"status":true}\n')
        answer: dict[str, Any] = json.loads(sock.makefile("rb").readline() or b"{}")
    if answer.get("ok") is False or "accepted" not in answer:
        raise OSError(f"the forwarder answered {answer.get('error') or answer}")
    return answer
