"""The store: a small client of Loki's query API."""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any, Iterator

from .errors import ConfigurationError, StoreError

PAGE = 2000  #: entries per request, below Loki's max_entries_limit_per_query
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True)
class Entry:
    """One stored line. `time` in nanoseconds since the epoch; `labels` holds stream labels and structured metadata."""

    time: int
    line: str
    labels: dict[str, str]


def duration(text: str) -> float:
    """Seconds of `90s`, `15m`, `1h`, `7d`. Raises ConfigurationError."""
    match = re.fullmatch(r"(\d+)([smhdw])", text.strip())
    if not match:
        raise ConfigurationError(f"duration {text!r}; expected a number and s, m, h, d or w, for example 1h")
    return int(match[1]) * float(_UNITS[match[2]])


class Loki:
    """Queries one Loki.

    Args:
        url: base address, for example http://loki:3100.
    """

    def __init__(self, url: str, timeout: float = 30.0) -> None:
        self._url, self._timeout = url.rstrip("/"), timeout

    def query(self, logql: str, since: float = 3600.0, end: float | None = None) -> Iterator[Entry]:
        """Every entry of a log query, oldest first, page by page. Raises StoreError with Loki's own text."""
        until = int((time.time() + 60 if end is None else end) * 1e9)
        start = until - int((since + 60) * 1e9)
        seen: set[tuple[int, str, str]] = set()
        while True:
            page = sorted(self._page(logql, start, until), key=order)
            fresh = [e for e in page if (e.time, e.line, _key(e)) not in seen]
            yield from fresh
            if len(page) < PAGE:
                return
            if page[0].time == page[-1].time:  # the next page would be this one again
                raise StoreError(0, f"{PAGE} entries or more at the moment {page[0].time}; expected fewer: narrow the query")
            start = page[-1].time
            seen = {(e.time, e.line, _key(e)) for e in page if e.time == start}

    def _page(self, logql: str, start: int, end: int) -> Iterator[Entry]:
        answer = self.get("/loki/api/v1/query_range", query=logql, start=start, end=end, limit=PAGE, direction="forward")
        data = answer.get("data", {})
        if data.get("resultType") != "streams":
            raise StoreError(400, "the query yields numbers; expected a log query, without count_over_time and the like")
        for stream in data.get("result", []):
            for value in stream["values"]:
                yield Entry(int(value[0]), value[1], stream["stream"])

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        """One GET, as JSON. Raises StoreError."""
        url = f"{self._url}{path}?{urllib.parse.urlencode(params)}"
        try:
            with urllib.request.urlopen(url, timeout=self._timeout) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as e:
            raise StoreError(e.code, e.read().decode("utf-8", "replace").strip()) from None
        except (OSError, ValueError, TypeError, http.client.HTTPException) as e:
            raise StoreError(0, f"no answer from {self._url}: {getattr(e, 'reason', e)}") from None


def order(entry: Entry) -> tuple[int, str, int]:
    """Events of one moment in the order of their numbers."""
    seq = entry.labels.get("seq", "")
    return entry.time, entry.labels.get("epoch", ""), int(seq) if seq.isdecimal() else 0


def as_json(line: str) -> Any:
    """The line's value; None for a line that is no JSON: what is stored is what somebody sent."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _key(entry: Entry) -> str:
    return json.dumps(entry.labels, sort_keys=True)
