"""Claude Code's hooks, and those of agents built on its SDK (NanoClaw) → events.

A record is `{"claude": {…}, "at": seconds, "trace": {…}}`: what the hook command was given on standard input. Each comes
from a process of its own, and whoever takes them may be started anew between a call and its result: what joins the two
is kept in a folder.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

from .. import event as ev
from ..errors import Denied, EventError
from ..recorder import Recorder
from ..rules import Rules
from ..watch import Watch
from . import hooks
from .desk import Recorded
from .scribe import Scribe

_KEPT_MAX = 4096  #: attempts and runs that are remembered
_DAY = 86400.0
_SURFACE = "claude-code"


class Kept:
    """Small texts by their keys, that outlive the process; the oldest make way."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._values: OrderedDict[str, str] = OrderedDict()
        if folder is not None:
            folder.mkdir(0o700, parents=True, exist_ok=True)
            for path in sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime)[:-_KEPT_MAX or None]:
                path.unlink(missing_ok=True)

    def put(self, value: str, *key: object) -> None:
        name = self._name(key)
        self._values[name] = value
        if self._folder is not None:
            with suppress(OSError):  # a full disk: it is remembered as long as this process lives
                (self._folder / name).write_text(value)
        while len(self._values) > _KEPT_MAX:
            old, _ = self._values.popitem(last=False)
            self._forget(old)

    def get(self, *key: object) -> str | None:
        name = self._name(key)
        if name in self._values or self._folder is None:
            return self._values.get(name)
        try:
            path = self._folder / name
            return path.read_text() if time.time() - path.stat().st_mtime < _DAY else None
        except OSError:
            return None

    def pop(self, *key: object) -> str | None:
        value = self.get(*key)
        if value is not None:
            name = self._name(key)
            self._values.pop(name, None)
            self._forget(name)
        return value

    def _forget(self, name: str) -> None:
        if self._folder is not None:
            with suppress(OSError):
                os.unlink(self._folder / name)

    @staticmethod
    def _name(key: tuple[object, ...]) -> str:
        return hashlib.sha256("\0".join(map(str, key)).encode("utf-8", "surrogatepass")).hexdigest()[:32]


