"""Which tool calls get a flag, and which of them reach for a credential: rules as data (data/rules.yaml).

A rule's expression is tried on a call's parameters, put in plain form first. A hit is evidence of an attempt, not proof of
a theft. docs/rules.md documents the format.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..watch.companions import SEVERITIES, configured
from . import expressions
from .plain import TEXT_MAX, texts, together
from .reading import Rule, files, read
from .trial import faults

__all__ = ["Hit", "Rule", "Rules", "flag", "wants"]

PACKAGED = Path(__file__).parent.with_name("data") / "rules.yaml"


@dataclass(frozen=True)
class Hit:
    """A rule that matched; `severity` is the rule's, one step higher in a tainted session or for a stranger."""

    rule: Rule
    severity: str


class Rules:
    """The rules that are in force. Immutable; one instance serves all threads.

    Attributes:
        watch: what the files set for the rules that need a session's history, by rule: see `watch.companions`.
    """

    def __init__(self, rules: Iterable[Rule], watch: Mapping[str, Any] | None = None) -> None:
        self._rules = tuple(rules)
        self.watch = dict(watch or {})
        self._always = frozenset(i for i, rule in enumerate(self._rules) if not rule.hints)
        hinted: dict[str, list[int]] = {}
        for i, rule in enumerate(self._rules):
            for hint in rule.hints:
                hinted.setdefault(hint, []).append(i)
        self._hints = expressions.Finder(sorted(hinted), [text.lower() for rule in self._rules for text in rule.miss])
        self._hinted = [hinted[hint] for hint in self._hints.literals]
        self._answers = tuple(rule for rule in self._rules if "answer" in rule.on)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    @classmethod
    def load(cls, folders: Sequence[Path] = ()) -> Rules:
        """The packaged rules, then those of every *.yaml in `folders`, by name: the same id replaces, `disable` removes.

        Raises ConfigurationError, naming file, rule, what was found and what was expected; also when a rule of a folder
        does not do what its own `hit` and `miss` say.
        """
        rules: dict[str, Rule] = {}
        watch: dict[str, Any] = {}
        for path in (PACKAGED, *files(folders)):
            found, disabled, settings = read(path)
            try:
                configured(settings)
            except ConfigurationError as e:
                raise ConfigurationError(f"{path}: {e}") from None
            watch |= settings
            for name in disabled:
                if rules.pop(name, None) is None:
                    near = difflib.get_close_matches(name, rules, 1)
                    raise ConfigurationError(f"{path}: disable names {name!r}, which is no rule" + (f"; did you mean {near[0]}?" if near else ""))
            for rule in found:
                if path != PACKAGED and (wrong := faults(rule)):
                    raise ConfigurationError(f"{path}: rule {rule.id}: {wrong[0]}")
                rules[rule.id] = rule
        return cls(rules.values(), watch)

    def hits(
        self,
        tool: str,
        params: Mapping[str, Any],
        *,
        paths: Sequence[str] = (),
        agent: str = "",
        surface: str = "",
        tainted: bool = False,
        owner: bool | None = None,
    ) -> list[Hit]:
        """The rules that a call hits, worst first. `paths` are files the host itself derived from the call.

        Never raises for odd parameters. Takes about 0.1 ms for a short command, and a bounded time for any.
        """
        said = texts(tool, params, paths)
        low = together(said).lower()
        near = set(self._always)
        for hint in self._hints.within(low):
            near.update(self._hinted[hint])
        found = []
        for rule in [self._rules[i] for i in sorted(near)]:
            if rule.within(low) and (not rule.only or _applies(rule, tool, agent, surface)):
                if any(rule.matches(said[name]) for name in rule.on if name in said):
                    found.append(rule)
        return _hits(found, tainted or owner is False)

    def said(self, text: str, *, agent: str = "", tainted: bool = False, owner: bool | None = None) -> list[Hit]:
        """The rules that an answer or a message of the agent hits, worst first: those that are tried on `answer`."""
        text = text[:TEXT_MAX]
        low = text.lower()
        found = [rule for rule in self._answers if rule.near(low) and _applies(rule, "", agent, "") and rule.matches(text)]
        return _hits(found, tainted or owner is False)


def flag(hits: Sequence[Hit]) -> dict[str, Any] | None:
    """The event's `flag` group: rule, severity, technique of the worst hit, the other rules' ids in `also`."""
    if not hits:
        return None
    worst = hits[0]
    group = {"rule": worst.rule.id, "severity": worst.severity, "technique": worst.rule.technique}
    return group | ({"also": " ".join(h.rule.id for h in hits[1:])} if len(hits) > 1 else {})


def wants(hits: Sequence[Hit], action: str) -> Hit | None:
    """The worst hit whose rule says `action`, None when no rule does."""
    return next((h for h in hits if h.rule.action == action), None)


def verdict(hit: Hit) -> dict[str, Any]:
    """The event's `policy` group of a hit whose rule forbids the action, or wants a person to be asked."""
    return {"engine": "clawtrail", "rule": hit.rule.id, "verdict": "ask" if hit.rule.action == "approve" else "deny", "reason": hit.rule.why}


def _applies(rule: Rule, tool: str, agent: str, surface: str) -> bool:
    given = {"tool": tool, "agent": agent, "surface": surface}
    return all(given[name] in allowed for name, allowed in rule.only.items())


def _hits(rules: Sequence[Rule], raised: bool) -> list[Hit]:
    """Worst first; of two alike the one that stands first in the files."""
    rank = {rule.id: min(SEVERITIES.index(rule.severity) + raised, len(SEVERITIES) - 1) for rule in rules}
    return [Hit(rule, SEVERITIES[rank[rule.id]]) for rule in sorted(rules, key=lambda rule: -rank[rule.id])]
