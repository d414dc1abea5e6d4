"""What is remembered of sessions, runs and calls, and what it says of the next event. All of it is bounded: what is let go is the oldest."""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Callable, Generic, Mapping, NamedTuple, TypeVar

K = TypeVar("K")
V = TypeVar("V")

SESSIONS = 4096  #: remembered in full
TAINTS = 16_384  #: tainted sessions remembered when the rest of them is forgotten
RUNS = 4096
CALLS = 8192
SPAWNING = 1024


class Bounded(OrderedDict[K, V], Generic[K, V]):
    """A dict of at most `most` entries; a new one takes the place of the one that was longest untouched."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.let_go = 0
        self.told: Callable[..., None] | None = None  #: hears of each change: (key, value), or (key) when it is gone

    def put(self, key: K, value: V) -> V:
        if self.told is not None and (key not in self or self[key] != value):
            self.told(key, value)
        self[key] = value
        self.move_to_end(key)
        while len(self) > self.most:
            gone, _ = self.popitem(last=False)
            self.let_go += 1
            if self.told is not None:
                self.told(gone)
        return value

    def drop(self, key: K) -> None:
        if key in self:
            del self[key]
            if self.told is not None:
                self.told(key)

    def use(self, key: K) -> V | None:
        value = self.get(key)
        if value is not None:
            self.move_to_end(key)
        return value


@dataclass(slots=True)
class Session:
    """One conversation. `taint`: the first untrusted source in its live context; `last`: kind → id of its newest event."""

    taint: str = ""
    actor: dict[str, Any] | None = None
    last: dict[str, str] = field(default_factory=dict)
    named: dict[str, None] = field(default_factory=dict)  #: destinations that a trusted message named
    refusals: dict[str, int] = field(default_factory=dict)  #: of the model, by who saw them

    def name(self, destination: str) -> None:
        if len(self.named) < 128:
            self.named[destination] = None


@dataclass(slots=True)
class Run:
    """What a run has used so far."""

    actor: dict[str, Any] | None = None
    calls: int = 0
    tools: int = 0
    usage: dict[str, int] = field(default_factory=dict)
    over: bool = False

    @property
    def steps(self) -> int:
        return max(self.calls, self.tools)


@dataclass(slots=True)
class Call:
    """A tool call whose result may still come."""

    tool: str
    session: str | None
    taint: str
    source: str | None
    store: dict[str, Any] | None
    reads: list[str]
    local: bool
    job: str | None = None
    recurring: str | None = None
    id: str | None = None  #: of the event


class Standing(NamedTuple):
    """What a stateless rule is told of a session: `owner` is None when the host does not say."""

    tainted: bool
    owner: bool | None


class History:
    """All sessions, runs and calls of a watch; names come from hosts and may be of any type.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock, self.born = clock, clock()
        self.sessions: Bounded[str, Session] = Bounded(SESSIONS)
        self.taints: Bounded[str, str] = Bounded(TAINTS)
        self.actors: Bounded[str, dict[str, Any]] = Bounded(SESSIONS + RUNS)  #: for whom a session, or `run ID`, acts
        self.runs: Bounded[str, Run] = Bounded(RUNS)
        self.calls: Bounded[str, Call] = Bounded(CALLS)
        self.spawning: Bounded[str, str] = Bounded(SPAWNING)  #: id of a call that makes a subagent → its session

    def session(self, name: object) -> Session:
        if not isinstance(name, str) or not name:
            return Session()  # nowhere to remember it
        state = self.sessions.use(name)
        return state or self.sessions.put(name, Session(self.taints.get(name, ""), self.actors.get(name)))

    def run(self, name: object) -> Run | None:
        if not isinstance(name, str) or not name:
            return None
        return self.runs.use(name) or self.runs.put(name, Run(self.actors.get(f"run {name}") or None))

    def begins(self, name: object, actor: dict[str, Any]) -> None:
        """A run's start: for whom it acts, nobody for an empty `actor`."""
        if run := self.run(name):
            run.actor = actor or None
            self.actors.put(f"run {name}", actor)

    def began(self, run: str) -> bool:
        """Whether anything of the run was seen before, or its start by the process before this one."""
        return run in self.runs or f"run {run}" in self.actors

    def ends(self, name: object) -> Run | None:
        """A run's end: what it has used."""
        if not isinstance(name, str):
            return None
        self.actors.drop(f"run {name}")
        return self.runs.pop(name, None)

    def acts_for(self, name: object, state: Session, actor: dict[str, Any]) -> None:
        """For whom a session acts from now on."""
        state.actor = actor
        if isinstance(name, str) and name:
            self.actors.put(name, actor)

    def forget(self, session: str) -> None:
        self.sessions.pop(session, None)
        self.taints.drop(session)
        self.actors.drop(session)

    def taint(self, name: object, state: Session, source: str) -> None:
        if not state.taint and source:
            state.taint = source[:256]
            if isinstance(name, str) and name:
                self.taints.put(name, state.taint)

    def carry(self, source: object, to: object) -> None:
        """What one session has read, the other has from now on."""
        if isinstance(source, str) and (taint := self.taints.get(source)):
            self.taint(to, self.session(to), taint)

    def descends(self, parent: object, child: str) -> None:
        """A subagent has read what its parent has, and works for whom the parent works for."""
        self.carry(parent, child)
        if child and (actor := self._actor(parent)):
            state = self.session(child)
            if not state.actor:
                self.acts_for(child, state, actor)

    def standing(self, session: object, run: object, actor: object) -> Standing:
        state = self.sessions.get(session) if isinstance(session, str) else None
        of_run = self.runs.get(run) if isinstance(run, str) else None
        owner = actor.get("owner") if isinstance(actor, dict) and not nobody(session, run, actor) else None
        if owner is None:
            run_acts_for = of_run.actor if of_run else self.actors.get(f"run {run}")
            owner = (run_acts_for or self._actor(session) or {}).get("owner")
        taint = state.taint if state else self.taints.get(session, "") if isinstance(session, str) else ""
        return Standing(bool(taint), owner if isinstance(owner, bool) else None)

    def _actor(self, session: object) -> dict[str, Any] | None:
        if not isinstance(session, str):
            return None
        state = self.sessions.get(session)
        return state.actor if state else self.actors.get(session)

    def sort(self, session: object) -> str:
        """Sessions of one sort are shown the same tools: the owner's, a guest's, a subagent's."""
        inner = re.search(r":(subagent|cron|heartbeat):", session) if isinstance(session, str) else None
        return f"{inner[1] if inner else 'main'} {self.standing(session, None, None).owner}"


def nobody(session: object, run: object, actor: Mapping[str, Any]) -> bool:
    """What a host starts by itself it calls "not the owner": no person is behind that."""
    inner = isinstance(session, str) and (":subagent:" in session or ":cron:" in session or ":heartbeat:" in session)
    inner = inner or (isinstance(run, str) and run.startswith("announce:")) or actor.get("type") in ("agent", "system")
    return inner and not actor.get("id") and actor.get("owner") is not True
