"""Where the readings of one OpenClaw gateway are recorded: what they share, and what they remember of one another."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple, TypeVar

from .. import event as ev
from ..recorder import Receipt, Recorder
from ..redact import Found
from ..runs import Runs
from ..watch import Watch, marks
from ..watch.kept import as_text
from ..watch.state import Bounded
from . import hooks
from .fitting import fitted

REMEMBER = 10_000  #: attempts whose outcome may still come

V = TypeVar("V")


class Recorded(NamedTuple):
    """One event that a record became."""

    kind: str
    fields: dict[str, Any]
    receipt: Receipt


class Memory(OrderedDict[str, V]):
    """The newest REMEMBER entries; what is older is forgotten."""

    def put(self, key: object, value: V) -> None:
        self[str(key)] = value
        self.move_to_end(str(key))
        while len(self) > REMEMBER:
            self.popitem(last=False)


class Call(NamedTuple):
    """A tool call that has not come back: the id of its event, and what its outcome does not say itself."""

    event: str
    name: str
    call_id: str
    session: str | None
    run: str | None
    trace: dict[str, Any] | None
    params: str  #: SHA-256 of the redacted parameters
    mark: int  #: of the parameters as they came, see `hooks.mark`


class Desk:
    """One recorder, the hook that is being read, and what was recorded before. Not thread-safe."""

    def __init__(self, recorder: Recorder, runs: Runs | None, watch: Watch | None) -> None:
        self._recorder = recorder
        self._watch = watch or Watch()
        self._open = runs or Runs()
        self._hook, self._time = "", None  # type: str, float | None
        self._recorded: list[Recorded] = []
        self._attempts: Memory[str] = Memory()
        self._calls: Memory[Call] = Memory()
        self._current: Memory[str] = Memory()  # session: the run that goes on in it
        self._versions: Bounded[str, str] = self._kept("versions")  # of files, servers, configuration: what was last seen of each

    def _kept(self, name: str) -> Bounded[str, str]:
        """A table that outlives the process where the watch's does."""
        table: Bounded[str, str] = Bounded(REMEMBER)
        if self._watch.kept is not None:
            self._watch.kept.hold(name, table, as_text)
        return table

    def _record(self, kind: str, outcome: str, fields: dict[str, Any]) -> str:
        fields = self._watch.see(kind, outcome, fitted(kind, fields, self._recorder.redactor))
        receipt = self._recorder.record(kind, outcome, time=self._time, **fields)
        self._watch.recorded(kind, fields, receipt.id)
        self._recorded.append(Recorded(kind, fields, receipt))
        return receipt.id

    def _common(self, event: dict[str, Any], ctx: dict[str, Any]) -> dict[str, Any]:
        trace = hooks.group(ctx.get("trace") or event.get("trace"))
        return {
            "session": hooks.text(ctx.get("sessionKey") or event.get("sessionKey")) or None,
            "run": hooks.text(ctx.get("runId") or event.get("runId")) or None,
            "trace": hooks.some({"id": trace.get("traceId"), "span": trace.get("spanId"), "parent": trace.get("parentSpanId")}),
        }

    def _content(self, text: str) -> dict[str, Any]:
        found = Found()
        redacted = self._recorder.redactor.string(text, found)
        return ev.content(redacted, len(text.encode("utf-8", "replace")), **found.fields(), **marks(redacted))

    def _parameters(self, params: dict[str, Any]) -> dict[str, Any]:
        """As `_content`, of the JSON of a call's parameters."""
        redactor = self._recorder.redactor
        written = redactor.written(params)
        if written is None:
            written = ev.dumps(ev.clean(params))
            if not redactor.make_plain({"params": params}, written):
                return self._content(written)
        return ev.content(written, len(written.encode()), **marks(written))

    def _change(self, outcome: str, change: dict[str, Any], event: dict[str, Any], ctx: dict[str, Any], **more: Any) -> str:
        return self._record("config.change", outcome, self._common(event, ctx) | {"change": hooks.some(change), **more})

    def _compare(self, what: str, name: str, after: str, first: bool = True, **more: Any) -> None:
        """A config.change when this is not what was last seen under the name; `none` stands for nothing.

        `first`: to be seen for the first time is a change too.
        """
        key = f"{what} {name}"
        known = key in self._versions
        before = self._versions.get(key, "none")
        if before != after or not known:
            self._versions.put(key, after)
        if before != after and (known or first):
            self._change("success", {"what": what, "name": name, "before": before, "after": after, **more}, {}, {})
