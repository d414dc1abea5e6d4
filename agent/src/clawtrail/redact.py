"""Secrets out, fingerprints in. Runs before everything else: before hash, excerpt, queue and log.

A secret becomes `[redacted:CLASS:FP]`; FP is the first 8 hex digits of HMAC-SHA256(key, secret), so one secret can
be followed from event to event without being stored. First match wins; the later layers run on what is left:
known values, key names, JSON inside strings, context (`Authorization:`, `NAME_TOKEN=`, `--password`), formats.

No expression has an unbounded gap: the redactor stands before the gate of a tool call, so its worst case is bounded.

Almost all text holds no secret, so what decides the cost of an event is how soon that is known: `_nothing_in` asks for
the literals that each expression needs, and `Redactor.plain` remembers the short strings and keys that it asked about.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any, Callable

from .event import DEPTH_MAX, INT_MAX, LEAF_MAX, SCAN_MAX, UNSURE, cut, dumps, text

_G = r"(?<![A-Za-z0-9_-])"  # a token does not begin inside a word


def _token(pattern: str) -> re.Pattern[str]:
    return re.compile(_G + "(?:" + pattern + ")")


#: class, literals of which one must be present, expression: the whole match is the secret.
_FORMATS: tuple[tuple[str, tuple[str, ...], re.Pattern[str]], ...] = (
    ("pem", ("-----BEGIN ",), re.compile(
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
    ("github", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), _token(r"gh[oprsu]_[A-Za-z0-9]{36,255}|github_pat_\w{60,120}")),
    ("gitlab", ("glpat-", "gldt-", "glrt-", "glft-", "gloas-", "glsoat-", "glagent-", "glptt-", "glcbt-"), _token(
        r"gl(?:pat|dt|rt|ft|oas|soat|agent|ptt|cbt)-[\w.-]{20,120}")),
    ("slack", ("xoxa-", "xoxb-", "xoxc-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"), _token(
        r"xox[abceoprs]-[\w.-]{10,200}|xapp-\d-[\w-]{20,200}")),
    ("slack-hook", ("hooks.slack",), re.compile(r"hooks\.slack\.com/(?:services|workflows|triggers)/[\w/+-]{20,120}")),
    ("discord-hook", ("/webhooks/",), re.compile(r"discord(?:app)?\.com/api/webhooks/\d{5,25}/[\w-]{40,100}")),
    ("telegram", (":A",), _token(r"\d{8,11}:A[\w-]{34}(?![\w-])")),
    ("stripe", ("sk_live_", "sk_test_", "sk_prod_", "rk_live_", "rk_test_", "rk_prod_", "whsec_"), _token(
        r"[sr]k_(?:live|test|prod)_[A-Za-z0-9]{10,120}|whsec_[A-Za-z0-9+/=]{24,80}")),
    ("sendgrid", ("SG.",), _token(r"SG\.[\w-]{20,24}\.[\w-]{39,46}")),
    ("npm", ("npm_",), _token(r"npm_[A-Za-z0-9]{36}")),
    ("pypi", ("pypi-",), _token(r"pypi-AgE[\w-]{50,250}")),
    ("notion", ("ntn_",), _token(r"ntn_[A-Za-z0-9]{40,60}")),
    ("linear", ("lin_",), _token(r"lin_(?:api|oauth)_[A-Za-z0-9]{32,80}")),
    ("grafana", ("glsa_", "glc_"), _token(r"glsa_[A-Za-z0-9]{32}_[0-9a-fA-F]{8}|glc_[A-Za-z0-9+/=]{32,400}")),
    ("vault", ("hvs.", "hvb."), _token(r"hv[sb]\.[\w-]{24,200}")),
    ("digitalocean", ("_v1_",), _token(r"do[opr]_v1_[0-9a-f]{64}")),
    ("databricks", ("dapi",), _token(r"dapi[0-9a-f]{32}(?:-\d)?(?![0-9a-f])")),
    ("jwt", (".eyJ",), _token(r"eyJ[\w-]{8,4000}\.eyJ[\w-]{8,8000}\.[\w-]{8,2000}")),
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

_SHORTEST = 15  #: characters of the shortest match of any of _FORMATS


_RARE = "-_.:"


def _signs() -> re.Pattern[str]:
    """One expression that finds a hint of _FORMATS wherever one of their matches stands, if the hint has a rare character.

    It looks for the rare characters first, and back from there: a search for the hints themselves would try each letter.
    """
    ways: list[str] = []
    for mark in _RARE:
        heads: dict[tuple[bool, int, str], list[str]] = {}
        for _, hints, pattern in _FORMATS:
            for hint in hints:
                if (at := _first_rare(hint)) is not None and hint[at] == mark:
                    begins = pattern.pattern.startswith(_G) and at > 0  # the token begins with it, so not inside of a word
                    heads.setdefault((begins, at, hint[at + 1 :]), []).append(hint[: at + 1])
        before = "".join(sorted({head[-2] for same in heads.values() for head in same if len(head) > 1}))
        for first in (True, False):  # the hints that begin with the character itself; and those behind one letter of `before`
            tests = [
                f"(?<={_G if begins else ''}(?:{'|'.join(map(re.escape, same))}))" + (f"(?={re.escape(rest)})" if rest else "")
                for (begins, at, rest), same in heads.items()
                if first == (at == 0)
            ]
            if tests:
                ways.append(re.escape(mark) + ("" if first else f"(?<=[{before}]{re.escape(mark)})") + f"(?:{'|'.join(tests)})")
    return re.compile("|".join(ways))


def _first_rare(hint: str) -> int | None:
    return next((i for i, c in enumerate(hint) if c in _RARE), None)


_SIGNS = _signs()
_UNMARKED = tuple(hint for _, hints, _ in _FORMATS for hint in hints if _first_rare(hint) is None)
_NAMES = r"(?:password|passwd|passphrase|secret|token|key|credentials?)"  # what _WORD ends with
_ASSIGNED = re.compile(_NAMES + r"['\"]?\s{0,4}[=:]")
_HEADER = re.compile(r"(?:authorization|cookie)['\"]?\s{0,4}[=:]")
_ARGUMENT = re.compile(r"-[a-z0-9_-]{0,52}" + _NAMES + r"[=\s]")
_QUERY, _USERINFO = (next(pattern for kind, _, pattern in _CONTEXT if kind == wanted) for wanted in ("query", "url-userinfo"))


def _nothing_in(s: str) -> bool:
    """Whether no expression of _FORMATS and _CONTEXT matches in `s`: true is certain, false is not.

    Each test below is for something that every match of its expression contains.
    """
    if len(s) >= _SHORTEST:
        if _SIGNS.search(s):
            return False
        for hint in _UNMARKED:
            if hint in s:
                return False
    low = s.lower()
    if not s.isascii():  # as re.IGNORECASE sees them: ſ is an s, ı and İ are an i
        low = low.replace("\u017f", "s").replace("\u0131", "i").replace("i\u0307", "i")
    if "bearer " in low:
        return False
    colon, equal, dash = ":" in s, "=" in s, "-" in s
    if not (colon or equal or dash):
        return True
    if "key" in low or "token" in low or "secret" in low or "passw" in low or "passp" in low or "credential" in low:
        if (colon or equal) and _ASSIGNED.search(low) or dash and _ARGUMENT.search(low):
            return False  # the first is also what every `x-…-key:` has
    if (colon or equal) and ("authorization" in low or "cookie" in low) and _HEADER.search(low):
        return False
    if equal and ("?" in s or "&" in s) and _QUERY.search(s) or colon and "@" in s and "://" in s and _USERINFO.search(s):
        return False
    return not (dash and ("curl" in s and "-u" in s or "sshpass" in s))


_REMEMBERED = 4096  #: short strings and keys that a redactor remembers as harmless, before it starts anew
_SHORT = 256  #: characters of one that is worth remembering
_SOON = 16 * 1024  #: characters of the longest text that `plain` looks at
_BETWEEN = "\0"  # of two strings that are judged together: nothing that an expression allows in a gap

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
        self._forget()

    def _forget(self) -> None:
        # New sets, never emptied ones: another thread may be about to add what it judged by the old rules.
        self._strings: set[str] = set()
        self._turn = 0  # events until new strings are remembered
        self._keys: set[str] = set()

    def learn(self, name: str, secret: str) -> None:
        """From now on `secret` is removed wherever it appears; `name` is its class. Shorter than 6: ignored."""
        if len(secret) >= 6 and self._known.get(secret) != name:
            self._known = {**self._known, secret: name}  # before the sets go, and a new one: threads walk through the old
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

    def make_plain(self, members: dict[str, Any]) -> bool:
        """Puts in the place of each member what `plain` gives for it; false, and they are of no use, when one is UNSURE.

        One look at them all: the strings that are new are judged together, because what an expression finds in one of
        them it finds in their sum.
        """
        strings, known = self._strings, self._known  # before anything is judged: see `_forget`
        unknown = [""]
        if not self._fill(members, 0, self._keys, strings, unknown, bool(known)):
            return False
        if len(unknown) == 1:
            return True
        sum_ = _BETWEEN.join(unknown)
        if len(sum_) > _SOON or _BETWEEN + "{" in sum_ or _BETWEEN + "[" in sum_ or not _nothing_in(sum_):
            return all(map(self._harmless, unknown))
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
            if s[0] in "{[" and s[-1] in "}]" or not _nothing_in(s):
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
        if len(key) > _SHORT or _is_secret_key(key) or not self._harmless(key):
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
            return s if s in self._strings else self._string(s, found)
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
        return s if _nothing_in(s) else self._expressions(s, found)

    def _expressions(self, s: str, found: Found) -> str:
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
            out = text(json.dumps(redacted, ensure_ascii=False)) if inside.count else s  # an escape may have become a lone surrogate
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
