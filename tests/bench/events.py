"""The event of the benchmarks: one logging call with 16 fields, about 630 bytes of JSON, the same for every peer.

Values vary as an agent's would: session, actor, tool and tenant come from small sets, everything else is new with
every event. Made outside of what is timed.
"""

from __future__ import annotations

import json
import logging
import random
from typing import Any, NamedTuple

MESSAGE = "SEQ%09d agent called %s on %s"
WARM = 900_000_000  #: numbers from here on belong to events that are not counted

_SESSIONS = [f"3f8d2c1e-77aa-4b0e-9a51-2c9be0a1d4{i:02x}" for i in range(4)]
_ACTORS = ["svc-billing@prod", "svc-orders@prod", "alice@example.com"]
_TOOLS = ["shell.exec", "fs.read", "fs.write", "http.fetch", "browser.click", "sql.query"]
_TENANTS = ["acme-industries", "globex-holding"]
_REASONS = ["scheduled nightly reconciliation of invoices", "asked for by the user in this session", "retry after a timeout"]


class Event(NamedTuple):
    number: int
    tool: str
    target: str
    fields: dict[str, Any]


def events(count: int, first: int = 0) -> list[Event]:
    rnd = random.Random(first + 1)
    return [_event(rnd, first + i) for i in range(count)]


def _event(rnd: random.Random, number: int) -> Event:
    tool, target = rnd.choice(_TOOLS), f"orders/2026/{rnd.randrange(1, 13):02d}/{rnd.randrange(10**6):06d}"
    return Event(
        number,
        tool,
        target,
        {
            "agent_id": "agent-7f3a9c",
            "session": rnd.choice(_SESSIONS),
            "actor": rnd.choice(_ACTORS),
            "action": "tool.call",
            "tool": tool,
            "target": target,
            "outcome": "success",
            "src_ip": f"10.42.{rnd.randrange(256)}.{rnd.randrange(1, 255)}",
            "trace_id": f"{rnd.getrandbits(128):032x}",
            "span_id": f"{rnd.getrandbits(64):016x}",
            "tenant": rnd.choice(_TENANTS),
            "policy": "default-deny/v12",
            "duration_ms": rnd.randrange(1, 400_000) / 1000,
            "bytes_out": rnd.randrange(10**6),
            "tags": ["audit", "prod", "eu-central-1"],
            "reason": rnd.choice(_REASONS),
        },
    )


def direct(event: Event) -> dict[str, Any]:
    """The same values as `Recorder.record` takes them."""
    f = event.fields
    return {
        "session": f["session"],
        "actor": {"name": f["actor"], "address": f["src_ip"]},
        "tool": {"name": event.tool},
        "target": {"resource": event.target},
        "trace": {"id": f["trace_id"], "span": f["span_id"]},
        "policy": {"name": f["policy"]},
        "duration_us": int(f["duration_ms"] * 1000),
        "content": {"excerpt": MESSAGE % event[:3]},
        "params": {k: f[k] for k in ("agent_id", "action", "tenant", "bytes_out", "tags", "reason")},
    }


_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


class JSONFormatter(logging.Formatter):
    """One line of JSON with the standard library's encoder, for every peer that needs a formatter."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": record.created,
            "level": record.levelname,
            "logger": record.name,
            "msg": record.getMessage(),
            "pid": record.process,
        }
        line.update((k, v) for k, v in vars(record).items() if k not in _STANDARD)
        return json.dumps(line)
