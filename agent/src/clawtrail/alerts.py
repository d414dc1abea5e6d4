"""What the store's rules say needs a person now: Loki's ruler, `loki/rules/`."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import StoreError
from .store import Loki

WATCHDOG = "Watchdog"  #: the rule that always fires; its absence means that no rule is evaluated
_ORDER = {"critical": 0, "high": 1, "medium": 2, "low": 3}


@dataclass(frozen=True)
class Alert:
    """`since`: RFC 3339, when the rule first held; `agent`: empty for what is nobody's."""

    name: str
    severity: str
    agent: str
    since: str
    summary: str


def firing(store: Loki) -> list[Alert]:
    """The alerts that fire, the worst first (GET /prometheus/api/v1/alerts). Raises StoreError, also when nothing watches."""
    found = [Alert(labels.get("alertname", ""), labels.get("severity", ""), labels.get("agent", ""), one["activeAt"][:19] + "Z",
                   one.get("annotations", {}).get("summary", ""))
             for one in store.get("/prometheus/api/v1/alerts")["data"]["alerts"] if one["state"] == "firing" for labels in (one["labels"],)]  # fmt: skip
    if not any(one.name == WATCHDOG for one in found):
        raise StoreError(0, "the rules are not evaluated: their Watchdog is missing (normal within a minute of loki's start; else see its log)")
    return sorted((one for one in found if one.name != WATCHDOG), key=lambda one: (_ORDER.get(one.severity, 4), one.name, one.agent))


def table(alerts: list[Alert]) -> str:
    """For a terminal."""
    rows = [("SEVERITY", "ALERT", "SINCE", "WHAT"), *((one.severity, one.name, one.since, one.summary) for one in alerts)]
    widths = [max(len(row[n]) for row in rows) for n in range(3)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]) for row in rows)
