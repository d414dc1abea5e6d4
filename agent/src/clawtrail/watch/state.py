"""What is remembered of sessions, runs and calls. Everything here is bounded; what is let go is the oldest."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Bounded(OrderedDict[K, V], Generic[K, V]):
    """A dict of at most `most` entries; a new one takes the place of the one that was longest untouched."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.let_go = 0

    def put(self, key: K, value: V) -> V:
        self[key] = value
        self.move_to_end(key)
        while len(self) > self.most:
            self.popitem(last=False)
            self.let_go += 1
        return value

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
    run: str | None = None
    last: dict[str, str] = field(default_factory=dict)
    named: dict[str, None] = field(default_factory=dict)  #: destinations that a trusted message named
    refusals: int = 0
    repeats: dict[str, int] = field(default_factory=dict)  #: digest of an outgoing text → how often

    def name(self, destination: str) -> None:
        if len(self.named) < 128:
            self.named[destination] = None


@dataclass(slots=True)
class Run:
    """What a run has used so far."""

    session: str | None
    started: bool
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
