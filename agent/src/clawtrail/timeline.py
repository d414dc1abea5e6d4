"""A session as it came about: its own events, those of its subagents, and of every agent in the same trace, causes first.

What belongs together is found by three links: `session` (and `peer` of a subagent's start), `run` of a peer, and
`trace.id`. What came before what is told by `caused_by`, by a subagent's start, by `trace.parent`, by a message that
one agent sent and another received; only then by the clock and by `seq`. So a host whose clock is wrong, or a hook that
reported late, does not turn cause and effect around.
"""

from __future__ import annotations

import heapq
import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Iterable, Iterator, Sequence

from .store import Entry, Loki, as_json, order

ROUNDS = 8  #: links that are followed from the session, one after the other
LINKS = 500  #: sessions, runs and traces that are followed, of each sort
WHAT = 160  #: characters of the last column
_BATCH = 20  # names in one query


@dataclass
class Row:
    """One event in its place. `number` counts from 1, `by` is the number of its cause, `depth` how far from the session."""

    entry: Entry
    event: dict[str, Any]
    number: int = 0
    by: int | None = None
    depth: int = 0
    cause: Row | None = field(default=None, repr=False)

    def get(self, path: str) -> Any:
        """What stands at a path such as `peer.session`; None when nothing does."""
        value: Any = self.event
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def text(self, path: str) -> str:
        value = self.get(path)
        return value if isinstance(value, str) else ""


@dataclass
class Timeline:
    """`rows` in causal order; `cut` says that there were more links than are followed."""

    rows: list[Row]
    cut: bool = False


def timeline(store: Loki, session: str, since: float) -> Timeline:
    """The timeline of a session; `since` in seconds before now. Without rows when the store knows no such session."""
    found: dict[tuple[str, str, str], Entry] = {}
    seen: dict[str, set[str]] = {"session": {session}, "run": set(), "trace": set()}
    fresh, cut = {name: set(names) for name, names in seen.items()}, False
    for turn in range(ROUNDS):
        rows = [Row(entry, event) for entry in _ask(store, fresh, since, found) if isinstance(event := as_json(entry.line), dict)]
        if turn == 0 and rows:  # who started it, when it is a subagent itself
            rows += [row for row in _rows(store.query(f'{{job="audit", category="session"}} |= {_quoted(_quoted(session))} | event="subagent.start"', since))
                     if row.get("peer.session") == session and _new(row.entry, found)]  # fmt: skip
        fresh = {name: set() for name in seen}
        for name, value in (link for row in rows for link in _links(row, session)):
            if value not in seen[name]:
                if len(seen[name]) >= LINKS:
                    cut = True
                    continue
                seen[name].add(value)
                fresh[name].add(value)
        if not any(fresh.values()):
            break
    else:
        cut = True
    return Timeline(causal(found.values()), cut)


def _ask(store: Loki, wanted: dict[str, set[str]], since: float, found: dict[tuple[str, str, str], Entry]) -> Iterator[Entry]:
    for name, values in wanted.items():
        names = sorted(values)
        for at in range(0, len(names), _BATCH):
            some = names[at : at + _BATCH]
            either = _quoted("|".join(re.escape(value).replace("\\-", "-") for value in some))
            query = f'{{job="audit"}} |~ {either}' if name == "trace" else f'{{job="audit"}} | {name}=~{either}'
            for entry in store.query(query, since):
                if name == "trace" and _trace(entry.line) not in values:
                    continue
                if _new(entry, found):
                    yield entry


def _new(entry: Entry, found: dict[tuple[str, str, str], Entry]) -> bool:
    key = entry.labels.get("agent", ""), entry.labels.get("epoch", ""), entry.labels.get("seq", "") or entry.line
    return found.setdefault(key, entry) is entry


def _rows(entries: Iterable[Entry]) -> Iterator[Row]:
    for entry in entries:
        event = as_json(entry.line)
        yield Row(entry, event if isinstance(event, dict) else {})


def _trace(line: str) -> str:
    event = as_json(line)
    return Row(Entry(0, "", {}), event).text("trace.id") if isinstance(event, dict) else ""


def _links(row: Row, session: str) -> Iterator[tuple[str, str]]:
    if trace := row.text("trace.id"):
        yield "trace", trace
    if row.get("peer.session") != session:
        if row.event.get("kind") == "subagent.start" and (child := row.text("peer.session")):
            yield "session", child
        if run := row.text("peer.run"):
            yield "run", run


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# -- order -----------------------------------------------------------------------------------------------------------


