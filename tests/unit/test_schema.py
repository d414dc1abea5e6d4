"""The published schema: it is one, it knows what the code knows, and the checker says what a well-kept validator says."""

import copy
import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawtrail import cli, event, schema, testing

STANDARD = jsonschema.Draft202012Validator(schema.load())


def whole():
    """An event with every group, made by a recorder."""
    with testing.capture() as events, testing.recorder() as audit:
        audit.record(
            "tool.result", "success", session="s", run="r", step=2, trace={"id": "0" * 31 + "1", "span": "0" * 15 + "1"},
            caused_by=audit.record("tool.call", "attempt", tool={"name": "exec"}).id,
            actor={"type": "user", "id": "telegram:1", "auth": "verified", "owner": True}, trigger={"type": "cron", "ref": "j"},
            tool={"name": "exec", "type": "builtin", "call_id": "c"}, params={"deep": {"list": [1, "two", None, True]}},
            content=event.content("said", 4, trust="untrusted-data", fps="0011aabb 11223344", redactions=2),
            target={"type": "url", "id": "example.org", "new": True}, credential={"name": "aws", "use": "read"},
            model={"requested": "m", "via": "proxy", "params": {"max_tokens": 4096, "temperature": "0.2"}},
            decision={"stop": "tool", "calls": ["c"]}, usage={"input": 1}, policy={"verdict": "allow"}, approval={"state": "pending"},
            store={"kind": "memory", "op": "write"}, peer={"session": "p", "proof": "host"}, change={"what": "skill", "name": "x"},
            log={"logger": "l", "level": "INFO", "severity": 6, "fields": {"own": [1]}}, taint="web:example.org",
            flag={"rule": "cred.aws-file", "severity": "high", "technique": "T1552.001 AML.T0055"}, error={"type": "exit", "code": 3},
            duration_us=5, asserted=["actor.display"], dropped={"n": 1}, health={"component": "x", "own": {"n": 1}}, proof={"key": "k"},
        )  # fmt: skip
    return events[-1]


def paths(value, path=()):
    yield path
    for name, member in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from paths(member, (*path, name))


WHOLE = whole()
PLACES = [path for path in paths(WHOLE) if path]
ODD = [None, True, -1, 0, 2**53, "", "x", "unknown", "a" * 3000, "0" * 64, [], ["x"], [[1]], {}, {"x": 1}, {"name": 7}]


def changed(path, value):
    made = copy.deepcopy(WHOLE)
    inside = made
    for name in path[:-1]:
        inside = inside[name]
    if value is ...:
        del inside[path[-1]]
    else:
        inside[path[-1]] = value
    return made


