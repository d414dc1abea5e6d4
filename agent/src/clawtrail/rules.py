"""Which tool calls get a flag, and which of them reach for a credential: rules as data (data/rules.yaml).

A rule's expression is tried on a call's parameters, put in plain form first: what a shell would join, unquote or expand
is joined, unquoted and expanded, percent and one level of base64 are read as well. A hit is evidence of an attempt, not
proof of a theft. docs/rules.md documents the format.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import re
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from re import _constants as _op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any
from urllib.parse import unquote

from .errors import ConfigurationError
from .watch.companions import configured

PACKAGED = Path(__file__).with_name("data") / "rules.yaml"
SEVERITIES = ("low", "medium", "high", "critical")
ON = ("path", "command", "url", "params", "tool", "answer")  #: what an expression can be tried on
ACTIONS = ("flag", "deny", "approve")
TEXT_MAX = 48 * 1024  #: characters of one field that are looked at; of a longer one its beginning and its end
MATCH_MAX = 1500  #: characters of one expression
SLOWEST = 0.25  #: seconds that one expression may take on TEXT_MAX hostile characters

_KEYS = {"id", "name", "on", "match", "not", "severity", "technique", "action", "only", "why", "fp", "hit", "miss"}
_NEEDED = ("id", "name", "on", "match", "severity", "technique", "why", "hit", "miss")
_ONLY = ("tool", "agent", "surface")
_ID = re.compile(r"[a-z][a-z0-9]*(?:[.-][a-z0-9]+)*\Z")
_NODES = 4000  # values of one call that are read
_REPEATS = 1024  # of one piece, by all the repetitions around it


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
    source: str = field(default="", repr=False)

    @property
    def credential(self) -> bool:
        """Whether a hit is an attempt at a credential."""
        return self.id.startswith("cred.")

    def matches(self, text: str) -> bool:
        """Whether the expression matches, and `not` matches none of the words that it touches."""
        for m in self.match.finditer(text):
            if self.unless is None or not self.unless.search(text, *_words(text, m.start(), m.end())):
                return True
        return False


@dataclass(frozen=True)
class Hit:
    """A rule that matched; `severity` is the rule's, one step higher in a tainted session or for a stranger."""

    rule: Rule
    severity: str


class Rules:
    """The rules that are in force. Immutable; one instance serves all threads.

    Attributes:
        watch: what the files set for the rules that need a session's history, by rule: see `watch.companions`.
    """

    def __init__(self, rules: Iterable[Rule], watch: Mapping[str, Any] | None = None) -> None:
        self._rules = tuple(rules)
        self.watch = dict(watch or {})
        self._always = frozenset(i for i, rule in enumerate(self._rules) if not rule.hints)
        hinted: dict[str, list[int]] = {}
        for i, rule in enumerate(self._rules):
            for hint in rule.hints:
                hinted.setdefault(hint, []).append(i)
        self._hinted = hinted
        self._gates = _gated(sorted(hinted), [text.lower() for rule in self._rules for text in rule.miss])
        self._answers = tuple(rule for rule in self._rules if "answer" in rule.on)

    def __iter__(self) -> Iterator[Rule]:
        return iter(self._rules)

    def __len__(self) -> int:
        return len(self._rules)

    @classmethod
    def load(cls, folders: Sequence[Path] = ()) -> Rules:
        """The packaged rules, then those of every *.yaml in `folders`, by name: the same id replaces, `disable` removes.

        Raises ConfigurationError, naming file, rule, what was found and what was expected; also when a rule of a folder
        does not do what its own `hit` and `miss` say.
        """
        rules: dict[str, Rule] = {}
        watch: dict[str, Any] = {}
        for path in (PACKAGED, *files(folders)):
            found, disabled, settings = read(path)
            try:
                configured(settings)
            except ConfigurationError as e:
                raise ConfigurationError(f"{path}: {e}") from None
            watch |= settings
            for name in disabled:
                if rules.pop(name, None) is None:
                    near = difflib.get_close_matches(name, rules, 1)
                    raise ConfigurationError(f"{path}: disable names {name!r}, which is no rule" + (f"; did you mean {near[0]}?" if near else ""))
            for rule in found:
                if path != PACKAGED and (wrong := faults(rule)):
                    raise ConfigurationError(f"{path}: rule {rule.id}: {wrong[0]}")
                rules[rule.id] = rule
        return cls(rules.values(), watch)

    def hits(
        self,
        tool: str,
        params: Mapping[str, Any],
        *,
        paths: Sequence[str] = (),
        agent: str = "",
        surface: str = "",
        tainted: bool = False,
        owner: bool | None = None,
    ) -> list[Hit]:
        """The rules that a call hits, worst first. `paths` are files the host itself derived from the call.

        Never raises for odd parameters. Takes about 0.1 ms for a short command, and a bounded time for any.
        """
        texts = _texts(tool, params, paths)
        low = _together(texts).lower()
        near = set(self._always)
        for hint in [hint for gate, hints in self._gates if gate in low for hint in hints if hint in low]:
            near.update(self._hinted[hint])
        out = []
        for i in sorted(near):
            rule = self._rules[i]
            if rule.only and not _applies(rule, tool, agent, surface):
                continue
            for name in rule.on:
                if name in texts and rule.matches(texts[name]):
                    out.append(Hit(rule, _raised(rule.severity) if tainted or owner is False else rule.severity))
                    break
        return _worst_first(out)

    def said(self, text: str, *, agent: str = "", tainted: bool = False, owner: bool | None = None) -> list[Hit]:
        """The rules that an answer or a message of the agent hits, worst first: those that are tried on `answer`."""
        text = text[:TEXT_MAX]
        low = text.lower()
        out = []
        for rule in self._answers:
            if (not rule.hints or any(hint in low for hint in rule.hints)) and _applies(rule, "", agent, "") and rule.matches(text):
                out.append(Hit(rule, _raised(rule.severity) if tainted or owner is False else rule.severity))
        return _worst_first(out)


