"""The members of an event in the types that the published schema wants, whatever a host handed over.

A number where a string belongs becomes its decimal text. What cannot be what it should, a word as a count or a state
that nobody knows, keeps its place in the record as `log.fields`, under its own name: nothing is left out.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Callable, Final

from .. import event as ev
from .. import schema
from ..redact import Found, Redactor
from . import hooks

_UNFIT: Final = object()
_Fit = Callable[[Any, Redactor], Any]


def fitted(kind: str, fields: dict[str, Any], redactor: Redactor) -> dict[str, Any]:
    """The fields of an event of this kind; the same object when all of it is as it should be."""
    odd: dict[str, Any] = {}
    out = fields
    for name, value in fields.items():
        if value is None:
            continue
        members = _GROUPS.get(name)
        if members is None:
            one = _SINGLE.get(name)
            if one is not None and (fit := one(value, redactor)) is not value:
                out = _put(out, fields, name, fit, odd, name, value)
            continue
        if not isinstance(value, dict):
            out = _put(out, fields, name, _UNFIT, odd, name, value)
            continue
        group, short = value, _SHORT[name]
        for member, found in value.items():
            if type(found) is str and len(found) <= short.get(member, -1):
                continue  # most are
            fits = members.get(member)
            if fits is not None and (fit := fits(found, redactor)) is not found:
                group = _put(group, value, member, fit, odd, f"{name}.{member}", found)
        if group is not value:
            out = _put(out, fields, name, group, odd, name, value)
    needed = _REQUIRED.get(kind)
    if needed is not None and out.get(needed) is None:
        out = {**out, needed: {}}
    return {**out, "log": {**(out.get("log") or {}), "fields": odd}} if odd else out


def _put(out: dict[str, Any], before: dict[str, Any], name: str, fit: Any, odd: dict[str, Any], path: str, found: Any) -> dict[str, Any]:
    out = dict(before) if out is before else out
    if fit is _UNFIT:
        if found is not None:
            odd[path] = found
        out.pop(name, None)
    else:
        out[name] = fit
    return out


def _short(longest: int | None) -> int:
    """Characters of a string that fits as it is: redaction makes no text twice as long."""
    return sys.maxsize if longest is None else longest // 2


def _string(longest: int | None) -> _Fit:
    short = _short(longest)

    def fit(value: Any, redactor: Redactor) -> Any:
        if type(value) is str and len(value) <= short:
            return value
        text: Any = value if isinstance(value, str) else _UNFIT if value is None else hooks.text(ev.clean(value))
        if text is _UNFIT or longest is None or longest > ev.LEAF_MAX:
            return text  # what may be as long as any leaf is cut with them
        whole = redactor.string(ev.text(text), Found())  # before it is cut: half of a secret is not recognised any more
        return value if whole == value and len(whole) <= longest else ev.cut(whole, longest - 20)

    return fit


def _integer(low: int, high: int) -> _Fit:
    return lambda value, _: value if type(value) is int and low <= value <= high else _UNFIT


def _chosen(allowed: tuple[str, ...]) -> _Fit:
    return lambda value, _: value if isinstance(value, str) and value in allowed else _UNFIT


def _pattern(written: str) -> _Fit:
    found = re.compile(re.sub(r"\$\Z", r"\\Z", written), re.ASCII)
    return lambda value, _: value if isinstance(value, str) and found.search(value) else _UNFIT


def _is(wanted: tuple[type, ...]) -> _Fit:
    return lambda value, _: value if isinstance(value, wanted) else _UNFIT


def _code(value: Any, redactor: Redactor) -> Any:
    return value if type(value) is int and abs(value) < ev.INT_MAX else _TEXT(value, redactor)


def _calls(value: Any, redactor: Redactor) -> Any:
    if not isinstance(value, list) or len(value) > 1024:
        return _UNFIT
    calls = [{k: _TEXT(v, redactor) for k, v in hooks.group(one).items() if v is not None} for one in value]
    return value if calls == value else calls


def _parameters(value: Any, redactor: Redactor) -> Any:
    if isinstance(value, dict) and all(isinstance(v, (str, bool, int)) for v in value.values()):
        return value
    return {k: v if isinstance(v, (bool, int)) else _TEXT(v, redactor) for k, v in value.items() if v is not None} if isinstance(value, dict) else _UNFIT


_TEXT = _string(None)


def _resolved(one: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in one:
        one = schema.load()["$defs"][one["$ref"].rpartition("/")[2]]
    return one


def _is_string(one: dict[str, Any]) -> bool:
    return one.get("type") in ("string", ["string", "null"]) and not {"enum", "pattern"} & one.keys()


def _fit_of(one: dict[str, Any], path: str) -> _Fit | None:
    special = {"decision.calls": _calls, "model.params": _parameters}.get(path)
    if special is not None:
        return special
    one = _resolved(one)
    if "enum" in one:
        return _chosen(tuple(one["enum"]))
    if "pattern" in one:
        return _pattern(one["pattern"])
    wanted = one.get("type")
    if _is_string(one):
        return _string(one.get("maxLength"))
    if wanted == ["string", "integer"]:
        return _code
    if wanted == "integer":
        return _integer(one.get("minimum", 1 - ev.INT_MAX), one.get("maximum", ev.INT_MAX - 1))
    return _is({"boolean": (bool,), "object": (dict,), "array": (list,)}[wanted]) if isinstance(wanted, str) else None


def _tables() -> tuple[dict[str, dict[str, _Fit]], dict[str, _Fit], dict[str, dict[str, int]]]:
    groups: dict[str, dict[str, _Fit]] = {}
    short: dict[str, dict[str, int]] = {}
    single: dict[str, _Fit] = {}
    for name, one in schema.load()["properties"].items():
        if name not in ev.FIELDS:
            continue
        if one.get("type") == "object":
            fits = ((member, _fit_of(inner, f"{name}.{member}")) for member, inner in one.get("properties", {}).items())
            groups[name] = {member: fit for member, fit in fits if fit is not None}
            inner = {member: _resolved(one) for member, one in one.get("properties", {}).items()}
            short[name] = {member: _short(one.get("maxLength")) for member, one in inner.items() if _is_string(one)}
        elif name not in ("session", "run") and (fit := _fit_of(one, name)) is not None:  # the recorder cuts those two
            single[name] = fit
    return groups, single, short


def _required() -> dict[str, str]:
    found = {}
    for one in schema.load()["allOf"]:
        for kind in one["if"]["properties"]["kind"]["enum"]:
            for name in one["then"].get("required", ()):
                found[kind] = name
    return found


_GROUPS, _SINGLE, _SHORT = _tables()
_REQUIRED = _required()
