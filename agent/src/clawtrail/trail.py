"""The trail of a session, read back from the store and shown as a table."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Iterable

from .store import Entry, Loki, as_json, order

_COLUMNS = (("time", 12), ("kind", 18), ("tool", 15), ("outcome", 8), ("session", 38), ("what", 0))


def sessions(store: Loki, session: str, since: float) -> list[Entry]:
    """The events of a session and of the subagents that it started, oldest first."""
    found = list(store.query(_of(session), since))
    started = (_member(as_json(e.line), "peer.session") for e in found if e.labels.get("event") == "subagent.start")
    for child in {c for c in started if isinstance(c, str)} - {session}:
        found += store.query(_of(child), since)
    return sorted(found, key=order)


def _of(session: str) -> str:
    return f'{{job="audit"}} | session={json.dumps(session)}'


def _member(value: Any, path: str) -> Any:
    """What stands at a path such as `peer.session`; None when nothing does."""
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def table(entries: Iterable[Entry]) -> str:
    """time (UTC), kind, tool, outcome, session, and the one detail that tells most. Text only, control characters escaped."""
    rows = ["  ".join(name.ljust(width) for name, width in _COLUMNS).rstrip()]
    for entry in entries:
        labels, moment = entry.labels, datetime.fromtimestamp(entry.time / 1e9, UTC)
        cells = (
            moment.strftime("%H:%M:%S.%f")[:12],
            labels.get("event", ""),
            labels.get("tool", ""),
            labels.get("outcome", ""),
            labels.get("session", ""),
            _detail(entry.line),
        )
        rows.append("  ".join(_fit(cell, width) for cell, (_, width) in zip(cells, _COLUMNS)).rstrip())
    return "\n".join(rows)


def _fit(cell: str, width: int) -> str:
    if not cell.isprintable():  # an excerpt is somebody else's text: no control character reaches the terminal
        cell = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cell)
    return cell if not width else (cell if len(cell) <= width else cell[: width - 1] + "…").ljust(width)


def _detail(line: str) -> str:
    event = as_json(line)
    if not isinstance(event, dict):
        return line[:60]
    for path in ("credential.name", "params", "error.message", "error.code", "peer.session", "content.excerpt", "model.requested"):
        value = _member(event, path)
        if value not in (None, ""):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            return text if len(text) <= 72 else text[:71] + "…"
    return ""
