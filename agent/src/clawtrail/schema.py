"""The published schema of an event (JSON Schema, draft 2020-12), and a checker for it.

`data/event-1.schema.json` says of every member what it means (`description`) and who fills it (`x-source`). Nothing in
the way of an event reads it: a recorder takes what it is given, and this tells whether that was meant.
"""

from __future__ import annotations

import functools
import json
import re
from importlib import resources
from typing import Any, Iterator

from .event import DEPTH_MAX, KINDS

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "boolean": (bool,), "null": (type(None),),
}  # fmt: skip
_CHECKED = {
    "$ref", "type", "const", "enum", "pattern", "maxLength", "minimum", "maximum", "required", "properties", "additionalProperties",
    "items", "maxItems", "anyOf", "allOf", "if", "then",
}  # fmt: skip
_SAID = {"$schema", "$id", "$defs", "title", "description", "x-source"}
_REPLACED = {"size", "sha256"}  #: all that is left of a group that made the line too long; see `event.fit`


def text() -> str:
    """The schema as it is published."""
    return resources.files(__package__).joinpath("data/event-1.schema.json").read_text("utf-8")


@functools.cache
def load() -> dict[str, Any]:
    """The schema, parsed. Raises ValueError for a keyword that `check` would pass over."""
    schema: dict[str, Any] = json.loads(text())
    pending = [schema]
    while pending:
        one = pending.pop()
        if foreign := one.keys() - _CHECKED - _SAID:
            raise ValueError(f"the schema uses {min(foreign)}; expected keywords out of {' '.join(sorted(_CHECKED | _SAID))}")
        for name in ("properties", "$defs"):
            pending += one.get(name, {}).values()
        for name in ("anyOf", "allOf"):
            pending += one.get(name, [])
        pending += [one[name] for name in ("items", "additionalProperties", "if", "then") if name in one]
    return schema


def check(event: object) -> list[str]:
    """What is wrong with an event, one line each: the member's path, what was found, what was expected; [] when nothing is.

    Members that the schema does not know are no error, they may be those of a newer producer: `unknown` names them.
    """
    return [*_errors(event, load(), "event"), *_unwritable(event, "event", 0)]


def unknown(event: dict[str, Any]) -> list[str]:
    """The paths of an event's members that this version of the schema does not describe."""
    return list(_undescribed(event, load(), ""))


def members(schema: dict[str, Any] | None = None, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every described member: its path, such as `content.fps`, and its part of the schema, in the order of the schema."""
    for name, one in (load() if schema is None else schema).get("properties", {}).items():
        yield path + name, one
        yield from members(one, f"{path}{name}.")


def table() -> str:
    """The members as a Markdown table: member, type, meaning, source."""
    rows = ["| member | type | meaning | filled from |", "| --- | --- | --- | --- |"]
    for path, one in members():
        name = f"`{path}`" if "." in path else f"**`{path}`**"
        rows.append(f"| {name} | {_type(one)} | {one.get('description', '')} | {one.get('x-source', '')} |")
    return "\n".join(rows)


def _type(one: dict[str, Any]) -> str:
    if "enum" in one:
        return " ".join(f"`{value}`" for value in one["enum"]) if len(one["enum"]) < 20 else "see below"
    if "$ref" in one:
        return str(one["$ref"].rpartition("/")[2])
    found = one.get("type", "any")
    return " or ".join(found) if isinstance(found, list) else str(found)


def _errors(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    if "$ref" in schema:
        yield from _errors(value, load()["$defs"][schema["$ref"].rpartition("/")[2]], path)
    if "type" in schema and not _is(value, schema["type"]):
        expected = schema["type"]
        yield f"{path}: found {_shown(value)}, expected {' or '.join(expected) if isinstance(expected, list) else expected}"
        return
    if "const" in schema and not _same(value, schema["const"]):
        yield f"{path}: found {_shown(value)}, expected {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: found {_shown(value)}, expected one of {' '.join(schema['enum'])}"
    if isinstance(value, str):
        if "pattern" in schema and not _pattern(schema["pattern"]).search(value):
            yield f"{path}: found {_shown(value)}, expected what matches {schema['pattern']}"
        if len(value) > schema.get("maxLength", len(value)):
            yield f"{path}: found {len(value)} characters, expected at most {schema['maxLength']}"
    elif isinstance(value, int) and not isinstance(value, bool):
        low, high = schema.get("minimum", value), schema.get("maximum", value)
        if not low <= value <= high:
            yield f"{path}: found {value}, expected {low} to {high}"
    elif isinstance(value, list):
        if len(value) > schema.get("maxItems", len(value)):
            yield f"{path}: found {len(value)} items, expected at most {schema['maxItems']}"
        for n, item in enumerate(value if "items" in schema else ()):
            yield from _errors(item, schema["items"], f"{path}[{n}]")
    elif isinstance(value, dict):
        yield from _members_errors(value, schema, path)
    if "anyOf" in schema and all(any(_errors(value, one, path)) for one in schema["anyOf"]):
        yield f"{path}: found {_shown(value)}, expected what one of the alternatives allows"
    for one in schema.get("allOf", ()):
        yield from _errors(value, one, path)
    if "if" in schema and not any(_errors(value, schema["if"], path)):
        yield from _errors(value, schema.get("then", {}), path)


def _members_errors(value: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[str]:
    inside = "" if path == "event" else f"{path}."
    for name in schema.get("required", ()):
        if name not in value:
            kind = value.get("kind")
            yield f"{inside}{name}: found none{f' in a {kind}' if kind in KINDS else ''}, expected one"
    described, rest = schema.get("properties", {}), schema.get("additionalProperties")
    for name, member in value.items():
        one = described.get(name, rest)
        if one is not None:
            yield from _errors(member, one, inside + str(name))


def _undescribed(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    described = schema.get("properties")
    if not isinstance(value, dict) or described is None or "additionalProperties" in schema or value.keys() == _REPLACED:
        return
    for name, member in value.items():
        if name in described:
            yield from _undescribed(member, described[name], f"{path}{name}.")
        else:
            yield path + str(name)


def _unwritable(value: Any, path: str, depth: int) -> Iterator[str]:
    """What no schema can say: 1.0 is an integer to it, and it knows no depth."""
    if isinstance(value, float):
        yield f"{path}: found the float {value!r}, expected an integer or a string"
    elif isinstance(value, (dict, list)):
        if depth > DEPTH_MAX:
            yield f"{path}: found more than {DEPTH_MAX} levels inside each other, expected fewer"
            return
        for name, member in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _unwritable(member, str(name) if path == "event" else f"{path}.{name}", depth + 1)


@functools.cache
def _pattern(written: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\$\Z", r"\\Z", written), re.ASCII)  # ECMA 262: `$` is the end, and nothing before a newline


def _is(value: Any, wanted: str | list[str]) -> bool:
    kinds = [wanted] if isinstance(wanted, str) else wanted
    if isinstance(value, bool):
        return "boolean" in kinds
    return any(isinstance(value, _TYPES[kind]) for kind in kinds)


def _same(value: Any, wanted: Any) -> bool:
    return type(value) is type(wanted) and bool(value == wanted)


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:79]}…"
