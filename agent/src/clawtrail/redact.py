"""Secrets out, fingerprints in. Runs before everything else: before hash, excerpt, queue and log.

A secret becomes `[redacted:CLASS:FP]`; FP is the first 8 hex digits of HMAC-SHA256(key, secret), so one secret can
be followed from event to event without being stored. First match wins; the later layers run on what is left:
known values, key names, JSON inside strings, context (`Authorization:`, `NAME_TOKEN=`, `--password`), formats.

No expression has an unbounded gap: the redactor stands before the gate of a tool call, so its worst case is bounded.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Callable

from .event import SCAN_MAX, cut, dumps

_G = r"(?<![A-Za-z0-9_-])"  # a token does not begin inside a word


def _token(pattern: str) -> re.Pattern[str]:
    return re.compile(_G + "(?:" + pattern + ")")


#: class, literals of which one must be present, expression: the whole match is the secret.
_FORMATS: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("pem", ("PRIVATE KEY",), re.compile(
        r"-----BEGIN [A-Z ]{0,24}PRIVATE KEY-----[\s\S]{0,16384}?(?:-----END [A-Z ]{0,24}PRIVATE KEY-----|\Z)")),
    ("anthropic", ("sk-ant-",), _token(r"sk-ant-[\w-]{20,200}")),
    ("openrouter", ("sk-or-",), _token(r"sk-or-v1-[0-9a-f]{32,64}")),
    ("openai", ("sk-",), _token(r"sk-(?:proj|svcacct|admin|service)-[\w-]{20,200}|sk-[A-Za-z0-9]{32,64}")),
    ("groq", ("gsk_",), _token(r"gsk_[A-Za-z0-9]{40,60}")),
    ("xai", ("xai-",), _token(r"xai-\w{60,120}")),
    ("huggingface", ("hf_",), _token(r"hf_[A-Za-z0-9]{30,40}")),
    ("google-api", ("AIza",), _token(r"AIza[\w-]{35}")),
    ("google-oauth", ("ya29.", "GOCSPX-"), _token(r"ya29\.[\w-]{20,400}|GOCSPX-[\w-]{24,60}")),
    ("aws-key-id", ("AKIA", "ASIA"), _token(r"(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Z0-9])")),
    ("github", ("gh", "github_pat_"), _token(r"gh[oprsu]_[A-Za-z0-9]{36,255}|github_pat_\w{60,120}")),
    ("gitlab", ("gl",), _token(r"gl(?:pat|dt|rt|ft|oas|soat|agent|ptt|cbt)-[\w.-]{20,120}")),
    ("slack", ("xox", "xapp-"), _token(r"xox[abceoprs]-[\w.-]{10,200}|xapp-\d-[\w-]{20,200}")),
    ("slack-hook", ("hooks.slack",), re.compile(r"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/+-]{20,120}")),
    ("discord-hook", ("/webhooks/",), re.compile(r"discord(?:app)?\.com/api/webhooks/\d{5,25}/[\w-]{40,100}")),
    ("telegram", (":A",), _token(r"\d{8,11}:A[\w-]{34}(?![\w-])")),
    ("stripe", ("sk_", "rk_", "whsec_"), _token(r"[sr]k_(?:live|test|prod)_[A-Za-z0-9]{10,120}|whsec_[A-Za-z0-9+/=]{24,80}")),
    ("sendgrid", ("SG.",), _token(r"SG\.[\w-]{20,24}\.[\w-]{39,46}")),
    ("npm", ("npm_",), _token(r"npm_[A-Za-z0-9]{36}")),
    ("pypi", ("pypi-",), _token(r"pypi-AgE[\w-]{50,250}")),
    ("notion", ("ntn_",), _token(r"ntn_[A-Za-z0-9]{40,60}")),
    ("linear", ("lin_",), _token(r"lin_(?:api|oauth)_[A-Za-z0-9]{32,80}")),
    ("grafana", ("glsa_", "glc_"), _token(r"glsa_[A-Za-z0-9]{32}_[0-9a-fA-F]{8}|glc_[A-Za-z0-9+/=]{32,400}")),
    ("vault", ("hvs.", "hvb."), _token(r"hv[sb]\.[\w-]{24,200}")),
    ("digitalocean", ("_v1_",), _token(r"do[opr]_v1_[0-9a-f]{64}")),
    ("databricks", ("dapi",), _token(r"dapi[0-9a-f]{32}(?:-\d)?(?![0-9a-f])")),
    ("jwt", ("eyJ",), _token(r"eyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{8,2000}")),
)  # fmt: skip

_VALUE = r"(?P<secret>[^\s'\"`;&|<>]{4,512})"
_WORD = r"(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|secret[_-]?key|private[_-]?key|credentials?)"
#: class, literals (lower case), expression: the group `secret` is replaced.
_CONTEXT: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("url-userinfo", ("://",), re.compile(r"://[^\s:/@'\"]{1,128}:(?P<secret>[^\s/@'\"]{1,256})@")),
    ("auth-header", ("authorization",), re.compile(
        r"(?i)authorization['\"]?\s{0,4}[:=]\s{0,4}['\"]?(?:(?:bearer|basic|token|digest|negotiate)\s{1,4})?" + _VALUE)),
    ("bearer", ("bearer ",), re.compile(r"(?i)\bbearer\s{1,4}(?P<secret>[\w.~+/=-]{16,4096})")),
    ("key-header", ("x-", "cookie"), re.compile(
        r"(?i)\b(?:x-[a-z-]{0,40}(?:key|token|secret)|set-cookie|cookie)['\"]?\s{0,4}:\s{0,4}['\"]?(?P<secret>[^\s'\"][^\r\n'\"]{3,4096})")),
    ("query", ("=",), re.compile(
        r"(?i)[?&](?:access_token|token|api_?key|key|sig|signature|code|x-amz-signature|client_secret)=(?P<secret>[^\s&#'\"]{6,2048})")),
    ("assignment", ("=", ":"), re.compile(
        r"(?i)(?<![A-Za-z0-9])(?:[a-z0-9_.-]{0,64}[_.-])?" + _WORD + r"['\"]?\s{0,4}(?:=|:)\s{0,4}['\"]?"
        r"(?!\$|\[redacted|true\b|false\b|null\b|none\b)" + _VALUE)),
    ("argument", ("-",), re.compile(r"(?i)(?<![\w-])--?(?:[a-z0-9-]{0,40}-)?" + _WORD + r"(?:=|\s{1,4})['\"]?(?!\$|-|\[redacted)" + _VALUE)),
    ("argument", ("curl", "sshpass"), re.compile(r"\bcurl\b[^\n]{0,400}?\s(?:-u|--user)[ =]?['\"]?[^\s:'\"]{1,128}:(?P<secret>[^\s'\"]{1,256})")),
    ("argument", ("sshpass",), re.compile(r"\bsshpass\s{1,4}-p\s{0,4}['\"]?(?P<secret>[^\s'\"]{1,256})")),
)  # fmt: skip

_SECRET_KEYS = (
    "password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "secretkey", "privatekey",
    "credentials", "authorization", "cookie",
)  # fmt: skip
_NEVER_SECRET = ("kind", "category", "outcome", "duration_us")
_MARK = re.compile(r"\[redacted:[a-z-]{1,32}:[0-9a-f]{8}\]")


@dataclass
class Found:
    """What the redactor removed from one event."""

    count: int = 0
    classes: list[str] = field(default_factory=list)
    fps: list[str] = field(default_factory=list)

    def add(self, kind: str, fp: str) -> None:
        self.count += 1
        if kind not in self.classes:
            self.classes.append(kind)
        if fp not in self.fps:
            self.fps.append(fp)

    def merge(self, other: Found) -> None:
        self.count += other.count
        self.classes += [c for c in other.classes if c not in self.classes]
        self.fps += [f for f in other.fps if f not in self.fps]

    def fields(self) -> dict[str, Any]:
        """The members of `content`: redactions, classes, fps; empty when nothing was removed."""
        if not self.count:
            return {}
        return {"redactions": self.count, "classes": " ".join(self.classes), "fps": " ".join(self.fps)}


class Redactor:
    """Replaces secrets in strings and nested values.

    Args:
        key: the deployment's fingerprint key; without one a random key, so fingerprints hold for this process only.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or os.urandom(32)
        self._known: dict[str, str] = {}

    def learn(self, name: str, secret: str) -> None:
        """From now on `secret` is removed wherever it appears; `name` is its class. Shorter than 6: ignored."""
        if len(secret) >= 6:
            self._known[secret] = name

    def fingerprint(self, secret: str) -> str:
        return hmac.new(self._key, secret.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:8]

    def event(self, body: dict[str, Any]) -> None:
        """Takes the secrets out of an event's body, in place, and tells in its `content` what was taken.

        Never raises: of an event that could not be redacted only its size and that fact are left.
        """
        found, written = Found(), {k: v for k, v in body.items() if k not in _NEVER_SECRET}
        try:
            body.update((name, self.value(value, found)) for name, value in written.items())
        except Exception as e:
            for name in written:
                del body[name]
            body.update(session=None, run=None)
            body["content"] = {"size": len(dumps(written).encode())}
            body["error"] = {"type": "redaction", "message": f"the redactor failed: {type(e).__name__}"}
            return
        if found.count:
            content = body.get("content")
            body["content"] = _with_redactions(content if isinstance(content, dict) else {"excerpt": content} if content else {}, found)

    def value(self, value: Any, found: Found, key: str = "") -> Any:
        """The value, as deep as it goes, without its secrets; what was removed is added to `found`."""
        if isinstance(value, str):
            if key and value and _is_secret_key(key) and not _MARK.fullmatch(value):
                return self._mark("key", value, found)
            return self.string(value, found)
        if isinstance(value, dict):
            # {"secret": {"value": …}} holds one; a reference such as {"source": "env", "id": …} names one, and stays
            return {self.string(k, found): self.value(v, found, key if k == "value" else k) for k, v in value.items()}
        if isinstance(value, list):
            return self._list(value, found, key)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 999 and key and _is_secret_key(key):
            return self._mark("key", str(value), found)  # a PIN or a password of digits
        return value

    def _list(self, items: list[Any], found: Found, key: str) -> list[Any]:
        out: list[Any] = []
        for i, item in enumerate(items):
            before = items[i - 1] if i else None
            option = before.lstrip("-") if isinstance(before, str) and before.startswith("-") and "=" not in before else ""
            out.append(self.value(item, found, option if _is_secret_key(option) else key))
        return out

    def string(self, s: str, found: Found) -> str:
        """One string without its secrets. Only its first SCAN_MAX characters are kept, and how many are not.

        Never raises: a text that could not be redacted is not passed on, the class `redactor-failed` tells.
        """
        try:
            return self._string(s, found)
        except Exception as e:
            found.count += 1
            found.classes += [] if "redactor-failed" in found.classes else ["redactor-failed"]
            return f"[withheld: the redactor failed ({type(e).__name__}) on {len(s)} characters]"

    def _string(self, s: str, found: Found) -> str:
        s = cut(s, SCAN_MAX)
        if len(s) < 6:
            return s
        for secret, name in self._known.items():
            if secret in s:
                s = s.replace(secret, self._mark(name, secret, found))
        if s[0] in "{[" and s[-1] in "}]":
            s = self._inside_json(s, found)
        low = s.lower()
        for kind, hints, pattern in _FORMATS:
            if any(h in s for h in hints):
                s = pattern.sub(self._whole(kind, found), s)
        for kind, hints, pattern in _CONTEXT:
            if any(h in low for h in hints):
                s = pattern.sub(self._group(kind, found), s)
        return s

    def _inside_json(self, s: str, found: Found) -> str:
        inside = Found()
        try:
            redacted = self.value(json.loads(s), inside)
            out = json.dumps(redacted, ensure_ascii=False) if inside.count else s
        except (ValueError, RecursionError):  # no JSON, or nested too deep for us: the later layers read it as text
            return s
        found.merge(inside)
        return out

    def _whole(self, kind: str, found: Found) -> Callable[[re.Match[str]], str]:
        return lambda m: self._mark(kind, m[0], found)

    def _group(self, kind: str, found: Found) -> Callable[[re.Match[str]], str]:
        def replace(m: re.Match[str]) -> str:
            secret = m["secret"]
            if "[redacted:" in secret or secret.startswith(("$", "%", "{{")):
                return m[0]
            start, end = m.span("secret")
            return m[0][: start - m.start()] + self._mark(kind, secret, found) + m[0][end - m.start() :]

        return replace

    def _mark(self, kind: str, secret: str, found: Found) -> str:
        fp = self.fingerprint(secret)
        found.add(kind, fp)
        return f"[redacted:{kind}:{fp}]"


def _is_secret_key(key: str) -> bool:
    plain = re.sub(r"[^a-z]", "", key.lower())
    return plain.endswith(_SECRET_KEYS) and not plain.endswith(("nextpagetoken", "pagetoken"))


def _with_redactions(content: dict[str, Any], found: Found) -> dict[str, Any]:
    """The content group with what was removed from this event, beside what its producer removed from the text before."""
    before = Found()
    if isinstance(given := content.get("redactions"), int):
        before.count = given
    before.classes, before.fps = (str(content.get(k, "")).split() for k in ("classes", "fps"))
    if set(found.fps) <= set(before.fps) and set(found.classes) <= set(before.classes):
        return content
    before.merge(found)
    return {**content, **before.fields()}
