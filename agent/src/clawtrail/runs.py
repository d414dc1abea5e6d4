"""What the gateway does now, as its plugin has recorded it: open runs, open tools, the plugin's sign of life.

The adapter writes it, the model proxy reads it: a model is asked only for a run whose start is on record. Both work in
one event loop, so nothing here locks. Open runs are kept in a small file as well: a forwarder that was started anew
still knows the run that is waiting for it.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, TypeVar

SILENT = 25.0  #: seconds after which a plugin that beats every ten is taken for gone
GRACE = 5.0  #: seconds that a run is still open after its end: the last request and the end cross
JOIN = 60.0  #: seconds within which a request at the proxy and the hook that tells of it must meet
STALE = 86_400.0  #: seconds after which a run or a tool whose end never came is no longer open
_REMEMBER = 10_000  #: runs, tools and spans of each sort
_FILE_MAX = 1 << 20  #: bytes of the file before what has ended is left out of it

T = TypeVar("T")


@dataclass
class Run:
    """One run. `started` is wall-clock seconds, `ended` monotonic ones, 0 while it goes on."""

    run: str
    session: str | None
    trace: str | None
    started: float
    ended: float = 0.0


@dataclass(frozen=True)
class Tool:
    """A tool that was called and has not come back. `since`: monotonic seconds."""

    call_id: str
    tool: str
    since: float


@dataclass(frozen=True)
class Alone:
    """Half of a model call. `by` is who told of it: `proxy`, and no hook did, or `hook`, and the proxy never saw it."""

    by: str
    span: str
    run: str | None
    session: str | None
    event: str | None  #: id of the event that tells of it


class Runs:
    """The runs of one gateway.

    Args:
        path: file in which open runs outlive this process; None: they do not.
        clock: seconds that only go forward.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._path = clock, path
        self._runs: OrderedDict[str, Run] = OrderedDict()
        self._traces: OrderedDict[str, list[Run]] = OrderedDict()
        self._tools: OrderedDict[str, Tool] = OrderedDict()
        self._last: OrderedDict[str, float] = OrderedDict()
        self._asked: OrderedDict[str, tuple[float, Alone]] = OrderedDict()
        self._called: OrderedDict[str, tuple[float, Alone]] = OrderedDict()
        self._spans: OrderedDict[str, Run | None] = OrderedDict()
        self._refused: OrderedDict[str, None] = OrderedDict()
        self._beat: float | None = None
        self.unsaved = 0  #: starts and ends that could not be written to the file
        self._file = -1
        if path is not None:
            self._load(path)

    # -- the plugin ----------------------------------------------------------------------------------------------

    def beat(self) -> None:
        """The plugin has said something: it lives."""
        self._beat = self._clock()

    def silence(self) -> float | None:
        """Seconds since the plugin's last word; None: it has not said any."""
        return None if self._beat is None else self._clock() - self._beat

    def alive(self) -> bool:
        """The plugin has spoken within SILENT seconds."""
        silence = self.silence()
        return silence is not None and silence <= SILENT

    # -- runs ----------------------------------------------------------------------------------------------------

    def started(self, run: str, session: str | None, trace: str | None) -> None:
        """The start of a run is on record. `trace`: the id that the run and its subagents share, 32 hex digits."""
        one = Run(run, session, trace, time.time())
        self._open(one)
        self._save({"run": run, "session": session, "trace": trace, "at": int(one.started)})

    def ended(self, run: str) -> None:
        """The run is over; a request that was on its way is still taken for GRACE seconds."""
        one = self._runs.get(run)
        if one is not None and not one.ended:
            one.ended = self._clock()
            self._save({"ended": run})

    def knows(self, run: str) -> bool:
        """Whether the start of this run is on record: one that goes on, or whose end this process has seen."""
        return run in self._runs

    def by_trace(self, trace: str | None) -> Run | None:
        """The newest open run of this trace; parent, subagents and announcements share one."""
        return next(reversed(self.all_of(trace)), None)

    def all_of(self, trace: str | None) -> list[Run]:
        """The open runs of a trace, oldest first."""
        return [r for r in self._traces.get(trace or "", ()) if self._is_open(r)]

    def by_span(self, span: str | None) -> Run | None:
        """The run whose model call this is, once the hook has told; None before."""
        return self._spans.get(span or "")

    @property
    def open(self) -> int:
        return sum(map(self._is_open, self._runs.values()))

    def _is_open(self, run: Run) -> bool:
        if run.ended:
            return self._clock() - run.ended < GRACE
        return time.time() - run.started < STALE

    def _open(self, run: Run) -> None:
        self._forget(self._runs.pop(run.run, None))
        self._runs[run.run] = run
        if run.trace:
            self._traces.setdefault(run.trace, []).append(run)
        while len(self._runs) > _REMEMBER:
            self._forget(self._runs.popitem(last=False)[1])

    def _forget(self, run: Run | None) -> None:
        if run is not None and run.trace and (others := self._traces.get(run.trace)):
            others[:] = [r for r in others if r is not run]
            if not others:
                del self._traces[run.trace]

    # -- tools ---------------------------------------------------------------------------------------------------

    def tool_started(self, call_id: str, tool: str) -> None:
        """A tool is about to run. A second call with the same id takes the first one's place."""
        self._tools.pop(call_id, None)
        self._tools[call_id] = Tool(call_id, tool, self._clock())
        _bound(self._tools)

    def tool_ended(self, call_id: str) -> None:
        if (ended := self._tools.pop(call_id, None)) is not None:
            self._last[ended.tool] = self._clock()
            _bound(self._last)

    def last_end(self, tool: str) -> float:
        """Monotonic seconds at which a call of this tool last ended; -inf: none has."""
        return self._last.get(tool, -math.inf)

    def open_tools(self) -> list[Tool]:
        """Tools that run now, the one that was called first at the head."""
        return [t for t in self._tools.values() if self._clock() - t.since < STALE]

    # -- requests and the hooks that tell of them ----------------------------------------------------------------

    def asked(self, span: str, run: Run | None, event: str) -> None:
        """The proxy has a request of this span; `event`: the record's id."""
        if self._called.pop(span, None) is None and span not in self._spans:
            self._asked[span] = self._clock(), Alone("proxy", span, run.run if run else None, run.session if run else None, event)
            _bound(self._asked)

    def refused(self, span: str) -> None:
        """The proxy has refused a request of this span: the hook that tells of it has nothing to meet."""
        if self._called.pop(span, None) is None:
            self._refused[span] = None
            _bound(self._refused)

    def called(self, span: str, run: str | None, session: str | None, event: str) -> None:
        """The hook has told of a model call with this span."""
        self._spans[span] = self._runs.get(run or "") or Run(run, session, None, time.time()) if run else None
        _bound(self._spans)
        if self._asked.pop(span, None) is None and span not in self._refused:
            self._called[span] = self._clock(), Alone("hook", span, run, session, event)
            _bound(self._called)

    def came_to_nothing(self, span: str) -> None:
        """The hook has told that the model call failed: it may never have reached the proxy."""
        self._called.pop(span, None)

    def alone(self) -> list[Alone]:
        """Halves of model calls whose other half did not come within JOIN seconds; each is returned once."""
        found = []
        for waiting in (self._asked, self._called):
            while waiting and self._clock() - next(iter(waiting.values()))[0] > JOIN:
                found.append(waiting.popitem(last=False)[1][1])
        return found

    # -- the file ------------------------------------------------------------------------------------------------

    def _load(self, path: Path) -> None:
        try:
            lines = path.read_bytes().splitlines()
        except OSError:
            lines = []
        for line in lines:
            try:
                said = json.loads(line)
                if "ended" in said:
                    self._forget(self._runs.pop(said["ended"], None))
                else:
                    self._open(Run(said["run"], said["session"], said["trace"], float(said["at"])))
            except (ValueError, KeyError, TypeError):  # torn by a loss of power
                continue
        self._write_anew(path)

    def _write_anew(self, path: Path) -> None:
        """The file with nothing but the open runs, under its name when it is whole."""
        try:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            fresh = path.with_name(f".{path.name}.new")
            still = [r for r in self._runs.values() if not r.ended and self._is_open(r)]
            fresh.touch(0o600)
            fresh.write_text("".join(_line({"run": r.run, "session": r.session, "trace": r.trace, "at": int(r.started)}) for r in still))
            fresh.replace(path)
            if self._file >= 0:
                os.close(self._file)
            self._file = -1
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            self.unsaved += 1

    def _save(self, said: dict[str, Any]) -> None:
        if self._path is None:
            return
        try:
            os.write(self._file, _line(said).encode("utf-8", "backslashreplace"))
            if os.fstat(self._file).st_size > _FILE_MAX:
                self._write_anew(self._path)
        except OSError:  # the run goes on; only a forwarder that is started anew will not know it
            self.unsaved += 1

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _line(said: dict[str, Any]) -> str:
    return json.dumps(said, separators=(",", ":")) + "\n"


def _bound(memory: OrderedDict[str, T]) -> None:
    while len(memory) > _REMEMBER:
        memory.popitem(last=False)