def test_the_schema_is_one_by_the_draft_that_it_names():
    jsonschema.Draft202012Validator.check_schema(schema.load())
    assert schema.load()["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]


def test_it_knows_every_field_kind_category_and_outcome_and_no_other():
    members = schema.load()["properties"]
    assert set(members) == {"v", "id", "ts", "agent", "host", "epoch", "seq", "prev", "kind", "category", "outcome", *event.FIELDS}
    assert [name for name in members if name in event.FIELDS] == list(event.FIELDS)
    assert members["kind"]["enum"] == list(event.KINDS) and set(members["category"]["enum"]) == set(event.KINDS.values())
    assert set(members["outcome"]["enum"]) == event.OUTCOMES and members["v"]["const"] == event.VERSION
    assert {name for name in event.FIELDS if members[name].get("type") != "object"} == event.SINGLE


def test_every_member_says_what_it_means_and_who_fills_it():
    described = list(schema.members())
    assert len(described) > 150
    groups = {name for name, one in described if one.get("type") == "object"}
    assert not [path for path, one in described if not one.get("description") or (path not in groups and not one.get("x-source"))]


def test_an_event_with_every_group_is_valid_and_wholly_described():
    assert set(WHOLE) == set(schema.load()["properties"])
    assert schema.check(WHOLE) == [] and schema.unknown(WHOLE) == [] and STANDARD.is_valid(WHOLE)


@pytest.mark.parametrize("kind", event.KINDS)
def test_each_kind_wants_its_category_and_its_group(kind):
    right = WHOLE | {"kind": kind, "category": event.KINDS[kind]}
    assert schema.check(right) == []
    wrong = next(c for c in event.KINDS.values() if c != event.KINDS[kind])
    assert schema.check(right | {"category": wrong}) == [f"category: found {wrong!r}, expected {event.KINDS[kind]!r}"]


@given(st.sampled_from(PLACES), st.sampled_from([..., *ODD]))
def test_whatever_is_changed_in_an_event_the_checker_says_what_a_standard_validator_says(path, value):
    made = changed(path, value)
    assert bool(schema.check(made)) is not STANDARD.is_valid(made), (path, value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("content", "trust"), "mostly", "content.trust: found 'mostly', expected one of trusted-instruction untrusted-instruction trusted-data untrusted-data"),
        (("seq",), "41", "seq: found '41', expected integer"),
        (("usage", "input"), -1, "usage.input: found -1, expected 0 to 9007199254740991"),
        (("prev",), ..., "prev: found none in a tool.result, expected one"),
        (("tool",), ..., "tool: found none in a tool.result, expected one"),
        (("error", "stack"), "x" * 2065, "error.stack: found 2065 characters, expected at most 2064"),
        (("id",), "1", "id: found '1', expected what matches ^[0-9a-f]{8}-"),
        (("params", "deep", "list"), [0.5], "params.deep.list.0: found the float 0.5, expected an integer or a string"),
    ],
)  # fmt: skip
def test_an_error_names_the_place_what_was_found_and_what_was_expected(path, value, said):
    assert any(error.startswith(said) for error in schema.check(changed(path, value)))


def test_what_no_schema_can_say_is_checked_as_well():
    assert schema.check(WHOLE | {"params": {"n": 1.0}}) and STANDARD.is_valid(WHOLE | {"params": {"n": 1.0}})
    deep = 1
    for _ in range(event.DEPTH_MAX + 1):
        deep = {"d": deep}
    assert "levels" in schema.check(WHOLE | {"params": deep})[0]
    assert schema.check("text") == ["event: found 'text', expected object"]


def test_a_member_of_a_newer_producer_is_no_error_and_is_named():
    newer = WHOLE | {"mood": "good", "tool": {"name": "exec", "colour": "red"}, "content": {"size": 9, "sha256": "0" * 64}}
    assert schema.check(newer) == [] and schema.unknown(newer) == ["tool.colour", "mood"]


def test_a_group_that_was_too_large_for_the_line_is_valid_as_its_size_and_hash():
    with testing.capture() as events, testing.recorder() as audit:
        audit.record("tool.call", "attempt", tool={"name": "x" * 2000, "server": "\x01" * 9000}, params={str(i): "\x01" * 900 for i in range(99)})
    assert schema.check(events[-1]) == [] and schema.unknown(events[-1]) == []


def test_the_command_prints_the_schema_and_the_table(capsys):
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema.load()
    assert cli.main(["schema", "--table"]) == 0
    out = capsys.readouterr().out
    assert "| `content.fps` | string | their keyed fingerprints" in out and len(out.splitlines()) == 2 + len(list(schema.members()))


def test_the_command_checks_lines(capsys, monkeypatch, tmp_path):
    lines = tmp_path / "lines"
    lines.write_text(json.dumps(WHOLE) + "\n" + json.dumps(WHOLE | {"seq": 0}) + "\n\nno json\n")
    with lines.open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert cli.main(["schema", "--check"]) == 1
    err = capsys.readouterr().err
    assert "[x] line 2: seq: found 0, expected 1 to 9007199254740991" in err and "[x] line 4: not JSON" in err and "2 of 3 events" in err
