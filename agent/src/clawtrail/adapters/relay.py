"""An agent whose recorder is in another process: `Relay` in the agent's, `Relayed` in the forwarder.

A record is `{"n": 7, "rid": "…", "gate": true, "at": seconds, "kind": "…", "outcome": "…", "fields": {…}}`: an event before
it is redacted, judged and numbered, which happens on the other side. So the agent holds no key of the log path, and what
it starts cannot speak for it (`peers`). A text is `{"text": "…"}` until it is a `content` group, or in `model` a hash;
`caused_by` names the `rid` of an earlier record.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ..errors import ClawtrailError, Denied, EventError, GateClosed
from ..hook import RECORD_MAX, shortened
from ..recorder import Recorder
from ..rules import Rules
from ..runs import Runs
from ..watch import Watch
from . import hooks
from .desk import Memory, Recorded
from .scribe import Scribe

log = logging.getLogger("clawtrail.adapters.relay")

BEAT = 8.0  #: seconds between two signs of life
_ANSWER = 10.0  #: seconds beyond the gate's deadline that an answer may take


@dataclass(frozen=True)
class Told:
    """What is on record elsewhere; `id` is what a later record names as its cause."""

    id: str


class Relay:
    """As a `Scribe`, over the socket of a `clawtrail forwarder`. Thread-safe: each thread has a connection of its own.

    Args:
        path: the socket.
        agent: this agent's name, for events that tell of another one.
        deadline: seconds within which the forwarder must be reached; it has its own for its gates.
    """

    def __init__(self, path: str, agent: str, deadline: float = 3.0) -> None:
        self.agent, self._path, self._deadline = agent, path, deadline
        self._own = threading.local()
        self._numbers = itertools.count(1)
        self._closed = threading.Event()
        threading.Thread(target=self._live, name="clawtrail-relay", daemon=True).start()

    def close(self) -> None:
        self._closed.set()

    def content(self, text: str, excerpt: bool = True) -> dict[str, Any]:
        size = len(text.encode("utf-8", "replace"))
        return {"text": text, "size": size} if excerpt else {"text": text, "size": size, "excerpt": False}

    def digest(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def record(self, kind: str, outcome: str, fields: dict[str, Any]) -> Told:
        """The event is on record, an attempt as far as the forwarder's gates ask, when this returns.

        Raises Denied when a rule forbids the action, GateClosed when it is not on record, EventError when it never will be.
        """
        rid = uuid.uuid4().hex
        said = {k: v for k, v in fields.items() if v is not None}
        answer = self._ask({"rid": rid, "gate": outcome == "attempt", "at": time.time(), "kind": kind, "outcome": outcome, "fields": said})
        if answer.get("ok", True):
            return Told(rid)
        why = str(answer.get("error") or "not on record")
        if denied := answer.get("denied"):
            raise Denied(str(denied), why.partition(": ")[2] or why, answer.get("approve") is True)
        raise GateClosed(why) if answer.get("retry") else EventError(why)

    async def arecord(self, kind: str, outcome: str, fields: dict[str, Any]) -> Told:
        """As `record`, without holding up the event loop."""
        return await asyncio.to_thread(self.record, kind, outcome, fields)

    @contextmanager
    def resolving(self, name: str, path: str) -> Iterator[None]:
        """Around reading a secret from a file: not on record, not read."""
        fields = {"credential": {"name": name, "provider": "file", "use": "resolve"}, "target": {"type": "file", "id": path}}
        attempt = self.record("credential.access", "attempt", dict(fields))
        try:
            yield
        except BaseException as e:
            with suppress(ClawtrailError):
                self.record("credential.access", "failure", {**fields, "caused_by": attempt.id, "error": {"type": type(e).__name__, "message": str(e)}})
            raise
        self.record("credential.access", "success", {**fields, "caused_by": attempt.id})

    def _ask(self, record: dict[str, Any]) -> dict[str, Any]:
        until = time.monotonic() + self._deadline
        while True:
            try:
                return self._asked(record)
            except OSError as e:
                self._hang_up()
                if time.monotonic() >= until or self._closed.is_set():
                    raise GateClosed(f"no record, no action: no recorder answers at {self._path} ({e or type(e).__name__})") from None
                time.sleep(0.05)

    def _asked(self, record: dict[str, Any]) -> dict[str, Any]:
        n = next(self._numbers)
        raw = shortened({"n": n, **record}, "fields")
        if raw is None:
            raise EventError(f"a {record.get('kind')} of more than {RECORD_MAX} bytes whose texts are short; expected fewer members")
        connection = self._connection()
        connection.write(raw)
        connection.flush()
        while line := connection.readline():
            answer = json.loads(line)
            if not isinstance(answer, dict) or answer.get("ack") not in (n, None):
                continue
            if answer.get("ack") is None:  # it does not take us for the agent
                return {"ok": False, "error": answer.get("error"), "retry": True}
            return answer
        raise ConnectionResetError("the connection ended before the answer")

    def _connection(self) -> Any:
        file: Any = getattr(self._own, "file", None)
        if file is None:
            sock = socket.socket(socket.AF_UNIX)
            try:
                sock.settimeout(self._deadline + _ANSWER)
                sock.connect(self._path)
                file = self._own.file = sock.makefile("rwb")
            finally:
                sock.close()  # the file keeps it open
        return file

    def _hang_up(self) -> None:
        file: Any = self._own.__dict__.pop("file", None)
        if file is not None:
            with suppress(OSError):
                file.close()

    def _live(self) -> None:
        """A model is asked only for an agent that lives."""
        while True:
            try:
                self._asked({"ping": True, "beat": True})
            except (OSError, ValueError, ClawtrailError):
                self._hang_up()
            if self._closed.wait(BEAT):
                return


class Relayed:
    """Records what a `Relay` hands over, and tells the model proxy which runs are open. Not thread-safe.

    Args:
        recorder, rules, watch: see `Scribe`.
        runs: what is open, for the model proxy.
    """

    def __init__(self, recorder: Recorder, runs: Runs, rules: Rules | None = None, watch: Watch | None = None) -> None:
        self._scribe, self._runs = Scribe(recorder, rules, watch), runs
        self._ids: Memory[str] = Memory()

    def take(self, record: dict[str, Any]) -> list[Recorded]:
        """Records one event; what was recorded, that one first.

        Raises EventError for a record that is none, Denied when a rule forbids the action, QueueFull as the recorder does.
        """
        kind, outcome, given = record.get("kind"), record.get("outcome"), record.get("fields")
        if not isinstance(kind, str) or not isinstance(outcome, str) or not isinstance(given, dict):
            raise EventError(f"a record with kind {kind!r}, outcome {outcome!r}, fields {type(given).__name__}; expected two texts and an object")
        self._runs.beat()
        fields = {**given, "caused_by": self._ids.get(str(given.get("caused_by")))}
        if isinstance(at := record.get("at"), (int, float)):
            fields["time"] = at
        if "content" in given:
            fields["content"] = self._content(hooks.group(given["content"]))
        if "model" in given:
            fields["model"] = {k: self._scribe.digest(hooks.text(v.get("text"))) if isinstance(v, dict) else v for k, v in hooks.group(given["model"]).items()}
        self._scribe.told.clear()
        try:
            told = self._scribe.take(kind, outcome, {k: v for k, v in fields.items() if v is not None}, asks=False)
        finally:
            if self._scribe.told:
                self._ids.put(record.get("rid"), self._scribe.told[0].receipt.id)
        self._follow(outcome, told[0])
        return told

    def _content(self, given: dict[str, Any]) -> dict[str, Any]:
        """What came as a text, redacted; its size is what it was before it was shortened for the way."""
        if not isinstance(text := given.pop("text", None), str):
            return given
        size, excerpt = given.pop("size", 0), given.pop("excerpt", True)
        made = self._scribe.content(text, excerpt is not False)
        if isinstance(size, int) and size > made["size"]:
            made["size"] = size
        return {**made, **given}

    def _follow(self, outcome: str, told: Recorded) -> None:
        runs, fields = self._runs, told.fields
        run, session, trace = fields.get("run"), fields.get("session"), hooks.group(fields.get("trace"))
        call, span = hooks.group(fields.get("tool")).get("call_id"), trace.get("span")
        session = session if isinstance(session, str) else None
        if told.kind == "run.start" and isinstance(run, str):
            runs.started(run, session, hooks.text(trace.get("id")) or None)
        elif told.kind == "run.end" and isinstance(run, str):
            runs.ended(run)
        elif told.kind == "tool.call" and outcome == "attempt" and isinstance(call, str):
            runs.tool_started(call, hooks.text(hooks.group(fields.get("tool")).get("name")))
        elif told.kind == "tool.result" and isinstance(call, str):
            runs.tool_ended(call)
        elif told.kind == "model.request" and isinstance(span, str):
            runs.called(span, run if isinstance(run, str) else None, session, told.receipt.id)
        elif told.kind == "model.decision" and outcome != "success" and isinstance(span, str):
            runs.came_to_nothing(span)
