"""The rules that need the history of a session: each is code in `watch`, and stands here with what a rules file may set.

    watch:
      run.over-budget: {steps: 200, tokens: 500000}
      content.changed: {severity: high}
      link.unseen-host: {enabled: false}

Severities: low, medium, high, critical. A rule that says `raised` is one step worse when the session has read untrusted
content or the actor is not the owner. Techniques: MITRE ATT&CK and ATLAS.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any, Mapping

from ..errors import ConfigurationError

_TECHNIQUES = re.compile(r"(?:AML\.)?T\d{4}(?:\.\d{3}){0,2}(?: (?:AML\.)?T\d{4}(?:\.\d{3}){0,2})*")
SEVERITIES = ("low", "medium", "high", "critical")


@dataclass(frozen=True)
class Companion:
    """`limits`: the thresholds by name, each a number above 0."""

    id: str
    severity: str
    technique: str
    raised: bool = False
    limits: Mapping[str, int] = field(default_factory=dict)
    enabled: bool = True


def _c(id: str, severity: str, technique: str, raised: bool = False, **limits: int) -> Companion:
    return Companion(id, severity, technique, raised, limits)


COMPANIONS: dict[str, Companion] = {
    c.id: c
    for c in (
        _c("egress.after-untrusted", "critical", "AML.T0086"),
        _c("link.unseen-host", "medium", "T1567", raised=True),
        _c("secret.in-egress", "critical", "AML.T0057"),
        _c("secret.in-result", "medium", "AML.T0098", raised=True),
        _c("secret.written-after-untrusted", "critical", "AML.T0098"),
        _c("memory.write-untrusted", "high", "AML.T0080"),
        _c("memory.delete-by-non-owner", "high", "T1485"),
        _c("tool.by-non-owner", "medium", "AML.T0053"),
        _c("tool.by-unverified", "high", "AML.T0053"),
        _c("tool.privileged-by-unprivileged", "high", "AML.T0053"),
        _c("tool.definition-changed", "high", "AML.T0110"),
        _c("capability.changed-after-approval", "high", "AML.T0109"),
        _c("capability.added-by-agent", "medium", "AML.T0081", raised=True),
        _c("approval.switched-off", "critical", "T1562.001"),
        _c("approval.rubber-stamp", "high", "T1621", waited_ms=2000, answers=3, within_s=600),
        _c("hook.disabled", "critical", "T1562.001"),
        _c("hooks.bypassed", "critical", "T1562.001", grace_s=600),
        _c("auth.new-device", "high", "T1078"),
        _c("auth.new-source", "high", "T1078"),
        _c("schedule.by-agent-no-end", "medium", "T1053.003", raised=True),
        _c("broadcast.unverified", "high", "AML.T0052", recipients=10),
        _c("run.over-budget", "high", "AML.T0034.002", steps=100, tokens=1_000_000),
        _c("output.repeats-system-prompt", "high", "AML.T0056", lines=3),
        _c("content.changed", "low", "AML.T0051.001", raised=False),
        _c("tenant.mismatch", "critical", "AML.T0057"),
        _c("message.loop", "high", "AML.T0118", messages=60, within_s=3600),
        _c("refusals.repeated", "medium", "AML.T0054", refusals=2),
        _c("pii.to-non-owner", "critical", "AML.T0057"),
    )
}


def configured(settings: Mapping[str, Any]) -> dict[str, Companion]:
    """The rules with what the section `watch` of a rules file sets.

    Raises ConfigurationError, naming the rule, what was found and what was expected.
    """
    if not isinstance(settings, Mapping):
        raise ConfigurationError(f"watch: {settings!r}; expected a mapping of rule ids")
    out = dict(COMPANIONS)
    for id, given in settings.items():
        rule = out.get(id)
        if rule is None:
            raise ConfigurationError(f"watch: rule {id!r} is unknown; expected one of {' '.join(COMPANIONS)}")
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"watch: {id}: {given!r}; expected a mapping such as {{severity: high}}")
        limits = dict(rule.limits)
        for key, value in given.items():
            if key == "severity" and value in SEVERITIES:
                rule = replace(rule, severity=value)
            elif key == "enabled" and isinstance(value, bool):
                rule = replace(rule, enabled=value)
            elif key == "technique" and isinstance(value, str) and _TECHNIQUES.fullmatch(value):
                rule = replace(rule, technique=value)
            elif key in limits and isinstance(value, int) and not isinstance(value, bool) and value > 0:
                limits[key] = value
            else:
                known = ", ".join([f"severity ({' '.join(SEVERITIES)})", "enabled (true or false)", "technique (ids such as AML.T0086, T1567)", *(f"{k} (above 0)" for k in limits)])
                raise ConfigurationError(f"watch: {id}: {key}: {value!r}; expected {known}")
        out[id] = replace(rule, limits=limits)
    return out