def _worst_first(hits: list[Hit]) -> list[Hit]:
    if len(hits) > 1:
        hits.sort(key=lambda h: -SEVERITIES.index(h.severity))
    return hits


def flag(hits: Sequence[Hit]) -> dict[str, Any] | None:
    """The event's `flag` group: rule, severity, technique of the worst hit, the other rules' ids in `also`."""
    if not hits:
        return None
    worst = hits[0]
    group = {"rule": worst.rule.id, "severity": worst.severity, "technique": worst.rule.technique}
    return group | ({"also": " ".join(h.rule.id for h in hits[1:])} if len(hits) > 1 else {})


def wants(hits: Sequence[Hit], action: str) -> Hit | None:
    """The worst hit whose rule says `action`, None when no rule does."""
    return next((h for h in hits if h.rule.action == action), None)


def _applies(rule: Rule, tool: str, agent: str, surface: str) -> bool:
    given = {"tool": tool, "agent": agent, "surface": surface}
    return all(given[name] in allowed for name, allowed in rule.only.items())


def _raised(severity: str) -> str:
    return SEVERITIES[min(SEVERITIES.index(severity) + 1, len(SEVERITIES) - 1)]


def _words(text: str, start: int, end: int) -> tuple[int, int]:
    """The bounds of the words that text[start:end] touches, at most 120 characters to either side."""
    low, high = max(0, start - 120), min(len(text), end + 120)
    while start > low and not text[start - 1].isspace():
        start -= 1
    while end < high and not text[end].isspace():
        end += 1
    return start, end


# -- what a call says, in plain form ---------------------------------------------------------------------------------

_COMMAND_KEYS = frozenset({"command", "cmd", "script", "code", "args", "argv", "arguments", "shell", "input", "expression", "commandline"})
_SHELLS = frozenset({"exec", "bash", "shell", "sh", "process", "terminal", "run_command", "execute", "code_execution", "system.run"})
_PATH_KEYS = frozenset({
    "path", "paths", "file", "files", "file_path", "filepath", "filename", "file_name", "dir", "directory", "folder", "source", "src",
    "destination", "dest", "dst", "target", "from", "to", "cwd", "workdir", "old_path", "new_path", "notebook_path", "root",
})  # fmt: skip
_URL_KEYS = frozenset({"url", "urls", "uri", "href", "endpoint", "link", "targeturl", "target_url", "base_url", "baseurl"})
_WRITTEN_KEYS = frozenset({"content", "text", "new_string", "newtext", "new_text", "patch", "body"})
_SCRIPT = re.compile(r"\.(?:sh|bash|zsh|py|js|mjs|cjs|ts|rb|pl|ps1|bat|cmd)\Z|(?:^|/)(?:Makefile|Dockerfile|crontab)\Z", re.IGNORECASE)
_PATH_LIKE = re.compile(r"(?:[/~]|\.{1,2}/|file://)[^\n\0]{0,1000}\Z")


