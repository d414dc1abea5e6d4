"""What an agent leaves for later sessions: memory and files, with who is behind them, and jobs, with what their maker had read."""

from __future__ import annotations

import re
from typing import Any

from . import tools
from .kept import Kept, as_text
from .seen import Seen, present
from .state import Bounded, Call

ITEMS = 8192  #: files written under taint
JOBS = 1024

#: Put into every session by the host.
_BOOTSTRAP = {i.lower(): i for i in ("MEMORY.md", "SOUL.md", "AGENTS.md", "USER.md", "IDENTITY.md", "TOOLS.md", "HEARTBEAT.md")}
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_ENDLESS_WORDS = ("cron", "while", "for", "systemctl", "watch")  # one of them stands in every match
_ENDLESS = re.compile(r"\bcrontab\s+(?:-e|[^\s;&|-])|\|\s*crontab\b|\bwhile\s+(?:true|:|\[\s*1\s*\])|\bfor\s*\(\(\s*;\s*;|systemctl\s+(?:--user\s+)?enable|/etc/cron|\bwatch\s+-n")


class Memory:
    """Files that were written by a session which had read untrusted content, or for somebody who is not the owner."""

    def __init__(self) -> None:
        self._items: Bounded[str, str] = Bounded(ITEMS)

    def keep(self, kept: Kept) -> None:
        kept.hold("memory", self._items, as_text)

    def by_call(self, seen: Seen, touch: tools.Touch, owner: bool | None) -> None:
        taint = seen.state.taint
        origin = "non-owner" if owner is False else taint or ("owner" if owner else None)
        for path in touch.written[:64]:
            if taint or owner is False:
                self._items.put(_key(path), taint or "non-owner")
            else:
                self._items.drop(_key(path))
        store = touch.store
        if not store or store.get("op") == "read":
            return
        seen.put("store", present({**store, "origin": origin, **seen.group("store")}))
        if store["op"] == "delete" and owner is False:
            seen.hit("memory.delete-by-non-owner")
        if taint or owner is False:
            seen.hit("memory.write-untrusted")

    def by_result(self, seen: Seen, call: Call, content: dict[str, Any]) -> tuple[str, str] | None:
        """(source, origin) of the first file that the call read and that somebody untrusted is behind; completes `store`."""
        store = seen.group("store")
        read = call.store if call.store and call.store.get("op") == "read" else None
        item = (read or {}).get("item")
        named = [*call.reads, *([str(item)] if item else [])]
        if tools.short(call.tool) in tools.SEARCHES:
            named += [m[1] for m in tools.MEMORY_IN_COMMAND.finditer(str(content.get("excerpt", "")))][:64]
        found = None
        for path in named:
            if origin := self._items.get(_key(path)):
                found = tools.memory_item(path) or f"file:{path.rpartition('/')[2][:256]}", origin
                break
        if read or store:
            group = {**(read or {}), "item": item or (found[0] if found and read else None), **store}
            seen.put("store", present({**group, "origin": found[1] if found else group.get("origin")}))
        return found

    def put_into_every_session(self) -> str | None:
        """The first tainted one of the files that the host shows each session."""
        return next((name for item, name in _BOOTSTRAP.items() if item in self._items), None)


def _key(path: str) -> str:
    """One name for the ways in which a file is written: a memory item by its name, others by folder and file."""
    item = tools.memory_item(path)
    return item.lower() if item else "/".join(path.replace("\\", "/").rstrip("/").split("/")[-2:])


class Jobs:
    """Jobs by name and by id, each with the taint of the session that made it and its schedule when that has no end."""

    def __init__(self) -> None:
        self._jobs: Bounded[str, tuple[str, str | None]] = Bounded(JOBS)

    def keep(self, kept: Kept) -> None:
        kept.hold("jobs", self._jobs, lambda v: (as_text(v[0]), None if v[1] is None else as_text(v[1])))

    def taint(self, ref: object) -> str:
        return self._jobs.get(str(ref), ("", None))[0]

    def by_call(self, seen: Seen, short: str, params: dict[str, Any], whole: str) -> tuple[str | None, str | None]:
        """The job that a call makes, and its schedule when that has no end."""
        if short in tools.SHELLS and any(word in whole for word in _ENDLESS_WORDS) and _ENDLESS.search(whole):
            seen.hit("schedule.by-agent-no-end")
        if short not in tools.SCHEDULES or params.get("action") not in ("add", "create", "update", None):
            return None, None
        given = params.get("job")
        job: dict[str, Any] = given if isinstance(given, dict) else params
        name, schedule = str(job.get("name") or job.get("jobId") or "")[:256], job.get("schedule")
        plain = schedule if isinstance(schedule, dict) else {"kind": "cron" if schedule else None, "expr": schedule}
        bounded = plain.get("kind") in ("at", None) or any(job.get(k) or plain.get(k) for k in ("deleteAfterRun", "endAt", "until", "maxRuns"))
        spec = None if bounded else str(plain.get("expr") or plain.get("everyMs") or plain.get("every") or plain.get("kind"))[:128]
        self._jobs.put(name, (seen.state.taint, spec))
        if not bounded:
            seen.hit("schedule.by-agent-no-end")
        return name, spec

    def by_result(self, call: Call, content: dict[str, Any]) -> None:
        """The result tells the id under which the host keeps the job."""
        if call.job is not None and (made := _UUID.search(str(content.get("excerpt", "")))):
            self._jobs.put(made[0], (call.taint, call.recurring))

    def changed(self, seen: Seen, change: dict[str, Any]) -> None:
        """The host says that a job has changed; it does so while the call that asked for it is open."""
        name, action = seen.word("change", "name"), seen.word("change", "after")
        caller = next((c for c in reversed(seen.history.calls.values()) if c.job is not None and c.job in (name, "")), None)
        job = self._jobs.get(name)
        if job is None and caller is None:
            return
        taint, spec = job or ((caller.taint, caller.recurring) if caller else ("", None))
        if ident := seen.word("trigger", "ref"):
            self._jobs.put(ident, (taint, spec))
        seen.taint = taint or None
        if not change.get("by"):
            change["by"] = "agent"
        if spec:
            change.setdefault("spec", spec)
            change.setdefault("ends", "never")
        seen.put("change", change)
        if caller and caller.id:
            seen.caused_by(caller.id)
        if change["by"] == "agent" and change.get("ends") == "never" and action in ("added", "updated", ""):
            seen.hit("schedule.by-agent-no-end")
