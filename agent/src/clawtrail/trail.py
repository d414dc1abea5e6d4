"""The trail of a session, read back from the store and shown as a table."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Iterable

from .store import Entry

_COLUMNS = (("time", 12), ("kind", 18), ("tool", 15), ("outcome", 8), ("session", 38), ("what", 0))


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
    cell = cell.encode("unicode_escape").decode() if not cell.isprintable() else cell
    return cell if not width else (cell if len(cell) <= width else cell[: width - 1] + "…").ljust(width)


def _detail(line: str) -> str:
    try:
        event = json.loads(line)
    except ValueError:
        return line[:60]
    for path in ("credential.name", "params", "error.message", "error.code", "peer.session", "content.excerpt", "model.requested"):
        value = event
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value not in (None, ""):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            return text if len(text) <= 72 else text[:71] + "…"
    return ""
