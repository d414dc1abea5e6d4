"""What a tool call touches: memory and other stores, destinations, and how far its result may be trusted. Pure functions."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Mapping

from . import text

_LEAVES = 200  #: strings of one call that are looked at
_LEAF = 16 * 1024  #: characters of one string that are looked at
_ITEM = 256

WRITES = frozenset({"write", "edit", "apply_patch", "create", "str_replace", "write_file", "edit_file", "memory_set", "memory_delete"})
READS = frozenset({"read", "read_file", "memory_get"})
SEARCHES = frozenset({"memory_search"})
SHELLS = frozenset({"exec", "bash", "shell", "process", "terminal", "run_command"})
FETCHES = frozenset({"web_fetch", "web_search", "x_search", "browser", "fetch", "search", "webfetch", "websearch"})
SENDS = frozenset({"message", "sessions_send", "mail", "mail_send", "send_email", "email_send", "gmail", "send_message", "tts", "nodes", "canvas"})
SCHEDULES = frozenset({"cron", "automations"})
SPAWN = "sessions_spawn"
_SPAWNS = frozenset({SPAWN, "subagents", "task"})
LOCAL = SHELLS | READS | WRITES | SEARCHES
_REACHING = FETCHES | SHELLS
#: Tools by which an agent acts on the world, its host or itself; reading alone is not among them.
PRIVILEGED = WRITES | SHELLS | SENDS | SCHEDULES | _SPAWNS | {"gateway", "plugins", "config", "secrets", "skill_install", "python_repl"}

_MEMORY = re.compile(r"(?:^|/)(MEMORY\.md|SOUL\.md|AGENTS\.md|USER\.md|IDENTITY\.md|TOOLS\.md|HEARTBEAT\.md|BOOTSTRAP\.md|CLAUDE\.md|memory(?:/[^\s'\"]{1,200})?)$", re.IGNORECASE)
MEMORY_IN_COMMAND = re.compile(
    r"(?:^|[\s='\"(/])((?:MEMORY|SOUL|AGENTS|USER|IDENTITY|HEARTBEAT|CLAUDE)\.md|memory/[\w./*-]{1,200})", re.IGNORECASE
)
_DELETE = re.compile(r"(?:^|[\s;&|(])(?:rm|unlink|shred|truncate|trash|srm)\b")
_REDIRECT = re.compile(r"(?:>{1,2}|\btee\b(?:\s+-a)?|\bsed\s+-i\S*|\bmv\b|\bcp\b)[^;&|\n]{0,400}$")
_PATCH_FILE = re.compile(r"^\*\*\* (Add|Update|Delete) File: (.{1,300})$", re.MULTILINE)
_RECIPIENT_KEYS = ("to", "recipients", "targets", "cc", "bcc", "target", "channelId", "chatId")
_RECIPIENTS = frozenset(_RECIPIENT_KEYS)
_OUTSIDE_PATH = re.compile(r"/(?:media/(?:inbound|incoming)|inbound|downloads?|attachments?)/", re.IGNORECASE)


@dataclass(slots=True)
class Touch:
    """One call, read. `paths` are the files that it names, `written` those that it would change."""

    reads: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    store: dict[str, Any] | None = None
    hosts: list[str] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    sends: bool = False  #: hands data to someone, rather than asks for some
    reaches: bool = False  #: goes to a network or to people at all
    source: str | None = None  #: where its result comes from, when that is nobody we trust
    texts: list[str] = field(default_factory=list)


def leaves(value: object, most: int = _LEAVES) -> list[str]:
    """The strings of a value, keys left out, at most `most`, each cut at 16 KiB."""
    out: list[str] = []
    left = [value]
    seen = 0
    while left and len(out) < most and seen < 20 * most:
        seen += 1
        item = left.pop()
        if isinstance(item, str):
            out.append(item if len(item) <= _LEAF else item[:_LEAF])
        elif isinstance(item, dict):
            left.extend(list(item.values())[::-1][-most:])
        elif isinstance(item, (list, tuple)):
            left.extend(list(item[:most])[::-1])
    return out


def memory_item(path: str) -> str | None:
    """The name of the memory item that a path leads to, such as `memory/notes.md`; None when it leads elsewhere."""
    m = _MEMORY.search(path.replace("\\", "/"))
    return m[1][:_ITEM] if m else None


def short(name: str) -> str:
    """The tool's name in lower case, without the server of an MCP tool: `mail__Send` is `send`."""
    return name.rpartition("__")[2].lower()