class ClaudeCode:
    """Turns hook records into events of one recorder. Not thread-safe.

    Args:
        recorder, rules, watch: see `Scribe`.
        folder: where what joins two hooks is kept; None: in memory alone.
    """

    def __init__(self, recorder: Recorder, rules: Rules | None = None, watch: Watch | None = None, folder: Path | None = None) -> None:
        self._scribe, self._kept = Scribe(recorder, rules, watch), Kept(folder)
        self._hooks: dict[str, Callable[[dict[str, Any]], list[Recorded]]] = {
            "SessionStart": self._session_start, "SessionEnd": self._session_end, "UserPromptSubmit": self._prompt,
            "Stop": self._stop, "StopFailure": self._stop, "SubagentStart": self._subagent, "SubagentStop": self._subagent,
            "PreToolUse": self._call, "PostToolUse": self._result, "PostToolUseFailure": self._result,
            "PermissionRequest": self._permission, "Notification": self._notification,
            "PreCompact": self._compaction, "PostCompact": self._compaction,
        }  # fmt: skip

    def take(self, record: dict[str, Any]) -> list[Recorded]:
        """Records what one hook reported; what was recorded, the first event first.

        Raises EventError for a record that is none, Denied when a rule forbids the action, QueueFull as the recorder does.
        """
        told = record.get("claude")
        name = told.get("hook_event_name") if isinstance(told, dict) else None
        if not isinstance(told, dict) or not isinstance(name, str):
            raise EventError("the hook's input names no hook_event_name; expected one such as PreToolUse")
        self._name, self._time, self._trace = name, record.get("at"), hooks.some(hooks.group(record.get("trace")))
        self._session = hooks.text(told.get("session_id")) or None
        self._run = self._kept.get("run", self._session)
        return self._hooks.get(name, self._other)(told)

    # -- sessions and runs ---------------------------------------------------------------------------------------

    def _session_start(self, told: dict[str, Any]) -> list[Recorded]:
        model = hooks.some({"requested": told.get("model")})
        return self._tell("session.start", "success", {"health": hooks.some({"reason": hooks.text(told.get("source"))}), "model": model})

    def _session_end(self, told: dict[str, Any]) -> list[Recorded]:
        return self._tell("session.end", "success", {"health": hooks.some({"reason": hooks.text(told.get("reason"))})})

    def _prompt(self, told: dict[str, Any]) -> list[Recorded]:
        content = self._scribe.content(hooks.text(told.get("prompt")))
        self._run = uuid.uuid4().hex
        said = self._tell("message.in", "success", {"actor": {"type": "user", "surface": _SURFACE}, "content": content})
        started = self._tell("run.start", "attempt", {
            "caused_by": said[0].receipt.id, "trigger": {"type": "user"}, "content": hooks.without_excerpt(content)})  # fmt: skip
        self._kept.put(self._run, "run", self._session)
        self._kept.put(started[0].receipt.id, "start", self._session)
        return [*started, *said]

    def _stop(self, told: dict[str, Any]) -> list[Recorded]:
        """A turn is over. The hook comes again when another hook makes the agent go on; then it is over once more."""
        failed = self._name == "StopFailure"
        last, start = hooks.text(told.get("last_assistant_message")), self._kept.get("start", self._session)
        answered = self._tell("message.out", "success", {"content": self._scribe.content(last), "target": {"type": "channel", "id": _SURFACE}}) if last else []
        error = {"type": hooks.text(told.get("error")) or "error", "message": hooks.text(told.get("error_details"))} if failed else None
        return [*self._tell("run.end", "failure" if failed else "success", {"caused_by": start, "error": error}), *answered]

    def _subagent(self, told: dict[str, Any]) -> list[Recorded]:
        ident = hooks.text(told.get("agent_id"))
        peer = hooks.some({"agent": hooks.text(told.get("agent_type")), "session": ident, "role": "child", "proof": "host"})
        if self._name == "SubagentStart":
            recorded = self._tell("subagent.start", "attempt", {"peer": peer})
            self._kept.put(recorded[0].receipt.id, "subagent", self._session, ident)
            return recorded
        last = hooks.text(told.get("last_assistant_message"))
        cause = self._kept.pop("subagent", self._session, ident)
        return self._tell("subagent.end", "success", {"peer": peer, "caused_by": cause, "content": self._scribe.content(last) if last else None})

    # -- tools ---------------------------------------------------------------------------------------------------

    def _call(self, told: dict[str, Any]) -> list[Recorded]:
        tool, params = self._tool(told), hooks.group(told.get("tool_input"))
        fields = {
            "tool": tool, "params": params, "content": hooks.without_excerpt(self._scribe.content(ev.dumps(ev.clean(params)))),
            "target": hooks.target({}, params), "caused_by": self._kept.get("start", self._session), "peer": self._peer(told),
        }  # fmt: skip
        try:
            return self._tell("tool.call", "attempt", fields)
        except Denied as e:
            if not e.approve:
                tool.pop("call_id", None)  # nothing will come of it
            raise
        finally:
            if "call_id" in tool and self._scribe.told:
                self._kept.put(self._scribe.told[0].receipt.id, "call", self._session, tool["call_id"])

    def _result(self, told: dict[str, Any]) -> list[Recorded]:
        tool, answer = self._tool(told), told.get("tool_response")
        details = hooks.group(answer)
        stopped = bool(details.get("interrupted") or told.get("is_interrupt"))
        failed = self._name == "PostToolUseFailure" or details.get("success") is False or bool(details.get("is_error"))
        texts = [t for t in (details.get("stdout"), details.get("stderr")) if isinstance(t, str) and t]
        text = "\n".join(texts) if texts else hooks.text(answer)
        error = None
        if failed or stopped:
            error = hooks.some({"type": "interrupted" if stopped else "error", "message": hooks.text(told.get("error") or details.get("error"))})
        duration = told.get("duration_ms")
        return self._tell("tool.result", "unknown" if stopped else "failure" if failed else "success", {
            "tool": tool, "caused_by": self._kept.pop("call", self._session, tool.get("call_id")), "error": error, "peer": self._peer(told),
            "content": self._scribe.content(text) if text else None, "duration_us": hooks.micros(duration)})  # fmt: skip

    def _permission(self, told: dict[str, Any]) -> list[Recorded]:
        params = hooks.group(told.get("tool_input"))
        scope = self._scribe.content(ev.dumps(ev.clean(params)))["sha256"]
        return self._tell("approval.request", "attempt", {"tool": self._tool(told), "params": params, "approval": {"state": "pending", "scope": scope}})

    def _tool(self, told: dict[str, Any]) -> dict[str, Any]:
        name = hooks.text(told.get("tool_name")) or "unknown"
        server = name.split("__")[1] if name.startswith("mcp__") and name.count("__") > 1 else None
        call = told.get("tool_use_id")
        return hooks.some({"name": name, "type": "mcp" if server else "builtin", "server": server, "call_id": call if isinstance(call, str) else None}) or {}

    # -- the rest ------------------------------------------------------------------------------------------------

    def _notification(self, told: dict[str, Any]) -> list[Recorded]:
        content = self._scribe.content(hooks.text(told.get("message")))
        if told.get("notification_type") == "permission_prompt":
            return self._tell("approval.request", "attempt", {"approval": {"state": "pending"}, "content": content})
        return self._tell("log.record", "unknown", {"content": content, "log": {"logger": _SURFACE, "level": "INFO"}})

    def _compaction(self, told: dict[str, Any]) -> list[Recorded]:
        change = hooks.some({"what": "prompt", "name": "compaction", "by": hooks.text(told.get("trigger"))})
        return self._tell("config.change", "attempt" if self._name == "PreCompact" else "success", {"change": change})

    def _other(self, told: dict[str, Any]) -> list[Recorded]:
        """A hook of a later version: what it says is on record, and whoever reads it decides."""
        rest = {k: v for k, v in told.items() if k not in ("session_id", "transcript_path", "hook_event_name")}
        return self._tell("log.record", "unknown", {"log": {"logger": _SURFACE, "level": "INFO", "fields": ev.clean({"hook": self._name, **rest})}})

    @staticmethod
    def _peer(told: dict[str, Any]) -> dict[str, Any] | None:
        """Inside of a subagent each hook says so."""
        ident = hooks.text(told.get("agent_id"))
        return hooks.some({"agent": hooks.text(told.get("agent_type")), "session": ident, "role": "child", "proof": "host"}) if ident else None

    def _tell(self, kind: str, outcome: str, fields: dict[str, Any]) -> list[Recorded]:
        common: dict[str, Any] = {"session": self._session, "run": self._run, "trace": self._trace}
        if isinstance(self._time, (int, float)):
            common["time"] = self._time
        return self._scribe.take(kind, outcome, {k: v for k, v in {**common, **fields}.items() if v is not None})
