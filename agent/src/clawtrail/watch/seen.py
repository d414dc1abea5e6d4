"""One event while it is looked at: what it said, what is added to it, which rules it hit."""

from __future__ import annotations

from typing import Any, Mapping

from .companions import SEVERITIES, Companion
from .state import History
from .text import marks

_GENERAL = frozenset({"tool.by-non-owner", "tool.by-unverified"})  # behind a rule that says what was done


class Seen:
    """One event on its way through the watch. Groups are replaced, never changed: they are still the caller's."""

    def __init__(self, history: History, rules: Mapping[str, Companion], kind: str, outcome: str, fields: dict[str, Any]) -> None:
        self.history, self.kind, self.outcome, self._given = history, kind, outcome, fields
        self._added: dict[str, Any] = {}
        self._rules = rules
        self.session, self.run = fields.get("session"), fields.get("run")
        self.state = history.session(self.session)
        self.taint: str | None = self.state.taint or None  # as it was before this event
        self.flags: list[tuple[str, str, str]] = []

    def get(self, name: str) -> Any:
        return self._added.get(name, self._given.get(name))

    def group(self, name: str) -> dict[str, Any]:
        value = self.get(name)
        return value if isinstance(value, dict) else {}

    def word(self, group: str, name: str) -> str:
        """A member of a group, empty where it is no string."""
        value = self.group(group).get(name)
        return value if isinstance(value, str) else ""

    def put(self, name: str, value: Any) -> None:
        self._added[name] = value

    def cause(self, kind: str) -> None:
        """Names the session's last event of this kind as the cause, if the host named none."""
        if id := self.state.last.get(kind):
            self.caused_by(id)

    def caused_by(self, id: str) -> None:
        if not self.get("caused_by"):
            self.put("caused_by", id)

    def owner(self) -> bool | None:
        """Whether the owner acts, as far as the event or its session tells."""
        return self.history.standing(self.session, self.run, self.group("actor")).owner

    def has_read(self, source: str) -> None:
        """The session has untrusted content in its context from now on."""
        self.history.taint(self.session, self.state, source)

    def mark_content(self) -> None:
        content = self.group("content")
        excerpt = content.get("excerpt")
        if isinstance(excerpt, str) and "links" not in content and "hidden" not in content and (found := marks(excerpt)):
            self.put("content", {**content, **found})

    def check_tenant(self) -> None:
        of, origin = self.group("actor").get("tenant"), str(self.group("store").get("origin", ""))
        if of is None:
            of = (self.state.actor or {}).get("tenant")
        if of and origin.startswith("tenant:") and origin.removeprefix("tenant:") != of:
            self.hit("tenant.mismatch")

    def limits(self, rule: str) -> Mapping[str, int]:
        return self._rules[rule].limits

    def hit(self, rule: str, worse_by: int = 0) -> None:
        companion = self._rules[rule]
        if not companion.enabled:
            return
        raised = 1 if companion.raised and (self.taint or self.owner() is False) else 0
        severity = SEVERITIES.index(companion.severity) + worse_by + raised
        self.flags.append((rule, SEVERITIES[min(max(severity, 0), len(SEVERITIES) - 1)], companion.technique))

    def fields(self) -> dict[str, Any]:
        out = {**self._given, **self._added}
        if self.taint and not out.get("taint") and not self.kind.startswith(("system.", "auth.")):
            out["taint"] = self.taint
        if self.flags:
            out["flag"] = _merged(out.get("flag"), self.flags)
        return out


def present(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's members that apply."""
    return {k: v for k, v in group.items() if v is not None}


def _merged(given: Any, flags: list[tuple[str, str, str]]) -> dict[str, Any]:
    """One flag of all: the worst in front, the others by name in `also`."""
    all_ = list(flags)
    also: list[str] = []
    if isinstance(given, dict) and given.get("rule"):
        all_.insert(0, (str(given["rule"]), str(given.get("severity")), str(given.get("technique", ""))))
        also = str(given.get("also") or "").split()
    rank = {s: i for i, s in enumerate(reversed(SEVERITIES))}
    all_.sort(key=lambda f: (rank.get(f[1], len(rank)), f[0] in _GENERAL))
    rule, severity, technique = all_[0]
    rest = [r for r in dict.fromkeys([f[0] for f in all_[1:]] + also) if r != rule]
    return {k: v for k, v in {"rule": rule, "severity": severity, "technique": technique, "also": " ".join(rest)}.items() if v}