def _texts(tool: str, params: Mapping[str, Any], paths: Sequence[str]) -> dict[str, str]:
    """For each of ON that the call has: its values, one on a line, as they are and then in plain form."""
    leaves: list[tuple[str, str]] = []
    _collect(params, "", 0, leaves)
    given: dict[str, list[str]] = {"tool": [tool] if tool else [], "path": [str(p) for p in paths], "command": [], "url": [], "params": []}
    shell = tool.lower() in _SHELLS
    script = any(k in _PATH_KEYS and _SCRIPT.search(v) for k, v in leaves)
    for key, value in leaves:
        if shell or key in _COMMAND_KEYS or key in _WRITTEN_KEYS and (script or value.startswith("#!")):
            given["command"].append(value)
        if key in _PATH_KEYS or _PATH_LIKE.match(value):
            given["path"].append(value)
        if key in _URL_KEYS or value.startswith(("http://", "https://", "ws://", "wss://", "ftp://")):
            given["url"].append(value)
        given["params"].append(f"{key}={value}" if key else value)
    return {name: plain("\n".join(values)) if name != "tool" else tool for name, values in given.items() if values}


def _gated(hints: Sequence[str], ordinary: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """The hints, each behind a piece of it that others share and that is rare in ordinary texts: a text without that piece
    has none of them. One alone stands behind itself."""
    samples = ["\n".join(ordinary[i : i + 8]) for i in range(0, len(ordinary), 8)]  # of about the length of a call
    of: dict[str, set[str]] = {}
    for hint in hints:
        for size in (2, 3):
            for i in range(len(hint) - size + 1):
                of.setdefault(hint[i : i + size], set()).add(hint)
    rare = {piece: 1 - sum(piece in sample for sample in samples) / max(len(samples), 1) for piece in of}
    gates: list[tuple[str, tuple[str, ...]]] = []
    left = dict.fromkeys(hints)
    while of:
        worth, piece = max((len(behind) * rare[piece], piece) for piece, behind in of.items())
        if worth <= 1:
            break
        gates.append((piece, tuple(sorted(of[piece]))))
        gone = of.pop(piece)
        for hint in gone:
            del left[hint]
        for other in list(of):
            of[other] -= gone
            if len(of[other]) < 2:
                del of[other]
    return gates + [(hint, (hint,)) for hint in left]


def _together(texts: Mapping[str, str]) -> str:
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
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_=-])[A-Za-z0-9+/_-]{12,8192}={0,2}(?![A-Za-z0-9+/_-])")


def plain(text: str) -> str:
    """The text, and below it on lines of their own what it becomes once a shell, a URL or base64 is read; cut at TEXT_MAX."""
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
    for m in _BASE64.finditer(shelled):
        if (decoded := _decoded(m[0])) and room > 0:
            out.append(decoded[:room])
            room -= len(decoded)
    return "\n".join(out) if len(out) > 1 else text


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


# -- reading the files -----------------------------------------------------------------------------------------------


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
    match, unless = _expression(item["match"], wrong, "match"), _expression(item["not"], wrong, "not") if item.get("not") else None
    return Rule(
        id=item["id"],
        name=item["name"],
        on=words("on", ON),
        match=match,
        severity=item["severity"],
        technique=" ".join(words("technique")),
        unless=unless,
        action=item.get("action", "flag"),
        only={k: frozenset(map(str, v)) for k, v in only.items() if v},
        why=item["why"],
        fp=item.get("fp", ""),
        hit=words("hit"),
        miss=words("miss"),
        hints=tuple(sorted(_literals(match) or ())),
        source=str(path),
    )


def _expression(text: str, wrong: Any, key: str) -> re.Pattern[str]:
    if len(text) > MATCH_MAX:
        raise wrong(key, f"at most {MATCH_MAX} characters, not {len(text)}")
    try:
        tree = _parser.parse(text)
        unsafe = _unsafe(tree, 1)
        if unsafe:
            raise wrong(key, unsafe)
        return re.compile(text, re.IGNORECASE | re.ASCII | re.MULTILINE)
    except (re.error, RecursionError, OverflowError) as e:
        raise wrong(key, f"a regular expression ({e})") from None


_REPEATING = {_op.MAX_REPEAT, _op.MIN_REPEAT, _op.POSSESSIVE_REPEAT}