def touch(name: str, kind: str, server: str, params: Mapping[str, Any], trusted: frozenset[str]) -> Touch:
    """Reads one call. `name`, `kind` and `server` are the tool's; results of the tools in `trusted` stay trusted."""
    plain = short(name)
    out = Touch(texts=leaves(params))
    path = _path(params)
    if plain in SHELLS:
        _shell(out, params)
    elif plain == "apply_patch":
        _patch(out, params)
    elif plain in WRITES and path:
        out.written.append(path)
        if item := memory_item(path):
            out.store = {"kind": "memory", "op": _edit_op(plain, params), "item": item, "size": _size(params)}
    elif plain in READS and path:
        out.reads.append(path)
        if item := memory_item(path):
            out.store = {"kind": "memory", "op": "read", "item": item}
        if _OUTSIDE_PATH.search(path):
            out.source = f"file:{path.rpartition('/')[2][:_ITEM]}"
    elif plain in SEARCHES:
        out.store = {"kind": "memory", "op": "read", "name": "memory"}
    if plain in FETCHES:
        _fetch(out, plain, params)
    if plain not in SHELLS:
        out.hosts = out.hosts or text.hosts("\n".join(out.texts))
    out.recipients = _recipients(params)
    if plain in SENDS or (out.recipients and kind == "mcp"):
        out.sends = bool(out.recipients or out.hosts)
    out.reaches = out.sends or (bool(out.hosts) and (plain in _REACHING or kind in ("mcp", "http")))
    if kind == "mcp" or server:
        out.source = f"mcp:{(server or name.partition('__')[0]).partition('@')[0]}"
    elif "mail" in plain or plain.startswith(("inbox", "imap")):
        out.source = "email"
    if out.source and (name in trusted or plain in trusted or server.partition("@")[0] in trusted or out.source in trusted):
        out.source = None
    return out


def _first(params: Mapping[str, Any], *keys: str) -> str | None:
    for key in keys:
        if isinstance(value := params.get(key), str):
            return value
    return None


def _path(params: Mapping[str, Any]) -> str:
    return (_first(params, "path", "file_path", "filePath", "file", "filename") or "")[:4096]


def _edit_op(short: str, params: Mapping[str, Any]) -> str:
    if short == "memory_delete":
        return "delete"
    new = next((params[k] for k in ("newText", "new_string", "new_str", "newString") if k in params), None)
    edits = params.get("edits")
    if new is None and isinstance(edits, list) and edits and all(isinstance(e, dict) for e in edits):
        new = "".join(str(e.get("newText", e.get("new_string", "x"))) for e in edits)
    if new is None and short == "write":
        new = params.get("content", "x")
    return "delete" if isinstance(new, str) and not new.strip() else "write"


def _size(params: Mapping[str, Any]) -> int | None:
    content = _first(params, "content", "newText", "new_string", "new_str", "text")
    return None if content is None else len(content.encode("utf-8", "replace"))


def _patch(out: Touch, params: Mapping[str, Any]) -> None:
    whole = "\n".join(out.texts)
    for m in _PATCH_FILE.finditer(whole):
        out.written.append(m[2].strip())
        if (item := memory_item(m[2].strip())) and out.store is None:
            out.store = {"kind": "memory", "op": "delete" if m[1] == "Delete" else "write", "item": item, "size": len(whole.encode("utf-8", "replace"))}


def _shell(out: Touch, params: Mapping[str, Any]) -> None:
    command = _first(params, "command", "cmd", "input", "script")
    if command is None:
        command = " ".join(leaves(params.get("command") or params.get("args") or params))
    command = command[:_LEAF]
    out.hosts = text.command_hosts(command)
    out.sends = bool(out.hosts)
    if out.hosts:
        out.source = f"exec:{out.hosts[0]}"
    low = command.lower()
    for m in MEMORY_IN_COMMAND.finditer(command) if ".md" in low or "memory/" in low else ():
        before = command[max(0, m.start() - 400) : m.start() + 1].rpartition("\n")[2]
        statement = re.split(r"[;&|]{1,2}", before)[-1]
        op = "delete" if _DELETE.search(statement) else "write" if _REDIRECT.search(before) else "read"
        if op != "read":
            out.written.append(m[1])
        else:
            out.reads.append(m[1])
        if out.store is None or out.store["op"] == "read":
            out.store = {"kind": "memory", "op": op, "item": m[1][:_ITEM]}


def _fetch(out: Touch, short: str, params: Mapping[str, Any]) -> None:
    url = _first(params, "url", "targetUrl", "uri") or ""
    query = _first(params, "query", "q") or ""
    out.hosts = text.hosts(url)
    where = out.hosts[0] if out.hosts else "search" if query else short
    out.source = f"{short}:{where}"
    if url or query:
        out.store = {"kind": "web", "op": "read", "item": (url or query)[:_ITEM], "origin": "external"}


def _recipients(params: Mapping[str, Any]) -> list[str]:
    out: list[str] = []
    if _RECIPIENTS.isdisjoint(params):
        return out
    for key in _RECIPIENT_KEYS:
        value = params.get(key)
        if isinstance(value, str):
            out += [part.strip() for part in value.split(",") if part.strip()][:1000]
        elif isinstance(value, list):
            out += [item for item in value if isinstance(item, str)][:1000]
    return list(dict.fromkeys(out))
