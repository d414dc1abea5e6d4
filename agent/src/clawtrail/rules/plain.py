"""What a call says, in plain form: what a shell would join, unquote or expand is; percent and one level of base64 are read as well."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

TEXT_MAX = 48 * 1024  #: characters of one field that are looked at; of a longer one its beginning and its end
_NODES = 4000  # values of one call that are read

_COMMAND_KEYS = frozenset({"command", "cmd", "script", "code", "args", "argv", "arguments", "shell", "input", "expression", "commandline"})
_SHELLS = frozenset({"exec", "bash", "shell", "sh", "process", "terminal", "run_command", "execute", "code_execution", "system.run"})
_PATH_KEYS = frozenset({
    "path", "paths", "file", "files", "file_path", "filepath", "filename", "file_name", "dir", "directory", "folder", "source", "src",
    "destination", "dest", "dst", "target", "from", "to", "cwd", "workdir", "old_path", "new_path", "notebook_path", "root",
})  # fmt: skip
_URL_KEYS = frozenset({"url", "urls", "uri", "href", "endpoint", "link", "targeturl", "target_url", "base_url", "baseurl"})
_WRITTEN_KEYS = frozenset({"content", "text", "new_string", "newtext", "new_text", "patch", "body"})
_SCRIPT = re.compile(r"\.(?:sh|bash|zsh|py|js|mjs|cjs|ts|rb|pl|ps1|bat|cmd)\Z|(?:^|/)(?:Makefile|Dockerfile|crontab)\Z", re.IGNORECASE)
_SCHEMES = ("http://", "https://", "ws://", "wss://", "ftp://")
_PATH_STARTS = frozenset("/~.f")
_PATH_LIKE = re.compile(r"(?:[/~]|\.{1,2}/|file://)[^\n\0]{0,1000}\Z")


def texts(tool: str, params: Mapping[str, Any], paths: Sequence[str]) -> dict[str, str]:
    """For each of ON that the call has: its values, one on a line, as they are and then in plain form."""
    leaves: list[tuple[str, str]] = []
    _collect(params, "", 0, leaves)
    command: list[str] = []
    path = [str(p) for p in paths]
    url: list[str] = []
    shell = tool.lower() in _SHELLS
    script: bool | None = None  # a file of commands is written; nobody has looked yet
    for key, value in leaves:
        if shell or key in _COMMAND_KEYS:
            command.append(value)
        elif key in _WRITTEN_KEYS:
            if script is None:
                script = any(k in _PATH_KEYS and _SCRIPT.search(v) for k, v in leaves)
            if script or value.startswith("#!"):
                command.append(value)
        if key in _PATH_KEYS or value[:1] in _PATH_STARTS and _PATH_LIKE.match(value):
            path.append(value)
        if key in _URL_KEYS or value.startswith(_SCHEMES):
            url.append(value)
    given = {"path": path, "command": command, "url": url}
    size = sum([len(value) for _, value in leaves]) + sum(map(len, path))
    if size > TEXT_MAX // 4:  # so that all its forms are bounded too
        given["params"] = [f"{key}={value}" if key else value for key, value in leaves]
        said = {name: plain("\n".join(values)) for name, values in given.items() if values}
    else:  # what stands in several fields is read once
        forms = {value: plain(value) for _, value in leaves}
        said = {name: "\n".join([forms.get(value) or plain(value) for value in values]) for name, values in given.items() if values}
        if leaves:
            said["params"] = "\n".join([f"{key}={forms[value]}" if key else forms[value] for key, value in leaves])
    if tool:
        said["tool"] = tool
    return said


def together(texts: Mapping[str, str]) -> str:
    """All lines of the texts in one. What a call says is in its parameters already, most often in the same words."""
    whole = texts.get("params", "")
    for name, text in texts.items():
        if name != "params":
            for line in text.split("\n"):
                if line not in whole:
                    whole = f"{whole}\n{line}"
    return whole


def _collect(value: Any, key: str, depth: int, out: list[tuple[str, str]]) -> None:
    if len(out) >= _NODES or depth > 12:
        return
    if isinstance(value, str):
        out.append((key, value))
    elif isinstance(value, Mapping):
        for k, v in value.items():
            _collect(v, str(k).lower(), depth + 1, out)
    elif isinstance(value, (list, tuple)):
        if value and all(isinstance(v, str) for v in value):
            out.append((key, " ".join(value)))  # an argument list, as the command line that it is
            for v in value[: 64 if key in _PATH_KEYS or key in _URL_KEYS else 0]:
                out.append((key, v))
        else:
            for v in value:
                _collect(v, key, depth + 1, out)
    elif isinstance(value, bool):
        out.append((key, str(value).lower()))
    elif isinstance(value, (int, float)):
        out.append((key, str(value)[:64]))


_HOME = re.compile(r"\$HOME\b|\$\{HOME\}|%USERPROFILE%|(?<![\w/.])/(?:root|home/[\w.-]{1,32})(?=/)")
_SPACE = re.compile(r"\$\{IFS[^}\n]{0,16}\}|\$IFS(?:\$\d)?")
_QUOTED = re.compile(r"(?<=[\w./~$*?-])(?:''|\"\"|\\(?=[\w./-])|['\"](?=[\w./*-]))|(?<=[\w./~-])['\"](?=[/.])")
_ANSI = re.compile(r"\\x([0-9a-fA-F]{2})")
_SLASHES = re.compile(r"(?<![:/])/{2,64}|/(?:\./){1,64}|(?<![\w.])\./(?=\.)")
_UP = re.compile(r"/(?!\.\.?/)[\w.-]{1,64}/\.\.(?=/)")
_BASE64_STARTS = frozenset("CDIJKLMNOPQRSTUVWXYZabcdefwxyz0123456789")  # of text: its first byte is no control and no continuation
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{12,8192}={0,2}(?![A-Za-z0-9+/_-])")


def plain(text: str) -> str:
    """The text, and below it on lines of their own what it becomes once a shell, a URL or base64 is read; cut at TEXT_MAX."""
    if len(text) < 12 and text.isalnum():
        return text
    if len(text) > TEXT_MAX:
        text = text[: TEXT_MAX // 3 * 2] + "\n" + text[-TEXT_MAX // 3 :]
    out = [text]
    shelled = text
    if "HOME" in text or "%USERPROFILE%" in text or "/root" in text or "/home/" in text:
        shelled = _HOME.sub("~", shelled)
    if "IFS" in text:
        shelled = _SPACE.sub(" ", shelled)
    if "\\x" in shelled:
        shelled = _ANSI.sub(lambda m: chr(int(m[1], 16)), shelled)
    if "'" in shelled or '"' in shelled or "\\" in shelled:
        shelled = _QUOTED.sub("", shelled)
    if "//" in shelled or "/./" in shelled or "./." in shelled:
        shelled = _SLASHES.sub(lambda m: "" if m[0] == "./" else "/", shelled)
    for _ in range(4 if "/../" in shelled else 0):
        shelled = _UP.sub("", shelled)
    if shelled != text:
        out.append(shelled)
    if "%" in shelled and (opened := unquote(shelled, errors="replace")) != shelled:
        out.append(opened)
    room = TEXT_MAX
    for run in _BASE64.findall(shelled) if len(shelled) >= 12 else ():
        if run[0] in _BASE64_STARTS and room > 0 and (decoded := _decoded(run)):
            out.append(decoded[:room])
            room -= len(decoded)
    return "\n".join(out) if len(out) > 1 else text


@lru_cache(256)  # what an agent is called with names the same folders again and again
def _decoded(run: str) -> str:
    """What a run of base64 says, if that is text; else nothing."""
    if "/" in run and run.count("/") > 3 and "+" not in run and "=" not in run:
        return ""  # a path
    try:
        raw = base64.b64decode(run + "=" * (-len(run) % 4), b"-_" if "-" in run or "_" in run else None, validate=True)
        said = raw.decode()
    except (binascii.Error, ValueError):
        return ""
    return said if said.replace("\n", "").replace("\t", "").replace("\r", "").isprintable() else ""
