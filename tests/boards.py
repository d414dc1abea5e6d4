"""Run a Grafana board without Grafana: every query, expanded as the Loki plugin expands it, against a real Loki.

    assert boards.run_board(json.load(open("grafana/dashboards/overview.json")), "http://127.0.0.1:3100") == []

What is imitated: the variables (`$agent`, `${session:raw}`), `$__auto`, `$__range`, `$__interval`, the data frame
that the plugin makes of an instant query, and the names that transformations and overrides refer to.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator

Fetch = Callable[[str, dict[str, Any]], dict[str, Any]]

MAX_DATA_POINTS = 1000  # a wide panel on a usual screen
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class QueryError(Exception):
    """Loki refused a query; the text is Loki's."""


def http(url: str, timeout: float = 30) -> Fetch:
    """A fetch function for a Loki reachable at `url`; a test that goes through a container brings its own."""

    def fetch(path: str, params: dict[str, Any]) -> dict[str, Any]:
        try:
            with urllib.request.urlopen(f"{url}{path}?{urllib.parse.urlencode(params)}", timeout=timeout) as answer:
                data: dict[str, Any] = json.load(answer)
                return data
        except urllib.error.HTTPError as error:
            raise QueryError(f"{error.code}: {error.read().decode(errors='replace').strip()}") from None

    return fetch


@dataclass
class Query:
    """One query of a board: of a panel, an annotation (kind `annotation`) or a variable (kind `variable`)."""

    title: str
    kind: str
    expr: str
    instant: bool = False
    limit: int = 1000
    step: int = 0  # the panel's minimum step in seconds
    ref: str = "A"
    panel: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass
class Answer:
    """What a query gave: `rows` are log entries, series or table rows (dicts); `problems` what a viewer would miss."""

    query: Query
    expr: str
    rows: list[dict[str, Any]]
    problems: list[str]


def seconds(duration: str) -> int:
    """`"30s"` → 30; `""` → 0."""
    return int(duration[:-1]) * SECONDS[duration[-1]] if duration else 0


def queries(board: dict[str, Any]) -> Iterator[Query]:
    """Every query of the board except the variables, in the order of the file."""
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield Query(panel["title"], panel["type"], target["expr"], target["queryType"] == "instant",
                        target.get("maxLines", 1000), seconds(panel.get("interval", "")), target["refId"], panel)
    for note in board.get("annotations", {}).get("list", []):
        if "expr" in note:
            yield Query(note["name"], "annotation", note["expr"], limit=note.get("maxLines", 1000))


def variables(board: dict[str, Any], fetch: Fetch, span: dict[str, int]) -> dict[str, str]:
    """The value of each variable as the board opens: "All" is `allValue`, a text box is its default."""
    values = {}
    for variable in board.get("templating", {}).get("list", []):
        value = variable["current"]["value"]
        if variable["type"] == "query":
            label = variable["query"]["label"]
            found = fetch(f"/loki/api/v1/label/{label}/values", {"query": variable["query"]["stream"], **span})
            if not found.get("data"):
                raise QueryError(f"variable {variable['name']}: no value of label {label!r}")
        values[variable["name"]] = variable["allValue"] if value in ("$__all", ["$__all"]) else value
    return values


def expand(expr: str, values: dict[str, str], span: int, step: int, instant: bool) -> str:
    """The expression as it reaches Loki; `span` and `step` in seconds. Undefined variables raise KeyError."""
    builtin = {"__auto": f"{span if instant else step}s", "__range": f"{span}s", "__range_s": str(span),
               "__interval": f"{step}s"}
    known = {**builtin, **values}
    return re.sub(r"\$\{(\w+)(?::\w+)?\}|\$(\w+)", lambda match: known[match[1] or match[2]], expr)


def run(board: dict[str, Any], fetch: Fetch, *, span: int = 3600, now: float | None = None,
        values: dict[str, str] | None = None) -> list[Answer]:
    """Run every query of the board over the last `span` seconds; `values` overrides variables."""
    end = int(now or time.time()) + 1
    window = {"start": (end - span) * 10**9, "end": end * 10**9}
    chosen = {**variables(board, fetch, window), **(values or {})}
    answers = []
    for query in queries(board):
        step = max(query.step, span // MAX_DATA_POINTS, 1)
        expr = expand(query.expr, chosen, span, step, query.instant)
        if query.instant:
            data = fetch("/loki/api/v1/query", {"query": expr, "time": window["end"]})["data"]
        else:
            data = fetch("/loki/api/v1/query_range", {
                "query": expr, **window, "step": step, "limit": query.limit, "direction": "backward"})["data"]
        rows = _rows(data, query)
        answers.append(Answer(query, expr, rows, list(_problems(query, data["resultType"], rows))))
    return answers


def run_board(board: dict[str, Any], loki_url: str, *, span: int = 3600) -> list[str]:
    """What a viewer would miss on this board: every panel without data and every problem; empty when all is well."""
    answers = run(board, http(loki_url), span=span)
    return [f"{a.query.title}: no data for {a.expr}" for a in answers if not a.rows] + [p for a in answers for p in a.problems]


def _rows(data: dict[str, Any], query: Query) -> list[dict[str, Any]]:
    if data["resultType"] == "streams":
        return [{"Time": time_, "Line": line, "labels": stream["stream"]}
                for stream in data["result"] for time_, line, *_ in stream["values"]]
    if data["resultType"] == "vector":  # one table: Time, the labels in alphabetical order, Value #<refId>
        return [{"Time": sample["value"][0], **dict(sorted(sample["metric"].items())),
                 f"Value #{query.ref}": float(sample["value"][1])} for sample in data["result"]]
    return [{"labels": series["metric"], "points": series["values"]} for series in data["result"]]


def _problems(query: Query, result: str, rows: list[dict[str, Any]]) -> Iterator[str]:
    """What Grafana would show wrong without saying so."""
    wanted = {"stat": "vector", "bargauge": "vector", "table": "vector", "timeseries": "matrix", "logs": "streams",
              "annotation": "streams"}[query.kind]
    if result != wanted:
        yield f"{query.title}: a {query.kind} needs a {wanted}, the query gives a {result}"
    if query.kind == "stat" and len(rows) != 1:
        yield f"{query.title}: a stat shows one of {len(rows)} rows"
    if query.kind != "table" or not rows:
        return
    names = {name for row in rows for name in row}
    for transformation in query.panel.get("transformations", []):
        options = transformation["options"]
        renamed = options.get("renameByName", {})
        for key in ("excludeByName", "indexByName", "renameByName"):
            for name in options.get(key, {}):
                if name not in names:
                    yield f"{query.title}: {key} names {name!r}, the columns are {sorted(names)}"
        hidden = {name for name, hide in options.get("excludeByName", {}).items() if hide}
        names = {renamed.get(name, name) for name in names - hidden}
    for override in query.panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] not in names:
            yield f"{query.title}: an override names {override['matcher']['options']!r}, the columns are {sorted(names)}"
    for sort in query.panel["options"].get("sortBy", []):
        if sort["displayName"] not in names:
            yield f"{query.title}: sorted by {sort['displayName']!r}, the columns are {sorted(names)}"