def causal(entries: Iterable[Entry]) -> list[Row]:
    """Causes before effects; where no link says so, as the clock and the numbers say. Links in a circle are broken."""
    rows = sorted(_rows(entries), key=lambda row: order(row.entry))
    _find_causes(rows)
    before = {id(row): [row.cause] if row.cause else [] for row in rows}
    epochs: dict[str, list[Row]] = {}
    for row in rows:
        epochs.setdefault(row.entry.labels.get("epoch", ""), []).append(row)
    for alone, own in epochs.items():
        if alone:  # one clock: its own order holds inside, so that a clock that is wrong moves all of it
            own = _sorted(own, before)
            for earlier, later in zip(own, own[1:]):
                before[id(later)].append(earlier)
    placed = _sorted(rows, before)
    place = {id(row): n for n, row in enumerate(placed, 1)}
    depths: dict[str, int] = {}
    for row in placed:
        row.number = place[id(row)]
        row.by = place[id(row.cause)] if row.cause else None
        own_session = row.text("session")
        if own_session not in depths:
            above = row.cause.depth + 1 if row.cause and row.cause.text("session") != own_session else 0
            depths[own_session] = min(above, 8)
        row.depth = depths[own_session]
    return placed


def _sorted(rows: Sequence[Row], before: dict[int, list[Row]]) -> list[Row]:
    rank = {id(row): n for n, row in enumerate(rows)}
    waits = {id(row): {id(cause) for cause in before[id(row)] if id(cause) in rank and cause is not row} for row in rows}
    after: dict[int, list[int]] = {}
    for effect, causes in waits.items():
        for cause in causes:
            after.setdefault(cause, []).append(effect)
    ready = [rank[key] for key, causes in waits.items() if not causes]
    heapq.heapify(ready)
    placed: list[Row] = []
    done: set[int] = set()
    at = 0
    while len(placed) < len(rows):
        if not ready:  # a circle: the earliest that is left goes first
            while id(rows[at]) in done:
                at += 1
            ready = [at]
        row = rows[heapq.heappop(ready)]
        if id(row) in done:
            continue
        done.add(id(row))
        placed.append(row)
        for effect in after.get(id(row), ()):
            waits[effect].discard(id(row))
            if not waits[effect] and effect not in done:
                heapq.heappush(ready, rank[effect])
    return placed


def _find_causes(rows: Sequence[Row]) -> None:
    """The nearest cause that is here: as the event says, or else who started its session, its span or its message."""
    ids = {ident: row for row in rows if (ident := row.text("id"))}
    spans: dict[str, Row] = {}
    started: dict[str, Row] = {}
    sent: dict[tuple[str, str], Row] = {}
    for row in rows:
        kind = row.event.get("kind")
        if span := row.text("trace.span"):
            spans.setdefault(span, row)
        if kind == "subagent.start":
            for name in ("peer.session", "peer.run"):
                if value := row.text(name):
                    started.setdefault(value, row)
        if kind == "message.out" and (said := row.text("content.sha256")):
            sent.setdefault((said, row.text("peer.session")), row)
    for row in rows:
        cause = ids.get(row.text("caused_by"))
        if cause is None and row.event.get("kind") not in ("subagent.start", "subagent.end"):
            cause = started.get(row.text("run")) or started.get(row.text("session"))
        if cause is None:
            cause = spans.get(row.text("trace.parent"))
        if cause is None and row.event.get("kind") == "message.in":
            cause = sent.get((row.text("content.sha256"), row.text("session")))
        row.cause = cause if cause is not row else None


# -- words -----------------------------------------------------------------------------------------------------------


