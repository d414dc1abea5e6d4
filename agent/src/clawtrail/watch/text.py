"""What a text carries besides its words: the hosts that it links to, and what a reader of it would not see. Pure functions."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from typing import Any, Iterable

_HOSTS_MAX = 16  #: hosts of one text that are named
_HOST_CHARS = 128
_BASE64_MAX = 64 * 1024  #: characters of one run that are decoded

_URL = re.compile(r"\b(?:https?|wss?|ftps?|sftp|ssh|git)://(?:[^\s/?#@\"'<>`\\]{1,256}@)?(\[[0-9a-fA-F:.]{2,45}\]|[^\s/?#:@\"'<>`\\(){}\[\]|,;]{1,253})", re.IGNORECASE)
_PROGRAMS = ("curl", "wget", "nc", "netcat", "ssh", "scp", "sftp", "rsync", "telnet", "ping", "dig", "nslookup", "socat", "http", "git")
_NETWORK_COMMAND = re.compile(r"(?:^|[\s;&|(`/])(?:curl|wget|nc|ncat|netcat|ssh|scp|sftp|rsync|telnet|ping|dig|nslookup|socat|http|git\s+(?:clone|push|pull|fetch))\s([^|;&\n`]{1,400})")
_BARE_HOST = re.compile(r"(?:[\w.+-]{1,64}@)?((?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}[a-z]{2,24}|\d{1,3}(?:\.\d{1,3}){3})(?=[:/\s]|$)", re.IGNORECASE)
_FILE_ENDINGS = frozenset(
    "txt json jsonl md sh py js mjs ts html htm css tar gz tgz zip log yml yaml csv pem key crt conf cfg ini png jpg jpeg pdf out env sql xml toml lock bin db sqlite bak tmp so c h rs go rb java".split()
)
_CUT_ADDRESS = re.compile(r"\d{1,3}(?:\.\d{1,3}){0,2}")
_MAIL = re.compile(r"[\w.+-]{1,64}@((?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,24})", re.IGNORECASE)

_ZERO_WIDTH = re.compile("[\u200b\u2060\u2061-\u2064\u180e]|(?<=[\x20-\x7e])[\u200c\u200d\ufeff]|[\u200c\u200d\ufeff](?=[\x20-\x7e])")
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
_FLAG_EMOJI = re.compile("\U0001f3f4[\U000e0061-\U000e007a\U000e0030-\U000e0039]{2,6}\U000e007f")
_TAGS = re.compile("[\U000e0000-\U000e007f]")
_VARIATION = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]{3}")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{64,}={0,2}")
_IN_BASE64 = bytes(120 if chr(c) in "+/_-" or c < 128 and chr(c).isalnum() else 32 for c in range(256))
_RUN = b"x" * 64
_MASKED = re.compile(
    r"(?:\b(?:sk-|gh[opsur]_|github_pat_|glpat-|xox[abprs]-|AKIA|AIza|hf_|npm_|pypi-|eyJ)[\w-]{0,8}"
    r"|(?:key|token|secret|password|passwd|credential)[\w-]{0,20}[\"']?\s{0,4}[:=]\s{0,4}[\"']?[\w+/=-]{4,8})\u2026[\w+/=-]{2,8}", re.IGNORECASE)  # fmt: skip
_MARKUP = re.compile(r"<\|(?:im_start|im_end|system|assistant|user|endoftext)\|>|\[/?INST\]|<</?SYS>>|</?(?:system|system-reminder|system_prompt)>", re.IGNORECASE)


def hosts(text: str) -> list[str]:
    """The hosts of the URLs in the text, in lower case, without port, each once, at most 16."""
    if "://" not in text:
        return []
    return _first(_host(m[1]) for m in _URL.finditer(text))


def command_hosts(command: str) -> list[str]:
    """The hosts that a shell command names: in URLs, and as plain words after a program that connects."""
    found = hosts(command)
    for reach in _NETWORK_COMMAND.finditer(command) if any(word in command for word in _PROGRAMS) else ():
        for word in reach[1].split():
            m = None if word.startswith("-") or "://" in word else _BARE_HOST.match(word.strip("'\""))
            if m and m[1].rpartition(".")[2].lower() not in _FILE_ENDINGS:
                found.append(_host(m[1]))
    return _first(found)


def mail_host(address: str) -> str | None:
    """The domain of a mail address, None for anything else."""
    m = _MAIL.fullmatch(address.strip())
    return m[1].lower() if m else None


def hidden(text: str) -> str | None:
    """What a reader would not see, as space-joined words: zero-width, bidi, tags, variation, base64, markup; None for nothing.

    `base64` is a run of 64 characters or more that decodes to text; `markup` is a marker that only a host may set.
    """
    kinds = []
    if not text.isascii():
        if _ZERO_WIDTH.search(text):
            kinds.append("zero-width")
        if _BIDI.search(text):
            kinds.append("bidi")
        if _TAGS.search(text) and _TAGS.search(_FLAG_EMOJI.sub("", text)):
            kinds.append("tags")
        if _VARIATION.search(text):
            kinds.append("variation")
    if len(text) >= 64 and _RUN in text.encode("utf-8", "replace").translate(_IN_BASE64) and any(_is_text(m[0]) for m in _BASE64.finditer(text)):
        kinds.append("base64")
    if ("<" in text or "[" in text) and _MARKUP.search(text):
        kinds.append("markup")
    return " ".join(kinds) or None


def masked(text: str) -> bool:
    """Whether the host took a secret out of the text before we saw it, as OpenClaw does: `ghp_8s…Ee8P`, `password=abc123…wxyz`."""
    return "\u2026" in text and _MASKED.search(text) is not None


def marks(text: str) -> dict[str, Any]:
    """The members `links` and `hidden` of the `content` group of a text that was already redacted."""
    found = {"links": " ".join(hosts(text)), "hidden": hidden(text)}
    return {k: v for k, v in found.items() if v}


def line_digests(text: str, shortest: int = 24, most: int = 512) -> list[str]:
    """The first 8 hex digits of the SHA-256 of each line of at least `shortest` characters, in lower case, spaces as one.

    Enough to see that a text was repeated, and nothing that could be read.
    """
    out: list[str] = []
    for line in text.splitlines():
        plain = " ".join(line.lower().split())
        if len(plain) >= shortest:
            out.append(hashlib.sha256(plain.encode("utf-8", "replace")).hexdigest()[:8])
            if len(out) >= most:
                break
    return out


def _first(found: Iterable[str]) -> list[str]:
    out: dict[str, None] = {}
    for host in found:
        if host:
            out[host] = None
            if len(out) >= _HOSTS_MAX:
                break
    return list(out)


def _host(raw: str) -> str:
    """In lower case; empty for the beginning of an address that was cut off."""
    host = raw.strip(".[]*_").lower()[:_HOST_CHARS]
    return "" if _CUT_ADDRESS.fullmatch(host) else host


def _is_text(run: str) -> bool:
    """Whether the run decodes to printable text: an image, a hash or a path does not."""
    run = run.rstrip("=")[:_BASE64_MAX].replace("-", "+").replace("_", "/")
    run = run[: len(run) - len(run) % 4]
    try:
        raw = base64.b64decode(run, validate=True)
    except (binascii.Error, ValueError):
        return False
    printable = sum(32 <= b < 127 or b in (9, 10, 13) for b in raw[:512])
    return printable >= 0.95 * len(raw[:512])
