"""The trail of a session, read back from the store and shown as a table."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Iterable

from .store import Entry, Loki

_COLUMNS = (("time", 12), ("kind", 18), ("tool", 15), ("outcome", 8), ("session", 38), ("what", 0))


def sessions(store: Loki, session: str, since: float) -> list[Entry]:
    """The events of a session and of the subagents that it started, oldest first."""
    found = list(store.query(_of(session), since))
    children = {_member(e.line, "peer", "session") for e in found if e.labels.get("event") == "subagent.start"} - {None, session}
    for child in children:
        found += store.query(_of(str(child)), since)
    return sorted(found, key=lambda e: (e.time, e.labels.get("epoch", ""), int(e.labels.get("seq") or 0)))


def _of(session: str) -> str:
    return f'{{job="audit"}} | session={json.dumps(session)}'


def _member(line: str, *path: str) -> str | None:
    value = json.loads(line)
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, str) else None


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
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return line[:60]
    for path in ("credential.name", "params", "error.message", "error.code", "peer.session", "content.excerpt", "model.requested"):
        value = event
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value not in (None, ""):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            return text if len(text) <= 72 else text[:71] + "…"
    return ""
