"""Secrets out, fingerprints in. Runs before everything else: before hash, excerpt, queue and log.

A secret becomes `[redacted:CLASS:FP]`; FP is the first 8 hex digits of HMAC-SHA256(key, secret), so one secret can
be followed from event to event without being stored. First match wins; the later layers run on what is left:
known values, key names, JSON inside strings, context (`Authorization:`, `NAME_TOKEN=`, `--password`), formats.

Almost all text holds no secret, so what decides the cost of an event is how soon that is known: `Redactor.make_plain`
asks once about all strings of an event that are new to it, and remembers the short ones.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Callable
from urllib.parse import quote, unquote

from .event import DEPTH_MAX, INT_MAX, LEAF_MAX, SCAN_MAX, UNSURE, cut, dumps, text
from .native import native
from .patterns import BASE64, COMPILED, CONTEXT, ENCODED_WORD, FORMATS, apart, decoded, has_run, is_random, nothing_in, together

_REMEMBERED = 4096  #: short strings and keys that a redactor remembers as harmless, before it starts anew
_SHORT = 256  #: characters of one that is worth remembering
_LONG_MAX = 32  #: longer ones that are remembered, as the same text is recorded soon after it was asked about
_SOON = 16 * 1024  #: characters of the longest text that `plain` looks at
_BETWEEN = "\0"  # of two strings that are judged together: nothing that an expression allows in a gap

_SECRET_KEYS = (
    "password", "passwd", "passphrase", "secret", "token", "apikey", "accesskey", "secretkey", "privatekey", "authkey", "accountkey", "encryptionkey",
    "signingkey", "masterkey", "sharedkey", "sharedaccesskey", "credentials", "authorization", "cookie", "pwd", "connectionstring",
)  # fmt: skip
_EXACTLY = frozenset({"pass", "pin", "otp", "totp", "mfacode", "mnemonic", "seedphrase", "dsn", "pairingcode", "setupcode", "sshkey", "clientkeydata", "cookies"})
_HARMLESS_KEYS = (
    "pagetoken", "continuationtoken", "stoptoken", "eostoken", "bostoken", "padtoken", "unktoken", "masktoken", "septoken", "clstoken", "nexttoken", "synctoken",
)  # fmt: skip
_PUBLIC_KEYS = ("publickey", "cachekey", "primarykey", "foreignkey", "sessionkey", "sortkey", "partitionkey", "dedupekey", "idempotencykey", "hotkey")
_USER_OPTIONS = frozenset({"-u", "-U", "--user", "--proxy-user"})  # of curl: `name:password` follows
_NOT_PLAIN = _USER_OPTIONS | {"auths"}
_USER = re.compile(r"([^\s:/]{1,128}:)(?!\d+\Z)(.{1,256})\Z")
_CODE = re.compile(r"(?:[A-Za-z_]\w{0,40}\.){1,6}\w{1,40}[(\[]|(?:str|string|bytes|int|bool|optional|any|object|number|undefined|required|unknown)\b[,)\]?]*\Z", re.IGNORECASE)
_REST = re.compile(r"[0-9a-f]{8}\]")
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
        self._known: dict[str, tuple[str, str]] = {}  #: each form in which it may appear → its class, and itself
        self._forget()

    def _forget(self) -> None:
        # New sets, never emptied ones: another thread may be about to add what it judged by the old rules.
        self._strings: set[str] = set()
        self._turn = 0  # events until new strings are remembered
        self._keys: set[str] = set()
        self._long: deque[str] = deque()  # those of the strings that are longer than _SHORT

    def learn(self, name: str, secret: str) -> None:
        """From now on `secret` is removed wherever it appears, also in base64, hexadecimal, JSON or a URL; `name` is its class.

        Shorter than 6 characters: ignored.
        """
        if len(secret) >= 6 and self._known.get(secret) != (name, secret):
            raw = secret.encode("utf-8", "surrogatepass")
            forms = {secret, quote(secret, safe="", errors="replace"), base64.b64encode(raw).decode().rstrip("="), raw.hex(), json.dumps(secret)[1:-1]}
            # before the sets go, and a new one: threads walk through the old
            self._known = {**self._known, **{form: (name, secret) for form in sorted(forms, key=len, reverse=True)}}
            self._forget()

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

    def plain(self, value: Any) -> Any:
        """A copy of a value that holds no secret, as `event.clean` and `event.cut` leave it; UNSURE for any other.

        UNSURE means nothing but to go the long way: it is also the answer to whatever is rare, such as an instance of
        a subclass.
        """
        box = {"value": value}
        return box["value"] if self.make_plain(box) else UNSURE

    def written(self, value: Any) -> str | None:
        """The JSON that `event.dumps` gives of a value that holds no secret, after `event.clean`; None: go the long way."""
        if not COMPILED or self._known:
            return None
        out: str | None = native.json(value, self._keys)
        return out

    def make_plain(self, members: dict[str, Any], written: str = "") -> bool:
        """Puts in the place of each member what `plain` gives for it; false, and they are of no use, when one is UNSURE.

        One look at them all: the strings that are new are judged together, because what an expression finds in one of
        them it finds in their sum. `written`: a text of the members, such as their JSON; false too when `string` would
        change it. What is asked in this way is about to be recorded, and remembered.
        """
        strings, known = self._strings, self._known  # before anything is judged: see `_forget`
        unknown = [""]
        if not self._fill(members, 0, self._keys, strings, unknown, bool(known)):
            return False
        if len(unknown) == 1 and not written:
            return True
        sum_ = _BETWEEN.join(unknown)
        braces = ("{" in sum_ or "[" in sum_) and (_BETWEEN + "{" in sum_ or _BETWEEN + "[" in sum_)  # one character is found faster
        if written:
            sum_ = written + sum_
            self._turn = 0
        if braces or len(sum_) > _SOON or not nothing_in(sum_) or known and ("%" in sum_ or has_run(sum_)):
            return not written and all(map(self._harmless, unknown))
        for secret in known:
            if secret in sum_:
                return False
        if not sum_.isascii():
            try:
                sum_.encode()
            except UnicodeEncodeError:
                return False
        self._turn -= 1
        if self._turn < 0:  # what comes again and again is soon remembered; what comes once seldom takes its place
            self._turn = min(len(strings) // 64, 15)
            if len(strings) + len(unknown) > _REMEMBERED:
                self._strings = set()
            else:
                strings.update([s for s in unknown if len(s) <= _SHORT])
        return True

    def _fill(self, out: dict[Any, Any], depth: int, keys: set[str], strings: set[str], unknown: list[str], learned: bool) -> bool:
        """Makes a dict of ours plain, but for the strings that it adds to `unknown`; a producer's are copied before they are
        looked at, as another thread could put a secret into them afterwards."""
        for k, v in out.items():
            if type(k) is not str or k not in keys and not self._harmless_key(k):
                return False
            kind = type(v)
            if kind is str:
                if v not in strings:
                    unknown.append(v)
                    if len(v) > LEAF_MAX:
                        out[k] = cut(v)
            elif kind is int:
                if not -INT_MAX < v < INT_MAX:
                    return False
            elif kind is float:
                out[k] = v = repr(v)
                if learned:
                    unknown.append(v)
            elif kind is dict:
                out[k] = v = v.copy()
                if depth >= DEPTH_MAX or not self._fill(v, depth + 1, keys, strings, unknown, learned):
                    return False
            elif kind is list or kind is tuple:
                out[k] = v = list(v)
                if depth >= DEPTH_MAX or not self._fill_list(v, depth + 1, keys, strings, unknown, learned):
                    return False
            elif v is not None and kind is not bool:
                return False
        return True

    def _fill_list(self, out: list[Any], depth: int, keys: set[str], strings: set[str], unknown: list[str], learned: bool) -> bool:
        for i, v in enumerate(out):
            if type(v) is str:
                if v[:1] == "-" and v not in keys and not self._harmless_key(v):
                    return False  # an option, and the next item is its secret
                if v not in strings:
                    unknown.append(v)
                    if len(v) > LEAF_MAX:
                        out[i] = cut(v)
            elif v is not None:
                box = {"item": v}
                if not self._fill(box, depth, keys, strings, unknown, learned):
                    return False
                out[i] = box["item"]
        return True

    def _harmless(self, s: str) -> bool:
        strings = self._strings  # before anything is judged: see `_forget`
        if len(s) > _SOON:
            return False
        if len(s) >= 6:
            for secret in self._known:
                if secret in s:
                    return False
            if self._known and ("%" in s or has_run(s)):
                return self.string(s, Found()) == s
            if s[0] in "{[" and s[-1] in "}]" or not nothing_in(s):
                found = Found()
                if self.string(s, found) != s or found.count:
                    return False
        if not s.isascii():
            try:
                s.encode()
            except UnicodeEncodeError:
                return False
        if len(s) <= _SHORT:
            if len(strings) < _REMEMBERED:
                strings.add(s)
            else:
                self._strings = set()
        return True

    def _harmless_key(self, key: str) -> bool:
        keys = self._keys
        if len(key) > _SHORT or key in _NOT_PLAIN or _is_secret_key(key) or _is_maybe_secret_key(key) or not self._harmless(key):
            return False
        if len(keys) < _REMEMBERED:
            keys.add(key)
        else:
            self._keys = set()
        return True

    def value(self, value: Any, found: Found, key: str = "") -> Any:
        """The value, as deep as it goes, without its secrets; what was removed is added to `found`."""
        if isinstance(value, str):
            if key and value and _is_secret_key(key) and not _MARK.fullmatch(value):
                return self._mark("key", value, found)
            if key and _is_maybe_secret_key(key) and is_random(value):
                return self._mark("entropy", value, found)
            return self.string(value, found)
        if isinstance(value, dict):
            # {"secret": {"value": …}} holds one; a reference such as {"source": "env", "id": …} names one, and stays
            if key == "auths":  # of a registry's logins: {"auths": {"host": {"auth": base64}}}
                return {self.string(k, found): self._leaves(v, found) for k, v in value.items()}
            return {self.string(k, found): self.value(v, found, key if k == "value" else k) for k, v in value.items()}
        if isinstance(value, list):
            return self._list(value, found, key)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 999 and key and _is_secret_key(key):
            return self._mark("key", str(value), found)  # a PIN or a password of digits
        return value

    def _leaves(self, value: Any, found: Found) -> Any:
        if isinstance(value, dict):
            return {self.string(k, found): self._leaves(v, found) for k, v in value.items()}
        if isinstance(value, list):
            return [self._leaves(v, found) for v in value]
        return self._mark("key", value, found) if isinstance(value, str) and value and not _MARK.fullmatch(value) else value

    def _list(self, items: list[Any], found: Found, key: str) -> list[Any]:
        out: list[Any] = []
        for i, item in enumerate(items):
            before = items[i - 1] if i else None
            option = before.lstrip("-") if isinstance(before, str) and before.startswith("-") and "=" not in before else ""
            if isinstance(before, str) and before in _USER_OPTIONS and isinstance(item, str) and (user := _USER.match(item)) and "[redacted:" not in item:
                out.append(user[1] + self._mark("argument", user[2], found))
            else:
                out.append(self.value(item, found, option if _is_secret_key(option) else key))
        return out

    def string(self, s: str, found: Found) -> str:
        """One string without its secrets. Only its first SCAN_MAX characters are kept, and how many are not.

        Never raises: a text that could not be redacted is not passed on, the class `redactor-failed` tells.
        """
        strings = self._strings  # before anything is judged: see `_forget`
        try:
            if s in strings:
                return s
            before = found.count
            out = self._string(s, found)
            if found.count == before and len(s) <= LEAF_MAX and out == s and text(s) is s:
                self._remember(s, strings)
            return out
        except Exception as e:
            found.count += 1
            found.classes += [] if "redactor-failed" in found.classes else ["redactor-failed"]
            return f"[withheld: the redactor failed ({type(e).__name__}) on {len(s)} characters]"

    def _remember(self, s: str, strings: set[str]) -> None:
        if len(strings) >= _REMEMBERED:
            self._strings = set()
            self._long.clear()
            return
        strings.add(s)
        if len(s) > _SHORT:
            self._long.append(s)
            if len(self._long) > _LONG_MAX:
                strings.discard(self._long.popleft())

    def _string(self, s: str, found: Found) -> str:
        s = cut(s, SCAN_MAX)
        if len(s) < 6:
            return s
        for form, (name, secret) in self._known.items():
            if form in s:
                s = s.replace(form, self._mark(name, secret, found))
        if s[0] in "{[" and s[-1] in "}]":
            s = self._inside_json(s, found)
        if nothing_in(s) and not (self._known and ("%" in s or has_run(s))):
            return s
        s = self._unwrapped(self._expressions(s, found), found)
        if (split := apart(s)) != s:
            s = together(self._unwrapped(self._expressions(split, found), found))
        return s

    def _unwrapped(self, s: str, found: Found, depth: int = 0) -> str:
        """The text without what base64 and percent encoding hide: what a run says is judged, and the whole run replaced."""
        if "%" in s:
            s = ENCODED_WORD.sub(lambda m: self._opened(m[0], unquote(m[0]), found, depth, whole=False), s)
        return BASE64.sub(lambda m: self._opened(m[0], decoded(m[0]), found, depth), s)

    def _opened(self, run: str, said: str, found: Found, depth: int, whole: bool = True) -> str:
        if len(said) < 6 or said == run or "[redacted:" in run:
            return run
        inside = Found()
        out = said
        for form, (name, secret) in self._known.items():
            if form in out:
                out = out.replace(form, self._mark(name, secret, inside))
        if out[0] in "{[" and out[-1] in "}]":
            out = self._inside_json(out, inside)
        out = self._expressions(out, inside)
        if depth < 2:
            out = self._unwrapped(out, inside, depth + 1)
        if not inside.count:
            return run
        found.merge(inside)
        return f"[redacted:{inside.classes[0]}:{inside.fps[0]}]" if whole else out

    def _expressions(self, s: str, found: Found) -> str:
        low = s.lower()
        for kind, hints, pattern in FORMATS:
            if any(h in s for h in hints):
                s = pattern.sub(self._whole(kind, found), s)
        for kind, hints, pattern in CONTEXT:
            if any(h in low for h in hints):
                s = self._groups(kind, pattern, s, found)
        return s

    def _groups(self, kind: str, pattern: re.Pattern[str], s: str, found: Found) -> str:
        """The text without what the expression's group `secret` holds; in one that is none there may stand another."""
        out, kept, at = [], 0, 0
        while m := pattern.search(s, at):
            start, at = m.span("secret")
            if _is_no_secret(kind, m):
                at = start
                continue
            out += [s[kept:start], self._mark(kind, m["secret"], found)]
            kept = at
        return "".join([*out, s[kept:]]) if out else s

    def _inside_json(self, s: str, found: Found) -> str:
        inside = Found()
        try:
            redacted = self.value(json.loads(s), inside)
            out = text(json.dumps(redacted, ensure_ascii=False)) if inside.count else s  # an escape may have become a lone surrogate
        except (ValueError, RecursionError):  # no JSON, or nested too deep for us: the later layers read it as text
            return s
        found.merge(inside)
        return out

    def _whole(self, kind: str, found: Found) -> Callable[[re.Match[str]], str]:
        return lambda m: self._mark(kind, m[0], found)

    def _mark(self, kind: str, secret: str, found: Found) -> str:
        fp = self.fingerprint(secret)
        found.add(kind, fp)
        return f"[redacted:{kind}:{fp}]"


def _is_no_secret(kind: str, m: re.Match[str]) -> bool:
    secret = m["secret"]
    return (
        m.string.endswith("[redacted:", 0, m.start()) and _REST.match(secret) is not None  # the class of what was taken out before
        or "[redacted:" in secret
        or secret.startswith(("$", "%", "{{"))
        or _CODE.match(secret) is not None
        or kind == "entropy" and not is_random(secret)
        or kind == "assignment" and _is_harmless_key(m[0][: m.start("secret") - m.start()])
    )


def _is_secret_key(key: str) -> bool:
    plain = _LETTERS.sub("", key.lower())
    return plain in _EXACTLY or plain.endswith(_SECRET_KEYS) and not plain.endswith(_HARMLESS_KEYS)


def _is_harmless_key(key: str) -> bool:
    return _LETTERS.sub("", key.lower()).endswith(_HARMLESS_KEYS)


def _is_maybe_secret_key(key: str) -> bool:
    """One whose value is a secret if it looks like one."""
    plain = _LETTERS.sub("", key.lower())
    return plain.endswith("key") and not plain.endswith(_PUBLIC_KEYS)


_LETTERS = re.compile(r"[^a-z]")


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
