"""What the agent can do and what guards it, and when either changes: tools, skills, plugins, approvals, sandbox, hooks."""

from __future__ import annotations

import re
from typing import Any, Mapping

from .kept import Kept, as_names, as_text
from .persistence import Jobs
from .seen import Seen
from .state import Bounded, History

NAMES = 2048  #: tools, skills

_OFF = frozenset({"off", "none", "disabled", "disable", "false", "never", "full", "removed", "unloaded", "uninstalled", "deleted"})
_ABSENT = frozenset({"", "none", "null", "added", "absent"})
_GATE_NAME = re.compile(r"approv|exec\.(?:ask|security)|sandbox|elevated", re.IGNORECASE)


class Changes:
    """Knows each tool's definition as it was last shown, by sort of session, and each capability's version."""

    def __init__(self, history: History, jobs: Jobs) -> None:
        self._history, self._jobs = history, jobs
        self._definitions: Bounded[str, str] = Bounded(NAMES)
        self._shown: Bounded[str, dict[str, None]] = Bounded(NAMES)
        self._versions: Bounded[str, str] = Bounded(NAMES)

    def keep(self, kept: Kept) -> None:
        kept.hold("definitions", self._definitions, as_text)
        kept.hold("shown", self._shown, as_names)
        kept.hold("capabilities", self._versions, as_text)

    def shown(self, hashes: Mapping[str, str], session: object) -> list[tuple[str, str, str]]:
        """See `Watch.definitions`."""
        changed, sort = [], self._history.sort(session)
        for name, after in list(hashes.items())[:NAMES]:
            before, known = self._definitions.get(f"{sort} {name}"), self._shown.get(name) or {}
            if before is not None and before != after and after not in known:
                changed.append((name, before, after))
            if after not in known and len(known) < 32:
                self._shown.put(name, {**known, after: None})
            self._definitions.put(f"{sort} {name}", after)
        return changed

    def definition(self, seen: Seen) -> None:
        """A call's tool, with the hash of the definition that the model was shown."""
        tool = seen.group("tool")
        if self._definitions and not tool.get("def") and (shown := self._definitions.get(f"{self._history.sort(seen.session)} {seen.word('tool', 'name')}")):
            seen.put("tool", {**tool, "def": shown})

    def change(self, seen: Seen) -> None:
        change = dict(seen.group("change"))
        what, name, after = seen.word("change", "what"), seen.word("change", "name"), seen.word("change", "after")
        off = after.lower() in _OFF
        if what == "schedule":
            self._jobs.changed(seen, change)
        elif what in ("tool", "skill", "plugin", "mcp", "knowledge") and seen.outcome == "success" and change.get("by") != "proposal":
            self._capability(seen, change, what, name, after)
        if off and (what in ("approval", "sandbox") or what in ("policy", "config") and _GATE_NAME.search(name)):
            seen.hit("approval.switched-off")
        if what == "hook" and (off or seen.outcome == "failure") or what == "plugin" and name == "clawtrail" and off:
            seen.hit("hook.disabled")

    def _capability(self, seen: Seen, change: dict[str, Any], what: str, name: str, after: str) -> None:
        key, before = f"{what} {name}", seen.word("change", "before")
        known = self._versions.get(key, "")
        if not before and known and after:
            before = change["before"] = known
            seen.put("change", change)
        if after:
            self._versions.put(key, after)
        if before.lower() not in _ABSENT and after.lower() not in _ABSENT | _OFF and before != after:
            seen.hit("tool.definition-changed" if what == "tool" else "capability.changed-after-approval")
        elif change.get("by") == "agent" and before.lower() in _ABSENT and what != "knowledge":
            seen.hit("capability.added-by-agent")

    def policy(self, seen: Seen) -> None:
        policy = seen.group("policy")
        if policy.get("engine") == "clawtrail" and policy.get("rule") in ("run-gate", "harness") and policy.get("verdict") == "none":
            seen.hit("hooks.bypassed")

    def heartbeat(self, seen: Seen) -> None:
        health = seen.group("health")
        if health.get("component") == "openclaw" and (health.get("hooks_missing") or health.get("plugin") in ("disabled", "failed")):
            seen.hit("hook.disabled")
