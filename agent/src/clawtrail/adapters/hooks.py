"""Reading what a hook handed over: values of foreign shape in, members of an event's groups out. Pure functions."""

from __future__ import annotations

import json
import marshal
from datetime import datetime
from typing import Any

from ..errors import EventError


def group(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def some(members: dict[str, Any]) -> dict[str, Any] | None:
    """The members that say something; None when none does."""
    kept = {k: v for k, v in members.items() if v or v not in (None, "", [], {})}
    return kept or None


def without_excerpt(content: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in content.items() if k != "excerpt"}


def seconds(at: object) -> float | None:
    try:
        return datetime.fromisoformat(str(at)).timestamp() if at else None
    except ValueError:
        raise EventError(f"at {at!r}; expected an RFC 3339 time such as 2026-01-31T12:00:00.000Z") from None


def micros(milliseconds: object) -> int | None:
    return round(milliseconds * 1000) if isinstance(milliseconds, (int, float)) else None


def parts(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [p for p in content if isinstance(p, dict)] if isinstance(content, list) else []


def text(value: object) -> str:
    """A hook's text: a string, or the text parts of a content list; other parts as their type, tool calls not at all."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n".join(part(p) for p in value if not (isinstance(p, dict) and p.get("type") == "toolCall"))
    return "" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def mark(value: Any) -> int:
    """A number by which this process knows again what it read from JSON, almost always: who finds another one looks closer."""
    return hash(marshal.dumps(value, 2))  # version 2 does not tell how often an object is used


def part(value: object) -> str:
    if isinstance(value, dict):
        words = value.get("text")
        return words if isinstance(words, str) else f"[{value.get('type')}]"
    return str(value)


def digest(value: object) -> str | None:
    return value.get("sha256") if isinstance(value, dict) else None


def leaves(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [leaf for v in value.values() for leaf in leaves(v)]
    if isinstance(value, list):
        return [leaf for v in value for leaf in leaves(v)]
    return []


def target(event: dict[str, Any], params: dict[str, Any]) -> dict[str, Any] | None:
    paths = event.get("derivedPaths")
    path = next((params[k] for k in ("path", "file_path", "filePath") if isinstance(params.get(k), str)), None)
    if path is None and isinstance(paths, list) and paths:
        path = text(paths[0])
    if path:
        return {"type": "file", "id": path}
    if isinstance(params.get("url"), str):
        return {"type": "url", "id": params["url"]}
    return None


def model(event: dict[str, Any]) -> dict[str, Any] | None:
    return some({"via": "hook", "provider": event.get("provider"), "requested": event.get("model"), "call": event.get("callId")})


def error(value: object) -> dict[str, Any] | None:
    if not value:
        return None
    if isinstance(value, dict):
        return some({"type": value.get("name") or "error", "message": text(value.get("message"))})
    return {"type": "error", "message": text(value)}


def tool_error(value: object) -> dict[str, Any] | None:
    """A call with bad arguments never ran: told apart from one that failed."""
    found = error(value)
    if found and text(found.get("message")).startswith("Validation failed"):
        found["type"] = "validation"
    return found


def exit_error(details: dict[str, Any]) -> dict[str, Any] | None:
    code = details.get("exitCode")
    if details.get("timedOut"):
        return {"type": "timeout"}
    return {"type": "exit", "code": code} if isinstance(code, int) and code else None


_REFUSED = ("tool call blocked", "denied by user. the tool call did not run", "plugin approval unavailable", "approval cancelled")


def tool_outcome(failure: object, result: dict[str, Any], details: dict[str, Any]) -> str:
    """`exec` with a bad exit code reports no error, so the details decide; neither error nor result: unknown."""
    words = text(failure).lower()
    if details.get("status") == "blocked" or "no record, no action" in words or words.startswith(_REFUSED):
        return "denied"
    if failure or details.get("timedOut") or details.get("exitSignal") or details.get("status") in ("error", "failed", "timeout"):
        return "failure"
    if isinstance(details.get("exitCode"), int) and details["exitCode"] != 0:
        return "failure"
    return "success" if result else "unknown"


def listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def words(values: object) -> str | None:
    """A list as one string, its members parted by spaces: the store finds no lists."""
    if isinstance(values, (str, bytes, dict)) or not hasattr(values, "__iter__"):
        return text(values) or None
    return " ".join(word for value in values if (word := text(value))) or None


def count(name: str, n: object) -> str | None:
    return f"{name} {n}" if isinstance(n, int) else None


def between(start: object, end: object) -> int | None:
    return end - start if isinstance(start, int) and isinstance(end, int) else None


def revision(skill: dict[str, Any]) -> str | None:
    """The SHA-256 of a skill's folder, 64 hex digits."""
    return text(group(skill.get("revision")).get("treeSha256")).removeprefix("sha256:") or None


def model_name(event: dict[str, Any], side: str) -> str | None:
    name, provider = event.get(f"{side}Model") or event.get(side), event.get(f"{side}Provider")
    return "/".join(text(p) for p in (provider, name) if p) or None


def attachments(media: object) -> dict[str, Any]:
    """The members of `content` that name what came with a message."""
    files = [group(m) for m in listed(media)]
    return some({"mime": words(f.get("contentType") for f in files), "name": words(f.get("path") or f.get("url") for f in files)}) or {}