def as_lines(made: Timeline) -> Iterator[str]:
    """Columns: number, number of the cause, time (UTC), session, agent, outcome, event, what. Text only; no control characters."""
    sessions: dict[tuple[str, str], str] = {}
    cells: list[tuple[str, ...]] = []
    for row in made.rows:
        labels = row.entry.labels
        name = (labels.get("session", ""), labels.get("agent", ""))
        cells.append((
            str(row.number), str(row.by or ""), datetime.fromtimestamp(row.entry.time / 1e9, UTC).strftime("%H:%M:%S.%f")[:12],
            sessions.setdefault(name, f"s{len(sessions) + 1}"), labels.get("agent", ""), labels.get("outcome", ""),
            "  " * row.depth + (labels.get("event") or "line"), told(row),
        ))  # fmt: skip
    head = ("#", "by", "time", "in", "agent", "outcome", "event", "what")
    cells = [tuple(as_text(cell) for cell in row) for row in cells]
    widths = [max(len(row[n]) for row in [head, *cells]) for n in range(len(head) - 1)]
    for line in [head, *cells]:
        yield "  ".join([*(cell.rjust(width) if n < 2 else cell.ljust(width) for n, (cell, width) in enumerate(zip(line, widths))), line[-1]]).rstrip()
    yield ""
    for (session, agent), short in sessions.items():
        count = sum(row[3] == short for row in cells)
        yield f"{short}  {as_text(session) or '(no session)'}  {as_text(agent)}, {count} event{'s' * (count != 1)}"


def as_jsonl(made: Timeline) -> Iterator[str]:
    """One object for each event: `n`, `by`, `depth`, `agent` by its certificate, and `event`, or `line` where it is no JSON."""
    for row in made.rows:
        place = {"n": row.number, "by": row.by, "depth": row.depth, "agent": row.entry.labels.get("agent")}
        yield json.dumps({**place, **({"event": row.event} if row.event else {"line": row.entry.line})})


def as_text(text: str) -> str:
    """Somebody else's text, safe for a terminal: whatever moves the cursor, turns the direction or hides is written out."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii") for c in text)


def told(row: Row) -> str:
    """Who asked, what was decided, what ran, what came back, what was touched; warnings first, they are never cut off."""
    flag, taint = row.text("flag.rule"), row.text("taint")
    warned = " ".join(f"[{word}]" for word in (
        f"! {flag} {row.text('flag.severity')} {row.text('flag.technique')}".rstrip() if flag else "", f"taint {taint}" if taint else "") if word)  # fmt: skip
    said = "; ".join(part for part in _parts(row) if part)
    if len(said) > WHAT:
        said = said[: WHAT - 1] + "…"
    return f"{warned} {said}".strip() if row.event else row.entry.line[:WHAT]


def _parts(row: Row) -> Iterator[str]:
    get, text = row.get, row.text
    if actor := text("actor.id") or text("actor.display"):
        how = [word for word in ("owner" if get("actor.owner") is True else "", text("actor.auth"), text("actor.surface")) if word]
        yield f"by {actor}{f' ({chr(44).join(how)})' if how else ''}"
    if kind := text("trigger.type"):
        yield f"started by {kind} {text('trigger.ref')}".rstrip()
    calls = get("decision.calls")
    if isinstance(calls, list):
        yield "decides " + ", ".join(_call(call) for call in calls)
    elif stop := text("decision.stop"):
        yield f"ends: {stop}"
    if tool := text("tool.name"):
        params = get("params")
        yield f"{tool} {_compact(params)}" if params else tool
    if credential := text("credential.name"):
        yield f"credential {credential} {text('credential.use')}".rstrip()
    if model := text("model.answered") or text("model.requested"):
        yield f"model {model}{' via ' + text('model.via') if text('model.via') else ''}"
    if text("target.id") and not get("params"):
        yield f"to {text('target.type')} {text('target.id')}"
    if peer := text("peer.session") or text("peer.agent"):
        yield f"{text('peer.role') or 'peer'} {peer}"
    if verdict := text("policy.verdict"):
        yield f"policy {text('policy.rule')} {verdict} {text('policy.reason')}".rstrip()
    if state := text("approval.state"):
        yield f"approval {state} {text('approval.by')}".rstrip()
    if change := text("change.what"):
        yield f"{change} {text('change.name')}: {text('change.before') or '?'} → {text('change.after') or '?'}"
    if op := text("store.op"):
        yield f"{op} {text('store.kind')} {text('store.item')}".rstrip()
    if any(get(f"error.{name}") for name in ("type", "code", "message")):
        yield "error " + " ".join(str(part) for name in ("type", "code", "message") if (part := get(f"error.{name}")))
    if excerpt := text("content.excerpt"):
        yield f'"{excerpt}"'


def _call(call: Any) -> str:
    if isinstance(call, dict):
        return f"{call.get('tool', '?')} {call.get('id', '')}".rstrip()
    return str(call)


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