def _unsafe(tree: Any, around: int) -> str:
    """What RE2 would not take, or what takes long: a text for the error, empty when there is nothing."""
    for kind, value in tree:
        if kind in (_op.ASSERT, _op.ASSERT_NOT):
            return "no look-around; exceptions go into `not`"
        if kind in (_op.GROUPREF, _op.GROUPREF_EXISTS):
            return "no reference to a group"
        if kind in _REPEATING:
            _, most, inner = value
            single = len(inner) == 1 and inner[0][0] in (_op.IN, _op.LITERAL, _op.NOT_LITERAL, _op.ANY)
            if most == _op.MAXREPEAT and (not single or around > 1):
                return "no repetition without end of a group or inside of one; such as {0,20}"
            if most == _op.MAXREPEAT and kind == _op.MAX_REPEAT and value[0] < 16:
                return "no `*` and no `+`: they take long on hostile text; expected an end, such as {0,200}"
            times = around * (1 if single and around == 1 else max(1, int(most)))
            if times > _REPEATS:
                return f"at most {_REPEATS} repetitions of a piece, by all the repetitions around it"
            if why := _unsafe(inner, times):
                return why
        elif kind is _op.SUBPATTERN:
            if why := _unsafe(value[-1], around):
                return why
        elif kind is _op.BRANCH:
            for branch in value[1]:
                if why := _unsafe(branch, around):
                    return why
        elif kind is getattr(_op, "ATOMIC_GROUP", None):
            return "no atomic group"
    return ""


def _literals(pattern: re.Pattern[str]) -> set[str] | None:
    """Texts in lower case of which every match contains one; None when there is no such set."""
    found = _needed(_parser.parse(pattern.pattern))
    return found if found and min(map(len, found)) >= 2 and len(found) <= 64 else None


def _needed(tree: Any) -> set[str] | None:
    best: set[str] | None = None
    run = ""

    def keep(found: set[str] | None) -> None:
        nonlocal best
        if found and (best is None or _worth(found) > _worth(best)):
            best = found

    for kind, value in tree:
        if kind is _op.LITERAL and value < 128:
            run += chr(value).lower()
            continue
        if run:
            keep({run})
        run = ""
        if kind is _op.SUBPATTERN:
            keep(_needed(value[-1]))
        elif kind is _op.BRANCH:
            branches = [_needed(b) for b in value[1]]
            if all(branches):
                keep(set().union(*(b for b in branches if b)))
        elif kind in _REPEATING and value[0] >= 1:
            keep(_needed(value[2]))
    if run:
        keep({run})
    return best


def _worth(found: set[str]) -> tuple[int, int]:
    return min(min(map(len, found)), 4), -len(found)


# -- does a rule do what it says -------------------------------------------------------------------------------------


def faults(rule: Rule, timed: bool = False) -> list[str]:
    """What is wrong with a rule: its own examples that behave otherwise; with `timed`, also texts that take it too long."""
    wrong = [f"does not hit {text!r}, which stands under its hit" for text in rule.hit if not _tried(rule, text)]
    wrong += [f"hits {text!r}, which stands under its miss" for text in rule.miss if _tried(rule, text)]
    if timed and (slow := slowest(rule)) > SLOWEST:
        wrong.append(f"takes {slow * 1000:.0f} ms on {TEXT_MAX} hostile characters; expected at most {SLOWEST * 1000:.0f} ms")
    return wrong


def _tried(rule: Rule, text: str) -> bool:
    texts = {**dict.fromkeys(rule.on, plain(text)), "tool": text}
    low = "\n".join(texts.values()).lower()
    return (not rule.hints or any(h in low for h in rule.hints)) and any(rule.matches(texts[name]) for name in rule.on)


def slowest(rule: Rule) -> float:
    """Seconds that the rule takes on the worst of the hostile texts made from its own words; main thread only, ends at ten times SLOWEST."""
    worst = 0.0

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        for text in _hostile(rule):
            start = time.perf_counter()
            signal.setitimer(signal.ITIMER_REAL, SLOWEST * 10)
            try:
                rule.matches(text)
            except TimeoutError:
                return SLOWEST * 10
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            worst = max(worst, time.perf_counter() - start)
    finally:
        signal.signal(signal.SIGALRM, before)
    return worst


def _hostile(rule: Rule) -> Iterator[str]:
    seeds = {" ".join(h.split()[:2]) for h in rule.hit} | set(rule.hints[:3])
    for seed in sorted(seeds)[:6]:
        for filler in ("", " ", "a", "a "):
            yield ((seed + filler) * (TEXT_MAX // (len(seed) + len(filler)) + 1))[:TEXT_MAX]
        yield seed + "a" * (TEXT_MAX - len(seed))
    for filler in ("a", "-", "/", " ", "a "):
        yield (filler * TEXT_MAX)[:TEXT_MAX]


def check(folders: Sequence[Path] = ()) -> tuple[Rules, list[str]]:
    """All rules, packaged and of the folders, and what is wrong with each: `rule: fault`. Raises as `load` does."""
    rules = Rules.load(folders)
    return rules, [f"{rule.source}: rule {rule.id}: {fault}" for rule in rules for fault in faults(rule, timed=True)]
