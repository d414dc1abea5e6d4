"""The event, version 1: its kinds and fields, and how one is built and checked.

One JSON object on one line, UTF-8, keys in a fixed order, no floats, integers below 2**53, an absent key means
"does not apply". The line that is stored is the line that was hashed.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import math
import os
import re
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Callable, Iterator

from .errors import EventError
from .native import native

try:
    import orjson
except ImportError:  # optional: the same text, in a tenth of the time
    orjson = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from .redact import Redactor

VERSION = 1
LINE_MAX = 40 * 1024  #: bytes of what a producer decides; with the fixed head, header and structured data a frame stays below 48 KiB
NAME_MAX = 512  #: bytes of a session or run
LEAF_MAX = 2048  #: characters of one string inside an event
DEPTH_MAX = 8
SCAN_MAX = 64 * 1024  #: characters of one text that are redacted and hashed; the rest is only counted

#: kind → category. The closed list; the receiver turns any other category into `other`.
KINDS: dict[str, str] = {
    "tool.call": "tool", "tool.result": "tool",
    "credential.access": "credential",
    "model.request": "model", "model.decision": "model",
    "message.in": "message", "message.out": "message",
    "session.start": "session", "session.end": "session",
    "run.start": "session", "run.end": "session",
    "subagent.start": "session", "subagent.end": "session",
    "approval.request": "policy", "approval.result": "policy", "policy.decision": "policy", "auth.login": "policy",
    "config.change": "config",
    "system.start": "system", "system.heartbeat": "system", "system.checkpoint": "system", "system.drop": "system",
    "system.spool-damage": "system", "system.verdict": "system", "system.stop": "system",
    "log.record": "log",
}  # fmt: skip
OUTCOMES = frozenset({"attempt", "success", "failure", "denied", "unknown"})
#: The groups and single fields that may follow the fixed head, in the order in which they are written.
FIELDS = (
    "session", "run", "step", "trace", "caused_by", "actor", "trigger", "tool", "params", "content", "target",
    "credential", "model", "decision", "usage", "policy", "approval", "store", "peer", "change", "log", "taint",
    "flag", "error", "duration_us", "asserted", "dropped", "health", "proof",
)  # fmt: skip
#: Those of them that are one value; all others are objects.
SINGLE = frozenset({"session", "run", "step", "caused_by", "taint", "duration_us", "asserted"})
_ORDER = {name: i for i, name in enumerate(FIELDS)}
#: What `Redactor.plain` answers for a value that it cannot say to be without a secret.
UNSURE: Any = type("Unsure", (), {"__repr__": lambda _: "UNSURE"})()
_SECRET_MEMBERS = frozenset({"value", "secret", "token", "password"})
INT_MAX = 2**53  #: integers are smaller, by their magnitude: larger ones are rounded by other readers


_noise: Iterator[int] = iter(())


def _random() -> int:
    """80 random bits; the system is asked for many at once."""
    global _noise
    n = next(_noise, None)
    if n is None:
        raw = os.urandom(10 * 64)
        noise = iter([int.from_bytes(raw[i : i + 10], "big") for i in range(0, len(raw), 10)])
        n = next(noise)
        _noise = noise
    return n


def _seed(millisecond: int) -> tuple[int, str, Iterator[int]]:
    """A millisecond, the part that its ids share, and the number of the next; random, and too small to overflow 48 bits."""
    n = _random()
    time_hex, a, b = f"{millisecond:012x}", n & 0xFFF, n >> 12 & 0x3FFF | 0x8000
    return millisecond, f"{time_hex[:8]}-{time_hex[8:]}-7{a:03x}-{b:04x}-", itertools.count(n >> 33)


_ids = _seed(0)


def _uuid7() -> str:
    """A new UUID version 7 (RFC 9562 section 5.7): sorts by time; inside of one millisecond, by the order of creation.

    Each millisecond begins at 73 random bits and counts up (section 6.2, methods 1 and 2). Unique over threads and,
    because a child begins anew, over forks.
    """
    global _ids
    now = time.time_ns() // 1_000_000
    ids = _ids
    if ids[0] != now:  # two threads at once: two random beginnings
        _ids = ids = _seed(now)
    return f"{ids[1]}{next(ids[2]):012x}"


def _forget_ids() -> None:
    global _ids, _noise
    _noise = iter(())
    _ids = _seed(0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_ids)

uuid7: Callable[[], str] = native.uuid7 if native else _uuid7

_second = (0, "1970-01-01T00:00:00.")  #: the last second that was written, and how it begins


def timestamp(seconds: float | None = None) -> str:
    """RFC 3339 in UTC with microseconds, the form RFC 5424 section 6.2.3 wants; `seconds` since the epoch or now.

    Rounds as `datetime.fromtimestamp` does: half to even. Raises what it raises for what is no moment.
    """
    global _second
    if seconds is None:
        whole, micros = divmod(time.time_ns() // 1000, 1_000_000)
    else:
        fraction, integer = math.modf(seconds)
        whole, micros = int(integer), round(fraction * 1e6)
        if micros < 0 or micros == 1_000_000:
            carry, micros = divmod(micros, 1_000_000)
            whole += carry
    second, prefix = _second
    if second != whole:
        prefix = datetime.fromtimestamp(whole, UTC).replace(tzinfo=None).isoformat() + "."  # strftime does not pad the year
        _second = whole, prefix
    return f"{prefix}{micros:06d}Z"


def body(kind: str, outcome: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The part of an event that its producer decides: kind, category, outcome and the groups, clean and in order.

    Raises EventError, naming what was found and what was expected, and records nothing.
    """
    category = KINDS.get(kind) if isinstance(kind, str) else None
    if category is None:
        raise EventError(f"event kind {kind!r} is unknown; expected one of {' '.join(KINDS)}")
    if not isinstance(outcome, str) or outcome not in OUTCOMES:
        raise EventError(f"outcome {outcome!r} is unknown; expected one of {' '.join(sorted(OUTCOMES))}")
    for name in fields:
        if name not in _ORDER:  # a foreign name could stand for `seq` or `agent` in the line, and is without bound
            near = difflib.get_close_matches(name, FIELDS, 1) or FIELDS
            raise EventError(f"field {name[:64]!r} is unknown; expected {'one of ' if len(near) > 1 else ''}{' '.join(near)}")
    credential = fields.get("credential")
    if isinstance(credential, dict) and (found := _SECRET_MEMBERS & credential.keys()):
        raise EventError(f"credential.{min(found)} would store the secret itself; name it, never give its value")
    event: dict[str, Any] = {"kind": kind, "category": category, "outcome": outcome}
    event["session"] = _name("session", fields.get("session"))
    event["run"] = _name("run", fields.get("run"))
    for name in sorted(fields, key=_ORDER.__getitem__):
        value = fields[name]
        if value is not None and name not in event:
            event[name] = clean(value)
    return event


