"""The state of sessions: what of an event only the session's history tells.

Whether the session has read untrusted content, and from where; how far a text may be trusted; which memory was touched
and who is behind it; whether a destination is new; whether a secret that came out of one call goes into another; what a
run has used. And the rules that need this, `companions.py`: they are judged here, where all facts are at hand.

Bounded, and kept in a file for the process that comes after (`kept`): taint, actors, memory and jobs with who is behind them,
destinations, fingerprints, what tools, capabilities and pages were, devices. What is short-lived begins anew with the process:
calls whose result may still come, what a run has used, how fast people answered.
"""

from __future__ import annotations

import time
from typing import Any, Callable, Iterable, Mapping

from .calls import Calls
from .changes import Changes
from .companions import COMPANIONS, configured
from .egress import Egress
from .kept import Kept, as_members, as_text
from .messages import Messages
from .model import Model
from .people import People
from .persistence import Jobs, Memory
from .lifecycle import Lifecycle
from .seen import Seen
from .state import History, Standing
from .text import line_digests, marks

__all__ = ["COMPANIONS", "Kept", "Standing", "Watch", "line_digests", "marks"]


class Watch:
    """Sees every event before it is recorded and adds what its session's history tells. Not thread-safe.

    Args:
        rules: the deployment's rules, see `rules.Rules`: their section `watch` sets thresholds and severities, and texts that
            leave the agent are tried on them. What they match in a call's parameters is found by the caller, who tells them
            of `standing`.
        settings: such a section itself, in place of that of `rules`; see `companions`.
        trusted: tools, or `mcp:server`, whose results are trusted all the same.
        clock: seconds that only go forward.
        kept: where it outlives this process; None: it does not.

    Raises ConfigurationError for settings that are none.
    """

    def __init__(
        self,
        rules: Any = None,
        *,
        settings: Mapping[str, Any] | None = None,
        trusted: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
        kept: Kept | None = None,
    ) -> None:
        self._companions = configured(settings if settings is not None else getattr(rules, "watch", None) or {})
        self._history = history = History(clock)
        self.failed = 0  #: events of a shape that could not be read; they are recorded as they came
        self.kept = kept
        memory, jobs, egress, people = Memory(), Jobs(), Egress(getattr(rules, "said", None)), People()
        life, messages = Lifecycle(history, memory, jobs), Messages(egress)
        self._model, self._changes = model, changes = Model(egress), Changes(history, jobs)
        calls = Calls(history, egress, memory, jobs, changes, frozenset(trusted))
        if kept is not None:
            kept.hold("taints", history.taints, as_text)
            kept.hold("actors", history.actors, as_members)
            for room in (memory, jobs, egress, people, changes, calls):
                room.keep(kept)
        self._kinds: dict[str, Callable[[Seen], None]] = {
            "run.start": life.start, "run.end": life.end, "session.end": life.session_end,
            "subagent.start": life.subagent_start, "subagent.end": life.subagent_end,
            "message.in": messages.come_in, "message.out": messages.go_out,
            "model.request": model.request, "model.decision": model.decision,
            "tool.call": calls.call, "tool.result": calls.result,
            "approval.request": people.asked, "approval.result": people.answered, "auth.login": people.login,
            "config.change": changes.change, "policy.decision": changes.policy, "system.heartbeat": changes.heartbeat,
        }  # fmt: skip

    def see(self, kind: str, outcome: str, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields with what the history adds; `fields` itself stays as it is. Never raises."""
        try:
            seen = Seen(self._history, self._companions, kind, outcome, fields)
            if handle := self._kinds.get(kind):
                handle(seen)
            return seen.fields()
        except Exception:
            self.failed += 1
            return fields

    def recorded(self, kind: str, fields: Mapping[str, Any], id: str) -> None:
        """Tells under which id an event that `see` returned was recorded, so that a later one can name it as its cause."""
        session, tool = fields.get("session"), fields.get("tool")
        if isinstance(session, str) and (state := self._history.sessions.get(session)):
            state.last[kind] = id
        call_id = tool.get("call_id") if kind == "tool.call" and isinstance(tool, dict) else None
        if isinstance(call_id, str) and (call := self._history.calls.get(call_id)):
            call.id = id

    def standing(self, session: object, run: object = None, actor: object = None) -> Standing:
        """Whether the session is tainted and its actor the owner, for `Rules.hits`. `actor`: whom the host names. Never raises."""
        return self._history.standing(session, run, actor)

    def instructions(self, session: object, digests: Iterable[object]) -> None:
        """The lines of a session's system prompt as `line_digests` gives them, for the rule output.repeats-system-prompt."""
        self._model.instructions(session, digests)

    def definitions(self, hashes: Mapping[str, str], session: object = None) -> list[tuple[str, str, str]]:
        """The tools' definitions as the model is shown them: name → hash. Returns (name, before, after) of those that changed.

        From now on each call of the tool carries its hash as `tool.def`. A host shows its owner, its guests and its
        subagents different ones: a change is one against what the same sort of session was shown, to what none was.
        """
        return self._changes.shown(hashes, session)

    @property
    def counters(self) -> dict[str, int]:
        """For the heartbeat: sessions known and tainted, taints that there was no room for, events that could not be read, changes not kept."""
        taints, unsaved = self._history.taints, self.kept.unsaved if self.kept is not None else 0
        known = {"sessions": len(self._history.sessions), "tainted": len(taints), "taints_lost": taints.let_go, "unread": self.failed}
        return known | ({"unsaved": unsaved} if unsaved else {})
