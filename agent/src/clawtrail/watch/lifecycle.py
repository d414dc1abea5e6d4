"""How sessions and runs begin, inherit from each other, spend and end."""

from __future__ import annotations

from typing import Any, Mapping

from .messages import judge_instruction
from .persistence import Jobs, Memory
from .seen import Seen
from .state import History, Run, nobody

_GOES_ON = frozenset({"compaction", "shutdown", "restart"})  # reasons of a session's end after which its context goes on
_TOKENS = ("input", "output", "cache_read", "cache_write", "reasoning")


class Lifecycle:
    def __init__(self, history: History, memory: Memory, jobs: Jobs) -> None:
        self._history, self._memory, self._jobs = history, memory, jobs

    def start(self, seen: Seen) -> None:
        actor = {} if nobody(seen.session, seen.run, seen.group("actor")) else seen.group("actor")
        self._history.begins(seen.run, actor)
        if actor:
            self._history.acts_for(seen.session, seen.state, actor)
        self._inherit(seen)
        judge_instruction(seen, actor)
        seen.taint = seen.state.taint or None
        seen.cause("message.in")

    def _inherit(self, seen: Seen) -> None:
        """What others have read and left for this run."""
        name, trigger = seen.session if isinstance(seen.session, str) else "", seen.group("trigger")
        if isinstance(seen.run, str) and seen.run.startswith("announce:v1:"):
            self._history.carry(seen.run.removeprefix("announce:v1:").rpartition(":")[0], name)
        if trigger.get("type") == "cron":
            seen.has_read(self._jobs.taint(trigger.get("ref")))
        if ":subagent:" in name and not seen.state.taint:
            # The host may tell that a subagent was spawned only after it has begun: who spawns now, may be its parent.
            for parent in self._history.spawning.values():
                if parent.split(":")[:2] == name.split(":")[:2]:
                    self._history.descends(parent, name)
        seen.has_read(self._memory.put_into_every_session() or "")

    def end(self, seen: Seen) -> None:
        if run := self._history.ends(seen.run):
            own = {"steps": run.tools or run.calls, "tools": run.tools, **run.usage}
            seen.put("usage", {**{k: v for k, v in own.items() if v}, **seen.group("usage")})
            _budget(seen, run, True)
        seen.cause("run.start")

    def session_end(self, seen: Seen) -> None:
        if isinstance(seen.session, str) and seen.word("health", "reason") not in _GOES_ON:
            self._history.forget(seen.session)

    def subagent_start(self, seen: Seen) -> None:
        self._history.descends(seen.session, seen.word("peer", "session"))
        seen.cause("tool.call")

    def subagent_end(self, seen: Seen) -> None:
        self._history.carry(seen.word("peer", "session"), seen.session)  # its answer is announced to who asked


def step(seen: Seen, *, calls: int = 0, tools: int = 0, usage: Mapping[str, Any] | None = None) -> Run | None:
    """The run of an event by which it acts, with what it has used by now; one that has never begun went past the gate."""
    history = seen.history
    if seen.kind == "tool.call" and isinstance(seen.run, str) and not history.began(seen.run):
        if history.clock() - history.born > seen.limits("hooks.bypassed")["grace_s"]:
            seen.hit("hooks.bypassed")
    if run := history.run(seen.run):
        run.calls, run.tools = run.calls + calls, run.tools + tools
        for key in _TOKENS:
            n = (usage or {}).get(key)
            if isinstance(n, int) and not isinstance(n, bool) and n > 0:
                run.usage[key] = run.usage.get(key, 0) + n
        if calls or tools:
            _budget(seen, run)
    return run


def _budget(seen: Seen, run: Run, again: bool = False) -> None:
    limits = seen.limits("run.over-budget")
    over = run.steps > limits["steps"] or run.usage.get("input", 0) + run.usage.get("output", 0) > limits["tokens"]
    if over and (again or not run.over):
        run.over = True
        seen.hit("run.over-budget")