def _name(field: str, value: object) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise EventError(f"{field} is {type(value).__name__}; expected a string")
    return text(value).encode()[:NAME_MAX].decode("utf-8", "ignore")


def text(value: str) -> str:
    """The string with lone surrogates written out, so that it can be encoded as UTF-8."""
    try:
        value.encode()
        return value
    except UnicodeEncodeError:
        return value.encode("utf-8", "backslashreplace").decode()


def clean(value: Any, depth: int = 0) -> Any:
    """The value as JSON of the event's rules: string keys, no floats, no huge integers, at most DEPTH_MAX deep."""
    if isinstance(value, str):
        return text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -INT_MAX < value < INT_MAX else str(value) if value.bit_length() < 4096 else hex(value)  # str() of more may refuse
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if depth >= DEPTH_MAX:
        return written(value)
    if isinstance(value, dict):
        return {written(k): clean(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [clean(v, depth + 1) for v in value]
    return written(value)


def written(value: object) -> str:
    """`str()` of anything; what cannot be written is named by its type, because an event is worth more than one value."""
    try:
        return text(str(value))
    except Exception as e:  # includes a value nested too deep
        return f"<{type(value).__name__}: {type(e).__name__}>"


def cut(value: Any, limit: int = LEAF_MAX) -> Any:
    """The value with every string of more than `limit` characters cut; a cut string tells how many are missing."""
    if isinstance(value, str):
        return value if len(value) <= limit else _cut_text(value, limit)
    if isinstance(value, dict):
        return {k: cut(v, limit) for k, v in value.items()}
    if isinstance(value, list):
        return [cut(v, limit) for v in value]
    return value


_CUT = re.compile(r"\[\+(\d{1,12})\]\Z")


def _cut_text(value: str, limit: int) -> str:
    before = _CUT.search(value, len(value) - 16)  # it was cut already: what is missing adds up
    missing = len(value) - limit + (int(before[1]) - len(before[0]) if before else 0)
    return f"{value[:limit]}[+{missing}]"


_CONTROL = re.compile("[\x7f-\x9f\u2028\u2029\ufeff]")


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_STRICT = 0 if orjson is None else orjson.OPT_STRICT_INTEGER | orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS


def dumps(value: Any) -> str:
    """Compact JSON on one line; every control character escaped, also those that JSON itself lets through."""
    out = _encode(value)
    if out.isascii() and "\x7f" not in out:
        return out
    return _CONTROL.sub(lambda m: f"\\u{ord(m[0]):04x}", out)


def encode(kind: str, outcome: str, fields: dict[str, Any], redactor: Redactor) -> tuple[dict[str, Any], str]:
    """An event as its producer decides it, checked and without its secrets.

    Returns the body (`kind`, `category`, `outcome`, `session`, `run` and the given groups, in the order of FIELDS)
    and its JSON: one line of at most LINE_MAX bytes of UTF-8, from `{"kind":` to `}`. Where the two differ, the JSON
    is what counts: its long strings are cut.

    Raises EventError as `body` does.
    """
    quick = _encode_plain(kind, outcome, fields, redactor)
    if quick is not None:
        return quick
    whole = body(kind, outcome, fields)
    redactor.event(whole)
    return whole, fit(whole)


def _encode_plain(kind: str, outcome: str, fields: dict[str, Any], redactor: Redactor) -> tuple[dict[str, Any], str] | None:
    """What `encode` gives, where there is nothing to refuse, to redact or to shorten; else None."""
    try:
        names = tuple(fields)
        order = _orders.get(names) or _remember_order(names)
        if outcome not in OUTCOMES:
            return None
        members = {name: value for name in order if (value := fields[name]) is not None}
        for name in ("session", "run"):
            if name in members and (type(value := members[name]) is not str or not 0 < len(value) <= _SHORT_NAME):
                return None
        if not redactor.make_plain(members):
            return None
        if "credential" in members and isinstance(members["credential"], dict) and "value" in members["credential"]:
            return None  # the other members that `body` refuses have names that are never plain
        whole = {"kind": kind, "category": KINDS[kind], "outcome": outcome, "session": None, "run": None, **members}
        out = _write_plain(whole)
    except Exception:  # whatever it was, the long way says it better, or gets by without
        return None
    return None if out is None else (whole, out)


_SHORT_NAME = NAME_MAX // 4  # a character is four bytes at most
_orders: dict[tuple[str, ...], tuple[str, ...]] = {}


def _remember_order(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(_orders) >= 1024:
        _orders.clear()
    order = _orders[names] = tuple(FIELDS[i] for i in sorted(map(_ORDER.__getitem__, names)))
    return order


def _write_plain(whole: dict[str, Any]) -> str | None:
    """The JSON that `fit` gives, from values as `Redactor.plain` leaves them; None if it is too long, or cannot be written."""
    if orjson is None:
        out = dumps(whole)
        return out if len(out) <= LINE_MAX and (out.isascii() or len(out.encode()) <= LINE_MAX) else None
    raw = orjson.dumps(whole, None, _STRICT)
    if len(raw) > LINE_MAX:
        return None
    if raw.isascii():
        return raw.decode() if b"\x7f" not in raw else None
    return None if _CONTROL.search(out := raw.decode()) else out


def fit(event: dict[str, Any]) -> str:
    """The event as JSON of at most LINE_MAX bytes, its strings of at most LEAF_MAX characters.

    One that is larger has its strings cut shorter, and at last the groups of more than 1 KiB replaced by their size
    and SHA-256. Session and run are never cut: they are what events are found by.
    """
    for limit in (LEAF_MAX, 512, 64):
        out = dumps(_cut_groups(event, limit))
        if len(out.encode()) <= LINE_MAX:
            return out
    small = _cut_groups(event, 64)
    for name, value in small.items():
        if isinstance(value, (dict, list)) and len(dumps(value).encode()) > 1024:
            whole = dumps(event[name]).encode()
            small[name] = {"size": len(whole), "sha256": hashlib.sha256(whole).hexdigest()}
    return dumps(small)


def _cut_groups(event: dict[str, Any], limit: int) -> dict[str, Any]:
    return {k: v if k in ("session", "run") else cut(v, limit) for k, v in event.items()}


def content(redacted: str, size: int, **more: Any) -> dict[str, Any]:
    """The `content` group of a text that was already redacted; `size` is the original's length in bytes."""
    whole = text(redacted)
    group: dict[str, Any] = {"sha256": hashlib.sha256(whole.encode()).hexdigest(), "size": size, "excerpt": cut(whole)}
    return group | {k: v for k, v in more.items() if v is not None}


def log_content(redacted: str, size: int, **more: Any) -> dict[str, Any]:
    """The `content` group of a plain log line: as `content`, without the hash of a text that stands there as a whole."""
    whole = text(redacted)
    if len(whole) > LEAF_MAX:
        return content(whole, size, **more)
    return {"size": size, "excerpt": whole} | {k: v for k, v in more.items() if v is not None}
