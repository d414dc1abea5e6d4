"""A rule, and the files in which rules are written."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError
from ..watch.companions import SEVERITIES
from . import expressions

ON = ("path", "command", "url", "params", "tool", "answer")  #: what an expression can be tried on
ACTIONS = ("flag", "deny", "approve")

_KEYS = {"id", "name", "on", "match", "not", "severity", "technique", "action", "only", "why", "fp", "hit", "miss"}
_NEEDED = ("id", "name", "on", "match", "severity", "technique", "why", "hit", "miss")
_ONLY = ("tool", "agent", "surface")
_ID = re.compile(r"[a-z][a-z0-9]*(?:[.-][a-z0-9]+)*\Z")


@dataclass(frozen=True)
class Rule:
    """One rule. `technique` is space-joined MITRE ATT&CK and ATLAS ids; `on` names the fields that `match` is tried on."""

    id: str
    name: str
    on: tuple[str, ...]
    match: re.Pattern[str] = field(repr=False)
    severity: str
    technique: str
    unless: re.Pattern[str] | None = field(default=None, repr=False)
    action: str = "flag"
    only: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)
    why: str = field(default="", repr=False)
    fp: str = field(default="", repr=False)
    hit: tuple[str, ...] = field(default=(), repr=False)
    miss: tuple[str, ...] = field(default=(), repr=False)
    hints: tuple[str, ...] = field(default=(), repr=False)  #: lower case; without one of them nothing matches; (): unknown
    also: tuple[tuple[str, ...], ...] = field(default=(), repr=False)  #: nor without one of each of these
    source: str = field(default="", repr=False)

    @property
    def credential(self) -> bool:
        """Whether a hit is an attempt at a credential."""
        return self.id.startswith("cred.")

    def near(self, low: str) -> bool:
        """Whether a text in lower case has what every match contains."""
        return (not self.hints or any(hint in low for hint in self.hints)) and self.within(low)

    def within(self, low: str) -> bool:
        """As `near`, for a text that is known to have one of the hints."""
        for texts in self.also:
            for text in texts:
                if text in low:
                    break
            else:
                return False
        return True

    def matches(self, text: str) -> bool:
        """Whether the expression matches, and `not` matches none of the words that it touches."""
        for m in self.match.finditer(text):
            if self.unless is None or not self.unless.search(text, *_words(text, m.start(), m.end())):
                return True
        return False


def _words(text: str, start: int, end: int) -> tuple[int, int]:
    """The bounds of the words that text[start:end] touches, at most 120 characters to either side."""
    low, high = max(0, start - 120), min(len(text), end + 120)
    while start > low and not text[start - 1].isspace():
        start -= 1
    while end < high and not text[end].isspace():
        end += 1
    return start, end


def files(folders: Sequence[Path]) -> list[Path]:
    """The rule files of the folders, by name. Raises ConfigurationError for a folder that is none."""
    out: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ConfigurationError(f"{folder} is no folder; expected one with rule files (*.yaml)")
        out += sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    return out


def read(path: Path) -> tuple[list[Rule], list[str], dict[str, Any]]:
    """The rules of one file, the ids that it disables and its section `watch`. Raises ConfigurationError."""
    try:
        given = _yaml(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigurationError(f"{path}: {e}") from None
    if not isinstance(given, dict) or not given.keys() <= {"version", "rules", "disable", "watch"}:
        found = " ".join(map(str, given)) if isinstance(given, dict) else type(given).__name__
        raise ConfigurationError(f"{path}: found {found!r}; expected version: 1, rules: a list, disable: a list of ids, watch: a mapping")
    if given.get("version") != 1:
        raise ConfigurationError(f"{path}: version is {given.get('version')!r}; expected 1")
    rules, disabled = given.get("rules") or [], given.get("disable") or []
    if not isinstance(rules, list):
        raise ConfigurationError(f"{path}: rules is {type(rules).__name__}; expected a list")
    if not isinstance(disabled, list) or not all(isinstance(d, str) for d in disabled):
        raise ConfigurationError(f"{path}: disable is {disabled!r}; expected a list of ids")
    out: list[Rule] = []
    for i, item in enumerate(rules, 1):
        rule = _rule(item, path, i)
        if any(r.id == rule.id for r in out):
            raise ConfigurationError(f"{path}: rule {rule.id} stands there twice; expected each id once in a file")
        out.append(rule)
    return out, disabled, given.get("watch") or {}


def _yaml(text: str) -> Any:
    """YAML with the booleans `true` and `false` alone: of `on:` it would make a boolean otherwise."""
    try:
        import yaml
    except ImportError:
        raise ConfigurationError("the rules need PyYAML, which is not installed; expected `pip install clawtrail[stack]`") from None

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in pairs if tag != "tag:yaml.org,2002:bool"]
            for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [k.value for k, _ in node.value]
            if twice := [k for k in keys if keys.count(k) > 1]:
                raise ValueError(f"line {node.start_mark.line + 1}: {twice[0]!r} stands there twice; expected each key once")
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
    try:
        return yaml.load(text, Loader)  # a SafeLoader
    except yaml.YAMLError as e:
        raise ValueError(f"no YAML: {' '.join(str(e).split())}") from None


def _rule(item: Any, path: Path, number: int) -> Rule:
    if not isinstance(item, dict) or not isinstance(item.get("id"), str) or not _ID.match(item["id"]):
        found = item.get("id") if isinstance(item, dict) else item
        raise ConfigurationError(f"{path}: rule {number}: id is {found!r}; expected words of a-z and 0-9 with dots or dashes, such as cred.my-vault")

    def wrong(key: str, expected: str) -> ConfigurationError:
        found = f"is {item[key]!r}" if key in item else "is missing"
        return ConfigurationError(f"{path}: rule {item['id']}: {key} {found}; expected {expected}")

    def words(key: str, allowed: Sequence[str] = ()) -> tuple[str, ...]:
        value = item.get(key, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v and (not allowed or v in allowed) for v in value):
            raise wrong(key, f"a list of {', '.join(allowed)}" if allowed else "a list of texts")
        return tuple(value)

    for key in item:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), sorted(_KEYS), 1) or sorted(_KEYS)
            raise ConfigurationError(f"{path}: rule {item['id']}: found the key {key!r}; expected {' '.join(near)}")
    for key in _NEEDED:
        if item.get(key) in (None, "", []):
            raise wrong(key, {"hit": "a list with at least one text that it hits", "miss": "a list with at least one text that it does not hit"}
                        .get(key, "a value"))  # fmt: skip
    for key in ("name", "match", "not", "why", "fp"):
        if key in item and not isinstance(item[key], str):
            raise wrong(key, "a text")
    for key, allowed in (("severity", SEVERITIES), ("action", ACTIONS)):
        if key in item and item[key] not in allowed:
            raise wrong(key, f"one of {', '.join(allowed)}")
    only = item.get("only", {})
    if not isinstance(only, dict) or not all(k in _ONLY and isinstance(v, list) for k, v in only.items()):
        raise wrong("only", f"lists of names below {', '.join(_ONLY)}")
    expression: dict[str, re.Pattern[str]] = {}
    for key in ("match", "not"):
        try:
            if item.get(key):
                expression[key] = expressions.compiled(item[key])
        except ValueError as e:
            raise wrong(key, str(e)) from None
    hints, *also = [tuple(sorted(texts)) for texts in expressions.literals(expression["match"])] or [()]
    return Rule(
        id=item["id"],
        name=item["name"],
        on=words("on", ON),
        match=expression["match"],
        severity=item["severity"],
        technique=" ".join(words("technique")),
        unless=expression.get("not"),
        action=item.get("action", "flag"),
        only={k: frozenset(map(str, v)) for k, v in only.items() if v},
        why=item["why"],
        fp=item.get("fp", ""),
        hit=words("hit"),
        miss=words("miss"),
        hints=hints,
        also=tuple(also),
        source=str(path),
    )
