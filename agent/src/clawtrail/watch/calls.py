"""A tool call and its result: who calls, what the call touches, how far what comes back may be trusted."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from . import text, tools
from .changes import Changes
from .egress import Egress
from .kept import Kept, as_text
from .persistence import Jobs, Memory
from .lifecycle import step
from .seen import Seen, present
from .state import Bounded, Call, History, Run

ITEMS = 8192  #: contents of addresses

_UNPRIVILEGED = frozenset({"subscriber", "guest", "viewer", "anonymous", "reader"})
_ACTOR = ("type", "id", "auth", "owner", "role", "surface", "tenant", "display")
_CHILD = re.compile(r"agent:[\w-]+:subagent:[0-9a-f-]{36}")
_VOLATILE = re.compile(r'\\?"(?:fetchedAt|tookMs|cached|cachedAt|durationMs|elapsedMs|timestamp)\\?":\s*(?:\\?"[^"]{0,64}"|[\w.+-]+)|\b[0-9a-f]{16,}\b')


class Calls:
    """Knows what each address said when it was last read.

    Args:
        trusted: tools, or `mcp:server`, whose results are trusted all the same.
    """

    def __init__(self, history: History, egress: Egress, memory: Memory, jobs: Jobs, changes: Changes, trusted: frozenset[str]) -> None:
        self._history, self._egress, self._memory, self._jobs, self._changes = history, egress, memory, jobs, changes
        self._trusted = trusted
        self._contents: Bounded[str, str] = Bounded(ITEMS)  # short hash of an address → of what it said

    def keep(self, kept: Kept) -> None:
        kept.hold("contents", self._contents, as_text)

    def call(self, seen: Seen) -> None:
        tool, params = seen.group("tool"), seen.group("params")
        name, kind = seen.word("tool", "name"), seen.word("tool", "type")
        short = tools.short(name)
        self._who(seen, step(seen, tools=1))
        self._changes.definition(seen)
        touch = tools.touch(name, kind, seen.word("tool", "server"), params, self._trusted)
        whole = "\n".join(touch.texts)
        hidden = text.hidden(whole)
        if touch.hosts or hidden:
            content = seen.group("content")
            found = {k: v for k, v in {"links": " ".join(touch.hosts), "hidden": hidden}.items() if v and not content.get(k)}
            seen.put("content", {**content, **found})
        owner = seen.owner()
        if owner is False:
            seen.hit("tool.by-non-owner", worse_by=1 if short in tools.PRIVILEGED else 0)
        if seen.word("actor", "auth") == "none":
            seen.hit("tool.by-unverified")
        self._memory.by_call(seen, touch, owner)
        self._egress.by_call(seen, touch)
        job, recurring = self._jobs.by_call(seen, short, params, whole)
        if kind == "mcp" and seen.group("actor").get("role") in _UNPRIVILEGED and seen.group("policy").get("verdict") in (None, "none"):
            seen.hit("tool.privileged-by-unprivileged")
        session = seen.session if isinstance(seen.session, str) else None
        if call_id := seen.word("tool", "call_id"):
            local = short in tools.LOCAL
            self._history.calls.put(call_id, Call(name, session, seen.state.taint, touch.source, touch.store, touch.reads, local, job, recurring))
            if short == tools.SPAWN and session is not None:
                self._history.spawning.put(call_id, session)
        if short == "sessions_send" and isinstance(to := params.get("sessionKey"), str):
            self._history.carry(session, to)
        seen.cause("model.decision")

    def _who(self, seen: Seen, run: Run | None) -> None:
        """The actor of the run, where the host does not say again for the call."""
        known = (run.actor if run else None) or {}
        given = seen.group("actor")
        missing = {k: known[k] for k in _ACTOR if k in known and given.get(k) is None}
        if missing and (not given.get("id") or given.get("id") == known.get("id")):
            seen.put("actor", {**given, **missing})

    def result(self, seen: Seen) -> None:
        seen.mark_content()
        content, call_id = seen.group("content"), seen.word("tool", "call_id")
        call = self._history.calls.pop(call_id, None) or self._unknown(seen)
        if call.id:
            seen.caused_by(call.id)
        if content.get("size") and seen.outcome != "denied":
            self._judge(seen, call, content)
        self._jobs.by_result(call, content)
        if tools.short(call.tool) == tools.SPAWN:
            if child := _CHILD.search(str(content.get("excerpt", ""))):
                self._history.descends(call.session, child[0])
            self._history.spawning.pop(call_id, None)
        self._egress.by_result(content)
        excerpt = content.get("excerpt")
        if content.get("redactions") or isinstance(excerpt, str) and text.masked(excerpt):
            seen.hit("secret.in-result")
        seen.check_tenant()

    def _unknown(self, seen: Seen) -> Call:
        """A result alone: what the tool is still tells where it comes from."""
        name = seen.word("tool", "name")
        touch = tools.touch(name, seen.word("tool", "type"), seen.word("tool", "server"), {}, self._trusted)
        return Call(name, None, "", touch.source, None, [], False)

    def _judge(self, seen: Seen, call: Call, content: dict[str, Any]) -> None:
        tainted = self._memory.by_result(seen, call, content)
        source = tainted[0] if tainted else call.source
        trust = content.get("trust")
        if not trust:
            if source:
                trust = "untrusted-data"
            elif call.local:
                trust, source = ("untrusted-data", seen.state.taint) if seen.state.taint else ("trusted-data", None)
        source = content.get("source") or source
        if trust:
            seen.put("content", present({**content, "trust": trust, "source": source}))
        if str(trust).startswith("untrusted"):
            seen.has_read(str(source or trust))
        self._same_as_before(seen, content)

    def _same_as_before(self, seen: Seen, content: dict[str, Any]) -> None:
        store = seen.group("store")
        item, excerpt = store.get("item"), content.get("excerpt")
        if not isinstance(item, str) or store.get("kind") not in ("web", "external") or not isinstance(excerpt, str):
            return
        now, place = _short_hash(_VOLATILE.sub("", excerpt)), _short_hash(item)
        before = self._contents.get(place)
        self._contents.put(place, now)
        if before is not None and before != now:
            seen.hit("content.changed")


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
